"""Each primitive against NumPy and central differences; the whole specification on foreign arrays, in float32."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import autograd
import ml_dtypes
import numpy
import pytest
from autograd.core import make_vjp
from foreign import Foreign, fetch
from support import relative_error, tiny_base

from refpeft import arrays, ops, peft_model, steps
from refpeft import arrays as np
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.transformer.weights import BaseModel

IDS = numpy.array([[1, 3, 1], [0, 1, 3]])
CONDITION = numpy.array([[[True, False, True, True]], [[False, False, True, False]]])
OTHER = numpy.linspace(-1.0, 2.0, 24).reshape(2, 3, 4)
ROW = numpy.array([0.5, -1.5, 2.0, 0.25])

Make = Callable[[Any], Any]
CASES: dict[str, tuple[Callable[[Any, Make], Any], Callable[[Any], Any]]] = {
    # name: (the function in arrays.py of x, and of a maker of constants; the same in plain NumPy); x is (2, 3, 4)
    "sum all": (lambda x, _: np.sum(x), lambda x: x.sum()),
    "sum one": (lambda x, _: np.sum(x, axis=1), lambda x: x.sum(1)),
    "sum last kept": (lambda x, _: np.sum(x, axis=-1, keepdims=True), lambda x: x.sum(2, keepdims=True)),
    "sum two": (lambda x, _: np.sum(x, axis=(0, -1)), lambda x: x.sum(2).sum(0)),
    "sum all kept": (lambda x, _: np.sum(x, keepdims=True), lambda x: x.sum().reshape(1, 1, 1)),
    "mean all": (lambda x, _: np.mean(x), lambda x: x.sum() / 24),
    "mean one": (lambda x, _: np.mean(x, axis=1), lambda x: x.sum(1) / 3),
    "mean last kept": (
        lambda x, _: np.mean(x, axis=-1, keepdims=True),
        lambda x: x.sum(2, keepdims=True) / 4,
    ),
    "mean two": (lambda x, _: np.mean(x, axis=(0, 2)), lambda x: x.sum(2).sum(0) / 8),
    "tanh": (lambda x, _: np.tanh(x), numpy.tanh),
    "exp": (lambda x, _: np.exp(x), numpy.exp),
    "erf": (lambda x, _: np.erf(x), numpy.vectorize(math.erf)),
    "erf far out": (lambda x, _: np.erf(x * 2.0 + 1.0), lambda x: numpy.vectorize(math.erf)(2 * x + 1)),
    "log1p": (lambda x, _: np.log1p(np.exp(x)), lambda x: numpy.logaddexp(x, 0)),
    "sin": (lambda x, _: np.sin(x), numpy.sin),
    "cos": (lambda x, _: np.cos(x * 3.0), lambda x: numpy.sin(3 * x + numpy.pi / 2)),
    "log": (lambda x, _: np.log(np.square(x) + 1.0), lambda x: numpy.log1p(x**2)),
    "sqrt": (lambda x, _: np.sqrt(np.square(x) + 1.0), lambda x: numpy.hypot(x, 1)),
    "square": (lambda x, _: np.square(x), lambda x: x * x),
    "reshape": (lambda x, _: np.reshape(x, (4, 6)), lambda x: x.reshape(4, 6)),
    "swapaxes": (lambda x, _: np.swapaxes(x, 0, -1), lambda x: numpy.moveaxis(x, (0, 1, 2), (2, 1, 0))),
    "transpose": (lambda x, _: np.transpose(x, (2, 0, 1)), lambda x: numpy.moveaxis(x, 2, 0)),
    "transpose back": (lambda x, _: np.transpose(x, (1, -1, 0)), lambda x: numpy.moveaxis(x, 0, 2)),
    "broadcast new": (lambda x, _: np.broadcast_to(x, (5, 2, 3, 4)), lambda x: numpy.stack([x] * 5)),
    "broadcast stretched": (
        lambda x, _: np.broadcast_to(np.reshape(x, (2, 1, 12)), (2, 2, 3, 12)),
        lambda x: numpy.tile(x.reshape(2, 1, 12)[None].repeat(3, 2), (2, 1, 1, 1)),
    ),
    "where left": (
        lambda x, c: np.where(c(CONDITION), x, c(OTHER)),
        lambda x: CONDITION * x + ~CONDITION * OTHER,
    ),
    "where right": (
        lambda x, c: np.where(c(CONDITION), c(OTHER), x),
        lambda x: CONDITION * OTHER + ~CONDITION * x,
    ),
    "where scalars": (
        lambda x, c: np.where(c(CONDITION), x, 0.5) + np.where(c(CONDITION), -2.0, x),
        lambda x: CONDITION * (x - 2) + ~CONDITION * (x + 0.5),
    ),
    "where both": (
        lambda x, c: np.where(c(CONDITION), x, np.square(x)),
        lambda x: CONDITION * x + ~CONDITION * x**2,
    ),
    "where stretched": (
        lambda x, c: np.where(c(numpy.ones((3, 4), bool)), np.sum(x, axis=(0, 2), keepdims=True), 0.0),
        lambda x: numpy.broadcast_to(x.sum(2).sum(0).reshape(1, 3, 1), (1, 3, 4)),
    ),
    "concatenate": (
        lambda x, c: np.concatenate([x, c(OTHER), x * 2.0], axis=-2),
        lambda x: numpy.hstack([x, OTHER, 2 * x]),
    ),
    "concatenate first": (
        lambda x, c: np.concatenate([np.sum(x, axis=0, keepdims=True), x], axis=0),
        lambda x: numpy.vstack([x[:1] + x[1:], x]),
    ),
    "cut": (lambda x, _: np.cut(x, 1, 3, -1) * np.cut(x, 0, 2, 2), lambda x: x[..., 1:3] * x[..., :2]),
    "cut beyond the end": (lambda x, _: np.cut(x, 1, 9, 1), lambda x: x[:, 1:]),
    "cut to nothing": (lambda x, _: np.sum(np.cut(x, 1, 1, 0)) + np.sum(x), lambda x: x.sum()),
    "entry": (lambda x, _: np.entry(x, 2, 1), lambda x: x[:, 2]),
    "entry last": (lambda x, _: np.entry(x, 0, -1), lambda x: x[..., 0]),
    "unstack": (
        lambda x, _: np.unstack(x)[1] * np.unstack(x)[0] + np.unstack(x)[1],
        lambda x: x[1] * x[0] + x[1],
    ),
    "unstack in part": (lambda x, _: np.unstack(np.swapaxes(x, 0, 1))[2], lambda x: x[:, 2]),
    "take_rows": (
        lambda x, c: np.take_rows(np.reshape(x, (6, 4)), c(IDS)),
        lambda x: numpy.array([[x.reshape(6, 4)[i] for i in row] for row in IDS]),
    ),
    "pick": (
        lambda x, c: np.pick(x, c(IDS)),
        lambda x: numpy.array([[x[b, t, IDS[b, t]] for t in range(3)] for b in range(2)]),
    ),
    "cast_to": (lambda x, _: np.cast_to(x, x.dtype) * 3.0, lambda x: x * 3),
    "with_gradient": (
        lambda x, _: np.with_gradient(
            np.value_of(x) * np.value_of(x), lambda g: (2.0 * np.value_of(x) * g,), x
        ),
        lambda x: x * x,
    ),
    "matmul": (lambda x, c: x @ c(ROW[:, None] * ROW), lambda x: (x @ ROW)[..., None] * ROW),
    "matmul from the left": (
        lambda x, c: np.matmul(c(ROW[:, None] * ROW[:3]), x),
        lambda x: ROW[:, None] * numpy.einsum("j,bjk->bk", ROW[:3], x)[:, None],
    ),
    "arithmetic": (
        lambda x, c: (x - c(ROW)) * x / (x * x + 1.0) + -x,
        lambda x: (x - ROW) * x / (x**2 + 1) - x,
    ),
}


def sample(dtype: Any = numpy.float64) -> Any:
    return numpy.random.default_rng(7).normal(size=(2, 3, 4)).astype(dtype)


@pytest.mark.parametrize("name", CASES)
def test_values_are_plain_numpys(name: str) -> None:
    function, plain = CASES[name]
    x = sample()
    given = function(x, lambda constant: constant)
    assert numpy.shape(given) == numpy.shape(plain(x))
    numpy.testing.assert_allclose(given, plain(x), rtol=1e-14, atol=1e-15)


def weighted(function: Callable[..., Any], constant: Make, dtype: Any) -> Callable[[Any], Any]:
    """A scalar function that gives each entry of the result another weight, so that each has its own gradient."""

    def scalar(parameters: Any) -> Any:
        y = function(parameters["x"], constant)
        weights = numpy.random.default_rng(3).normal(size=y.shape).astype(dtype)
        return np.sum(y * (constant(weights) if weights.ndim else weights[()]))

    return scalar


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_central_differences(name: str) -> None:
    x, step = sample(), 1e-5
    scalar = weighted(CASES[name][0], lambda constant: constant, float)
    value, gradients = np.value_and_grad(scalar, {"x": x})
    assert value == scalar({"x": x})
    differences = numpy.zeros_like(x)
    for index in numpy.ndindex(x.shape):
        moved = numpy.zeros_like(x)
        moved[index] = step
        differences[index] = (scalar({"x": x + moved}) - scalar({"x": x - moved})) / (2 * step)
    numpy.testing.assert_allclose(gradients["x"], differences, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "longdouble"])
@pytest.mark.parametrize("name", CASES)
def test_dtype_is_kept(name: str, dtype: str) -> None:
    def constant(value: Any) -> Any:
        return value.astype(dtype) if value.dtype == numpy.float64 else value

    x = sample(dtype)
    y = CASES[name][0](x, constant)
    assert y.dtype == numpy.dtype(dtype)
    backward, _ = make_vjp(lambda boxed: CASES[name][0](boxed, constant), x)
    gradient = backward(
        numpy.ones_like(y)
    )  # not through a dictionary, whose zeros would cast a wider gradient back
    assert gradient.dtype == numpy.dtype(dtype)
    assert gradient.shape == x.shape
    value, gradients = np.value_and_grad(weighted(CASES[name][0], constant, dtype), {"x": x})
    assert value.dtype == gradients["x"].dtype == numpy.dtype(dtype)


@pytest.mark.parametrize("name", CASES)
def test_primitives_run_on_foreign_arrays(name: str) -> None:
    function, x = CASES[name][0], sample()
    numpy.testing.assert_array_equal(fetch(function(Foreign(x), Foreign)), function(x, lambda c: c))
    expected = np.value_and_grad(weighted(function, lambda c: c, float), {"x": x})
    given = np.value_and_grad(weighted(function, Foreign, float), {"x": Foreign(x)})
    numpy.testing.assert_array_equal(fetch(given[0]), expected[0])
    numpy.testing.assert_allclose(fetch(given[1])["x"], expected[1]["x"], rtol=1e-15, atol=0)


def test_every_public_function_has_a_case() -> None:
    """So that a new primitive cannot be forgotten here."""
    tested = {"exp", "log", "sqrt", "square", "reshape", "swapaxes", "transpose", "tanh", "sum", "mean"}
    tested |= {"erf", "log1p", "sin", "cos", "cut", "entry", "matmul", "with_gradient"}
    tested |= {"where", "concatenate", "unstack", "take_rows", "pick", "cast_to", "broadcast_to"}
    elsewhere = {
        "constant_max",
        "cumsum",
        "round_to",
        "arange",
        "place",
        "full",
        "is_plain",
        "is_traced",
        "value_of",
        "most_negative",
        "value_and_grad",
        "vjp",
        "level",
        "register",
        "to_host",
    }
    assert set(np.__all__) == tested | elsewhere | {"Array", "Float", "Parameters", "primitive", "defvjp"}


def test_gradients_are_asked_for_by_boxes_and_kernels_serve_plain_arrays() -> None:
    x, seen = sample(), []

    def look(traced: Any) -> Any:
        seen.append((np.is_traced(traced["x"]), np.is_traced(x), np.is_plain(traced["x"], x, None)))
        return np.sum(traced["x"])

    np.value_and_grad(look, {"x": x})
    assert seen == [(True, False, True)]
    assert np.is_plain(sample(numpy.float32))
    assert not np.is_plain(sample(numpy.float32), x)  # of two formats
    assert not np.is_plain(sample(numpy.longdouble))
    assert not np.is_plain(IDS)
    assert not np.is_plain(None)
    assert not np.is_plain(Foreign(x), x)


def test_what_an_operation_kept_lives_until_its_gradient_is_taken() -> None:
    """So that a backward pass needs less and less memory."""
    first, second = sample(), sample() + 1.0
    kept = [weakref.ref(first), weakref.ref(second)]

    def look(g: Any, alive: tuple[bool, bool]) -> Any:
        assert tuple(array() is not None for array in kept) == alive
        return g

    def function(x: Any, first: Any = first, second: Any = second) -> Any:
        y = np.with_gradient(np.value_of(x), lambda g: (look(g, (True, False)) * first,), x)
        return np.with_gradient(np.value_of(y), lambda g: (look(g, (True, True)) * second,), y)

    with np.level() as level:
        _, back = np.vjp(function, [sample()], level)
    expected = first * second
    del first, second, function
    gc.collect()
    numpy.testing.assert_array_equal(back(numpy.ones((2, 3, 4)))[0], expected)
    assert back is not None
    assert [array() for array in kept] == [None, None]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.reshape(x, (6, 4)),
        lambda x: np.broadcast_to(x, (5, 2, 3, 4)),
        lambda x: np.cut(x, 1, 2, 1),
        lambda x: np.transpose(x, (2, 0, 1)),
        lambda x: np.swapaxes(x, 0, 1),
        lambda x: np.concatenate([x, x], axis=0),
    ],
    ids=["reshape", "broadcast_to", "cut", "transpose", "swapaxes", "concatenate"],
)
def test_a_gradient_that_needs_a_shape_keeps_no_array(function: Callable[[Any], Any]) -> None:
    kept: list[Any] = []

    def moved(x: Any) -> Any:
        answer = np.value_of(x) * 1.0
        kept.append(weakref.ref(answer))
        return function(np.with_gradient(answer, lambda g: (g,), x))

    with np.level() as level:
        value, back = np.vjp(moved, [sample()], level)
    shape = value.shape
    del value
    gc.collect()
    assert kept[0]() is None
    assert back(numpy.ones(shape))[0].shape == (2, 3, 4)


def test_a_gradient_may_be_of_some_of_several_inputs() -> None:
    x, y = sample(), OTHER

    def product(p: Any) -> Any:
        return np.sum(np.with_gradient(x * y, lambda g: (g * y, "never looked at"), p["x"], y))

    value, gradients = np.value_and_grad(product, {"x": x})
    assert value == (x * y).sum()
    numpy.testing.assert_array_equal(gradients["x"], y)


def test_what_a_value_does_not_depend_on_has_a_gradient_of_zeros() -> None:
    """Also where the value is another level's own."""
    x, y = sample(), OTHER
    assert relative_error(np.value_and_grad(lambda p: np.sum(p["x"]), {"x": x, "y": y})[1]["y"], 0 * y) == 0.0

    def outer(p: Any) -> Any:
        value, gradients = np.value_and_grad(lambda q: np.sum(p["x"] * p["x"]), {"y": y})
        numpy.testing.assert_array_equal(gradients["y"], numpy.zeros_like(y))
        return value

    numpy.testing.assert_array_equal(np.value_and_grad(outer, {"x": x})[1]["x"], 2 * x)


def test_constant_max_is_a_constant() -> None:
    x = sample()
    numpy.testing.assert_array_equal(np.constant_max(x, axis=1), x.max(1)[:, None])
    _, gradients = np.value_and_grad(lambda p: np.sum(np.constant_max(p["x"], axis=-1)), {"x": x})
    numpy.testing.assert_array_equal(gradients["x"], numpy.zeros_like(x))


@pytest.mark.parametrize("form", [lambda x: x, Foreign])
def test_cumsum_runs_along_the_last_axis(form: Make) -> None:
    mask = numpy.array([[[0, 1, 1, 0], [1, 1, 0, 1]]])
    read = fetch if form is Foreign else numpy.asarray
    for dtype in ("int64", "float32"):
        sums = read(np.cumsum(form(mask.astype(dtype))))
        numpy.testing.assert_array_equal(sums, [[[0, 1, 2, 2], [1, 2, 2, 3]]])
        assert sums.dtype == numpy.dtype(dtype)


@pytest.mark.parametrize("form", [lambda x: x, Foreign])
def test_round_to_keeps_the_dtype(form: Make) -> None:
    """bfloat16 has eight bits: between 256 and 512 every second whole number, halves to even."""
    x = numpy.array([255.0, 257.0, 259.0, 258.5, -1.00390625])
    read = fetch if form is Foreign else numpy.asarray
    rounded = read(np.round_to(form(x), ml_dtypes.bfloat16))
    numpy.testing.assert_array_equal(rounded, [255.0, 256.0, 260.0, 258.0, -1.0])
    assert rounded.dtype == numpy.float64


def test_tanh_of_large_numbers_has_gradient_zero() -> None:
    x = numpy.array([-1e4, 800.0, 0.0])
    _, gradients = np.value_and_grad(lambda p: np.sum(np.tanh(p["x"])), {"x": x})
    numpy.testing.assert_array_equal(gradients["x"], [0.0, 0.0, 1.0])


def test_cast_to_casts_the_gradient_back() -> None:
    x = sample(numpy.float32)
    y = np.cast_to(x, numpy.float64)
    assert y.dtype == numpy.float64
    backward, _ = make_vjp(lambda boxed: np.cast_to(boxed, numpy.float64), x)
    gradient = backward(y)
    assert gradient.dtype == numpy.float32
    numpy.testing.assert_array_equal(gradient, x)


@pytest.mark.parametrize("form", [lambda x: x, Foreign])
def test_arange_and_full_live_where_like_lives(form: Make) -> None:
    like = form(sample(numpy.float32))
    read = fetch if form is Foreign else numpy.asarray
    integers, filled = read(np.arange(4, like=like)), read(np.full((2, 1), -1.5, numpy.float64, like=like))
    numpy.testing.assert_array_equal(integers, [0, 1, 2, 3])
    numpy.testing.assert_array_equal(filled, [[-1.5], [-1.5]])
    assert (integers.dtype, filled.dtype) == (numpy.int64, numpy.float64)


@pytest.mark.parametrize("form", [lambda x: x, Foreign])
def test_arrays_of_the_host_come_to_where_like_lives(form: Make) -> None:
    """And what lives there stays."""
    plain = numpy.array([[1, -2], [3, 4]])
    like = form(sample(numpy.float32))
    placed = np.place(plain, like)
    assert type(placed) is type(like)
    assert (fetch if form is Foreign else numpy.asarray)(placed) is plain
    assert np.place(placed, like) is placed


def test_arrays_that_only_compute_otherwise_leave_those_of_the_host_there() -> None:
    class Otherwise(Foreign):
        pass

    np.register(Otherwise)
    plain = numpy.array([1, 2])
    assert np.place(plain, Otherwise(sample())) is plain


def test_arange_and_full_take_boxes() -> None:
    def scalar(parameters: Any) -> Any:
        x = parameters["x"]
        assert type(x) is not numpy.ndarray
        assert type(np.arange(2, like=x)) is type(np.full((2,), 1.0, x.dtype, like=x)) is numpy.ndarray
        assert type(np.value_of(x)) is numpy.ndarray
        return np.sum(x)

    np.value_and_grad(scalar, {"x": sample()})


def test_value_of_anything_else_is_unchanged() -> None:
    x = sample()
    assert np.value_of(x) is x


@pytest.mark.parametrize("dtype", [numpy.float16, numpy.float32, numpy.float64, numpy.longdouble])
def test_most_negative_is_finite_and_hides(dtype: Any) -> None:
    value = numpy.asarray(np.most_negative(dtype)).astype(dtype)
    assert numpy.isfinite(value)
    assert value < -6e4
    assert numpy.exp(value) == 0
    if dtype is not numpy.longdouble:
        assert value == numpy.finfo(dtype).min


def test_value_and_grad_of_a_dictionary() -> None:
    parameters = {"b": sample(), "unused": sample(numpy.float32), "a": sample(numpy.float32)}
    value, gradients = np.value_and_grad(
        lambda p: np.sum(p["b"] * 2.0) + np.sum(np.cast_to(p["a"], numpy.float64)) * 3.0, parameters
    )
    assert isinstance(value, numpy.float64)
    assert list(gradients) == ["b", "unused", "a"]
    numpy.testing.assert_array_equal(gradients["b"], numpy.full((2, 3, 4), 2.0))
    numpy.testing.assert_array_equal(gradients["a"], numpy.full((2, 3, 4), 3.0))
    numpy.testing.assert_array_equal(gradients["unused"], numpy.zeros((2, 3, 4)))
    assert [g.dtype.name for g in gradients.values()] == ["float64", "float32", "float32"]


def test_a_parameter_used_twice_gets_both_gradients() -> None:
    x = Foreign(sample())
    _, gradients = np.value_and_grad(lambda p: np.sum(p["x"] * 2.0) + np.sum(p["x"] * 3.0), {"x": x})
    numpy.testing.assert_array_equal(fetch(gradients["x"]), numpy.full((2, 3, 4), 5.0))


def test_autograd_alone_differentiates_the_primitives() -> None:
    numpy.testing.assert_array_equal(autograd.grad(lambda x: np.mean(np.square(x)))(ROW), ROW / 2)


# ---------------------------------------------------------------- the stand-in itself


def test_arrays_come_to_the_host() -> None:
    """An ndarray as it is, a box of autograd opened, a registered array by the function it was registered with."""
    plain = numpy.array([1.0, 2.0])
    assert np.to_host(plain) is plain

    class Elsewhere(Foreign):
        pass

    np.register(Elsewhere, fetch)
    assert np.to_host(Elsewhere(plain)) is plain
    with pytest.raises(TypeError):
        np.to_host(Foreign(plain))


def test_foreign_arrays_are_strict() -> None:
    x = Foreign(sample())
    for leave in (
        numpy.asarray,
        float,
        bool,
        list,
        fetch_wrongly,
        lambda v: v.tolist(),
        lambda v: v + sample(),
    ):
        with pytest.raises((TypeError, AttributeError)):
            leave(x)
    for mix in (
        lambda: numpy.add.at(x, 0, 1.0),
        lambda: x[numpy.array([0])],
        lambda: numpy.sum(x, where=CONDITION),
        lambda: numpy.reshape(x, (-1,), order=None),
        lambda: numpy.argmax(x),
        lambda: numpy.exp2(x),
        lambda: x * numpy.asarray(2.0),
        lambda: np.value_and_grad(lambda p: np.sum(x @ p["x"]), {"x": x}),
    ):
        with pytest.raises(TypeError):
            mix()
    with pytest.raises(TypeError):
        numpy.concatenate([x, sample()])


def fetch_wrongly(_: Any) -> Any:
    return fetch(sample())


def test_foreign_arrays_leave_unknown_operands_their_turn() -> None:
    class Box:
        __array_ufunc__ = None

        def __radd__(self, other: Any) -> str:
            return f"box after {type(other).__name__}"

    assert Foreign(sample()) + Box() == "box after Foreign"
    assert (
        Foreign(sample()).__array_ufunc__(numpy.add, "__call__", Foreign(sample()), object())
        is NotImplemented
    )


# ---------------------------------------------------------------- the whole specification

CONFIGS = {
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "projected": PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=11
    ),
}
MASK = numpy.array([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])


def question(masked: bool) -> tuple[Any, Any, Any]:
    """Token ids, mask, labels."""
    ids = numpy.random.default_rng(1).integers(0, 43, (2, 7))
    return ids, MASK if masked else None, numpy.where(MASK == 1, ids, -100)


def run(
    base: BaseModel, config: PromptLearningConfig, parameters: Any, inputs: Any
) -> tuple[Any, Any, Any, Any]:
    """Output, stages, loss and gradients."""
    with steps.recording() as stages:
        output = peft_model.forward(parameters, base, config, *inputs)
    loss, gradients = arrays.value_and_grad(
        lambda p: peft_model.forward(p, base, config, *inputs).loss, parameters
    )
    return output, stages, loss, gradients


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", CONFIGS)
def test_the_specification_runs_on_foreign_arrays(method: str, masked: bool) -> None:
    base = tiny_base(tie_word_embeddings=not masked)
    model = peft_model.get_peft_model(base, CONFIGS[method])
    inputs, parameters = question(masked), model.trainable_parameters()
    output, stages, loss, gradients = run(base, model.config, parameters, inputs)
    foreign = run(
        base.map(Foreign),
        model.config,
        {name: Foreign(value) for name, value in parameters.items()},
        tuple(None if value is None else Foreign(value) for value in inputs),
    )
    assert relative_error(fetch(foreign[0].logits), output.logits) < 1e-15
    assert relative_error(fetch(foreign[0].loss), output.loss) < 1e-15
    assert relative_error(fetch(foreign[2]), loss) < 1e-15
    for given, expected in zip(fetch(foreign[0].past_key_values), output.past_key_values, strict=True):
        assert relative_error(given, expected) < 1e-15
    assert list(foreign[1]) == list(stages)
    for name, stage in fetch(foreign[1]).items():
        numpy.testing.assert_allclose(stage, stages[name], rtol=1e-14, atol=1e-14, err_msg=name)
    assert list(foreign[3]) == list(gradients)
    for name, gradient in fetch(foreign[3]).items():
        assert numpy.abs(gradients[name]).max() > 1e-4, name
        assert relative_error(gradient, gradients[name]) < 1e-14, name


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", CONFIGS)
def test_the_specification_keeps_float32(method: str, masked: bool) -> None:
    base, dtype = tiny_base(), "float32"
    model = peft_model.get_peft_model(base, CONFIGS[method])
    parameters, inputs = model.trainable_parameters(), question(masked)
    exact = run(base, model.config, parameters, inputs)
    given = run(
        base.map(lambda x: x.astype(dtype)),
        model.config,
        {name: value.astype(dtype) for name, value in parameters.items()},
        inputs,
    )
    integral = {"inputs.attention_mask": "float32", "inputs.position_ids": "int64", "inputs.labels": "int64"}
    integral |= {"decoder.visible": "bool"}
    for name, stage in given[1].items():
        assert stage.dtype == numpy.dtype(integral.get(name, dtype)), name
    assert given[2].dtype == numpy.dtype(dtype)
    assert relative_error(given[0].logits, exact[0].logits) < 3e-6
    for name, gradient in given[3].items():
        assert gradient.dtype == numpy.dtype(dtype), name
        assert relative_error(gradient, exact[3][name]) < 1e-5, name


@pytest.mark.parametrize(
    "function",
    [ops.softmax, ops.log_softmax, ops.bloom_gelu, *dict.fromkeys(ops.ACTIVATIONS.values())],
    ids=lambda f: f.__name__,
)
def test_elementary_operations_keep_float32(function: Callable[[Any], Any]) -> None:
    x = sample(numpy.float32)
    y = function(x)
    assert y.dtype == numpy.float32
    given, exact = (
        make_vjp(function, form)[0](numpy.square(function(form))) for form in (x, x.astype(float))
    )
    assert given.dtype == numpy.float32
    assert relative_error(given, exact) < 1e-5
