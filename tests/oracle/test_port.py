"""Whatever a port does, asking it ends in a reply that says what happened, and leaves no process behind."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from oracle.fake_ports import START, command

from refpeft import __version__
from refpeft.oracle import questions
from refpeft.oracle.port import ObjectPort, ProcessPort, ReferencePort, open_port
from refpeft.oracle.protocol import RunAnswer, RunCommand, Skipped
from refpeft.oracle.questions import Answer, Ask
from refpeft.oracle.reply import Port, PortError, Reply, read_reply
from refpeft.tensors import write_tensors

ASK = Ask("mask", "common")
FINE = [["say", {"document": {"fine": True}}]]
ANSWERED = Reply("ANSWERED", Answer(document={"fine": True}))
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
    assert msgspec.to_builtins(port.abilities) == START
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
        "PORT says it can do foward, lora, which do not exist. Questions: config.resolve, random, init, mask, "
        "prefix.encode, inputs, attention, forward, gradients, checkpoint.load, checkpoint.save; methods: prompt_tuning, "
        "prefix_tuning."
    )


def test_names_a_profile_that_does_not_exist(tmp_path: Path) -> None:
    said = refusal(tmp_path, ["say", {**START, "profiles": ["bfloat16"]}])
    assert said.endswith("which is not what PP-2 says: Invalid enum value 'bfloat16' - at `$.profiles[0]`.")


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
        ("Loading the model", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("", "not a JSON object"),
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
        Reply("ERRORED", message="answered question 5 when asked question 1"),
        Reply("ERRORED", message="answered question 1 when asked question 2"),
        ANSWERED,
    ]


def test_two_lines_for_one_question_disturb_only_the_next(tmp_path: Path) -> None:
    assert replies(tmp_path, count=4, q1=FINE * 2, q2=FINE, q3=FINE, q4=FINE) == [
        ANSWERED,
        Reply("ERRORED", message="answered question 1 when asked question 2"),
        ANSWERED,
        ANSWERED,
    ]


# ---------------------------------------------------------------- files


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


@posix
def test_a_link_out_of_the_output_directory(tmp_path: Path) -> None:
    outside = tmp_path / "x.safetensors"
    write_tensors(outside, {"x": numpy.zeros(1)})
    given = reply(tmp_path, ["link", "a.safetensors", str(outside)], ["say", {"tensors": "a.safetensors"}])
    assert given.status == "ERRORED"
    assert given.message.startswith(
        "the answer names 'a.safetensors', which is not inside the output directory;"
    )


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    given = read_reply(RunAnswer(1, tensors=name), request(tmp_path / "output"))
    assert given.status == "ERRORED"
    assert given.message


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
    assert given == [Reply("CRASHED", message="the port was ended by SIGKILL"), ANSWERED]


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
        Reply("TIMEOUT", message="no answer within 0.5 s", detail="thinking"),
        ANSWERED,
        ANSWERED,
    ]


def test_closes_its_output(tmp_path: Path) -> None:
    given = replies(tmp_path, count=2, timeout=0.5, q1=[["close"]], q2=FINE)
    assert given == [Reply("CRASHED", message="the port closed its standard output"), ANSWERED]


def test_does_not_stop(tmp_path: Path) -> None:
    assert replies(tmp_path, timeout=0.5, q1=FINE, stop=[["hang"]]) == [ANSWERED]


def test_writes_without_end_to_standard_error(tmp_path: Path) -> None:
    """More than a pipe holds; the last twenty lines are shown."""
    flood = [["errors", "x" * 99 + "\n", 20_000]]
    fine, crashed = replies(tmp_path, count=2, q1=[*flood, *FINE], q2=[["errors", "the end", 1], ["exit", 2]])
    assert fine == ANSWERED
    assert crashed.detail == "\n".join(["x" * 99] * 19 + ["the end"])


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
    assert msgspec.to_builtins(port.abilities) == START
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
                Reply("ERRORED", message="answered question 2 when asked question 1"),
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
    [(KeyError("logits"), "KeyError: 'logits'"), (SystemExit(0), "SystemExit: 0")],
)
def test_an_object_that_raises(module: str, tmp_path: Path, error: BaseException, message: str) -> None:
    given = answering(module, error, tmp_path)
    assert (given.status, given.message) == ("ERRORED", message)
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


def test_skipping_is_not_an_answer(tmp_path: Path) -> None:
    given = read_reply(RunAnswer(1, document={}, skipped=Skipped("no")), request(tmp_path / "output"))
    assert given == Reply("SKIPPED", message="no")
