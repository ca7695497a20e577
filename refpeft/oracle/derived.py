"""Files that are derived from the golden cases: made by several processes, a line for each case, and read again."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from refpeft.files import MAXIMUM_JSON_BYTES
from refpeft.oracle.vectors import VectorError, all_vectors

Item = TypeVar("Item")
Result = TypeVar("Result")
Document = TypeVar("Document")

WORTH_PROCESSES = 50
"""From so many cases on, several processes share them."""


def over_processes(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The function of each item, in their order; the function stands in a module, so that a process finds it."""
    if len(items) < WORTH_PROCESSES:
        return list(map(function, items))
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(function, items, chunksize=8))


class OfCase(msgspec.Struct):
    """What is derived from a case, beside the hash of the case's files."""

    digest: str


Kept = TypeVar("Kept", bound=OfCase)


def derived(
    function: Callable[[Path], tuple[str, Kept]], stored: Mapping[str, Kept], golden: Path | None
) -> dict[str, Kept]:
    """Of every case's directory, what the function derives under the case's id, unless it is stored for the same files."""
    vectors = list(all_vectors(golden))
    kept = {
        v.case.id: stored[v.case.id]
        for v in vectors
        if v.case.id in stored and stored[v.case.id].digest == v.digest
    }
    made = dict(over_processes(function, [v.directory for v in vectors if v.case.id not in kept]))
    return {v.case.id: kept.get(v.case.id) or made[v.case.id] for v in vectors}


def line_by_line(document: Any) -> bytes:
    """A derived document as JSON, a line for each case: small, and its changes can be read."""
    return msgspec.json.encode(document).replace(b'},"peft-', b'},\n"peft-') + b"\n"


def read_derived(path: Path, kind: type[Document]) -> Document | None:
    """A derived document; None if there is none.

    Raises:
        VectorError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAXIMUM_JSON_BYTES:
            raise ValueError("it is larger than 10 MB")  # noqa: TRY301
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        raise VectorError(
            f"'{path}' is damaged: {error}. Reinstall refpeft, or make it anew with the vectors."
        ) from error


def unknown_cases(name: str, known: Mapping[str, str], golden: Path) -> list[str]:
    """The cases that a derived file does not know by the hash of their files, or that are no more, in words."""
    digests = {vector.case.id: vector.digest for vector in all_vectors(golden)}
    return [
        f"{name} does not know {case} as it is"
        for case in sorted(known.keys() | digests.keys())
        if known.get(case) != digests.get(case)
    ]
