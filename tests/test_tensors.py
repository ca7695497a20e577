"""safetensors files: what comes back, what is refused and how, and that no reader sees half a file."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refpeft import tensors
from refpeft.errors import CheckpointError
from refpeft.safetensors_header import header_of
from refpeft.tensors import map_tensors, read_tensors, release, require_finite, write_tensors


def raw(header: Any, data: bytes) -> bytes:
    """The bytes of a safetensors file with this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str, shape: list[int], size: int) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}


GOOD = raw(tensor("F32", [2, 3], 24), bytes(24))


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16, "int64", "int8", "uint8", "bool"]
)
def test_what_is_written_is_read(tmp_path: Path, dtype: Any) -> None:
    values = numpy.arange(6).reshape(2, 3).astype(dtype)
    write_tensors(
        tmp_path / "a", {"plain": values, "transposed": values.T, "cut": values[:, ::2], "one": values[1, 2]}
    )
    found = read_tensors(tmp_path / "a", "the thing")
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        "plain": ((2, 3), values.dtype),
        "transposed": ((3, 2), values.dtype),
        "cut": ((2, 2), values.dtype),
        "one": ((), values.dtype),
    }
    for name, expected in {"plain": values, "transposed": values.T, "cut": values[:, ::2]}.items():
        numpy.testing.assert_array_equal(found[name].astype(float), expected.astype(float))
    assert found["one"] == values[1, 2]


def test_metadata_is_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"a": numpy.zeros(1)}, metadata={"format": "pt"})
    data = (tmp_path / "a").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert json.loads(data[8 : 8 + length])["__metadata__"] == {"format": "pt"}


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / "a.safetensors", "the thing")
    assert str(caught.value) == f"Can't find 'a.safetensors' at '{tmp_path}', which holds the thing."


HOSTILE = {
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "truncated": GOOD[:-1],
    "too long": GOOD + b"\0",
    "header beyond the file": struct.pack("<Q", 2**62) + b"{}",
    "header of 2^64 - 1": struct.pack("<Q", 2**64 - 1) + b"{}",
    "not JSON": struct.pack("<Q", 4) + b"nope",
    "not UTF-8": struct.pack("<Q", 4) + b'{"\xff}',
    "shape beyond the data": raw(tensor("F32", [2**40, 2**40], 24), bytes(24)),
    "offsets beyond the data": raw(tensor("F32", [2, 3], 2**50), bytes(24)),
    "overlapping": raw(
        {**tensor("F32", [2], 8), "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)
    ),
    "an unknown dtype": raw(tensor("X9", [4], 4), bytes(4)),
    "a float8 that NumPy does not have": raw(tensor("F8_E4M3", [4], 4), bytes(4)),
    "a float8 scale": raw(tensor("F8_E8M0", [4], 4), bytes(4)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_damaged_and_hostile_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path, "the thing")
    assert str(caught.value) == (
        f"'{path}' cannot be read as safetensors ({caught.value.__cause__}). The file of the thing is truncated or "
        "damaged: copy or write it again."
    )


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(1, len(GOOD)))
def test_no_damage_escapes_as_another_error(tmp_path_factory: Any, at: int, byte: int, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes((GOOD[:at] + bytes([byte]) + GOOD[at + 1 :])[:length])
    try:
        found = read_tensors(path, "the thing")
    except CheckpointError:
        return
    assert all(value.size == 6 or value.nbytes == 24 for value in found.values())


def test_a_boolean_is_0_or_1(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(raw(tensor("BOOL", [2], 2), b"\1\2"))
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path, "the thing")
    assert str(caught.value) == (
        f"'{path}' cannot be read as safetensors ('a' is BOOL but holds bytes other than 0 and 1). The file of the thing is "
        "truncated or damaged: copy or write it again."
    )


def test_a_file_that_becomes_shorter_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that is still writing: a map of the file would end the whole program (SIGBUS)."""
    path = tmp_path / "a"
    path.write_bytes(GOOD)

    def shorten(file: Any) -> Any:
        entries = header_of(file)
        os.truncate(path, len(GOOD) - 1)
        return entries

    monkeypatch.setattr(tensors, "header_of", shorten)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path, "the thing")
    assert str(caught.value) == (
        f"'{path}' cannot be read as safetensors (it ended within 'a' while it was read). The file of the thing is truncated "
        "or damaged: copy or write it again."
    )


def test_more_than_the_memory_holds(tmp_path: Path) -> None:
    """The file is honest about its size, and has holes for data."""
    path, size = tmp_path / "a", 2**50
    text = raw(tensor("I8", [size], size), b"")
    with path.open("wb") as file:
        file.write(text)
        try:
            file.truncate(len(text) + size)
        except OSError:
            size = 2**43
            file.seek(0)
            file.write(raw(tensor("I8", [size], size), b""))
            file.truncate(len(raw(tensor("I8", [size], size), b"")) + size)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path, "the thing")
    assert str(caught.value) == f"'{path}' holds more of the thing than there is memory for."


def test_a_failed_write_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "a.safetensors", {"a": numpy.zeros(3)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_weights_must_be_finite(dtype: Any, bad: str) -> None:
    values = numpy.zeros((2, 3)).astype(dtype)
    require_finite(values, "wte", Path("file"))
    values[0, 2] = values[1, 1] = float(bad)
    with pytest.raises(CheckpointError) as caught:
        require_finite(values, "wte", Path("file"))
    assert str(caught.value) == (
        f"'wte' in 'file' holds 2 NaN or infinite values, the first at index (0, 2): {bad}. "
        "Weights must be finite; look at how the file was made."
    )


def test_the_largest_numbers_are_finite() -> None:
    for dtype in (numpy.float64, numpy.float32, numpy.float16):
        require_finite(numpy.array([numpy.finfo(dtype).max, numpy.finfo(dtype).min]), "wte", Path("file"))
    require_finite(numpy.array([ml_dtypes.finfo(ml_dtypes.bfloat16).max]), "wte", Path("file"))


# ---------------------------------------------------------------- views, and tensors read one by one


def test_views_of_a_file_are_what_reading_it_gives(tmp_path: Path) -> None:
    import ml_dtypes

    from refpeft.tensors import LazyTensors, map_tensors

    kinds = ["float64", "float32", "float16", ml_dtypes.bfloat16, "int64", "int8", "uint8", "bool"]
    tensors = {f"t{i}": numpy.arange(i, i + 3).astype(kind) for i, kind in enumerate(kinds)}
    tensors |= {
        "empty": numpy.zeros((0, 3), "float32"),
        "scalar": numpy.array(2.5),
        "matrix": numpy.ones((2, 3)),
    }
    write_tensors(tmp_path / "a", tensors, {"order": "x"})
    read = read_tensors(tmp_path / "a", "the thing")
    for taken in (map_tensors(tmp_path / "a", "the thing"), LazyTensors(tmp_path / "a", "the thing")):
        assert sorted(taken) == sorted(tensors)
        assert len(taken) == len(tensors)
        for name in tensors:
            assert (taken[name].dtype, taken[name].shape) == (read[name].dtype, read[name].shape)
            numpy.testing.assert_array_equal(taken[name], read[name])
    assert not map_tensors(tmp_path / "a", "the thing")["matrix"].flags.writeable


def test_a_damaged_file_has_no_views(tmp_path: Path) -> None:
    from refpeft.tensors import LazyTensors, map_tensors

    write_tensors(tmp_path / "a", {"x": numpy.ones(9)})
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    for reader in (map_tensors, LazyTensors):
        with pytest.raises(CheckpointError) as caught:
            reader(tmp_path / "a", "the thing")
        assert str(caught.value) == (
            f"'{tmp_path / 'a'}' cannot be read as safetensors ({caught.value.__cause__}). The file of the thing is truncated "
            "or damaged: copy or write it again."
        )
    with pytest.raises(CheckpointError, match="Can't find 'b' at"):
        map_tensors(tmp_path / "b", "the thing")


def test_a_format_that_numpy_lacks(tmp_path: Path) -> None:
    import json

    from refpeft.tensors import map_tensors

    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(
        CheckpointError, match=r"\('x' has the dtype 'F8_E4M3'; refpeft reads F64, F32, F16, BF16, I64,"
    ):
        map_tensors(tmp_path / "a", "the thing")


def test_a_large_tensor_is_checked_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from refpeft import tensors

    monkeypatch.setattr(tensors, "BLOCK", 6)
    large = numpy.ones((5, 3))
    large[3, 1], large[4, 2] = numpy.nan, numpy.inf
    with pytest.raises(CheckpointError) as caught:
        require_finite(large, "w", Path("f"))
    assert str(caught.value) == (
        "'w' in 'f' holds 2 NaN or infinite values, the first at index (3, 1): nan. Weights must be finite; look at how the "
        "file was made."
    )
    large = numpy.ones((5, 3))
    large[4, 2] = 1e300
    require_finite(large, "w", Path("f"))
    with pytest.raises(CheckpointError) as caught:
        require_finite(large, "w", Path("f"), "float32")
    assert str(caught.value) == (
        "'w' in 'f' holds 1e+300 at index (4, 2), which is too large for float32. Load the model in float64, or look at how "
        "the file was made."
    )


def resident(path: Path) -> int:
    """How many KiB of a mapped file are in this process's memory; None where Linux is not there to tell."""
    maps = Path("/proc/self/smaps")
    if not maps.exists():
        pytest.skip("needs Linux's /proc/self/smaps")
    for part in maps.read_text(encoding="utf-8").split("VmFlags")[:-1]:
        if str(path) in part:
            return int(re.search(r"^Rss: +([0-9]+) kB", part, re.MULTILINE)[1])  # type: ignore[index]
    raise AssertionError(f"{path} is not mapped")


def test_a_tensor_that_is_released_is_out_of_memory_and_still_there(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    written = {name: numpy.full((1024, 1024), value, "float32") for name, value in (("a", 1.0), ("b", 2.0))}
    write_tensors(path, written)
    mapped = map_tensors(path, "the model")
    assert (mapped["a"].sum(), mapped["b"].sum()) == (2.0**20, 2.0**21)
    whole = resident(path)
    assert whole >= 8192
    release(mapped["b"])
    assert 4096 - 8 <= whole - resident(path) <= 4096 + 8  # its pages, not its neighbour's
    release(numpy.ones(3))  # no file's
    assert mapped["b"][1000, 1000] == 2.0  # read again
