"""Adapter directories, in and out: adapter_config.json and adapter_model.safetensors, as HF peft reads and writes them.

Follows HF peft 0.21.2 `peft_model.py` (`save_pretrained`, `from_pretrained`) and `utils/save_and_load.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from refpeft import prefix_encoder, prompt_embedding
from refpeft.arrays import Array, Float, Parameters
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.errors import CheckpointError
from refpeft.tensors import FLOATING, finite_in, read_tensors, write_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
TENSOR = "prompt_embeddings"
"""The one tensor of an adapter file, for both methods (clause CK-1)."""


def prompt_embeddings(parameters: Parameters, config: PromptLearningConfig) -> Float[Array, "virtual width"]:
    """What an adapter file holds: the prompt's table, or the *evaluated* flat prefix. Clause CK-1.

    A projection is folded: its network is not saved and cannot be recovered.
    Source: HF peft 0.21.2 `peft_model.py`, `get_prompt_embedding_to_save`.
    """
    if isinstance(config, PrefixTuningConfig):
        return prefix_encoder.flat(parameters, config)
    return parameters[prompt_embedding.EMBEDDING]


def save(directory: str | Path, config: PromptLearningConfig, parameters: Parameters) -> None:
    """Write an adapter directory that HF peft loads. Clauses CK-1, CK-2.

    The configuration is written with `inference_mode` true, whatever it is in memory, as HF does. Each file appears
    whole or not at all; the configuration comes last, so that a directory with a configuration has its weights.

    Raises:
        CheckpointError: the path is a file, or the directory cannot be written.
    """
    path = Path(directory)
    if path.is_file():
        raise CheckpointError(f"Provided path ({path}) should be a directory, not a file")
    tensor = numpy.asarray(prompt_embeddings(parameters, config))
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_tensors(path / WEIGHTS_FILE, {TENSOR: tensor}, metadata={"format": "pt"})
        replace(config, inference_mode=True).save_pretrained(path)
    except OSError as error:
        raise CheckpointError(f"Can't write the adapter to '{path}': {error.strerror or error}.") from error


def load(directory: str | Path, dtype: Any = "float64") -> tuple[PromptLearningConfig, NDArray[Any]]:
    """Read an adapter directory: its configuration, in inference mode, and its `prompt_embeddings`. Clause CK-3.

    The tensor comes in `dtype`, the base model's.

    Raises:
        ConfigError: adapter_config.json is missing or wrong.
        CheckpointError: the weights are missing, pickled, damaged, not finite, or hold no `prompt_embeddings`.
    """
    config = replace(PromptLearningConfig.from_pretrained(directory), inference_mode=True)
    path = Path(directory) / WEIGHTS_FILE
    if not path.is_file() and path.with_suffix(".bin").is_file():
        raise CheckpointError(
            f"'{directory}' has adapter_model.bin but no {WEIGHTS_FILE}. refpeft does not unpickle: load the adapter with "
            "peft and save it again with save_pretrained(directory), which writes safetensors."
        )
    tensors = read_tensors(path, "the adapter's weights")
    if TENSOR not in tensors:
        raise CheckpointError(
            f"'{path}' has no tensor '{TENSOR}'; it holds {', '.join(sorted(tensors)) or 'none'}. HF peft saves one "
            f"tensor of that name: the prompt's table, or the flat prefix after any projection."
        )
    further = sorted(set(tensors) - {TENSOR})
    if further:
        raise CheckpointError(
            f"'{path}' also holds {', '.join(further[:5])}{' …' if len(further) > 5 else ''}: modules that were trained beside the "
            "virtual tokens. refpeft does not load them, and without them its answers would not be HF's."
        )
    tensor = tensors[TENSOR]
    if str(tensor.dtype) not in FLOATING or tensor.ndim != 2:
        raise CheckpointError(
            f"'{TENSOR}' in '{path}' is {tensor.dtype} of shape {tensor.shape}; it must be a floating-point matrix with "
            "one row for each virtual token."
        )
    return config, finite_in(tensor, dtype, TENSOR, path)


def parameters_from(
    prompt_embeddings: NDArray[Any], config: PromptLearningConfig, directory: str | Path
) -> dict[str, NDArray[Any]]:
    """The trainable parameters of a loaded adapter, once its configuration is filled in from the base model.

    Raises:
        CheckpointError: the tensor's shape is not what the configuration and the base model say.
    """
    if isinstance(config, PrefixTuningConfig):
        expected = prefix_encoder.parameter_shapes(config)
    else:
        assert isinstance(config, PromptTuningConfig)  # noqa: S101  (the two classes there are)
        expected = prompt_embedding.parameter_shapes(config)
    ((name, shape),) = expected.items()  # in inference mode there is one parameter
    if prompt_embeddings.shape != shape:
        raise CheckpointError(
            f"'{TENSOR}' in '{directory}' has shape {prompt_embeddings.shape}; with its adapter_config.json and this base "
            f"model it must be {shape}: (virtual tokens, {'2 · layers · token_dim' if len(shape) and isinstance(config, PrefixTuningConfig) else 'token_dim'}). "
            "Was the adapter trained for another base model?"
        )
    return {name: prompt_embeddings}
