"""`refpeft fuzz` and `--shard` on the command line: what they print and keep, and with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import _elsewhere, run  # noqa: F401  (a fixture is used by being here)
from oracle.fake_ports import START, command

from refpeft.cli.fuzz import QUESTIONS
from refpeft.oracle.drawn import CLAUSES

HONEST, MUTANT, LAZY, INTERRUPTED = (
    f"oracle.fake_ports:{name}" for name in ("Honest", "KeysForValues", "Lazy", "WrongAndInterrupted")
)


def fuzz(*arguments: str, status: int) -> Any:
    """The document of a search that ends with this status."""
    result = run("fuzz", "--seed", "3", *arguments)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def test_every_question_that_can_be_drawn_can_be_chosen() -> None:
    assert set(QUESTIONS) == set(CLAUSES)


def test_an_honest_port_is_found_nothing_of() -> None:
    document = fuzz("--max-examples", "30", HONEST, status=0)
    assert (document["verdict"], document["seed"], document["implementation"]["name"]) == (
        "CONFORMS",
        3,
        "fake",
    )
    assert document["examples"] == sum(document["counts"].values())
    assert "found" not in document
    assert not Path(".refpeft").exists()
    assert not Path(".hypothesis").exists()


def test_what_is_found_is_kept_asked_first_and_removed_when_mended() -> None:
    found = fuzz(MUTANT, status=1)
    assert (found["verdict"], found["example"]["layers"], found["example"]["tokens"]) == (
        "NONCONFORMING",
        1,
        1,
    )
    (case,) = found["found"]["cases"]
    kept = Path(case["reproduce"])
    assert kept.parent == Path(".refpeft/fuzz")
    replayed = run("check", "--golden", str(kept), "--profile", "float32", MUTANT)
    assert replayed.exit_code == 1
    assert json.loads(replayed.stdout)["expected_from"] == "refpeft"
    assert run("check", "--golden", str(kept), HONEST).exit_code == 0

    again = fuzz(MUTANT, status=1)
    assert (again["still"], again["examples"]) == ([str(kept)], 0)
    assert again["found"]["cases"][0]["first"]["name"] == "prefix.layers.0.key"

    mended = fuzz("--max-examples", "10", HONEST, status=0)
    assert mended["mended"] == [str(kept)]
    assert mended["examples"] > 0
    assert not kept.exists()


def test_people_are_told() -> None:
    shown = run("fuzz", "--seed", "3", "--format", "pretty", MUTANT).stdout
    assert "on drawn models (expected values are refpeft's own" in shown
    assert "first difference  prefix.layers.0.key  (PX-4 Which block is which)" in shown
    assert "DISAGREES  first at drawn question " in shown
    assert "more to gpt2: 1 layer, 1 head of 4, 1 virtual token, batch 1, 1 token\n" in shown
    assert shown.endswith("  the same again: --seed 3\n")
    still = run("fuzz", "--format", "pretty", MUTANT).stdout
    assert "STILL WRONG  1 kept failure of earlier searches; nothing new was looked for" in still
    mended = run("fuzz", "--max-examples", "5", "--format", "pretty", "--question", "mask", HONEST).stdout
    assert mended.startswith("kept failure, conforms now, removed: .refpeft/fuzz/fuzz.prefix_tuning.")
    assert "NO DISAGREEMENT  5 drawn questions in " in mended


def test_a_port_that_skips_everything_is_undecided() -> None:
    document = fuzz("--max-examples", "5", LAZY, status=4)
    assert (document["verdict"], set(document["counts"])) == ("INCONCLUSIVE", {"SKIPPED"})


def test_a_port_that_only_crashes_could_not_be_run() -> None:
    port = command(rest=[["exit", 3]], start=[["say", {**START, "questions": ["mask"]}]])
    assert fuzz("--", *port, status=3)["found"]["cases"][0]["verdict"] == "CRASHED"
    assert run("fuzz", "--", "/no/such/port").exit_code == 3


def test_ctrl_c_prints_what_there_is() -> None:
    """The first question is answered wrongly; asked about it once more, the port is interrupted."""
    document = fuzz("--question", "prefix.encode", INTERRUPTED, status=130)
    assert (document["ended"], document["examples"]) == ("interrupted", 0)


def test_a_time_limit_is_said() -> None:
    document = fuzz("--time-limit", "1e-9", HONEST, status=4)
    assert (document["ended"], document["examples"]) == ("time limit", 0)


def test_without_a_seed_one_is_drawn_and_printed() -> None:
    seeds = [json.loads(run("fuzz", "--max-examples", "1", HONEST).stdout)["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]


def test_what_cannot_be_drawn_is_wrong_usage() -> None:
    family = run("fuzz", "--family", "gpt5", HONEST)
    assert family.exit_code == 2
    assert "Nothing can be drawn: no question among mask, prefix.encode" in family.stderr
    assert "about gpt5 that the port says it can answer." in family.stderr
    profile = run("fuzz", "--profile", "float64", HONEST)
    assert profile.exit_code == 2
    assert "The port declares the profiles float32, not float64." in profile.stderr


def test_shards_of_a_search_draw_other_questions() -> None:
    first, second = (fuzz("--shard", f"{part}/2", MUTANT, status=1) for part in (1, 2) if not _forget())
    assert (first["shard"], second["shard"], first["seed"]) == ("1/2", "2/2", 3)
    assert (
        first["example"]["first_at"] != second["example"]["first_at"]
        or first["examples"] != second["examples"]
    )


def _forget() -> None:
    import shutil

    shutil.rmtree(".refpeft", ignore_errors=True)


def test_shards_of_a_check_are_all_cases_once_and_partial() -> None:
    whole = json.loads(run("check", "-k", "common/mask", HONEST).stdout)
    parts = [
        json.loads(run("check", "-k", "common/mask", "--shard", f"{part}/3", HONEST).stdout)
        for part in (1, 2, 3)
    ]
    asked = [case["case"] for part in parts for case in part["cases"]]
    assert sorted(asked) == sorted(case["case"] for case in whole["cases"])
    one = json.loads(run("check", "--level", "config", "--shard", "1/2", HONEST).stdout)
    assert (one["summary"]["partial"], one["summary"]["partial_because"]) == (
        True,
        "only a selection was asked",
    )


@pytest.mark.parametrize("given", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_a_shard_is_one_of_several(given: str) -> None:
    result = run("check", "--shard", given, HONEST)
    assert result.exit_code == 2
    assert f"{given!r} is not K/N, the K-th of N parts, such as 2/4." in result.stderr


def test_it_runs_as_a_program() -> None:
    """In a process of its own, where no test has set hypothesis up."""
    root = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    line = [sys.executable, "-m", "refpeft", "fuzz", "--seed", "1", "--max-examples", "5", HONEST]
    process = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert (process.returncode, json.loads(process.stdout)["examples"]) == (0, 5), process.stderr
    assert not Path(".hypothesis").exists()


def test_a_factor_is_no_arithmetic_however_few_numbers_there_are() -> None:
    """Four numbers, each a hundredth too large."""
    document = fuzz("--question", "prefix.encode", "--family", "gpt2", "oracle.fake_ports:TooLarge", status=1)
    assert [finding["kind"] for finding in document["found"]["diagnosis"]] == ["none"]
    assert "1.01 times refpeft's" in document["found"]["cases"][0]["first"]["hint"]
