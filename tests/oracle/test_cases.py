"""A golden case as a question: its order, its stages, and who can answer it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from refpeft.config import TASK_TYPES
from refpeft.oracle.cases import ask_of, can_answer, family_of_model, in_order, stages_of, task_of
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.questions import QUESTIONS, answer
from refpeft.oracle.vectors import Vector, VectorError, all_vectors, golden_directory

VECTORS = list(all_vectors())


def test_a_tokenizer_is_found_beside_the_vectors() -> None:
    vector = next(v for v in VECTORS if "tokenizer" in v.case.arguments)
    assert not Path(vector.case.arguments["tokenizer"]).is_absolute()
    assert ask_of(vector).arguments["tokenizer"] == str(
        golden_directory() / vector.case.arguments["tokenizer"]
    )
    assert vector.case.arguments["tokenizer"].startswith("models/"), "the case itself is unchanged"


def find(name: str) -> Vector:
    return next(v for v in VECTORS if v.case.id.endswith(name))


def test_from_the_simplest_question_to_the_hardest() -> None:
    ordered = in_order(reversed(VECTORS))
    assert sorted(v.case.id for v in ordered) == sorted(v.case.id for v in VECTORS)
    rank = list(QUESTIONS).index
    keys = [(rank(v.case.question), v.case.id) for v in ordered]
    assert keys == sorted(keys)
    assert (ordered[0].case.question, ordered[-1].case.question) == ("config.resolve", "checkpoint.save")


def test_a_question_that_does_not_exist() -> None:
    vector = find("mask/full")
    strange = Vector(msgspec.structs.replace(vector.case, question="foward"), vector.directory)
    with pytest.raises(VectorError) as caught:
        in_order([vector, strange])
    assert str(caught.value) == (
        f"'{vector.directory}' asks 'foward'; this refpeft knows {', '.join(QUESTIONS)}."
    )


def test_stages_are_all_that_refpeft_records() -> None:
    """More than the golden tensors, and in the order of computation."""
    for name in (
        "prompt_tuning/forward/left-padding", "prefix_tuning/gradients/left-padding", "prefix_tuning/checkpoint/load",
        "prefix_tuning/checkpoint/save", "common/mask/full", "prefix_tuning/config/minimal",
    ):  # fmt: skip
        vector = find(name)
        recorded = list(answer(ask_of(vector)).tensors)
        stages = stages_of(vector)
        assert stages == recorded + [t for t in vector.case.tensors if t not in recorded], name
        assert set(vector.case.tensors) <= set(stages)
    assert "decoder.layers.1.attention.scores" in stages_of(find("prompt_tuning/forward/left-padding"))
    stages_of(vector).append("x")
    assert "x" not in stages_of(vector), "what is kept is not handed out"


def test_the_family_of_a_model() -> None:
    assert family_of_model(golden_directory() / "models/gpt2-odd") == "gpt2"


def test_who_can_answer() -> None:
    everything = ReferencePort().abilities
    assert all(can_answer(everything, vector) for vector in VECTORS)

    def able(**abilities: list[str]) -> set[str]:
        said = msgspec.structs.replace(everything, **abilities)
        return {v.case.id for v in VECTORS if can_answer(said, v)}

    assert able(questions=["mask"]) == {v.case.id for v in VECTORS if v.case.question == "mask"}
    assert able(methods=["prompt_tuning"]) == {v.case.id for v in VECTORS if v.case.method != "prefix_tuning"}
    without = able(families=["mamba"])
    assert without == {v.case.id for v in VECTORS if v.case.model is None}
    assert find("mask/full").case.id in without
    assert find("prefix_tuning/config/minimal").case.id in without, "its base model is a document"

    decoders = able(tasks=["CAUSAL_LM"])
    assert {task_of(v) for v in VECTORS if v.case.id in decoders} == {"CAUSAL_LM", None, "LM", "causal_lm"}
    assert {task_of(v) for v in VECTORS if v.case.id not in decoders} == {*TASK_TYPES} - {"CAUSAL_LM"}


def test_the_task_of_a_case() -> None:
    """Of its configuration, of the one that it asks about, or of the one that the adapter brings."""
    tasks = {
        "prefix_tuning/forward/left-padding": "CAUSAL_LM", "prefix_tuning/config/family-bert": "SEQ_CLS",
        "prompt_tuning/config/rejected-task-type": "causal_lm", "common/mask/full": None,
        "prefix_tuning/checkpoint/gpt2-heads-load-head-prefix": "QUESTION_ANS",
    }  # fmt: skip
    assert {name: task_of(find(name)) for name in tasks} == tasks
    vector = find("prefix_tuning/config/minimal")
    for config in (None, [], {"task_type": ["CAUSAL_LM"]}, {}):
        case = msgspec.structs.replace(vector.case, arguments={"config": config})
        assert task_of(Vector(case, vector.directory)) is None, config
