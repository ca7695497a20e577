"""`refpeft report`, and `refpeft check --report`: files, statuses, messages."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from oracle.fake_ports import Honest, KeysForValues
from oracle.report.made import case, results, wrong

from refpeft import cli
from refpeft.cli import common
from refpeft.oracle.report.kinds import make
from refpeft.oracle.results import encode_results, read_results
from refpeft.oracle.statement import encode_statement, statement_of
from refpeft.oracle.vectors import golden_directory

MUTANT, HONEST = "oracle.fake_ports:KeysForValues", "oracle.fake_ports:Honest"
SMALL, SMALL_WRONG, CRASHING = (f"test_cli_reports:{name}" for name in ("Small", "SmallAndWrong", "Crashing"))
FEW = ("-k", "mask/full", "-k", "prefix_encode/odd-layers")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave .refpeft in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


class Small(Honest):
    """Answers little: a whole run takes a second."""

    def start(self) -> dict[str, Any]:
        return {**super().start(), "questions": ["mask", "prefix.encode"], "families": ["gpt2"]}


class SmallAndWrong(Small, KeysForValues):
    """With a mistake."""


class Crashing(Small):
    """Its version is another, and it raises."""

    def start(self) -> dict[str, Any]:
        return {**super().start(), "implementation": {"name": "fake", "language": "python", "version": "1"}}

    def run(self, request: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("no")


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == status, result.output
    return result


def error(*arguments: str) -> str:
    """What is said about wrong usage."""
    result = run(*arguments, status=common.USAGE)
    assert result.stdout == ""
    return result.stderr.partition("\n\nError: ")[2].strip()


def written(made: Any, name: str = "r.json") -> str:
    Path(name).write_bytes(encode_results(made))
    return name


# ---------------------------------------------------------------- reports


def test_check_writes_reports_and_prints_what_it_always_prints() -> None:
    files = ("r.json", "r.html", "r.md", "r.xml", "badge.json", "junit:other")
    options = [option for file in files for option in ("--report", file)]
    result = run("check", *FEW, *options, MUTANT, status=common.DIFFERS)
    document = read_results(Path("r.json"))
    assert json.loads(result.stdout) == json.loads(encode_results(document))
    assert document.command == [
        "refpeft",
        "check",
        "--case",
        "mask/full",
        "--case",
        "prefix_encode/odd-layers",
        "--",
        MUTANT,
    ]
    assert document.cases[1].excerpts[0].name == "prefix.layers.0.key"
    for name, kind in (
        ("r.html", "html"),
        ("r.md", "markdown"),
        ("r.xml", "junit"),
        ("badge.json", "badge"),
        ("other", "junit"),
    ):
        assert Path(name).read_bytes() == make(document, kind)
    assert sorted(path.name for path in Path().iterdir()) == sorted(
        [".refpeft", *(f.partition(":")[2] or f for f in files)]
    )


def test_a_command_says_what_decides_what_is_asked() -> None:
    run(
        "check",
        *FEW,
        "--profile",
        "float32",
        "-x",
        "--timeout",
        "9",
        "--report",
        "r.json",
        "--format",
        "pretty",
        HONEST,
    )
    assert read_results(Path("r.json")).command == [
        *("refpeft", "check", "--case", "mask/full", "--case", "prefix_encode/odd-layers", "--profile", "float32"),
        *("--fail-fast", "--timeout", "9.0", "--", HONEST),
    ]  # fmt: skip


def test_judged_files_are_reported_too() -> None:
    run("export", "-k", "mask/full", "questions")
    run("judge", "questions", "--report", "r.json", status=common.UNDECIDED)
    document = read_results(Path("r.json"))
    assert (document.summary.verdict, document.command) == ("INCONCLUSIVE", ["refpeft", "judge", "questions"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("r.pdf", "'r.pdf' does not say which report it shall be."),
        ("gone/r.md", "'gone/r.md' cannot be written: there is no directory 'gone'. Make it first."),
        ("json:.", "'.' is a directory; give the name of a file."),
    ],
)
def test_a_report_that_cannot_be_is_refused_before_anything_is_asked(name: str, said: str) -> None:
    assert error("check", *FEW, "--report", name, "no_such_module:port").startswith(said)


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/full's errors")
def test_a_report_that_cannot_be_written_ends_with_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    Path("r.md").write_text("old")
    monkeypatch.setattr("refpeft.files.write_atomically", full)
    result = run(
        "report", written(results(case())), "--format", "markdown", "-o", "r.md", status=common.CANNOT_WRITE
    )
    assert result.stderr == "Error: can't write 'r.md': Permission denied.\n"
    assert Path("r.md").read_text() == "old"


@pytest.mark.parametrize("kind", ["html", "markdown", "junit", "badge", "json", "pretty"])
def test_a_report_of_saved_results(kind: str) -> None:
    made = results(case(), wrong())
    name = written(made)
    assert run("report", name, "--format", kind).stdout_bytes == make(made, kind)
    assert run("report", name, "--format", kind, "-o", "out").stdout_bytes == b""
    assert Path("out").read_bytes() == make(made, kind)


def test_what_holds_no_results_is_refused() -> None:
    Path("r.json").write_text("{}")
    assert error("report", "r.json") == (
        "'r.json' holds no results of refpeft: Object missing required field `format`. Give a file that `refpeft check "
        "--report FILE.json` or `--format json` wrote."
    )


# ---------------------------------------------------------------- two runs


def test_two_runs_are_compared() -> None:
    old, new = (
        written(results(case(), wrong()), "old.json"),
        written(results(wrong("a/b/c"), wrong()), "new.json"),
    )
    found = json.loads(run("diff", old, new, status=common.DIFFERS).stdout)
    assert found == {
        "newly_failing": ["peft-0.21.2/a/b/c (float32)"], "newly_passing": [],
        "still_failing": ["peft-0.21.2/prefix_tuning/prefix_encode/odd-layers (float32)"],
        "drift": [], "appeared": 1, "gone": 1, "partial": False,
    }  # fmt: skip
    assert json.loads(run("diff", old, old).stdout)["newly_failing"] == []
    assert run("diff", old, old, "--format", "pretty").stdout == (
        "still failing (1)\n  peft-0.21.2/prefix_tuning/prefix_encode/odd-layers (float32)\n\n"
        "0 newly failing, 0 newly passing, 1 still failing\n"
    )
    Path("new.json").write_text("[]")
    assert error("diff", old, new).startswith("'new.json' holds no results of refpeft:")


def test_a_track_of_runs() -> None:
    first = run("check", *FEW, "--track", "runs.jsonl", HONEST)
    assert first.stderr == ""
    second = run("check", *FEW, "--track", "runs.jsonl", MUTANT, status=common.DIFFERS)
    assert second.stderr == (
        "Note: since the last run in 'runs.jsonl': 1 newly failing, 0 newly passing, 0 still failing; a partial run is among "
        "the two.\n"
    )
    lines = [json.loads(line) for line in Path("runs.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["CONFORMS", "NONCONFORMING"]
    Path("runs.jsonl").write_text("nonsense\n")
    assert error("check", *FEW, "--track", "runs.jsonl", "no_such_module:port").startswith(
        "'runs.jsonl' is no track of runs: its last line does not read:"
    )
    assert Path("runs.jsonl").read_text() == "nonsense\n"


EXPECTED = """
[[expected]]
case = "prefix_tuning/prefix_encode/odd-*"
reason = "heads are not split yet"
"""


def test_expected_failures_do_not_fail_a_run() -> None:
    Path("known.toml").write_text(EXPECTED)
    result = run("check", *FEW, "--expected-failures", "known.toml", MUTANT)
    document = json.loads(result.stdout)
    assert document["summary"]["verdict"] == "CONFORMS"
    assert document["summary"]["expected_failures"] == 1
    assert document["cases"][1]["verdict"] == "NONCONFORMING"
    assert document["cases"][1]["expected"] == {"reason": "heads are not split yet"}
    passing = json.loads(run("check", *FEW, "--expected-failures", "known.toml", HONEST).stdout)
    assert passing["summary"]["unexpected_passes"] == [
        "peft-0.21.2/prefix_tuning/prefix_encode/odd-layers (float32)"
    ]
    Path("known.toml").write_text(f"strict = true\n{EXPECTED}")
    run("check", *FEW, "--expected-failures", "known.toml", HONEST, status=common.DIFFERS)
    run("check", *FEW, "--expected-failures", "known.toml", MUTANT)


def test_an_expected_failure_of_no_case_is_refused() -> None:
    Path("known.toml").write_text(EXPECTED.replace("odd-*", "odd"))
    assert error("check", "--expected-failures", "known.toml", "no_such_module:port") == (
        "'known.toml', entry 1: no case matches 'prefix_tuning/prefix_encode/odd'; `refpeft list` shows all. Correct it, or "
        "remove the entry."
    )


# ---------------------------------------------------------------- statements


def test_a_statement_is_written_and_holds_until_it_does_not() -> None:
    run("check", "--statement", "s.json", "--statement", "s.md", SMALL)
    stated = json.loads(Path("s.json").read_text())
    assert stated["golden"] == hashlib.sha256((golden_directory() / "manifest.json").read_bytes()).hexdigest()
    assert stated["command"] == ["refpeft", "check", "--", SMALL]
    assert [(level["level"], level["conforms"], level["decided"]) for level in stated["levels"]] == [
        ("components", 50, 50)
    ]
    assert (
        Path("s.md")
        .read_text()
        .startswith("`fake 0` (`python`) conforms to HF peft as recorded in `peft-0.21.2`.")
    )
    said = f"The statement about fake 0 of {stated['date']}"
    assert run("verify-statement", "s.json", "--", SMALL).stdout == f"{said} holds.\n"
    broken = run("verify-statement", "s.json", SMALL_WRONG, status=common.DIFFERS).stdout.splitlines()
    assert broken[0] == "- components in float32: 10 of 50 conform, stated are 50 of 50"
    assert broken[1].startswith(
        "- failing, which is not stated: peft-0.21.2/prefix_tuning/prefix_encode/bert-odd-prefix-alone (float32), "
    )
    assert broken[1].endswith(" and 35 more")
    assert broken[2] == f"{said} does not hold."
    other = run("verify-statement", "s.json", CRASHING, status=common.DIFFERS).stdout
    assert other.startswith("- the port's version is '1', stated is '0'\n")
    assert run("verify-statement", "s.json", "--", "/no/such/port", status=common.UNREACHABLE).stdout == ""


def test_a_statement_with_failures_says_which() -> None:
    run("check", "--statement", "s.json", SMALL_WRONG, status=common.DIFFERS)
    assert len(json.loads(Path("s.json").read_text())["failing"]) == 40
    run("verify-statement", "s.json", SMALL_WRONG)
    run("verify-statement", "s.json", SMALL)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("-k", "mask"), "--case"),
        (("--profile", "float32", "--level", "model"), "--level, --profile"),
        (("--golden", "."), "--golden"),
        (("--last-failed",), "--last-failed"),
    ],
)
def test_a_statement_is_about_a_whole_run(options: tuple[str, ...], named: str) -> None:
    assert error("check", *options, "--statement", "s.json", "no_such_module:port") == (
        f"A statement is about everything that the port can do: leave out {named}."
    )


def test_no_statement_of_a_run_that_was_cut_short() -> None:
    result = run("check", "-x", "--statement", "s.json", SMALL_WRONG, status=common.CANNOT_WRITE)
    assert result.stderr.endswith(
        "Error: No statement: the run is partial (stopped at the first failure). Ask everything.\n"
    )
    assert not Path("s.json").exists()


def test_a_statement_of_other_vectors_cannot_be_verified_here() -> None:
    Path("s.json").write_text("{}")
    assert error("verify-statement", "s.json", SMALL).startswith(
        "'s.json' holds no statement of refpeft: Object missing"
    )
    made = statement_of(results(case()), "2026-01-02")
    Path("s.json").write_bytes(encode_statement(msgspec.structs.replace(made, golden="0" * 64)))
    assert error("verify-statement", "s.json", SMALL) == (
        "'s.json' was made with other golden vectors, those of refpeft 1.2.3. Verify it with that one."
    )
