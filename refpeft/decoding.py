"""What every way of generating shares: the inputs of each step, and how the base model answers it.

Follows HF peft 0.21.2 `peft_model.py` (`PeftModelForCausalLM.generate`, `prepare_inputs_for_generation`) and
transformers 5.23.0 `generation/utils.py` (`GenerationMixin.generate`, `_sample`). Where they disagree with one another,
what comes out of both together is followed.

    step 0    the whole text, its virtual tokens in front (prompt) or in the cache (prefix)
    step t    the last token alone, behind a cache that holds the virtual tokens and everything before it

Token ids, masks and choices are on the host; only the model's own arithmetic is in the base model's arrays.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy
from jaxtyping import Int, Shaped

from refpeft import arrays as np
from refpeft import language_model, masks, prompt_embedding
from refpeft.arrays import Array, Float, Parameters
from refpeft.config import PrefixTuningConfig, PromptLearningConfig
from refpeft.generation_config import GenerationConfig, as_generation_config
from refpeft.shared_prompt import prompt_before
from refpeft.steps import step, unrecorded
from refpeft.tasks import decode, encode, text_inputs
from refpeft.transformer import stack
from refpeft.transformer.block import KeyValue
from refpeft.transformer.stack import Given, StackOutput
from refpeft.transformer.weights import BaseModel, word_embeddings

__all__ = [
    "Adapted",
    "GenerationConfig",
    "State",
    "advance",
    "as_generation_config",
    "begin",
    "begin_behind_encoder",
    "decoder_start",
    "first_position_ids",
    "grow",
    "infer_attention_mask",
    "step_attention_mask",
    "step_position_ids",
]

_GENERATION = "transformers generation/utils.py GenerationMixin."
_PREPARE = "peft peft_model.py PeftModelForCausalLM.prepare_inputs_for_generation"


class Adapted(NamedTuple):
    """The adapted model that decodes.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModelForCausalLM.generate` and `PeftModelForSeq2SeqLM.generate`, which
    decide by the same.
    """

    parameters: Parameters
    base: BaseModel
    config: PromptLearningConfig

    @property
    def behind_encoder(self) -> bool:
        """Whether the text is the encoder's, and the decoder writes a sequence of its own."""
        return self.base.config.kind == "encoder_decoder"

    @property
    def prefix(self) -> bool:
        """Whether the virtual tokens are keys and values."""
        return isinstance(self.config, PrefixTuningConfig)

    @property
    def hands_cache(self) -> bool:
        """Whether HF gets a cache even with use_cache=False: that of a prefix, unless it stands for a disabled adapter."""
        return self.prefix and self.config.num_virtual_tokens > 0


@dataclass(frozen=True)
class State:
    """What one step leaves to the next. `rows` are those of the batch, each num_beams times."""

    attention_mask: Array | None = None
    """(rows, length), for the text alone; None if nothing is padded, or the text is the encoder's."""
    position_ids: Array | None = None
    """(rows, length), for the text alone, virtual tokens not counted; None if it is the encoder's."""
    past_key_values: tuple[KeyValue, ...] | None = None
    """Keys and values of everything computed, virtual tokens included; None before the first step and without a cache."""
    cached: int = 0
    """How many positions those stand for: more than there are keys where HF cut a prefix (PX-9)."""
    encoded: Array | None = None
    """Behind an encoder: its last hidden states (rows, encoder_key, hidden)."""
    encoder_mask: Array | None = None
    """The mask over them, virtual tokens included."""
    steps: int = 0
    """How many steps were made."""


@step(
    "generation.attention_mask",
    clause="GN-1",
    axes="batch tokens",
    kind="exact",
    source=_GENERATION + "_prepare_attention_mask_for_generation",
)
def infer_attention_mask(
    input_ids: Int[Array, "batch tokens"], eos_token_ids: tuple[int, ...], pad_token_id: int | None
) -> Int[Array, "batch tokens"]:
    """The mask where the caller gives none: 0 for every pad_token_id, but all ones if that token also ends a row.

    `pad_token_id` is what rows are filled with, the first eos_token_id if the caller names none: then nothing is masked.
    How others differ: never inferring the mask (which is what forward does, MK-2), or inferring it though pad and end
    of sequence are one token.
    """
    if pad_token_id is None or pad_token_id in eos_token_ids:
        return numpy.ones_like(input_ids)
    mask: Array = (input_ids != pad_token_id).astype(numpy.int64)
    return mask


@step(
    "generation.position_ids",
    clause="GN-2",
    axes="batch tokens",
    kind="exact",
    source=_GENERATION + "_prepare_position_ids_for_generation",
)
def first_position_ids(attention_mask: Shaped[Array, "batch tokens"]) -> Int[Array, "batch tokens"]:
    """Positions of the text: how many tokens of the mask stand before each; 0 at masked positions.

    How others differ: 0, 1, 2, … whatever the padding, as forward does (PO-1); or −1, or 1, at masked positions.
    """
    counted = attention_mask.astype(numpy.int64).cumsum(axis=1) - 1
    return numpy.where(attention_mask == 0, 0, counted)


@step(
    "generation.step_attention_mask", clause="GN-3", stage="", axes="batch key", kind="exact", source=_PREPARE
)
def step_attention_mask(
    attention_mask: Shaped[Array, "batch tokens"] | None, num_virtual_tokens: int
) -> Shaped[Array, "batch key"] | None:
    """The mask of one step: ones for the virtual tokens, then the text's mask as far as the text goes now. None stays None.

    The text's own mask grows by a single one at each step; it never holds the virtual tokens.
    How others differ: putting the virtual tokens' ones in front of a mask that already has them, at each step.
    """
    return None if attention_mask is None else masks.extend_attention_mask(attention_mask, num_virtual_tokens)


@step(
    "generation.step_position_ids", clause="GN-3", stage="", axes="batch query", kind="exact", source=_PREPARE
)
def step_position_ids(
    position_ids: Int[Array, "batch tokens"], queries: int, num_virtual_tokens: int, prefix: bool
) -> Int[Array, "batch query"] | None:
    """Prefix tuning: the last `queries` positions of the text, moved on by the prefix, at each step.

    Prompt tuning: None, so that the base model counts from the length of its cache, padding included. A text that is
    padded on the left is therefore continued as without padding by a prefix, and otherwise by a prompt.
    How others differ: moving positions on at the first step only; the mask's count for prompts too.
    """
    return position_ids[:, -queries:] + num_virtual_tokens if prefix else None


@step(
    "generation.grow",
    clause="GN-3",
    stage="",
    axes="batch tokens",
    kind="exact",
    source=_GENERATION + "_update_model_kwargs_for_generation",
)
def grow(state: State) -> State:
    """One more token in each row: the mask gets a 1, the positions the last one plus 1, for finished rows too.

    Behind right padding, the last position is that of a padding, 0: the new tokens are counted from there.
    """
    mask, positions = state.attention_mask, state.position_ids
    if mask is not None:
        mask = numpy.concatenate([mask, numpy.ones_like(mask[:, :1])], axis=1)
    if positions is not None:
        positions = numpy.concatenate([positions, positions[:, -1:] + 1], axis=1)
    return replace(state, attention_mask=mask, position_ids=positions, steps=state.steps + 1)


@step(
    "generation.decoder_start",
    clause="GN-9",
    stage="",
    axes="batch decoder_tokens",
    kind="exact",
    source=_GENERATION + "_prepare_decoder_input_ids_for_generation",
)
def decoder_start(batch_size: int, decoder_start_token_id: int) -> Int[Array, "batch one"]:
    """What the decoder behind an encoder begins with, and what is returned first: the start token alone, no virtual token.

    How others differ: the beginning of a text (bos_token_id), which T5 does not have; the start token cut off afterwards.
    """
    return numpy.full((batch_size, 1), decoder_start_token_id, numpy.int64)


def begin(
    input_ids: Int[Array, "batch tokens"],
    attention_mask: Shaped[Array, "batch tokens"] | None,
    options: GenerationConfig,
) -> tuple[Int[Array, "rows tokens"], State]:
    """Ids and state before the first step, each row num_beams times: before any virtual token is put in.

    A mask of ones is dropped, whether given or inferred. Source: transformers 5.23.0 `generation/utils.py`,
    `GenerationMixin.generate`, `_expand_inputs_for_generation`.
    """
    if attention_mask is None:
        attention_mask = infer_attention_mask(input_ids, options.eos_token_ids, options.filler)
    positions = first_position_ids(attention_mask)
    padded = bool((attention_mask != 1).any())

    def expanded(array: Array) -> Array:
        return numpy.repeat(array, options.num_beams, axis=0)

    return expanded(input_ids), State(expanded(attention_mask) if padded else None, expanded(positions))


def begin_behind_encoder(
    adapted: Adapted,
    input_ids: Int[Array, "batch tokens"],
    attention_mask: Shaped[Array, "batch tokens"] | None,
    options: GenerationConfig,
) -> tuple[Int[Array, "rows one"], State]:
    """The decoder's first ids, and the state before its first step, each row num_beams times.

    The encoder reads the text, each row once, behind a prompt's virtual tokens. Its mask is the caller's, or none: nothing is
    inferred for it, so that padding is text (GN-9). Source: transformers 5.23.0 `generation/utils.py`,
    `_prepare_text_encoder_decoder_kwargs_for_generation`, `_expand_inputs_for_generation`.
    """
    parameters, base, config = adapted
    embeds, mask = text_inputs(base, config, base.place(input_ids), base.place(attention_mask))
    prompt = () if adapted.prefix else prompt_before(parameters, config, len(input_ids), base)
    encoded = encode(base, config, prompt, embeds, mask)
    rows = base.place(numpy.repeat(numpy.arange(len(input_ids)), options.num_beams))
    encoded, mask = np.take_rows(encoded, rows), None if mask is None else np.take_rows(mask, rows)
    assert options.decoder_start_token_id is not None  # noqa: S101  (`generate` has chosen it)
    start = decoder_start(len(rows), options.decoder_start_token_id)
    return start, State(encoded=encoded, encoder_mask=mask)


def advance(
    adapted: Adapted, state: State, sequences: Int[Array, "rows length"], use_cache: bool
) -> tuple[Float[Array, "rows vocab"], State]:
    """The logits behind the last token of each row, on the host, and the state for the next step.

    Only the first step's stages are recorded: those of later steps would take their names.

    Source: transformers 5.23.0 `generation/utils.py`, `GenerationMixin._sample`: one call of the model.
    """
    forward = _behind_encoder if adapted.behind_encoder else _decoder_alone
    fed = fed_tokens(sequences, state.past_key_values is not None, use_cache)
    with unrecorded() if state.steps else nullcontext():
        decoded, cached = forward(adapted, state, fed)
        logits = np.to_host(language_model.logits(adapted.parameters, adapted.base, decoded.hidden)[:, -1])
    if use_cache or (adapted.behind_encoder and adapted.hands_cache):
        return logits, grow(replace(state, past_key_values=decoded.past_key_values, cached=cached))
    return logits, grow(state)


@step("generation.fed_tokens", clause="GN-3", stage="", axes="batch decoder_tokens", kind="exact", source=_GENERATION + "_sample")  # fmt: skip
def fed_tokens(
    sequences: Int[Array, "rows length"], behind_cache: bool, use_cache: bool
) -> Int[Array, "rows fed"]:
    """What a step is given: the last token behind a cache, which holds all others; everything without one.

    Behind an encoder with a prefix and `use_cache=False`, HF gives everything *and* the cache of the steps before (GN-10).
    """
    return sequences[:, -1:] if behind_cache and use_cache else sequences


def _decoder_alone(adapted: Adapted, state: State, fed: Int[Array, "rows fed"]) -> tuple[StackOutput, int]:
    """One step of a decoder without an encoder, and how many positions are cached then."""
    parameters, base, config = adapted
    past, virtual = state.past_key_values, config.num_virtual_tokens
    cached = 0 if past is None else state.cached
    embeds = word_embeddings(base, base.place(fed))
    mask = base.place(step_attention_mask(state.attention_mask, virtual))
    assert state.position_ids is not None  # noqa: S101  (`begin` made them)
    positions = step_position_ids(state.position_ids, fed.shape[1], virtual, adapted.prefix)
    if past is None:
        prompt = prompt_before(parameters, config, len(fed), base)
        if isinstance(prompt, tuple):
            past, cached = prompt, virtual
        else:
            embeds = prompt_embedding.prepend(prompt, embeds)
    counted = base.place(
        None if positions is None else positions - cached
    )  # the stack counts them from the past's end
    queries = embeds.shape[1]
    first = language_model.first_made(numpy.arange(queries)[None] == queries - 1)
    given = Given(counted, past=cached, first=first)
    return stack.forward(base.parameters, base.config, embeds, mask, past, given), cached + queries


def _behind_encoder(adapted: Adapted, state: State, fed: Int[Array, "rows fed"]) -> tuple[StackOutput, int]:
    """One step of a decoder behind an encoder, and how many positions are cached then."""
    parameters, base, config = adapted
    past, cached = state.past_key_values, state.cached
    if past is None and adapted.prefix:
        prompt = prompt_before(parameters, config, len(fed), base)
        assert isinstance(prompt, tuple)  # noqa: S101  (a prefix)
        past, cached = prompt, config.num_virtual_tokens
    assert state.encoded is not None  # noqa: S101  (`begin` made it)
    ids = base.place(fed)
    decoded = decode(base, config, ids, None, past, state.encoded, state.encoder_mask, cached=cached)
    return decoded, cached + fed.shape[1]
