"""Which key each query sees, by loops over every pair; the extended mask, value by value and in its dtype."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refpeft.masks import causal_visibility, extend_attention_mask, prepare_attention_mask

LIKE = numpy.zeros((1, 1, 1))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("int64", "float32"),
        ("int32", "float32"),
        ("uint8", "float32"),
        ("bool", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ],
)
def test_the_extended_mask_and_its_dtype(dtype: str, expected: str) -> None:
    mask = numpy.array([[0, 0, 1], [1, 1, 0]], dtype=dtype)
    for extended in (extend_attention_mask(mask, 2), prepare_attention_mask(2, mask, 2)):
        numpy.testing.assert_array_equal(extended, [[1, 1, 0, 0, 1], [1, 1, 1, 1, 0]])
        assert extended.dtype == numpy.dtype(expected)


def test_no_virtual_tokens_leave_the_mask() -> None:
    numpy.testing.assert_array_equal(extend_attention_mask(numpy.array([[0, 1]]), 0), [[0.0, 1.0]])


def test_no_mask_gives_ones_over_the_virtual_tokens_alone() -> None:
    mask = prepare_attention_mask(3, None, 4)
    numpy.testing.assert_array_equal(mask, numpy.ones((3, 4)))
    assert mask.dtype == numpy.float32


def test_visibility_by_hand() -> None:
    """Two prefix slots, then three tokens of which the first is padding."""
    visible = causal_visibility(numpy.array([[1.0, 1.0, 0.0, 1.0, 1.0]]), 1, 3, 5, LIKE)
    assert visible.astype(int).tolist() == [[[1, 1, 0, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]]


def test_without_a_mask_the_triangle_alone_for_each_row() -> None:
    visible = causal_visibility(None, 2, 2, 3, LIKE)
    assert visible.astype(int).tolist() == [[[1, 1, 0], [1, 1, 1]]] * 2
    assert visible.dtype == bool


@given(st.data())
def test_visibility_by_loops(data: st.DataObject) -> None:
    batch, queries, past = (data.draw(st.integers(low, 4)) for low in (1, 1, 0))
    keys = past + queries
    mask = [[data.draw(st.sampled_from([0.0, 1.0])) for _ in range(keys)] for _ in range(batch)]
    expected = numpy.zeros((batch, queries, keys), dtype=bool)
    for b in range(batch):
        for q in range(queries):
            for k in range(keys):
                expected[b, q, k] = k <= past + q and mask[b][k] == 1.0
    given_visible: Any = causal_visibility(numpy.array(mask), batch, queries, keys, LIKE)
    numpy.testing.assert_array_equal(given_visible, expected)
    assert given_visible.dtype == bool


def test_a_masked_query_still_sees() -> None:
    visible = causal_visibility(numpy.array([[1.0, 1.0, 0.0]]), 1, 3, 3, LIKE)
    assert visible[0, 2].tolist() == [True, True, False]
