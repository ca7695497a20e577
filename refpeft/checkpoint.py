"""Adapter directories, in and out: adapter_config.json and adapter_model.safetensors, as HF peft reads and writes them.

Follows HF peft 0.21.2 `peft_model.py` (`save_pretrained`, `from_pretrained`) and `utils/save_and_load.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from refpeft import prefix_encoder, prompt_embedding
from refpeft.arrays import Array, Float, Parameters, to_host
from refpeft.config import PrefixTuningConfig, PromptLearningConfig
from refpeft.errors import CheckpointError
from refpeft.steps import step
from refpeft.tensors import FLOATING, finite_in, read_tensors, write_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
TENSOR = "prompt_embeddings"
"""The virtual tokens' tensor in an adapter file, for both methods (clause CK-1)."""
HEAD = "base_model."
"""How the names of the other tensors begin: heads that were trained beside the virtual tokens."""


@step(
    "checkpoint.table",
    clause="CK-1",
    stage="",
    axes="virtual width",
    source="peft peft_model.py get_prompt_embedding_to_save",
)
def prompt_embeddings(parameters: Parameters, config: PromptLearningConfig) -> Float[Array, "virtual width"]:
    """What an adapter file holds: the prompt's table, or the *evaluated* flat prefix. Clause CK-1.

    A projection is folded: its network is not saved and cannot be recovered.
    Source: HF peft 0.21.2 `peft_model.py`, `get_prompt_embedding_to_save`.
    """
    if isinstance(config, PrefixTuningConfig):
        return prefix_encoder.flat(parameters, config)
    return parameters[prompt_embedding.EMBEDDING]


@step(
    "checkpoint.head",
    clause="CK-4",
    stage="",
    axes="",
    source="peft utils/save_and_load.py set_peft_model_state_dict",
)
def loaded_head(stored: Array, own: Array) -> Array:
    """A head's tensor of a loaded adapter: the file's, whatever the base model has of its own. Clause CK-4.

    Both have the shape that the base model's head has: (labels, hidden), or (labels).
    """
    return stored


def save(directory: str | Path, config: PromptLearningConfig, parameters: Parameters) -> None:
    """Write an adapter directory that HF peft loads. Clauses CK-1, CK-2.

    The configuration is written with `inference_mode` true, whatever it is in memory, as HF does. Heads that are trained beside
    the virtual tokens stand in the same file, under their names with `base_model.` before. Each file appears
    whole or not at all; the configuration comes last, so that a directory with a configuration has its weights.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.save_pretrained`; `utils/save_and_load.py`,
    `get_peft_model_state_dict`.

    Raises:
        CheckpointError: the path is a file, or the directory cannot be written.
    """
    path = Path(directory)
    if path.is_file():
        raise CheckpointError(f"Provided path ({path}) should be a directory, not a file")
    heads = {name: value for name, value in parameters.items() if name.startswith(HEAD)}
    tensors = {TENSOR: prompt_embeddings(parameters, config), **heads}
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_tensors(
            path / WEIGHTS_FILE,
            {name: to_host(value) for name, value in tensors.items()},
            metadata={"format": "pt"},
        )
        replace(config, inference_mode=True).save_pretrained(path)
    except OSError as error:
        raise CheckpointError(f"Can't write the adapter to '{path}': {error.strerror or error}.") from error


def load(
    directory: str | Path, dtype: Any = "float64"
) -> tuple[PromptLearningConfig, dict[str, NDArray[Any]]]:
    """Read an adapter directory: its configuration, in inference mode, its `prompt_embeddings`, and its heads. Clause CK-3.

    The tensors come in `dtype`, the base model's.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.from_pretrained`.

    Raises:
        ConfigError: adapter_config.json is missing or wrong.
        CheckpointError: as `load_tensors`.
    """
    return load_config(directory), load_tensors(directory, dtype)


def load_config(directory: str | Path) -> PromptLearningConfig:
    """The configuration of an adapter directory, in inference mode, whatever the file says.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.from_pretrained`, whose `is_trainable` is False.

    Raises:
        ConfigError: adapter_config.json is missing or wrong.
    """
    return replace(PromptLearningConfig.from_pretrained(directory), inference_mode=True)


def load_tensors(directory: str | Path, dtype: Any = None) -> dict[str, NDArray[Any]]:
    """The tensors of an adapter directory in `dtype`, or each as it is stored: `prompt_embeddings`, and heads.

    Source: HF peft 0.21.2 `utils/save_and_load.py`, `load_peft_weights`.

    Raises:
        CheckpointError: the weights are missing, pickled, damaged, not finite, or hold no `prompt_embeddings`.
    """
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
    tensor = tensors[TENSOR]
    if str(tensor.dtype) not in FLOATING or tensor.ndim != 2:
        raise CheckpointError(
            f"'{TENSOR}' in '{path}' is {tensor.dtype} of shape {tensor.shape}; it must be a floating-point matrix with "
            "one row for each virtual token."
        )
    return {name: finite_in(value, dtype or value.dtype, name, path) for name, value in tensors.items()}


def parameters_from(
    tensors: Mapping[str, NDArray[Any]], wanted: Mapping[str, tuple[int, ...]], directory: str | Path
) -> dict[str, NDArray[Any]]:
    """The parameters of a loaded adapter, once its configuration is filled in from the base model.

    `wanted`: the shape of `prompt_embeddings`, and of each tensor of a head that was trained with it.

    Source: HF peft 0.21.2 `utils/save_and_load.py`, `set_peft_model_state_dict`.

    Raises:
        CheckpointError: a tensor is missing, or there is one too many; or its shape is not what the configuration and the base
            model say.
    """
    further = sorted(set(tensors) - set(wanted))
    if further:
        raise CheckpointError(
            f"'{Path(directory) / WEIGHTS_FILE}' also holds {', '.join(further[:5])}{' …' if len(further) > 5 else ''}: modules "
            "that were trained beside the virtual tokens. refpeft does not load them, and without them its answers would not be "
            "HF's."
        )
    missing = sorted(set(wanted) - set(tensors))
    if missing:
        raise CheckpointError(
            f"'{Path(directory) / WEIGHTS_FILE}' has no tensor {', '.join(missing)}, which its task trains beside the virtual "
            "tokens. Was it saved by HF peft or refpeft?"
        )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"'{name}' in '{directory}' has shape {tensors[name].shape}; with its adapter_config.json and this base model it "
                f"must be {shape}{', a row for each virtual token' if name == TENSOR else ''}. Was the adapter trained for another base model?"
            )
    renamed = {TENSOR: prompt_embedding.EMBEDDING}
    return {renamed.get(name, name): tensors[name] for name in wanted}
