"""On a GPU: every golden case, a search, and what users do, in float64 and float32.

    python -m pytest -m gpu tests/test_gpu.py

Without CuPy or without a GPU it skips; with REFPEFT_REQUIRE=cupy it fails. What CuPy has is looked at without a GPU too.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from elsewhere import Elsewhere
from foreign import FUNCTIONS, UFUNCS
from support import (
    ASKED,
    MODELS,
    REQUIRED,
    need,
    outputs_of,
    relative_error,
    save_base,
    tiny_adapter,
    tiny_model,
    tiny_question,
    tiny_values,
)

import refpeft
from refpeft import arrays, devices
from refpeft.errors import ConfigError
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.judge import Selection
from refpeft.oracle.run import judge
from refpeft.oracle.search import Search
from refpeft.oracle.vectors import all_vectors
from refpeft.peft_model import PeftModel
from refpeft.testing import cases

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no GPU is said by the tests
    cupy = need("cupy")

pytestmark = pytest.mark.gpu
METHODS = ["prompt", "projected"]
CLOSE = {"float64": 1e-12, "float32": 1e-3}
"""Tiny models with weights of standard deviation 0.4; the golden cases have budgets of their own."""


@pytest.fixture(scope="module")
def place() -> Callable[[Any], Any]:
    """Brings an array to the GPU."""
    try:
        return devices.mover("cuda")
    except ConfigError as error:
        if "cupy" in REQUIRED:
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


# ---------------------------------------------------------------- what CuPy has


@pytest.mark.parametrize("name", FUNCTIONS)
def test_cupy_has_the_functions_that_the_stand_in_allows(name: str) -> None:
    function = getattr(cupy, name)
    assert function is not getattr(numpy, name)
    assert {*FUNCTIONS[name].split()} <= {*inspect.signature(function).parameters}


@pytest.mark.parametrize("name", sorted(UFUNCS - {"matmul"}))
def test_cupy_has_the_elementwise_functions_that_the_stand_in_allows(name: str) -> None:
    assert isinstance(getattr(cupy, name), cupy.ufunc)


def test_cupy_has_the_matrix_product() -> None:
    assert cupy.matmul is not numpy.matmul
    assert callable(cupy.matmul)


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize("profile", ["float64", "float32"])
def test_every_golden_case_conforms(profile: str, place: Callable[[Any], Any], tmp_path: Path) -> None:
    vectors = list(all_vectors())
    found = judge(Elsewhere(place), Selection(vectors, [PROFILES[profile]]), tmp_path, None)
    wrong = [f"{result.case}: {result.verdict}" for result in found if result.verdict != "CONFORMS"]
    assert wrong == []


def test_nothing_is_found_by_a_search(place: Callable[[Any], Any], tmp_path: Path) -> None:
    port = Elsewhere(place)
    found = Search(port, tmp_path)
    found.run(cases(port.abilities), max_examples=200, seed=0)
    assert found.found is None
    assert not found.ended
    assert set(found.counts) <= {"CONFORMS", "SKIPPED"}


def pair(
    name: str, method: str, task: str, place: Callable[[Any], Any], dtype: str = "float64"
) -> tuple[PeftModel, PeftModel]:
    """The same model on the host and on the GPU."""
    family, changes = MODELS[name]
    base = tiny_model(family, dtype=dtype, **changes)
    return tiny_adapter(base, method, task), tiny_adapter(base.map(place), method, task)


def close(given: Any, expected: Any) -> bool:
    """On the GPU, in the same format, and nearly the same."""
    assert isinstance(given, cupy.ndarray)
    assert given.dtype == expected.dtype
    error = relative_error(arrays.to_host(given), expected)
    return error < CLOSE[str(expected.dtype)] or float(numpy.abs(expected).max()) < 1e-12


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "task"), ASKED, ids=[f"{name}: {task}" for name, task in ASKED])
def test_every_model_computes(
    name: str, task: str, method: str, dtype: str, place: Callable[[Any], Any]
) -> None:
    here, there = pair(name, method, task, place, dtype)
    question = tiny_question(here)
    given, expected = there(**question), here(**question)
    for key, output in outputs_of(expected).items():
        assert close(outputs_of(given)[key], output), key
    if expected.loss is not None:
        gradients = here.value_and_grad(**question)[1]
        found = there.value_and_grad(**question)[1]
        together = [
            numpy.concatenate([arrays.to_host(of[key]).ravel() for key in gradients])
            for of in (found, gradients)
        ]
        assert all(isinstance(value, cupy.ndarray) for value in found.values())
        assert relative_error(*together) < CLOSE[dtype]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name, task in ASKED if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM")])
def test_every_model_generates(name: str, method: str, beams: int, place: Callable[[Any], Any]) -> None:
    here, there = pair(name, method, "", place)
    told = {
        "input_ids": tiny_question(here, masked=False)["input_ids"],
        "max_new_tokens": 6,
        "num_beams": beams,
    }
    numpy.testing.assert_array_equal(
        there.generate(**told, pad_token_id=0), here.generate(**told, pad_token_id=0)
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_loaded_trained_and_saved(
    method: str, place: Callable[[Any], Any], tmp_path: Path
) -> None:
    directory = save_base(tmp_path / "base", tiny_model("llama"), tiny_values("llama"))
    models = [
        tiny_adapter(refpeft.load_base_model(directory, device=device), method)
        for device in ("cpu", "cuda:0")
    ]
    question = tiny_question(models[0])
    arguments = refpeft.TrainingArguments(max_steps=5, learning_rate=0.01)
    here, there = (
        refpeft.train(model, [question], arguments, progress=False, directory=tmp_path / f"training-{number}")
        for number, model in enumerate(models)
    )
    numpy.testing.assert_allclose(there.losses, here.losses, rtol=1e-9)
    models[1].save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(models[1].base, tmp_path / "adapter")
    assert close(loaded(**question).logits, models[0](**question).logits)
    assert {type(value) for value in loaded.parameters().values()} == {cupy.ndarray}
