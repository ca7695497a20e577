"""Positions of the real tokens, and the learned table's rows added to the embeddings."""

from __future__ import annotations

import numpy
import pytest
from foreign import Foreign, fetch

from refpeft.positions import add_learned_positions, position_ids

LIKE = numpy.zeros((1, 1, 1), dtype=numpy.float32)


@pytest.mark.parametrize(("past", "expected"), [(0, [0, 1, 2]), (4, [4, 5, 6])])
def test_positions_start_after_the_past(past: int, expected: list[int]) -> None:
    positions = position_ids(2, 3, past, None, LIKE)
    assert positions.tolist() == [expected] * 2
    assert positions.dtype == numpy.int64


def test_given_positions_are_counted_without_the_past() -> None:
    given = numpy.array([[0, 0, 1], [5, 3, 4]])
    assert position_ids(2, 3, 4, given, LIKE).tolist() == [[4, 4, 5], [9, 7, 8]]
    assert position_ids(2, 3, 0, given, LIKE).tolist() == given.tolist()
    assert given.tolist() == [[0, 0, 1], [5, 3, 4]]


def test_positions_live_where_the_embeddings_live() -> None:
    assert fetch(position_ids(1, 2, 1, None, Foreign(LIKE))).tolist() == [[1, 2]]


def test_rows_of_the_table_are_added() -> None:
    table = numpy.array([[0.0, 0.5], [10.0, 20.0], [100.0, 200.0], [1000.0, 2000.0]])
    embeds = numpy.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    positions = numpy.array([[2, 3], [1, 1]])
    added = add_learned_positions(embeds, table, positions)
    assert added.tolist() == [[[101.0, 202.0], [1003.0, 2004.0]], [[15.0, 26.0], [17.0, 28.0]]]
