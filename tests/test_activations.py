"""The activations against loops over plain Python floats, their gradients against formulas or differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest

from refpeft import activations, arrays, ops
from refpeft.errors import ConfigError


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gelu(x: float) -> float:
    return x / 2 * math.erfc(-x / math.sqrt(2))


def gelu_tanh(x: float, root: float = math.sqrt(2 / math.pi)) -> float:
    return x / 2 * (1 + math.tanh(root * (x + 0.044715 * x**3)))


BY_NAME: dict[str, Callable[[float], float]] = {
    "gelu": gelu,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": lambda x: gelu_tanh(x, 0.7978845608),
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "leaky_relu": lambda x: max(x, 0.01 * x),
    "linear": lambda x: x,
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "tanh": math.tanh,
    "bloom_gelu": lambda x: gelu_tanh(x, 0.79788456),
}


def value_and_gradient(name: str, x: Any) -> tuple[Any, Any]:
    """What the activation gives, and its derivative at each entry."""
    function = activations.activation(name)
    _, gradient = arrays.value_and_grad(lambda p: arrays.sum(function(p["x"])), {"x": x})
    return function(x), gradient["x"]


def test_every_activation_is_tested() -> None:
    assert list(BY_NAME) == [*activations.ACTIVATIONS, "bloom_gelu"]
    assert ops.ACTIVATIONS is activations.ACTIVATIONS
    assert ops.activation is activations.activation


@pytest.mark.parametrize("name", BY_NAME)
def test_values_by_loops(name: str) -> None:
    x = numpy.linspace(-8, 8, 63).reshape(7, 9)
    expected = [[BY_NAME[name](float(value)) for value in row] for row in x]
    numpy.testing.assert_allclose(activations.activation(name)(x), expected, rtol=2e-15, atol=2e-15)


@pytest.mark.parametrize("name", BY_NAME)
def test_gradients_by_differences(name: str) -> None:
    x, step = numpy.linspace(-7.9, 7.8, 63), 1e-5  # not the corners
    function = activations.activation(name)
    _, gradient = value_and_gradient(name, x)
    differences = (function(x + step) - function(x - step)) / (2 * step)
    numpy.testing.assert_allclose(gradient, differences, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gelu", 0.8413447461), ("gelu_new", 0.8411919906), ("quick_gelu", 0.8457957659), ("mish", 0.8650983883),
        ("silu", 0.7310585786), ("sigmoid", 0.7310585786), ("relu", 1.0), ("tanh", 0.7615941560),
    ],
)  # fmt: skip
def test_values_at_one(name: str, value: float) -> None:
    assert float(activations.activation(name)(numpy.array(1.0))) == pytest.approx(value, abs=5e-11)


def test_the_shortened_constants_show() -> None:
    """At x = 1 the value is (1 + tanh(1.044715 c)) / 2, so c can be read off it."""
    for name, constant in (
        ("gelu_new", math.sqrt(2 / math.pi)),
        ("gelu_fast", 0.7978845608),
        ("bloom_gelu", 0.79788456),
    ):
        value = float(activations.activation(name)(numpy.array(1.0)))
        assert math.atanh(2 * value - 1) / 1.044715 == pytest.approx(constant, rel=1e-14), name
    value = float(activations.activation("quick_gelu")(numpy.array(1.0)))
    assert math.log(value / (1 - value)) == pytest.approx(1.702, rel=1e-14)


def test_bloom_s_gradient_is_written_by_hand() -> None:
    """Its constant is 0.1070322243; the derivative of what is computed forwards has 1e-11 more."""
    x = numpy.linspace(-4.0, 4.0, 41)
    t = numpy.tanh(0.79788456 * x * (1 + 0.044715 * x * x))
    by_hand = 0.5 * x * ((1 - t * t) * (0.79788456 + 0.1070322243 * x * x)) + 0.5 * (1 + t)
    derivative = 0.5 * x * ((1 - t * t) * 0.79788456 * (1 + 3 * 0.044715 * x * x)) + 0.5 * (1 + t)
    _, gradient = value_and_gradient("bloom_gelu", x)
    numpy.testing.assert_allclose(gradient, by_hand, rtol=0, atol=4e-16)
    assert numpy.abs(gradient - derivative).max() > 3e-13


LIMITS = {
    "linear": (-1e4, 1e4, 1.0, 1.0),
    "leaky_relu": (-1e2, 1e4, 0.01, 1.0),
    "relu2": (0.0, 1e8, 0.0, 2e4),
    "relu6": (0.0, 6.0, 0.0, 0.0),
    "sigmoid": (0.0, 1.0, 0.0, 0.0),
    "tanh": (-1.0, 1.0, 0.0, 0.0),
}
"""Values and gradients at −1e4 and 1e4; of all others 0, 1e4 and 0, 1."""


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
@pytest.mark.parametrize("name", BY_NAME)
def test_large_numbers(name: str, dtype: str) -> None:
    """Without a warning, and in the dtype that is given."""
    values, gradient = value_and_gradient(name, numpy.array([-1e4, 1e4], dtype=dtype))
    assert values.dtype == gradient.dtype == numpy.dtype(dtype)
    expected = numpy.array(LIMITS.get(name, (0.0, 1e4, 0.0, 1.0)), dtype="float64")
    numpy.testing.assert_allclose([*values, *gradient], expected, rtol=1e-7, atol=1e-300)


@pytest.mark.parametrize(
    ("name", "x", "gradient"),
    [
        ("relu", 0.0, 0.0), ("relu6", 0.0, 0.0), ("relu6", 6.0, 0.0), ("relu2", 0.0, 0.0), ("leaky_relu", 0.0, 0.01),
        ("gelu", 0.0, 0.5), ("silu", 0.0, 0.5), ("bloom_gelu", 0.0, 0.5), ("mish", 0.0, 0.6), ("sigmoid", 0.0, 0.25),
    ],
)  # fmt: skip
def test_gradients_at_corners_and_zero(name: str, x: float, gradient: float) -> None:
    """At a corner torch's choice: of the two slopes the left one, but at 6 the right one."""
    _, found = value_and_gradient(name, numpy.array([x]))
    numpy.testing.assert_allclose(found, [gradient], rtol=1e-15)


@pytest.mark.parametrize("name", BY_NAME)
def test_nan_stays_nan(name: str) -> None:
    values, _ = value_and_gradient(name, numpy.array([numpy.nan, 1.0]))
    assert list(numpy.isnan(values)) == [True, False]


def test_softplus() -> None:
    x = numpy.array([-1e4, -40.0, -1.0, 0.0, 1.0, 40.0, 1e4])
    values = activations.softplus(x)
    expected = [
        0.0,
        math.exp(-40),
        math.log1p(math.exp(-1)),
        math.log(2),
        1 + math.log1p(math.exp(-1)),
        40.0,
        1e4,
    ]
    numpy.testing.assert_allclose(values, expected, rtol=4e-16)
    _, gradient = arrays.value_and_grad(lambda p: arrays.sum(activations.softplus(p["x"])), {"x": x})
    expected = [0.0, *(sigmoid(value) for value in x[1:-1]), 1.0]
    numpy.testing.assert_allclose(gradient["x"], expected, rtol=4e-16)


@pytest.mark.parametrize("name", ["gelu_10", "prelu", "GELU", ""])
def test_an_unknown_activation(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        activations.activation(name)
    assert str(caught.value) == (
        f"The base model's activation is {name!r}; refpeft computes gelu, gelu_accurate, gelu_fast, gelu_new, "
        "gelu_python, gelu_python_tanh, gelu_pytorch_tanh, leaky_relu, linear, mish, quick_gelu, relu, relu2, relu6, "
        "sigmoid, silu, swish, tanh. Use a base model with one of these."
    )
