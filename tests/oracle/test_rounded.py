"""Arrays of narrow formats: every operation in float32, rounded as the format says."""

from __future__ import annotations

import math

import ml_dtypes
import numpy
import pytest
from numpy.typing import NDArray

from refpeft import arrays
from refpeft.oracle import rounded
from refpeft.oracle.rounded import (
    FORMATS,
    TF32,
    BFloat16,
    BFloat16Throughout,
    Float16,
    Rounded,
    to_bfloat16,
    to_tf32,
)

RANDOM = numpy.random.default_rng(0)
rounded.register(BFloat16)


def drawn(*shape: int) -> BFloat16:
    return BFloat16(to_bfloat16(RANDOM.normal(size=shape)))


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
    assert float(to_bfloat16(BFloat16.largest)) == BFloat16.largest
    assert float(ml_dtypes.finfo("bfloat16").max) == BFloat16.largest  # type: ignore[no-untyped-call]


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
    ones = BFloat16(numpy.ones((1, 4096), "float32"))
    assert numpy.sum(ones).value == (ones @ BFloat16(numpy.ones((4096, 1), "float32"))).value[0, 0] == 4096


def test_the_error_function_is_one_operation() -> None:
    x = drawn(200)
    exact = numpy.array([math.erf(v) for v in x.value.tolist()], "float32")
    assert (arrays.erf(x).value == nearest(exact)).all()


def test_what_hides_a_key_is_finite() -> None:
    hidden = arrays.full((2,), arrays.most_negative("float64"), "float64", like=drawn(1))
    assert hidden.value.tolist() == [-BFloat16.largest] * 2
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
            rounded.closed(rounded.opened(p["x"]) * rounded.opened(p["x"]) * numpy.float32(1 / 3), BFloat16)
        )

    _, gradients = arrays.value_and_grad(within, {"x": x})
    third = numpy.float32(1 / 3) * x.value
    assert (gradients["x"].value == nearest(third + third)).all()
    assert rounded.opened(x.value) is x.value


@pytest.mark.parametrize("seed", [1, 2])
def test_inputs_are_moved_to_a_neighbour_at_most(seed: int) -> None:
    x = drawn(2000).value
    moved = rounded.moved(BFloat16, seed, x)
    up, down = (numpy.nextafter(x.astype("bfloat16"), numpy.full_like(x, to, dtype="bfloat16")).astype("float32") for to in (math.inf, -math.inf))  # fmt: skip
    parts = [(moved == choice).mean() for choice in (x, up, down)]
    assert parts == pytest.approx([0.5, 0.25, 0.25], abs=0.04)
    assert sum(parts) == 1
    assert not (moved == rounded.moved(BFloat16, seed + 2, x)).all()


# ---------------------------------------------------------------- the other formats


def test_tf32_has_eleven_bits_and_halves_go_to_even() -> None:
    u = 2.0**-11
    given = [1.0, 1 + u, 1 + 3 * u, 1 + u * 1.01, -(1 + u * 1.01), 0.0]
    assert to_tf32(given).tolist() == [1.0, 1.0, 1 + 4 * u, 1 + 2 * u, -(1 + 2 * u), 0.0]
    assert abs(to_tf32(3e38).item() / 3e38 - 1) < u
    assert to_tf32([math.inf, -math.inf]).tolist() == [math.inf, -math.inf]
    assert math.isnan(to_tf32([math.nan]).item())
    x = RANDOM.normal(size=10_000).astype("float32")
    significand, exponent = numpy.frexp(x.astype("float64"))
    assert (to_tf32(x) == numpy.ldexp(numpy.rint(significand * 2048), exponent - 11)).all()


def test_only_products_are_narrow_in_tf32() -> None:
    x, y = (RANDOM.normal(size=(4, 4)).astype("float32") for _ in range(2))
    assert ((TF32(x) * y).value == x * y).all()
    assert (numpy.exp(TF32(x)).value == numpy.exp(x)).all()
    assert ((TF32(x) @ TF32(y)).value == to_tf32(x) @ to_tf32(y)).all()
    assert ((TF32(x) @ TF32(y)).value != x @ y).any()


def test_float16_overflows_where_it_must_and_hides_with_its_own_largest() -> None:
    assert Float16.of([65504.0, 65520.0, 1e-9]).value.tolist() == [65504.0, math.inf, 0.0]
    rounded.register(Float16)
    hidden = arrays.full((1,), arrays.most_negative("float64"), "float64", like=Float16.of([1.0]))
    assert hidden.value.tolist() == [-65504.0]


def test_a_format_that_adds_up_narrowly() -> None:
    """4096 ones in bfloat16, one after the other, come to 256: the next is half a unit away, and goes to even."""
    ones = BFloat16Throughout.of(numpy.ones((1, 4096)))
    assert numpy.sum(ones).value == (ones @ BFloat16Throughout.of(numpy.ones((4096, 1)))).value == 256
    assert numpy.mean(ones).value == 256 / 4096
    x = BFloat16Throughout.of(RANDOM.normal(size=(2, 3, 5)))
    assert numpy.sum(x, axis=(0, 2), keepdims=True).shape == (1, 3, 1)
    exact = x.value.sum(axis=(0, 2))
    assert numpy.abs(numpy.sum(x, axis=(0, 2)).value - exact).max() < 10 * 2.0**-8 * numpy.abs(x.value).sum()
    y = BFloat16Throughout.of(RANDOM.normal(size=(2, 5, 4)))
    assert (x @ y).shape == (2, 3, 4)
    assert (
        numpy.abs((x @ y).value - x.value @ y.value).max()
        < 5 * 2.0**-8 * numpy.abs(x.value @ y.value).max() * 5
    )


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_computes_gradients(name: str) -> None:
    kind = FORMATS[name]
    rounded.register(kind)
    x = kind.of(RANDOM.normal(size=(3, 4)))
    w = kind.of(RANDOM.normal(size=(4, 2)))
    value, gradients = arrays.value_and_grad(lambda p: arrays.sum(arrays.tanh(p["x"] @ w)), {"x": x})
    exact = (1 - numpy.tanh(x.value.astype(float) @ w.value) ** 2) @ w.value.T
    assert isinstance(gradients["x"], kind)
    assert isinstance(value, kind)
    assert numpy.abs(gradients["x"].value - exact).max() < 0.05


def test_neighbours_in_tf32() -> None:
    u = 2.0**-10
    x = numpy.array([1.0, -1.0, 0.0, 1 + u], "float32")
    assert TF32.neighbour(x, numpy.array([True] * 4)).tolist() == [1 + u, -1 + u / 2, 0.0, 1 + 2 * u]
    assert TF32.neighbour(x, numpy.array([False] * 4)).tolist() == [1 - u / 2, -1 - u, 0.0, 1.0]
