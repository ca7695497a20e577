"""safetensors files, read and written with the errors that a person can act on."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy
from numpy.typing import NDArray

from refpeft.errors import CheckpointError
from refpeft.files import write_atomically
from refpeft.safetensors_header import Entry, header_of, read_header, require_file, unreadable

FLOATING = ("float64", "float32", "float16", "bfloat16")
"""The floating-point formats that weights may be stored in."""
BLOCK = 2**20
"""How many numbers of a large tensor are looked at at once."""


def read_tensors(path: Path, what: str) -> dict[str, NDArray[Any]]:
    """Every tensor of a safetensors file by name; bfloat16 comes as `ml_dtypes.bfloat16`.

    `what` says in messages what the file holds ("the base model's weights").

    Raises:
        CheckpointError: the file is missing, truncated, or its header is damaged or lies about the data.
    """
    import ml_dtypes  # noqa: F401  (gives NumPy the name "bfloat16")

    require_file(path, what)
    try:
        with path.open("rb") as file:
            return {name: _read_tensor(file, name, entry) for name, entry in header_of(file).items()}
    except MemoryError as error:
        raise CheckpointError(f"'{path}' holds more of {what} than there is memory for.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, what, error) from error


def _read_tensor(file: BinaryIO, name: str, entry: Entry) -> NDArray[Any]:
    """One tensor, copied from the file: a map of it would end the program if another one shortened it meanwhile.

    Raises:
        ValueError: the file has become shorter, or a boolean is neither 0 nor 1.
    """
    file.seek(entry.start)
    dtype = numpy.dtype(entry.dtype)
    flat: NDArray[Any] = numpy.fromfile(file, dtype, entry.size // dtype.itemsize)
    if flat.nbytes != entry.size:
        raise ValueError(f"it ended within '{name}' while it was read")
    if sys.byteorder == "big":
        flat.byteswap(inplace=True)
    if entry.dtype == "bool" and (flat.view(numpy.uint8) > 1).any():
        raise ValueError(f"'{name}' is BOOL but holds bytes other than 0 and 1")
    return flat.reshape(entry.shape)


class LazyTensors(Mapping[str, NDArray[Any]]):
    """The tensors of a safetensors file, each read when it is asked for, and not kept.

    Raises:
        CheckpointError: as `read_tensors`, when it is made or, of a single tensor, when that is asked for.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what = path, what
        self._entries = read_header(path, what)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __getitem__(self, name: str) -> NDArray[Any]:
        import ml_dtypes  # noqa: F401  (gives NumPy the name "bfloat16")

        try:
            with self._path.open("rb") as file:
                return _read_tensor(file, name, self._entries[name])
        except (OSError, ValueError) as error:
            raise unreadable(self._path, self._what, error) from error


def map_tensors(path: Path, what: str) -> dict[str, NDArray[Any]]:
    """Every tensor of a safetensors file by name, as a view of the file: read only where it is looked at, never written.

    The file must not change while the arrays are used; whoever saves a model anew writes another file.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    import ml_dtypes  # noqa: F401  (gives NumPy the name "bfloat16")

    entries = read_header(path, what)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return {name: _view(data, entry) for name, entry in sorted(entries.items())}
    except (OSError, ValueError) as error:
        raise unreadable(path, what, error) from error


def _view(data: mmap.mmap, entry: Entry) -> NDArray[Any]:
    dtype = numpy.dtype(entry.dtype)
    dtype = dtype if entry.dtype == "bfloat16" else dtype.newbyteorder("<")
    if entry.size == 0:
        return numpy.empty(entry.shape, dtype)
    flat = numpy.frombuffer(data, dtype, entry.size // dtype.itemsize, entry.start)
    return flat.reshape(entry.shape)


def release(tensor: NDArray[Any]) -> None:
    """Give a mapped tensor's memory back, once it has been copied; looked at again, it is read from the file again."""
    data = tensor.base
    while isinstance(data, numpy.ndarray):
        data = data.base
    data = getattr(data, "obj", data)
    if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        start = (
            tensor.__array_interface__["data"][0]
            - numpy.frombuffer(data, numpy.uint8, 1).__array_interface__["data"][0]
        )
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # the pages that are this tensor's alone
        length = (start + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0:
            data.madvise(mmap.MADV_DONTNEED, first, length)


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays as a safetensors file, all or nothing (`refpeft.files.write_atomically`)."""
    from safetensors.numpy import save

    plain = {name: numpy.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    shaped = {name: plain[name].reshape(numpy.shape(tensor)) for name, tensor in tensors.items()}
    write_atomically(path, save(shaped, metadata=dict(metadata) if metadata else None))


def finite_in(tensor: NDArray[Any], dtype: Any, name: str, path: Path) -> NDArray[Any]:
    """Weights in the format of the computation; NaN or infinite ones are refused, and so is what becomes infinite there.

    Raises:
        CheckpointError: some entry is not finite.
    """
    require_finite(tensor, name, path, dtype)
    return tensor.astype(dtype)


def require_finite(tensor: NDArray[Any], name: str, path: Path, dtype: Any = "float64") -> None:
    """Refuse weights that are NaN or infinite, or too large for the format of the computation, saying which and where.

    A large tensor is looked at block by block.

    Raises:
        CheckpointError: some entry is not finite.
    """
    wrong, first = 0, None
    for start, block in _blocks(tensor):
        finite = numpy.isfinite(block)
        if not finite.all():
            wrong += int((~finite).sum())
            first = first or _moved_by(start, numpy.argwhere(~finite)[0])
    if first is not None:
        raise CheckpointError(
            f"'{name}' in '{path}' holds {wrong} NaN or infinite values, the first at index {first}: "
            f"{tensor[first]}. Weights must be finite; look at how the file was made."
        )
    if not (tensor.dtype == numpy.float64 and numpy.dtype(dtype) == numpy.float32):
        return
    for start, block in _blocks(tensor):
        with numpy.errstate(over="ignore"):
            infinite = ~numpy.isfinite(block.astype(dtype))
        if infinite.any():
            first = _moved_by(start, numpy.argwhere(infinite)[0])
            raise CheckpointError(
                f"'{name}' in '{path}' holds {tensor[first]} at index {first}, which is too large for {numpy.dtype(dtype)}. "
                "Load the model in float64, or look at how the file was made."
            )


def _blocks(tensor: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Rows of a tensor, about `BLOCK` numbers at a time, after the index of the first; narrow formats widened."""
    rows = max(1, BLOCK // max(1, tensor.size // max(1, len(tensor)))) if tensor.ndim else 1
    for start in range(0, len(tensor) if tensor.ndim else 1, rows):
        block = tensor[start : start + rows] if tensor.ndim else tensor
        yield start, block.astype(numpy.float32) if block.dtype.itemsize < 4 else block


def _moved_by(start: int, index: NDArray[Any]) -> tuple[int, ...]:
    """An index into a block as an index into the whole."""
    return tuple(int(i) + (start if axis == 0 else 0) for axis, i in enumerate(index))
