"""What an adapter directory holds, and in words what is wrong with it: every problem, not only the first.

Clauses CK-1 to CK-3 say what a directory must hold. Nothing here is computed with the adapter; a pickle is never opened.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy
from numpy.typing import NDArray

from refpeft.checkpoint import TENSOR, WEIGHTS_FILE
from refpeft.config import CONFIG_NAME, PromptLearningConfig
from refpeft.errors import CheckpointError, ConfigError
from refpeft.files import read_json_object
from refpeft.oracle.widths import looks_like
from refpeft.rules import is_integer
from refpeft.tensors import FLOATING, map_tensors
from refpeft.transformer.config import ModelConfig

PICKLES = ("adapter_model.bin", "pytorch_model.bin", "adapter_model.pt", "adapter_model.pth")
RANGES = 4
"""In how many ranges of rows norms are given."""
METHODS = {"PROMPT_TUNING": "prompt_tuning", "PREFIX_TUNING": "prefix_tuning"}
VERSION = "0.21.2"
"""The HF peft whose adapters are known."""


class Rows(msgspec.Struct, frozen=True):
    """The rows from `first` to `last`, and how large they are: the root mean square of their numbers."""

    first: int
    last: int
    size: float


class TensorFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tensor of an adapter file."""

    name: str
    dtype: str
    shape: list[int]
    bytes: int
    std: float | None = None
    largest: float | None = None
    rows: list[Rows] = []
    zero_rows: list[int] = []
    not_finite: int = 0


class Examination(msgspec.Struct, frozen=True):
    """Everything that `refpeft inspect` says."""

    directory: str
    peft_type: str | None
    """HF's name of the method, as the configuration has it."""
    method: str | None
    """`prompt_tuning` or `prefix_tuning`, if it is one of them."""
    virtual_tokens: int | None
    base: str | None
    """The base model that it is compared with."""
    named_base: str | None
    """The base model that its configuration names."""
    tensors: list[TensorFacts]
    problems: list[str]
    """What keeps HF peft or refpeft from loading it, or makes it mean something else."""
    notes: list[str]
    """What is unusual, and harmless."""


def examine(directory: Path, base: Path | None = None) -> Examination:
    """Look at an adapter directory, and at how it fits a base model.

    Raises:
        ConfigError: the base model's config.json is missing: another directory was meant.
    """
    problems: list[str] = []
    notes: list[str] = []
    model = None if base is None else _base(base, problems)
    values = _configuration(directory, problems)
    read_config(values, problems, notes)
    tensors = _weights(directory, problems, notes) if _is_adapter(directory) else {}
    facts = [_facts(name, tensor) for name, tensor in tensors.items()]
    ours = values.get("peft_type") in METHODS or "peft_type" not in values
    if ours and tensors:
        problems += _names(set(tensors))
        if TENSOR in tensors:
            problems += _contents(next(f for f in facts if f.name == TENSOR), notes)
            problems += _fits(tensors[TENSOR].shape, values, model)
    if ours and model is not None:
        problems += _against(values, model)
    peft_type, virtual = values.get("peft_type"), values.get("num_virtual_tokens")
    named = values.get("base_model_name_or_path")
    return Examination(
        directory=str(directory),
        peft_type=peft_type if isinstance(peft_type, str) else None,
        method=METHODS.get(peft_type) if isinstance(peft_type, str) else None,
        virtual_tokens=virtual if is_integer(virtual) else None,
        base=None if model is None else str(base),
        named_base=named if isinstance(named, str) else None,
        tensors=facts,
        problems=list(dict.fromkeys(problems)),
        notes=list(dict.fromkeys(notes)),
    )


def _base(directory: Path, problems: list[str]) -> ModelConfig | None:
    """The base model's sizes; None if refpeft cannot read them, and then the adapter is looked at alone."""
    try:
        return ModelConfig.from_pretrained(directory)
    except ConfigError as error:
        if not (directory / "config.json").is_file():
            raise
        problems.append(
            f"The base model in '{directory}' cannot be read, so the adapter was looked at alone: {error}"
        )
        return None


# ---------------------------------------------------------------- the configuration


def _configuration(directory: Path, problems: list[str]) -> dict[str, Any]:
    """The contents of adapter_config.json, or nothing."""
    if not (directory / CONFIG_NAME).is_file():
        problems.append(_no_configuration(directory))
        return {}
    try:
        return read_json_object(directory / CONFIG_NAME, "the adapter's configuration")
    except ConfigError as error:
        problems.append(str(error))
        return {}


def _is_adapter(directory: Path) -> bool:
    """Whether the directory is no base model's."""
    return (directory / CONFIG_NAME).is_file() or not (directory / "config.json").is_file()


def _no_configuration(directory: Path) -> str:
    if (directory / "config.json").is_file():
        return (
            f"This is a base model, not an adapter: it has config.json but no {CONFIG_NAME}. Give the adapter's directory, and "
            "this one with --base."
        )
    below = sorted(path.parent for path in directory.glob(f"*/{CONFIG_NAME}"))
    if below:
        found = ", ".join(f"'{path}'" for path in below[:3])
        return f"There is no {CONFIG_NAME} here, but in {found}: is that meant?"
    return f"There is no {CONFIG_NAME}: HF peft cannot tell what this is. save_pretrained writes it beside the weights."


def read_config(values: Mapping[str, Any], problems: list[str], notes: list[str]) -> None:
    """What is wrong with the contents of an adapter_config.json, and what is unusual."""
    if not values:
        return
    peft_type = values.get("peft_type")
    if isinstance(peft_type, str) and peft_type not in METHODS:
        problems.append(
            f"This is an adapter of another method: peft_type is {peft_type!r}. refpeft knows {' and '.join(METHODS)}."
        )
        return
    version = values.get("peft_version")
    if isinstance(version, str) and version != VERSION:
        notes.append(f"It was saved by peft {version}; refpeft follows {VERSION}.")
    left, known = dict(values), False
    while not known:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                PromptLearningConfig.from_dict(left)
                known = True
            except ConfigError as error:
                problems.append(f"{CONFIG_NAME}: {error}")
                wrong = str(error).split(maxsplit=1)[0]
                known = wrong not in left  # what cannot be left out ends the search
                left.pop(wrong, None)
        if known:
            notes += [str(warning.message) for warning in caught]
    if values.get("inference_mode") is False:
        problems.append(
            f"{CONFIG_NAME} has inference_mode false: HF's save_pretrained always writes true. With prefix_projection, "
            "false would mean that the network is still to be run (PX-5)."
        )
    if values.get("task_type") != "CAUSAL_LM":
        problems.append(
            f"task_type is {values.get('task_type')!r}; this version of refpeft computes CAUSAL_LM."
        )
    if values.get("modules_to_save"):
        problems.append(
            f"modules_to_save is {values['modules_to_save']}: refpeft loads the virtual tokens alone."
        )


# ---------------------------------------------------------------- the weights


def _weights(directory: Path, problems: list[str], notes: list[str]) -> dict[str, NDArray[Any]]:
    """The tensors of the adapter's file, or none."""
    path = directory / WEIGHTS_FILE
    pickles = [name for name in PICKLES if (directory / name).is_file()]
    if not path.is_file():
        others = sorted(p.name for p in directory.glob("*.safetensors"))
        if pickles:
            problems.append(
                f"It has {pickles[0]}, a pickle, but no {WEIGHTS_FILE}. A pickle can run any program, so refpeft never opens "
                "one: load the adapter with peft and save it again with save_pretrained(directory), which writes safetensors."
            )
        else:
            renamed = f"; it has {', '.join(others[:3])}: rename it?" if others else "."
            problems.append(f"There is no {WEIGHTS_FILE}, which holds the adapter's weights{renamed}")
        return {}
    if pickles:
        notes.append(f"{', '.join(pickles)} lies beside {WEIGHTS_FILE}; HF peft and refpeft read the latter.")
    try:
        return map_tensors(path, "the adapter's weights")
    except CheckpointError as error:
        problems.append(str(error))
        return {}


def _facts(name: str, tensor: NDArray[Any]) -> TensorFacts:
    """Its statistics, over the numbers that are finite."""
    facts = TensorFacts(name, str(tensor.dtype), list(tensor.shape), tensor.nbytes)
    if str(tensor.dtype) not in FLOATING or not tensor.size:
        return facts
    wide = tensor.astype(numpy.float64)
    finite = numpy.where(numpy.isfinite(wide), wide, 0.0)
    rows = finite.reshape(len(tensor), -1) if tensor.ndim else finite.reshape(1, 1)
    size = numpy.sqrt(numpy.mean(numpy.square(rows), axis=1))
    cuts = numpy.array_split(numpy.arange(len(rows)), min(RANGES, len(rows)))
    return msgspec.structs.replace(
        facts,
        std=float(finite.std()),
        largest=float(numpy.abs(finite).max()),
        rows=[Rows(int(c[0]), int(c[-1]), float(numpy.sqrt(numpy.mean(size[c] ** 2)))) for c in cuts],
        zero_rows=[int(i) for i in numpy.flatnonzero(size == 0)],
        not_finite=int((~numpy.isfinite(wide)).sum()),
    )


def _names(names: set[str]) -> Iterator[str]:
    """What the tensors' names say about the program that wrote them."""
    further = sorted(names - {TENSOR})
    network = [name for name in further if "transform." in name]
    tables = [name for name in further if name.endswith("embedding.weight")]
    if TENSOR not in names:
        near = [name for name in further if name.endswith(TENSOR)]
        has = f"it has {', '.join(further[:5])}{' …' if len(further) > 5 else ''}"
        yield (
            f"There is no tensor {TENSOR!r}; {has}. HF peft writes one tensor of exactly that name (CK-1)."
            + (f" Is {near[0]!r} meant? Write it without what stands before." if near else "")
        )
    if network:
        yield (
            f"{', '.join(network[:4])}: the projection's own network was saved. HF saves what it computes, "
            f"tanh(E·W₀ᵀ + b₀)·W₂ᵀ + b₂, as {TENSOR}, and nothing of the network (CK-1, PX-2)."
        )
    elif tables:
        yield (
            f"{', '.join(tables[:4])}: the trained parameter was saved under the network's name. The same numbers belong under "
            f"{TENSOR!r} (CK-1)."
        )
    if any("lora_" in name for name in further):
        yield "Names with lora_ are those of a LoRA adapter: was another adapter's file copied here?"
    rest = [name for name in further if name not in (*network, *tables) and "lora_" not in name]
    if TENSOR in names and rest:
        yield (
            f"Besides {TENSOR!r} there {'is' if len(rest) == 1 else 'are'} {', '.join(rest[:5])}{' …' if len(rest) > 5 else ''}: "
            "modules trained beside the virtual tokens? refpeft does not load them (CK-3)."
        )


def _contents(facts: TensorFacts, notes: list[str]) -> Iterator[str]:
    """What the numbers themselves show; rows of zeros are unusual, no more."""
    if facts.dtype not in FLOATING:
        yield f"{TENSOR!r} is stored as {facts.dtype}; it must be one of {', '.join(FLOATING)}."
    if facts.not_finite:
        yield f"{TENSOR!r} holds {facts.not_finite} NaN or infinite values: the training has diverged, or the file was made wrongly."
    if facts.zero_rows:
        count, rows = len(facts.zero_rows), facts.shape[0]
        which = (
            f"all {rows} rows"
            if count == rows
            else f"{count} of {rows} rows ({', '.join(map(str, facts.zero_rows[:8]))}{' …' if count > 8 else ''})"
        )
        notes.append(
            f"{TENSOR!r}: {which} are zero. Zeros are not “no prompt”: they take their share of the softmax (AT-4)."
        )


def _fits(shape: tuple[int, ...], values: Mapping[str, Any], model: ModelConfig | None) -> Iterator[str]:
    """The tensor's shape against the configuration's and the base model's sizes."""
    if len(shape) != 2:
        yield f"{TENSOR!r} has shape {shape}; it must be a matrix with one row for each virtual token."
        return
    prefix = values.get("peft_type") == "PREFIX_TUNING"
    sizes = {
        name: values[name] if is_integer(values.get(name)) else None
        for name in ("num_virtual_tokens", "num_layers", "token_dim", "num_attention_heads")
    }
    virtual = sizes["num_virtual_tokens"]
    behind = values.get("task_type") == "SEQ_2_SEQ_LM"
    if virtual is not None and behind and not prefix:
        virtual *= 2  # one half for each stack, of which the encoder's alone is used
    layers = model.num_layers if model else sizes["num_layers"]
    token_dim = sizes["token_dim"]
    if model is not None:
        token_dim = _width(model, prefix=prefix)
    known = (
        token_dim is not None and not (prefix and layers is None) and isinstance(values.get("peft_type"), str)
    )
    wanted = (2 * (layers or 0) * (token_dim or 0) if prefix else token_dim) if known else None
    if virtual is not None and shape[0] != virtual:
        if shape == (wanted, virtual):
            yield f"{TENSOR!r} has shape {shape}; it must have {(virtual, wanted)}: it was saved transposed."
            return
        turned = " Its columns are as many: was it saved transposed?" if shape[1] == virtual else ""
        counted = (
            f"{virtual}"
            if virtual == sizes["num_virtual_tokens"]
            else f"{virtual // 2}, of which SEQ_2_SEQ_LM stores twice as many"
        )
        yield f"{TENSOR!r} has {shape[0]} rows, but num_virtual_tokens is {counted}.{turned}"
    if token_dim is not None and wanted is not None and shape[1] != wanted:
        of = "the base model" if model else CONFIG_NAME
        formula = f"2·{layers}·{token_dim}" if prefix else "the hidden size"
        yield (
            f"{TENSOR!r} is {shape[1]} wide; by {of} it must be {wanted} = {formula}. "
            f"{looks_like(shape[1], layers, token_dim, model, prefix=prefix)}"
        )


def _against(values: Mapping[str, Any], model: ModelConfig) -> Iterator[str]:
    """The configuration's sizes against the base model's."""
    prefix = values.get("peft_type") == "PREFIX_TUNING"
    right = {"num_layers": model.num_layers, "token_dim": _width(model, prefix=prefix)}
    right |= {"num_attention_heads": model.stack("decoder").num_key_value_heads} if prefix else {}
    for name, wanted in right.items():
        if is_integer(values.get(name)) and values[name] != wanted:
            yield f"{CONFIG_NAME} has {name} {values[name]}, but the base model has {wanted}: made for another base model?"
    virtual: Any = values.get("num_virtual_tokens")
    limit = model.position_limit
    if is_integer(virtual) and limit is not None and virtual >= limit:
        yield f"{virtual} virtual tokens leave no position for a text: the base model has {limit}."


def _width(model: ModelConfig, *, prefix: bool) -> int:
    """token_dim: that of all key/value heads of a layer, or of a row of the token table."""
    own = model.stack("decoder")
    return own.num_key_value_heads * own.head_dim if prefix else model.embedding_width
