"""The error function, which NumPy lacks: `erf(x) = 2/√π · ∫₀ˣ exp(−t²) dt`, from NumPy's elementwise functions alone.

Two polynomials, written for this file: Chebyshev's interpolants of 14 and 18 points, expanded in powers. With y(t) and
q(u) for them,

    |x| ≤ 1:          erf x = x + x · y(x²)                    error of the formula: 2.5e-21 of erf x
    1 < |x| ≤ 6.75:   erf x = ±(1 − exp(−x²) · q(u))           error of the formula: 1.3e-20
                      with u = 14.75 / (|x| + 3.25) − 2.46875, in [−1, 1]

so rounding decides: the answer is within 1.5 units in the last place in float32, float64 and x86's long double, worst just
above 1. Beyond 6.75 the answer is that of 6.75, which is ±1. A long double of more bits than x86's is exact to 2e-20 only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy

_NEAR = (
    "1.283791670955125738940e-1", "-3.761263890318375237861e-1", "1.128379167095512023576e-1",
    "-2.686617064512984080593e-2", "5.223977625423298308713e-3", "-8.548327021934829595514e-4",
    "1.205533290288873541028e-4", "-1.492564756751933212546e-5", "1.646204544146841893689e-6",
    "-1.636464215816761530213e-7", "1.479240120940481300213e-8", "-1.216456005728345008101e-9",
    "8.709045129053106689605e-11", "-4.230945824295337817343e-12",
)  # fmt: skip
"""y's coefficients, from the constant upwards: of `erf(√t)/√t − 1` for t in [0, 1]."""
_FAR = (
    "1.952758098653738293850e-1", "1.554920512983660748554e-1", "5.542105406092295116862e-2",
    "1.621946325853508940423e-2", "3.803446086976754739333e-3", "6.768374936320354146090e-4",
    "7.903935213027272396210e-5", "2.457082089650647434338e-6", "-1.002306914515334281210e-6",
    "-1.517198189712780814160e-7", "7.735392976990481661188e-9", "3.843091661349785349770e-9",
    "-7.408329197864142073539e-12", "-9.652438276404070994992e-11", "-1.071117601681920832970e-12",
    "2.659120434427868974935e-12", "2.089246898203051742274e-15", "-7.006211594261061250180e-14",
)  # fmt: skip
"""q's coefficients, from the constant upwards: of `exp(x²) · (1 − erf x)` for x in [1, 6.75]."""
_TWO_OVER_ROOT_PI = "1.128379167095512573896"
_FARTHEST = 6.75
_SLOPE_IS_ZERO = 128.0
"""exp(−128²) is 0 in every format, and 128² overflows in none."""


@functools.cache
def _numbers(texts: tuple[str, ...], long: bool) -> tuple[Any, ...]:
    """Decimals as numbers: Python's floats, which take an array's own dtype, or long doubles."""
    return tuple(map(numpy.longdouble if long else float, texts))


def _is_long(x: Any) -> bool:
    return bool(numpy.dtype(x.dtype).itemsize > numpy.dtype(numpy.float64).itemsize)


def _polynomial(coefficients: Sequence[Any], x: Any) -> Any:
    """Horner's rule; the constant comes first."""
    value = coefficients[-1] * x + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = value * x + coefficient
    return value


def erf(x: Any) -> Any:
    """The error function of each entry, in the dtype and on the device of `x`."""
    long = _is_long(x)
    near = numpy.maximum(numpy.minimum(x, 1.0), -1.0)
    near = near + near * _polynomial(_numbers(_NEAR, long), near * near)
    far = numpy.minimum(numpy.abs(x), _FARTHEST)
    tail = _polynomial(_numbers(_FAR, long), 14.75 / (far + 3.25) - 2.46875)
    return numpy.where(far > 1.0, numpy.copysign(1.0 - numpy.exp(-(far * far)) * tail, x), near)


def slope(x: Any) -> Any:
    """The derivative of `erf` at each entry: `2/√π · exp(−x²)`."""
    (scale,) = _numbers((_TWO_OVER_ROOT_PI,), _is_long(x))
    size = numpy.minimum(numpy.abs(x), _SLOPE_IS_ZERO)
    return scale * numpy.exp(-(size * size))
