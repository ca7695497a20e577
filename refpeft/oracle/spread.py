"""Work on many cases, by several processes where that is worth it, and what it is written down as."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTH_PROCESSES = 50
"""From so many cases on, several processes share them."""


def over_processes(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The function of each item, in their order; the function stands in a module, so that a process finds it."""
    if len(items) < WORTH_PROCESSES:
        return list(map(function, items))
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(function, items, chunksize=8))


def line_by_line(document: Any) -> bytes:
    """A derived document as JSON, a line for each case: small, and its changes can be read."""
    return msgspec.json.encode(document).replace(b'},"peft-', b'},\n"peft-') + b"\n"
