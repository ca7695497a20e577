"""Arrays of a narrow number format, simulated: every operation is computed in float32 and rounded once.

So do the processors that people train on: what a bfloat16 kernel reads and writes is bfloat16, and it adds up products in
float32. NumPy's own half-precision arithmetic is no model of that: it rounds after each addition.

What the families compute in float32 whatever the format (rotary angles, the loss: clause JG-4) is taken out with `opened`
and put back with `closed`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy

from refpeft import arrays
from refpeft.oracle.wrapped import Wrapped, plain


def to_bfloat16(x: Any) -> Any:
    """Each entry as the nearest bfloat16, held in float32."""
    with numpy.errstate(over="ignore", invalid="ignore"):
        return numpy.asarray(x, numpy.float32).astype(ml_dtypes.bfloat16).astype(numpy.float32)


LARGEST = float(2.0**128 - 2.0**120)
"""Of bfloat16; its opposite is what hides a key."""


class Rounded(Wrapped):
    """An array of bfloat16 numbers, held in float32."""

    __slots__ = ()

    def astype(self, dtype: Any) -> Rounded:
        """The format stays: whatever a step asks for, it gets bfloat16."""
        return self

    def as_one_operation(self, function: Callable[[Any], Any]) -> Rounded:
        """What NumPy lacks, and a kernel does at once."""
        return Rounded(to_bfloat16(function(self.value)))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or not self.knows(inputs):
            return NotImplemented
        return _again(ufunc(*map(_narrow, inputs), **kwargs))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        given, named = plain(args), {name: plain(value) for name, value in kwargs.items()}
        if function is numpy.full_like and numpy.dtype(named["dtype"]).kind == "f":
            given, named["dtype"] = (given[0], max(given[1], -LARGEST)), numpy.float32
        return _again(function(*given, **named))


def _narrow(x: Any) -> Any:
    """An operand: real numbers with an axis come in the format, so that they widen nothing."""
    x = plain(x)
    return to_bfloat16(x) if isinstance(x, numpy.ndarray | numpy.generic) and x.dtype.kind == "f" else x


def _again(result: Any) -> Any:
    if isinstance(result, numpy.ndarray | numpy.generic) and result.dtype.kind == "f":
        return Rounded(to_bfloat16(result))
    return result


@arrays.primitive
def opened(x: Any) -> Any:
    """A rounded array as the float32 numbers that it holds; anything else as it is."""
    return x.value if isinstance(x, Rounded) else x


arrays.defvjp(opened, lambda ans, x: lambda g: Rounded(to_bfloat16(g)) if isinstance(x, Rounded) else g)


@arrays.primitive
def closed(x: Any) -> Any:
    """A float32 array rounded."""
    return Rounded(to_bfloat16(x))


arrays.defvjp(closed, lambda ans, x: opened)


def moved(seed: int, array: Any) -> Any:
    """Moves each entry to a neighbour at most: half stay, a quarter go up, a quarter down."""
    random = numpy.random.default_rng(seed)
    where = random.integers(0, 4, size=array.shape)
    narrow = array.astype(ml_dtypes.bfloat16)
    towards = numpy.where(where == 0, -numpy.inf, numpy.inf).astype(ml_dtypes.bfloat16)
    neighbours = numpy.nextafter(narrow, towards).astype(numpy.float32)
    return numpy.where(where < 2, neighbours, narrow.astype(numpy.float32))


@functools.cache
def register() -> None:
    """Let autograd trace rounded arrays."""
    arrays.register(Rounded, opened)
