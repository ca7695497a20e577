"""Threads: as many as a matrix product takes, each with the caller's context, and everything as it was afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import ContextVar

import numpy
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from refpeft import arrays as np
from refpeft import threads

LEVEL: ContextVar[str] = ContextVar("level", default="none")


@pytest.fixture(autouse=True)
def _three() -> Iterator[None]:
    with threadpool_limits(3):
        if threads.count() != 3:
            pytest.skip("NumPy's matrix products do not tell how many threads they take")
        yield


def taken() -> set[int]:
    """How many threads the libraries of matrix products take now."""
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_there_are_as_many_as_a_matrix_product_takes() -> None:
    assert threads.count() == 3
    with threadpool_limits(2):
        assert threads.count() == 2


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        (7, 3 * threads.WORTH, [slice(0, 2), slice(2, 4), slice(4, 7)]),
        (3, 10**9, [slice(0, 1), slice(1, 2), slice(2, 3)]),
        (7, 3 * threads.WORTH - 1, [slice(0, 7)]),
        (2, 10**9, [slice(0, 2)]),
    ],
    ids=["all rows, evenly", "one each", "too little to pay", "fewer rows than threads"],
)
def test_rows_are_cut_for_the_threads(rows: int, size: int, expected: list[slice]) -> None:
    assert threads.parts(rows, size) == expected


def test_with_one_thread_nothing_is_cut() -> None:
    with threadpool_limits(1):
        assert threads.parts(8, 10**9) == [slice(0, 8)]


def test_each_part_has_a_thread_that_multiplies_alone() -> None:
    together = threading.Barrier(3, timeout=30)

    def run(part: str) -> tuple[str, str, int, set[int], int]:
        together.wait()  # all three at a time, or the barrier breaks
        return part, LEVEL.get(), threading.get_ident(), taken(), threads.count()

    token = LEVEL.set("the caller's")
    found = threads.each(run, ["a", "b", "c"])
    LEVEL.reset(token)
    assert [one[:2] for one in found] == [(part, "the caller's") for part in "abc"]
    assert len({one[2] for one in found} | {threading.get_ident()}) == 4
    assert [one[3:] for one in found] == [({1}, 1)] * 3  # and nothing is cut within a part
    assert (taken(), threads.count()) == ({3}, 3)


def test_one_part_stays_where_it_is() -> None:
    assert threads.each(lambda _: (threading.get_ident(), taken()), [0]) == [(threading.get_ident(), {3})]


def test_an_error_comes_out_and_leaves_nothing_behind() -> None:
    def run(part: int) -> int:
        if part == 1:
            raise ValueError("part 1")
        return part

    with pytest.raises(ValueError, match="part 1"):
        threads.each(run, [0, 1, 2])
    assert (taken(), threads.count()) == ({3}, 3)
    assert threads.each(run, [0, 2]) == [0, 2]


def test_while_parts_run_others_wait_for_nobody() -> None:
    """A second caller's parts run one after the other in its own thread."""
    inside: list[list[int]] = []

    def run(part: int) -> None:
        inside.append([*threads.each(lambda _: threading.get_ident(), [0, 1]), threading.get_ident()])

    threads.each(run, [0, 1])
    assert [len(set(one)) for one in inside] == [1, 1]


def test_gradients_are_taken_in_all_threads_at_a_time() -> None:
    """By autograd alone they cannot: its levels are counted for the process. Here thread 1 ends while the others are within theirs."""
    ended, turns = threading.Event(), numpy.arange(3)

    def run(part: int) -> numpy.ndarray:
        def function(x: np.Array) -> np.Array:
            if part == 1:
                return np.sum(x)
            assert ended.wait(30)
            return np.sum(x * x * (part + 1.0))

        value, back = np.vjp(function, [numpy.arange(2.0) + part], level)
        ended.set()
        return back(numpy.ones_like(value))[0]

    with np.level() as level:
        found = threads.each(run, list(turns))
    numpy.testing.assert_array_equal(found, [[0.0, 2.0], [1.0, 1.0], [12.0, 18.0]])
