"""The elementary operations against values worked out by hand, or by loops over plain Python floats."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refpeft import arrays, ops
from refpeft.errors import ConfigError

RANDOM = numpy.random.default_rng(5)


def test_linear_by_hand() -> None:
    x, weight = numpy.array([[1.0, 2.0]]), numpy.array([[3.0, 5.0], [7.0, 11.0], [13.0, 17.0]])
    bias = numpy.array([0.5, 0.25, 0.125])
    numpy.testing.assert_array_equal(ops.linear(x, weight, bias), [[13.5, 29.25, 47.125]])
    numpy.testing.assert_array_equal(ops.linear(x, weight, None), [[13.0, 29.0, 47.0]])


def test_linear_reads_a_square_weight_as_outputs_by_inputs() -> None:
    weight = numpy.array([[0.0, 1.0], [0.0, 0.0]])  # output 0 is input 1
    numpy.testing.assert_array_equal(ops.linear(numpy.array([[3.0, 4.0]]), weight, None), [[4.0, 0.0]])


def test_linear_takes_any_number_of_rows() -> None:
    x, weight, bias = RANDOM.normal(size=(2, 3, 4)), RANDOM.normal(size=(5, 4)), RANDOM.normal(size=5)
    expected = [[[sum(x[b, t] * weight[o]) + bias[o] for o in range(5)] for t in range(3)] for b in range(2)]
    numpy.testing.assert_allclose(ops.linear(x, weight, bias), expected, rtol=1e-13)


def test_layer_norm_by_hand() -> None:
    x = numpy.array([[1.0, 3.0, 5.0, 7.0]])  # mean 4, variance 20 / 4 = 5; with ε = 4 the root is 3
    weight, bias = numpy.array([3.0, 6.0, 9.0, 12.0]), numpy.array([0.0, 1.0, 2.0, 3.0])
    numpy.testing.assert_allclose(ops.layer_norm(x, weight, bias, 4.0), [[-3.0, -1.0, 5.0, 15.0]], rtol=1e-15)


def test_layer_norm_of_each_row() -> None:
    x = RANDOM.normal(size=(2, 3, 7)) * 5 + 3
    ones, zeros = numpy.ones(7), numpy.zeros(7)
    for row, given_row in zip(
        x.reshape(6, 7), ops.layer_norm(x, ones, zeros, 1e-5).reshape(6, 7), strict=True
    ):
        mean = math.fsum(row) / 7
        variance = math.fsum((value - mean) ** 2 for value in row) / 7
        expected = [(value - mean) / math.sqrt(variance + 1e-5) for value in row]
        numpy.testing.assert_allclose(given_row, expected, rtol=1e-12)


def test_layer_norm_of_a_constant_row_is_the_bias() -> None:
    bias = numpy.array([1.0, 2.0])
    numpy.testing.assert_array_equal(
        ops.layer_norm(numpy.full((3, 2), 7.0), bias * 5, bias, 1e-5), [bias] * 3
    )


ROWS = st.lists(st.floats(-700, 700), min_size=1, max_size=6)


@given(ROWS)
def test_softmax_and_log_sum_exp_by_loops(row: list[float]) -> None:
    shift = max(row)
    total = math.fsum(math.exp(value - shift) for value in row)
    expected = [math.exp(value - shift) / total for value in row]
    x = numpy.array([row, row[::-1]])
    numpy.testing.assert_allclose(ops.softmax(x), [expected, expected[::-1]], rtol=1e-13, atol=1e-300)
    numpy.testing.assert_allclose(ops.log_sum_exp(x), [shift + math.log(total)] * 2, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_logits_do_not_overflow(dtype: str) -> None:
    far = float(numpy.finfo(dtype).max) / 4
    x = numpy.array([[far, 0.0, -far], [-far, -far, -far], [1e5, 1e5, -1e5]], dtype=dtype)
    softmax = ops.softmax(x)
    numpy.testing.assert_allclose(softmax, [[1, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0]], rtol=1e-6)
    expected = numpy.array([far, -far, 1e5 + math.log(2)])
    numpy.testing.assert_allclose(ops.log_sum_exp(x), expected, rtol=1e-6)
    logits, labels = x[None], numpy.array([[0, 1, 2]])
    _, gradient = arrays.value_and_grad(
        lambda p: ops.causal_lm_loss(p["x"][:, 1:], labels[:, 1:]), {"x": logits}
    )
    numpy.testing.assert_allclose(gradient["x"], [[[0, 0, 0], [1 / 3, 1 / 3, -2 / 3], [0, 0, 0]]], rtol=1e-6)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gelu_tanh(x: float) -> float:
    return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


BY_NAME = {
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "tanh": math.tanh,
}


def test_every_activation_is_tested() -> None:
    assert list(BY_NAME) == list(ops.ACTIVATIONS)


@pytest.mark.parametrize("name", BY_NAME)
def test_activations_by_loops(name: str) -> None:
    x = numpy.linspace(-6, 6, 49).reshape(7, 7)
    expected = [[BY_NAME[name](float(value)) for value in row] for row in x]
    numpy.testing.assert_allclose(ops.activation(name)(x), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gelu_new", 0.8411919906), ("silu", 0.7310585786), ("relu", 1.0), ("tanh", 0.7615941560)],
)
def test_activations_at_one(name: str, value: float) -> None:
    assert float(ops.activation(name)(numpy.array(1.0))) == pytest.approx(value, abs=5e-11)


@pytest.mark.parametrize("name", BY_NAME)
def test_activations_of_large_numbers(name: str) -> None:
    x = numpy.array([-1e4, 1e4])
    value, gradient = arrays.value_and_grad(lambda p: arrays.sum(ops.activation(name)(p["x"])), {"x": x})
    low, high = (-1.0, 1.0) if name == "tanh" else (0.0, 1e4)
    assert value == low + high
    numpy.testing.assert_array_equal(gradient["x"], [0.0, 0.0 if name == "tanh" else 1.0])


def test_relu_has_gradient_zero_at_zero() -> None:
    x = numpy.array([-1.0, 0.0, 2.0])
    _, gradient = arrays.value_and_grad(lambda p: arrays.sum(ops.relu(p["x"])), {"x": x})
    numpy.testing.assert_array_equal(gradient["x"], [0.0, 0.0, 1.0])


def test_an_unknown_activation() -> None:
    with pytest.raises(ConfigError) as caught:
        ops.activation("gelu")
    assert str(caught.value) == (
        "The base model's activation is 'gelu'; refpeft computes gelu_new, gelu_pytorch_tanh, relu, silu, swish, tanh. "
        "Use a base model with one of these."
    )


# ---------------------------------------------------------------- the loss


def naive_loss(logits: Any, labels: Any) -> float:
    terms = []
    for row, row_labels in zip(logits, labels, strict=True):
        for t in range(len(row) - 1):
            label = row_labels[t + 1]
            if label != -100:
                terms.append(math.log(math.fsum(math.exp(v) for v in row[t])) - row[t][label])
    return math.fsum(terms) / len(terms)


def test_the_loss_by_hand() -> None:
    logits = numpy.log([[[1.0, 3.0], [2.0, 2.0], [9.0, 1.0]]])
    # predicts label 1 with 3/4, then label 0 with 1/2; the last position predicts nothing
    given_loss = ops.causal_lm_loss(logits, numpy.array([[0, 1, 0]]))
    assert float(given_loss) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-14)


@given(st.data())
def test_the_loss_by_loops(data: st.DataObject) -> None:
    batch, tokens, vocab = (data.draw(st.integers(low, 4)) for low in (1, 2, 1))
    label = st.sampled_from([-100, *range(vocab)])
    labels = [[data.draw(label) for _ in range(tokens)] for _ in range(batch)]
    labels[-1][-1] = vocab - 1  # at least one counts
    logits = numpy.array(
        data.draw(
            st.lists(st.floats(-9, 9), min_size=batch * tokens * vocab, max_size=batch * tokens * vocab)
        )
    ).reshape(batch, tokens, vocab)
    loss = ops.causal_lm_loss(logits, numpy.array(labels))
    assert float(loss) == pytest.approx(naive_loss(logits.tolist(), labels), rel=1e-12, abs=1e-14)


def test_the_mean_is_over_the_whole_batch() -> None:
    logits = RANDOM.normal(size=(2, 4, 3))
    labels = numpy.array([[0, 1, 2, 1], [2, -100, -100, 0]])  # 3 terms and 1
    rows = [float(ops.causal_lm_loss(logits[b : b + 1], labels[b : b + 1])) for b in range(2)]
    loss = float(ops.causal_lm_loss(logits, labels))
    assert loss == pytest.approx((3 * rows[0] + rows[1]) / 4, rel=1e-14)


def test_the_first_label_and_the_last_logits_do_not_count() -> None:
    logits, labels = RANDOM.normal(size=(1, 3, 4)), numpy.array([[0, 1, 2]])
    changed = logits.copy()
    changed[:, -1] = 1e9
    assert ops.causal_lm_loss(changed, numpy.array([[3, 1, 2]])) == ops.causal_lm_loss(logits, labels)


def test_the_gradient_of_the_loss_is_softmax_minus_one_hot() -> None:
    logits, labels = RANDOM.normal(size=(2, 4, 3)), numpy.array([[0, 1, -100, 1], [2, -100, -100, 0]])
    _, gradient = arrays.value_and_grad(lambda p: ops.causal_lm_loss(p["x"], labels), {"x": logits})
    expected = numpy.zeros_like(logits)
    for b, t, label in ((0, 0, 1), (0, 2, 1), (1, 2, 0)):
        expected[b, t] = numpy.exp(logits[b, t]) / numpy.exp(logits[b, t]).sum() - numpy.eye(3)[label]
    numpy.testing.assert_allclose(gradient["x"], expected / 3, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize(
    "labels", [[[-100, -100, -100]], [[2, -100, -100]]], ids=["all", "all but the first"]
)
def test_no_counted_label_gives_nan_without_a_warning(labels: list[list[int]]) -> None:
    """Torch's answer: a loss of NaN, and gradients of zero."""
    loss, gradient = arrays.value_and_grad(
        lambda p: ops.causal_lm_loss(p["x"], numpy.array(labels)), {"x": RANDOM.normal(size=(1, 3, 4))}
    )
    assert math.isnan(loss)
    numpy.testing.assert_array_equal(gradient["x"], numpy.zeros((1, 3, 4)))


def test_labels_of_any_integer_type_give_the_loss_in_the_logits_dtype() -> None:
    logits = RANDOM.normal(size=(1, 3, 4)).astype(numpy.float32)
    for dtype in (numpy.int64, numpy.int32, numpy.int16):
        loss = ops.causal_lm_loss(logits, numpy.array([[0, -100, 3]], dtype=dtype))
        assert loss.dtype == numpy.float32
        assert float(loss) == pytest.approx(
            naive_loss(logits.astype(float).tolist(), [[0, -100, 3]]), rel=1e-6
        )
