"""Which case decides which known mistake: measured, stored, complete, and read again (clause JG-12)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refpeft.oracle import kill_matrix as module
from refpeft.oracle.kill_matrix import (
    CEILING,
    DECIDED,
    FORMATS,
    NAME,
    KillMatrix,
    answer_of,
    kill_matrix,
    margins,
    problems,
    stale_margins,
)
from refpeft.oracle.mutants import MUTANTS
from refpeft.oracle.mutants.mutant import Mutant
from refpeft.oracle.questions import Ask
from refpeft.oracle.vectors import VectorError, all_vectors, golden_directory

GOLDEN = golden_directory()
VECTORS = {vector.case.id.removeprefix("peft-0.21.2/"): vector for vector in all_vectors()}
ENCODE = "prefix_tuning/prefix_encode/projected"
BOTH = (ENCODE, "common/mask/ones")
SMALL = KillMatrix(
    {
        "a": {"M01": [9.0, 4.0, 2.5, 1.9], "M02": [1.0, 0.0, 0.0, 0.0]},
        "b": {"M01": [0.5, 0.0, 0.0, 0.0], "M16": [3.0, 1.0, 1.0, 1.0]},
    }
)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """Two cases."""
    found = [vector for name, vector in VECTORS.items() if name in BOTH] or list(VECTORS.values())[:2]
    for vector in found:
        shutil.copytree(vector.directory, tmp_path / "golden/vectors" / vector.case.id)
    shutil.copytree(GOLDEN / "models", tmp_path / "golden/models")
    (tmp_path / "golden/manifest.json").write_text("{}")
    (tmp_path / "golden" / NAME).write_bytes(module.kill_matrix_document(tmp_path / "golden"))
    return tmp_path / "golden"


def test_the_stored_matrix_is_complete_and_every_mutant_is_decided_twice() -> None:
    assert problems(GOLDEN) == []


def test_a_sample_of_it_is_what_is_measured() -> None:
    stored = kill_matrix(GOLDEN).rows
    for vector in list(VECTORS.values())[::60]:
        if vector.case.question not in ("training", "generate"):
            for mutant, measured in margins(vector).items():
                assert all(map(module._alike, stored[vector.case.id][mutant], measured)), (
                    vector.case.id,
                    mutant,
                )


def test_margins_are_errors_in_budgets() -> None:
    vector = next(
        v for n, v in VECTORS.items() if n.startswith("prefix_tuning/prefix_encode/") and "projected" in n
    )
    found = margins(vector, [MUTANTS[name] for name in ("M16", "M01", "M24", "M60")])
    assert list(found) == ["M16", "M01", "M60"], "a prompt is not put anywhere"
    assert len(found["M16"]) == len(FORMATS)
    wide, tf32, float16, bfloat16 = found["M16"]
    assert 1e4 < wide <= CEILING
    assert wide > tf32 > DECIDED
    assert tf32 > float16 / 4
    assert float16 > bfloat16 > DECIDED


def test_what_must_be_equal_and_is_not_has_the_largest_margin() -> None:
    vector = next(v for n, v in VECTORS.items() if n.startswith("common/mask/"))
    wide, tf32, *narrow = margins(vector, [MUTANTS["M41"]])["M41"]
    assert wide == tf32 == CEILING
    assert all(10 < margin < CEILING for margin in narrow), (
        "in narrow formats a copy may be off by its rounding"
    )


def test_a_document_has_no_margins() -> None:
    assert margins(next(v for v in VECTORS.values() if v.case.question == "config.resolve")) == {}


def test_a_mistake_that_makes_an_answer_impossible_has_no_answer() -> None:
    vector = next(v for n, v in VECTORS.items() if n.startswith("common/mask/"))
    ask = module.ask_of(vector)

    def broken() -> Any:
        return {"inputs.attention_mask": lambda mask, n: mask["no such"]}

    assert answer_of([Mutant("M999", "it breaks", "MK-1", "", "", broken)], ask) is None
    assert isinstance(ask, Ask)


def test_looking_up() -> None:
    assert SMALL.margin("a", "M01", "float16") == 2.5
    assert SMALL.margin("a", "M01", "float64") == SMALL.margin("a", "M01", "float64-islands") == 9.0
    assert SMALL.margin("a", "M16", "float32") == SMALL.margin("c", "M01", "float32") == 0.0
    assert SMALL.deciding("M01", "float32") == ["a"]
    assert SMALL.deciding("M01", "bfloat16") == []
    assert SMALL.deciding("M01", "float32", ["b"]) == []


def test_blind_spots_change_something_and_are_not_decided() -> None:
    assert SMALL.blind_spots([("a", "float32")]) == ["M02"]
    assert SMALL.blind_spots([("a", "bfloat16")]) == ["M01", "M02"]
    assert SMALL.blind_spots([("a", "bfloat16"), ("a", "float32")]) == ["M02"], "one format is enough"
    assert SMALL.blind_spots([("b", "float32")]) == ["M01"]
    assert SMALL.blind_spots([]) == []


def test_nothing_stored_is_an_empty_matrix(tmp_path: Path) -> None:
    assert kill_matrix(tmp_path).rows == {}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            b'{"format"',
            "is damaged: Input data was truncated. Reinstall refpeft, or make it anew with the vectors.",
        ),
        (
            b'{"format":2,"profiles":["float32"],"cases":{}}',
            "has format 2 with float32; this refpeft reads format 1 with float32, tf32, float16, bfloat16.",
        ),
        (
            b'{"format":1,"profiles":["float32"],"cases":{}}',
            "has format 1 with float32; this refpeft reads format 1 with float32, tf32, float16, bfloat16.",
        ),
    ],
)
def test_a_damaged_matrix(tmp_path: Path, written: bytes, said: str) -> None:
    (tmp_path / NAME).write_bytes(written)
    with pytest.raises(VectorError) as caught:
        module._stored(tmp_path)
    assert str(caught.value) == f"'{tmp_path / NAME}' {said}"


def test_stale_margins_and_unknown_cases_are_told(golden: Path) -> None:
    assert stale_margins(golden, 1) == []
    document = msgspec.json.decode((golden / NAME).read_bytes())
    case = next(
        name for name, row in document["cases"].items() if "M16" in row["margins"] or "M41" in row["margins"]
    )
    mutant = next(iter(document["cases"][case]["margins"]))
    before = document["cases"][case]["margins"][mutant]
    document["cases"][case]["margins"][mutant] = [5.0] * len(FORMATS)
    document["cases"]["peft-0.21.2/common/mask/none-such"] = {"digest": "0", "margins": {}}
    (golden / NAME).write_bytes(msgspec.json.encode(document))
    assert stale_margins(golden, 1) == [
        f"{NAME}: {case}, {mutant}: [5.0, 5.0, 5.0, 5.0], measured now {before}"
    ]
    found = problems(golden)
    assert found[0] == f"{NAME} does not know peft-0.21.2/common/mask/none-such as it is"
    assert (
        "M76 (the loss of a language model not shifted) is decided in float32 by no case alone; it must be by cases of two suites "
        "or two base models: add one"
    ) in found
    once = {mutant for mutant in MUTANTS if len(kill_matrix(golden).deciding(mutant, "float32")) == 1}
    assert once, "one case is too few"
    assert all(any(problem.startswith(f"{mutant} (") for problem in found) for mutant in once)
