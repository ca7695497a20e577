"""Arrays of a narrow number format, simulated: every operation is computed in float32 and rounded as a processor does it.

A format has three roundings. Results are *stored* in one format; the factors of a matrix product are *computed* with in
another, perhaps narrower one (TF32); and its terms are *accumulated* in a third. That is what people train on: a bfloat16
kernel reads and writes bfloat16 and adds products up in float32. NumPy's own half-precision arithmetic is no model of it:
4096 ones, added up one by one in bfloat16, come to 256.

What the families compute in float32 whatever the format (rotary angles, the loss: clause JG-4) is taken out with `opened`
and put back with `closed`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import ml_dtypes
import numpy

from refpeft import arrays
from refpeft.oracle.wrapped import Wrapped, plain

Rounding = Callable[[Any], Any]


def _through(dtype: Any) -> Rounding:
    """Each entry as the nearest number of a format, held in float32."""

    def nearest(x: Any) -> Any:
        with numpy.errstate(over="ignore", invalid="ignore"):
            return numpy.asarray(x, numpy.float32).astype(dtype).astype(numpy.float32)

    return nearest


to_bfloat16 = _through(ml_dtypes.bfloat16)
to_float16 = _through(numpy.float16)


def to_float32(x: Any) -> Any:
    """Each entry as the nearest float32."""
    with numpy.errstate(over="ignore", invalid="ignore"):
        return numpy.asarray(x, numpy.float32)


def to_tf32(x: Any) -> Any:
    """Each entry with 11 significant bits, halves to even, and float32's exponents."""
    bits = to_float32(x).view(numpy.uint32)
    half = numpy.uint32(0x0FFF) + ((bits >> numpy.uint32(13)) & numpy.uint32(1))
    rounded = ((bits + half) & numpy.uint32(0xFFFFE000)).view(numpy.float32)
    return numpy.where(numpy.isfinite(x), rounded, to_float32(x))


def _next(dtype: Any) -> Callable[[Any, Any], Any]:
    """The next number of a format, up where `up` says so."""

    def neighbour(x: Any, up: Any) -> Any:
        narrow = x.astype(dtype)
        with numpy.errstate(over="ignore"):
            towards = numpy.where(up, numpy.inf, -numpy.inf).astype(dtype)
            return numpy.nextafter(narrow, towards).astype(numpy.float32)

    return neighbour


def _next_tf32(x: Any, up: Any) -> Any:
    """Likewise, with 11 significant bits; 0 stays."""
    bits = to_tf32(x).view(numpy.uint32)
    away = numpy.asarray(up) == (x > 0)  # from zero
    moved = numpy.where(away, bits + numpy.uint32(0x2000), bits - numpy.uint32(0x2000))
    return numpy.where(x == 0, x, moved.astype(numpy.uint32).view(numpy.float32))


class Rounded(Wrapped):
    """An array of numbers of a format, held in float32. Each format is a subclass."""

    __slots__ = ()
    store: ClassVar[staticmethod[[Any], Any]]
    """What every result is rounded by."""
    compute: ClassVar[staticmethod[[Any], Any]] = staticmethod(to_float32)
    """What the factors of a matrix product are rounded by."""
    accumulate: ClassVar[staticmethod[[Any], Any] | None] = None
    """What the sum is rounded by after each of its terms; None: they are added up in float32."""
    largest: ClassVar[float]
    """The largest number; its opposite is what hides a key."""
    neighbour: ClassVar[staticmethod[[Any, Any], Any]]
    """(numbers of the format, where to go up) -> the next number of the format in that direction."""

    @classmethod
    def of(cls, x: Any) -> Rounded:
        """Whatever numbers, rounded to the format."""
        return cls(cls.store(x))

    def astype(self, dtype: Any) -> Rounded:
        """The format stays: whatever a step asks for, it gets this one."""
        return self

    def as_one_operation(self, function: Callable[[Any], Any]) -> Rounded:
        """What NumPy lacks, and a kernel does at once."""
        return self.of(function(self.value))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or not self.knows(inputs):
            return NotImplemented
        given = [self._operand(x) for x in inputs]
        if ufunc is numpy.matmul:
            return self.of(self._product(*map(type(self).compute, given)))
        return self._again(ufunc(*given, **kwargs))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        given, named = plain(args), {name: plain(value) for name, value in kwargs.items()}
        if function is numpy.full_like and numpy.dtype(named["dtype"]).kind == "f":
            given, named["dtype"] = (given[0], max(given[1], -self.largest)), numpy.float32
        if function in (numpy.sum, numpy.mean) and self.accumulate is not None:
            return self._summed(function, *given, **named)
        return self._again(function(*given, **named))

    def _operand(self, x: Any) -> Any:
        """Real numbers with an axis come in the format, so that they widen nothing."""
        x = plain(x)
        real = isinstance(x, numpy.ndarray | numpy.generic) and x.dtype.kind == "f"
        return type(self).store(x) if real else x

    def _again(self, result: Any) -> Any:
        if isinstance(result, numpy.ndarray | numpy.generic) and result.dtype.kind == "f":
            return self.of(result)
        return result

    def _product(self, left: Any, right: Any) -> Any:
        """The sum over the last axis of `left`, rounded after each term if the format says so."""
        accumulate = type(self).accumulate
        if accumulate is None:
            return left @ right
        terms = left[..., :, :, None] * right[..., None, :, :]
        return _added_up(numpy.moveaxis(terms, -2, 0), accumulate)

    def _summed(self, function: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Rounded:
        """A sum or a mean, term by term."""
        accumulate = type(self).accumulate
        assert accumulate is not None  # noqa: S101  (else nobody calls this)
        axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        axes = tuple(a % x.ndim for a in axes)
        rest = [a for a in range(x.ndim) if a not in axes]
        terms = numpy.transpose(x, (*axes, *rest)).reshape(-1, *(x.shape[a] for a in rest))
        total = _added_up(terms, accumulate)
        total = total / numpy.float32(len(terms)) if function is numpy.mean else total
        kept = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
        return self.of(total.reshape(kept) if keepdims else total)


def _added_up(terms: Any, accumulate: Rounding) -> Any:
    """The sum over the first axis."""
    total = accumulate(terms[0])
    for term in terms[1:]:
        total = accumulate(total + term)
    return total


class BFloat16(Rounded):
    """8 significant bits, float32's exponents; products added up in float32."""

    __slots__ = ()
    store = staticmethod(to_bfloat16)
    largest = float(2.0**128 - 2.0**120)
    neighbour = staticmethod(_next(ml_dtypes.bfloat16))


class Float16(Rounded):
    """11 significant bits, numbers up to 65504; products added up in float32."""

    __slots__ = ()
    store = staticmethod(to_float16)
    largest = 65504.0
    neighbour = staticmethod(_next(numpy.float16))


class TF32(Rounded):
    """float32, but the factors of matrix products have 11 significant bits: what NVIDIA's tensor cores make of float32."""

    __slots__ = ()
    store = staticmethod(to_float32)
    compute = staticmethod(to_tf32)
    largest = float(numpy.finfo(numpy.float32).max)
    neighbour = staticmethod(_next_tf32)


class BFloat16Throughout(BFloat16):
    """bfloat16, products added up in bfloat16 too: the worst that a port may do and be honest."""

    __slots__ = ()
    accumulate = staticmethod(to_bfloat16)


FORMATS: dict[str, type[Rounded]] = {"bfloat16": BFloat16, "float16": Float16, "tf32": TF32}
"""The formats that are simulated, by the profiles that have them (clause JG-4)."""


@arrays.primitive
def opened(x: Any) -> Any:
    """A rounded array as the float32 numbers that it holds; anything else as it is."""
    return x.value if isinstance(x, Rounded) else x


arrays.defvjp(opened, lambda ans, x: lambda g: type(x).of(g) if isinstance(x, Rounded) else g)


@arrays.primitive
def closed(x: Any, kind: type[Rounded]) -> Any:
    """A float32 array rounded."""
    return kind.of(x)


arrays.defvjp(closed, lambda ans, x, kind: opened)


def moved(kind: type[Rounded], seed: int, array: Any) -> Any:
    """Moves each entry to a neighbour at most: half stay, a quarter go up, a quarter down.

    In TF32 these are its own neighbours too: other roundings of factors is what an honest port differs by.
    """
    random = numpy.random.default_rng(seed)
    where = random.integers(0, 4, size=array.shape)
    narrow = kind.store(array)
    return numpy.where(where < 2, kind.neighbour(narrow, where == 1), narrow).astype(numpy.float32)


@functools.cache
def register(kind: type[Rounded]) -> None:
    """Let autograd trace arrays of a format."""
    arrays.register(kind, opened)
