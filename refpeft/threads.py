"""Parts of a batch in threads of their own, so that everything runs in as many as matrix products take.

NumPy multiplies matrices in several threads, and does all else in one. Where parts of the work do not meet, each thread can take
one from end to end, and multiply matrices alone.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import ThreadpoolController

Part = TypeVar("Part")
Result = TypeVar("Result")
WORTH = 1 << 17
"""From so many numbers for each on, threads pay."""
_TAKEN = threading.Lock()
"""How many threads a matrix product takes is one setting for the whole process."""


@functools.cache
def _libraries() -> ThreadpoolController:
    """What multiplies matrices for NumPy; it was loaded with it."""
    return ThreadpoolController().select(user_api="blas")


def count() -> int:
    """How many threads there are for parts: as many as a matrix product takes (OPENBLAS_NUM_THREADS, or a thread for each core).

    One, while parts are in threads, and where the library cannot be asked, as Apple's Accelerate.
    """
    return max((library.num_threads for library in _libraries().lib_controllers), default=1)


def parts(rows: int, size: int) -> list[slice]:
    """So many rows, of `size` numbers together, cut into as many parts as there are threads; or whole, if that would not pay."""
    threads = count()
    if not 1 < threads <= rows or size < WORTH * threads:
        threads = 1
    return [slice(rows * part // threads, rows * (part + 1) // threads) for part in range(threads)]


def each(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """`[function(part) for part in parts]`, each in a thread of its own that multiplies matrices alone.

    Every thread has the caller's context variables. One after the other, if there is one part, or parts are in threads already.
    """
    if len(parts) < 2 or not _TAKEN.acquire(blocking=False):
        return [function(part) for part in parts]
    try:
        with _libraries().limit(limits=1), ThreadPoolExecutor(len(parts)) as pool:
            started = [pool.submit(contextvars.copy_context().run, function, part) for part in parts]
            return [one.result() for one in started]
    finally:
        _TAKEN.release()
