"""`Foreign`: a strict stand-in for arrays that live elsewhere, to show that nothing passes the host.

It answers NumPy's two protocols and nothing more. What an array on a GPU would refuse, or would do by a copy
through host memory, is a TypeError here: conversion to an ndarray or a Python number, iteration, and mixing with
ndarrays that have an axis.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy
from numpy.lib.mixins import NDArrayOperatorsMixin

from refpeft import arrays


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
        return Foreign(self._held.astype(dtype))

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, index: Any) -> Foreign:
        entries = index if isinstance(index, tuple) else (index,)
        return Foreign(self._held[tuple(_index_entry(entry) for entry in entries)])

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a Foreign array does not leave the place where it lives")

    __float__ = __int__ = __bool__ = __index__ = __array__

    def __array_ufunc__(self, ufunc: numpy.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        known = Foreign | numpy.ndarray | numpy.generic | numbers.Number
        if not all(isinstance(value, known) for value in inputs):
            return NotImplemented
        if method != "__call__" or kwargs:
            raise TypeError(f"Foreign arrays do not do {ufunc.__name__}.{method} with {sorted(kwargs)}")
        return _wrapped(ufunc(*_unwrapped(inputs)))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if not all(issubclass(kind, Foreign | numpy.ndarray) for kind in types):
            return NotImplemented
        return _wrapped(function(*_unwrapped(args), **_unwrapped(kwargs)))


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
    if isinstance(value, numpy.ndarray) and value.ndim > 0:
        raise TypeError(f"an ndarray of shape {value.shape} was mixed with Foreign arrays")
    if isinstance(value, tuple | list):
        return type(value)(_unwrapped(item) for item in value)
    if isinstance(value, dict):
        return {key: _unwrapped(item) for key, item in value.items()}
    return value


def _wrapped(value: Any) -> Any:
    return Foreign(value) if isinstance(value, numpy.ndarray | numpy.generic) else value


def _index_entry(entry: Any) -> Any:
    if isinstance(entry, Foreign) and entry.dtype.kind in "iub":
        return entry._held
    if entry is None or entry is Ellipsis or isinstance(entry, int | slice):
        return entry
    raise TypeError(f"a Foreign array is not indexed by a {type(entry).__name__}")


arrays.register(Foreign)
