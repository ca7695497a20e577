"""One computation in several arithmetics at once: what is expected, and how far off it may be, without keeping stages.

A golden case's floors are measured once, from sixteen replays of a small model, stage beside stage. For the user's own
model there is neither time nor memory for that. Here every value is a `Together`: the reference in float64 first, then
the replays. One pass takes each weight from its file once, and each stage's floor is known when the stage is computed
(clause JG-11). It answers NumPy's two protocols, as `refpeft.oracle.budget`'s reversed arrays do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from refpeft import arrays
from refpeft.oracle.budget import Floor, _moved, _Reversed, register_reversed, strayed
from refpeft.oracle.wrapped import plain
from refpeft.stored import Stored

MOVES = 3
"""In how many ways the replays' small inputs are moved in the last place, for each order of summation."""


class Together(NDArrayOperatorsMixin):
    """A value as the reference has it, and as each replay has it."""

    __slots__ = ("values",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values

    shape = property(lambda self: self.values[0].shape)
    ndim = property(lambda self: self.values[0].ndim)
    size = property(lambda self: self.values[0].size)
    dtype = property(lambda self: self.values[0].dtype)

    def __len__(self) -> int:
        return len(self.values[0])

    def __getitem__(self, index: Any) -> Any:
        return Together(tuple(value[_of(index, 0)] for value in self.values))

    def astype(self, dtype: Any) -> Together:
        """The replays in another format; the reference stays what it is."""
        return Together((self.values[0], *(value.astype(dtype) for value in self.values[1:])))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        known = Together | Shared | numpy.ndarray | numpy.generic | int | float
        if method != "__call__" or not all(isinstance(x, known) for x in inputs):
            return NotImplemented
        if ufunc is numpy.matmul and isinstance(inputs[1], Shared):
            return inputs[1].behind(inputs[0])
        return self._each(functools.partial(ufunc, **kwargs), inputs, {})

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return self._each(function, args, kwargs)

    def _each(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The function in each arithmetic. What comes out as integers is the same in all."""
        results = []
        for i, value in enumerate(self.values):
            dtype = value.dtype if value.dtype.kind == "f" else None
            given = [_of(argument, i, dtype) for argument in args]
            named = {name: _of(argument, i, dtype) for name, argument in kwargs.items()}
            if function is numpy.full_like and numpy.dtype(named["dtype"]).kind == "f":
                named["dtype"] = dtype  # the most negative number is each format's own
                given[1] = max(given[1], float(numpy.finfo(dtype).min))
            result = function(*given, **named)
            if not hasattr(result, "dtype") or result.dtype.kind in "iu":
                return plain(result)
            results.append(result)
        return Together(tuple(results))


class Shared:
    """A weight of the base model that all arithmetics take from one place, a piece at a time."""

    __slots__ = ("replay", "stored")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, stored: Stored, replay: Replay) -> None:
        self.stored, self.replay = stored, replay

    shape = property(lambda self: self.stored.shape)
    ndim = property(lambda self: self.stored.ndim)
    size = property(lambda self: self.stored.size)
    dtype = property(lambda self: self.stored.dtype)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: Any) -> Together:
        rows: Together = self.replay.wrap(self.stored[_of(index, 0)])
        return rows

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return NotImplemented  # a product is taken by what stands before it

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is numpy.swapaxes:
            return Shared(numpy.swapaxes(self.stored, *args[1:], **kwargs), self.replay)
        return self.ndim if function is numpy.ndim else NotImplemented

    def behind(self, left: Together) -> Together:
        """`left @ self`: forward replays in one product, backward ones in another, each piece converted once."""
        values = left.values
        kinds: dict[tuple[Any, bool], list[int]] = {}
        for i, value in enumerate(values):
            kinds.setdefault((value.dtype, isinstance(value, _Reversed)), []).append(i)
        products: list[Any] = [None] * len(values)
        for (dtype, backwards), members in kinds.items():
            rows = numpy.concatenate([plain(values[i]).reshape(-1, left.shape[-1]) for i in members])
            if backwards:
                rows = numpy.ascontiguousarray(rows[:, ::-1])
            product = numpy.empty((len(rows), self.shape[1]), dtype)
            for place, piece in self.stored.pieces():
                converted = piece.astype(dtype, copy=False)
                product[:, place] = rows @ (converted[::-1].copy() if backwards else converted)
            for i, part in zip(members, numpy.split(product, len(members)), strict=True):
                shaped = part.reshape(*left.shape[:-1], self.shape[1])
                products[i] = _Reversed(shaped) if backwards else shaped
        return Together(tuple(products))


class Replay:
    """Makes the reference and its replays: summed forwards and backwards, each as it is and with small inputs moved.

    What is moved by at most one unit in the last place: the adapter's parameters, the rows of the embeddings that are
    looked up, and the base model's vectors (biases, norms). The base model's matrices are not.
    """

    def __init__(self, dtype: str) -> None:
        arrays.register(Together)
        register_reversed()
        self._dtype = dtype

    def wrap(self, array: Any) -> Any:
        """A floating-point input, float64, as the reference and every replay have it; a stored matrix stays stored."""
        if isinstance(array, Stored):
            return Shared(array, self)
        moves: list[Callable[[Any], Any]] = [lambda x: x, *(_moved(seed) for seed in range(1, MOVES + 1))]
        with numpy.errstate(over="ignore"):
            narrow = array.astype(self._dtype)
        replays = [order(move(narrow)) for move in moves for order in (numpy.asarray, _Reversed)]
        return Together((array, *replays))


def floor_of(value: Together, counted: NDArray[Any]) -> Floor:
    """The worst errors of the replays against the reference."""
    found = [strayed(plain(replay), value.values[0], counted) for replay in value.values[1:]]
    return Floor(max(norm for norm, _ in found), max(largest for _, largest in found))


def _of(x: Any, i: int, dtype: Any = None) -> Any:
    """An argument as the i-th arithmetic has it; plain real numbers with an axis come in its format."""
    if isinstance(x, Together):
        return x.values[i]
    if isinstance(x, tuple | list):
        return type(x)(_of(entry, i, dtype) for entry in x)
    if dtype is not None and isinstance(x, numpy.ndarray | numpy.generic) and x.dtype.kind == "f":
        return x.astype(dtype)
    return x
