"""Reading golden vectors: what is refused and how, where they are found, and what their digest covers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest

from refpeft.errors import CheckpointError
from refpeft.oracle import vectors
from refpeft.oracle.vectors import (
    DIALECT,
    Case,
    Tensor,
    VectorError,
    all_vectors,
    golden_directory,
    matches,
    read_vector,
)
from refpeft.tensors import write_tensors

CASE: dict[str, Any] = {
    "format": 1,
    "id": "peft-0.21.2/common/mask/two",
    "title": "a mask",
    "question": "mask",
    "method": "common",
    "clauses": ["MK-1"],
    "model": None,
    "config": None,
    "arguments": {"batch_size": 2},
    "dims": {"batch": 2},
    "equal_axes": "",
    "seed": None,
    "versions": {},
    "tensors": {"x": {"kind": "exact", "axes": ["batch"]}, "y": {"kind": "composite", "axes": [], "float32_distance": 1e-7}},
    "document": None,
}  # fmt: skip


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A golden directory with one case."""
    golden = tmp_path / "golden"
    directory = golden / "vectors" / CASE["id"]
    directory.mkdir(parents=True)
    (golden / "manifest.json").write_text("{}", encoding="utf-8")
    (directory / "case.json").write_text(json.dumps(CASE), encoding="utf-8")
    write_tensors(directory / "inputs.safetensors", {"input_ids": numpy.arange(3)})
    write_tensors(directory / "expected.safetensors", {"x": numpy.zeros(2), "y": numpy.array(0.5)})
    return golden


def changed(golden: Path, **changes: Any) -> Path:
    """The case's directory after a change of case.json; `None` for a key that is taken away."""
    directory = golden / "vectors" / CASE["id"]
    case = {key: value for key, value in {**CASE, **changes}.items() if value != "GONE"}
    (directory / "case.json").write_text(json.dumps(case), encoding="utf-8")
    return directory


# ---------------------------------------------------------------- reading


def test_a_case_is_read_whole(golden: Path) -> None:
    (vector,) = all_vectors(golden)
    assert vector.directory == golden / "vectors" / CASE["id"]
    assert msgspec.to_builtins(vector.case) == CASE
    assert vector.case.tensors == {"x": Tensor("exact", ["batch"]), "y": Tensor("composite", [], 1e-7)}
    assert list(vector.case.tensors) == ["x", "y"], "the order of computation"
    assert {name: array.tolist() for name, array in vector.inputs.items()} == {"input_ids": [0, 1, 2]}
    assert {name: array.tolist() for name, array in vector.expected.items()} == {"x": [0, 0], "y": 0.5}
    assert vector.model_directory is None
    assert vector.adapter_directory is None


def test_model_and_adapter(golden: Path) -> None:
    directory = changed(golden, model="gpt2-odd")
    (directory / "adapter").mkdir()
    vector = read_vector(directory)
    assert vector.model_directory == golden.resolve() / "models/gpt2-odd"
    assert vector.adapter_directory == directory / "adapter"


def test_files_may_be_absent_but_not_damaged(golden: Path) -> None:
    directory = changed(golden)
    (directory / "inputs.safetensors").unlink()
    (directory / "expected.safetensors").write_bytes(b"x")
    assert read_vector(directory).inputs == {}
    with pytest.raises(
        CheckpointError, match=r"The file of HF's answer is truncated or damaged: copy or write it again\.$"
    ):
        _ = read_vector(directory).expected


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"title": "GONE"}, "is not a case of format 1: Object missing required field `title`."),
        ({"mood": 1}, "is not a case of format 1: Object contains unknown field `mood`."),
        ({"seed": "x"}, "is not a case of format 1: Expected `int | null`, got `str` - at `$.seed`."),
        ({"tensors": {"x": {"kind": "vague", "axes": []}}}, "is not a case of format 1: Invalid enum value 'vague' - at `$.tensors[...].kind`."),
        ({"format": 2}, "has format 2; this refpeft reads format 1."),
    ],
)  # fmt: skip
def test_a_broken_case(golden: Path, changes: dict[str, Any], why: str) -> None:
    directory = changed(golden, **changes)
    with pytest.raises(VectorError) as caught:
        list(all_vectors(golden))
    assert str(caught.value) == f"'{directory / 'case.json'}' {why}"


@pytest.mark.parametrize("contents", [b"{", b"\xff\xfe", b'"\xff"', b""])
def test_a_case_that_is_no_json(golden: Path, contents: bytes) -> None:
    path = changed(golden) / "case.json"
    path.write_bytes(contents)
    with pytest.raises(VectorError) as caught:
        read_vector(path.parent)
    assert str(caught.value).startswith(f"'{path}' is not a case of format 1: ")


def test_a_directory_without_a_case(tmp_path: Path) -> None:
    with pytest.raises(VectorError) as caught:
        read_vector(tmp_path)
    assert str(caught.value) == f"'{tmp_path}' is not a case: it has no case.json."


# ---------------------------------------------------------------- where they are


def test_the_golden_directory_above_a_case(golden: Path) -> None:
    assert golden_directory(golden / "vectors" / CASE["id"]) == golden.resolve()


def test_the_installed_package_comes_before_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "refpeft/oracle/vectors.py"
    monkeypatch.setattr(vectors, "__file__", str(module))
    package, checkout = tmp_path / "refpeft/golden", tmp_path / "golden"
    with pytest.raises(VectorError) as caught:
        golden_directory()
    assert str(caught.value) == (
        f"No golden vectors found: looked for manifest.json in {package}, {checkout}. Reinstall refpeft, or run from a "
        "complete checkout."
    )
    for directory in (checkout, package):
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text("{}", encoding="utf-8")
        assert golden_directory() == directory


def test_the_shipped_vectors_are_read_in_the_order_of_ids() -> None:
    ids = [vector.case.id for vector in all_vectors()]
    assert len(ids) >= 100
    assert ids == sorted(ids, key=lambda i: i.split("/"))
    assert all(i.startswith(f"{DIALECT}/") for i in ids)


# ---------------------------------------------------------------- digests and patterns


def test_the_digest_changes_with_any_file(golden: Path) -> None:
    directory = changed(golden)
    seen = {read_vector(directory).digest}

    def new() -> str:
        digest = read_vector(directory).digest
        assert digest not in seen
        seen.add(digest)
        return digest

    for name in ("case.json", "inputs.safetensors", "expected.safetensors"):
        path = directory / name
        path.write_bytes(path.read_bytes() + b" ")
        assert len(new()) == 16
    (directory / "adapter").mkdir()
    (directory / "adapter/adapter_config.json").write_text("{}", encoding="utf-8")
    new()
    (directory / "adapter/adapter_config.json").rename(directory / "adapter/other.json")
    new()
    (directory / "adapter").rename(directory / "a")  # still the first in alphabetical order
    new()
    (directory / "a/other.json").unlink()
    assert read_vector(directory).digest in seen, "without the file it is what it was"


def test_the_digest_does_not_depend_on_the_place(golden: Path, tmp_path: Path) -> None:
    directory = changed(golden)
    shutil.copytree(directory, tmp_path / "elsewhere")
    assert read_vector(tmp_path / "elsewhere").digest == read_vector(directory).digest


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("peft-0.21.2/prefix_tuning/forward/left-padding", True),
        ("forward/left", True),
        ("*/prefix_tuning/*", True),
        ("*left-padding", True),
        ("peft-*/left-????ing", True),
        ("prefix_tuning/*", False),
        ("Left", False),
        ("right", False),
        ("", True),
    ],
)
def test_matches(pattern: str, expected: bool) -> None:
    assert matches("peft-0.21.2/prefix_tuning/forward/left-padding", pattern) is expected


def test_a_case_has_no_other_fields() -> None:
    assert set(CASE) == set(Case.__struct_fields__)
