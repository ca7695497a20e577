"""A port's messages, read and checked: answers, what it says it can do, and words that are safe to print."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy
import pytest
from oracle.fake_ports import START

from refpeft.config import TASK_TYPES
from refpeft.oracle.protocol import RunAnswer, RunCommand, Skipped
from refpeft.oracle.questions import QUESTIONS
from refpeft.oracle.reply import STRAY, PortError, Reply, printable, read_abilities, read_answer, read_reply
from refpeft.tensors import write_tensors


def request(output: Path, seq: int = 1) -> RunCommand:
    output.mkdir()
    return RunCommand(
        seq, "case", "mask", "common", "float32", None, None, {"batch_size": 2}, None, None, [], str(output)
    )


@pytest.mark.parametrize("name", ["../x.safetensors", "a/../../x.safetensors", "ABSOLUTE", ".", ""])
@pytest.mark.parametrize("key", ["tensors", "adapter"])
def test_a_path_outside_the_output_directory(tmp_path: Path, key: str, name: str) -> None:
    write_tensors(tmp_path / "x.safetensors", {"x": numpy.zeros(1)})
    name = str(tmp_path / "x.safetensors") if name == "ABSOLUTE" else name
    message = RunAnswer(1, **{key: name})
    assert read_reply(message, request(tmp_path / "output")) == Reply(
        "ERRORED",
        message=f"the answer names '{name}', which is not inside the output directory; answer with a path relative to "
        "`output`, such as 'answer.safetensors'",
    )


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    given = read_reply(RunAnswer(1, tensors=name), request(tmp_path / "output"))
    assert given.status == "ERRORED"
    assert given.message


def test_skipping_is_not_an_answer(tmp_path: Path) -> None:
    given = read_reply(RunAnswer(1, document={}, skipped=Skipped("no")), request(tmp_path / "output"))
    assert given == Reply("SKIPPED", message="no")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – ünï∂\n\ttext", "plain – ünï∂\n\ttext"),
        ("\x1b[2J\x07\r\x00\x7f\x9b", "?[2J?????"),
        ("\u202egnp.exe", "?gnp.exe"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    reply = Reply("ERRORED", message=text, detail=text)
    assert (reply.message, reply.detail) == (shown, shown)


def said(**changes: object) -> bytes:
    return msgspec.json.encode({**START, **changes})


def test_abilities() -> None:
    assert msgspec.to_builtins(read_abilities(said(), "PORT")) == {**START, "tasks": list(TASK_TYPES)}
    assert read_abilities(said(tasks=["SEQ_CLS"]), "PORT").tasks == ["SEQ_CLS"]
    strange = {
        "name": "\x1b[31mred",
        "language": "a\x07",
        "version": "1\r",
        "homepage": "https://example.org",
    }
    implementation = read_abilities(said(implementation=strange), "PORT").implementation
    assert msgspec.to_builtins(implementation) == {
        "name": "?[31mred", "language": "a?", "version": "1?", "homepage": "https://example.org",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"hello", "`PORT` answered `start` with 'hello', which is not what PP-2 says: JSON is malformed: invalid character (byte 0)."),
        (said(version=2), "`PORT` speaks version 2 of the protocol; this refpeft speaks 1."),
        (said(methods=["lora"]), f"`PORT` says it can do lora, which do not exist. Questions: {', '.join(QUESTIONS)}; methods: prompt_tuning, prefix_tuning; tasks: {', '.join(TASK_TYPES)}."),
        (said(tasks=["CAUSAL"]), f"`PORT` says it can do CAUSAL, which do not exist. Questions: {', '.join(QUESTIONS)}; methods: prompt_tuning, prefix_tuning; tasks: {', '.join(TASK_TYPES)}."),
    ],
)  # fmt: skip
def test_abilities_that_are_none(line: bytes, message: str) -> None:
    with pytest.raises(PortError) as caught:
        read_abilities(line, "PORT")
    assert str(caught.value) == message


def test_abilities_checked_strictly() -> None:
    assert read_abilities(said(mood="good"), "PORT").version == 1
    with pytest.raises(PortError, match="Object contains unknown field `mood`"):
        read_abilities(said(mood="good"), "PORT", strict=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_for_a_file_is_not_opened(tmp_path: Path) -> None:
    """It would never end."""
    asked = request(tmp_path / "output")
    os.mkfifo(tmp_path / "output/answer.safetensors")
    given = read_reply(RunAnswer(1, tensors="answer.safetensors"), asked)
    assert given == Reply(
        "ERRORED",
        message=f"'{(tmp_path / 'output').resolve()}/answer.safetensors' is a FIFO, not a file; write the port's answer "
        "there as a plain file.",
    )


def test_an_answer() -> None:
    assert read_answer(b'{"seq": 3, "tensors": "a", "x": 1}\n') == RunAnswer(3, tensors="a")


@pytest.mark.parametrize(
    ("line", "why", "shown"),
    [
        (b"", STRAY, "''"),
        (b"[1]", STRAY, "'[1]'"),
        (b'{"seq": "1"}', "Expected `int`, got `str` - at `$.seq`", "'{\"seq\": \"1\"}'"),
        (b'{"seq": 1', "Input data was truncated", "'{\"seq\": 1'"),
        (b'{"seq": 1, "tensors": "\xff"}', "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte", None),
        (b'{"seq": 1, "tensors": "\\ud800"}', "Input data was truncated", None),
        (b'{"seq": ' + b"9" * 5000 + b"}", "Integer value out of range - at `$.seq`", None),
        (b'{"document": ' + b'{"a":' * 100_000, "maximum recursion depth exceeded while deserializing an object", None),
    ],
)  # fmt: skip
def test_no_answer(line: bytes, why: str, shown: str | None) -> None:
    with pytest.raises(PortError) as caught:
        read_answer(line)
    shown = shown or repr(line.decode("utf-8", "replace")[:200])
    assert str(caught.value) == f"not an answer of the protocol ({why}): {shown}"


def test_no_answer_when_strict() -> None:
    with pytest.raises(PortError) as caught:
        read_answer(b'{"seq": 1, "x": 1}', strict=True)
    assert str(caught.value) == (
        'not an answer of the protocol (Object contains unknown field `x`): \'{"seq": 1, "x": 1}\''
    )
