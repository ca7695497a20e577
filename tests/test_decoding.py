"""What every way of generating shares: options, masks and positions of each step, the choice of the largest scores."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from support import VIRTUAL, tiny_adapter, tiny_model

from refpeft import decoding
from refpeft.decoding import (
    Adapted,
    GenerationConfig,
    State,
    as_generation_config,
    begin,
    begin_behind_encoder,
    grow,
)
from refpeft.errors import InputError
from refpeft.steps import recording

IDS = numpy.array([[7, 7, 5, 9], [3, 5, 7, 9]])

# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer above 0, got 0."),
        ({"max_length": -1}, "max_length must be an integer above 0, got -1."),
        ({"num_beams": True}, "num_beams must be an integer above 0, got True."),
        ({"num_beams": None}, "num_beams must be an integer above 0, got None."),
        ({"min_new_tokens": -1}, "min_new_tokens must be an integer of at least 0, or None, got -1."),
        ({"length_penalty": "1"}, "length_penalty must be a finite number, got '1'."),
        ({"use_cache": 1}, "use_cache must be True or False, got 1."),
        (
            {"eos_token_id": "</s>"},
            "eos_token_id must be the id of a token, a list of such, or None (the base model's tokenizer knows which), got '</s>'.",
        ),
        (
            {"eos_token_id": [1, "</s>"]},
            "eos_token_id must be the id of a token, a list of such, or None (the base model's tokenizer knows which), got [1, '</s>'].",
        ),
        (
            {"pad_token_id": "<pad>"},
            "pad_token_id must be the id of a token, or None (the base model's tokenizer knows which), got '<pad>'.",
        ),
        ({"early_stopping": "always"}, "early_stopping must be True, False or 'never', got 'always'."),
        (
            {"num_beams": 2, "num_return_sequences": 3},
            "num_return_sequences (3) must not exceed num_beams (2): each returned sequence is a beam. Raise num_beams.",
        ),
        (
            {"decoder_start_token_id": [1]},
            "decoder_start_token_id must be the id of a token, or None, got [1].",
        ),
        ({"forced_bos_token_id": 1.5}, "forced_bos_token_id must be the id of a token, or None, got 1.5."),
        (
            {"forced_eos_token_id": "</s>"},
            "forced_eos_token_id must be the id of a token, a list of such, or None, got '</s>'.",
        ),
        (
            {"top_k": 5, "do_sample": True},
            (
                "generate does not take do_sample, top_k. It decodes greedily or with beams, with a growing cache, and takes "
                "max_new_tokens, max_length, min_new_tokens, num_beams, num_return_sequences, length_penalty, early_stopping, "
                "eos_token_id, pad_token_id, decoder_start_token_id, forced_bos_token_id, forced_eos_token_id, use_cache; leave "
                "the others out (HF's sampling, other caches and score processors are not computed)."
            ),
        ),
    ],
)
def test_what_cannot_be_asked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        as_generation_config(options)
    assert str(caught.value) == message


def test_one_end_several_or_none() -> None:
    assert GenerationConfig().eos_token_ids == ()
    assert GenerationConfig(eos_token_id=3).eos_token_ids == (3,)
    assert GenerationConfig(eos_token_id=[3, 5]).eos_token_ids == (3, 5)
    assert GenerationConfig().forced_eos_token_ids == ()
    assert GenerationConfig(forced_eos_token_id=3).forced_eos_token_ids == (3,)
    assert GenerationConfig(forced_eos_token_id=(3, 5)).forced_eos_token_ids == (3, 5)


def test_numbers_of_numpy_become_pythons() -> None:
    made = as_generation_config(
        {"max_new_tokens": numpy.int64(3), "eos_token_id": numpy.array([3, 5]), "length_penalty": numpy.float32(0.5)}
    )  # fmt: skip
    assert made == GenerationConfig(max_new_tokens=3, eos_token_id=[3, 5], length_penalty=0.5)
    assert type(made.max_new_tokens) is int


def test_rows_are_filled_with_the_first_end_unless_a_token_is_given() -> None:
    assert GenerationConfig(eos_token_id=[3, 5]).filler == 3
    assert GenerationConfig(eos_token_id=[3, 5], pad_token_id=0).filler == 0
    assert GenerationConfig(pad_token_id=4).filler == 4
    assert GenerationConfig().filler is None


def test_how_many_tokens_are_added() -> None:
    assert GenerationConfig(max_new_tokens=7, max_length=2).new_tokens(5, 9) == 7
    assert GenerationConfig(max_length=8).new_tokens(5, 9) == 3
    assert GenerationConfig().new_tokens(5, 100) == 20
    assert GenerationConfig().new_tokens(5, 9) == 4
    assert GenerationConfig().new_tokens(5, None) == 20
    assert GenerationConfig(max_length=8).new_tokens(5, None) == 3
    with pytest.raises(InputError) as caught:
        GenerationConfig(max_length=5).new_tokens(5, 9)
    assert str(caught.value) == (
        "The text has 5 tokens, and max_length is 5: nothing can be added. Give max_new_tokens."
    )
    with pytest.raises(InputError) as caught:
        GenerationConfig(max_length=1).new_tokens(1, None, "The decoder begins with")
    assert str(caught.value) == (
        "The decoder begins with 1 token, and max_length is 1: nothing can be added. Give max_new_tokens."
    )


# ---------------------------------------------------------------- masks and positions


@pytest.mark.parametrize(
    ("ends", "pad", "mask"),
    [
        ((), 7, [[0, 0, 1, 1], [1, 1, 0, 1]]),
        ((9,), 7, [[0, 0, 1, 1], [1, 1, 0, 1]]),
        ((9, 7), 7, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        ((), None, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        ((), 8, [[1, 1, 1, 1], [1, 1, 1, 1]]),
    ],
)
def test_the_mask_is_inferred_unless_padding_and_end_are_one_token(
    ends: tuple[int, ...], pad: int | None, mask: list[list[int]]
) -> None:
    assert decoding.infer_attention_mask(IDS, ends, pad).tolist() == mask


def test_each_row_stands_once_for_each_beam_from_the_start() -> None:
    mask = numpy.array([[0, 1, 1, 1], [1, 1, 1, 1]])
    ids, state = begin(IDS, mask, GenerationConfig(num_beams=2))
    assert ids.tolist() == [[7, 7, 5, 9], [7, 7, 5, 9], [3, 5, 7, 9], [3, 5, 7, 9]]
    assert state.attention_mask is not None
    assert state.attention_mask.tolist() == [[0, 1, 1, 1]] * 2 + [[1, 1, 1, 1]] * 2
    assert state.position_ids.tolist() == [[0, 0, 1, 2]] * 2 + [[0, 1, 2, 3]] * 2
    assert (state.past_key_values, state.steps) == (None, 0)


@pytest.mark.parametrize("mask", [None, numpy.ones((2, 4)), numpy.ones((2, 4), bool)])
def test_a_mask_of_ones_is_dropped(mask: numpy.ndarray | None) -> None:
    _, state = begin(IDS, mask, GenerationConfig())
    assert state.attention_mask is None
    assert state.position_ids.tolist() == [[0, 1, 2, 3]] * 2


def test_a_step_adds_one_entry_that_is_seen_behind_the_last_position() -> None:
    mask = numpy.array([[0, 1, 1], [1, 1, 0]])
    state = grow(State(mask, decoding.first_position_ids(mask)))
    assert state.attention_mask is not None
    assert state.attention_mask.tolist() == [[0, 1, 1, 1], [1, 1, 0, 1]]
    assert state.position_ids.tolist() == [[0, 0, 1, 2], [0, 1, 0, 1]]
    assert state.steps == 1
    assert grow(State(None, numpy.array([[0, 1]]))).attention_mask is None
    assert grow(State()) == State(steps=1)


def test_a_steps_mask_and_positions() -> None:
    mask = numpy.array([[0, 1, 1], [1, 1, 1]])
    extended = decoding.step_attention_mask(mask, 2)
    assert extended is not None
    assert extended.tolist() == [[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert decoding.step_attention_mask(None, 2) is None
    positions = numpy.array([[0, 0, 1], [0, 1, 2]])
    assert decoding.step_position_ids(positions, 1, 2, prefix=False) is None
    moved = decoding.step_position_ids(positions, 1, 2, prefix=True)
    assert moved is not None
    assert moved.tolist() == [[3], [4]]


def test_everything_is_fed_unless_a_cache_holds_it() -> None:
    assert decoding.fed_tokens(IDS, behind_cache=False, use_cache=True) is IDS
    assert decoding.fed_tokens(IDS, behind_cache=True, use_cache=True).tolist() == [[9], [9]]
    assert decoding.fed_tokens(IDS, behind_cache=True, use_cache=False) is IDS  # HF's mistake, GN-10


# ---------------------------------------------------------------- behind an encoder


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_the_encoder_reads_each_row_once(family: str, method: str) -> None:
    """Its states and mask are then repeated for each beam; a prompt's virtual tokens stand before the text."""
    adapted = tiny_adapter(tiny_model(family), method)
    given = Adapted(adapted.parameters(), adapted.base, adapted.config)
    mask = numpy.array([[0, 1, 1, 1], [1, 1, 1, 1]])
    options = GenerationConfig(num_beams=2, decoder_start_token_id=6)
    with recording() as stages:
        ids, state = begin_behind_encoder(given, IDS, mask, options)
    assert ids.tolist() == [[6]] * 4
    virtual = VIRTUAL if method == "prompt" else 0
    assert stages["encoder.final_norm" if family == "t5" else "encoder.layers.2.output"].shape[0] == 2
    assert state.encoder_mask is not None
    assert state.encoded is not None
    assert state.encoder_mask.tolist() == [[1] * virtual + row for row in mask.tolist() for _ in range(2)]
    assert state.encoded.shape[:2] == (4, virtual + 4)
    assert (state.encoded[0] == state.encoded[1]).all()
    assert (state.encoded[0] != state.encoded[2]).any()
    assert (state.attention_mask, state.position_ids, state.past_key_values) == (None, None, None)
    assert begin_behind_encoder(given, IDS, None, options)[1].encoder_mask is None  # nothing is inferred


def test_the_decoder_begins_with_one_token() -> None:
    start = decoding.decoder_start(3, 5)
    assert start.tolist() == [[5], [5], [5]]
    assert start.dtype == numpy.int64
