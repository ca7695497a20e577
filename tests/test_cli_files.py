"""`refpeft export`, `refpeft judge` and `refpeft init` on the command line: what they print, and their exit statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commands import _elsewhere, run  # noqa: F401  (a fixture is used by being here)
from oracle.test_files_port import MASK, PLACE, answer_all

from refpeft import __version__
from refpeft.cli import common
from refpeft.oracle.files_port import UNANSWERED
from refpeft.oracle.vectors import all_vectors


def exported(*arguments: str) -> Path:
    result = run("export", "questions", *arguments)
    assert result.exit_code == 0, result.output
    return Path("questions")


def judged(*arguments: str, status: int) -> Any:
    result = run("judge", "questions", *arguments)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def refused(*arguments: str) -> str:
    """What is said about wrong usage."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (common.USAGE, "")
    return result.stderr.partition("\n\nError: ")[2].strip()


def test_exporting() -> None:
    result = run("export", "-k", "mask/", "questions")
    assert result.exit_code == 0
    assert result.stdout == "8 questions in 'questions'; 'questions/README.txt' says how to answer them.\n"
    assert refused("export", "questions") == (
        "'questions' exists and is not an empty directory; nothing was written. Give the name of a new directory, or "
        "remove this one first."
    )
    Path("ans.py").touch()
    assert refused("export", "ans.py") == (
        "'ans.py' is a file; nothing was written. Give the name of a new directory."
    )
    assert refused("export", "-k", "nonsense", "other").startswith("No case matches; ")
    assert not Path("other").exists()


def test_what_is_exported_can_be_chosen() -> None:
    exported("--level", "checkpoint", "--method", "prompt_tuning", "--profile", "float32")
    index = json.loads(Path("questions/export.json").read_text())
    assert index["profiles"] == ["float32"]
    assert {case["case"].rpartition("/")[0] for case in index["cases"]} == {"peft-0.21.2/prompt_tuning/checkpoint"}  # fmt: skip


def test_everything_answered_conforms() -> None:
    answer_all(exported("-k", "mask/"))
    document = judged(status=common.CONFORMS)
    assert document["summary"] == {
        "verdict": "CONFORMS", "float64_exact": True, "asked": 8, "counts": {"CONFORMS": 8}, "not_asked": 0, "partial": True,
        "partial_because": "only a selection was asked",
    }  # fmt: skip
    assert document["implementation"] == {"name": "questions", "language": "unknown", "version": ""}
    assert document["profiles"] == ["float32", "float64"]
    assert not Path(".refpeft").exists()


def test_nothing_answered_decides_nothing() -> None:
    exported("-k", "mask/")
    document = judged(status=common.UNDECIDED)
    assert document["summary"] == {
        "verdict": "INCONCLUSIVE", "float64_exact": False, "asked": 8, "counts": {"SKIPPED": 8}, "not_asked": 0, "partial": True,
        "partial_because": "only a selection was asked, 8 questions not answered",
    }  # fmt: skip
    assert {case["message"] for case in document["cases"]} == {UNANSWERED}


def test_a_wrong_answer_differs() -> None:
    answer_all(exported("-k", "mask/"))
    full, padded = Path("questions/questions/common/mask/full"), Path("questions") / PLACE
    (padded / "answer.safetensors").write_bytes((full / "float32/answer.safetensors").read_bytes())
    document = judged("--failures", "there", status=common.DIFFERS)
    (wrong,) = [case for case in document["cases"] if case["verdict"] != "CONFORMS"]
    assert (wrong["case"], wrong["verdict"], wrong["first"]["name"]) == (MASK, "NONCONFORMING", "inputs.attention_mask")  # fmt: skip
    assert Path(wrong["reproduce"]) == Path("there/common.mask.left-padding.float32")
    again = run("export", "again", "--golden", wrong["reproduce"], "--profile", "float32")
    assert again.exit_code == 0, again.output
    answer_all(Path("again"))
    assert run("judge", "again", "--golden", wrong["reproduce"]).exit_code == common.CONFORMS


def test_partial_unless_everything_is_asked_and_answered() -> None:
    """And a whole run clears what failed before."""
    for request in exported("--profile", "float32").rglob("request.json"):
        (request.parent / "answer.json").write_text('{"skipped": {"message": "not today"}}')
    old = Path(".refpeft/failures/old")
    old.mkdir(parents=True)
    answer = Path("questions") / PLACE / "answer.json"
    answer.unlink()
    everything = len(list(all_vectors()))
    summary = judged(status=common.UNDECIDED)["summary"]
    assert (summary["partial"], summary["counts"]) == (True, {"SKIPPED": everything})
    assert summary["partial_because"] == "1 question not answered"
    assert old.exists()
    answer.write_text('{"skipped": {"message": "nor this"}}')
    summary = judged(status=common.UNDECIDED)["summary"]
    assert (summary["partial"], summary["counts"]) == (False, {"SKIPPED": everything})
    assert not old.exists()


def test_for_people() -> None:
    answer_all(exported("-k", "mask/"))
    (Path("questions") / PLACE / "answer.safetensors").unlink()
    result = run("judge", "questions", "--name", "my-port 0.3", "--language", "fortran", "--format", "pretty")
    assert result.exit_code == common.CONFORMS
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        f"my-port 0.3 (fortran) against HF peft: peft-0.21.2, refpeft {__version__}",
        "",
        "level       float32  float64",
        "components      3/3      4/4",
        "not asked: config, model, gradients, training, generation, checkpoint",
        f"skipped 1: {UNANSWERED}",
        "",
        "CONFORMS  every answer agrees with HF peft: 7 of 8 questions conform (4 cases in 2 profiles); float64-exact; 1 SKIPPED; partial: only a selection was asked, 1 question not answered",
    ]  # fmt: skip


def test_what_cannot_be_judged() -> None:
    assert refused("judge", "none") == (
        "'none' is not a directory of exported questions: there is no file 'export.json'. Give one that `refpeft export "
        "DIRECTORY` wrote."
    )
    exported("-k", "mask/full")
    index = json.loads(Path("questions/export.json").read_text())
    index["cases"][0]["digest"] = "0" * 16
    Path("questions/export.json").write_text(json.dumps(index))
    assert refused("judge", "questions").startswith("'questions' was exported from other golden vectors than these: 1 ")  # fmt: skip


def test_beginning_a_port() -> None:
    result = run("init", "rust", "mine")
    assert (result.exit_code, result.stdout) == (0, "A port in rust in 'mine'; 'mine/README.md' says how to run and judge it.\n")  # fmt: skip
    assert Path("mine/Cargo.toml").is_file()
    assert refused("init", "python", "mine") == (
        "'mine' exists and is not an empty directory; nothing was written. Give the name of a new directory, or remove "
        "this one first."
    )
    assert "'cobol' is not one of 'python', 'javascript', 'rust', 'elixir'." in refused("init", "cobol")
    assert not Path("my-port").exists()


def test_beginning_a_port_here() -> None:
    assert run("init", "python", ".").exit_code == 0
    assert Path("port.py").is_file()
    assert refused("init", "python", ".").startswith("'.' exists and is not an empty directory; ")
