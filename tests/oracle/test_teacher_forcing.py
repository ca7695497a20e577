"""Which stages can be asked for again with the reference's own inputs, and what those are (clause JG-13)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from refpeft.oracle import teacher_forcing
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import ask_of, stages_of
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.questions import answer
from refpeft.oracle.teacher_forcing import ask_again
from refpeft.oracle.vectors import Vector, all_vectors, read_vector

VECTORS = {vector.case.id.removeprefix("peft-0.21.2/"): vector for vector in all_vectors()}
FLOAT32 = PROFILES["float32"]


def of_family(part: str) -> Vector:
    return next(v for name, v in VECTORS.items() if part in name and "/forward/" in name and v.case.tensors)


@pytest.mark.parametrize(
    ("case", "stage"),
    [
        ("prefix_tuning/forward/stages-right-padding", "decoder.layers.0.attention.output"),
        ("prefix_tuning/forward/stages-projected", "decoder.layers.2.attention.scores"),
        ("prompt_tuning/forward/left-padding", "decoder.layers.1.attention.context"),
    ],
)
def test_attention_is_asked_for_with_the_references_hidden_states(
    case: str, stage: str, tmp_path: Path
) -> None:
    """The question's answer is what the whole model has there."""
    vector = VECTORS[case]
    asked = teacher_forcing._question(ask_of(vector), stage)
    assert asked is not None
    assert asked.question == "attention"
    made = teacher_forcing._vector(asked, vector, tmp_path)
    whole = answer(ask_of(vector)).tensors
    name = stage.rpartition(".")[0] + ".output"
    error = numpy.linalg.norm(made.expected[name] - whole[name]) / numpy.linalg.norm(whole[name])
    assert error < 1e-5, "but for hidden states in float32"
    assert ("past.key" in made.inputs) == case.startswith("prefix")
    assert ask_again(ReferencePort(), vector, ask_of(vector), stage, FLOAT32) == (
        f"asked for one attention layer with a prefix with refpeft's own inputs, it is right: the cause lies before {stage}"
    )


@pytest.mark.parametrize("part", ["llama-even", "mistral-odd", "opt-odd", "bert-odd"])
def test_in_other_families_too(part: str, tmp_path: Path) -> None:
    vector = of_family(f"prefix_tuning/forward/{part}")
    stack = "encoder" if "bert" in part else "decoder"
    asked = teacher_forcing._question(ask_of(vector), f"{stack}.layers.1.attention.output")
    assert asked is not None
    made = teacher_forcing._vector(asked, vector, tmp_path)
    whole = answer(ask_of(vector)).tensors[f"{stack}.layers.1.attention.output"]
    given = made.expected[f"{stack}.layers.1.attention.output"]
    assert numpy.linalg.norm(given - whole) / numpy.linalg.norm(whole) < 1e-5


def test_a_prefix_is_asked_for_with_the_cases_parameters(tmp_path: Path) -> None:
    vector = VECTORS["prefix_tuning/forward/stages-projected"]
    asked = teacher_forcing._question(ask_of(vector), "prefix.layers.1.value")
    assert asked is not None
    assert (asked.question, asked.arguments) == ("prefix.encode", {"batch_size": vector.case.dims["batch"]})
    made = teacher_forcing._vector(asked, vector, tmp_path)
    assert made.model_directory is None
    assert stages_of(made) == list(made.case.tensors)
    for name in made.expected:
        assert numpy.allclose(made.expected[name], vector.expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("case", "stage"),
    [
        ("prefix_tuning/forward/stages-projected", "logits"),
        ("prefix_tuning/forward/stages-projected", "inputs.position_ids"),
        ("prefix_tuning/forward/stages-projected", "decoder.layers.0.mlp.output"),
        ("prompt_tuning/forward/left-padding", "prefix.flat"),
    ],
)
def test_for_other_stages_there_is_no_question(case: str, stage: str) -> None:
    vector = VECTORS[case]
    assert teacher_forcing._question(ask_of(vector), stage) is None
    assert ask_again(ReferencePort(), vector, ask_of(vector), stage, FLOAT32) == ""


@pytest.mark.parametrize("part", ["bloom-odd", "falcon-alibi", "t5-odd"])
def test_not_where_something_is_added_to_the_scores(part: str) -> None:
    vector = of_family(f"prefix_tuning/forward/{part}")
    assert teacher_forcing._question(ask_of(vector), "decoder.layers.0.attention.output") is None


def test_not_where_the_caller_has_given_positions_of_its_own() -> None:
    vector = VECTORS["prefix_tuning/forward/llama-odd-positions-shifted"]
    assert teacher_forcing._question(ask_of(vector), "decoder.layers.0.attention.output") is None


def test_what_is_asked_is_a_case_on_disk(tmp_path: Path) -> None:
    vector = VECTORS["prefix_tuning/forward/stages-projected"]
    asked = teacher_forcing._question(ask_of(vector), "prefix.flat")
    assert asked is not None
    made = teacher_forcing._vector(asked, vector, tmp_path)
    again = read_vector(made.directory)
    assert again.case == made.case
    assert made.truth == "refpeft"
    assert again.inputs.keys() == asked.inputs.keys()
    assert teacher_forcing._question(replace(asked), "prefix.flat") is None, "not from the component itself"
