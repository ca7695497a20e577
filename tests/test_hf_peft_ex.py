"""The documented tests of hf_peft_ex, asked of refpeft; where HF peft's value is another one, both, and the deviation.

The numbers of deviations are those of specs/hf-peft-ex.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
from support import tiny_base

import refpeft
from refpeft import masks, prefix_encoder, prompt_embedding
from refpeft.oracle.clauses import clauses, specs_directory
from refpeft.oracle.mutants import MUTANTS
from refpeft.peft_model import PeftModel
from refpeft.steps import replaced
from refpeft.transformer.weights import BaseModel

TABLE = "prompt_encoder.embedding.weight"
PAGE = (specs_directory() / "hf-peft-ex.md").read_text(encoding="utf-8")
ROWS = {
    int(cells[0]): cells[1:]
    for line in PAGE.split("## What differs")[1].split("## ")[0].splitlines()
    if re.match(r"\| \d", line)
    for cells in [[cell.strip() for cell in line.strip("|").split(" | ")]]
}
"""Of each deviation: theirs, HF's, the clauses, what it is recognised as."""


def base(**changes: Any) -> BaseModel:
    """As the library's own mock: four layers of four heads, 64 wide, 1000 words."""
    return tiny_base(
        **{"n_layer": 4, "n_head": 4, "n_embd": 64, "n_inner": 64, "vocab_size": 1000, **changes}
    )


def prompt(n: int = 10, **options: Any) -> PeftModel:
    config = refpeft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n, **options)
    return refpeft.get_peft_model(base(), config, seed=0)


def prefix(n: int = 10, **options: Any) -> PeftModel:
    config = refpeft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n, **options)
    return refpeft.get_peft_model(base(), config, seed=0)


def recognised(number: int, clause: str, words: str) -> None:
    """The page has this deviation, with this clause, recognised as this."""
    theirs, hf, labels, known = ROWS[number]
    assert theirs
    assert hf
    assert clause in labels.split(", ")
    assert known.startswith(words)


def test_the_page_names_clauses_and_mistakes_that_exist() -> None:
    assert list(ROWS) == list(range(1, 21))
    for _, _, labels, known in ROWS.values():
        assert set(labels.split(", ")) <= clauses().keys()
        assert set(re.findall(r"\bM\d+", known)) <= MUTANTS.keys()
        assert known.startswith(("note", "a shape", "M"))
    numbers = re.findall(r"\| ([\d, ]*) \|\n", PAGE.split("## What differs")[0] + "\n")
    assert {int(x) for cell in numbers for x in cell.split(", ") if x} == set(ROWS)


# ---------------------------------------------------------------- configurations


def test_defaults() -> None:
    config = refpeft.PromptTuningConfig()
    assert (config.num_virtual_tokens, config.prompt_tuning_init, config.inference_mode) == (
        20,
        "RANDOM",
        False,
    )
    recognised(1, "CF-1", "note")  # HF: None
    assert config.num_transformer_submodules is None  # theirs: 1
    recognised(2, "CF-3", "M12")
    other = refpeft.PrefixTuningConfig()
    assert (other.num_virtual_tokens, other.prefix_projection, other.encoder_hidden_size) == (20, False, None)


def test_fewer_than_one_virtual_token_is_refused() -> None:
    for make in (refpeft.PromptTuningConfig, refpeft.PrefixTuningConfig):
        with pytest.raises(refpeft.ConfigError) as caught:
            make(num_virtual_tokens=0)
        assert str(caught.value) == "num_virtual_tokens must be at least 1, not 0."


def test_text_needs_a_tokenizer_and_a_text() -> None:
    text = {"prompt_tuning_init": "TEXT"}
    for given, missing in (
        ({}, "tokenizer_name_or_path"),  # theirs: prompt_tuning_init_text is asked for first
        ({"prompt_tuning_init_text": "a b"}, "tokenizer_name_or_path"),
        ({"tokenizer_name_or_path": "somewhere"}, "prompt_tuning_init_text"),
    ):
        with pytest.raises(
            refpeft.ConfigError, match=f"^When prompt_tuning_init='TEXT', {missing} can't be None"
        ):
            refpeft.PromptTuningConfig(**text, **given)
    recognised(4, "CF-2", "note")


def test_a_projection_needs_no_hidden_size() -> None:
    model = prefix(prefix_projection=True)
    assert model.config.encoder_hidden_size == 64  # theirs: an ArgumentError when the configuration is made
    recognised(3, "CF-4", "note")


@pytest.mark.parametrize("make", [refpeft.PromptTuningConfig, refpeft.PrefixTuningConfig])
def test_json_there_and_back(make: Any, tmp_path: Path) -> None:
    config = make(task_type="CAUSAL_LM", num_virtual_tokens=7, token_dim=64)
    written = json.loads(config.to_json())
    assert (written["task_type"], written["num_virtual_tokens"]) == ("CAUSAL_LM", 7)
    assert type(config).from_dict(written) == config
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path) == config
    assert "auto_mapping" in written  # theirs has no such key
    assert ("init_weights" in written) == (make is refpeft.PrefixTuningConfig)
    recognised(5, "CF-5", "note")


# ---------------------------------------------------------------- the prompt's table


def test_random_rows() -> None:
    assert prompt(10).trainable_parameters()[TABLE].shape == (10, 64)
    many = prompt(200).trainable_parameters()[TABLE]
    assert 0.98 < many.std() < 1.02  # HF: 1
    with replaced(MUTANTS["M79"].make()):
        assert 0.0196 < prompt(200).trainable_parameters()[TABLE].std() < 0.0204  # theirs: 0.02
    recognised(7, "PT-4", "M79")


def test_two_submodules_make_twice_the_rows() -> None:
    config = refpeft.PromptTuningConfig(num_virtual_tokens=5, token_dim=64, num_transformer_submodules=2)
    assert prompt_embedding.parameter_shapes(config) == {TABLE: (10, 64)}
    assert config.total_virtual_tokens == 10


def test_rows_of_the_vocabulary() -> None:
    model = prompt(5, prompt_tuning_init="SAMPLE_VOCAB")
    words = model.base.parameters["embeddings.tokens.weight"].astype("float32")
    assert all((words == row).all(axis=1).any() for row in model.trainable_parameters()[TABLE])
    recognised(9, "PT-5", "note")


@pytest.mark.parametrize(
    ("n", "expected"),
    [(3, [5, 6, 7]), (2, [5, 6]), (7, [5, 6, 7, 5, 6, 7, 5])],
    ids=["fits", "cut", "repeated"],
)
def test_a_text_through_a_mocked_tokenizer(
    n: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_embedding, "tokenize", lambda path, text: numpy.array([5, 6, 7]))
    model = prompt(
        n, prompt_tuning_init="TEXT", prompt_tuning_init_text="classify this", tokenizer_name_or_path="mocked"
    )
    words = model.base.parameters["embeddings.tokens.weight"].astype("float32")
    assert numpy.array_equal(model.trainable_parameters()[TABLE], words[expected])
    recognised(10, "PT-6", "note")


def test_a_text_is_repeated_and_not_padded() -> None:
    assert prompt_embedding.fit_token_ids(numpy.array([5, 6, 7]), 5).tolist() == [5, 6, 7, 5, 6]
    with replaced(MUTANTS["M30"].make()):  # what ports that pad do
        assert prompt_embedding.fit_token_ids(numpy.array([5, 6, 7]), 5).tolist() == [5, 6, 7, 0, 0]


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_the_batch_shares_the_rows(batch: int) -> None:
    model = prompt(10)
    rows = model.get_prompt(batch_size=batch)
    assert rows.shape == (batch, 10, 64)
    assert all(numpy.array_equal(row, model.trainable_parameters()[TABLE]) for row in rows)


def test_rows_are_replaced() -> None:
    model = prompt(5)
    model.load_trainable_parameters({TABLE: numpy.full((5, 64), 2.0)})
    assert (model.trainable_parameters()[TABLE] == 2.0).all()
    with pytest.raises(refpeft.RefpeftError):
        model.load_trainable_parameters({TABLE: numpy.ones((5, 63))})  # theirs takes it
    recognised(17, "PX-7", "note")


# ---------------------------------------------------------------- the prefix encoder


def test_without_a_projection_there_is_one_table() -> None:
    parameters = prefix(10).trainable_parameters()
    assert {name: value.shape for name, value in parameters.items()} == {TABLE: (10, 4 * 2 * 64)}


def test_with_a_projection_there_are_five_tensors() -> None:
    model = prefix(10, prefix_projection=True, encoder_hidden_size=128)
    assert {name: value.shape for name, value in model.trainable_parameters().items()} == {
        TABLE: (10, 64),
        "prompt_encoder.transform.0.weight": (128, 64),  # theirs: prefix_encoder.transform.w1, (64, 128)
        "prompt_encoder.transform.0.bias": (128,),
        "prompt_encoder.transform.2.weight": (512, 128),  # theirs: prefix_encoder.transform.w2, (128, 512)
        "prompt_encoder.transform.2.bias": (512,),
    }
    recognised(11, "PX-1", "M18")


def test_the_projection_starts_uniform() -> None:
    parameters = prefix(10, prefix_projection=True, encoder_hidden_size=128).trainable_parameters()
    for layer, inputs, outputs in ((0, 64, 128), (2, 128, 512)):
        weight = parameters[f"prompt_encoder.transform.{layer}.weight"]
        assert abs(weight).max() <= inputs**-0.5
        assert numpy.isclose(weight.std(), (inputs * 3) ** -0.5, rtol=0.02)  # HF
        assert not numpy.isclose(weight.std(), (2 / (inputs + outputs)) ** 0.5, rtol=0.05)  # theirs
        assert parameters[f"prompt_encoder.transform.{layer}.bias"].any()  # theirs: zeros
    recognised(8, "PX-6", "note")


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("projection", [False, True])
def test_keys_and_values_of_each_layer(batch: int, projection: bool) -> None:
    model = prefix(10, prefix_projection=projection)
    past = model.get_prompt(batch_size=batch)
    assert len(past) == 4
    assert {states.shape for pair in past for states in pair} == {(batch, 4, 10, 16)}
    theirs = numpy.stack([numpy.stack(pair, axis=1) for pair in past], axis=1)
    assert theirs.shape == (batch, 4, 2, 4, 10, 16)
    flat = prefix_encoder.flat(model.parameters(), model.config)
    assert numpy.array_equal(theirs[-1], flat.reshape(10, 4, 2, 4, 16).transpose(1, 2, 3, 0, 4))
    recognised(12, "PX-4", "note")


def test_tanh_stands_between_the_maps() -> None:
    """Their test of it looks at the type of the result alone."""
    model = prefix(5, prefix_projection=True, encoder_hidden_size=8)
    table, w0, b0, w2, b2 = model.trainable_parameters().values()
    flat = prefix_encoder.flat(model.trainable_parameters(), model.config)
    assert numpy.allclose(flat, numpy.tanh(table @ w0.T + b0) @ w2.T + b2, rtol=1e-12)
    with replaced(MUTANTS["M16"].make()):
        assert not numpy.allclose(prefix_encoder.flat(model.trainable_parameters(), model.config), flat)


def test_inference_mode_folds_the_projection() -> None:
    model = prefix(10, prefix_projection=True, inference_mode=True)
    assert model.parameters()[TABLE].shape == (10, 512)  # theirs: (10, 64), and four more tensors
    recognised(16, "PX-5", "a shape")


# ---------------------------------------------------------------- models


def test_sizes_come_from_the_base_model() -> None:
    config = prefix(10).config
    assert (config.num_layers, config.num_attention_heads, config.token_dim) == (4, 4, 64)
    assert config.num_transformer_submodules == 1


def test_given_sizes_stay_unless_heads_are_grouped() -> None:
    from refpeft.fill_in import fill_in

    given = refpeft.PrefixTuningConfig(num_layers=6, token_dim=128, num_attention_heads=8)
    hf = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4}
    filled = fill_in(given, hf)
    assert (filled.num_layers, filled.token_dim, filled.num_attention_heads) == (6, 128, 8)
    grouped = fill_in(given, {**hf, "num_key_value_heads": 2})
    assert (grouped.token_dim, grouped.num_attention_heads) == (32, 2)  # theirs: 128 and 8
    recognised(6, "CF-3", "a shape")


def test_the_mask_is_extended() -> None:
    given = numpy.array([[1, 1, 0, 0], [1, 1, 1, 0]])
    extended = masks.extend_attention_mask(given, 5)
    assert extended.tolist() == [[1] * 7 + [0, 0], [1] * 8 + [0]]
    assert extended.dtype == numpy.float32  # theirs: as given
    recognised(15, "MK-1", "note")


def test_without_a_mask_there_are_ones_for_the_prefix_alone() -> None:
    made = prefix(10).prepare_attention_mask(2)
    assert made.shape == (2, 10)
    assert made.sum() == 20
    recognised(14, "MK-2", "a shape")


def test_without_a_mask_the_logits_are_those_of_ones() -> None:
    model, ids = prompt(3), numpy.array([[1, 2, 3, 4]])
    assert numpy.array_equal(model(ids).logits, model(ids, attention_mask=numpy.ones_like(ids)).logits)
    recognised(13, "MK-2", "note")


def test_the_prompt_stands_before_the_text() -> None:
    from refpeft.steps import recording

    model, ids = prompt(3), numpy.array([[7, 8]])
    with recording() as stages:
        model(ids)
    assert stages["inputs.embeddings"].shape == (1, 5, 64)
    assert numpy.array_equal(
        stages["inputs.embeddings"][0, 3:], model.base.parameters["embeddings.tokens.weight"][[7, 8]]
    )


def test_positions_start_behind_the_prefix() -> None:
    from refpeft.steps import recording

    model, ids = prefix(3), numpy.array([[7, 8]])
    with recording() as stages:
        model(ids)
    assert stages["inputs.position_ids"].tolist() == [[3, 4]]
    with replaced(MUTANTS["M34"].make()), recording() as stages:
        model(ids)
    assert stages["inputs.position_ids"].tolist() == [
        [0, 1]
    ]  # what a caller does who leaves them as they were
    recognised(19, "PO-1", "M34")


def test_labels_of_a_prompt() -> None:
    from refpeft.steps import recording

    model, ids = prompt(3), numpy.array([[7, 8]])
    with recording() as stages:
        model(ids, labels=ids)
    assert stages["inputs.labels"].tolist() == [[-100, -100, -100, 7, 8]]
    recognised(20, "TK-1", "M54")


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = prompt(5)
    model.load_trainable_parameters({TABLE: numpy.arange(5 * 64.0).reshape(5, 64)})
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",  # theirs: adapter_model.bin
    ]
    loaded = PeftModel.from_pretrained(model.base, tmp_path)
    assert numpy.array_equal(loaded.parameters()[TABLE], model.parameters()[TABLE])
    recognised(18, "CK-1", "note")


# ---------------------------------------------------------------- training and counts


@pytest.mark.parametrize("model", [prompt(3), prefix(3)], ids=["prompt", "prefix"])
def test_the_virtual_tokens_are_trained_and_the_base_is_frozen(model: PeftModel) -> None:
    ids = numpy.array([[7, 8, 9]])
    before = {name: value.copy() for name, value in model.base.parameters.items()}
    start = model.trainable_parameters()[TABLE].copy()
    loss, gradients = model.value_and_grad(ids, labels=ids)
    assert list(gradients) == [TABLE]
    assert gradients[TABLE].any()
    model.load_trainable_parameters({TABLE: start - 1e-3 * gradients[TABLE]})
    assert model.value_and_grad(ids, labels=ids)[0] < loss
    assert all(numpy.array_equal(value, before[name]) for name, value in model.base.parameters.items())


def test_counts() -> None:
    assert prompt(20).num_trainable_parameters() == 20 * 64
    assert prefix(10).num_trainable_parameters() == 10 * 4 * 2 * 64
    projected = prefix(10, prefix_projection=True, encoder_hidden_size=128)
    assert projected.num_trainable_parameters() == 10 * 64 + 64 * 128 + 128 + 128 * 512 + 512
    wide = refpeft.PromptTuningConfig(num_virtual_tokens=20, token_dim=768, num_transformer_submodules=1)
    (shape,) = prompt_embedding.parameter_shapes(wide).values()
    assert shape[0] * shape[1] == 15_360
