"""Weights that stay in their file: taken out piece by piece, where they are used, in the format of the computation.

A checkpoint of a gigabyte is two in float64. A `Stored` matrix is a view of the file (refpeft.tensors.map_tensors); rows
are converted when they are looked up, a product converts a few million numbers at a time, and nothing is kept. It
answers NumPy's two protocols, so the specification computes with it as with any array.

The queries of a tensor that holds queries, keys and values by turns, (groups, 3, head_dim, inputs), are the view
tensor[:, 0], and as a matrix (groups · head_dim, inputs). No view has two axes and these numbers; therefore a view may have
more axes than the matrix that it stands for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

PIECE = 2**22
"""How many numbers of a matrix are converted at once: 32 MiB in float64."""


class Stored(NDArrayOperatorsMixin):
    """A frozen matrix in its file's format, which counts as an array of another one.

    Attributes:
        view: The numbers as they are stored, perhaps transposed; never written to.
        dtype: In which format they come out.
        shape: The view's, or (rows, columns) of a matrix whose rows are the view's first axes, the last of them running
            fastest, and whose columns are its other axes. An axis may have stride 0: heads that are used repeatedly.
    """

    __slots__ = ("_row_axes", "dtype", "shape", "view")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, view: NDArray[Any], dtype: Any, shape: tuple[int, ...] | None = None) -> None:
        self.view = view
        self.dtype = numpy.dtype(dtype)
        self.shape = view.shape if shape is None else shape
        self._row_axes = 1 if view.shape == self.shape else _row_axes(view.shape, self.shape)

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: self.view.size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        if self.view.shape == self.shape:
            return self.view[index].astype(self.dtype)  # type: ignore[no-any-return]
        rows = numpy.arange(len(self))[index]
        taken = self.view[numpy.unravel_index(rows, self.view.shape[: self._row_axes])]
        return taken.reshape(*rows.shape, self.shape[1]).astype(self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.view.astype(dtype or self.dtype).reshape(self.shape)

    def astype(self, dtype: Any) -> Stored:
        """The same numbers of the file, to come out in another format."""
        return Stored(self.view, dtype, self.shape)

    def pieces(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The matrix in strips of whole columns, each of about `PIECE` numbers as stored, with the columns' place."""
        whole, axes = (slice(None),) * self._row_axes, self.view.shape[self._row_axes :]
        columns = max(1, PIECE // max(1, len(self)))
        for start in range(0, self.shape[1], columns):
            place = slice(start, start + columns)
            numbers = range(self.shape[1])[place]
            found: Any = (place,) if len(axes) == 1 else numpy.unravel_index(numbers, axes)
            yield place, self.view[whole + found].reshape(len(self), len(numbers))

    def _swapped(self, axis1: int, axis2: int) -> Stored:
        """With two axes exchanged; the arguments are `numpy.swapaxes`'s."""
        if self.view.shape == self.shape:
            return Stored(numpy.swapaxes(self.view, axis1, axis2), self.dtype)
        if axis1 % 2 == axis2 % 2:
            return self
        columns_first = (*range(self._row_axes, self.view.ndim), *range(self._row_axes))
        return Stored(self.view.transpose(columns_first), self.dtype, self.shape[::-1])

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if not all(isinstance(x, Stored | numpy.ndarray | numpy.generic | int | float) for x in inputs):
            return NotImplemented
        if ufunc is numpy.matmul and method == "__call__" and not kwargs and isinstance(inputs[1], Stored):
            left = numpy.asarray(inputs[0])
            if left.ndim > 1 and inputs[1].ndim == 2:
                return inputs[1]._behind(left)
        return getattr(ufunc, method)(*map(_converted, inputs), **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if not all(issubclass(kind, Stored | numpy.ndarray) for kind in types):
            return NotImplemented
        if function is numpy.swapaxes and isinstance(args[0], Stored):
            return args[0]._swapped(*args[1:], **kwargs)
        taken = _described if function in _ABOUT else _converted
        return function(*taken(args), **{name: taken(value) for name, value in kwargs.items()})

    def _behind(self, left: NDArray[Any]) -> NDArray[Any]:
        """`left @ self`, a strip of columns at a time."""
        rows = left.reshape(-1, left.shape[-1])
        product = numpy.empty((len(rows), self.shape[1]), numpy.result_type(left.dtype, self.dtype))
        for place, piece in self.pieces():
            product[:, place] = rows @ piece.astype(self.dtype, copy=False)
        return product.reshape(*left.shape[:-1], self.shape[1])


def _row_axes(axes: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many of a view's axes are the rows of the matrix; the others are its columns.

    Raises:
        ValueError: the view has other numbers than the matrix.
    """
    for count in range(1, len(axes)):
        if (math.prod(axes[:count]), math.prod(axes[count:])) == shape:
            return count
    raise ValueError(
        f"A view of shape {axes} is no matrix of shape {shape}: its axes must be rows, then columns."
    )


_ABOUT = (
    *(numpy.ndim, numpy.shape, numpy.size, numpy.result_type, numpy.iscomplexobj),
    *(numpy.full_like, numpy.zeros_like, numpy.ones_like),
)
"""Functions that ask for a shape or a format, not for numbers."""


def _described(x: Any) -> Any:
    """An argument with every `Stored` inside as an array of its shape and format that takes no memory."""
    if isinstance(x, Stored):
        return numpy.broadcast_to(numpy.zeros((), x.dtype), x.shape)
    return type(x)(map(_described, x)) if isinstance(x, tuple | list) else x


def _converted(x: Any) -> Any:
    """An argument with every `Stored` inside converted as a whole."""
    if isinstance(x, Stored):
        return numpy.asarray(x)
    if isinstance(x, tuple | list):
        return type(x)(_converted(entry) for entry in x)
    return x
