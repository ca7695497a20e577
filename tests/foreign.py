"""`Foreign`: a strict stand-in for arrays that live elsewhere, to show that nothing passes the host.

It answers NumPy's two protocols and nothing more. What an array on a GPU would refuse, or would do by a copy
through host memory, is a TypeError here: conversion to an ndarray or a Python number, iteration, and mixing with
ndarrays. So is what CuPy 14 does not have, or has otherwise (`FUNCTIONS`, `UFUNCS`, `@`); that it has the rest is
looked at in test_gpu.py.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy
from numpy.lib.mixins import NDArrayOperatorsMixin

from refpeft import arrays

FUNCTIONS = {
    "arange": "dtype",
    "broadcast_to": "",
    "concatenate": "axis",
    "cumsum": "axis",
    "expand_dims": "",
    "full_like": "dtype shape",
    "iscomplexobj": "",
    "max": "axis keepdims",
    "mean": "axis keepdims",
    "ndim": "",
    "ones_like": "",
    "reshape": "",
    "result_type": "",
    "shape": "",
    "sum": "axis keepdims",
    "swapaxes": "",
    "take_along_axis": "axis",
    "transpose": "",
    "where": "",
    "zeros_like": "",
}
"""The functions of NumPy that may be called, and what may be given by name: CuPy has all of it. What is not used is not here."""
UFUNCS = {
    *("absolute", "add", "bitwise_and", "copysign", "cos", "divide", "equal", "exp", "greater", "greater_equal", "invert", "less"),
    *("less_equal", "log", "log1p", "matmul", "maximum", "minimum", "multiply", "negative", "not_equal", "power", "sin", "sqrt"),
    *("square", "subtract", "tanh"),
}  # fmt: skip
"""NumPy's elementwise functions that may be called, and the matrix product: CuPy has them under the same names."""


class Foreign(NDArrayOperatorsMixin):
    """Holds an ndarray and never hands it out; `fetch` is how a test looks inside."""

    __hash__ = None
    __iter__ = None

    def __init__(self, held: Any) -> None:
        if not isinstance(held, numpy.ndarray | numpy.generic):
            raise TypeError(f"a Foreign array holds an ndarray, not a {type(held).__name__}")
        self._held = numpy.asarray(held)

    shape = property(lambda self: self._held.shape)
    ndim = property(lambda self: self._held.ndim)
    size = property(lambda self: self._held.size)
    dtype = property(lambda self: self._held.dtype)

    def astype(self, dtype: Any) -> Foreign:
        return type(self)(self._held.astype(dtype))

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: Any) -> Foreign:
        entries = index if isinstance(index, tuple) else (index,)
        return type(self)(self._held[tuple(_index_entry(entry) for entry in entries)])

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a Foreign array does not leave the place where it lives")

    __float__ = __int__ = __bool__ = __index__ = __array__

    def __matmul__(self, other: Any) -> Foreign:
        if not isinstance(other, Foreign):  # CuPy's takes everything for an array, and fails with boxes
            raise TypeError(f"`@` of a Foreign array does not know a {type(other).__name__}")
        return numpy.matmul(self, other)

    def __array_ufunc__(self, ufunc: numpy.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        known = Foreign | numpy.ndarray | numpy.generic | numbers.Number
        if not all(isinstance(value, known) for value in inputs):
            return NotImplemented
        if method != "__call__" or kwargs or ufunc.__name__ not in UFUNCS:
            raise TypeError(f"Foreign arrays do not do {ufunc.__name__}.{method} with {sorted(kwargs)}")
        return self._wrapped(ufunc(*_unwrapped(inputs)))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if not all(issubclass(kind, Foreign | numpy.ndarray) for kind in types):
            return NotImplemented
        name = function.__name__
        if (
            function.__module__ != "numpy"
            or name not in FUNCTIONS
            or set(kwargs) - {*FUNCTIONS[name].split()}
        ):
            raise TypeError(f"Foreign arrays do not do {function.__module__}.{name} with {sorted(kwargs)}")
        return self._wrapped(function(*_unwrapped(args), **_unwrapped(kwargs)))

    def _wrapped(self, value: Any) -> Any:
        return type(self)(value) if isinstance(value, numpy.ndarray | numpy.generic) else value


def fetch(value: Any) -> Any:
    """What a Foreign array holds, within tuples and dictionaries too. A stray ndarray is refused."""
    if isinstance(value, Foreign):
        return value._held
    if isinstance(value, tuple):
        return tuple(fetch(item) for item in value)
    if isinstance(value, dict):
        return {key: fetch(item) for key, item in value.items()}
    raise TypeError(f"expected Foreign arrays, got a {type(value).__name__}")


def _unwrapped(value: Any) -> Any:
    if isinstance(value, Foreign):
        return value._held
    if isinstance(value, numpy.ndarray):
        raise TypeError(f"an ndarray of shape {value.shape} was mixed with Foreign arrays")
    if isinstance(value, tuple | list):
        return type(value)(_unwrapped(item) for item in value)
    if isinstance(value, dict):
        return {key: _unwrapped(item) for key, item in value.items()}
    return value


def _index_entry(entry: Any) -> Any:
    if isinstance(entry, Foreign) and entry.dtype.kind in "iub":
        return entry._held
    if entry is None or entry is Ellipsis or isinstance(entry, int | slice):
        return entry
    raise TypeError(f"a Foreign array is not indexed by a {type(entry).__name__}")


arrays.register(Foreign, from_host=Foreign)
