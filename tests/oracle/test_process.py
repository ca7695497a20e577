"""Whatever a program does, asking it ends in a reply that says what happened, and leaves no process behind."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from oracle.fake_ports import START, command

from refpeft.config import TASK_TYPES
from refpeft.oracle import streams
from refpeft.oracle.process import ProcessPort
from refpeft.oracle.protocol import RunCommand
from refpeft.oracle.questions import QUESTIONS, Answer, Ask
from refpeft.oracle.reply import STRAY, Port, PortError, Reply
from refpeft.tensors import write_tensors

ASK = Ask("mask", "common")
FINE = [["say", {"document": {"fine": True}}]]
ANSWERED = Reply("ANSWERED", Answer(document={"fine": True}))
ONE_LINE = ": one line for each question, with its seq (PP-1)"
posix = pytest.mark.skipif(os.name != "posix", reason="signals and links")


def request(output: Path, seq: int = 1) -> RunCommand:
    output.mkdir()
    return RunCommand(
        seq, "case", "mask", "common", "float32", None, None, {"batch_size": 2}, None, None, [], str(output)
    )


def replies(
    tmp_path: Path, count: int = 1, timeout: float = 20.0, validate: bool = False, **script: Any
) -> list[Reply]:
    """What comes of the first `count` questions to a scripted program, which is gone afterwards."""
    pids = tmp_path / "pids"
    start = [["note", str(pids)], *script.pop("start", [["say", START]])]
    port = ProcessPort(command(start, **script), timeout, validate=validate)
    try:
        return [port.ask(ASK, request(tmp_path / str(seq), seq)) for seq in range(1, count + 1)]
    finally:
        port.close()
        gone(pids)


def gone(pids: Path) -> None:
    """No process that noted its number is alive or a zombie."""
    noted = pids.read_text(encoding="utf-8").split()
    assert noted
    for pid in noted:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def reply(tmp_path: Path, *steps: list[Any], **options: Any) -> Reply:
    return replies(tmp_path, q1=list(steps), **options)[0]


def refusal(tmp_path: Path, *steps: list[Any], validate: bool = False) -> str:
    """Why a program was refused at its start, its command aside."""
    pids = tmp_path / "pids"
    line = command([["note", str(pids)], *steps])
    with pytest.raises(PortError) as caught:
        ProcessPort(line, validate=validate)
    gone(pids)
    return str(caught.value).replace(f"`{shlex.join(line)}`", "PORT")


# ---------------------------------------------------------------- start


def test_a_program_says_what_it_can_do() -> None:
    port = ProcessPort(command())
    port.close()
    assert msgspec.to_builtins(port.abilities) == {**START, "tasks": list(TASK_TYPES)}, (
        "all tasks, where none are named"
    )
    assert isinstance(port, Port)


def test_exits_at_start(tmp_path: Path) -> None:
    said = refusal(tmp_path, ["errors", "cannot find the model\nreally\n", 1], ["exit", 7])
    assert said == "PORT did not answer `start`: it exited with status 7.\n  cannot find the model\n  really"


def test_prints_garbage_at_start(tmp_path: Path) -> None:
    assert refusal(tmp_path, ["raw", "hello", 1]) == (
        "PORT answered `start` with 'hello', which is not what PP-2 says: JSON is malformed: invalid character (byte 0)."
    )


def test_nests_too_deeply_at_start(tmp_path: Path) -> None:
    assert refusal(tmp_path, ["raw", "[", 100_000]).startswith("PORT answered `start` with '[[[")


def test_speaks_another_version(tmp_path: Path) -> None:
    assert refusal(tmp_path, ["say", {**START, "version": 2}]) == (
        "PORT speaks version 2 of the protocol; this refpeft speaks 1."
    )


def test_names_questions_and_methods_that_do_not_exist(tmp_path: Path) -> None:
    said = refusal(tmp_path, ["say", {**START, "questions": ["mask", "foward"], "methods": ["lora"]}])
    assert said == (
        f"PORT says it can do foward, lora, which do not exist. Questions: {', '.join(QUESTIONS)}; methods: prompt_tuning, "
        f"prefix_tuning; tasks: {', '.join(TASK_TYPES)}."
    )


def test_names_a_profile_that_does_not_exist(tmp_path: Path) -> None:
    said = refusal(tmp_path, ["say", {**START, "profiles": ["float8"]}])
    assert said.endswith("which is not what PP-2 says: Invalid enum value 'float8' - at `$.profiles[0]`.")


def test_an_unknown_key_at_start_matters_only_when_validating(tmp_path: Path) -> None:
    further = ["say", {**START, "mood": "good"}]
    assert replies(tmp_path, start=[further], q1=FINE) == [ANSWERED]
    assert refusal(tmp_path, further, validate=True).endswith(
        "which is not what PP-2 says: Object contains unknown field `mood`."
    )


def test_no_such_program() -> None:
    with pytest.raises(PortError) as caught:
        ProcessPort(["/no/such/port", "an argument"])
    assert str(caught.value) == (
        "Can't run `/no/such/port 'an argument'`: No such file or directory. Give the port's command after --, for example "
        "`refpeft check -- ./my_port`."
    )


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_file_that_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def said(program: str) -> str:
        with pytest.raises(PortError) as caught:
            ProcessPort([program])
        return str(caught.value)

    for name in ("bad.py", "bad"):
        Path(name).write_text("print(1)\n")
    assert said("bad.py") == (
        "Can't run `bad.py`: No such file or directory. There is such a file here, but not on PATH: give `-- ./bad.py`, or name "
        "what runs it: `-- python bad.py`."
    )
    assert said("./bad.py") == (
        "Can't run `./bad.py`: Permission denied. It is not executable: `chmod +x ./bad.py`, or name what runs it: "
        "`-- python ./bad.py`."
    )
    assert said("./bad").endswith("`chmod +x ./bad`, or name what runs it: `-- INTERPRETER ./bad`.")
    Path("bad.py").chmod(0o755)
    assert said("./bad.py") == (
        "Can't run `./bad.py`: Exec format error. Its first line must say what runs it (#!…), and that must exist; or name it: "
        "`-- python ./bad.py`."
    )
    Path("bad.py").write_text("#!/no/such/python\n")
    assert said("./bad.py").startswith(
        "Can't run `./bad.py`: No such file or directory. Its first line must say "
    )


# ---------------------------------------------------------------- the ways to answer


def test_tensors_with_names_of_any_script(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_tensors(source, {"slöj∂": numpy.arange(3.0), "ключ": numpy.array([[True]])})
    given = reply(
        tmp_path, ["copy", "ответ.safetensors", str(source)], ["say", {"tensors": "ответ.safetensors"}]
    )
    assert given.status == "ANSWERED"
    assert {name: tensor.tolist() for name, tensor in given.answer.tensors.items()} == {
        "slöj∂": [0.0, 1.0, 2.0],
        "ключ": [[True]],
    }


def test_adapter_skipped_and_errored(tmp_path: Path) -> None:
    assert replies(
        tmp_path,
        count=5,
        q1=[["say", {"adapter": "adapter"}]],
        q2=[["say", {"skipped": {"message": "no left padding yet", "issue_url": "https://example.org/1"}}]],
        q3=[["say", {"skipped": {"message": "no"}}]],
        q4=[["say", {"errored": {"message": "index out of range", "traceback": "line 3\nline 4"}}]],
        q5=[["say", {"errored": {"message": "no"}}]],
    ) == [
        Reply("ANSWERED", Answer(adapter=(tmp_path / "1/adapter").resolve())),
        Reply("SKIPPED", message="no left padding yet", detail="https://example.org/1"),
        Reply("SKIPPED", message="no"),
        Reply("ERRORED", message="index out of range", detail="line 3\nline 4"),
        Reply("ERRORED", message="no"),
    ]


def test_an_empty_answer(tmp_path: Path) -> None:
    assert reply(tmp_path, ["say", {}]) == Reply(
        "ERRORED", message="the answer has none of tensors, document, adapter, skipped, errored"
    )


def test_an_unknown_key_matters_only_when_validating(tmp_path: Path) -> None:
    step = ["say", {"document": {"fine": True}, "took": 3}]
    (tmp_path / "lax").mkdir()
    assert reply(tmp_path / "lax", step) == ANSWERED
    assert reply(tmp_path, step, validate=True) == Reply(
        "ERRORED",
        message="not an answer of the protocol (Object contains unknown field `took`): "
        """'{"seq": 1, "document": {"fine": true}, "took": 3}'""",
    )


# ---------------------------------------------------------------- answers outside the protocol


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("Loading the model", STRAY),
        ("[1]", STRAY),
        ("", STRAY),
        ('{"seq": "one"}', "Expected `int`, got `str` - at `$.seq`"),
        ('{"seq": 1, "document": 5}', "Expected `object | null`, got `int` - at `$.document`"),
        ('{"tensors": "x"}', "Object missing required field `seq`"),
        ('{"seq": 1, "skipped": {}}', "Object missing required field `message` - at `$.skipped`"),
    ],
)
def test_a_line_of_the_wrong_kind(tmp_path: Path, line: str, why: str) -> None:
    given = replies(tmp_path, count=2, q1=[["raw", line, 1]], q2=FINE)
    message = f"not an answer of the protocol ({why}): {line!r}"
    assert given == [Reply("ERRORED", message=message), ANSWERED]


def test_bytes_that_are_no_text_and_nesting_without_end(tmp_path: Path) -> None:
    first, second, third = replies(
        tmp_path, count=3, q1=[["raw", '{"seq": 1, "tensors": "\xff"}', 1]], q2=[["raw", '{"a":', 50_000]], q3=FINE
    )  # fmt: skip
    assert (first.status, second.status, third) == ("ERRORED", "ERRORED", ANSWERED)
    assert first.message.endswith(""": '{"seq": 1, "tensors": "�"}'""")
    assert len(second.message) < 400


def test_the_answer_to_another_question(tmp_path: Path) -> None:
    """Also when it says that it skips: that would be another question's excuse."""
    given = replies(
        tmp_path, count=3, q1=[["say", {"seq": 5, "document": {}}]], q2=[["say", {"seq": 1, "skipped": {"message": ""}}]], q3=FINE
    )  # fmt: skip
    assert given == [
        Reply("ERRORED", message=f"answered question 5 when asked question 1{ONE_LINE}"),
        Reply("ERRORED", message=f"answered question 1 when asked question 2{ONE_LINE}"),
        ANSWERED,
    ]


def test_two_lines_for_one_question_disturb_only_the_next(tmp_path: Path) -> None:
    assert replies(tmp_path, count=4, q1=FINE * 2, q2=FINE, q3=FINE, q4=FINE) == [
        ANSWERED,
        Reply("ERRORED", message=f"answered question 1 when asked question 2{ONE_LINE}"),
        ANSWERED,
        ANSWERED,
    ]


# ---------------------------------------------------------------- files


@posix
def test_a_link_out_of_the_output_directory(tmp_path: Path) -> None:
    outside = tmp_path / "x.safetensors"
    write_tensors(outside, {"x": numpy.zeros(1)})
    given = reply(tmp_path, ["link", "a.safetensors", str(outside)], ["say", {"tensors": "a.safetensors"}])
    assert given.status == "ERRORED"
    assert given.message.startswith(
        "the answer names 'a.safetensors', which is not inside the output directory;"
    )


def test_a_missing_and_a_truncated_file(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write_tensors(whole, {"x": numpy.zeros(100)})
    cut.write_bytes(whole.read_bytes()[:-1])
    missing, truncated, fine = replies(
        tmp_path,
        count=3,
        q1=[["say", {"tensors": "answer.safetensors"}]],
        q2=[["copy", "answer.safetensors", str(cut)], ["say", {"tensors": "answer.safetensors"}]],
        q3=FINE,
    )
    first, second = (tmp_path / f"{seq}/answer.safetensors" for seq in (1, 2))
    assert missing == Reply(
        "ERRORED",
        message=f"Can't find 'answer.safetensors' at '{first.parent.resolve()}', which holds the port's answer.",
    )
    assert truncated.status == "ERRORED"
    assert truncated.message.startswith(f"'{second.resolve()}' cannot be read as safetensors (")
    assert truncated.message.endswith(
        "The file of the port's answer is truncated or damaged: copy or write it again."
    )
    assert fine == ANSWERED


# ---------------------------------------------------------------- ends


def test_crashes_and_is_started_anew(tmp_path: Path) -> None:
    first, second = replies(
        tmp_path, count=2, q1=[["errors", "Traceback\n  boom\n", 1], ["exit", 3]], q2=FINE
    )
    assert first == Reply("CRASHED", message="the port exited with status 3", detail="Traceback\n  boom")
    assert second == ANSWERED


@posix
def test_is_killed(tmp_path: Path) -> None:
    given = replies(tmp_path, count=2, q1=[["kill"]], q2=FINE)
    assert given == [
        Reply(
            "CRASHED",
            message="the port was ended by SIGKILL (not by refpeft: if not by you, then by the system, most often because memory ran out)",
        ),
        ANSWERED,
    ]


def test_ends_after_each_answer(tmp_path: Path) -> None:
    """The question asked of a port that has just ended is lost, or asked of a new one; no later one is."""
    given = replies(tmp_path, count=3, q1=[*FINE, ["exit", 0]], q2=FINE, q3=FINE)
    assert given[0] == given[2] == ANSWERED
    assert given[1] in (ANSWERED, Reply("CRASHED", message="the port exited with status 0"))


def test_does_not_start_again(tmp_path: Path) -> None:
    once = tmp_path / "once"
    start = [["link", "once", "anything"], ["say", START]]  # a link can be made only once
    line = command(start, q1=[["exit", 1]])
    previous = Path.cwd()
    os.chdir(tmp_path)
    try:
        port = ProcessPort(line)
        given = [port.ask(ASK, request(tmp_path / str(seq), seq)) for seq in (1, 2, 3)]
        port.close()
    finally:
        os.chdir(previous)
    assert once.is_symlink()
    assert [r.status for r in given] == ["CRASHED"] * 3
    assert given[2].message.startswith(
        f"could not be started again: `{shlex.join(line)}` did not answer `start`: it exited with status 1.\n"
    )


def test_hangs_and_is_started_anew(tmp_path: Path) -> None:
    given = replies(
        tmp_path, count=3, timeout=0.5, q1=[["errors", "thinking\n", 1], ["hang"]], q2=FINE, q3=FINE
    )
    assert given == [
        Reply(
            "TIMEOUT",
            message="no answer within 0.5 s (--timeout allows more); does the port flush standard output after each line (PP-1)?",
            detail="thinking",
        ),
        ANSWERED,
        ANSWERED,
    ]


def test_closes_its_output(tmp_path: Path) -> None:
    given = replies(tmp_path, count=2, timeout=0.5, q1=[["close"]], q2=FINE)
    assert given == [
        Reply(
            "CRASHED",
            message="the port closed its standard output while it runs: it must stay open until `stop` (PP-1)",
        ),
        ANSWERED,
    ]


def test_does_not_stop(tmp_path: Path) -> None:
    assert replies(tmp_path, timeout=0.5, q1=FINE, stop=[["hang"]]) == [ANSWERED]


def test_writes_without_end_to_standard_error(tmp_path: Path) -> None:
    """More than a pipe holds; the first lines and the last twenty are shown."""
    flood = [["errors", "x" * 99 + "\n", 20_000]]
    fine, crashed = replies(tmp_path, count=2, q1=[*flood, *FINE], q2=[["errors", "the end", 1], ["exit", 2]])
    assert fine == ANSWERED
    assert crashed.detail == "\n".join(
        ["x" * 99] * 3 + ["… (2000007 bytes in all; the last lines:)"] + ["x" * 99] * 19 + ["the end"]
    )


def test_what_is_stray_belongs_to_standard_error() -> None:
    assert STRAY == (
        "not a JSON object; standard output belongs to the protocol (PP-1), print to standard error"
    )


def test_a_line_without_end(tmp_path: Path) -> None:
    """Is read up to what a message may be, and no further."""
    given = replies(tmp_path, count=2, q1=[["flood", "x", 2 * streams.LONGEST_LINE], ["hang"]], q2=FINE)
    shown = "x" * 200
    message = f"not an answer of the protocol ({STRAY}): {shown!r}"
    assert given == [Reply("ERRORED", message=message), ANSWERED]


def test_a_long_line_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a line may be; what comes after it is read too."""
    line = '{"seq": 1, "document": {"fine": true}}' + " " * 1000
    monkeypatch.setattr(streams, "LONGEST_LINE", len(line) + 1)
    assert replies(tmp_path, count=2, q1=[["raw", line, 1]], q2=FINE) == [ANSWERED, ANSWERED]


def ended(pid: int) -> bool:
    """No longer there, or waiting for somebody to ask how it ended."""
    status = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@posix
def test_a_child_that_keeps_standard_output_open(tmp_path: Path) -> None:
    """It neither stands for the port nor outlives it."""
    child, started = tmp_path / "child", time.monotonic()
    first, second = replies(tmp_path, count=2, q1=[["child", str(child)], ["exit", 3]], q2=FINE)
    assert first == Reply("CRASHED", message="the port exited with status 3")
    assert second == ANSWERED
    assert time.monotonic() - started < 10
    deadline = time.monotonic() + 5
    while not ended(int(child.read_text(encoding="utf-8"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_time_limit_bounds_the_start_too(tmp_path: Path) -> None:
    port = ProcessPort(command())
    port.close()
    assert (port.timeout, port.start_timeout) == (60.0, 120.0)
    pids = tmp_path / "pids"
    line = command([["note", str(pids)], ["errors", "loading\n", 1], ["hang"]])
    with pytest.raises(PortError) as caught:
        ProcessPort(line, 0.5)
    assert (
        str(caught.value)
        == f"`{shlex.join(line)}` did not answer `start`: it did not answer in time.\n  loading"
    )
    gone(pids)


def test_an_interrupt_at_the_start_ends_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = tmp_path / "pids"

    def interrupted(port: ProcessPort, deadline: float, timeout: float) -> bytes:
        while not pids.exists() or not pids.read_text(encoding="utf-8"):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(ProcessPort, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ProcessPort(command([["note", str(pids)], ["hang"]]))
    gone(pids)


def test_what_steers_a_terminal_is_not_shown(tmp_path: Path) -> None:
    assert replies(
        tmp_path,
        count=2,
        q1=[["say", {"errored": {"message": "\x1b]0;x\x07no"}}]],
        q2=[["errors", "\x1b[31mred\n", 1], ["exit", 1]],
    ) == [
        Reply("ERRORED", message="?]0;x?no"),
        Reply("CRASHED", message="the port exited with status 1", detail="?[31mred"),
    ]
