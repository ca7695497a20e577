"""Generating: greedy decoding, or beam search, with HF's cache of keys and values.

Follows HF peft 0.21.2 `peft_model.py` (`PeftModelForCausalLM.generate`) and transformers 5.23.0 `generation/utils.py`
(`GenerationMixin.generate`, `_sample` without sampling, `_beam_search`). The virtual tokens are put in once, at the first
step; returned are the text's ids and the new ones.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy
from jaxtyping import Bool, Int, Shaped

from refpeft.arrays import Array, Float, Parameters
from refpeft.beam_search import beam_search
from refpeft.config import PromptLearningConfig
from refpeft.decoding import (
    Adapted,
    GenerationConfig,
    State,
    advance,
    begin,
    begin_behind_encoder,
)
from refpeft.errors import InputError
from refpeft.steps import step
from refpeft.token_scores import force_tokens, is_finished, largest, process_scores
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.weights import BaseModel

TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
"""The task types whose adapters generate."""
KEEPS_CACHE = frozenset({"gpt_bigcode", "opt", "gpt_neox", "llama", "gemma2", "gemma3_text", "phi", "falcon"})
"""Families whose HF models return the cache that they are given though use_cache is False: the next step fails (GN-3)."""
_SAMPLE = "transformers generation/utils.py GenerationMixin._sample"


@dataclass(frozen=True)
class GenerateOutput:
    """What was generated; the names are HF's."""

    sequences: Array
    """Token ids (sequences, length): the text and what was added, without virtual tokens."""
    logits: Array | None = None
    """Greedy: (batch, new_tokens, vocab), what each new token was chosen from, before `process_scores`."""
    sequences_scores: Array | None = None
    """Beam search: each sequence's score, (sequences)."""


@step("generation.next_tokens", clause="GN-4", stage="", axes="batch", kind="exact", source=_SAMPLE)
def next_tokens(
    scores: Float[Array, "batch vocab"], finished: Bool[Array, " batch"], filler: int | None
) -> Int[Array, " batch"]:
    """The token of the largest score; in rows that have ended, pad_token_id."""
    chosen = largest(scores, 1)[:, 0]
    return chosen if filler is None else numpy.where(finished, filler, chosen)


@step("generation.logits", clause="GN-4", axes="batch new_tokens vocab", source=_SAMPLE)
def stack_logits(logits: list[Array]) -> Float[Array, "batch new_tokens vocab"]:
    """The raw logits behind each token that was chosen: as they come out of the model, the end of sequence included.

    Each is (batch, vocab).
    """
    return numpy.stack(logits, axis=1)


@step(
    "sequences",
    clause="GN-5",
    axes="sequences length",
    kind="tokens",
    source="peft peft_model.py PeftModelForCausalLM.generate",
)
def returned(sequences: Int[Array, "sequences length"]) -> Int[Array, "sequences length"]:
    """The text's ids, padding included, and the new tokens; nothing stands for the virtual tokens.

    How others differ: the new tokens alone; ids that stand for virtual tokens in front; rows cut at their end.
    """
    return sequences


@step("sequences_scores", clause="GN-7", axes="sequences", source="transformers generation/utils.py GenerationMixin._beam_search")  # fmt: skip
def returned_scores(scores: Float[Array, " sequences"]) -> Float[Array, " sequences"]:
    """Each sequence's sum of log-probabilities, divided by its number of new tokens to the length_penalty."""
    return scores


def greedy_search(
    adapted: Adapted,
    state: State,
    input_ids: Int[Array, "batch tokens"],
    longest: int,
    options: GenerationConfig,
) -> GenerateOutput:
    """The likeliest token at each step, until every row has ended or `longest` tokens were added.

    Source: transformers 5.23.0 `generation/utils.py`, `GenerationMixin._sample`, with `do_sample=False`.
    """
    sequences, logits, eos = input_ids, [], options.eos_token_ids
    finished = numpy.zeros(len(input_ids), bool)
    for new_tokens in range(longest):
        raw, state = advance(adapted, state, sequences, options.use_cache)
        logits.append(raw)
        scores = process_scores(raw, new_tokens, options.min_new_tokens, eos)
        scores = force_tokens(scores, sequences.shape[1], new_tokens + 1 == longest, options)
        tokens = next_tokens(scores, finished, options.filler if eos else None)
        sequences = numpy.concatenate([sequences, tokens[:, None]], axis=1)
        finished = finished | is_finished(tokens, eos, new_tokens + 1 == longest)
        if finished.all():
            break
    stacked = stack_logits(logits)
    return GenerateOutput(returned(sequences), logits=stacked)


def generate(
    parameters: Parameters,
    base: BaseModel,
    config: PromptLearningConfig,
    input_ids: Int[Array, "batch tokens"],
    attention_mask: Shaped[Array, "batch tokens"] | None = None,
    options: GenerationConfig | None = None,
) -> GenerateOutput:
    """Continue checked inputs: a pure function.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModelForCausalLM.generate` and `PeftModelForSeq2SeqLM.generate`, with
    `return_dict_in_generate`.

    Raises:
        InputError: an adapter of this task type does not generate; HF would fail; the position table has no room for what is
            asked; or a token is none.
    """
    adapted = Adapted(parameters, base, config)
    require_task(config)
    options = _with_start(base.config, options or GenerationConfig())
    _check_tokens(base.config, options)
    longest = _checked_length(adapted, input_ids, options)
    if adapted.behind_encoder:
        _check_layers(adapted, options)
        begun, state = begin_behind_encoder(adapted, input_ids, attention_mask, options)
    else:
        _check_cache(adapted, longest, options)
        _warn_of_right_padding(input_ids, attention_mask, options)
        begun, state = begin(input_ids, attention_mask, options)
    if options.num_beams == 1:
        return greedy_search(adapted, state, begun, longest, options)
    sequences, scores = beam_search(adapted, state, begun, longest, options)
    return GenerateOutput(returned(sequences), sequences_scores=returned_scores(scores))


def require_task(config: PromptLearningConfig) -> None:
    """Refuse an adapter of a task type whose models do not write.

    Source: HF peft 0.21.2 `peft_model.py`: only `PeftModelForCausalLM` and `PeftModelForSeq2SeqLM` have `generate`.

    Raises:
        InputError: its task type is another.
    """
    if config.task_type not in TASKS:
        raise InputError(
            f"This adapter is for {config.task_type}, and generates nothing: only those for {' and '.join(TASKS)} do. Call the "
            "model to get its answer."
        )


def first_length(model: ModelConfig, input_ids: Array) -> int:
    """How many tokens of the returned sequences were there before: the text's, or the start token behind an encoder.

    `input_ids` are (batch, tokens).

    Source: transformers 5.23.0 `generation/utils.py`, `GenerationMixin.generate`.
    """
    return 1 if model.kind == "encoder_decoder" else int(input_ids.shape[1])


def _with_start(model: ModelConfig, options: GenerationConfig) -> GenerationConfig:
    if model.kind != "encoder_decoder" or options.decoder_start_token_id is not None:
        return options
    start = model.bos_token_id if model.decoder_start_token_id is None else model.decoder_start_token_id
    if start is None:
        raise InputError(
            "The base model's config.json has neither decoder_start_token_id nor bos_token_id, so that there is nothing to "
            "begin with. Give decoder_start_token_id (T5's is its pad_token_id)."
        )
    return replace(options, decoder_start_token_id=start)


def _check_tokens(model: ModelConfig, options: GenerationConfig) -> None:
    given = {"pad_token_id": [options.filler], "decoder_start_token_id": [options.decoder_start_token_id]}
    given |= {"forced_bos_token_id": [options.forced_bos_token_id]}
    given |= {"forced_eos_token_id": list(options.forced_eos_token_ids)}
    for name, tokens in given.items():
        for token in tokens:
            if token is not None and not 0 <= token < model.vocab_size:
                raise InputError(
                    f"{name} is {token}, but the base model's vocabulary has ids 0 to {model.vocab_size - 1}."
                )


def _check_cache(adapted: Adapted, longest: int, options: GenerationConfig) -> None:
    """Refused where HF fails at the second step, or sees there what a window hides (specs/stricter.md)."""
    model = adapted.base.config
    fails = model.family in KEEPS_CACHE and model.positions in ("learned", "rotary")
    if adapted.hands_cache and not options.use_cache and longest > 1 and fails:
        raise InputError(
            f"use_cache=False beside a prefix fails in HF with {model.family}: its model keeps the cache all the same and is "
            "given the positions of the whole text for a single token. Leave use_cache out: the tokens are the same."
        )
    cut = not adapted.hands_cache or model.cuts_prefix
    if cut and options.use_cache and longest > 1 and 1 in (model.sliding_windows or ()):
        raise InputError(
            "The base model has layers with a sliding_window of 1. HF's cache keeps everything for them, and from the second new "
            "token on its mask hides nothing of it. Give use_cache=False."
        )


def _check_layers(adapted: Adapted, options: GenerationConfig) -> None:
    """Refused where HF makes a cache of too few layers: as many as T5's encoder has (specs/stricter.md)."""
    model = adapted.base.config
    decoder = model.stack("decoder").num_layers
    if model.family == "t5" and not adapted.hands_cache and options.use_cache and decoder > model.num_layers:
        raise InputError(
            f"The base model has {decoder} decoder layers and {model.num_layers} encoder layers. HF's cache for T5 has as many "
            "layers as the encoder, and its first step fails beyond them. Give use_cache=False: the tokens are the same."
        )


def _checked_length(adapted: Adapted, input_ids: Array, options: GenerationConfig) -> int:
    """How many tokens are added at most; refused where HF would fail at some step, or might (specs/stricter.md, GN-3)."""
    model, virtual = adapted.base.config, adapted.config.num_virtual_tokens
    tokens, limit = first_length(model, input_ids), model.position_limit
    begun = "The decoder begins with" if adapted.behind_encoder else "The text has"
    longest = options.new_tokens(tokens, model.max_position_embeddings, begun)
    if limit is None:
        return longest
    if adapted.behind_encoder and not adapted.prefix:
        virtual = 0  # they are the encoder's
    repeated = adapted.behind_encoder and adapted.hands_cache and not options.use_cache

    def needed(new: int) -> int:
        """The last token is not fed back."""
        return virtual + (new * (new + 1) // 2 if repeated else tokens + new - 1)

    if needed(longest) > limit:
        room = next(new for new in range(longest, -1, -1) if needed(new) <= limit or not new)
        what = "one token to begin with" if adapted.behind_encoder else f"{tokens} tokens"
        raise InputError(
            f"{virtual} virtual tokens, {what} and {longest} new ones need {needed(longest)} positions, but the base model has "
            f"{limit}. Give max_new_tokens of at most {room}."
        )
    return longest


def _warn_of_right_padding(input_ids: Array, attention_mask: Array | None, options: GenerationConfig) -> None:
    """HF logs this for a batch, if there is a token to pad with; it then goes on from behind the padding."""
    if len(input_ids) == 1 or options.filler is None:
        return
    padded = input_ids[:, -1] == options.filler if attention_mask is None else attention_mask[:, -1] == 0
    if padded.any():
        warnings.warn(
            "A decoder-only architecture is being used, but right-padding was detected! Rows are continued from behind "
            "their padding. For correct results, pad on the left.",
            stacklevel=4,
        )
