"""Arrays of bfloat16: every operation in float32, rounded once."""

from __future__ import annotations

import math

import ml_dtypes
import numpy
import pytest
from numpy.typing import NDArray

from refpeft import arrays
from refpeft.oracle import rounded
from refpeft.oracle.rounded import Rounded, to_bfloat16

RANDOM = numpy.random.default_rng(0)
rounded.register()


def drawn(*shape: int) -> Rounded:
    return Rounded(to_bfloat16(RANDOM.normal(size=shape)))


def nearest(x: NDArray[numpy.float32]) -> NDArray[numpy.float32]:
    """Rounded to 8 significant bits, half to even."""
    significand, exponent = numpy.frexp(x.astype(numpy.float64))
    return numpy.ldexp(numpy.rint(significand * 256), exponent - 8).astype(numpy.float32)


def test_the_format() -> None:
    assert to_bfloat16([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1e39]).tolist() == [
        1.0,
        1.0,
        1 + 2.0**-6,
        -math.inf,
    ]
    assert float(to_bfloat16(rounded.LARGEST)) == rounded.LARGEST
    assert float(ml_dtypes.finfo("bfloat16").max) == rounded.LARGEST  # type: ignore[no-untyped-call]


def test_every_operation_is_rounded_once() -> None:
    x, y = drawn(3, 50), drawn(50, 4)
    for given, exact in (
        (x * x, x.value * x.value), (numpy.exp(x), numpy.exp(x.value)), (x @ y, x.value @ y.value),
        (numpy.sum(x, axis=1), x.value.sum(axis=1)), (x / 3.0, x.value / 3), (2.0 - x, 2 - x.value),
        (x + y.value.T[:3], x.value + y.value.T[:3]), (numpy.float32(0.1) * x, nearest(numpy.full((), 0.1, "float32")) * x.value),
    ):  # fmt: skip
        assert isinstance(given, Rounded)
        assert given.value.dtype == numpy.float32
        assert (given.value == nearest(exact)).all()
    assert (x > 0).dtype == bool, "what decides is no number of the format"


def test_sums_are_added_up_in_float32() -> None:
    ones = Rounded(numpy.ones((1, 4096), "float32"))
    assert numpy.sum(ones).value == (ones @ Rounded(numpy.ones((4096, 1), "float32"))).value[0, 0] == 4096


def test_the_error_function_is_one_operation() -> None:
    x = drawn(200)
    exact = numpy.array([math.erf(v) for v in x.value.tolist()], "float32")
    assert (arrays.erf(x).value == nearest(exact)).all()


def test_what_hides_a_key_is_finite() -> None:
    hidden = arrays.full((2,), arrays.most_negative("float64"), "float64", like=drawn(1))
    assert hidden.value.tolist() == [-rounded.LARGEST] * 2
    assert numpy.isfinite((hidden * 1.0).value).all()


def test_gradients_are_rounded_too() -> None:
    x = drawn(5)
    value, gradients = arrays.value_and_grad(lambda p: arrays.sum(arrays.erf(p["x"]) * p["x"]), {"x": x})
    x64 = x.value.astype("float64")
    slope = 2 / math.sqrt(math.pi) * numpy.exp(-(x64**2))
    exact = slope * x64 + numpy.array([math.erf(v) for v in x64])
    assert isinstance(gradients["x"], Rounded)
    assert isinstance(value, Rounded)
    assert numpy.abs(gradients["x"].value / exact - 1).max() < 4 * 2.0**-8
    assert (gradients["x"].value == nearest(gradients["x"].value)).all()


def test_an_island_in_float32() -> None:
    """Nothing is rounded between opening and closing, forwards or backwards."""
    x = drawn(6)

    def within(p: arrays.Parameters) -> arrays.Array:
        return arrays.sum(
            rounded.closed(rounded.opened(p["x"]) * rounded.opened(p["x"]) * numpy.float32(1 / 3))
        )

    _, gradients = arrays.value_and_grad(within, {"x": x})
    third = numpy.float32(1 / 3) * x.value
    assert (gradients["x"].value == nearest(third + third)).all()
    assert rounded.opened(x.value) is x.value


@pytest.mark.parametrize("seed", [1, 2])
def test_inputs_are_moved_to_a_neighbour_at_most(seed: int) -> None:
    x = drawn(2000).value
    moved = rounded.moved(seed, x)
    up, down = (numpy.nextafter(x.astype("bfloat16"), numpy.full_like(x, to, dtype="bfloat16")).astype("float32") for to in (math.inf, -math.inf))  # fmt: skip
    parts = [(moved == choice).mean() for choice in (x, up, down)]
    assert parts == pytest.approx([0.5, 0.25, 0.25], abs=0.04)
    assert sum(parts) == 1
    assert not (moved == rounded.moved(seed + 2, x)).all()
