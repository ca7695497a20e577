"""The one mechanism: definition, recording, replacement; and the table of steps itself."""

from __future__ import annotations

import re
import string
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
from support import (
    MODELS,
    TOKENS_OF_DECODER,
    TOKENS_OF_TEXT,
    VIRTUAL,
    tasks_of,
    tiny_adapter,
    tiny_base,
    tiny_model,
    tiny_question,
)

from refpeft import arrays, peft_model, prompt_embedding, steps, training
from refpeft.config import PrefixTuningConfig, PromptTuningConfig
from refpeft.peft_model import PeftModel, get_peft_model

IDS = numpy.array([[5, 1, 40, 2, 2], [7, 7, 0, 3, 42]])
MASK = numpy.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
PREFIX = PrefixTuningConfig(
    task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=11
)
ALPHABET = {
    *("batch", "query", "key", "heads", "kv_heads", "head_dim", "width", "hidden", "intermediate", "vocab"),
    *("virtual", "tokens", "prefix_width", "encoder_hidden", "rows", "sequences", "length", "new_tokens"),
    *("embedding", "labels", "encoder_key", "decoder_tokens"),
}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, steps.Step]:
    """A table with two steps of this test alone."""
    monkeypatch.setattr(steps, "STEPS", {})

    @steps.step(
        "toy.double", clause="TY-1", axes="", stage="{stack}.{layer}.double", kind="exact", source="here"
    )
    def double(x: Any) -> Any:
        """Twice x."""
        return x * 2

    @steps.step("toy.shift", clause="TY-2", axes="", stage="")
    def shift(x: Any, by: int = 1) -> Any:
        return x + by

    TOY.update(double=double, shift=shift)
    return steps.STEPS


TOY: dict[str, Any] = {}


@pytest.mark.usefixtures("table")
def test_a_step_is_its_definition() -> None:
    assert TOY["double"](3) == 6
    assert (TOY["double"].__name__, TOY["double"].__doc__) == ("double", "Twice x.")
    assert steps.definition("toy.double")(3) == 6
    assert steps.definition("toy.double") is not TOY["double"]


def test_the_table_holds_what_is_said_of_a_step(table: dict[str, steps.Step]) -> None:
    assert list(table) == ["toy.double", "toy.shift"]
    row = table["toy.double"]
    assert (row.name, row.clause, row.stage, row.kind) == (
        "toy.double",
        "TY-1",
        "{stack}.{layer}.double",
        "exact",
    )
    assert (row.axes, row.source) == ((), "here")


@pytest.mark.usefixtures("table")
def test_a_stage_is_the_steps_name_unless_said_otherwise() -> None:
    @steps.step("toy.third", clause="TY-3", axes="batch key")
    def third() -> int:
        return 3

    assert (steps.STEPS["toy.third"].stage, steps.STEPS["toy.third"].axes) == ("toy.third", ("batch", "key"))
    with steps.recording() as stages:
        third()
    assert stages == {"toy.third": 3}


@pytest.mark.usefixtures("table")
def test_a_doubled_name_is_refused() -> None:
    first = steps.definition("toy.shift")

    def second() -> None:
        pass

    with pytest.raises(ValueError, match="two steps are named") as caught:
        steps.step("toy.shift", clause="TY-9", axes="")(second)
    assert str(caught.value) == f"two steps are named 'toy.shift': {first} and {second}"
    assert steps.definition("toy.shift") is first


@pytest.mark.usefixtures("table")
def test_recording_fills_scopes_in_and_keeps_the_order() -> None:
    with steps.recording() as stages, steps.scope(stack="encoder"):
        for layer in (1, 0):
            with steps.scope(layer=layer):
                TOY["shift"](TOY["double"](layer))
        with steps.scope(layer=7, stack="decoder"):
            TOY["double"](5)
    assert list(stages.items()) == [
        ("encoder.1.double", 2),
        ("encoder.0.double", 0),
        ("decoder.7.double", 10),
    ]
    TOY["double"](1)
    assert len(stages) == 3


@pytest.mark.usefixtures("table")
def test_nothing_is_formatted_unless_recorded() -> None:
    assert TOY["double"](1) == 2  # no scope, hence no layer
    with steps.recording(), pytest.raises(KeyError, match="stack"):
        TOY["double"](1)


@pytest.mark.usefixtures("table")
def test_a_recording_inside_another_collects_for_itself() -> None:
    with steps.scope(stack="a", layer=0), steps.recording() as outer:
        with steps.recording() as inner:
            TOY["double"](1)
        assert (list(outer), list(inner)) == ([], ["a.0.double"])
        TOY["double"](2)
    assert outer == {"a.0.double": 4}


@pytest.mark.usefixtures("table")
def test_recording_into_a_function_keeps_nothing() -> None:
    taken: list[tuple[str, Any]] = []
    with steps.scope(stack="a", layer=0), steps.recording(lambda *pair: taken.append(pair)) as stages:
        TOY["double"](3.0)
        with steps.recording() as inner:
            TOY["double"](4.0)
    assert taken == [("a.0.double", 6.0)]
    assert (stages, list(inner.values())) == ({}, [8.0])


@pytest.mark.usefixtures("table")
def test_what_the_function_raises_ends_the_recording() -> None:
    def enough(name: str, value: Any) -> None:
        raise RuntimeError(name)

    with steps.scope(stack="a", layer=0), pytest.raises(RuntimeError), steps.recording(enough):
        TOY["double"](3.0)
    assert steps._recorder.get() is None


def test_recording_unboxes() -> None:
    def scalar(parameters: Any) -> Any:
        y = TOY["double"](parameters["x"])
        assert type(y) is not numpy.ndarray
        return arrays.sum(y)

    with steps.scope(stack="a", layer=0), steps.recording() as stages:
        arrays.value_and_grad(scalar, {"x": numpy.ones(3)})
    assert type(stages["a.0.double"]) is numpy.ndarray


@pytest.mark.usefixtures("table")
def test_replacements_nest_and_end() -> None:
    with steps.replaced({"toy.double": lambda x: 10 * x, "toy.shift": lambda x, by=1: x - by}):
        assert (TOY["double"](1), TOY["shift"](5), TOY["shift"](5, by=2)) == (10, 4, 3)
        with steps.replaced({"toy.double": lambda x: steps.definition("toy.double")(x) + 1}):
            assert (TOY["double"](1), TOY["shift"](5)) == (3, 4)
        assert TOY["double"](1) == 10
    assert (TOY["double"](1), TOY["shift"](5)) == (2, 6)


@pytest.mark.usefixtures("table")
def test_what_a_replacement_gives_is_recorded() -> None:
    with steps.scope(stack="a", layer=0), steps.recording() as stages, steps.replaced({"toy.double": abs}):
        assert TOY["double"](-3) == 3
    assert stages == {"a.0.double": 3}


def test_an_unknown_step_is_refused_before_anything_runs() -> None:
    with pytest.raises(KeyError) as caught, steps.replaced({"loss": abs, "prefix.key_rows": abs}):
        pytest.fail("the block ran")
    assert caught.value.args == (
        "no step is named 'prefix.key_rows'; did you mean: prefix.key_row, prefix.rows, prefix.key?",
    )
    assert steps._replacements.get({}) == {}


@pytest.mark.usefixtures("table")
def test_with_nothing_near_all_names_are_given() -> None:
    with pytest.raises(KeyError) as caught:
        steps.definition("qqq")
    assert caught.value.args == ("no step is named 'qqq'; did you mean: toy.double, toy.shift?",)


@pytest.mark.usefixtures("table")
def test_threads_do_not_meet() -> None:
    seen: dict[str, Any] = {}

    def other() -> None:
        seen["value"] = TOY["shift"](1)
        with steps.recording() as stages, steps.scope(stack="b", layer=1):
            TOY["double"](1)
        seen["stages"] = stages

    with (
        steps.scope(stack="a", layer=0),
        steps.recording() as stages,
        steps.replaced({"toy.shift": lambda x: -x}),
    ):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert TOY["shift"](1) == -1
    assert seen == {"value": 2, "stages": {"b.1.double": 2}}
    assert stages == {}


@pytest.mark.usefixtures("table")
def test_exceptions_end_recording_replacement_and_scope() -> None:
    def fail(x: Any) -> Any:
        raise RuntimeError(f"no {x}")

    with (
        pytest.raises(RuntimeError, match="no 1"),
        steps.recording() as stages,
        steps.scope(stack="a", layer=0),
        steps.replaced({"toy.double": fail}),
    ):
        TOY["double"](1)
    assert stages == {}
    assert TOY["double"](1) == 2
    assert steps._recorder.get() is None
    assert steps._scope.get({}) == steps._replacements.get({}) == {}


# ---------------------------------------------------------------- the real table


def ask_gpt2() -> None:
    """Both methods, forward and backward, and the initialisation from a text."""
    base = tiny_base()
    for config in (PROMPT, PREFIX):
        model = get_peft_model(base, config)
        model.value_and_grad(input_ids=IDS, attention_mask=MASK, labels=IDS)
    prompt_embedding.fit_token_ids(numpy.array([1, 2]), 3)


def ask_every_family() -> None:
    """And every step of every family and task, forward."""
    for family, changes in MODELS.values():
        base = tiny_model(family, **changes)
        for task in tasks_of(family):
            for method in ("prompt", "prefix"):
                model = tiny_adapter(base, method, task)
                model(**tiny_question(model))


def generate_everything() -> None:
    """And every step of generating: greedily with a mask to infer, with beams that end, behind an encoder."""
    model = get_peft_model(tiny_base(), PREFIX)
    model.generate(IDS, max_new_tokens=2, eos_token_id=1, pad_token_id=7)
    model.generate(IDS, MASK, max_new_tokens=2, num_beams=2, eos_token_id=1)
    behind = tiny_adapter(tiny_model("bart"), "prefix")
    behind.generate(IDS, MASK, max_new_tokens=2, forced_eos_token_id=1)


def train_everything() -> None:
    """And every step of training, clipping included."""
    arguments = training.TrainingArguments(max_steps=1, max_grad_norm=0.1)
    model = get_peft_model(tiny_base(), PREFIX)
    training.take_step(
        training.initial_state(model.trainable_parameters()),
        arguments,
        lambda parameters, number: model.value_and_grad(input_ids=IDS, labels=IDS),
    )


def test_every_replacement_is_called(tmp_path: Path) -> None:
    calls: dict[str, int] = {}

    def counted(name: str) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return steps.definition(name)(*args, **kwargs)

        return run

    with steps.replaced({name: counted(name) for name in steps.STEPS}):
        ask_gpt2()
        assert calls["attention.key_states"] == calls["prefix.key"] * 2 == 6
        ask_every_family()
        generate_everything()
        train_everything()
        save_and_load(tmp_path)
    assert set(calls) == set(steps.STEPS)


def save_and_load(directory: Path) -> None:
    base = tiny_model("bert", num_labels=5)
    tiny_adapter(base, "prefix", "SEQ_CLS").save_pretrained(directory)
    PeftModel.from_pretrained(base, directory)


@pytest.mark.parametrize("name", ["attention.weights", "prefix.rows", "block.output", "logits", "loss"])
def test_a_replacement_changes_the_loss(name: str) -> None:
    model = get_peft_model(tiny_base(), PREFIX)
    loss = model(input_ids=IDS, labels=IDS).loss
    with steps.replaced({name: lambda *args: steps.definition(name)(*args) * 1.5}):
        assert abs(model(input_ids=IDS, labels=IDS).loss / loss - 1) > 1e-4
    assert model(input_ids=IDS, labels=IDS).loss == loss


def recorded(config: Any) -> dict[str, Any]:
    with steps.recording() as stages:
        get_peft_model(tiny_base(), config)(input_ids=IDS, attention_mask=MASK, labels=IDS)
    return stages


LAYER = [
    *("input_norm", "attention.query", "attention.key", "attention.value", "attention.key_states"),
    *(
        "attention.value_states",
        "attention.scores",
        "attention.weights",
        "attention.context",
        "attention.output",
    ),
    *("after_attention", "post_attention_norm", "mlp.activation", "mlp.output", "output"),
]
LAYERS = [f"decoder.layers.{layer}.{name}" for layer in range(3) for name in LAYER]


def test_names_and_order_of_the_stages_of_prompt_tuning() -> None:
    assert list(recorded(PROMPT)) == [
        *("inputs.token_embeddings", "inputs.attention_mask", "prompt.embeddings", "inputs.embeddings"),
        *("inputs.labels", "inputs.position_ids", "decoder.embeddings", "decoder.visible"),
        *LAYERS,
        *("decoder.final_norm", "logits", "loss"),
    ]


def test_names_and_order_of_the_stages_of_prefix_tuning() -> None:
    assert list(recorded(PREFIX)) == [
        *("inputs.token_embeddings", "inputs.attention_mask"),
        *("prefix.projection_hidden", "prefix.projection_activation", "prefix.flat"),
        *(f"prefix.layers.{layer}.{name}" for layer in range(3) for name in ("key", "value")),
        *("inputs.position_ids", "decoder.embeddings", "decoder.visible"),
        *LAYERS,
        *("decoder.final_norm", "logits", "loss"),
    ]


@pytest.mark.parametrize("config", [PROMPT, PREFIX], ids=["prompt", "prefix"])
def test_recording_while_differentiating_gives_the_same_stages(config: Any) -> None:
    model = get_peft_model(tiny_base(), config)
    with steps.recording() as stages:
        model.value_and_grad(input_ids=IDS, attention_mask=MASK, labels=IDS)
    expected = recorded(config)
    assert list(stages) == list(expected)
    for name, stage in stages.items():
        numpy.testing.assert_array_equal(stage, expected[name], err_msg=name)
        assert isinstance(stage, numpy.ndarray | numpy.generic), name


def row_of(stage: str) -> steps.Step:
    """A step that gives a stage; where several do, they have the same axes."""
    template = re.sub(r"^(encoder|decoder)\.", "{stack}.", re.sub(r"layers\.\d+", "layers.{layer}", stage))
    template = re.sub(r"\.(cross_)?attention\.", ".{attention}.", template)
    template = re.sub(r"^inputs\.(decoder_)?", "inputs.{which}", template)
    found = [
        row
        for row in steps.STEPS.values()
        if row.stage in (stage, template, template.replace("{attention}", "attention"))
    ]
    assert found, stage
    return found[0]


def sizes_of(model: PeftModel, stage: str) -> dict[str, int]:
    """The sizes of the axes of a stage, of a question by `tiny_question`."""
    prompt, both = isinstance(model.config, PromptTuningConfig), model.base.config.kind == "encoder_decoder"
    in_decoder = stage.startswith(("decoder.", "logits", "inputs.decoder_"))
    config = model.base.config.stack("decoder" if in_decoder else "encoder")
    encoder = TOKENS_OF_TEXT + (VIRTUAL if prompt else 0)
    own = TOKENS_OF_DECODER if both and in_decoder else TOKENS_OF_TEXT
    with_virtual = not both or in_decoder != prompt
    key = own + (VIRTUAL if with_virtual else 0)
    query = own + (VIRTUAL if with_virtual and prompt else 0)
    layer = re.search(r"layers\.(\d+)", stage)
    window = config.window(int(layer[1])) if layer else config.window(0)
    cut = max(0, VIRTUAL - window + 1) if window and config.cuts_prefix and not prompt else 0
    if cut and (
        stage.startswith("prefix.layers.") or re.search(r"(_states|scores|weights|sliding_visible)$", stage)
    ):
        key, virtual = key - cut, VIRTUAL - cut
    else:
        virtual = VIRTUAL * (2 if both and prompt else 1)
    if ".cross_attention." in stage:
        key, query = encoder, encoder if stage.endswith((".key", ".value")) else query
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    hidden = (
        config.embedding_width if stage in ("prompt.embeddings", "inputs.embeddings") else config.hidden_size
    )
    hidden = config.output_width if stage == "last_hidden_state" else hidden
    return {
        "batch": 2, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "width": heads * head_dim, "hidden": hidden,
        "embedding": config.embedding_width, "intermediate": config.intermediate_size, "vocab": config.vocab_size,
        "labels": config.num_labels, "virtual": virtual, "tokens": own, "decoder_tokens": own, "encoder_key": encoder,
        "prefix_width": 2 * (model.config.num_layers or 0) * kv_heads * head_dim, "encoder_hidden": 9, "query": query, "key": key,
    }  # fmt: skip


@pytest.mark.parametrize("method", ["prompt", "projected"])
@pytest.mark.parametrize("name", MODELS)
def test_a_recorded_stage_has_the_axes_that_its_step_declares(name: str, method: str) -> None:
    family, changes = MODELS[name]
    base = tiny_model(family, **changes)
    for task in tasks_of(family):
        model = tiny_adapter(base, method, task)
        with steps.recording() as stages:
            model(**tiny_question(model))
        for stage, value in stages.items():
            row, sizes = row_of(stage), sizes_of(model, stage)
            assert numpy.shape(value) == tuple(sizes[axis] for axis in row.axes), (task, stage)


def test_every_row_of_the_table_is_well_formed() -> None:
    assert peft_model  # the module that imports all steps
    by_stage: dict[str, set[tuple[str, ...]]] = {}
    for row in steps.STEPS.values():
        by_stage.setdefault(row.stage, set()).add(row.axes)
    for stage, axes in by_stage.items():  # families reach a stage by different steps, with the same axes
        assert len(axes) == 1 or not stage, stage
    for name, row in steps.STEPS.items():
        assert row.name == name
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", name), name
        assert re.fullmatch(r"[A-Z]{2}-[1-9][0-9]*", row.clause), name
        assert {field for _, field, *_ in string.Formatter().parse(row.stage)} <= {
            "stack",
            "layer",
            "attention",
            "which",
            "step",
            "parameter",
            None,
        }, name
        assert row.kind in {"exact", "elementary", "composite", "tokens"}, name
        assert set(row.axes) <= ALPHABET, name
        assert row.source.startswith(("peft ", "transformers ", "torch ")), name
        assert row.definition.__doc__, name


def test_a_model_of_its_own_records_nothing() -> None:
    model: PeftModel = get_peft_model(tiny_base(), PROMPT)
    with steps.recording() as stages:
        pass
    model(input_ids=IDS)
    assert stages == {}
