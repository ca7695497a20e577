"""What is kept of a wrong answer for pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import ask_of
from refpeft.oracle.compare import Difference
from refpeft.oracle.evidence import PICTURED_ALIKE, Evidence
from refpeft.oracle.excerpts import COLUMNS, ROWS, excerpts_of
from refpeft.oracle.judge import CaseResult, Selection
from refpeft.oracle.port import ObjectPort
from refpeft.oracle.questions import Answer, answer
from refpeft.oracle.run import judge
from refpeft.oracle.vectors import Vector, all_vectors

FORWARD = "prefix_tuning/forward/left-padding"
PROMPT = "prompt_tuning/forward/left-padding"


def vector(end: str) -> Vector:
    return next(v for v in all_vectors() if v.case.id == f"peft-0.21.2/{end}")


def excerpts(end: str, name: str, change: Any, differing: str = "") -> Any:
    """Of refpeft's own answer, one tensor of it changed."""
    asked = vector(end)
    ask = ask_of(asked)
    tensors = {key: numpy.array(value) for key, value in answer(ask).tensors.items()}
    tensors[name] = change(tensors[name])
    differences = [Difference(key, ok=key != (differing or name)) for key in tensors]
    first = next(d for d in differences if not d.ok)
    return excerpts_of(asked, ask, Answer(tensors), differences, first)


def put(value: Any, *index: int) -> Any:
    def change(tensor: Any) -> Any:
        tensor[index] = value
        return tensor

    return change


def test_a_window_around_the_worst_element() -> None:
    logits = vector(FORWARD).expected["logits"]
    place = (1, logits.shape[1] - 1, logits.shape[2] - 2)
    found, attention = excerpts(FORWARD, "logits", put(99.5, *place))
    assert (found.name, found.axes, found.at) == ("logits", ["query", "vocab"], "row 1")
    assert found.size == list(logits.shape[1:])
    assert found.worst == list(place[1:])
    row, column = (w - s for w, s in zip(found.worst, found.start, strict=True))
    assert found.given[row][column] == 99.5
    assert found.expected[row][column] == float(f"{logits[place]:.6g}")
    assert found.difference[row][column] == float(f"{99.5 - logits[place]:.3g}")
    assert len(found.given) <= ROWS
    assert {len(line) for line in found.given} == {min(COLUMNS, logits.shape[2])}
    assert sum(abs(x) > 1e-9 for line in found.difference for x in line) == 1
    assert attention.name.endswith("attention.weights"), "the first that was answered"
    assert max(abs(x) for line in attention.difference for x in line) < 1e-12


def test_a_masked_score_is_not_worst() -> None:
    """Any large negative number is right there (JG-5)."""
    scores = "decoder.layers.1.attention.scores"
    wanted = answer(ask_of(vector(FORWARD))).tensors[scores]
    masked = numpy.argwhere(numpy.asarray(wanted[0, 0]) < -1e5)[0]
    found, _ = excerpts(
        FORWARD, scores, lambda x: put(x[0, 1, 7, 0] + 2, 0, 1, 7, 0)(put(-1e4, 0, 0, *masked)(x))
    )
    assert (found.at, found.worst) == ("row 0, head 1", [7, 0])


def test_what_is_no_number_is_worst_and_a_string() -> None:
    found, _ = excerpts(FORWARD, "logits", lambda x: put(numpy.nan, 0, 7, 3)(put(99.5, 1, 6, 2)(x)))
    assert (found.at, found.worst) == ("row 0", [7, 3])
    assert found.given[7 - found.start[0]][3 - found.start[1]] == "nan"


def test_the_map_that_differs_with_its_prefix() -> None:
    weights = "decoder.layers.1.attention.weights"
    (found,) = excerpts(FORWARD, weights, put(0.75, 0, 1, 7, 0))
    virtual = vector(FORWARD).case.config["num_virtual_tokens"]  # type: ignore[index]
    assert (found.name, found.virtual, found.at) == (weights, virtual, "row 0, head 1")
    assert found.size[1] == found.size[0] + virtual


def test_a_prompts_virtual_tokens_are_keys_too() -> None:
    weights = "decoder.layers.0.attention.weights"
    (found,) = excerpts(PROMPT, weights, put(0.75, 0, 0, 5, 0))
    assert found.virtual == vector(PROMPT).case.config["num_virtual_tokens"]  # type: ignore[index]
    assert found.size[0] == found.size[1]


def test_a_single_number_is_a_table_of_one() -> None:
    found, _ = excerpts(FORWARD, "loss", lambda x: x + 1)
    assert (found.axes, found.at, found.size, found.worst) == ([], "", [1, 1], [0, 0])
    assert found.difference == [[1.0]]


@pytest.mark.parametrize("change", [lambda x: x[:, :-1], lambda x: x.astype(str)])
def test_nothing_where_the_two_cannot_be_laid_side_by_side(change: Any) -> None:
    assert [e.name for e in excerpts(FORWARD, "logits", change)] == ["decoder.layers.0.attention.weights"]


def test_of_each_question_only_some(tmp_path: Path) -> None:
    asked = [v for v in all_vectors() if v.case.question == "prefix.encode" and "odd" in v.case.id]
    assert len(asked) > PICTURED_ALIKE
    selection = Selection(asked, [PROFILES["float32"]])
    port = ObjectPort("oracle.fake_ports:KeysForValues")
    results: list[CaseResult] = list(judge(port, selection, tmp_path, None, evidence=Evidence()))
    failed = [r for r in results if r.verdict == "NONCONFORMING"]
    assert len(failed) > PICTURED_ALIKE
    assert [bool(r.excerpts) for r in failed[: PICTURED_ALIKE + 1]] == [True] * PICTURED_ALIKE + [False]
