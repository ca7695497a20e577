"""The error function against exact values, the C library's and mpmath's, in every dtype."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import need

from refpeft.error_function import erf, slope

TABLE = (
    ("0x1.0000000000000p-30", "1.0508849910418620086926234e-9"),
    ("0x1.0000000000000p-10", "1.1019324300718147041712535e-3"),
    ("0x1.0000000000000p-4", "7.0431977722387078050590056e-2"),
    ("0x1.0000000000000p-3", "1.4031620480133381739302945e-1"),
    ("0x1.0000000000000p-2", "2.7632639016823693298506827e-1"),
    ("0x1.8000000000000p-2", "4.0411690943482229832382509e-1"),
    ("0x1.0000000000000p-1", "5.2049987781304653768274665e-1"),
    ("0x1.4000000000000p-1", "6.2324088218841797244864051e-1"),
    ("0x1.8000000000000p-1", "7.1115563365351513159893783e-1"),
    ("0x1.b000000000000p-1", "7.6722566123234163345897816e-1"),
    ("0x1.c000000000000p-1", "7.8407506105985965831453572e-1"),
    ("0x1.f000000000000p-1", "8.2931915059331512739041155e-1"),
    ("0x1.0000000000000p+0", "8.4270079294971486934122064e-1"),
    ("0x1.0000100000000p+0", "8.4270118882669616908650541e-1"),
    ("0x1.1000000000000p+0", "8.6705826943495275538384645e-1"),
    ("0x1.2000000000000p+0", "8.8838823170170776406957845e-1"),
    ("0x1.4000000000000p+0", "9.2290012825645823013652348e-1"),
    ("0x1.8000000000000p+0", "9.6610514647531072706697626e-1"),
    ("0x1.c000000000000p+0", "9.8667167121918244377221110e-1"),
    ("0x1.0000000000000p+1", "9.9532226501895273416206926e-1"),
    ("0x1.4000000000000p+1", "9.9959304798255504106043578e-1"),
    ("0x1.8000000000000p+1", "9.9997790950300141455862722e-1"),
    ("0x1.c000000000000p+1", "9.9999925690162765858725448e-1"),
    ("0x1.0000000000000p+2", "9.9999998458274209971998115e-1"),
    ("0x1.4000000000000p+2", "9.9999999999846254020557197e-1"),
    ("0x1.7800000000000p+2", "9.9999999999999990308444355e-1"),
    ("0x1.a000000000000p+2", "9.9999999999999999996157852e-1"),
)
"""A number, and its error function to 26 digits (mpmath 1.3, 50 digits)."""
DTYPES = ["float32", "float64", "longdouble"]
TIGHT = 2.0**-66
"""How exact the formula itself is, whatever long double is."""


def unit(x: Any) -> Any:
    """The unit in the last place of each number (`numpy.spacing` warns in long double)."""
    return numpy.ldexp(numpy.finfo(x.dtype).eps, numpy.frexp(x)[1] - 1)


def ulps(given: Any, expected: Any) -> float:
    """The largest error in units in the last place of what is expected, both in one dtype."""
    return float(numpy.max(numpy.abs(given - expected) / unit(expected)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_values(dtype: str) -> None:
    """Rounding what is exact costs half a unit of the two that are allowed."""
    formula = TIGHT if numpy.finfo(dtype).eps < TIGHT else 0.0
    x = numpy.array([float.fromhex(text) for text, _ in TABLE], dtype=dtype)
    expected = numpy.array([numpy.dtype(dtype).type(text) for _, text in TABLE])
    for sign in (1, -1):
        values = erf(sign * x)
        assert values.dtype == numpy.dtype(dtype)
        assert numpy.all(numpy.abs(values - sign * expected) <= 2 * unit(expected) + formula)


def everywhere(count: int) -> Any:
    """Numbers of both signs: all that matter, around where the formula changes, and tiny ones."""
    random = numpy.random.default_rng(11)
    x = [random.uniform(0.0, 7.0, count), random.uniform(0.9, 1.1, count)]
    x += [10 ** random.uniform(-300, 0, count), numpy.nextafter([1.0, 1.0, 6.75, 6.75], [0.0, 2.0, 0.0, 9.0])]
    x = numpy.concatenate(x)
    return x * random.choice([-1.0, 1.0], x.shape)


def test_the_c_library_s_values() -> None:
    """Its own are within one unit; these within two."""
    x = everywhere(4000)
    expected = numpy.array([math.erf(value) for value in x])
    assert ulps(erf(x), expected) <= 2
    x = x[numpy.abs(x) > 1e-30].astype(numpy.float32)
    expected = numpy.array([math.erf(value) for value in x]).astype(numpy.float32)
    assert ulps(erf(x), expected) <= 2


def test_mpmath_s_values_in_long_double() -> None:
    mpmath = need("mpmath")
    if numpy.finfo(numpy.longdouble).eps > 2.0**-60:
        pytest.skip("long double is no wider than float64 here")
    x = everywhere(300).astype(numpy.longdouble)
    x = x[numpy.abs(x) > 1e-30] * (1 + numpy.longdouble(2.0) ** -59)  # bits that float64 does not have
    with mpmath.workdps(40):
        for value, found, gradient in zip(x, erf(x), slope(x), strict=True):
            exact = mpmath.erf(precise(mpmath, value))
            assert abs(precise(mpmath, found) / exact - 1) < 2**-63
            exact = 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-(precise(mpmath, value) ** 2))
            assert abs(precise(mpmath, gradient) / exact - 1) < 2**-63 * (1 + float(value) ** 2)


def precise(mpmath: Any, value: Any) -> Any:
    """A long double as mpmath has it, bit for bit."""
    high = float(value)
    return mpmath.mpf(high) + mpmath.mpf(float(value - numpy.longdouble(high)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_slope(dtype: str) -> None:
    """Squaring rounds, and exp multiplies that rounding by x²."""
    x = everywhere(500).astype(dtype)
    expected = 2 / numpy.sqrt(numpy.longdouble(math.pi)) * numpy.exp(-(x.astype(numpy.longdouble) ** 2))
    values = slope(x)
    assert values.dtype == numpy.dtype(dtype)
    u = max(float(numpy.finfo(dtype).eps), 2.0**-53)  # math.pi has no more digits
    assert numpy.all(numpy.abs(values / expected - 1) <= u * (2 + x.astype(float) ** 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes(dtype: str) -> None:
    """Without a warning."""
    largest, smallest = numpy.finfo(dtype).max, numpy.finfo(dtype).smallest_subnormal
    x = numpy.array([numpy.inf, largest, 200, 0, -0.0, -200, -largest, -numpy.inf, numpy.nan], dtype=dtype)
    numpy.testing.assert_array_equal(erf(x), [1, 1, 1, 0, -0.0, -1, -1, -1, numpy.nan])
    assert list(numpy.signbit(erf(x))) == list(numpy.signbit(x))
    at_zero = numpy.dtype(dtype).type("1.1283791670955125738961589")
    numpy.testing.assert_array_equal(slope(x), [0, 0, 0, at_zero, at_zero, 0, 0, 0, numpy.nan])
    tiny = numpy.array([smallest, 1000 * smallest])
    numpy.testing.assert_array_equal(erf(tiny), [smallest, 1128 * smallest])


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_number_without_an_axis(dtype: str) -> None:
    for x in (numpy.dtype(dtype).type(0.5), numpy.array(0.5, dtype)):
        for value in (erf(x), slope(x)):
            assert value.dtype == numpy.dtype(dtype)
            assert value.shape == ()


@given(st.floats(-8, 8), st.floats(-8, 8))
def test_it_is_odd_and_rises(low: float, high: float) -> None:
    """Rises up to rounding: the two formulas meet at 1 within two units."""
    low, high = sorted((low, high))
    x = numpy.array([low, high, -low, -high])
    values = erf(x)
    assert values[0] == -values[2]
    assert values[1] == -values[3]
    assert values[0] <= values[1] + 2 * unit(values[1])
