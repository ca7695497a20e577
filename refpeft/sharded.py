"""A base model's tensors: of one safetensors file, or of several and an index that says which holds what.

    model.safetensors                    counts alone where it is there, whatever lies beside it
    model.safetensors.index.json         {"metadata": {…}, "weight_map": {tensor: file name of its shard}}
    model-00001-of-00002.safetensors     a shard, beside the index

Follows transformers 5.23.0: `modeling_utils.py` (`_get_resolved_checkpoint_files`) for which files are read, `utils/hub.py`
(`get_checkpoint_shard_files`) for the index.

How others differ: HF takes nothing but the shards' names from the index, and every tensor of every shard, that of the last
shard where several have one. A tensor that the index does not name, or names elsewhere, is two models in one directory;
here it is refused (clause CF-8).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from refpeft.errors import CheckpointError, ConfigError
from refpeft.files import read_json_object
from refpeft.safetensors_header import LONGEST_NAME
from refpeft.tensors import map_tensors

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""What a directory has whose weights are pickled."""
WHAT = "the base model's weights"
REPAIR = (
    "Copy all files of one model into one directory, or save the model again with save_pretrained(directory)."
)


def map_model(directory: str | Path) -> tuple[dict[str, NDArray[Any]], Path]:
    """Every tensor of a base model by name, as a view of its file (`map_tensors`), and the file that says which there are.

    That file is model.safetensors or else the index; messages about the tensors name it.

    Raises:
        CheckpointError: there is neither; the index is broken, names something else than files beside it, or disagrees
            with them; or a file is missing or damaged.
    """
    directory = Path(directory)
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if single.is_file():
        return map_tensors(single, WHAT), single
    if not index.is_file():
        raise CheckpointError(_no_weights(directory))
    shards = _shards_of(index)
    _require_beside(index, shards)
    tensors: dict[str, NDArray[Any]] = {}
    for shard, names in sorted(shards.items()):
        held = map_tensors(directory / shard, WHAT)
        _require_agreement(index, shard, names, held.keys())
        tensors |= held
    return dict(sorted(tensors.items())), index


def _shards_of(index: Path) -> dict[str, set[str]]:
    """The names of the tensors in each shard, as the index has them: file name -> names."""
    try:
        document = read_json_object(index, "the index of the base model's weights", unique=True)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    for key in ("metadata", "weight_map"):
        if not isinstance(document.get(key), dict):
            given = f"that is {_shown(document[key])}" if key in document else "it has none"
            raise _broken(index, f"it must have {key!r}, an object ({{…}}), but {given}")
    shards: dict[str, set[str]] = {}
    for name, shard in document["weight_map"].items():
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise _broken(index, f"the tensor's name {_shown(name)} is too long or not printable")
        if not _is_plain(shard):
            raise _broken(
                index,
                f"its weight_map has {_shown(shard)} for '{name}', where the plain name of a .safetensors file beside it "
                "must stand, without a directory",
            )
        shards.setdefault(shard, set()).add(name)
    if not shards:
        raise _broken(index, "its weight_map names no tensors")
    return shards


def _is_plain(shard: Any) -> bool:
    """Whether it can be, on any system, nothing else than the name of a safetensors file in the index's own directory."""
    return (
        isinstance(shard, str)
        and shard.endswith(".safetensors")
        and shard.isprintable()  # no half of a surrogate pair either, which cannot be encoded
        and not set(shard) & set("/\\:")
    )


def _require_beside(index: Path, shards: Iterable[str]) -> None:
    """Every shard is a file in the index's directory; a link may lead only there, or to the blobs of the hub's cache.

    There, `models--…/snapshots/REVISION/` holds nothing but links to `models--…/blobs/`.
    """
    directory = index.parent
    missing = sorted(s for s in shards if not os.path.isfile(directory / s))  # noqa: PTH113  (False for too long a name)
    if missing:
        raise _broken(index, f"it names files that '{directory}' does not have: {', '.join(missing)}")
    here = directory.resolve()
    allowed = {here}
    if here.parent.name == "snapshots":
        allowed.add((here.parent.parent / "blobs").resolve())
    for shard in sorted(shards):
        target = (directory / shard).resolve()
        if target.parent not in allowed:
            raise _broken(
                index, f"'{shard}' beside it is a link that leads out of the directory, to '{target}'"
            )


def _require_agreement(index: Path, shard: str, named: set[str], held: Iterable[str]) -> None:
    """A shard holds the tensors that the index says, and no others."""
    held = set(held)
    if named - held:
        raise _broken(index, f"it says that '{shard}' holds {_first(named - held)}, but that file does not")
    if held - named:
        raise _broken(
            index, f"'{shard}' beside it also holds {_first(held - named)}, which the index does not say"
        )


def _broken(index: Path, why: str) -> CheckpointError:
    return CheckpointError(f"'{index}' does not lead to {WHAT}: {why}. {REPAIR}")


def _first(names: set[str]) -> str:
    """A few of the names."""
    return f"{', '.join(sorted(names)[:5])}{' …' if len(names) > 5 else ''}"


def _shown(value: Any) -> str:
    """A value from the index: a string or its beginning, else its type."""
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    return f"{value[:80]!a}{'…' if len(value) > 80 else ''}"


def _no_weights(directory: Path) -> str:
    for name in PICKLED:
        if (directory / name).is_file():
            return (
                f"'{directory}' has {name} but no {WEIGHTS_FILE}. refpeft does not unpickle: load the model with "
                "transformers and save it again with save_pretrained(directory), which writes safetensors."
            )
    return f"Can't find '{WEIGHTS_FILE}' at '{directory}', which holds {WHAT}."
