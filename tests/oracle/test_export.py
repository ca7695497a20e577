"""Exported questions are complete without refpeft, hold no expected value, and appear whole or not at all."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refpeft import __version__
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import ask_of, in_order
from refpeft.oracle.export import ExportError, place_of, write_export
from refpeft.oracle.judge import request_for
from refpeft.oracle.vectors import Vector, all_vectors, digest_of
from refpeft.tensors import read_tensors

VECTORS = in_order(all_vectors())
FLOAT32, FLOAT64, ISLANDS = (PROFILES[name] for name in ("float32", "float64", "float64-islands"))


digest = functools.cache(digest_of)


def vector(name: str) -> Vector:
    return next(v for v in VECTORS if v.case.id == f"peft-0.21.2/{name}")


def files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def test_what_is_written(tmp_path: Path) -> None:
    names = ["common/mask/full", "prompt_tuning/init/text-cut", "prefix_tuning/checkpoint/load", "prefix_tuning/config/minimal"]  # fmt: skip
    chosen = [vector(name) for name in names]
    index = write_export(tmp_path / "x", chosen, [FLOAT32, FLOAT64])
    model = chosen[2].case.model
    assert model == chosen[1].case.model
    assert chosen[2].model_directory is not None
    expected = {"export.json", "README.txt", *(f"models/{model}/{p.name}" for p in chosen[2].model_directory.glob("*"))}  # fmt: skip
    expected |= {f"questions/{name}/{dtype}/request.json" for name in names for dtype in ("float32", "float64")}  # fmt: skip
    expected |= {f"questions/{name}/inputs.safetensors" for name in names[:3]}
    expected |= {f"questions/{names[2]}/adapter/adapter_{what}" for what in ("config.json", "model.safetensors")}  # fmt: skip
    assert files(tmp_path / "x") == expected
    document = json.loads((tmp_path / "x/export.json").read_text(encoding="utf-8"))
    assert document == msgspec.to_builtins(index) == {
        "format": 1, "refpeft": __version__, "dialect": "peft-0.21.2", "profiles": ["float32", "float64"],
        "models": {model: digest_of(chosen[2].model_directory)},
        "cases": [
            {"case": v.case.id, "digest": v.digest,
             "requests": [f"questions/{name}/{dtype}/request.json" for dtype in ("float32", "float64")]}
            for v, name in zip(chosen, names, strict=True)
        ],
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["x"], "nothing else is left there"


def test_requests_are_the_protocols_with_relative_paths(tmp_path: Path) -> None:
    """Resolved, they are the messages that a process gets; the directory can be moved."""
    write_export(tmp_path / "x", VECTORS, [FLOAT32, FLOAT64])
    shutil.move(tmp_path / "x", tmp_path / "moved")
    seq = 0
    for v in VECTORS:
        for profile in (FLOAT32, FLOAT64):
            seq += 1
            here = tmp_path / "moved" / place_of(v.case.id, profile.dtype)
            given = json.loads((here / "request.json").read_text(encoding="utf-8"))
            wanted: dict[str, Any] = msgspec.to_builtins(request_for(v, ask_of(v), profile, here, seq))
            paths = [(given, wanted, key) for key in ("model", "inputs", "adapter")]
            paths += [(given["arguments"], wanted["arguments"], "tokenizer")]
            for ours, theirs, key in paths:
                assert (ours.get(key) is None) == (theirs.get(key) is None)
                if ours.get(key) is not None:
                    assert not Path(ours[key]).is_absolute()
                    copied, golden = here / ours.pop(key), Path(theirs.pop(key))
                    same = (digest(copied), digest(golden)) if golden.is_dir() else (copied.read_bytes(), golden.read_bytes())  # fmt: skip
                    assert same[0] == same[1]
            assert given.pop("output") == "."
            assert wanted.pop("output") == str(here)
            assert given == wanted


def test_no_expected_value_is_written(tmp_path: Path) -> None:
    write_export(tmp_path / "x", VECTORS, [FLOAT32])
    written = files(tmp_path / "x")
    assert not [name for name in written if "expected" in name or name.endswith("case.json")]
    for v in VECTORS:
        place = tmp_path / "x" / place_of(v.case.id)
        inputs = place / "inputs.safetensors"
        given = set(read_tensors(inputs, "inputs")) if inputs.exists() else set()
        assert given == set(v.inputs)
        request = json.loads((place / "float32/request.json").read_text(encoding="utf-8"))
        assert "document" not in request
        assert "tensors" not in request


def test_a_dtype_is_asked_once(tmp_path: Path) -> None:
    index = write_export(tmp_path / "x", [vector("common/mask/full")], [ISLANDS, FLOAT64])
    assert index.profiles == ["float64-islands", "float64"]
    assert index.cases[0].requests == ["questions/common/mask/full/float64/request.json"]


def test_the_readme(tmp_path: Path) -> None:
    write_export(tmp_path / "x", [vector("common/mask/full")], [FLOAT32, FLOAT64])
    text = (tmp_path / "x/README.txt").read_text(encoding="utf-8")
    assert text.startswith(f"2 questions (peft-0.21.2, refpeft {__version__}), as files\n")
    assert "{{" not in text
    for said in ('{"tensors": "FILE.safetensors"}', '{"document": {…}}', "answer.safetensors", "answer.json", "refpeft judge"):  # fmt: skip
        assert said in text


def test_what_was_read_only_can_be_changed(tmp_path: Path) -> None:
    write_export(tmp_path / "x", [vector("prefix_tuning/checkpoint/load")], [FLOAT32])
    assert all(os.access(tmp_path / "x" / name, os.W_OK) for name in files(tmp_path / "x"))


def test_a_directory_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ExportError) as caught:
        write_export(tmp_path, [vector("common/mask/full")], [FLOAT32])
    assert str(caught.value) == (
        f"'{tmp_path}' exists and is not an empty directory; nothing was written. Give the name of a new directory, or "
        "remove this one first."
    )
    assert files(tmp_path) == {"mine"}


def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ExportError) as caught:
        write_export(tmp_path / "mine/x", [vector("common/mask/full")], [FLOAT32])
    assert str(caught.value) == f"Can't write the questions to '{tmp_path / 'mine/x'}': Not a directory. Choose another place."  # fmt: skip

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ExportError, match="No space left on device"):
        write_export(tmp_path / "x", [vector("common/mask/full")], [FLOAT32])
    assert files(tmp_path) == {"mine"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]
