"""What arrays with an arithmetic of their own have in common: an ndarray inside, and NumPy's protocols outside."""

from __future__ import annotations

from typing import Any

import numpy
from numpy.lib.mixins import NDArrayOperatorsMixin


class Wrapped(NDArrayOperatorsMixin):
    """An ndarray that looks like one. A subclass says how a function is computed on what is inside."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any) -> None:
        self.value = numpy.asarray(value)

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Any) -> Any:
        return type(self)(self.value[plain(index)])

    def astype(self, dtype: Any) -> Any:
        """In another format, inside."""
        return type(self)(self.value.astype(dtype))

    def knows(self, operands: Any) -> bool:
        """Whether it can compute with these; boxes of autograd get their own turn."""
        return all(isinstance(x, type(self) | numpy.ndarray | numpy.generic | int | float) for x in operands)


def plain(x: Any) -> Any:
    """An argument with everything wrapped inside taken out."""
    if isinstance(x, Wrapped):
        return x.value
    if isinstance(x, tuple | list):
        return type(x)(plain(entry) for entry in x)
    return x
