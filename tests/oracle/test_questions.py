"""refpeft's own answers equal HF's, for every golden vector; and what a question needs is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from support import EVERY_CASE, relative_error

from refpeft import checkpoint
from refpeft.errors import InputError
from refpeft.oracle import questions
from refpeft.oracle.budget import HIDDEN
from refpeft.oracle.cases import ask_of
from refpeft.oracle.names import clause_of, is_known, step_of
from refpeft.oracle.questions import QUESTIONS, Answer, Arithmetic, Ask, answer, is_required
from refpeft.oracle.vectors import Vector, all_vectors, golden_directory
from refpeft.steps import STEPS
from refpeft.tensors import read_tensors

VECTORS = list(all_vectors())
MODEL = golden_directory() / "models/gpt2-odd"
PREFIX: dict[str, Any] = {
    "peft_type": "PREFIX_TUNING",
    "task_type": "CAUSAL_LM",
    "num_virtual_tokens": 2,
    "token_dim": 24,
    "num_layers": 3,
    "num_attention_heads": 4,
}
PROMPT: dict[str, Any] = {
    "peft_type": "PROMPT_TUNING",
    "task_type": "CAUSAL_LM",
    "num_virtual_tokens": 2,
    "token_dim": 24,
    "num_transformer_submodules": 1,
}
WEIGHT = "parameters.prompt_encoder.embedding.weight"


def find(name: str) -> Vector:
    return next(v for v in VECTORS if v.case.id.endswith(name))


# ---------------------------------------------------------------- refpeft against HF


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.case.id.split("/", 1)[1])
def test_refpeft_answers_as_hf(vector: Vector) -> None:
    """In float64: exact tensors equal, computed ones to 1e-12, normal variates to 4e-6."""
    given = answer(ask_of(vector))
    for name, tensor in vector.case.tensors.items():
        expected, got = vector.expected[name], numpy.asarray(given.tensors[name])
        assert got.shape == expected.shape
        if tensor.kind == "exact":
            assert (got == expected).all(), name
        elif tensor.kind == "drawn":
            assert numpy.abs(got - expected).max() <= 4e-6, name
        else:
            hidden = numpy.abs(expected) > HIDDEN
            assert (got[hidden] < -HIDDEN).all(), name
            assert relative_error(got[~hidden], expected[~hidden]) <= 1e-12, name


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS if v.case.document], ids=lambda v: v.case.id.split("/", 1)[1]
)
def test_refpeft_writes_the_documents_of_hf(vector: Vector, tmp_path: Path) -> None:
    expected = vector.case.document
    assert expected is not None
    ask = ask_of(vector)
    if vector.case.question == "config.resolve":
        document = answer(ask).document
        assert document == expected or (expected["rejected"] and document["rejected"])
    else:
        directory = answer(Ask(ask.question, ask.method, ask.config, {}, ask.inputs, output=tmp_path)).adapter
        assert directory == tmp_path / "adapter"
        assert checkpoint.load(directory)[0].to_dict() == expected["config"]
        saved = read_tensors(directory / "adapter_model.safetensors", "the adapter")
        assert saved.keys() == vector.expected.keys()
        for name, tensor in saved.items():
            assert relative_error(tensor, vector.expected[name]) <= 1e-12, name


def test_stages_come_in_the_order_of_the_vectors() -> None:
    """Gradients, trained parameters and what a file holds aside: none depends on another."""
    for vector in VECTORS if EVERY_CASE else VECTORS[::8]:
        if vector.case.question == "checkpoint.save":
            continue
        expected = [name for name in vector.case.tensors if not name.startswith(("gradients.", "trained."))]
        given = [name for name in answer(ask_of(vector)).tensors if name in expected]
        assert given == expected, vector.case.id


def test_every_question_is_asked_by_some_vector_for_each_of_its_methods() -> None:
    asked = {(v.case.question, v.case.method) for v in VECTORS}
    assert asked == {(q.name, method) for q in QUESTIONS.values() for method in q.methods}
    assert {q.level for q in QUESTIONS.values()} == set(questions.LEVELS)


# ---------------------------------------------------------------- names


OTHER_NAMES = {
    ("hidden", "embedding"), ("embedding", "hidden"), ("encoder_key", "key"), ("encoder_key", "query"), ("heads", "kv_heads"),
    ("decoder_tokens", "tokens"), ("virtual_rows", "virtual"),
}  # fmt: skip
"""What an axis of a step is called in a case: by what it is there, an encoder's text or an embedding as wide as the layers."""
ONE_OF_SEVERAL = {
    "encoder.visible", "head.last_token_logits", "inputs.position_ids_of_mask", "inputs.position_ids_of_tokens",
    "mlp.gated_activation", "block.output", "block.parallel_output",
}  # fmt: skip
"""Steps whose stage another family's, or another task's, step is called too: `step_of` finds the first."""


def test_every_stage_of_the_vectors_has_its_step() -> None:
    """And has the step's kind and axes; parameters, gradients, draws and files have none."""
    without = (
        "parameters.",
        "gradients.",
        "draws.",
        "prompt_embeddings",
        "base_model.",
        "training.",
        "trained.",
    )
    for vector in VECTORS:
        for name, tensor in vector.case.tensors.items():
            step = step_of(name)
            assert (step is None) == name.startswith(without), name
            if step is not None:
                summed = (name, tensor.kind) == (
                    "inputs.embeddings",
                    "elementary",
                )  # with scaled or typed embeddings
                assert tensor.kind == step.kind or summed, name
                pairs = zip(tensor.axes, step.axes, strict=True)
                assert {(own, axis) for own, axis in pairs if own != axis} <= OTHER_NAMES, name


def test_step_of_does_not_hang_on_the_order_of_imports() -> None:
    code = "import refpeft.positions; from refpeft.oracle.names import step_of; print(step_of('inputs.embeddings').name)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "inputs.embeddings\n"


def test_step_of() -> None:
    def name(stage: str) -> str | None:
        step = step_of(stage)
        return step.name if step else None

    assert name("decoder.layers.11.attention.key") == "attention.key"
    assert name("encoder.layers.0.attention.key_states") == "attention.key_states"
    assert name("prefix.layers.0.key") == "prefix.key"
    assert name("loss") == "loss"
    for nothing in (
        "decoder.layers.x.attention.key",
        "decoderXlayers.0.output",
        "prefix.rows",
        "",
        "logits2",
        "{stack}",
    ):
        assert name(nothing) is None
    assert {
        n for n, step in STEPS.items() if step.stage and step_of(_filled(step.stage)) is not step
    } == ONE_OF_SEVERAL


def _filled(template: str) -> str:
    given = {"stack": "decoder", "layer": 3, "attention": "attention", "which": "decoder_", "step": 12}
    return template.format(**given, parameter="prompt_encoder.transform.0.bias")


OUTPUTS = ("logits", "pooled_logits", "start_logits", "end_logits", "pooler_output")
"""What a task says, whether it was trained or loaded."""


def test_what_is_required() -> None:
    required = {
        (v.case.question, name)
        for v in VECTORS
        for name in v.case.tensors
        if is_required(v.case.question, name) and not name.startswith(("draws.", "parameters.", "gradients.", "prefix.", "decoder.", "trained."))
    }  # fmt: skip
    assert required == {
        ("mask", "inputs.attention_mask"),
        *(
            ("inputs", f"inputs.{name}")
            for name in ("attention_mask", "labels", "position_ids", "embeddings")
        ),
        *(("inputs", f"inputs.decoder_{name}") for name in ("input_ids", "position_ids")),
        *(("forward", name) for name in (*OUTPUTS, "token_logits", "last_hidden_state", "loss")),
        ("gradients", "loss"),
        ("training", "training.losses"),
        ("generate", "sequences"),
        *(("checkpoint.load", name) for name in OUTPUTS),
        ("checkpoint.save", "prompt_embeddings"),
        *(("checkpoint.save", f"base_model.classifier.{name}") for name in ("weight", "bias")),
        *(
            ("checkpoint.save", f"base_model.classifier.{layer}.{name}")
            for layer in ("dense", "out_proj")
            for name in ("weight", "bias")
        ),
    }
    assert is_required("random", "draws.0.weight")
    assert is_required("init", "parameters.prompt_encoder.transform.0.bias")
    assert is_required("gradients", "gradients.prompt_encoder.embedding.weight")
    assert is_required("prefix.encode", "prefix.layers.0.key")
    assert is_required("attention", "decoder.layers.1.attention.output")
    assert not is_required("attention", "decoder.layers.1.attention.scores")
    assert not is_required("prefix.encode", "prefix.flat")
    assert not is_required("gradients", "logits")
    assert not is_required("config.resolve", "logits")
    assert is_required("training", "trained.prompt_encoder.transform.0.bias")
    assert not is_required("training", "training.gradient_norms")
    assert not is_required("training", "training.steps.0.loss")


def test_training_answers_in_the_order_of_computation() -> None:
    """Rates, then step by step, then the series and the parameters at the end."""
    vector = find("prompt_tuning/training/accumulation-cosine")
    names = list(answer(ask_of(vector)).tensors)
    weight = "prompt_encoder.embedding.weight"
    steps = ["loss", f"gradients.{weight}", "gradient_norm", f"exp_avg.{weight}", f"exp_avg_sq.{weight}", f"parameters.{weight}"]  # fmt: skip
    assert names == [
        "training.learning_rates",
        *(f"training.steps.{i}.{name}" for i in range(10) for name in steps),
        "training.losses",
        "training.gradient_norms",
        f"trained.{weight}",
    ]
    assert [name for name in names if step_of(name)] == names[1:-3]


def test_inputs_answers_with_no_more_than_inputs() -> None:
    given = answer(ask_of(find("prompt_tuning/inputs/right-padding"))).tensors
    assert list(given) == [
        "inputs.token_embeddings",
        "inputs.attention_mask",
        "prompt.embeddings",
        "inputs.embeddings",
        "inputs.labels",
        "inputs.position_ids",
        "decoder.embeddings",
        "decoder.visible",
    ]


# ---------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask("forward", "prefix_tuning", PREFIX), "The question 'forward' needs a base model."),
        (Ask("attention", "common", arguments={"layer": 0}), "The question 'attention' needs a base model."),
        (Ask("checkpoint.load", "prefix_tuning", adapter=Path()), "The question 'checkpoint.load' needs a base model."),
        (Ask("init", "prompt_tuning", PROMPT, {"seed": 0}), "The question 'init' needs a base model."),
        (Ask("forward", "prefix_tuning", model=MODEL), "The question 'forward' needs an adapter configuration."),
        (Ask("init", "prefix_tuning", arguments={"seed": 0}), "The question 'init' needs an adapter configuration."),
        (Ask("checkpoint.save", "prefix_tuning"), "The question 'checkpoint.save' needs an adapter configuration."),
        (Ask("prefix.encode", "prefix_tuning", PROMPT), "The question 'prefix.encode' is about prefix tuning."),
        (Ask("checkpoint.load", "prefix_tuning", model=MODEL), "The question 'checkpoint.load' needs an adapter directory."),
        (
            Ask("random", "common", arguments={"seed": 0, "draws": [{"kind": "cauchy", "shape": [1]}]}),
            "Unknown draw {'kind': 'cauchy', 'shape': [1]}.",
        ),
        (
            Ask("gradients", "prompt_tuning", PROMPT, model=MODEL, inputs={"input_ids": numpy.array([[1, 2]]), WEIGHT: numpy.ones((2, 24))}),
            "The question 'gradients' needs labels, or start_positions and end_positions.",
        ),
        (
            Ask("training", "prompt_tuning", PROMPT, {"max_steps": 1}, {"input_ids": numpy.array([[[1, 2]]]), WEIGHT: numpy.ones((2, 24))}, MODEL),
            "The question 'training' needs labels.",
        ),
    ],
)  # fmt: skip
def test_what_a_question_needs(ask: Ask, message: str) -> None:
    with pytest.raises(InputError) as caught:
        answer(ask)
    assert str(caught.value) == message


def test_a_loss_over_no_labels_is_nan_without_a_warning() -> None:
    ids = numpy.array([[1, 2]])
    inputs = {"input_ids": ids, "labels": numpy.full_like(ids, -100), WEIGHT: numpy.ones((2, 24))}
    given = answer(Ask("forward", "prompt_tuning", PROMPT, {}, inputs, MODEL)).tensors
    assert numpy.isnan(given["loss"])


def test_a_configuration_that_is_rejected_says_why() -> None:
    arguments = {
        "config": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 0, "nonsense": 1},
        "base_config": None,
    }
    document = answer(Ask("config.resolve", "prefix_tuning", arguments=arguments)).document
    assert document["rejected"] is True
    assert "num_virtual_tokens" in document["message"]


# ---------------------------------------------------------------- arithmetic


def test_arithmetic_takes_floating_point_numbers_only() -> None:
    single = Arithmetic("float32")
    assert single.take(numpy.array([1.0, 2.0])).dtype == numpy.float32
    for untouched in (numpy.array([1]), numpy.array([True]), numpy.array([1], dtype="uint8")):
        assert single.take(untouched) is untouched
    assert Arithmetic().take(numpy.float32(0.1)).dtype == numpy.float64


def test_wrap_and_unwrap_meet_every_floating_point_input_and_every_answer() -> None:
    wrapped: list[tuple[Any, ...]] = []
    unwrapped: list[tuple[Any, ...]] = []

    def wrap(array: Any) -> Any:
        assert array.dtype == numpy.float32
        wrapped.append(array.shape)
        return array * 2

    def unwrap(array: Any) -> Any:
        unwrapped.append(numpy.shape(array))
        return numpy.asarray(array) + 1

    ask = ask_of(find("prefix_tuning/prefix_encode/odd-layers"))
    plain = answer(ask, Arithmetic("float32")).tensors
    twice = answer(ask, Arithmetic("float32", wrap, unwrap)).tensors
    assert wrapped == [ask.inputs[WEIGHT].shape]
    assert unwrapped == [tensor.shape for tensor in plain.values()]
    assert plain
    for name, tensor in plain.items():
        assert tensor.dtype == numpy.float32
        assert (twice[name] == 2 * tensor + 1).all(), name


def test_float32_reaches_every_stage() -> None:
    for name in (
        "prefix_tuning/forward/stages-projected",
        "prompt_tuning/forward/left-padding",
        "prefix_tuning/gradients/projected",
        "prefix_tuning/checkpoint/load",
    ):
        tensors = answer(ask_of(find(name)), Arithmetic("float32")).tensors
        assert {str(t.dtype) for t in map(numpy.asarray, tensors.values())} <= {"float32", "int64", "bool"}, (
            name
        )


def test_an_answer_is_empty_unless_told() -> None:
    assert (Answer().tensors, Answer().document, Answer().adapter) == ({}, None, None)


@pytest.mark.parametrize(
    ("name", "clause"),
    [
        ("draws.0", "PT-4"),
        ("draws.12.weight", "PT-4"),
        ("parameters.prompt_encoder.embedding.weight", "PT-4"),
        ("parameters.prompt_encoder.transform.0.weight", "PX-6"),
        ("gradients.prompt_encoder.embedding.weight", "PT-2"),
        ("gradients.prompt_encoder.transform.2.bias", "PX-2"),
        ("prompt_embeddings", "CK-1"),
        ("training.learning_rates", "TR-2"),
        ("training.losses", "TR-5"),
        ("training.gradient_norms", "TR-3"),
        ("training.steps.3.clip_coefficient", "TR-3"),
        ("training.steps.12.exp_avg_sq.prompt_encoder.transform.0.bias", "TR-1"),
        ("training.steps.x.loss", ""),
        ("trained.prompt_encoder.embedding.weight", "TR-1"),
        ("prefix.layers.3.key", "PX-4"),
        ("logits", "TK-2"),
        ("logit", ""),
        ("my.debug", ""),
    ],
)
def test_the_clause_of_a_tensor(name: str, clause: str) -> None:
    assert clause_of(name) == clause
    assert is_known(name) == bool(clause)


def test_every_tensor_of_the_vectors_has_a_clause() -> None:
    for vector in VECTORS:
        assert [name for name in vector.case.tensors if not is_known(name)] == [], vector.case.id
