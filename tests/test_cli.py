"""The command line: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from commands import _elsewhere, run  # noqa: F401  (a fixture is used by being here)
from oracle.fake_ports import START, command

from refpeft import __version__, cli
from refpeft.cli import common, options
from refpeft.oracle import budget, questions
from refpeft.oracle.cases import in_order
from refpeft.oracle.clauses import clause_title
from refpeft.oracle.explain import explain
from refpeft.oracle.repeat import STATE
from refpeft.oracle.vectors import all_vectors, matches

IDS = [
    vector.case.id
    for vector in in_order(all_vectors())
    if vector.case.model is None or vector.case.model.startswith("gpt2")
]
"""What a port of GPT-2 alone is asked, as those of these tests are."""
OTHERS = len(list(all_vectors())) - len(IDS)
MUTANT, HONEST, LAZY, NOISY, INTERRUPTED = (
    f"oracle.fake_ports:{name}" for name in ("KeysForValues", "Honest", "Lazy", "Noisy", "Interrupted")
)
NO_RECORD = "There is no record of a last run here (.refpeft/last-failed.json). Runs on your own model, and with --golden, are not recorded."
ODD = "peft-0.21.2/prefix_tuning/prefix_encode/odd-layers"


def checked(*arguments: str, status: int) -> Any:
    """The results document of a check that ends with this status."""
    result = run("check", *arguments)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def ids(document: Any) -> list[str]:
    return [case["case"] for case in document["cases"]]


def refused(*arguments: str) -> str:
    """What is said about wrong usage."""
    result = run("check", *arguments)
    assert result.exit_code == common.USAGE
    assert result.stdout == ""
    usage, _, message = result.stderr.partition("\n\nError: ")
    assert usage.startswith("Usage: main check [OPTIONS] [PORT]...\n")
    return message.strip()


def program(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, *arguments], text=True, capture_output=True, check=False, env=environment, **options
    )


# ---------------------------------------------------------------- statuses


def test_a_port_that_conforms() -> None:
    document = checked("-k", "mask/full", "-k", "prefix_encode/odd-layers", HONEST, status=common.CONFORMS)
    assert document["summary"] == {
        "verdict": "CONFORMS", "float64_exact": False, "asked": 2, "counts": {"CONFORMS": 2}, "not_asked": 0, "partial": True,
        "asked_twice": 2, "partial_because": "only a selection was asked",
    }  # fmt: skip
    assert document["implementation"]["name"] == "fake"
    assert not Path(".refpeft").exists(), "nothing failed, nothing is remembered"


def test_a_port_that_does_not() -> None:
    document = checked("-k", "mask/full", "-k", "odd-layers", MUTANT, status=common.DIFFERS)
    assert [case["verdict"] for case in document["cases"]] == ["CONFORMS", "NONCONFORMING"]
    first = document["cases"][1]["first"]
    assert (first["name"], first["clause"], first["ok"]) == ("prefix.layers.0.key", "PX-4", False)
    failure = Path(document["cases"][1]["reproduce"])
    assert failure == Path(".refpeft/failures/prefix_tuning.prefix_encode.odd-layers.float32")
    assert (failure / "README.txt").is_file()
    assert json.loads(Path(".refpeft/last-failed.json").read_text()) == [ODD]


def test_nothing_decided() -> None:
    document = checked("-k", "/mask/", LAZY, status=common.UNDECIDED)
    assert document["summary"]["counts"] == {"SKIPPED": 4}


def test_a_port_that_cannot_be_run() -> None:
    result = run("check", "--", "/no/such/port")
    assert (result.exit_code, result.stdout) == (common.UNREACHABLE, "")
    assert result.stderr == (
        "Error: Can't run `/no/such/port`: No such file or directory. Give the port's command after --, for example "
        "`refpeft check -- ./my_port`.\n"
    )
    assert run("check", "no_such_module:port").exit_code == common.UNREACHABLE


def test_a_port_that_only_crashes() -> None:
    crashing = command(q1=[["exit", 3]], q2=[["exit", 3]])
    document = checked(
        "-k", "mask/full", "-k", "mask/left-padding-b", "--", *crashing, status=common.UNREACHABLE
    )
    assert [case["verdict"] for case in document["cases"]] == ["CRASHED", "CRASHED"]
    assert document["summary"]["verdict"] == "NONCONFORMING"
    mixed = command(q1=[["exit", 3]], q2=[["say", {"errored": {"message": "no"}}]])
    checked("-k", "mask/full", "-k", "mask/left-padding-b", "--", *mixed, status=common.DIFFERS)


def test_a_port_that_hangs() -> None:
    hanging = command(q1=[["hang"]])
    (case,) = checked("-k", "mask/full", "--timeout", "0.3", "--", *hanging, status=common.UNREACHABLE)[
        "cases"
    ]
    assert (case["verdict"], case["message"]) == (
        "TIMEOUT",
        "no answer within 0.3 s (--timeout allows more); does the port flush standard output after each line (PP-1)?",
    )


def test_a_port_that_conforms_and_crashes_does_not_conform(tmp_path: Path) -> None:
    case = next(v for v in all_vectors() if v.case.id.endswith("mask/full"))
    answer = [["copy", "a", str(case.directory / "expected.safetensors")], ["say", {"tensors": "a"}]]
    port = command(q1=answer, q3=answer, rest=[["exit", 1]])
    document = checked("-k", "mask/full", "-k", "mask/left-padding-b", "--", *port, status=common.DIFFERS)
    assert document["summary"]["counts"] == {"CONFORMS": 1, "CRASHED": 1}


def test_validating() -> None:
    case = next(v for v in all_vectors() if v.case.id.endswith("mask/full"))
    answer = [
        ["copy", "a", str(case.directory / "expected.safetensors")],
        ["say", {"tensors": "a", "took": 1}],
    ]
    arguments = ("-k", "mask/full", "--", *command(rest=answer))
    checked(*arguments, status=common.CONFORMS)
    (found,) = checked("--validate", *arguments, status=common.DIFFERS)["cases"]
    assert found["verdict"] == "ERRORED"
    assert "unknown field `took`" in found["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", "nonsense"], f"No case matches; `refpeft list` shows all {len(IDS) + OTHERS}."),
        (["-k", "prefix.encde"], f"No case matches; nearest are prefix.encode, prefix_encode, prefix-encoder; `refpeft list` shows all {len(IDS) + OTHERS}."),
        (["-k", "mask/fulll"], f"No case matches; nearest are mask/full, common/mask/full; `refpeft list` shows all {len(IDS) + OTHERS}."),
        (["-k", "mask/", "--method", "prompt_tuning"], f"No case matches; `refpeft list` shows all {len(IDS) + OTHERS}."),
        (["-k", "mask", "--profile", "float64", HONEST], "The port declares the profiles float32, not float64."),
        (["--profile", "float64-islands"], "The port declares the profiles float32, float64, not float64-islands."),
        (["--last-failed"], NO_RECORD),
        (["--golden", "empty"], "'empty' has no golden vectors: no case.json anywhere below vectors/."),
        (["--golden", "nowhere"], "Invalid value for '--golden': Directory 'nowhere' does not exist."),
        (["--timeout", "0"], "Invalid value for '--timeout': 0.0 is not in the range x>0."),
        (["--level", "models"], "Invalid value for '--level': 'models' is not one of 'config', 'components', 'model', 'gradients', 'training', 'generation', 'checkpoint'."),
        (["--profile", "float8"], "Invalid value for '--profile': 'float8' is not one of 'float32', 'float64', 'float64-islands', 'tf32', 'float16', 'bfloat16'."),
    ],
)  # fmt: skip
def test_wrong_usage(arguments: list[str], message: str) -> None:
    Path("empty").mkdir()
    assert refused(*arguments) == message


def test_an_unknown_option_is_not_taken_for_a_port() -> None:
    assert refused("--nonsense").startswith("No such option")


def test_damaged_vectors_are_no_verdict() -> None:
    """On the port."""
    case = Path("golden/vectors/x/case.json")
    case.parent.mkdir(parents=True)
    case.write_text("{}")
    assert refused("--golden", "golden") == (
        f"'{case}' is not a case of format 1: Object missing required field `format`."
    )
    shipped = next(v for v in all_vectors() if v.case.id.endswith("mask/full"))
    case.write_bytes((shipped.directory / "case.json").read_bytes())
    Path("golden/manifest.json").write_text("{}")
    (case.parent / "inputs.safetensors").write_bytes(b"x")
    assert refused("--golden", "golden").endswith(
        "The file of the inputs of a golden vector is truncated or damaged: copy or write it again."
    )


def test_a_question_that_does_not_exist_is_no_verdict() -> None:
    shipped = next(v for v in all_vectors() if v.case.id.endswith("mask/full"))
    case = Path("golden/vectors/x/case.json")
    case.parent.mkdir(parents=True)
    case.write_bytes((shipped.directory / "case.json").read_bytes().replace(b'"mask"', b'"maks"'))
    assert refused("--golden", "golden") == (
        f"'{case.parent}' asks 'maks'; this refpeft knows {', '.join(questions.QUESTIONS)}."
    )


def test_damaged_floors_are_no_verdict() -> None:
    shipped = next(v for v in all_vectors() if v.case.id.endswith("mask/full"))
    shutil.copytree(shipped.directory, f"golden/vectors/{shipped.case.id}")
    Path("golden/manifest.json").write_text("{}")
    floors = Path("golden/floors.json")
    floors.write_text("{")
    assert refused("--golden", "golden") == (
        f"'{floors.resolve()}' is damaged: Input data was truncated. Reinstall refpeft, or make it anew with the vectors."
    )


def test_several_processes() -> None:
    golden = str(next(all_vectors()).directory.parents[3].parent)
    port = command(rest=[["expected", golden]])
    arguments = ("-k", "/mask/", "-k", "odd-layers")
    alone, beside = (
        checked(*arguments, "--jobs", jobs, "--", *port, status=common.CONFORMS) for jobs in ("1", "3")
    )
    for document in (alone, beside):
        for case in document["cases"]:
            del case["seconds"]
    assert alone == beside
    assert (alone["summary"]["asked"], alone["summary"]["asked_twice"]) == (5, 2)
    assert refused("--jobs", "0") == "Invalid value for '-j' / '--jobs': 0 is not in the range 1<=x<=256."


@pytest.mark.parametrize("port", [(), (HONEST,)])
def test_what_is_no_program_is_asked_one_by_one(port: tuple[str, ...]) -> None:
    result = run("check", "-k", "mask/full", "--profile", "float32", "--jobs", "2", *port)
    assert result.exit_code == common.CONFORMS
    assert result.stderr == (
        "Note: --jobs is for ports that are programs; this one is asked one question at a time.\n"
    )


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["check", "smoke"])
def test_what_a_port_leaves_behind_is_told(tmp_path: Path, name: str) -> None:
    pid = tmp_path / "daemon"
    skip = ["say", {"skipped": {"message": "no"}}]
    selection = ("-k", "mask/full") if name == "check" else ()
    result = run(name, *selection, "--", *command(q1=[["daemon", str(pid)], skip], rest=[skip]))
    assert result.stderr.splitlines()[-1] == (
        f"Note: the port left 1 process behind that had left its process group; ended ({pid.read_text()})."
    )


def test_a_port_that_answers_twice_differently() -> None:
    case = next(v for v in all_vectors() if v.case.id.endswith("mask/full"))
    answers = [["copy", "a", str(case.directory / "expected.safetensors")], ["say", {"tensors": "a"}]]
    port = command(q1=answers, q2=[["exit", 3]])
    result = run("check", "-k", "mask/full", "--format", "pretty", "--", *port)
    assert result.exit_code == common.DIFFERS
    assert [line.rstrip() for line in result.stdout.splitlines()][6:] == [
        "✗ common/mask/full  float32  NONDETERMINISTIC",
        f"  asked once, it answered; asked once more, it crashed (the port exited with status 3). {STATE}",
        "  → refpeft explain JG-10",
        "  → .refpeft/failures/common.mask.full.float32",
        "",
        "",
        "NONCONFORMING  some questions were not answered rightly: 0 of 1 case conforms; 1 NONDETERMINISTIC; partial: only a selection was asked",
    ]


def test_standard_output_is_json_whatever_a_port_prints() -> None:
    result = run("check", "-k", "mask/full", NOISY)
    assert json.loads(result.stdout)["summary"]["verdict"] == "CONFORMS"
    assert result.stderr == "loading the model\nquestion 1\nquestion 2\n"


def test_an_interrupt_shows_what_there_is() -> None:
    result = run("check", INTERRUPTED)
    assert result.exit_code == common.INTERRUPTED == 130
    summary = json.loads(result.stdout)["summary"]
    assert (summary["asked"], summary["partial"], summary["counts"]) == (2, True, {"SKIPPED": 2})
    assert (summary["partial_because"], summary["not_asked"]) == ("interrupted", OTHERS)


def test_after_an_interrupt_nothing_more_is_looked_for() -> None:
    """Neither in the answers nor at the port, which may be what was too slow."""
    result = run("check", "-k", "odd-layers", "-k", "even-layers", "oracle.fake_ports:WrongAndInterrupted")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["summary"]["counts"]) == (130, {"NONCONFORMING": 1})
    assert (document["diagnosis"], document["blind_spots"]) == ([], [])


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP] if os.name == "posix" else [])
def test_a_signal_ends_the_port_too(tmp_path: Path, number: int) -> None:
    """And leaves nothing behind."""
    pids, asked, temporary = tmp_path / "pids", tmp_path / "asked", tmp_path / "temporary"
    temporary.mkdir()
    port = command([["note", str(pids)], ["say", START]], q1=[["note", str(asked)]])
    path = os.pathsep.join(filter(None, sys.path))
    before = signal.signal(number, signal.SIG_DFL)  # nohup says to ignore it, to whatever is started here too
    process = subprocess.Popen(
        [sys.executable, "-m", "refpeft", "check", "-k", "mask/full", "--", *port],
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
    )
    signal.signal(number, before)
    while not asked.exists():
        assert process.poll() is None
        time.sleep(0.02)
    assert any(temporary.iterdir())
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert process.communicate()[0] == b""
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with nohup."""
    installed: list[int] = []
    handlers = {signal.SIGHUP: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}
    monkeypatch.setattr(signal, "getsignal", handlers.get)
    monkeypatch.setattr(signal, "signal", lambda number, _: installed.append(number))
    common.end_on_signals()
    assert installed == [signal.SIGTERM]


# ---------------------------------------------------------------- selecting


def test_patterns_levels_and_methods() -> None:
    def asked(*arguments: str) -> list[str]:
        return ids(checked(*arguments, LAZY, status=common.UNDECIDED))

    assert asked("-k", "mask/") == [i for i in IDS if "/mask/" in i]
    assert asked("-k", "mask/full", "--case", "*/mask/left-padding") == [i for i in IDS if i.endswith(("mask/full", "mask/left-padding"))]  # fmt: skip
    assert asked("-k", "prefix.encode") == [i for i in IDS if "/prefix_encode/" in i]
    assert asked("-k", "checkpoint.s") == [v.case.id for v in in_order(all_vectors()) if v.case.question == "checkpoint.save" and v.case.id in IDS]  # fmt: skip
    assert asked("--level", "checkpoint", "--level", "config") == [i for i in IDS if "/checkpoint/" in i or "/config/" in i]  # fmt: skip
    assert asked("--method", "common") == [i for i in IDS if i.split("/")[1] == "common"]
    assert asked("--method", "prompt_tuning", "--level", "gradients") == [i for i in IDS if matches(i, "*/prompt_tuning/gradients/*")]  # fmt: skip


def test_profiles() -> None:
    def profiles(*arguments: str) -> list[str]:
        return [
            case["profile"]
            for case in checked("-k", "mask/full", *arguments, status=common.CONFORMS)["cases"]
        ]

    assert profiles() == ["float32", "float64"]
    assert profiles("--profile", "float64") == ["float64"]
    assert profiles("--profile", "float64", "--profile", "float32") == ["float32", "float64"]


def test_what_makes_a_run_partial() -> None:
    whole = checked(LAZY, status=common.UNDECIDED)
    assert (whole["summary"]["partial"], whole["summary"]["asked"]) == (False, len(IDS))
    for arguments in (
        ("-k", "mask"),
        ("--level", "config"),
        ("--method", "common"),
        ("--profile", "float32"),
    ):
        summary = checked(*arguments, LAZY, status=common.UNDECIDED)["summary"]
        assert (summary["partial"], summary["partial_because"]) == (True, "only a selection was asked"), (
            arguments
        )
    assert not checked("-x", LAZY, status=common.UNDECIDED)["summary"]["partial"], (
        "nothing failed: all were asked"
    )


def test_failing_fast() -> None:
    document = checked("-x", "-k", "prefix_encode", MUTANT, status=common.DIFFERS)
    verdicts = [case["verdict"] for case in document["cases"]]
    assert verdicts[-1] == "NONCONFORMING"
    assert set(verdicts[:-1]) <= {"CONFORMS"}
    assert (
        document["summary"]["partial_because"] == "only a selection was asked, stopped at the first failure"
    )
    assert (
        checked("--fail-fast", "-k", "prefix_encode/even", MUTANT, status=common.DIFFERS)["summary"]["asked"]
        == 1
    )
    assert checked("-k", "prefix_encode", MUTANT, status=common.DIFFERS)["summary"]["asked"] > 1


def test_the_last_failures() -> None:
    first = checked("-k", "/mask/", "-k", "prefix_encode", MUTANT, status=common.DIFFERS)
    verdicts = [(case["case"], case["verdict"]) for case in first["cases"]]
    failed = list(dict.fromkeys(case for case, verdict in verdicts if verdict == "NONCONFORMING"))
    assert not any("/mask/" in case or "zero-init" in case for case in failed)  # keys equal values in zeros
    again = checked("--last-failed", MUTANT, status=common.DIFFERS)
    assert ids(again) == failed
    assert again["summary"]["partial"]
    narrowed = checked("--last-failed", "-k", "odd-layers", "-k", "/mask/", MUTANT, status=common.DIFFERS)
    assert ids(narrowed) == [ODD], "both conditions hold"
    checked("--last-failed", HONEST, status=common.CONFORMS)
    assert refused("--last-failed") == "Nothing failed in the last run here."
    Path(".refpeft/last-failed.json").write_text("{")
    assert refused("--last-failed") == NO_RECORD


def test_what_was_not_asked_stays_failed() -> None:
    checked("-k", "prefix_encode", MUTANT, status=common.DIFFERS)
    before = json.loads(Path(".refpeft/last-failed.json").read_text())
    assert len(before) > 2
    checked("-k", "odd-layers", HONEST, status=common.CONFORMS)
    checked("-k", "/mask/", HONEST, status=common.CONFORMS)
    assert json.loads(Path(".refpeft/last-failed.json").read_text()) == [i for i in before if i != ODD]
    checked(LAZY, status=common.UNDECIDED)
    assert json.loads(Path(".refpeft/last-failed.json").read_text()) == [], "a whole run begins anew"


def test_other_vectors_are_not_remembered() -> None:
    (case,) = checked("-k", "odd-layers", MUTANT, status=common.DIFFERS)["cases"]
    Path(".refpeft/last-failed.json").unlink()
    checked("--golden", case["reproduce"], MUTANT, status=common.DIFFERS)
    assert not Path(".refpeft/last-failed.json").exists()
    Path(".refpeft/last-failed.json").write_text('["x"]')
    checked("--golden", case["reproduce"], HONEST, status=common.CONFORMS)
    assert Path(".refpeft/last-failed.json").read_text() == '["x"]'


def test_the_last_failures_are_whole_ids() -> None:
    one = "peft-0.21.2/prefix_tuning/forward/left-padding"
    assert sum(one in i for i in IDS) > 1
    Path(".refpeft").mkdir()
    Path(".refpeft/last-failed.json").write_text(json.dumps([one]))
    assert ids(checked("--last-failed", LAZY, status=common.UNDECIDED)) == [one]


def test_old_failures_go_with_a_whole_run_only() -> None:
    old = Path(".refpeft/failures/old")
    old.mkdir(parents=True)
    checked("-k", "/mask/", LAZY, status=common.UNDECIDED)
    checked("--failures", "there", LAZY, status=common.UNDECIDED)
    assert old.exists()
    checked(LAZY, status=common.UNDECIDED)
    assert not old.exists()


def test_failures_elsewhere() -> None:
    (case,) = checked("-k", "odd-layers", "--failures", "there", MUTANT, status=common.DIFFERS)["cases"]
    assert Path(case["reproduce"]).parent == Path("there")
    assert Path(case["reproduce"], "request.json").is_file()
    assert not Path(".refpeft/failures").exists()


def test_a_directory_that_cannot_be_written_stops_nothing() -> None:
    Path(".refpeft").write_text("a file")
    result = run("check", "-k", "odd-layers", MUTANT)
    assert result.exit_code == common.DIFFERS
    assert result.stderr == "Note: can't remember what failed (File exists).\n"
    (case,) = json.loads(result.stdout)["cases"]
    assert "reproduce" not in case
    assert case["detail"].startswith("Can't write what reproduces a failure to '.refpeft/failures': ")


# ---------------------------------------------------------------- what people see


def test_a_failing_port_in_full() -> None:
    result = run(
        "check", "-k", "mask/full", "-k", "odd-layers", "-k", "even-layers", "--format", "pretty", MUTANT
    )
    assert result.exit_code == common.DIFFERS
    document = checked("-k", "prefix_encode/even-layers", MUTANT, status=common.DIFFERS)
    (case,) = document["cases"]
    first = case["first"]
    assert (first["measure"], case["differences"][0]["name"]) == ("largest", "prefix.flat")
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        f"fake 0 (python) against HF peft: peft-0.21.2, refpeft {__version__}",
        "",
        "level       float32",
        "components      1/3",
        "not asked: config, model, gradients, training, generation, checkpoint",
        "",
        "✗ prefix_tuning/prefix_encode/even-layers  float32  NONCONFORMING",
        f"  first difference  prefix.layers.0.key  ({clause_title('PX-4')})",
        f"    error {first['error']:.3g} largest, budget {first['derivation']}",
        f"    worst at {first['where']}: {first['values']}",
        "    before it, 1 tensor agrees exactly",
        "    in HF: peft peft_model.py PeftModel.get_prompt",
        "  and 1 more that begin so: prefix_tuning/prefix_encode/odd-layers (float32)",
        "  → refpeft explain PX-4",
        "  → .refpeft/failures/prefix_tuning.prefix_encode.even-layers.float32",
        "",
        "",
        "≈ 2 of 2 failing cases: the answer is HF peft's with the mistake M174 values in the place of keys (PX-4)",
        "  first seen at prefix.layers.0.key",
        "  a match suggests, it does not prove",
        "  → refpeft explain M174",
        "",
        "",
        "NONCONFORMING  some answers differ from HF peft: 1 of 3 cases conform; 2 NONCONFORMING; partial: only a selection was asked",
    ]
    assert first["error"] > 0.5
    assert first["where"].startswith("row ")


def test_json_when_piped_pretty_when_asked() -> None:
    plain = run("check", "-k", "mask/full")
    assert run("check", "-k", "mask/full", "--format", "json").stdout.startswith('{\n "refpeft"')
    assert plain.stdout.startswith('{\n "refpeft"')
    assert plain.stderr == ""
    pretty = run("check", "-k", "mask/full", "--format", "pretty").stdout
    assert pretty.startswith(f"refpeft {__version__} (python) against HF peft")
    assert (
        "CONFORMS  every answer agrees with HF peft: 2 of 2 questions conform (1 case in 2 profiles); float64-exact; partial"
        in pretty
    )
    assert "\x1b" not in pretty


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
def test_pretty_on_a_terminal() -> None:
    import pty

    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "refpeft", "check", "-k", "mask/full"]
    environment = {
        **os.environ,
        "TERM": "xterm-256color",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        arguments, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait() == common.CONFORMS, seen
    text = seen.decode()
    assert "every answer agrees with HF peft: 2 of 2 questions conform" in text
    assert "asking" in text, "the progress bar"
    assert "2/2" in text
    assert "\x1b[1;32mCONFORMS" in text


# ---------------------------------------------------------------- the other commands


def test_list() -> None:
    everything = run("list").stdout.splitlines()
    assert [line.split("  ")[0] for line in everything] == [v.case.id for v in in_order(all_vectors())]
    result = run("list", "-k", "mask/full", "--level", "components")
    case = next(v.case for v in all_vectors() if v.case.id.endswith("mask/full"))
    assert (result.exit_code, result.stdout) == (0, f"{case.id}  {case.title}\n")
    assert run("list", "-k", "nonsense").exit_code == common.USAGE


def test_explain() -> None:
    result = run("explain", "px-4")
    assert (result.exit_code, result.stdout) == (0, explain("PX-4") + "\n")
    wrong = run("explain", "PX4")
    assert wrong.exit_code == common.USAGE
    assert wrong.stderr.startswith("Usage: main explain [OPTIONS] TOPIC\n")
    assert (
        "Error: 'PX4' is no clause, question, stage, step, known mistake, property or case. Did you mean PX-"
        in wrong.stderr
    )
    assert run("explain").exit_code == common.USAGE


def test_smoke() -> None:
    good = run("smoke", "--format", "pretty", LAZY)
    assert good.exit_code == common.CONFORMS
    assert good.stdout.startswith(
        "✓ start: fake 0 (python); methods prompt_tuning, prefix_tuning; questions "
    )
    assert "\n✓ mask (common): skipped: not today\n" in good.stdout
    bad = run(
        "smoke",
        "--format",
        "pretty",
        "--",
        *command([["say", {**START, "questions": ["mask"]}]], q1=[["errors", "boom\n", 1], ["exit", 3]]),
    )
    assert bad.exit_code == common.UNREACHABLE
    assert bad.stdout.splitlines() == [
        "✓ start: fake 0 (python); methods prompt_tuning, prefix_tuning; questions mask; profiles float32",
        "✗ mask (common): CRASHED: the port exited with status 3",
        "    boom",
    ]
    strict = [["say", {**START, "questions": ["mask"], "mood": 1}]]
    refusing = run("smoke", "--", *command(strict))
    assert refusing.exit_code == common.UNREACHABLE
    assert "unknown field `mood`" in refusing.stderr
    hanging = [["say", {**START, "questions": ["mask"]}]]
    assert "TIMEOUT: no answer within 0.3 s" in run("smoke", "--timeout", "0.3", "--", *command(hanging, q1=[["hang"]])).stdout  # fmt: skip


# ---------------------------------------------------------------- as a program


def test_the_whole_check_as_a_program() -> None:
    process = program(["-m", "refpeft", "check"])
    assert process.returncode == common.CONFORMS, process.stderr
    summary = json.loads(process.stdout)["summary"]
    everything = 2 * len(list(all_vectors()))
    assert summary == {
        "verdict": "CONFORMS", "float64_exact": True, "asked": everything, "counts": {"CONFORMS": everything},
        "not_asked": 0, "partial": False,
    }  # fmt: skip
    assert process.stderr == ""


def test_smoke_as_json() -> None:
    """What is piped is JSON, as of every other command."""
    port = command([["say", {**START, "questions": ["mask"]}]], q1=[["exit", 3]])
    result = run("smoke", "--", *port)
    assert result.exit_code == common.UNREACHABLE
    assert json.loads(result.stdout) == [
        {
            "ok": True,
            "text": "start: fake 0 (python); methods prompt_tuning, prefix_tuning; questions mask; profiles float32",
        },
        {"ok": False, "text": "mask (common): CRASHED: the port exited with status 3"},
    ]


def test_each_command_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of the usual width: no sentence is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == sorted(cli.main.commands)
    assert [line for line in lines if not line.endswith(".") or line.endswith("...")] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [["check", "-k", "mask/full", "--format", form] for form in ("pretty", "json")] + [["explain", "PX-4"]],
)
def test_a_full_disk(arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "refpeft", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            env=environment,
        )
    assert ended.stderr.decode() == "Error: can't write the output: No space left on device.\n"
    assert ended.returncode == common.CANNOT_WRITE == 74


def test_other_troubles_of_the_system_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("refpeft.oracle.explain.explain", fail)
    assert isinstance(CliRunner().invoke(cli.main, ["explain", "PX-4"]).exception, PermissionError)


def test_statuses_as_a_program() -> None:
    assert program(["-m", "refpeft", "check", "-k", "odd-layers", MUTANT]).returncode == common.DIFFERS
    assert program(["-m", "refpeft", "check", "-k", "nonsense"]).returncode == common.USAGE


def test_version() -> None:
    assert run("--version").stdout == f"refpeft, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["smoke", "-h"], ["--version"]])
def test_help_is_light(arguments: list[str]) -> None:
    """It imports neither NumPy nor what stands on it."""
    code = (
        "import sys\nfrom refpeft.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert not end.code\nprint(sorted(set(sys.modules) & {'numpy', 'rich', 'autograd', 'msgspec', 'safetensors'}), file=sys.stderr)"
    )
    process = program(["-c", code, *arguments])
    assert process.stderr == "[]\n"
    assert process.stdout


def test_what_help_says() -> None:
    text = run("check", "--help").stdout
    for option in ("-k, --case", "--level", "--method", "--golden", "--profile", "--last-failed", "-x, --fail-fast", "--timeout", "--validate", "--format", "--failures"):  # fmt: skip
        assert option in text
    assert (
        "Exit status: 0 conforms, 1 does not, 2 wrong usage, 3 the port could not be run, 4 nothing was"
        in text
    )
    assert "refpeft check -- ./my_port     judge a program" in run().stderr + run("--help").stdout


def test_the_choices_are_those_of_the_oracle() -> None:
    assert options.LEVELS == questions.LEVELS
    assert (*questions.METHODS, questions.COMMON) == options.METHODS
    assert tuple(budget.PROFILES) == options.PROFILES
    assert (common.CONFORMS, common.DIFFERS, common.USAGE, common.UNREACHABLE, common.UNDECIDED) == (
        0,
        1,
        2,
        3,
        4,
    )
