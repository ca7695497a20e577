"""golden/floors.json: complete, fresh, used while a case is unchanged, and an error when it is damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from refpeft.oracle import budget
from refpeft.oracle.budget import PROFILES, Floor, measure
from refpeft.oracle.cases import ask_of
from refpeft.oracle.floors import FORMAT, _stored, floors, floors_document, stale_floors
from refpeft.oracle.vectors import Vector, VectorError, all_vectors, golden_directory, read_vector

FLOAT32, FLOAT64 = PROFILES["float32"], PROFILES["float64"]
VECTORS = list(all_vectors())
STAGES = next(v for v in VECTORS if v.case.id.endswith("prefix_tuning/forward/stages-projected"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floors of four replays instead of all."""
    monkeypatch.setattr(budget, "MOVES", 1)


def test_every_case_has_its_floors() -> None:
    stored = _stored(golden_directory())
    assert set(stored) == {v.case.id for v in VECTORS}
    for vector in VECTORS:
        entry = stored[vector.case.id]
        assert entry.digest == vector.digest, f"{vector.case.id}: golden/floors.json is stale"
        computed = {
            name for name, tensor in vector.case.tensors.items() if tensor.kind in ("composite", "tokens")
        }
        assert {name: set(kept) for name, kept in entry.profiles.items()} == dict.fromkeys(PROFILES, computed)


@pytest.fixture
def copy(tmp_path: Path) -> Vector:
    """A golden directory with one case and its floors, which say that everything is off by 0.5."""
    golden = tmp_path / "golden"
    case = STAGES.case
    shutil.copytree(STAGES.directory, golden / "vectors" / case.id)
    assert STAGES.model_directory is not None
    shutil.copytree(STAGES.model_directory, golden / "models" / str(case.model))
    (golden / "manifest.json").write_text("{}", encoding="utf-8")
    vector = read_vector(golden / "vectors" / case.id)
    document = {"format": FORMAT, "cases": {case.id: {"digest": vector.digest, "profiles": {"float32": {"logits": [0.5, 0.5]}}}}}  # fmt: skip
    (golden / "floors.json").write_bytes(msgspec.json.encode(document))
    return vector


@pytest.mark.usefixtures("quick")
def test_stored_floors_are_used_while_the_case_is_unchanged(copy: Vector) -> None:
    assert floors(copy, FLOAT32) == {"logits": Floor(0.5, 0.5)}
    assert floors(copy, FLOAT64)["logits"].norm < 1e-14, "a profile that is not stored is measured"


@pytest.mark.usefixtures("quick")
def test_stale_or_missing_floors_are_measured_anew(copy: Vector) -> None:
    path = copy.directory / "case.json"
    path.write_bytes(path.read_bytes() + b"\n")
    stale = read_vector(copy.directory)
    assert stale.digest != copy.digest
    assert 0 < floors(stale, FLOAT32)["logits"].norm < 1e-5
    file = golden_directory(copy.directory) / "floors.json"
    file.unlink()
    _stored.cache_clear()
    assert 0 < floors(copy, FLOAT32)["logits"].norm < 1e-5
    _stored.cache_clear()


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ("{", "is damaged: Input data was truncated. Reinstall refpeft, or make it anew with the vectors."),
        ('{"format": 1, "cases": {}}', "has format 1; this refpeft reads format 2."),
        (
            " " * 10_000_001,
            "is damaged: it is larger than 10 MB. Reinstall refpeft, or make it anew with the vectors.",
        ),
        (
            '{"x": ' + "[" * 100_000,
            "is damaged: maximum recursion depth exceeded while deserializing an object. "  # noqa: ISC004
            "Reinstall refpeft, or make it anew with the vectors.",
        ),
    ],
)
def test_broken_floors_are_an_error(copy: Vector, contents: str, reason: str) -> None:
    """Not silently measured anew: nobody would notice."""
    file = golden_directory(copy.directory) / "floors.json"
    file.write_text(contents)
    _stored.cache_clear()
    with pytest.raises(VectorError) as caught:
        floors(copy, FLOAT32)
    assert str(caught.value) == f"'{file}' {reason}"
    _stored.cache_clear()


@pytest.mark.usefixtures("quick")
def test_stale_floors_are_named(copy: Vector) -> None:
    golden, case = golden_directory(copy.directory), copy.case.id
    _stored.cache_clear()
    problems = stale_floors(golden)
    assert problems[0].startswith(f"floors.json: {case}, float32, ")
    assert any("logits: 0.5, measured now" in problem for problem in problems)
    (golden / "floors.json").write_bytes(floors_document(golden))
    _stored.cache_clear()
    assert stale_floors(golden) == []
    path = copy.directory / "case.json"
    path.write_bytes(path.read_bytes() + b"\n")
    assert stale_floors(golden) == [f"floors.json does not know {case} as it is"]
    _stored.cache_clear()


@pytest.mark.usefixtures("quick")
def test_the_document_of_floors(copy: Vector) -> None:
    golden = golden_directory(copy.directory)
    document = floors_document(golden)
    (golden / "floors.json").write_bytes(document)
    _stored.cache_clear()
    computed = {name for name, tensor in copy.case.tensors.items() if tensor.kind == "composite"}
    for profile in PROFILES.values():
        kept, measured = floors(copy, profile), measure(ask_of(copy), profile)
        assert set(kept) == computed
        for name, floor in kept.items():
            assert floor.norm == float(f"{measured[name].norm:.3g}")
            assert floor.largest == float(f"{measured[name].largest:.3g}")
    assert document.endswith(b"}\n")
    _stored.cache_clear()
