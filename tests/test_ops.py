"""The elementary operations and the losses against values worked out by hand, or by loops over plain Python floats."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
from autograd.core import make_vjp
from foreign import Foreign, fetch
from hypothesis import given
from hypothesis import strategies as st
from support import relative_error

from refpeft import arrays, ops, steps

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


def test_layer_norm_without_weight_or_bias() -> None:
    x, weight, bias = RANDOM.normal(size=(3, 5)), RANDOM.normal(size=5), RANDOM.normal(size=5)
    plain = ops.layer_norm(x, numpy.ones(5), numpy.zeros(5), 1e-5)
    numpy.testing.assert_array_equal(ops.layer_norm(x, None, None, 1e-5), plain)
    numpy.testing.assert_array_equal(ops.layer_norm(x, weight, None, 1e-5), plain * weight)
    numpy.testing.assert_array_equal(ops.layer_norm(x, None, bias, 1e-5), plain + bias)


def test_rms_norm_by_hand() -> None:
    x = numpy.array([[1.0, -3.0, 5.0, 7.0]])  # mean square 84 / 4 = 21; with ε = 4 the root is 5
    weight, bias = numpy.array([5.0, 10.0, 15.0, 20.0]), numpy.array([0.0, 1.0, 2.0, 3.0])
    for function, offset in ((ops.rms_norm, 0.0), (ops.rms_norm_plus_one, 1.0)):
        plain, scaled = x / 5, x / 5 * (offset + weight)
        numpy.testing.assert_allclose(function(x, weight, None, 4.0), scaled, rtol=1e-15)
        numpy.testing.assert_allclose(function(x, weight, bias, 4.0), scaled + bias, rtol=1e-15)
        numpy.testing.assert_allclose(function(x, None, None, 4.0), plain, rtol=1e-15)
        numpy.testing.assert_allclose(function(x, None, bias, 4.0), plain + bias, rtol=1e-15)


def test_rms_norm_of_each_row_keeps_the_mean() -> None:
    x, weight = RANDOM.normal(size=(2, 3, 7)) * 5 + 3, RANDOM.normal(size=7)
    for row, given_row in zip(
        x.reshape(6, 7), ops.rms_norm(x, weight, None, 1e-6).reshape(6, 7), strict=True
    ):
        root = math.sqrt(math.fsum(value * value for value in row) / 7 + 1e-6)
        numpy.testing.assert_allclose(
            given_row, [v / root * w for v, w in zip(row, weight, strict=True)], rtol=1e-14
        )


def test_the_table_of_norms() -> None:
    names = ["layer_norm", "rms_norm", "rms_norm_plus_one"]
    assert list(ops.NORMS) == [norm.__name__ for norm in ops.NORMS.values()] == names


def test_softcap() -> None:
    x = numpy.array([-1e4, -50.0, 0.0, 1e-3, 25.0, 1e4])
    numpy.testing.assert_allclose(ops.softcap(x, 50.0), [50 * math.tanh(v / 50) for v in x], rtol=1e-15)
    _, gradient = arrays.value_and_grad(lambda p: arrays.sum(ops.softcap(p["x"], 50.0)), {"x": x})
    numpy.testing.assert_allclose(gradient["x"], [1 - math.tanh(v / 50) ** 2 for v in x], rtol=1e-14)


ROWS = st.lists(st.floats(-700, 700), min_size=1, max_size=6)


@given(ROWS)
def test_softmax_and_log_softmax_by_loops(row: list[float]) -> None:
    shift = max(row)
    total = math.fsum(math.exp(value - shift) for value in row)
    expected = [math.exp(value - shift) / total for value in row]
    x = numpy.array([row, row[::-1]])
    numpy.testing.assert_allclose(ops.softmax(x), [expected, expected[::-1]], rtol=1e-13, atol=1e-300)
    expected = [value - shift - math.log(total) for value in row]
    numpy.testing.assert_allclose(ops.log_softmax(x), [expected, expected[::-1]], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_logits_do_not_overflow(dtype: str) -> None:
    far = float(numpy.finfo(dtype).max) / 4
    x = numpy.array([[far, 0.0, -far], [-far, -far, -far], [1e5, 1e5, -1e5]], dtype=dtype)
    softmax = ops.softmax(x)
    numpy.testing.assert_allclose(softmax, [[1, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0]], rtol=1e-6)
    expected = [[0, -far, -2 * far], [-math.log(3)] * 3, [-math.log(2), -math.log(2), -2e5 - math.log(2)]]
    numpy.testing.assert_allclose(ops.log_softmax(x), expected, rtol=1e-6)
    logits, labels = x[None], numpy.array([[0, 1, 2]])
    _, gradient = arrays.value_and_grad(
        lambda p: ops.causal_lm_loss(p["x"][:, 1:], labels[:, 1:]), {"x": logits}
    )
    numpy.testing.assert_allclose(gradient["x"], [[[0, 0, 0], [1 / 3, 1 / 3, -2 / 3], [0, 0, 0]]], rtol=1e-6)


def test_small_losses_of_large_logits_are_not_lost() -> None:
    """What is 15 behind costs e⁻¹⁵, as torch has it; `logsumexp − logit` would be off by 1e-13 here."""
    loss = ops.cross_entropy(numpy.array([[1000.0, 985.0]]), numpy.array([0]))
    assert abs(float(loss) - math.log1p(math.exp(-15))) < 2.0**-52


# ---------------------------------------------------------------- the loss of a causal language model


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


# ---------------------------------------------------------------- the losses of other tasks


def naive_cross_entropy(logits: Any, labels: Any, ignore: int = -100) -> float:
    """Over rows: NaN where nothing counts."""
    terms = [
        math.log(math.fsum(math.exp(value) for value in row)) - row[label]
        for row, label in zip(logits, labels, strict=True)
        if label != ignore
    ]
    return math.fsum(terms) / len(terms) if terms else math.nan


def rows(draw: Any, *shape: int) -> Any:
    numbers = st.lists(st.floats(-9, 9), min_size=math.prod(shape), max_size=math.prod(shape))
    return numpy.array(draw(numbers)).reshape(shape)


SAME_POSITION = [ops.cross_entropy, ops.seq2seq_loss, ops.token_classification_loss]


@pytest.mark.parametrize("function", SAME_POSITION, ids=lambda f: f.__name__)
@given(data=st.data())
def test_cross_entropy_by_loops(function: Any, data: st.DataObject) -> None:
    """Each position's own label, −100 ignored; NaN where nothing counts."""
    batch, tokens, classes = (data.draw(st.integers(1, 4)) for _ in range(3))
    label = st.sampled_from([-100, *range(classes)])
    labels = [[data.draw(label) for _ in range(tokens)] for _ in range(batch)]
    logits = rows(data.draw, batch, tokens, classes)
    expected = naive_cross_entropy(logits.reshape(-1, classes).tolist(), sum(labels, []))  # noqa: RUF017
    loss = function(logits, numpy.array(labels))
    assert float(loss) == pytest.approx(expected, rel=1e-12, abs=1e-14, nan_ok=True)


def test_another_label_may_be_ignored() -> None:
    logits, labels = RANDOM.normal(size=(5, 3)), numpy.array([0, 2, 3, 1, 3])
    loss = ops.cross_entropy(logits, labels, ignore_index=3)
    assert float(loss) == pytest.approx(naive_cross_entropy(logits.tolist(), labels, 3), rel=1e-14)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_regression(outputs: int, dtype: str) -> None:
    """The mean over batch and outputs; one output's labels may lack their axis."""
    logits = RANDOM.normal(size=(4, outputs))
    labels = (RANDOM.normal(size=(4, outputs)) * 3).astype(dtype)
    pairs = list(zip(logits.ravel().tolist(), labels.ravel().tolist(), strict=True))
    expected = math.fsum((a - b) ** 2 for a, b in pairs) / len(pairs)
    forms = [labels, labels[:, 0]] if outputs == 1 else [labels]
    for form in forms:
        loss, gradient = arrays.value_and_grad(
            lambda p, form=form: ops.sequence_classification_loss(p["x"], form, "regression"), {"x": logits}
        )
        assert loss.dtype == numpy.float64
        assert float(loss) == pytest.approx(expected, rel=1e-14)
        assert gradient["x"].ravel().tolist() == pytest.approx([2 * (a - b) / len(pairs) for a, b in pairs])


@pytest.mark.parametrize("column", [False, True])
def test_a_single_label(column: bool) -> None:
    logits, labels = RANDOM.normal(size=(4, 3)), [2, -100, 0, 1]
    given_labels = numpy.array(labels)[:, None] if column else numpy.array(labels)
    loss = ops.sequence_classification_loss(logits, given_labels, "single_label_classification")
    assert float(loss) == pytest.approx(naive_cross_entropy(logits.tolist(), labels), rel=1e-14)


@given(st.data())
def test_several_labels_by_loops(data: st.DataObject) -> None:
    """Labels may be soft; the mean is over batch and labels."""
    batch, classes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    logits, labels = rows(data.draw, batch, classes), rows(data.draw, batch, classes) / 18 + 0.5
    terms = [
        y * math.log1p(math.exp(-x)) + (1 - y) * math.log1p(math.exp(x))
        for x, y in zip(logits.ravel().tolist(), labels.ravel().tolist(), strict=True)
    ]

    def loss(p: Any) -> Any:
        return ops.sequence_classification_loss(p["x"], labels, "multi_label_classification")

    value, gradient = arrays.value_and_grad(loss, {"x": logits})
    assert float(value) == pytest.approx(math.fsum(terms) / len(terms), rel=1e-13, abs=1e-15)
    expected = (1 / (1 + numpy.exp(-logits)) - labels) / len(terms)
    numpy.testing.assert_allclose(gradient["x"], expected, rtol=1e-12, atol=2e-16)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_several_labels_of_extreme_logits(dtype: str) -> None:
    """What is right costs nothing, what is wrong its distance; nothing overflows."""
    logits, labels = numpy.array([[1e5, -1e5], [1e5, -1e5]], dtype), numpy.array([[1, 0], [0, 1]])
    loss, gradient = arrays.value_and_grad(
        lambda p: ops.sequence_classification_loss(p["x"], labels, "multi_label_classification"),
        {"x": logits},
    )
    assert loss == 5e4
    assert loss.dtype == gradient["x"].dtype == numpy.dtype(dtype)
    numpy.testing.assert_array_equal(gradient["x"], [[0, 0], [0.25, -0.25]])
    certain = ops.sequence_classification_loss(
        numpy.array([[40.0]]), numpy.array([[1.0]]), "multi_label_classification"
    )
    assert float(certain) == pytest.approx(math.exp(-40), rel=1e-14, abs=0), "small, but not lost"


SPANS = [
    ([0, 3, 1], [2, 4, 1], "inside"),
    ([0, 5, 1], [2, 9, 7], "from the length on: not counted"),
    ([0, -1, 1], [2, -100, 4], "below 0: counted as 0"),
    ([5, 5, 6], [2, 1, 0], "no start counts: NaN"),
    ([1, 2, 3], [5, 5, 100], "no end counts: NaN"),
]


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(("starts", "ends", "what"), SPANS, ids=[what for *_, what in SPANS])
def test_question_answering(starts: list[int], ends: list[int], what: str, column: bool) -> None:
    start_logits, end_logits = RANDOM.normal(size=(2, 3, 5))
    expected = [
        naive_cross_entropy(logits.tolist(), [min(max(p, 0), 5) for p in positions], 5)
        for logits, positions in ((start_logits, starts), (end_logits, ends))
    ]
    assert math.isnan(sum(expected)) == what.endswith("NaN")
    shape = (3, 1) if column else (3,)
    loss, gradient = arrays.value_and_grad(
        lambda p: ops.question_answering_loss(
            p["start"], p["end"], numpy.array(starts).reshape(shape), numpy.array(ends).reshape(shape)
        ),
        {"start": start_logits, "end": end_logits},
    )
    assert float(loss) == pytest.approx(sum(expected) / 2, rel=1e-13, nan_ok=True)
    for name, positions in (("start", starts), ("end", ends)):
        moved = [row for row, position in enumerate(positions) if position < 5]
        assert numpy.flatnonzero(gradient[name].any(axis=1)).tolist() == moved


# ---------------------------------------------------------------- one step for all of them

LOGITS, HEAD = RANDOM.normal(size=(2, 3, 4)), RANDOM.normal(size=(2, 3))
LABELS, CLASSES = numpy.array([[0, 1, -100], [3, -100, 2]]), numpy.array([2, 0])
OF_KIND: dict[str, tuple[Any, ...]] = {
    "causal_lm": (LOGITS, LABELS),
    "seq2seq": (LOGITS, LABELS),
    "token_classification": (LOGITS, LABELS),
    "sequence_classification": (HEAD, CLASSES, "single_label_classification"),
    "question_answering": (LOGITS[..., 0], LOGITS[..., 1], CLASSES, CLASSES),
}


def test_every_kind_of_loss_is_tested() -> None:
    assert list(OF_KIND) == list(ops.LOSSES)
    assert [function.__name__ for function in ops.LOSSES.values()] == [f"{kind}_loss" for kind in OF_KIND]


@pytest.mark.parametrize("kind", OF_KIND)
def test_the_step_loss_is_the_loss_of_its_kind(kind: str) -> None:
    with steps.recording() as stages:
        loss = ops.loss(kind, *OF_KIND[kind])
    assert loss == ops.LOSSES[kind](*OF_KIND[kind])
    assert stages == {"loss": loss}
    with steps.replaced({"loss": lambda kind, *arguments: (kind, len(arguments))}):
        assert ops.loss(kind, *OF_KIND[kind]) == (kind, len(OF_KIND[kind]))


FOREIGN: dict[str, tuple[Any, tuple[Any, ...]]] = {
    **{kind: (ops.LOSSES[kind], arguments) for kind, arguments in OF_KIND.items()},
    "regression": (ops.sequence_classification_loss, (HEAD, HEAD[::-1].copy(), "regression")),
    "several labels": (ops.sequence_classification_loss, (HEAD, HEAD > 0, "multi_label_classification")),
    **{name: (norm, (LOGITS, LOGITS[0, 0], LOGITS[0, 1], 1e-5)) for name, norm in ops.NORMS.items()},
    **{f"{name} alone": (norm, (LOGITS, None, None, 1e-5)) for name, norm in ops.NORMS.items()},
    "softcap": (ops.softcap, (LOGITS, 2.0)),
    "bloom_gelu": (ops.bloom_gelu, (LOGITS,)),
    "softplus": (ops.softplus, (LOGITS,)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_they_run_on_foreign_arrays(name: str) -> None:
    """The first argument is differentiated."""
    function, (first, *others) = FOREIGN[name]

    def scalar(form: Any) -> Any:
        rest = [form(other) if isinstance(other, numpy.ndarray) else other for other in others]
        return lambda p: arrays.sum(arrays.square(function(p["x"], *rest)))

    with steps.kernels():
        expected, gradient = arrays.value_and_grad(scalar(lambda x: x), {"x": first})
    value, foreign_gradient = arrays.value_and_grad(scalar(Foreign), {"x": Foreign(first)})
    assert relative_error(fetch(value), expected) < 1e-15
    assert relative_error(fetch(foreign_gradient)["x"], gradient["x"]) < 1e-15
    assert gradient["x"].any()


@pytest.mark.parametrize("dtype", ["float32", "longdouble"])
@pytest.mark.parametrize("name", FOREIGN)
def test_they_keep_the_dtype(name: str, dtype: str) -> None:
    """Labels in float64 do not widen."""
    function, (first, *others) = FOREIGN[name]
    if name in ops.NORMS:
        others = [other.astype(dtype) if isinstance(other, numpy.ndarray) else other for other in others]
    if name == "question_answering":
        others[0] = others[0].astype(dtype)
    x = first.astype(dtype)
    backward, value = make_vjp(lambda boxed: function(boxed, *others), x)
    assert value.dtype == numpy.dtype(dtype)
    assert backward(numpy.ones_like(value)).dtype == numpy.dtype(dtype)
    assert relative_error(value, function(*FOREIGN[name][1])) < 1e-6
