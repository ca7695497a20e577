"""Whole generations: what is returned, what is refused, and identities that need no other implementation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from identities.attention_cases import padding_mask
from support import MODELS, relative_error, tiny_adapter, tiny_base, tiny_model

from refpeft import generation
from refpeft.beam_search import log_softmax
from refpeft.config import PrefixTuningConfig, PromptTuningConfig
from refpeft.errors import InputError
from refpeft.generation import GenerateOutput, next_tokens
from refpeft.peft_model import PeftModel, get_peft_model
from refpeft.steps import recording, replaced

METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "prompt": (PromptTuningConfig, {}),
    "prefix": (PrefixTuningConfig, {}),
    "projected": (PrefixTuningConfig, {"prefix_projection": True, "encoder_hidden_size": 7}),
}
VIRTUAL, TOKENS, NEW = 3, 5, 6
ENDLESS: dict[str, Any] = {"eos_token_id": None, "pad_token_id": None}
BASE = tiny_base()


def adapted(method: str, seed: int = 0) -> PeftModel:
    kind, options = METHODS[method]
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, **options)
    model = get_peft_model(BASE, config, seed=seed)
    random = numpy.random.default_rng(seed)
    model.load_trainable_parameters(
        {name: random.normal(0, 1.0, value.shape) for name, value in model.trainable_parameters().items()}
    )
    return model


def text(seed: int, batch: int = 2) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, BASE.config.vocab_size, (batch, TOKENS))


def generate(model: PeftModel, ids: Any, mask: Any = None, **options: Any) -> GenerateOutput:
    options = {"max_new_tokens": NEW, **ENDLESS, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # right padding is among what is tried
        output = model.generate(ids, mask, return_dict_in_generate=True, **options)
    assert isinstance(output, GenerateOutput)
    return output


def forward_positions(mask: numpy.ndarray) -> numpy.ndarray:
    return numpy.maximum(mask.cumsum(axis=1) - 1, 0)


rounds = st.fixed_dictionaries(
    {
        "method": st.sampled_from(list(METHODS)),
        "seed": st.integers(0, 10_000),
        "padding": st.sampled_from(["none", "full", "left", "right"]),
        "batch": st.integers(1, 3),
    }
)

# ---------------------------------------------------------------- identities


@given(what=rounds, beams=st.integers(1, 3), ends=st.lists(st.integers(0, 42), max_size=8))
def test_cached_equals_uncached(what: dict[str, Any], beams: int, ends: list[int]) -> None:
    """Greedily and with beams, with any padding, rows that end included."""
    ids, random = text(what["seed"], what["batch"]), numpy.random.default_rng(what["seed"])
    mask = padding_mask(what["padding"], what["batch"], TOKENS, random)
    options = {"num_beams": beams, "eos_token_id": ends or None, "pad_token_id": 1}
    model = adapted(what["method"], what["seed"])
    cached, uncached = (generate(model, ids, mask, use_cache=c, **options) for c in (True, False))
    assert cached.sequences.tolist() == uncached.sequences.tolist()
    for a, b in ((cached.logits, uncached.logits), (cached.sequences_scores, uncached.sequences_scores)):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            numpy.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@given(what=rounds)
def test_greedy_is_forward_repeated_with_the_positions_of_generate(what: dict[str, Any]) -> None:
    """A prefix is given the mask's positions, n left to the model; a prompt none. Padding on the left or none."""
    if what["padding"] == "right":
        what["padding"] = "left"
    ids, random = text(what["seed"], what["batch"]), numpy.random.default_rng(what["seed"])
    mask = padding_mask(what["padding"], what["batch"], TOKENS, random)
    model = adapted(what["method"], what["seed"])
    expected, seen = ids, numpy.ones_like(ids) if mask is None else mask
    for _ in range(NEW):
        positions = None if what["method"] == "prompt" else forward_positions(seen)
        logits = model(expected, attention_mask=seen, position_ids=positions).logits[:, -1]
        expected = numpy.concatenate([expected, logits.argmax(axis=-1)[:, None]], axis=1)
        seen = numpy.concatenate([seen, numpy.ones_like(seen[:, :1])], axis=1)
    assert generate(model, ids, mask).sequences.tolist() == expected.tolist()


@given(what=rounds, beams=st.integers(1, 3))
def test_a_prefix_goes_on_behind_left_padding_as_without(what: dict[str, Any], beams: int) -> None:
    ids = text(what["seed"], what["batch"])
    model = adapted("prefix", what["seed"])
    padded = numpy.concatenate([numpy.full((what["batch"], 2), 7), ids], axis=1)
    mask = numpy.concatenate([numpy.zeros((what["batch"], 2), int), numpy.ones_like(ids)], axis=1)
    alone, behind = generate(model, ids, num_beams=beams), generate(model, padded, mask, num_beams=beams)
    assert behind.sequences[:, 2:].tolist() == alone.sequences.tolist()


def test_a_prompt_does_not() -> None:
    ids, model = text(1), adapted("prompt")
    padded = numpy.concatenate([numpy.full((2, 2), 7), ids], axis=1)
    mask = numpy.concatenate([numpy.zeros((2, 2), int), numpy.ones_like(ids)], axis=1)
    alone, behind = generate(model, ids), generate(model, padded, mask)
    assert numpy.abs(behind.logits[:, 0] - alone.logits[:, 0]).max() > 1e-3  # type: ignore[index]


@given(what=rounds, beams=st.integers(2, 4), penalty=st.sampled_from([1.0, 0.0, 2.0, -0.5]))
def test_a_beams_score_is_that_of_its_tokens(what: dict[str, Any], beams: int, penalty: float) -> None:
    """Recomputed by one forward pass over each sequence; returned in descending order."""
    ids, model = text(what["seed"], what["batch"]), adapted(what["method"], what["seed"])
    output = generate(model, ids, num_beams=beams, num_return_sequences=beams, length_penalty=penalty)
    assert output.sequences_scores is not None
    scores = output.sequences_scores.reshape(what["batch"], beams)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    virtual = VIRTUAL if what["method"] == "prompt" else 0
    logits = model(output.sequences).logits[:, virtual + TOKENS - 1 : -1]
    taken = numpy.take_along_axis(
        numpy.stack([log_softmax(step) for step in logits]), output.sequences[:, TOKENS:, None], axis=2
    )
    expected = taken.sum(axis=(1, 2)) / NEW**penalty
    numpy.testing.assert_allclose(output.sequences_scores, expected, rtol=1e-9)


@given(what=rounds)
def test_beams_find_nothing_worse_than_the_first_they_drop(what: dict[str, Any]) -> None:
    """With as many beams as tokens, two steps are an exhaustive search."""
    ids, model = text(what["seed"], 1), adapted(what["method"], what["seed"])
    vocabulary = BASE.config.vocab_size
    output = generate(model, ids, max_new_tokens=2, num_beams=vocabulary)
    every = numpy.concatenate([numpy.repeat(ids, vocabulary, 0), numpy.arange(vocabulary)[:, None]], axis=1)
    virtual = VIRTUAL if what["method"] == "prompt" else 0
    logits = model(every).logits[:, virtual + TOKENS - 1 :]
    first = log_softmax(logits[:, 0])[numpy.arange(vocabulary), numpy.arange(vocabulary)]
    total = first[:, None] + log_softmax(logits[:, 1])
    assert output.sequences_scores is not None
    assert abs(output.sequences_scores[0] - total.max() / 2) < 1e-9
    assert output.sequences[0, TOKENS:].tolist() == list(divmod(int(total.argmax()), vocabulary))


# ---------------------------------------------------------------- every family

FAILS_WITHOUT_CACHE = {"gpt_bigcode", "opt", "gpt_neox", "llama", "gemma2", "gemma3_text", "phi", "falcon"}
WRITERS = {name: wired for name, wired in MODELS.items() if wired[0] not in ("bert", "roberta", "electra")}
PADDED = numpy.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


def writer(name: str, method: str, dtype: str = "float64") -> PeftModel:
    """An adapter on a tiny model, its parameters large enough to matter."""
    family, changes = WRITERS[name]
    model = tiny_adapter(tiny_model(family, dtype=dtype, **changes), method)
    random = numpy.random.default_rng(3)
    model.load_trainable_parameters(
        {key: random.normal(0, 1.0, value.shape) for key, value in model.trainable_parameters().items()}
    )
    return model


def apart(a: GenerateOutput, b: GenerateOutput) -> float:
    """How far logits or scores are apart, where the sequences are the same."""
    assert a.sequences.tolist() == b.sequences.tolist()
    if a.logits is not None:
        return relative_error(a.logits, b.logits)
    return relative_error(a.sequences_scores, b.sequences_scores)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_family_writes_what_it_foresees(name: str, method: str) -> None:
    """Greedily, each logit is what one forward pass over the whole gives; so windows, distances and cut prefixes, step by step."""
    model, ids = writer(name, method), text(2)
    output = generate(model, ids, PADDED)
    assert output.logits is not None
    if model.base.config.kind == "encoder_decoder":
        logits = model(ids, PADDED, decoder_input_ids=output.sequences[:, :-1]).logits
    else:
        seen = numpy.concatenate([PADDED, numpy.ones((2, NEW - 1), int)], axis=1)
        positions = None if method == "prompt" else forward_positions(seen)
        logits = model(output.sequences[:, :-1], seen, position_ids=positions).logits
    assert relative_error(output.logits, logits[:, -NEW:]) < 1e-12


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("name", [*(name for name in WRITERS if "," not in name), "falcon, alibi"])
def test_every_family_writes_the_same_without_a_cache(name: str, method: str) -> None:
    """Where HF does: not beside a prefix in families that keep the cache, nor behind an encoder."""
    model, ids, beams = writer(name, method), text(2), 2
    behind, family = model.base.config.kind == "encoder_decoder", model.base.config.family
    cached = generate(model, ids, PADDED, num_beams=beams)
    if method == "prefix" and family in FAILS_WITHOUT_CACHE and name != "falcon, alibi":
        with pytest.raises(InputError) as caught:
            generate(model, ids, PADDED, num_beams=beams, use_cache=False)
        assert str(caught.value) == (
            f"use_cache=False beside a prefix fails in HF with {family}: its model keeps the cache all the same and is "
            "given the positions of the whole text for a single token. Leave use_cache out: the tokens are the same."
        )
        options = {"num_beams": beams, "max_new_tokens": 1}
        assert (
            apart(generate(model, ids, **options), generate(model, ids, use_cache=False, **options)) < 1e-12
        )
    elif method == "prefix" and behind:
        uncached = generate(model, ids, PADDED, num_beams=beams, use_cache=False)
        with pytest.raises(AssertionError):
            assert apart(cached, uncached) < 1e-6
    else:
        assert apart(cached, generate(model, ids, PADDED, num_beams=beams, use_cache=False)) < 1e-12


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_behind_an_encoder_a_beams_score_is_that_of_its_tokens(name: str, method: str) -> None:
    model, ids = writer(name, method), text(2)
    output = generate(model, ids, PADDED, num_beams=3, num_return_sequences=2)
    assert output.sequences.shape == (4, 1 + NEW)
    again, mask = numpy.repeat(ids, 2, axis=0), numpy.repeat(PADDED, 2, axis=0)
    logits = model(again, mask, decoder_input_ids=output.sequences[:, :-1]).logits
    taken = numpy.take_along_axis(
        numpy.stack([log_softmax(row) for row in logits]), output.sequences[:, 1:, None], axis=2
    )
    assert output.sequences_scores is not None
    numpy.testing.assert_allclose(output.sequences_scores, taken.sum(axis=(1, 2)) / NEW, rtol=1e-9)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoders_padding_may_stand_on_either_side_and_is_never_inferred(name: str) -> None:
    model, ids = writer(name, "prefix"), text(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(ids, PADDED[:, ::-1], max_new_tokens=2, **{**ENDLESS, "pad_token_id": int(ids[0, -1])})
    untold = generate(model, ids, pad_token_id=int(ids[0, 0]))
    assert apart(untold, generate(model, ids, numpy.ones_like(ids))) < 1e-12
    if name == "t5":  # whose encoder knows distances alone
        padding = numpy.concatenate([numpy.full((2, 2), 7), ids], axis=1)
        mask = numpy.concatenate([numpy.zeros((2, 2), int), numpy.ones_like(ids)], axis=1)
        assert apart(generate(model, padding, mask), generate(model, ids)) < 1e-12


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_disabled_adapter_writes_as_the_base(name: str) -> None:
    """Whatever the adapter holds; without a cache too."""
    outputs = []
    for method in ("prompt", "prefix") if name == "llama" else ("prefix",):
        model = writer(name, method)
        with model.disable_adapter():
            outputs += [generate(model, text(2), PADDED, use_cache=cached) for cached in (True, False)]
    assert max(apart(outputs[0], output) for output in outputs) < 1e-12


@pytest.mark.parametrize("name", ["bloom", "gemma2", "t5", "bart"])
def test_every_family_in_single_precision(name: str) -> None:
    assert generate(writer(name, "prefix", "float32"), text(0)).logits.dtype == numpy.float32  # type: ignore[union-attr]


# ---------------------------------------------------------------- what comes back


def test_the_start_token_comes_back_and_counts() -> None:
    """It is the base model's own, or the caller's; `max_length` counts it and the new ones, not the text."""
    model, ids = writer("bart", "prompt"), text(1)
    assert generate(model, ids).sequences[:, 0].tolist() == [2, 2]
    assert generate(model, ids, decoder_start_token_id=9).sequences[:, 0].tolist() == [9, 9]
    assert generate(model, ids, max_new_tokens=None, max_length=4).sequences.shape == (2, 4)
    assert generate(model, ids, max_new_tokens=None).sequences.shape == (2, 21)
    assert generation.first_length(model.base.config, ids) == 1
    assert generation.first_length(BASE.config, ids) == TOKENS


def test_without_a_start_token_the_decoder_begins_as_a_text_does() -> None:
    base = tiny_model("t5", decoder_start_token_id=None, bos_token_id=8)
    assert generate(tiny_adapter(base), text(1)).sequences[:, 0].tolist() == [8, 8]
    with pytest.raises(InputError) as caught:
        generate(tiny_adapter(tiny_model("t5", decoder_start_token_id=None)), text(1))
    assert str(caught.value) == (
        "The base model's config.json has neither decoder_start_token_id nor bos_token_id, so that there is nothing to begin "
        "with. Give decoder_start_token_id (T5's is its pad_token_id)."
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_a_forced_end_comes_last(beams: int) -> None:
    """Where a row has not ended before; as config.json asks, unless the caller asks otherwise."""
    base = tiny_model("bart", forced_eos_token_id=6)
    model, ids = tiny_adapter(base, "prefix"), text(1)
    written = model.generate(ids, max_new_tokens=NEW, num_beams=beams, eos_token_id=None)
    assert isinstance(written, numpy.ndarray)
    assert written[:, -1].tolist() == [6, 6]
    freely = model.generate(
        ids, max_new_tokens=NEW, num_beams=beams, eos_token_id=None, forced_eos_token_id=None
    )
    assert isinstance(freely, numpy.ndarray)
    assert freely[:, -1].tolist() != [6, 6]


def test_a_forced_beginning_follows_a_single_token() -> None:
    model = writer("t5", "prompt")
    assert generate(model, text(1), forced_bos_token_id=9).sequences[:, 1].tolist() == [9, 9]
    alone, decoder = text(1)[:, :1], writer("llama", "prompt")
    assert generate(decoder, alone, forced_bos_token_id=9).sequences[:, 1].tolist() == [9, 9]
    longer = generate(decoder, text(1), forced_bos_token_id=9)
    assert apart(longer, generate(decoder, text(1))) == 0


def test_a_tables_end_is_no_models_end_where_positions_are_turned() -> None:
    """HF's default length looks at max_position_embeddings all the same."""
    model = tiny_adapter(tiny_model("llama", max_position_embeddings=TOKENS + 3))
    assert generate(model, text(0), max_new_tokens=12).sequences.shape == (2, TOKENS + 12)
    assert generate(model, text(0), max_new_tokens=None).sequences.shape == (2, TOKENS + 3)


def test_rows_that_have_ended_are_filled() -> None:
    assert next_tokens(numpy.array([[0.0, 1.0], [1.0, 0.0]]), numpy.array([True, False]), 9).tolist() == [
        9,
        0,
    ]
    model, ids = adapted("prefix"), text(3, 3)
    freely = generate(model, ids).sequences[:, TOKENS:]
    end = int(freely[0, 2])
    expected = freely.copy()
    for row in expected:
        hits = numpy.flatnonzero(row == end)
        if len(hits):
            row[hits[0] + 1 :] = 40
    found = generate(model, ids, eos_token_id=end, pad_token_id=40).sequences[:, TOKENS:]
    assert found.tolist() == expected[:, : found.shape[1]].tolist()
    assert 40 in found


def test_it_ends_when_every_row_has() -> None:
    model, ids = adapted("prefix"), text(3, 1)
    end = int(generate(model, ids).sequences[0, TOKENS])
    assert generate(model, ids, eos_token_id=[end]).sequences.shape == (1, TOKENS + 1)


def test_only_the_first_steps_stages_are_recorded() -> None:
    with recording() as stages:
        output = generate(adapted("prefix"), text(0))
    assert stages["inputs.position_ids"].tolist() == [[3, 4, 5, 6, 7]] * 2
    assert stages["decoder.layers.0.attention.key_states"].shape[2] == VIRTUAL + TOKENS
    assert list(stages)[-2:] == ["generation.logits", "sequences"]
    assert (stages["sequences"] == output.sequences).all()


def test_single_precision_in_single_precision_out() -> None:
    base = tiny_base(dtype="float32")
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
    model = get_peft_model(base, config)
    assert generate(model, text(0)).logits.dtype == numpy.float32  # type: ignore[union-attr]
    assert generate(model, text(0), num_beams=2).sequences_scores.dtype == numpy.float32  # type: ignore[union-attr]


def test_the_bases_own_tokens_end_rows_unless_others_are_given() -> None:
    model, ids = adapted("prefix"), text(3, 1)
    end = int(generate(model, ids).sequences[0, TOKENS])
    config = tiny_base(eos_token_id=end).config
    own = PeftModel(type(BASE)(config, BASE.parameters), model.config, model.trainable_parameters())
    assert own.generate(ids, max_new_tokens=NEW).shape == (1, TOKENS + 1)
    assert own.generate(ids, max_new_tokens=NEW, eos_token_id=None).shape == (1, TOKENS + NEW)


# ---------------------------------------------------------------- what is refused


def test_there_must_be_room_for_every_token() -> None:
    model, positions = adapted("prefix"), BASE.config.max_position_embeddings
    room = positions - VIRTUAL - TOKENS + 1
    assert generate(model, text(0), max_new_tokens=room).sequences.shape == (2, TOKENS + room)
    with pytest.raises(InputError) as caught:
        generate(model, text(0), max_new_tokens=room + 1)
    assert str(caught.value) == (
        f"3 virtual tokens, 5 tokens and {room + 1} new ones need {positions + 1} positions, but the base model has "
        f"{positions}. Give max_new_tokens of at most {room}."
    )


def test_the_token_to_pad_with_must_be_a_token() -> None:
    with pytest.raises(InputError) as caught:
        generate(adapted("prompt"), text(0), pad_token_id=43)
    assert str(caught.value) == "pad_token_id is 43, but the base model's vocabulary has ids 0 to 42."


@pytest.mark.parametrize("name", ["decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"])
@pytest.mark.parametrize("token", [-1, 43])
def test_what_begins_or_is_forced_must_be_a_token(name: str, token: int) -> None:
    with pytest.raises(InputError) as caught:
        generate(writer("t5", "prompt"), text(0), **{name: token})
    assert str(caught.value) == f"{name} is {token}, but the base model's vocabulary has ids 0 to 42."


@pytest.mark.parametrize(
    ("method", "options", "room", "virtual"),
    [("prompt", {}, 37, 0), ("prefix", {}, 33, 4), ("prefix", {"use_cache": False}, 7, 4)],
)
def test_a_decoder_behind_an_encoder_has_positions_of_its_own(
    method: str, options: dict[str, Any], room: int, virtual: int
) -> None:
    """A prompt takes none of them. A prefix without a cache takes more at every step (GN-10)."""
    model = writer("bart", method)
    assert generate(model, text(0), max_new_tokens=room, **options).sequences.shape == (2, 1 + room)
    needed = virtual + (room + 1) * (room + 2) // 2 if options else virtual + room + 1
    with pytest.raises(InputError) as caught:
        generate(model, text(0), max_new_tokens=room + 1, **options)
    assert str(caught.value) == (
        f"{virtual} virtual tokens, one token to begin with and {room + 1} new ones need {needed} positions, but the base model "
        f"has 37. Give max_new_tokens of at most {room}."
    )


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2"])
def test_a_window_of_one_token_does_not_fit_hfs_cache(family: str) -> None:
    """Beside a prefix, HF's cache knows of no windows, except Gemma's."""
    base = tiny_model(family, sliding_window=1)
    for method in ("prompt", "prefix") if family != "gemma2" else ("prompt",):
        model = tiny_adapter(base, method)
        assert generate(model, text(0), max_new_tokens=1).sequences.shape == (2, TOKENS + 1)
        assert generate(model, text(0), max_new_tokens=2, use_cache=False).sequences.shape == (2, TOKENS + 2)
        if method == "prefix":
            assert generate(model, text(0)).sequences.shape == (2, TOKENS + NEW)
            continue
        with pytest.raises(InputError) as caught:
            generate(model, text(0))
        assert str(caught.value) == (
            "The base model has layers with a sliding_window of 1. HF's cache keeps everything for them, and from the second "
            "new token on its mask hides nothing of it. Give use_cache=False."
        )


def test_a_cache_of_t5_has_as_many_layers_as_its_encoder() -> None:
    """Beside a prefix, HF's cache is the prefix's own; without more decoder layers there are enough."""
    tall, flat = (tiny_model("t5", num_layers=layers, num_decoder_layers=2) for layers in (1, 2))
    prompt, prefix = tiny_adapter(tall), tiny_adapter(tall, "prefix", num_layers=2)
    for model in (prefix, tiny_adapter(flat, "prompt")):
        assert generate(model, text(0)).sequences.shape[1] == NEW + 1
    assert generate(prompt, text(0), use_cache=False).sequences.shape[1] == NEW + 1
    expected = (
        "The base model has 2 decoder layers and 1 encoder layers. HF's cache for T5 has as many layers as the encoder, and its "
        "first step fails beyond them. Give use_cache=False: the tokens are the same."
    )
    for model in (prompt, prefix):
        with prefix.disable_adapter(), pytest.raises(InputError) as caught:
            generate(model, text(0), max_new_tokens=1)
        assert str(caught.value) == expected


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"])
def test_adapters_for_other_tasks_do_not_write(task: str) -> None:
    model = tiny_adapter(tiny_model("bert"), "prefix", task)
    expected = (
        f"This adapter is for {task}, and generates nothing: only those for CAUSAL_LM and SEQ_2_SEQ_LM do. Call the model to "
        "get its answer."
    )
    with pytest.raises(InputError) as caught:
        model.generate(text(0), max_new_tokens=1)
    assert str(caught.value) == expected
    with pytest.raises(InputError) as caught:
        generation.generate(model.parameters(), model.base, model.config, text(0))
    assert str(caught.value) == expected


def test_right_padding_is_warned_of_in_a_batch() -> None:
    model, ids = adapted("prefix"), text(0)
    mask = numpy.array([[1] * 5, [1] * 4 + [0]])
    with pytest.warns(UserWarning, match="right-padding was detected"):
        model.generate(ids, mask, max_new_tokens=1, eos_token_id=None, pad_token_id=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(ids[1:], mask[1:], max_new_tokens=1, eos_token_id=None, pad_token_id=0)
        model.generate(ids, mask, max_new_tokens=1, **ENDLESS)
        model.generate(ids, mask[:, ::-1], max_new_tokens=1, eos_token_id=None, pad_token_id=0)


# ---------------------------------------------------------------- wrong versions are noticed


@pytest.mark.parametrize(
    "mutant",
    [
        {"generation.step_position_ids": lambda positions, queries, virtual, prefix: positions[:, -queries:]},
        {"generation.position_ids": lambda mask: numpy.broadcast_to(numpy.arange(mask.shape[1]), mask.shape)},
        {"generation.reorder_cache": lambda past, rows: past},
        {"generation.length_penalty": lambda scores, new_tokens, penalty: scores},
    ],
    ids=lambda mutant: next(iter(mutant)),
)
def test_wrong_steps_change_the_answer(mutant: dict[str, Any]) -> None:
    ids, mask = text(5, 5), padding_mask("left", 5, TOKENS, numpy.random.default_rng(5))
    right = generate(adapted("prefix"), ids, mask, num_beams=3)
    with replaced(mutant):
        wrong = generate(adapted("prefix"), ids, mask, num_beams=3)
    assert (wrong.sequences_scores != right.sequences_scores).any()
