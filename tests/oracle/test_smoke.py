"""What `smoke` says of a port: line for line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest

from refpeft import __version__
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.protocol import RunCommand
from refpeft.oracle.questions import QUESTIONS, Answer, Ask
from refpeft.oracle.reply import Reply
from refpeft.oracle.smoke import Line, smoke


class Fake(ReferencePort):
    """refpeft, which answers some questions otherwise."""

    def __init__(self, change: Callable[[Reply], Reply] = lambda reply: reply, **abilities: Any) -> None:
        super().__init__()
        self.abilities = msgspec.structs.replace(self.abilities, **abilities)
        self.change = change
        self.asked: list[RunCommand] = []

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        self.asked.append(request)
        return self.change(super().ask(ask, request))


def said(
    tmp_path: Path, change: Callable[[Reply], Reply], question: str, method: str = "prefix_tuning"
) -> list[Line]:
    """What is said of a port that answers one question, after the line about its start."""
    return list(smoke(Fake(change, questions=[question], methods=[method]), tmp_path))[1:]


def tensors(**changed: Any) -> Callable[[Reply], Reply]:
    """Other tensors; None for one that is missing."""

    def change(reply: Reply) -> Reply:
        given = {**reply.answer.tensors, **changed}
        return Reply("ANSWERED", Answer({name: value for name, value in given.items() if value is not None}))

    return change


def test_a_good_port(tmp_path: Path) -> None:
    port = Fake()
    lines = list(smoke(port, tmp_path))
    assert all(line.ok for line in lines)
    assert lines[0].text == (
        f"start: refpeft {__version__} (python); methods prompt_tuning, prefix_tuning; questions "
        f"{', '.join(QUESTIONS)}; profiles float32, float64"
    )
    kinds = [(r.question, r.method) for r in port.asked]
    ranks = [list(QUESTIONS).index(question) for question, _ in kinds]
    assert ranks == sorted(ranks), "from the simplest to the hardest"
    assert sorted(kinds) == sorted((q.name, method) for q in QUESTIONS.values() for method in q.methods)
    assert {r.dtype for r in port.asked} == {"float32"}, "the first profile that it declares"
    texts = [line.text for line in lines[1:]]
    assert [text.split(": ")[0] for text in texts] == [f"{question} ({method})" for question, method in kinds]
    assert "mask (common): 1 tensor" in texts
    assert "config.resolve (prompt_tuning): a document" in texts
    assert "checkpoint.save (prefix_tuning): an adapter" in texts


def test_values_are_not_judged(tmp_path: Path) -> None:
    def zeros(reply: Reply) -> Reply:
        return Reply(
            "ANSWERED",
            Answer({name: numpy.zeros(numpy.shape(t)) for name, t in reply.answer.tensors.items()}),
        )

    (line,) = said(tmp_path, zeros, "checkpoint.load")
    assert line.ok


def test_a_missing_tensor(tmp_path: Path) -> None:
    assert said(tmp_path, tensors(logits=None), "forward") == [
        Line(False, "forward (prefix_tuning): no tensor logits in the answer")
    ]
    (tmp_path / "other").mkdir()
    given = tensors(loss=None, **{"decoder.embeddings": None})
    lines = said(tmp_path / "other", given, "checkpoint.load")
    assert [line.ok for line in lines] == [True], "a stage that is not required may be missing"


def test_a_wrong_shape(tmp_path: Path) -> None:
    (line,) = said(tmp_path, tensors(logits=numpy.zeros((1, 2))), "forward")
    assert not line.ok
    assert line.text.startswith("forward (prefix_tuning): logits has shape (1, 2); it must be (")


def test_no_array(tmp_path: Path) -> None:
    (line,) = said(tmp_path, tensors(logits=[[1], [1, 2]]), "forward")
    assert not line.ok
    assert line.text.startswith("forward (prefix_tuning): logits is not an array: ")


@pytest.mark.parametrize("status", ["ERRORED", "CRASHED", "TIMEOUT"])
def test_no_answer(tmp_path: Path, status: Any) -> None:
    reply = Reply(status, message="gone", detail="Traceback\n  boom")
    assert said(tmp_path, lambda _: reply, "forward") == [
        Line(False, f"forward (prefix_tuning): {status}: gone\n    Traceback\n      boom")
    ]


def test_no_answer_without_detail(tmp_path: Path) -> None:
    (line,) = said(tmp_path, lambda _: Reply("CRASHED", message="gone"), "forward")
    assert line.text == "forward (prefix_tuning): CRASHED: gone"


def test_skipping_is_speaking(tmp_path: Path) -> None:
    assert said(tmp_path, lambda _: Reply("SKIPPED", message="not yet"), "forward") == [
        Line(True, "forward (prefix_tuning): skipped: not yet")
    ]


def test_no_document_and_no_adapter(tmp_path: Path) -> None:
    nothing = Reply("ANSWERED", Answer())
    assert said(tmp_path, lambda _: nothing, "config.resolve") == [
        Line(False, "config.resolve (prefix_tuning): no document in the answer")
    ]
    (tmp_path / "other").mkdir()
    assert said(tmp_path / "other", lambda _: nothing, "checkpoint.save", "prompt_tuning") == [
        Line(False, "checkpoint.save (prompt_tuning): no adapter in the answer")
    ]


@pytest.mark.parametrize("lacking", [{"questions": []}, {"profiles": []}])
def test_a_port_that_can_do_nothing(tmp_path: Path, lacking: dict[str, Any]) -> None:
    (line,) = smoke(Fake(**lacking), tmp_path)
    assert not line.ok
    assert "none" in line.text


def test_an_adapter_needs_its_files(tmp_path: Path) -> None:
    def without(*names: str) -> Callable[[Reply], Reply]:
        def change(reply: Reply) -> Reply:
            assert reply.answer.adapter is not None
            for name in names:
                (reply.answer.adapter / name).unlink()
            return reply

        return change

    config, weights = "adapter_config.json", "adapter_model.safetensors"
    for number, (names, text) in enumerate(
        [
            ([], "an adapter"),
            ([config], f"no {config} in the adapter"),
            ([weights], f"no {weights} in the adapter"),
            ([config, weights], f"no {config} and no {weights} in the adapter"),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        assert said(tmp_path / str(number), without(*names), "checkpoint.save") == [
            Line(not names, f"checkpoint.save (prefix_tuning): {text}")
        ]


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    given = Reply("ANSWERED", Answer(adapter=tmp_path / "nowhere"))
    (line,) = said(tmp_path, lambda _: given, "checkpoint.save")
    assert not line.ok


def test_names_that_refpeft_does_not_know_are_mentioned(tmp_path: Path) -> None:
    further = dict.fromkeys(["my.b", "my.a", "z1", "z2", "z3", "z4"], numpy.zeros(1))
    (line,) = said(tmp_path, tensors(**further), "prefix.encode")
    assert line.ok
    assert line.text.endswith(" tensors, of which refpeft does not know my.a, my.b, z1, z2, z3")
