"""Which key each query sees, by loops over absolute positions; the extended mask, value by value and in its dtype."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from foreign import Foreign, fetch
from hypothesis import given
from hypothesis import strategies as st

from refpeft.masks import (
    bidirectional_visibility,
    causal_visibility,
    cross_visibility,
    extend_attention_mask,
    prepare_attention_mask,
    sliding_visibility,
)

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


# ---------------------------------------------------------------- windows, encoders, cross-attention


@given(st.data())
def test_a_window_by_loops(data: st.DataObject) -> None:
    """The query at absolute position p sees k ≤ p with p − k < window; the first `cut` keys have no column."""
    batch, queries, past = (data.draw(st.integers(low, 4)) for low in (1, 1, 0))
    window, cut = data.draw(st.integers(1, 6)), data.draw(st.integers(0, past))
    keys = past + queries
    mask = [[data.draw(st.sampled_from([0.0, 1.0])) for _ in range(keys)] for _ in range(batch)]
    for given_mask in (numpy.array(mask), None):
        visible: Any = sliding_visibility(given_mask, batch, queries, keys, window, cut, LIKE)
        assert visible.shape == (batch, queries, keys - cut)
        assert visible.dtype == bool
        for b in range(batch):
            for q in range(queries):
                for k in range(cut, keys):
                    position = past + q
                    seen = k <= position and position - k < window
                    assert visible[b, q, k - cut] == (seen and (given_mask is None or mask[b][k] == 1.0))


def test_a_prefix_falls_out_of_the_window() -> None:
    """Three virtual tokens, four of the text, a window of four: the last query sees none of the prefix."""
    visible = sliding_visibility(None, 1, 4, 7, 4, 0, LIKE)
    assert visible[0].astype(int).tolist() == [
        [1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1, 1],
    ]


def test_a_window_of_all_keys_is_no_window() -> None:
    mask = numpy.array([[1.0, 0.0, 1.0, 1.0, 0.0]])
    numpy.testing.assert_array_equal(
        sliding_visibility(mask, 1, 3, 5, 5, 0, LIKE), causal_visibility(mask, 1, 3, 5, LIKE)
    )


def test_the_keys_that_a_cut_prefix_lacks_could_not_be_seen() -> None:
    """Window − 1 of the prefix are kept: the first query of the text sees exactly these and itself."""
    for virtual, window in ((5, 4), (6, 2), (4, 1)):
        cut = max(0, virtual - (window - 1))
        whole = sliding_visibility(None, 1, 3, virtual + 3, window, 0, LIKE)
        assert not whole[:, :, :cut].any()
        numpy.testing.assert_array_equal(
            sliding_visibility(None, 1, 3, virtual + 3, window, cut, LIKE), whole[:, :, cut:]
        )


@pytest.mark.parametrize("visibility", [bidirectional_visibility, cross_visibility])
def test_every_key_that_is_not_masked_for_every_query(visibility: Any) -> None:
    mask = numpy.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    assert visibility(mask, 2, 2, 3, LIKE).astype(int).tolist() == [[[1, 0, 1]] * 2, [[1, 1, 1]] * 2]
    everything = visibility(None, 2, 4, 3, LIKE)
    assert everything.shape == (2, 4, 3)
    assert everything.all()
    assert everything.dtype == bool


@pytest.mark.parametrize("dtype", ["int64", "bool", "float32"])
def test_a_mask_that_nothing_was_put_before_keeps_its_format(dtype: str) -> None:
    mask = numpy.array([[1, 0, 1]]).astype(dtype)
    assert bidirectional_visibility(mask, 1, 1, 3, LIKE).astype(int).tolist() == [[[1, 0, 1]]]
    assert causal_visibility(mask, 1, 3, 3, LIKE).astype(int).tolist() == [[[1, 0, 0], [1, 0, 0], [1, 0, 1]]]


def test_windows_live_where_the_embeddings_live() -> None:
    mask = numpy.array([[1.0, 0.0, 1.0, 1.0]])
    for visibility, arguments in (
        (sliding_visibility, (1, 2, 4, 2, 1)),
        (bidirectional_visibility, (1, 2, 4)),
        (cross_visibility, (1, 2, 4)),
        (causal_visibility, (1, 2, 4)),
    ):
        for given_mask in (None, mask):
            foreign = None if given_mask is None else Foreign(given_mask)
            expected = visibility(given_mask, *arguments, LIKE)  # type: ignore[operator]
            numpy.testing.assert_array_equal(fetch(visibility(foreign, *arguments, Foreign(LIKE))), expected)  # type: ignore[operator]
