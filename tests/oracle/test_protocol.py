"""The messages: their schema, and a whole conversation that is replayed (transcript.jsonl)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import need

from refpeft.oracle import protocol
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import in_order, stages_of
from refpeft.oracle.judge import Selection, summarise
from refpeft.oracle.process import ProcessPort
from refpeft.oracle.protocol import (
    RunAnswer,
    RunCommand,
    Skipped,
    StartAnswer,
    StartCommand,
    StopCommand,
    StrictRunAnswer,
    StrictStartAnswer,
    protocol_schema,
)
from refpeft.oracle.run import judge
from refpeft.oracle.vectors import all_vectors, golden_directory, read_vector

HERE = Path(__file__).parent
SCHEMA = HERE.parent.parent / "specs/protocol.schema.json"
TRANSCRIPT = [
    json.loads(line) for line in (HERE / "transcript.jsonl").read_text(encoding="utf-8").splitlines()
]


def said(by: str) -> list[dict[str, Any]]:
    return [line["message"] for line in TRANSCRIPT if line["from"] == by]


def kind(line: dict[str, Any]) -> type[msgspec.Struct]:
    """Which message a line of the transcript must be."""
    message = line["message"]
    if line["from"] == "port":
        return RunAnswer if "seq" in message else StartAnswer
    return {"start": StartCommand, "run": RunCommand, "stop": StopCommand}[message["cmd"]]


# ---------------------------------------------------------------- the schema


def test_the_page_of_the_schema_is_what_the_messages_are() -> None:
    assert SCHEMA.read_bytes() == protocol_schema()


def validator(name: str) -> Any:
    """Of one message, or of any."""
    schema = json.loads(protocol_schema())
    need("jsonschema")
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(schema)
    if name != "any":
        schema = {**{k: v for k, v in schema.items() if k != "anyOf"}, "$ref": f"#/$defs/{name}"}
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("line", TRANSCRIPT, ids=lambda line: line["message"].get("cmd", line["from"]))
def test_the_transcript_follows_the_schema(line: dict[str, Any]) -> None:
    message, name = line["message"], kind(line).__name__
    assert list(validator(name).iter_errors(message)) == []
    assert list(validator("any").iter_errors(message)) == []
    for key in message:
        without = {k: v for k, v in message.items() if k != key}
        optional = (
            {"tensors", "document", "adapter", "skipped", "errored", "tasks"}
            if line["from"] == "port"
            else ()
        )
        assert (list(validator(name).iter_errors(without)) == []) == (key in optional), key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("StartCommand", {"cmd": "run", "version": 1}),
        ("StartCommand", {"cmd": "start", "version": 1, "further": 1}),
        ("StopCommand", {"cmd": "stop", "now": True}),
        ("RunCommand", {**said("refpeft")[1], "dtype": "float8"}),
        ("RunCommand", {**said("refpeft")[1], "stages": [1]}),
        ("StartAnswer", {**said("port")[0], "profiles": ["float8"]}),
        ("StartAnswer", {**said("port")[0], "implementation": {"name": "x"}}),
        ("RunAnswer", {"seq": "1"}),
        ("RunAnswer", {"seq": 1, "skipped": {}}),
        ("RunAnswer", {"seq": 1, "document": 3}),
        ("any", {"cmd": "halt"}),
    ],
)
def test_the_schema_refuses_what_the_messages_refuse(name: str, message: dict[str, Any]) -> None:
    assert list(validator(name).iter_errors(message)) != []
    if name != "any":
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(message, getattr(protocol, name))


def test_a_port_may_say_more_unless_it_is_validated() -> None:
    start, run = {**said("port")[0], "mood": 1}, {"seq": 1, "tensors": "x", "took": 2}
    assert list(validator("StartAnswer").iter_errors(start)) == []
    assert list(validator("RunAnswer").iter_errors(run)) == []
    nested = {"seq": 1, "skipped": {"message": "no", "since": 3}}
    assert list(validator("RunAnswer").iter_errors(nested)) == []
    assert msgspec.convert(nested, RunAnswer).skipped == Skipped("no")
    assert msgspec.convert(start, StartAnswer).version == 1
    assert msgspec.convert(run, RunAnswer).tensors == "x"
    for message, strict in ((start, StrictStartAnswer), (run, StrictRunAnswer)):
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            msgspec.convert(message, strict)


def test_messages_encode_as_the_transcript_shows() -> None:
    for line in TRANSCRIPT:
        message = msgspec.convert(line["message"], kind(line))
        assert msgspec.json.decode(msgspec.json.encode(message)) == line["message"]


# ---------------------------------------------------------------- the conversation


def test_the_transcript_is_a_whole_conversation() -> None:
    speakers = [line["from"] for line in TRANSCRIPT]
    assert speakers == ["refpeft", "port"] * (len(TRANSCRIPT) // 2) + ["refpeft"]
    commands = [message["cmd"] for message in said("refpeft")]
    assert commands == ["start", *["run"] * (len(commands) - 2), "stop"]
    ways = {key for message in said("port")[1:] for key in message if key != "seq"}
    assert ways == {"tensors", "document", "adapter", "skipped", "errored"}
    text = json.dumps(TRANSCRIPT)
    assert not any(part in text for part in ("/tmp/", "/home/", "C:\\\\"))  # noqa: S108
    assert "{root}/golden/models/" in text


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory where the paths of the transcript lead to files."""
    root, shipped = tmp_path.resolve(), golden_directory()
    for message in said("refpeft")[1:-1]:
        shutil.copytree(shipped / "vectors" / message["case"], root / "golden/vectors" / message["case"])
    shutil.copytree(shipped / "models", root / "golden/models")
    (root / "golden/manifest.json").write_text("{}", encoding="utf-8")
    return root


def test_refpeft_says_what_the_transcript_says(root: Path) -> None:
    log = root / "log"
    program = [sys.executable, "-I", "-S", str(HERE / "fake_ports.py"), "replay"]
    port = ProcessPort([*program, str(HERE / "transcript.jsonl"), str(root), str(log)])
    port.may_differ = False  # so that nothing is asked twice
    selection = Selection(in_order(all_vectors(root / "golden")), [PROFILES["float32"]])
    results = summarise(port, selection, list(judge(port, selection, root / "answers", None)))
    port.close()

    expected = json.loads(json.dumps(said("refpeft")).replace("{root}", str(root)))
    assert [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] == expected
    assert msgspec.to_builtins(port.abilities) == said("port")[0]
    assert [case.verdict for case in results.cases] == [
        "CONFORMS",
        "CONFORMS",
        "ERRORED",
        "SKIPPED",
        "CONFORMS",
    ]
    assert [(case.message, case.detail) for case in results.cases if case.message] == [
        ("index out of range", "thread 'main' panicked at src/backward.rs:41"),
        ("adapters are not read yet", "https://example.org/my-port/issues/12"),
    ]


def test_paths_of_the_transcript_exist(root: Path) -> None:
    for message in said("refpeft")[1:-1]:
        for key in ("model", "inputs", "adapter"):
            assert message[key] is None or Path(message[key].replace("{root}", str(root))).exists()
        vector = read_vector(golden_directory() / "vectors" / message["case"])
        assert message["stages"] == stages_of(vector)
    assert {key for message in said("refpeft")[1:-1] for key in ("model", "inputs", "adapter", "config") if message[key]} == {"model", "inputs", "adapter", "config"}  # fmt: skip
