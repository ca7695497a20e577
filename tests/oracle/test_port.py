"""Whatever a Python object does, asking it ends in a reply that says what happened; and what a command line names."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from oracle.fake_ports import START, command

from refpeft import __version__
from refpeft.config import TASK_TYPES
from refpeft.oracle import questions
from refpeft.oracle.port import ObjectPort, ProcessPort, ReferencePort, open_port
from refpeft.oracle.protocol import RunCommand
from refpeft.oracle.questions import Answer, Ask
from refpeft.oracle.reply import Port, PortError, Reply

ONE_LINE = ": one line for each question, with its seq (PP-1)"
ASK = Ask("mask", "common")
ANSWERED = Reply("ANSWERED", Answer(document={"fine": True}))


def request(output: Path, seq: int = 1) -> RunCommand:
    output.mkdir()
    return RunCommand(
        seq, "case", "mask", "common", "float32", None, None, {"batch_size": 2}, None, None, [], str(output)
    )


# ---------------------------------------------------------------- Python objects

MODULE = """
START = {start!r}
class Good:
    def start(self): return START
    def run(self, request, inputs):
        return {{"seen": inputs["attention_mask"], 5: request["arguments"]["batch_size"]}}
good = Good()
class Answers(Good):
    def __init__(self): self.answer = None
    def run(self, request, inputs):
        if isinstance(self.answer, BaseException): raise self.answer
        return self.answer
class Spoils(Good):
    def run(self, request, inputs):
        inputs["attention_mask"][:] = 9
        request["config"]["peft_type"] = "?"
        request["arguments"]["draws"].append(1)
        return {{}}
class NoStart: pass
class BadStart(Good):
    def start(self): return {{"version": 1}}
class BadInit(Good):
    def __init__(self): raise RuntimeError("no weights")
class Further(Good):
    def start(self): return {{**START, "mood": "good"}}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with object ports."""
    (tmp_path / "object_ports_here.py").write_text(MODULE.format(start=START), encoding="utf-8")
    (tmp_path / "broken_port_here.py").write_text("x = 1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "object_ports_here", raising=False)
    return "object_ports_here"


def answering(module: str, answer: Any, tmp_path: Path) -> Reply:
    port = ObjectPort(f"{module}:Answers")
    port._object.answer = answer
    return port.ask(ASK, request(tmp_path / "output"))


@pytest.mark.parametrize("name", ["good", "Good"])
def test_an_object_or_a_class(module: str, name: str, tmp_path: Path) -> None:
    port = open_port([f"{module}:{name}"])
    assert isinstance(port, ObjectPort)
    assert isinstance(port, Port)
    assert msgspec.to_builtins(port.abilities) == {**START, "tasks": list(TASK_TYPES)}
    mask = numpy.array([[1, 0]])
    given = port.ask(Ask("mask", "common", inputs={"attention_mask": mask}), request(tmp_path / "output"))
    assert given.status == "ANSWERED"
    assert {key: numpy.asarray(value).tolist() for key, value in given.answer.tensors.items()} == {
        "seen": [[1, 0]],
        "5": 2,
    }
    port.close()


def test_what_an_object_writes_into_is_its_own(module: str, tmp_path: Path) -> None:
    """Else a port that changes its mask would choose what is compared."""
    mask, config, arguments = numpy.ones((2, 3)), {"peft_type": "PREFIX_TUNING"}, {"draws": []}
    ask = Ask("mask", "common", config, arguments, {"attention_mask": mask})
    changed = msgspec.structs.replace(request(tmp_path / "output"), config=config, arguments=arguments)
    assert ObjectPort(f"{module}:Spoils").ask(ask, changed).status == "ANSWERED"
    assert (mask == 1).all()
    assert (config, arguments) == ({"peft_type": "PREFIX_TUNING"}, {"draws": []})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:port", "Can't import the port 'no_such_module:port': No module named 'no_such_module'. Give it as module:object."),
        (":port", "Can't import the port ':port': Empty module name. Give it as module:object."),
        ("broken_port_here:port", "Can't import the port 'broken_port_here:port': division by zero. Give it as module:object."),
        ("object_ports_here:Bad", "Can't import the port 'object_ports_here:Bad': module 'object_ports_here' has no attribute 'Bad'. Give it as module:object."),
        ("object_ports_here:good.better", "Can't import the port 'object_ports_here:good.better': 'Good' object has no attribute 'better'. Give it as module:object."),
        ("object_ports_here:NoStart", """'object_ports_here:NoStart' failed at start(): AttributeError("'NoStart' object has no attribute 'start'")."""),
        ("object_ports_here:BadInit", "'object_ports_here:BadInit' failed at start(): RuntimeError('no weights')."),
        ("object_ports_here:BadStart", """`object_ports_here:BadStart` answered `start` with '{"version":1}', which is not what PP-2 says: Object missing required field `implementation`."""),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("module")
def test_an_object_that_is_no_port(name: str, message: str) -> None:
    with pytest.raises(PortError) as caught:
        ObjectPort(name)
    assert str(caught.value) == message


def test_validating_an_object(module: str, tmp_path: Path) -> None:
    assert ObjectPort(f"{module}:Further").abilities.version == 1
    with pytest.raises(PortError, match="Object contains unknown field `mood`"):
        open_port([f"{module}:Further"], validate=True)
    port = ObjectPort(f"{module}:Answers", validate=True)
    port._object.answer = {"seq": 1, "document": {}, "took": 3}
    assert port.ask(ASK, request(tmp_path / "output")) == Reply(
        "ERRORED",
        message="run() returned a message that is not of PP-3: Object contains unknown field `took`",
    )


def test_an_object_that_returns_messages(module: str, tmp_path: Path) -> None:
    for number, (answer, expected) in enumerate(
        [
            ({"seq": 1, "document": {"fine": True}}, ANSWERED),
            ({"seq": 1, "skipped": {"message": "no"}}, Reply("SKIPPED", message="no")),
            (
                {"seq": 2, "document": {}},
                Reply("ERRORED", message=f"answered question 2 when asked question 1{ONE_LINE}"),
            ),
            (
                {"seq": 1, "tensors": 5},
                Reply(
                    "ERRORED",
                    message="run() returned a message that is not of PP-3: Expected `str | null`, got `int` - at `$.tensors`",
                ),
            ),
            (
                {"seq": 1, "document": {"x": object}},
                Reply(
                    "ERRORED",
                    message="run() returned a message that is not of PP-3: Encoding objects of type type is unsupported",
                ),
            ),
            ([1, 2], Reply("ERRORED", message="run() returned list, not a dictionary")),
            (None, Reply("ERRORED", message="run() returned NoneType, not a dictionary")),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        assert answering(module, answer, tmp_path / str(number)) == expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("logits"), "KeyError: 'logits'"),
        (SystemExit(0), "SystemExit: 0"),
        (asyncio.CancelledError("late"), "asyncio.exceptions.CancelledError: late"),
    ],
)
def test_an_object_that_raises(module: str, tmp_path: Path, error: BaseException, message: str) -> None:
    given = answering(module, error, tmp_path)
    assert (given.status, given.message) == ("ERRORED", message.rpartition("exceptions.")[2])
    assert given.detail.startswith("Traceback (most recent call last):")
    assert given.detail.rstrip().endswith(message)


# ---------------------------------------------------------------- refpeft itself; opening


def test_refpeft_itself(tmp_path: Path) -> None:
    port = ReferencePort()
    abilities = port.abilities
    assert isinstance(port, Port)
    assert (abilities.implementation.name, abilities.implementation.version) == ("refpeft", __version__)
    assert abilities.questions == list(questions.QUESTIONS)
    assert abilities.profiles == ["float32", "float64"]
    given = port.ask(
        Ask("mask", "common", arguments={"batch_size": 1, "num_virtual_tokens": 2}), request(tmp_path / "1")
    )
    assert given.answer.tensors["inputs.attention_mask"].tolist() == [[1, 1]]
    wrong = port.ask(Ask("forward", "prefix_tuning"), request(tmp_path / "2"))
    assert (wrong.status, wrong.message) == (
        "ERRORED",
        "InputError: The question 'forward' needs a base model.",
    )
    assert wrong.detail.startswith("Traceback (most recent call last):")
    port.close()


def test_what_a_command_line_names(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_port([]), ReferencePort)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_port([f"{module}:good"]), ObjectPort), "the working directory is searched"
    program = open_port(command(), 3.0, validate=True)
    assert isinstance(program, ProcessPort)
    assert (program.timeout, program.validate) == (3.0, True)
    program.close()
    (tmp_path / "a:b").write_text("#!/bin/sh\n", encoding="utf-8")
    with pytest.raises(PortError, match=r"Can't run `\./a:b`: Permission denied"):
        open_port(["./a:b"])


def test_what_an_object_prints_goes_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output is refpeft's."""
    (tmp_path / "noisy_port_here.py").write_text("print('importing')\nfrom oracle.fake_ports import Noisy\n")
    sys.path.insert(0, str(tmp_path))
    try:
        port = ObjectPort("noisy_port_here:Noisy")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("noisy_port_here", None)
    ask = Ask("mask", "common", arguments={"batch_size": 1, "num_virtual_tokens": 2})
    asked = msgspec.structs.replace(request(tmp_path / "output"), arguments=dict(ask.arguments))
    assert port.ask(ask, asked).status == "ANSWERED"
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "importing\nloading the model\nquestion 1\n")


class Tensor:
    """As torch's, which wants a gradient."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("Use tensor.detach().numpy() instead.")


class Broken(Mapping[str, Any]):
    """A dictionary that cannot be read."""

    def __getitem__(self, key: str) -> Any:
        raise OSError("gone")

    def __iter__(self) -> Iterator[str]:
        return iter(["x"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"logits": Tensor()}, "RuntimeError: Use tensor.detach().numpy() instead."),
        (Broken(), "OSError: gone"),
    ],
)
def test_an_object_whose_answer_cannot_be_read(
    module: str, tmp_path: Path, answer: Any, message: str
) -> None:
    given = answering(module, answer, tmp_path)
    assert (given.status, given.message) == ("ERRORED", message)


def test_an_answer_is_refpefts_own(module: str, tmp_path: Path) -> None:
    """An object that writes its next answer into the same memory does not change the last one."""
    buffer, ragged = numpy.zeros(3), [[1], [1, 2]]
    given = answering(module, {"logits": buffer, "loss": ragged}, tmp_path)
    buffer += 1
    assert given.answer.tensors["logits"].tolist() == [0.0, 0.0, 0.0]
    assert given.answer.tensors["loss"] is ragged, "what is no array is said when it is compared"


def test_an_interrupt_is_no_answer(module: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        answering(module, KeyboardInterrupt(), tmp_path)
