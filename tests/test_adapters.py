"""Several adapters on one base model: names, states, heads, files, and none."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from support import MODELS, relative_error, tiny_base, tiny_model

import refpeft
from refpeft import adapter, adapters
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.errors import CheckpointError, ConfigError, InputError, RefpeftError
from refpeft.peft_model import PeftModel, get_peft_model
from refpeft.transformer import stack
from refpeft.transformer.families import FAMILIES
from refpeft.transformer.weights import word_embeddings

EMBEDDING, HEAD = "prompt_encoder.embedding.weight", "base_model.lm_head.weight"
GPT2, BERT = tiny_base(), tiny_model("bert")
IDS = numpy.array([[5, 1, 40, 2, 2], [7, 7, 0, 3, 42]])
MASK = numpy.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
DECODERS = [name for name, (family, _) in MODELS.items() if FAMILIES[family].kind == "decoder"]


def prompt(virtual: int = 3, task: str | None = "CAUSAL_LM", **fields: Any) -> PromptTuningConfig:
    return PromptTuningConfig(task_type=task, num_virtual_tokens=virtual, **fields)


def prefix(virtual: int = 3, task: str | None = "CAUSAL_LM", **fields: Any) -> PrefixTuningConfig:
    return PrefixTuningConfig(task_type=task, num_virtual_tokens=virtual, **fields)


def fitting(family: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The width of a token table that HF's rule does not find."""
    width = changes.get("word_embed_proj_dim") if family == "opt" else None
    return {} if width is None else {"token_dim": width}


def headed(virtual: int = 3) -> PromptTuningConfig:
    return prompt(virtual, modules_to_save=["lm_head"])


def refusal(call: Callable[[], Any], kind: type[RefpeftError] = InputError) -> str:
    with pytest.raises(RefpeftError) as caught:
        call()
    assert type(caught.value) is kind
    return str(caught.value)


def state(model: PeftModel) -> tuple[str, str | None, bool, list[str]]:
    own = model._adapters
    return own.active, own.head, own.head_trains, list(own.every)


# ---------------------------------------------------------------- adding and activating


def test_a_new_adapter_is_not_active() -> None:
    model = get_peft_model(GPT2, prompt(3), seed=1)
    before = model(IDS, MASK).logits
    model.add_adapter("b", prompt(2), seed=5)
    assert list(model.peft_config) == ["default", "b"]
    assert [config.num_virtual_tokens for config in model.peft_config.values()] == [3, 2]
    assert (model.active_adapter, model.active_adapters) == ("default", ["default"])
    numpy.testing.assert_array_equal(model(IDS, MASK).logits, before)
    model.set_adapter("b")
    assert (model.active_adapter, model.active_adapters, model.config.num_virtual_tokens) == ("b", ["b"], 2)
    alone = get_peft_model(GPT2, prompt(2), seed=5)
    numpy.testing.assert_array_equal(model(IDS, MASK).logits, alone(IDS, MASK).logits)
    numpy.testing.assert_array_equal(
        model.generate(IDS, pad_token_id=0, eos_token_id=1, max_new_tokens=3),
        alone.generate(IDS, pad_token_id=0, eos_token_id=1, max_new_tokens=3),
    )
    assert model.get_prompt(2).shape == (2, 2, 15)  # type: ignore[union-attr]
    assert model.prepare_attention_mask(2, MASK).shape == (2, 7)


def test_an_adapter_that_is_added_is_filled_in_but_keeps_its_base_name() -> None:
    """`get_peft_model` writes the base model's name into the configuration; `add_adapter` does not, as in HF."""
    model = get_peft_model(GPT2, prefix(3, base_model_name_or_path="first"))
    model.add_adapter("b", prefix(2, base_model_name_or_path="second"))
    assert [config.base_model_name_or_path for config in model.peft_config.values()] == [None, "second"]
    assert [config.num_layers for config in model.peft_config.values()] == [3, 3]


def test_the_first_adapter_may_have_a_name() -> None:
    model = get_peft_model(GPT2, prompt(), adapter_name="mine")
    assert (model.active_adapter, list(model.peft_config)) == ("mine", ["mine"])
    assert model.trainable_parameter_names() == ["prompt_encoder.mine.embedding.weight"]
    assert list(model.trainable_parameters()) == [EMBEDDING]


@pytest.mark.parametrize("name", ["p", "prompt", "_", "ing_"])
def test_a_name_within_the_prefix_of_the_method(name: str) -> None:
    words = (
        f"Adapter name '{name}' should not be contained in the prefix 'prompt_tuning_'. "
        "This may lead to reinitialization of the adapter weights during loading."
    )
    model = get_peft_model(GPT2, prompt())
    for call in (
        lambda: model.add_adapter(name, prompt(2)),
        lambda: get_peft_model(GPT2, prompt(), adapter_name=name),
    ):
        with pytest.warns(UserWarning) as caught:  # noqa: PT030  (the whole message is below)
            call()
        assert [str(warning.message) for warning in caught] == [words]
    assert list(model.peft_config) == ["default", name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_peft_model(GPT2, prefix(), adapter_name="prompt")


def test_names_that_are_none() -> None:
    model = get_peft_model(GPT2, prompt())
    words = (
        "{!r} cannot be the name of an adapter: it becomes part of parameters' names and the name of a directory. "
        "Use one without '.', '/' and '\\'."
    )
    for name in ("", "a.b", "../x", "x/y", "x\\y", "a\0b", "a\nb"):
        assert refusal(lambda: model.add_adapter(name, prompt(2))) == words.format(name)  # noqa: B023
        assert refusal(lambda: get_peft_model(GPT2, prompt(), adapter_name=name)) == words.format(name)  # noqa: B023
    for other in (None, 5, ["b"]):
        assert refusal(lambda: adapters._require_name(other)) == (  # noqa: B023
            f"An adapter's name is a string, not {other!r}. One adapter is active at a time."
        )
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("name", ["classifier", "my_score"])
def test_the_first_adapter_of_a_classifier_cannot_be_called_as_its_head(name: str) -> None:
    assert refusal(lambda: get_peft_model(BERT, prompt(3, "SEQ_CLS"), adapter_name=name)) == (
        f"An adapter of this task cannot be called '{name}': HF takes every module whose name ends with one of classifier, score "
        "for the head, and copies the prompt encoder. Choose another name."
    )
    assert get_peft_model(GPT2, prompt(), adapter_name=name).active_adapter == name
    model = get_peft_model(BERT, prompt(3, "SEQ_CLS"))
    model.add_adapter(name, prompt(3, "SEQ_CLS"))
    assert list(model.peft_config) == ["default", name]


def test_what_cannot_be_added() -> None:
    model = get_peft_model(GPT2, prompt())
    assert refusal(lambda: model.add_adapter("default", prefix())) == (
        "Adapter with name 'default' already exists."
    )
    assert refusal(lambda: model.add_adapter("b", prefix()), ConfigError) == (
        "Cannot combine adapters with different peft types. Found PeftType.PROMPT_TUNING and PeftType.PREFIX_TUNING."
    )
    for task in ("SEQ_CLS", None):
        assert refusal(lambda: model.add_adapter("b", prompt(3, task)), ConfigError) == (  # noqa: B023
            f"task_type is {task!r}, but the model is one for CAUSAL_LM: HF takes the adapter and computes CAUSAL_LM with it. "
            "Give task_type='CAUSAL_LM'."
        )
    assert refusal(lambda: model.add_adapter("b", prompt(token_dim=7)), ConfigError).startswith(
        "token_dim is 7"
    )
    assert refusal(lambda: model.set_adapter("zz")) == "Adapter zz not found."
    assert state(model) == ("default", None, False, ["default"])


def test_training_changes_the_active_adapter_alone() -> None:
    model = get_peft_model(GPT2, prefix(2), seed=1)
    model.add_adapter("b", prefix(4), seed=2)
    first = model.trainable_parameters()[EMBEDDING]
    model.set_adapter("b")
    batches = [{"input_ids": IDS, "labels": IDS}] * 3
    refpeft.train(model, batches, refpeft.TrainingArguments(max_steps=3, learning_rate=0.1), progress=False)
    assert (
        numpy.abs(
            model.trainable_parameters()[EMBEDDING]
            - get_peft_model(GPT2, prefix(4), 2).parameters()[EMBEDDING]
        ).max()
        > 0.01
    )
    model.set_adapter("default")
    numpy.testing.assert_array_equal(model.trainable_parameters()[EMBEDDING], first)


def test_further_adapters_name_the_head_once() -> None:
    model = get_peft_model(BERT, prompt(3, "SEQ_CLS"))
    model.add_adapter("b", prompt(3, "SEQ_CLS"))
    assert [config.modules_to_save for config in model.peft_config.values()] == [
        ["classifier", "score", "classifier", "score"],
        ["classifier", "score"],
    ]


# ---------------------------------------------------------------- whose head


def test_each_adapter_has_a_copy_of_the_head() -> None:
    model = get_peft_model(BERT, prompt(3, "SEQ_CLS"))
    model.add_adapter("b", prompt(3, "SEQ_CLS"))
    values = model.trainable_parameters()
    assert list(values) == ["base_model.classifier.weight", "base_model.classifier.bias", EMBEDDING]
    model.load_trainable_parameters({**values, "base_model.classifier.bias": numpy.arange(8.0)})
    model.set_adapter("b")
    numpy.testing.assert_array_equal(
        model.parameters()["base_model.classifier.bias"], values["base_model.classifier.bias"]
    )
    model.set_adapter("default")
    assert model.parameters()["base_model.classifier.bias"].tolist() == list(range(8))
    assert model.trainable_parameter_names() == [
        "base_model.classifier.modules_to_save.default.weight",
        "base_model.classifier.modules_to_save.default.bias",
        "prompt_encoder.default.embedding.weight",
        "prompt_encoder.b.embedding.weight",
    ]


def test_names_of_a_head_of_two_maps_and_of_a_projection() -> None:
    config = prefix(2, "SEQ_CLS", prefix_projection=True, encoder_hidden_size=4)
    model = get_peft_model(tiny_model("roberta"), config, adapter_name="own")
    assert model.trainable_parameter_names() == [
        "base_model.classifier.modules_to_save.own.dense.weight",
        "base_model.classifier.modules_to_save.own.dense.bias",
        "base_model.classifier.modules_to_save.own.out_proj.weight",
        "base_model.classifier.modules_to_save.own.out_proj.bias",
        "prompt_encoder.own.embedding.weight",
        "prompt_encoder.own.transform.0.weight",
        "prompt_encoder.own.transform.0.bias",
        "prompt_encoder.own.transform.2.weight",
        "prompt_encoder.own.transform.2.bias",
    ]


def test_the_first_head_is_used_at_once_by_whatever_adapter_is_active() -> None:
    """HF activates its wrapper for the adapter that brings it, though the model's active adapter is another."""
    model = get_peft_model(GPT2, prompt())
    before = model(IDS).logits
    model.add_adapter("b", headed())
    assert state(model) == ("default", "b", True, ["default", "b"])
    assert list(model.trainable_parameters()) == [HEAD, EMBEDDING]
    values = model.trainable_parameters()
    model.load_trainable_parameters({**values, HEAD: 2 * values[HEAD]})
    assert relative_error(model(IDS).logits, 2 * before) < 1e-14
    other = get_peft_model(GPT2, headed()).parameters()[EMBEDDING]
    numpy.testing.assert_array_equal(
        model._adapters.every["b"].prompt[EMBEDDING], other
    )  # only its head is loaded
    model.set_adapter("default")
    assert state(model) == ("default", None, False, ["default", "b"])
    numpy.testing.assert_array_equal(model(IDS).logits, before)
    model.set_adapter("b", inference_mode=True)
    assert state(model) == ("b", "b", False, ["default", "b"])
    numpy.testing.assert_array_equal(model.parameters()[HEAD], 2 * values[HEAD])
    with pytest.warns(UserWarning, match="Adapter b was active"):
        model.delete_adapter("b")
    assert state(model) == ("default", None, False, ["default"])
    model.add_adapter("plain", prompt())
    model.add_adapter("c", headed())  # the wrapper is still there, and nothing activates it
    assert state(model) == ("default", None, False, ["default", "plain", "c"])
    model.set_adapter("c")
    assert state(model) == ("c", "c", True, ["default", "plain", "c"])


def test_adding_freezes_the_used_head_until_an_adapter_with_one_is_added() -> None:
    model = get_peft_model(GPT2, headed())
    assert state(model) == ("default", "default", True, ["default"])
    model.add_adapter("b", prompt())
    assert state(model) == ("default", "default", False, ["default", "b"])
    assert list(model.trainable_parameters()) == [EMBEDDING]
    assert list(model.parameters()) == [HEAD, EMBEDDING]
    model.add_adapter("c", headed())
    assert state(model) == ("default", "default", True, ["default", "b", "c"])


def test_loading_freezes_the_used_head(tmp_path: Path) -> None:
    model = get_peft_model(BERT, prompt(3, "SEQ_CLS"))
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "b")
    assert model.config.modules_to_save == ["classifier", "score"] * 2
    assert model.peft_config["b"].modules_to_save == ["classifier", "score"] * 3
    assert state(model) == ("default", "default", False, ["default", "b"])
    model.add_adapter("c", prompt(3, "SEQ_CLS"))
    assert state(model) == ("default", "default", True, ["default", "b", "c"])
    loaded = PeftModel.from_pretrained(BERT, tmp_path)
    assert state(loaded) == ("default", "default", False, ["default"])
    loaded.set_adapter("default")
    assert state(loaded) == ("default", "default", True, ["default"])


# ---------------------------------------------------------------- deleting


def test_deleting() -> None:
    model = get_peft_model(GPT2, prompt(1))
    for virtual, name in enumerate("bcd", 2):
        model.add_adapter(name, prompt(virtual))
    assert refusal(lambda: model.delete_adapter("zz")) == "Adapter zz does not exist"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.delete_adapter("c")
    assert state(model) == ("default", None, False, ["default", "b", "d"])
    with pytest.warns(UserWarning) as caught:  # noqa: PT030
        model.delete_adapter("default")
    assert [str(warning.message) for warning in caught] == [
        "Adapter default was active which is now deleted. Setting active adapter to b."
    ]
    assert state(model) == ("b", None, False, ["b", "d"])
    assert model.config.num_virtual_tokens == 2
    model.delete_adapter("d")
    model.add_adapter("c", prompt(7))
    model.set_adapter("c")
    assert (model.config.num_virtual_tokens, list(model.peft_config)) == (7, ["b", "c"])


def test_the_only_adapter_cannot_be_deleted() -> None:
    model = get_peft_model(GPT2, prompt())
    assert refusal(lambda: model.delete_adapter("default")) == (
        "Adapter default is the only one: HF deletes it and leaves a model that cannot be called. Add and activate another "
        "adapter first, or use the base model."
    )
    assert state(model) == ("default", None, False, ["default"])


def test_one_of_three_heads_cannot_be_deleted() -> None:
    model = get_peft_model(BERT, prompt(3, "SEQ_CLS"))
    for name in "bc":
        model.add_adapter(name, prompt(3, "SEQ_CLS"))
    assert refusal(lambda: model.delete_adapter("b")) == (
        "Attempted to set multiple (['default', 'c']) adapters at once for ModulesToSaveWrapper, which is not allowed. HF cannot "
        "delete 'b', which has a copy of the head, while more than one other adapter is there. Nothing was deleted: save those "
        "that shall stay, and load them into a new model."
    )
    assert state(model) == ("default", "default", True, ["default", "b", "c"])


def test_one_of_two_heads() -> None:
    model = get_peft_model(BERT, prompt(3, "SEQ_CLS"))
    model.add_adapter("b", prompt(3, "SEQ_CLS"))
    model.set_adapter("b", inference_mode=True)
    model.delete_adapter("default")
    assert state(model) == ("b", "b", False, ["b"])
    model.add_adapter("c", prompt(3, "SEQ_CLS", inference_mode=True))
    with pytest.warns(UserWarning, match="Setting active adapter to c"):
        model.delete_adapter("b")
    assert state(model) == ("c", "c", True, ["c"])


def test_a_head_that_cannot_be_deleted_while_none_is_used() -> None:
    model = get_peft_model(GPT2, headed())
    model.add_adapter("b", prompt())
    model.add_adapter("c", headed())
    model.set_adapter("b")
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        model.delete_adapter("b")
    assert state(model) == ("default", None, False, ["default", "c"])
    assert refusal(lambda: model.delete_adapter("c")) == (
        "HF cannot delete 'c' while no copy of the head is used (IndexError). Nothing was deleted: activate 'default' with "
        "set_adapter first."
    )
    model.set_adapter("default")
    model.delete_adapter("c")
    assert state(model) == ("default", "default", True, ["default"])


# ---------------------------------------------------------------- files


def test_a_directory_of_several_adapters(tmp_path: Path) -> None:
    model = get_peft_model(GPT2, prefix(2), seed=1)
    model.add_adapter("b", prefix(4, prefix_projection=True, encoder_hidden_size=5), seed=2)
    model.save_pretrained(tmp_path / "all")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == [
        "all/adapter_config.json",
        "all/adapter_model.safetensors",
        "all/b/adapter_config.json",
        "all/b/adapter_model.safetensors",
    ]
    again = PeftModel.from_pretrained(GPT2, tmp_path / "all")
    again.load_adapter(tmp_path / "all/b", "other")
    assert list(again.peft_config) == ["default", "other"]
    assert [config.inference_mode for config in again.peft_config.values()] == [True, True]
    for there, here in (("default", "default"), ("b", "other")):
        model.set_adapter(there)
        again.set_adapter(here)
        numpy.testing.assert_array_equal(again(IDS, MASK).logits, model(IDS, MASK).logits)
    model.save_pretrained(tmp_path / "one", selected_adapters=["b"])
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["b"]
    model.save_pretrained(tmp_path / "none", selected_adapters=[])
    assert not (tmp_path / "none").exists()
    for selected, said in ((["x"], "['x']"), ("b x", "b x")):
        assert refusal(lambda: model.save_pretrained(tmp_path, selected_adapters=selected)) == (  # noqa: B023
            "You passed an invalid `selected_adapters` arguments, current supported adapter names are ['default', 'b'] - got "
            f"{said}."
        )


def test_an_adapter_of_another_name_is_saved_below(tmp_path: Path) -> None:
    get_peft_model(GPT2, prompt(), adapter_name="mine").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    loaded = PeftModel.from_pretrained(GPT2, tmp_path / "mine", adapter_name="yours")
    assert loaded.active_adapter == "yours"


def test_loading_into_an_adapter_that_is_there_reads_weights_alone(tmp_path: Path) -> None:
    model = get_peft_model(GPT2, prompt(2), seed=1)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prompt_tuning_init": "SAMPLE_VOCAB"}))
    other = get_peft_model(GPT2, prompt(2), seed=2)
    other.load_adapter(tmp_path, "default")
    assert (other.config.prompt_tuning_init, other.config.inference_mode) == ("RANDOM", False)
    numpy.testing.assert_array_equal(other.parameters()[EMBEDDING], model.parameters()[EMBEDDING])
    file.unlink()
    other.load_adapter(tmp_path, "default")
    assert refusal(lambda: other.load_adapter(tmp_path, "b"), ConfigError).startswith("Can't find")


def test_what_cannot_be_loaded_changes_nothing(tmp_path: Path) -> None:
    get_peft_model(GPT2, prompt(2), seed=1).save_pretrained(tmp_path / "two")
    get_peft_model(GPT2, headed(3)).save_pretrained(tmp_path / "head")
    get_peft_model(GPT2, prefix(3)).save_pretrained(tmp_path / "prefix")
    model = get_peft_model(GPT2, prompt(3), seed=2)
    before = model.parameters()[EMBEDDING]
    assert refusal(lambda: model.load_adapter(tmp_path / "two", "default"), CheckpointError) == (
        f"'prompt_embeddings' in '{tmp_path / 'two'}' has shape (2, 15); with its adapter_config.json and this base model it must "
        "be (3, 15), a row for each virtual token. Was the adapter trained for another "
        "base model?"
    )
    further = refusal(lambda: model.load_adapter(tmp_path / "head", "default"), CheckpointError)
    assert "also holds base_model.lm_head.weight" in further
    assert refusal(lambda: model.load_adapter(tmp_path / "prefix", "b"), ConfigError).startswith(
        "Cannot combine adapters with different peft types."
    )
    assert refusal(lambda: model.load_adapter(tmp_path / "none", "b"), ConfigError).startswith("Can't find")
    (tmp_path / "two/adapter_model.safetensors").write_bytes(b"")
    assert "adapter_model.safetensors" in refusal(
        lambda: model.load_adapter(tmp_path / "two", "b"), CheckpointError
    )
    assert list(model.peft_config) == ["default"]
    numpy.testing.assert_array_equal(model.parameters()[EMBEDDING], before)
    projected = get_peft_model(GPT2, prefix(3, prefix_projection=True))
    assert refusal(lambda: projected.load_adapter(tmp_path / "prefix", "default"), ConfigError) == (
        "This adapter trains a projection, and an adapter directory holds the flat prefix, which cannot be taken apart again. Load "
        "it under another name."
    )
    projected.load_adapter(tmp_path / "prefix", "flat")


def test_a_flat_prefix_in_an_adapter_that_is_not_active() -> None:
    model = get_peft_model(GPT2, prefix(2))
    model.add_adapter("b", prefix(3))
    flat = numpy.arange(3 * 90.0).reshape(3, 90)
    model.load_prompt_embeddings(flat, "b")
    model.set_adapter("b")
    numpy.testing.assert_array_equal(model.parameters()[EMBEDDING], flat)
    assert refusal(lambda: model.load_prompt_embeddings(flat, "default")) == (
        "Invalid `prompt_embeddings` shape. Expected (2, 90), got (3, 90)."
    )
    assert refusal(lambda: model.load_prompt_embeddings(flat, "zz")) == (
        "There is no adapter 'zz'; there are default, b."
    )
    assert refusal(lambda: model.load_prompt_embeddings(numpy.full((3, 90), numpy.inf))) == (
        f"'{EMBEDDING}' holds NaN or infinite values. Parameters must be finite."
    )
    assert refusal(lambda: get_peft_model(GPT2, prompt()).load_prompt_embeddings(flat), ConfigError) == (
        "Adapter 'default' is no prefix: its peft_type is PROMPT_TUNING."
    )


# ---------------------------------------------------------------- none


@pytest.mark.parametrize(
    "config", [prompt(), prefix(), prefix(prefix_projection=True)], ids=["prompt", "prefix", "projected"]
)
def test_disabled_is_the_base_model(config: PromptLearningConfig) -> None:
    model, labels = get_peft_model(GPT2, config), numpy.where(MASK == 1, IDS, -100)
    adapted = model(IDS, MASK).logits
    positions = numpy.array([[0, 0, 1, 2, 3], [0, 1, 2, 3, 3]])
    with model.disable_adapter():
        output = model(IDS, MASK, labels=labels, position_ids=positions)
        with model.disable_adapter():
            assert model(IDS, MASK).logits.shape == (2, 5, 43)
        nested = model(IDS, MASK).logits
        long = numpy.arange(37)[None]
        assert model(long).logits.shape == (1, 37, 43)  # as many as there are positions
        assert model.get_prompt(1) is not None
    embeds = word_embeddings(GPT2, IDS)
    given = stack.Given(position_ids=positions)
    expected = stack.forward(GPT2.parameters, GPT2.config, embeds, MASK.astype(float), None, given).hidden
    logits = expected @ GPT2.parameters["head.weight"].T
    assert relative_error(output.logits, logits) < 1e-14
    assert output.logits.shape == nested.shape == (2, 5, 43)
    assert [key.shape for key, _ in output.past_key_values] == [(2, 5, 5, 3)] * 3
    numpy.testing.assert_array_equal(model(IDS, MASK).logits, adapted)


@pytest.mark.parametrize("name", DECODERS)
def test_a_disabled_model_takes_masks_as_they_come(name: str) -> None:
    """Nothing is put before them, so that they keep their format."""
    family, changes = MODELS[name]
    model = get_peft_model(tiny_model(family, **changes), prompt(**fitting(family, changes)))
    with model.disable_adapter():
        logits = [model(IDS, MASK.astype(kind)).logits for kind in ("float64", "int64", "bool", "float32")]
        left = numpy.sort(MASK, axis=1)
        assert model.generate(IDS, left, max_new_tokens=2, pad_token_id=0, eos_token_id=1).shape == (2, 7)
    for given in logits[1:]:
        numpy.testing.assert_array_equal(given, logits[0])


def test_disabled_ends_with_an_error_too() -> None:
    model = get_peft_model(GPT2, prompt())
    with pytest.raises(KeyError), model.disable_adapter():
        raise KeyError
    assert model(IDS).logits.shape == (2, 8, 43)


def test_disabled_generation_skips_padding() -> None:
    """As HF's base models do, and a prefix; a prompt does not."""
    model = get_peft_model(GPT2, prompt())
    options = {"max_new_tokens": 4, "pad_token_id": 0, "eos_token_id": 1, "return_dict_in_generate": True}
    padded, mask = numpy.array([[0, 0, 5, 9]]), numpy.array([[0, 0, 1, 1]])
    with model.disable_adapter():
        given = [model.generate(padded, mask, **options), model.generate(padded[:, 2:], **options)]
        greedy = model(given[1].sequences[:, :-1]).logits[:, -1]
    assert relative_error(given[0].logits, given[1].logits) < 1e-13
    assert given[0].sequences.tolist() == [[0, 0, *given[1].sequences[0]]]
    assert greedy.argmax() == given[1].sequences[0, -1]


def test_the_head_is_not_disabled() -> None:
    model = get_peft_model(GPT2, headed())
    values = model.trainable_parameters()
    with model.disable_adapter():
        before = model(IDS).logits
        assert list(model.value_and_grad(IDS, labels=IDS)[1]) == [HEAD]
    model.load_trainable_parameters({**values, HEAD: 2 * values[HEAD]})
    with model.disable_adapter():
        assert relative_error(model(IDS).logits, 2 * before) < 1e-14
    model.set_adapter("default", inference_mode=True)
    with model.disable_adapter():
        assert refusal(lambda: model.value_and_grad(IDS, labels=IDS)) == (
            "The adapter is disabled, and nothing else is trained: there is no gradient."
        )


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_disabled_behind_an_encoder(family: str) -> None:
    base = tiny_model(family)
    fields = {"token_dim": 20} if family == "t5" else {}
    decoder = {"decoder_input_ids": numpy.array([[0, 4, 2], [0, 9, 9]])}
    answers = []
    for config in (prompt(3, "SEQ_2_SEQ_LM"), prefix(2, "SEQ_2_SEQ_LM", **fields)):
        model = get_peft_model(base, config)
        with model.disable_adapter():
            answers.append(model(IDS, MASK, **decoder, decoder_attention_mask=numpy.ones((2, 3))).logits)
    numpy.testing.assert_allclose(answers[0], answers[1], rtol=1e-13)
    with model.disable_adapter():
        sequences = model.generate(IDS, MASK, max_new_tokens=2, pad_token_id=0, eos_token_id=1)
        start = numpy.full((2, 1), base.config.decoder_start_token_id)
        first = model(IDS, MASK, decoder_input_ids=start).logits[:, -1].argmax(axis=-1)
    assert sequences[:, 1].tolist() == first.tolist()
    model = get_peft_model(base, prompt(3, "SEQ_2_SEQ_LM"))
    with model.disable_adapter():
        assert refusal(lambda: model.generate(IDS, MASK)) == (
            "HF's generate puts the prompt before the encoder's text though the adapter is disabled. Generate with a prefix disabled "
            "instead: that is the base model."
        )


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"])
def test_tasks_that_cannot_be_disabled(task: str) -> None:
    model = get_peft_model(BERT, prefix(2, task))

    def disable() -> None:
        with model.disable_adapter():
            pass

    assert refusal(disable) == (
        f"The adapter of a model for {task} cannot be disabled: HF fails (UnboundLocalError), since only models that generate "
        "have the method that it replaces."
    )


def test_token_types_while_disabled() -> None:
    model = get_peft_model(GPT2, prompt())
    with model.disable_adapter():
        assert refusal(lambda: model(IDS, token_type_ids=numpy.zeros_like(IDS))) == (
            "token_type_ids reach the base model while the adapter is disabled, and some of HF's models add them to the "
            "embeddings; with an adapter they are ignored. Leave them out."
        )
    with pytest.warns(UserWarning, match="Token type ids are not supported"):
        model(IDS, token_type_ids=numpy.zeros_like(IDS))


def test_nothing_is_a_prefix_of_no_tokens() -> None:
    base = tiny_model("llama")
    own = adapter.nothing(base, get_peft_model(base, prompt()).config)
    assert own.config.num_virtual_tokens == 0
    assert {name: value.shape for name, value in own.prompt.items()} == {EMBEDDING: (0, 2 * 3 * 3 * 10)}
    past = refpeft.peft_model.get_prompt(own.prompt, own.config, 2, base)
    assert [(key.shape, value.shape) for key, value in past] == [((2, 3, 0, 10), (2, 3, 0, 10))] * 3
