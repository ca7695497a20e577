"""Attention with a prefix, against loops over every batch row, head, query and key."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refpeft import attention
from refpeft.masks import causal_visibility

RANDOM = numpy.random.default_rng(11)


def coded(*shape: int) -> Any:
    """Every entry another number: its place in memory."""
    return numpy.arange(math.prod(shape), dtype=float).reshape(shape)


def test_split_heads_puts_heads_outermost_in_the_width() -> None:
    x = coded(2, 3, 8)
    split = attention.split_heads(x, 4)
    assert split.shape == (2, 4, 3, 2)
    for b, h, t, c in numpy.ndindex(2, 4, 3, 2):
        assert split[b, h, t, c] == x[b, t, h * 2 + c]
    numpy.testing.assert_array_equal(attention.merge_heads(split), x)


def test_merge_heads_by_loops() -> None:
    x = coded(2, 4, 3, 2)
    merged = attention.merge_heads(x)
    assert merged.shape == (2, 3, 8)
    for b, h, t, c in numpy.ndindex(2, 4, 3, 2):
        assert merged[b, t, h * 2 + c] == x[b, h, t, c]


def test_repeat_kv_groups_neighbours() -> None:
    x = coded(2, 3, 4, 5)
    repeated = attention.repeat_kv(x, 6)
    assert repeated.shape == (2, 6, 4, 5)
    for h in range(6):
        numpy.testing.assert_array_equal(repeated[:, h], x[:, h // 2])
    numpy.testing.assert_array_equal(attention.repeat_kv(x, 3), x)


@pytest.mark.parametrize("project", [attention.query, attention.key, attention.value])
def test_projections_by_loops(project: Any) -> None:
    hidden, weight, bias = RANDOM.normal(size=(2, 3, 5)), RANDOM.normal(size=(8, 5)), RANDOM.normal(size=8)
    for given_bias in (bias, None):
        projected = project(hidden, weight, given_bias, 4)
        for b, h, t, c in numpy.ndindex(2, 4, 3, 2):
            expected = sum(hidden[b, t] * weight[h * 2 + c]) + (0 if given_bias is None else bias[h * 2 + c])
            assert projected[b, h, t, c] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_output_by_hand() -> None:
    context, weight = numpy.array([[[1.0, 2.0, 3.0]]]), numpy.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
    assert attention.output(context, weight, numpy.array([0.5, 0.25])).tolist() == [[[7.5, -0.75]]]
    assert attention.output(context, weight, None).tolist() == [[[7.0, -1.0]]]


@pytest.mark.parametrize("states", [attention.key_states, attention.value_states])
def test_the_prefix_stands_first_and_unchanged(states: Any) -> None:
    past, own = coded(2, 3, 4, 5), -coded(2, 3, 2, 5)
    joined = states(past, own)
    numpy.testing.assert_array_equal(joined[:, :, :4], past)
    numpy.testing.assert_array_equal(joined[:, :, 4:], own)
    numpy.testing.assert_array_equal(states(None, own), own)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_by_hand(dtype: str) -> None:
    query = numpy.array([[[[1.0, 2.0]], [[3.0, 4.0]]]], dtype=dtype)
    keys = numpy.array([[[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]]], dtype=dtype)  # one kv head for both
    given_scores = attention.scores(query, keys, numpy.array([[[True, False, True]]]), 0.5)
    hidden = float(numpy.finfo(dtype).min)
    assert given_scores.tolist() == [[[[0.5, hidden, 1.5]], [[1.5, hidden, 3.5]]]]
    assert given_scores.dtype == numpy.dtype(dtype)


def test_weights_are_one_softmax_over_all_keys() -> None:
    weights = attention.weights(numpy.log([[[[1.0, 2.0, 5.0]]]]))
    numpy.testing.assert_allclose(weights, [[[[0.125, 0.25, 0.625]]]], rtol=1e-14)


def naive(query: Any, keys: Any, values: Any, visible: Any, scale: float) -> Any:
    batch, heads, queries, head_dim = query.shape
    group = heads // keys.shape[1]
    context = numpy.zeros((batch, queries, heads * head_dim))
    for b, h, q in numpy.ndindex(batch, heads, queries):
        seen = [k for k in range(keys.shape[2]) if visible[b, q, k]]
        logits = [scale * math.fsum(query[b, h, q] * keys[b, h // group, k]) for k in seen]
        exponentials = [math.exp(value - max(logits)) for value in logits]
        for k, exponential in zip(seen, exponentials, strict=True):
            share = exponential / math.fsum(exponentials)
            context[b, q, h * head_dim : (h + 1) * head_dim] += share * values[b, h // group, k]
    return context


@given(st.data())
def test_attend_by_loops(data: st.DataObject) -> None:
    batch, queries, kv_heads, group, head_dim = (data.draw(st.integers(1, 3)) for _ in range(5))
    virtual, scale = data.draw(st.integers(0, 3)), data.draw(st.floats(0.1, 2.0))
    random = numpy.random.default_rng(data.draw(st.integers(0, 99)))
    query = random.normal(size=(batch, kv_heads * group, queries, head_dim))
    key, value = (random.normal(size=(batch, kv_heads, queries, head_dim)) for _ in range(2))
    past = (
        tuple(random.normal(size=(batch, kv_heads, virtual, head_dim)) for _ in range(2)) if virtual else None
    )
    mask = numpy.ones((batch, virtual + queries))
    mask[0, virtual : virtual + data.draw(st.integers(0, queries if virtual else 0))] = (
        0.0  # padding on the left
    )
    visible = causal_visibility(mask, batch, queries, virtual + queries, query)
    context, (keys, values) = attention.attend(query, key, value, past, visible, scale)
    expected_keys = key if past is None else numpy.concatenate([past[0], key], axis=2)
    expected_values = value if past is None else numpy.concatenate([past[1], value], axis=2)
    numpy.testing.assert_array_equal(keys, expected_keys)
    numpy.testing.assert_array_equal(values, expected_values)
    expected = naive(query, expected_keys, expected_values, visible, scale)
    numpy.testing.assert_allclose(context, expected, rtol=1e-12, atol=1e-13)


def test_a_query_that_sees_nothing_averages_all_keys() -> None:
    """The most negative number is finite: a row without a visible key is uniform, as HF's, and not NaN."""
    query, key, value = (RANDOM.normal(size=(1, 2, 3, 4)) for _ in range(3))
    nothing = numpy.zeros((1, 3, 3), dtype=bool)
    context, _ = attention.attend(query, key, value, None, nothing, 0.5)
    expected = numpy.broadcast_to(attention.merge_heads(value).mean(axis=1, keepdims=True), context.shape)
    numpy.testing.assert_allclose(context, expected, rtol=1e-13)


def test_hidden_keys_have_weight_zero_and_extreme_scores_do_not_overflow() -> None:
    query, key = numpy.full((1, 1, 2, 1), 1e4), numpy.array([[[[1e4], [-1e4]]]])
    visible = causal_visibility(None, 1, 2, 2, query)
    weights = attention.weights(attention.scores(query, key, visible, 1.0))
    assert weights.tolist() == [[[[1.0, 0.0], [1.0, 0.0]]]]
    swapped = attention.weights(attention.scores(-query, key, visible, 1.0))
    assert swapped.tolist() == [[[[1.0, 0.0], [0.0, 1.0]]]]
