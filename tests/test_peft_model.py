"""The flow of HF's PeftModel: virtual tokens in, loss out, and every input that is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from support import relative_error, tiny_base

from refpeft import peft_model, prefix_encoder, steps
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.errors import ConfigError, InputError
from refpeft.peft_model import PeftModel, get_peft_model
from refpeft.transformer import stack
from refpeft.transformer.weights import BaseModel

EMBEDDING = "prompt_encoder.embedding.weight"
VIRTUAL = 4
PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
PREFIX = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
PROJECTED = PrefixTuningConfig(
    task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, prefix_projection=True, encoder_hidden_size=11
)
METHODS = {"prompt": PROMPT, "prefix": PREFIX, "projected": PROJECTED}
BASE = tiny_base()
IDS = numpy.array([[5, 1, 40, 2, 2], [7, 7, 0, 3, 42]])
MASK = numpy.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
LABELS = numpy.array([[-100, 1, 40, 2, 2], [7, 7, 0, 3, -100]])


def naive_loss(logits: Any, labels: Any) -> float:
    """The mean over every position t whose successor t + 1 has a label that counts."""
    terms = [
        math.log(math.fsum(numpy.exp(logits[b, t]))) - logits[b, t, labels[b, t + 1]]
        for b in range(labels.shape[0])
        for t in range(labels.shape[1] - 1)
        if labels[b, t + 1] != -100
    ]
    return math.fsum(terms) / len(terms)


def logits_of(base: BaseModel, embeds: Any, mask: Any, past: Any = None, positions: Any = None) -> Any:
    decoded = stack.forward(base.parameters, base.config, embeds, mask, past, stack.Given(positions))
    return decoded.hidden @ base.parameters["head.weight"].T


def test_prompt_tuning_is_the_base_on_virtual_tokens_and_text() -> None:
    model = get_peft_model(BASE, PROMPT)
    output = model(input_ids=IDS, attention_mask=MASK, labels=LABELS)
    table = model.trainable_parameters()[EMBEDDING]
    embeds = numpy.array(
        [[*table, *(BASE.parameters["embeddings.tokens.weight"][i] for i in row)] for row in IDS]
    )
    extended = numpy.array([[1, 1, 1, 1, *row] for row in MASK], dtype=float)
    expected = logits_of(BASE, embeds, extended)
    assert output.logits.shape == (2, VIRTUAL + 5, 43)
    assert relative_error(output.logits, expected) < 1e-14
    labels = numpy.array([[-100] * VIRTUAL + list(row) for row in LABELS])
    assert float(output.loss) == pytest.approx(naive_loss(expected, labels), rel=1e-13)


@pytest.mark.parametrize("config", [PREFIX, PROJECTED], ids=["prefix", "projected"])
def test_prefix_tuning_is_the_base_after_a_cache(config: PrefixTuningConfig) -> None:
    model = get_peft_model(BASE, config)
    positions = numpy.array([[0, 1, 2, 3, 4], [3, 3, 0, 1, 2]])
    for given_positions in (None, positions):
        output = model(input_ids=IDS, attention_mask=MASK, labels=LABELS, position_ids=given_positions)
        embeds = BASE.parameters["embeddings.tokens.weight"][IDS]
        extended = numpy.array([[1, 1, 1, 1, *row] for row in MASK], dtype=float)
        expected = logits_of(BASE, embeds, extended, model.get_prompt(2), given_positions)
        assert output.logits.shape == (2, 5, 43)
        assert relative_error(output.logits, expected) < 1e-14
        assert float(output.loss) == pytest.approx(naive_loss(expected, LABELS), rel=1e-13)
        for pair, prefix in zip(output.past_key_values, model.get_prompt(2), strict=True):
            for states, first in zip(pair, prefix, strict=True):
                assert states.shape == (2, 5, VIRTUAL + 5, 3)
                numpy.testing.assert_array_equal(states[:, :, :VIRTUAL], first)


@pytest.mark.parametrize("config", METHODS.values(), ids=list(METHODS))
def test_no_mask_is_a_mask_of_ones(config: PromptLearningConfig) -> None:
    model = get_peft_model(BASE, config)
    outputs = [model(input_ids=IDS, attention_mask=mask) for mask in (None, numpy.ones((2, 5), bool))]
    numpy.testing.assert_allclose(outputs[0].logits, outputs[1].logits, rtol=1e-14)
    assert outputs[0].loss is None


def test_labels_are_extended_by_what_does_not_count() -> None:
    labels = numpy.array([[3, -100], [4, 5]], dtype=numpy.int32)
    extended = peft_model.extend_labels(labels, 3)
    assert extended.tolist() == [[-100, -100, -100, 3, -100], [-100, -100, -100, 4, 5]]
    assert extended.dtype == numpy.int32


def test_one_token_gives_prompt_tuning_a_loss_and_prefix_tuning_none() -> None:
    one = {"input_ids": [[3]], "labels": [[3]]}
    assert math.isfinite(get_peft_model(BASE, PROMPT)(**one).loss)
    assert math.isnan(get_peft_model(BASE, PREFIX)(**one).loss)


@pytest.mark.parametrize("config", METHODS.values(), ids=list(METHODS))
def test_gradients_are_central_differences(config: PromptLearningConfig) -> None:
    model, random, step = get_peft_model(BASE, config), numpy.random.default_rng(6), 1e-5
    inputs = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    loss, gradients = model.value_and_grad(**inputs)
    assert loss == pytest.approx(model(**inputs).loss, rel=1e-14)  # without logits, in other order
    parameters = model.trainable_parameters()
    assert list(gradients) == list(parameters)
    for name in parameters:
        direction = random.normal(size=parameters[name].shape)
        losses = []
        for sign in (1, -1):
            model.load_trainable_parameters({**parameters, name: parameters[name] + sign * step * direction})
            losses.append(model(**inputs).loss)
        difference = (losses[0] - losses[1]) / (2 * step)
        assert numpy.sum(gradients[name] * direction) == pytest.approx(difference, rel=1e-6, abs=1e-9), name
        assert gradients[name].shape == parameters[name].shape


def test_position_ids_reach_the_gradients_of_prefix_tuning() -> None:
    model, positions = get_peft_model(BASE, PREFIX), numpy.array([[4, 3, 2, 1, 0]] * 2)
    loss, _ = model.value_and_grad(input_ids=IDS, labels=IDS, position_ids=positions)
    assert loss == pytest.approx(model(input_ids=IDS, labels=IDS, position_ids=positions).loss, rel=1e-14)
    assert loss != pytest.approx(model(input_ids=IDS, labels=IDS).loss, rel=1e-3)


@pytest.mark.parametrize("call", ["__call__", "value_and_grad"])
def test_prompt_tuning_ignores_position_ids_with_a_warning(call: str) -> None:
    model = get_peft_model(BASE, PROMPT)
    with pytest.warns(UserWarning, match="Position ids") as caught:
        given = getattr(model, call)(input_ids=IDS, labels=IDS, position_ids="anything")
    (warning,) = caught
    assert str(warning.message) == (
        "Position ids are not supported for parameter efficient tuning. Ignoring position ids."
    )
    loss = given.loss if call == "__call__" else given[0]
    assert loss == model(input_ids=IDS, labels=IDS).loss


def test_the_functional_form_ignores_position_ids_of_prompt_tuning_too() -> None:
    model = get_peft_model(BASE, PROMPT)
    arguments = (model.trainable_parameters(), BASE, model.config, IDS)
    given = peft_model.forward(*arguments, position_ids=numpy.array([[4, 3, 2, 1, 0]] * 2))
    numpy.testing.assert_array_equal(given.logits, model(input_ids=IDS).logits)


def test_get_prompt_of_both_methods() -> None:
    prompt = get_peft_model(BASE, PROMPT)
    assert prompt.get_prompt(3).tolist() == [prompt.trainable_parameters()[EMBEDDING].tolist()] * 3
    past = get_peft_model(BASE, PREFIX).get_prompt(3)
    assert [[states.shape for states in pair] for pair in past] == [[(3, 5, VIRTUAL, 3)] * 2] * 3


def test_prepare_attention_mask() -> None:
    model = get_peft_model(BASE, PREFIX)
    assert model.prepare_attention_mask(2, [[0, 1], [1, 1]]).tolist() == [
        [1, 1, 1, 1, 0, 1],
        [1, 1, 1, 1, 1, 1],
    ]
    assert model.prepare_attention_mask(2).tolist() == [[1, 1, 1, 1]] * 2


@pytest.mark.parametrize(("config", "expected"), [(PROMPT, 60), (PREFIX, 360), (PROJECTED, 1316)])
def test_num_trainable_parameters(config: PromptLearningConfig, expected: int) -> None:
    """4 · 15;  4 · 90;  4 · 15 + (11 · 15 + 11) + (90 · 11 + 90)."""
    assert get_peft_model(BASE, config).num_trainable_parameters() == expected


# ---------------------------------------------------------------- making a model


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("config", METHODS.values(), ids=list(METHODS))
def test_a_seed_gives_the_same_values_in_the_bases_dtype(config: PromptLearningConfig, dtype: str) -> None:
    base = tiny_base(dtype=dtype)
    values = [get_peft_model(base, config, seed=seed).trainable_parameters() for seed in (3, 3, 4)]
    for name, value in values[0].items():
        assert value.dtype == numpy.dtype(dtype)
        numpy.testing.assert_array_equal(value, values[1][name])
        numpy.testing.assert_array_equal(value, value.astype("float32"))
        assert (value != values[2][name]).any()
    assert (get_peft_model(base, config).trainable_parameters()[EMBEDDING] != values[0][EMBEDDING]).any()


def test_sample_vocab_takes_rows_of_the_base() -> None:
    config = PromptTuningConfig(
        task_type="CAUSAL_LM", prompt_tuning_init="SAMPLE_VOCAB", num_virtual_tokens=30
    )
    table = get_peft_model(BASE, config, seed=1).trainable_parameters()[EMBEDDING]
    vocabulary = {tuple(row) for row in BASE.parameters["embeddings.tokens.weight"].astype("float32")}
    assert {tuple(row) for row in table} <= vocabulary
    assert len({tuple(row) for row in table}) > 5


def test_the_initialisation_is_seen_by_steps() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", prompt_tuning_init="SAMPLE_VOCAB")
    with steps.recording() as stages:
        get_peft_model(BASE, config)
    assert list(stages) == ["inputs.token_embeddings"]


def test_the_callers_configuration_is_left_alone() -> None:
    model = get_peft_model(BASE, PREFIX)
    assert (PREFIX.token_dim, PREFIX.num_layers) == (None, None)
    assert (model.config.token_dim, model.config.num_layers, model.config.num_attention_heads) == (15, 3, 5)
    assert model.base is BASE


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            PromptTuningConfig(),
            (
                "task_type is None: HF's get_peft_model then raises KeyError, and its PeftModel runs the base model without the "
                "prompt. Give one of CAUSAL_LM, SEQ_CLS, TOKEN_CLS, QUESTION_ANS, FEATURE_EXTRACTION."
            ),
        ),
        (
            PromptTuningConfig(task_type="SEQ_CLS"),
            (
                "The base model's checkpoint has no complete head 'score' for SEQ_CLS. Load the model with transformers' "
                "AutoModelForSequenceClassification and save it again with save_pretrained(directory)."
            ),
        ),
        (
            PromptTuningConfig(task_type="CAUSAL_LM", num_transformer_submodules=2),
            "num_transformer_submodules is 2; a gpt2 model has 1. Leave it out.",
        ),
        (
            PrefixTuningConfig(task_type="CAUSAL_LM", token_dim=30),
            "token_dim is 30, but this base model needs 15. Leave it out, or was the adapter made for another base model?",
        ),
        (
            PrefixTuningConfig(task_type="CAUSAL_LM", num_layers=2),
            (
                "num_layers and num_attention_heads are 2 and 5, but this base model has 3 layers and 5 key/value heads. "
                "Leave them out, or was the adapter made for another base model?"
            ),
        ),
        (
            PrefixTuningConfig(task_type="CAUSAL_LM", num_attention_heads=3),
            (
                "num_layers and num_attention_heads are 3 and 3, but this base model has 3 layers and 5 key/value heads. "
                "Leave them out, or was the adapter made for another base model?"
            ),
        ),
    ],
)
def test_a_configuration_that_does_not_fit(config: PromptLearningConfig, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_peft_model(BASE, config)
    assert str(caught.value) == expected


# ---------------------------------------------------------------- trainable parameters


@pytest.mark.parametrize("config", METHODS.values(), ids=list(METHODS))
def test_trainable_parameters_round_trip(config: PromptLearningConfig) -> None:
    one, other = get_peft_model(BASE, config, seed=1), get_peft_model(BASE, config, seed=2)
    other.load_trainable_parameters(
        {name: v.tolist() for name, v in reversed(one.trainable_parameters().items())}
    )
    assert list(other.trainable_parameters()) == list(one.trainable_parameters())
    numpy.testing.assert_array_equal(other(input_ids=IDS).logits, one(input_ids=IDS).logits)


def test_what_is_given_out_and_taken_in_is_the_callers() -> None:
    model = get_peft_model(BASE, PROMPT)
    before = model(input_ids=IDS).logits
    model.trainable_parameters().clear()
    mine = {EMBEDDING: model.trainable_parameters()[EMBEDDING].copy()}
    model.load_trainable_parameters(mine)
    mine[EMBEDDING][:] = 0.0
    numpy.testing.assert_array_equal(model(input_ids=IDS).logits, before)


def test_loaded_values_take_the_bases_dtype() -> None:
    model = get_peft_model(tiny_base(dtype="float32"), PROMPT)
    model.load_trainable_parameters({EMBEDDING: numpy.full((VIRTUAL, 15), 3)})
    assert model.trainable_parameters()[EMBEDDING].dtype == numpy.float32


def holed(value: float) -> Any:
    table = numpy.zeros((VIRTUAL, 15))
    table[2, 3] = value
    return table


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, f"The trainable parameters are {EMBEDDING}; got none. Give exactly these, each an array."),
        (
            {EMBEDDING: holed(0), "a": 1, "B": 2},
            f"The trainable parameters are {EMBEDDING}; got B, a, {EMBEDDING}. Give exactly these, each an array.",
        ),
        ({EMBEDDING: numpy.zeros((15, 4))}, f"'{EMBEDDING}' must have shape (4, 15), got (15, 4)."),
        ({EMBEDDING: 1.0}, f"'{EMBEDDING}' must have shape (4, 15), got ()."),
        (
            {EMBEDDING: holed(math.nan)},
            f"'{EMBEDDING}' holds NaN or infinite values. Parameters must be finite.",
        ),
        (
            {EMBEDDING: holed(-math.inf)},
            f"'{EMBEDDING}' holds NaN or infinite values. Parameters must be finite.",
        ),
    ],
)
def test_parameters_that_do_not_fit(parameters: dict[str, Any], expected: str) -> None:
    model = get_peft_model(BASE, PROMPT)
    before = model.trainable_parameters()
    with pytest.raises(InputError) as caught:
        model.load_trainable_parameters(parameters)
    assert str(caught.value) == expected
    assert model.trainable_parameters()[EMBEDDING] is before[EMBEDDING]


@pytest.mark.parametrize(
    "bad",
    [holed(1e300), numpy.full((VIRTUAL, 15), 1j), numpy.full((VIRTUAL, 15), "a")],
    ids=["huge", "complex", "text"],
)
def test_parameters_that_float32_cannot_hold(bad: Any) -> None:
    model = get_peft_model(tiny_base(dtype="float32"), PROMPT)
    with pytest.raises(InputError, match=EMBEDDING):
        model.load_trainable_parameters({EMBEDDING: bad})


# ---------------------------------------------------------------- inputs that are refused

ROW = [[1, 2, 3]]
TOO_LONG = "Shorten the text to 33 tokens or use fewer virtual tokens."
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ids of floats": ({"input_ids": [[1.0]]}, "input_ids must be integers, got float64."),
    "ids of booleans": ({"input_ids": [[True]]}, "input_ids must be integers, got bool."),
    "ids of one row": ({"input_ids": [1, 2]}, "input_ids must have shape (batch, tokens), got (2,)."),
    "no row": (
        {"input_ids": numpy.zeros((0, 3), int)},
        "input_ids has shape (0, 3); at least one row and one token are needed.",
    ),
    "no token": (
        {"input_ids": numpy.zeros((2, 0), int)},
        "input_ids has shape (2, 0); at least one row and one token are needed.",
    ),
    "an id too large": (
        {"input_ids": [[1, 2], [3, 43]]},
        "input_ids[1, 1] is 43, but the base model's vocabulary has ids 0 to 42. Use the base model's own tokenizer.",
    ),
    "a negative id": (
        {"input_ids": [[1, -1]]},
        "input_ids[0, 1] is -1, but the base model's vocabulary has ids 0 to 42. Use the base model's own tokenizer.",
    ),
    "too long": (
        {"input_ids": [[1] * 34]},
        f"4 virtual tokens and 34 tokens need 38 positions, but the base model has 37. {TOO_LONG}",
    ),
    "a mask already extended": (
        {"input_ids": ROW, "attention_mask": [[1] * 7]},
        (
            "attention_mask must have the shape of input_ids, (1, 3), got (1, 7). It already counts the 4 virtual tokens; "
            "they are added here. Give the part for the text alone."
        ),
    ),
    "a mask of another length": (
        {"input_ids": ROW, "attention_mask": [[1, 1]]},
        "attention_mask must have the shape of input_ids, (1, 3), got (1, 2). Give one value for each real token.",
    ),
    "a mask of another batch": (
        {"input_ids": ROW, "attention_mask": [[1, 1, 1]] * 2},
        "attention_mask must have the shape of input_ids, (1, 3), got (2, 3). Give one value for each real token.",
    ),
    "an additive mask": (
        {"input_ids": ROW, "attention_mask": [[0.0, 0.0, -1e4]]},
        "attention_mask must hold only 0 (padding) and 1 (token).",
    ),
    "a mask of NaN": (
        {"input_ids": ROW, "attention_mask": [[1, 1, math.nan]]},
        "attention_mask must hold only 0 (padding) and 1 (token).",
    ),
    "labels of another length": (
        {"input_ids": ROW, "labels": [[1, 2]]},
        "labels must have the shape of input_ids, (1, 3), got (1, 2). Give one value for each real token.",
    ),
    "labels already extended": (
        {"input_ids": ROW, "labels": [[-100] * 4 + [1, 2, 3]]},
        "labels must have the shape of input_ids, (1, 3), got (1, 7). Give one value for each real token.",
    ),
    "labels of floats": (
        {"input_ids": ROW, "labels": [[1.0, 2.0, 3.0]]},
        "labels must be integers, got float64.",
    ),
    "a label too large": (
        {"input_ids": ROW, "labels": [[-100, 43, 2]]},
        "labels[0, 1] is 43; a label is a token id from 0 to 42, or -100 for a position that does not count.",
    ),
    "another negative label": (
        {"input_ids": ROW, "labels": [[0, 42, -1]]},
        "labels[0, 2] is -1; a label is a token id from 0 to 42, or -100 for a position that does not count.",
    ),
}
POSITIONS: dict[str, tuple[dict[str, Any], str]] = {
    "positions too large": (
        {"input_ids": ROW, "position_ids": [[0, 1, 33]]},
        (
            "position_ids run from 0 to 33; with 4 virtual tokens before them this base model has positions 0 to 32 for "
            "the text."
        ),
    ),
    "negative positions": (
        {"input_ids": ROW, "position_ids": [[-1, 0, 1]]},
        (
            "position_ids run from -1 to 1; with 4 virtual tokens before them this base model has positions 0 to 32 for "
            "the text."
        ),
    ),
    "positions already shifted": (
        {"input_ids": ROW, "position_ids": [list(range(7))]},
        "position_ids must have the shape of input_ids, (1, 3), got (1, 7). Give one value for each real token.",
    ),
    "positions of floats": (
        {"input_ids": ROW, "position_ids": [[0.0, 1.0, 2.0]]},
        "position_ids must be integers, got float64.",
    ),
}


def refused(ask: Callable[[], Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        ask()
    assert str(caught.value) == expected


@pytest.mark.parametrize("config", [PROMPT, PREFIX], ids=["prompt", "prefix"])
@pytest.mark.parametrize("name", REFUSED)
def test_inputs_that_are_refused(name: str, config: PromptLearningConfig) -> None:
    inputs, expected = REFUSED[name]
    model = get_peft_model(BASE, config)
    refused(lambda: model(**inputs), expected)
    labels = numpy.zeros_like(inputs["input_ids"], dtype=int)
    refused(lambda: model.value_and_grad(**{"labels": labels, **inputs}), expected)


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_that_are_refused(name: str) -> None:
    inputs, expected = POSITIONS[name]
    refused(lambda: get_peft_model(BASE, PREFIX)(**inputs), expected)


@pytest.mark.parametrize("config", [PROMPT, PREFIX], ids=["prompt", "prefix"])
def test_the_longest_text_the_largest_id_and_the_last_position_are_taken(
    config: PromptLearningConfig,
) -> None:
    model = get_peft_model(BASE, config)
    assert numpy.isfinite(model(input_ids=[[42] * 33], labels=[[42] * 33]).loss)
    if config is PREFIX:
        assert numpy.isfinite(model(input_ids=ROW, labels=ROW, position_ids=[[32, 0, 5]]).loss)


def test_more_virtual_tokens_than_positions() -> None:
    model = get_peft_model(BASE, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=40))
    refused(
        lambda: model(input_ids=[[1]]),
        "40 virtual tokens and 1 tokens need 41 positions, but the base model has 37. Shorten the text to 0 tokens or "
        "use fewer virtual tokens.",
    )


def test_no_labels_no_gradient() -> None:
    model = get_peft_model(BASE, PROMPT)
    refused(
        lambda: model.value_and_grad(input_ids=ROW, labels=None),
        "value_and_grad needs labels: without them there is no loss to differentiate.",
    )


@pytest.mark.parametrize("dtype", ["int32", "uint8", "uint64"])
def test_integers_of_every_size_are_taken(dtype: str) -> None:
    model = get_peft_model(BASE, PREFIX)
    given = model(input_ids=IDS.astype(dtype), attention_mask=MASK.astype(dtype), labels=IDS.astype(dtype))
    assert given.loss == model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss


def test_an_unsigned_id_too_large_is_named_as_given() -> None:
    model: PeftModel = get_peft_model(BASE, PREFIX)
    refused(
        lambda: model(input_ids=numpy.array([[2**64 - 1]], dtype=numpy.uint64)),
        "input_ids[0, 0] is 18446744073709551615, but the base model's vocabulary has ids 0 to 42. "
        "Use the base model's own tokenizer.",
    )


def test_rows_of_different_lengths() -> None:
    with pytest.raises(InputError, match="input_ids"):
        get_peft_model(BASE, PREFIX)(input_ids=[[1], [1, 2]])


def test_parameters_that_there_is_no_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(prefix_encoder, "embedding", refuse)
    with pytest.raises(ConfigError) as caught:
        get_peft_model(BASE, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2**31))
    assert str(caught.value) == (
        "There is no memory for the parameters of 2147483648 virtual tokens. Use fewer, or a smaller encoder_hidden_size."
    )
