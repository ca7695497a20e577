"""What another release of HF peft or transformers answers to the questions of the golden vectors.

`python golden/generate.py --against installed` asks whatever is installed, in true float64 as always, and says case by case
what changed and by how much. It writes nothing: the vectors are those of their dialect. specs/dialects.md says what to do then.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy
from cases import VERSIONS, Made, make
from recipes import Recipe

from refpeft.oracle.vectors import DIALECT, Vector, read_vector

SAME = 1e-9
"""Normwise relative error up to which two releases answer the same: far above rounding, far below any change of meaning."""
UNSTATED = {"peft_version"}
"""What a configuration may say otherwise without meaning anything else."""


@dataclass(frozen=True)
class Change:
    """What became of one case."""

    id: str
    kind: str
    """`same`, `values`, `document`, `shape`, `refused` (the installed release raises) or `unasked` (the generator cannot ask)."""
    detail: str = ""
    error: float = 0.0


def changes(recipes: tuple[Recipe, ...], vectors: Any) -> Iterator[Change]:
    """Each recipe asked again of what is installed; the current directory is that of the models."""
    for recipe in recipes:
        directory = vectors / recipe.id
        if not directory.is_dir():
            continue
        vector = read_vector(directory)
        try:
            made = make(replace(recipe, adapter=vector.adapter_directory))
        except Exception as error:  # whatever another release raises is what we came for
            place = traceback.extract_tb(error.__traceback__)[-1].filename
            own = "site-packages" not in place
            shown = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            yield Change(recipe.id, "unasked" if own else "refused", shown)
            continue
        yield _compared(recipe.id, made, vector)


def _compared(name: str, made: Made, vector: Vector) -> Change:
    """The worst tensor that differs, or the configuration's keys that do."""
    worst, where = 0.0, ""
    for tensor in sorted(made.expected.keys() | vector.expected.keys()):
        if tensor not in made.expected or tensor not in vector.expected:
            return Change(name, "shape", f"{tensor} is answered by one of the two alone")
        new, old = made.expected[tensor], vector.expected[tensor]
        if new.shape != old.shape:
            return Change(name, "shape", f"{tensor} has shape {new.shape}, not {old.shape}")
        error = _error(new, old)
        if error > worst:
            worst, where = error, tensor
    if worst > SAME:
        return Change(name, "values", where, worst)
    new_document, old_document = _plain(made.case.document), _plain(vector.case.document)
    if new_document != old_document:
        return Change(name, "document", _keys(new_document, old_document))
    return Change(name, "same", error=worst)


def _error(new: Any, old: Any) -> float:
    """Normwise relative, masked scores left out; infinite for whole numbers that are not equal."""
    if old.dtype.kind in "iub":
        return 0.0 if numpy.array_equal(new, old) else float("inf")
    seen = numpy.abs(old) < 1e30
    scale = float(numpy.linalg.norm(old[seen])) or 1.0
    return float(numpy.linalg.norm((new - old)[seen])) / scale


def _plain(document: Any) -> Any:
    found = msgspec.to_builtins(document)
    config = found.get("config") if isinstance(found, dict) else None
    return {key: value for key, value in config.items() if key not in UNSTATED} if config else found


def _keys(new: Any, old: Any) -> str:
    if not isinstance(new, dict) or not isinstance(old, dict):
        return "rejected by one of the two alone"
    differing = sorted(key for key in new.keys() | old.keys() if new.get(key) != old.get(key))
    return f"keys that differ: {', '.join(differing)}"


def report(found: list[Change]) -> str:
    """For people: the versions, a line for each case that changed, and how many of each kind there are."""
    lines = [
        f"{DIALECT} against peft {VERSIONS['peft']}, transformers {VERSIONS['transformers']}, torch {VERSIONS['torch']}"
    ]
    for change in found:
        if change.kind != "same":
            by = f" by {change.error:.1e}" if change.kind == "values" else ""
            lines.append(f"{change.kind:9}{change.id}: {change.detail}{by}")
    kinds = ("same", "values", "document", "shape", "refused", "unasked")
    counts = {kind: sum(change.kind == kind for change in found) for kind in kinds}
    lines.append(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
    return "\n".join(lines)
