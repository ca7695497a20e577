"""What tests in several files share: requirements, tiny models, comparisons."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from typing import Any

import numpy
import pytest

from refpeft import arrays
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.weights import HEAD, HEADS, TOKENS, BaseModel, parameter_shapes

REQUIRED = frozenset(filter(None, os.environ.get("REFPEFT_REQUIRE", "").split(",")))
"""What must be there: in `.ci/run` a test may not skip for want of these."""


def need(name: str) -> Any:
    """A Python module, or the path of a program (`node`, `cc`), or skip the test; fail if REFPEFT_REQUIRE lists it."""
    root = name.partition(".")[0]
    if importlib.util.find_spec(root):  # before programs: transformers and torch bring some of their own name
        return importlib.import_module(name)
    program = shutil.which(name)
    if program:
        return program
    message = f"needs {root}, which is not installed here"
    if root in REQUIRED:
        pytest.fail(f"{message}, but REFPEFT_REQUIRE lists it", pytrace=False)
    return pytest.skip(message, allow_module_level=True)


def tiny_config(**changes: Any) -> ModelConfig:
    """A GPT-2 whose axes all have different sizes, unless `changes` say otherwise (HF's names)."""
    sizes = {"vocab_size": 43, "n_positions": 37, "n_embd": 15, "n_layer": 3, "n_head": 5, "n_inner": 22}
    return ModelConfig.from_dict({"model_type": "gpt2", **sizes, **changes})


def tiny_base(seed: int = 0, dtype: str = "float64", **changes: Any) -> BaseModel:
    """A base model with random weights of standard deviation 0.4, so that every mistake shows."""
    config = tiny_config(**changes)
    random = numpy.random.default_rng(seed)
    parameters: dict[str, arrays.Array] = {
        name: random.normal(0.0, 0.4, shape).astype(dtype)
        for name, shape in parameter_shapes(config).items()
        if not name.startswith(HEADS) and not (name == HEAD and config.tie_word_embeddings)
    }
    if config.tie_word_embeddings:
        parameters[HEAD] = parameters[TOKENS]
    return BaseModel(config, parameters)


def relative_error(given: Any, expected: Any) -> float:
    """‖given − expected‖ / ‖expected‖."""
    given, expected = numpy.asarray(given, dtype=numpy.float64), numpy.asarray(expected, dtype=numpy.float64)
    scale = float(numpy.linalg.norm(expected))
    return float(numpy.linalg.norm(given - expected)) / scale if scale else float(numpy.linalg.norm(given))
