"""Mistakes about what the base model is given: where virtual tokens stand, their initial values, positions (PT, PO-1, PO-2, PO-4)."""

from __future__ import annotations

from typing import Any

import numpy

from refpeft import arrays as np
from refpeft.oracle.mutants.mutant import Mutant, Steps, each, mutant, noting, noting_mask, noting_virtual

_POSITIONS = ("inputs.position_ids", "inputs.position_ids_of_mask", "inputs.position_ids_of_tokens")

# ---------------------------------------------------------------- prompts


@mutant(
    "M24",
    "the prompt behind the text",
    clause="PT-3",
    why="a suffix is a prompt too",
    seen="a choice in OpenPrompt's templates",
)
def suffix() -> Steps:
    """[text ; prompt]."""

    def behind(prompts: Any, embeds: Any) -> Any:
        return np.concatenate([embeds, prompts], axis=1)

    return {"inputs.embeddings": behind}


@mutant(
    "M25", "the prompt behind the first token of the text", clause="PT-3",
    why="a beginning of sequence is expected to stay first", seen="T5X and adapters offer it (prefix_after_bos)",
)  # fmt: skip
def after_first_token() -> Steps:
    """[first token ; prompt ; rest]."""

    def between(prompts: Any, embeds: Any) -> Any:
        first, rest = np.cut(embeds, 0, 1, 1), np.cut(embeds, 1, embeds.shape[1], 1)
        return np.concatenate([first, prompts, rest], axis=1)

    return {"inputs.embeddings": between}


@mutant(
    "M28",
    "a prompt counted along the batch: row b gets rows of others",
    clause="PT-2",
    why="repeat and reshape instead of broadcast",
)
def prompt_rows_of_others() -> Steps:
    """Each virtual token repeated for the batch, then read on as batch × virtual tokens."""

    def embeddings(original: Any, parameters: Any, batch_size: int) -> Any:
        prompts = original(parameters, batch_size)
        return np.reshape(np.transpose(prompts, (1, 0, 2)), prompts.shape)

    return each(("prompt.embeddings",), embeddings)


@mutant(
    "M29", "the prompt multiplied by √hidden, as the text is", clause="PT-7",
    why="the prompt put through the scaled embedding module", seen="vLLM's first prompt adapters, before Gemma's normalizer",
)  # fmt: skip
def prompt_scaled() -> Steps:
    """Where the family scales what it looks up, the virtual tokens are scaled too."""
    scales, noted = noting("inputs.scaled_embeddings", lambda result, embeds, scale: scale)

    def prepend(original: Any, prompts: Any, embeds: Any) -> Any:
        return original(prompts * scales[-1] if scales else prompts, embeds)

    return {**noted, **each(("inputs.embeddings",), prepend)}


@mutant(
    "M77", "the text's embeddings not multiplied by √hidden", clause="PT-7",
    why="rows taken from the table, past the module that scales them",
)  # fmt: skip
def text_not_scaled() -> Steps:
    """The table's rows as they are."""

    def unscaled(embeds: Any, scale: float) -> Any:
        return embeds

    return {"inputs.scaled_embeddings": unscaled}


@mutant(
    "M30",
    "an initial text that is too short filled with token 0 instead of repeated",
    clause="PT-5",
    why="padding is how texts are filled",
)
def text_padded() -> Steps:
    """`a b c -> a b c 0 0`."""

    def fitted(ids: Any, total: int) -> Any:
        return numpy.concatenate([ids, numpy.zeros(total, ids.dtype)])[:total]

    return {"prompt.init_token_ids": fitted}


@mutant(
    "M78",
    "an initial text that is too long cut on the left",
    clause="PT-5",
    why="truncation_side of the tokenizer",
)
def text_cut_left() -> Steps:
    """`a b c -> b c`."""

    def fitted(original: Any, ids: Any, total: int) -> Any:
        return original(ids[max(0, len(ids) - total) :], total)

    return each(("prompt.init_token_ids",), fitted)


@mutant(
    "M79",
    "initial values of standard deviation 0.02 instead of 1",
    clause="PT-4",
    why="GPT-2's own initializer_range",
    seen="hf_peft_ex",
)
def narrow_values() -> Steps:
    """Those that HF draws, times 0.02."""

    def narrow(original: Any, generator: Any, rows: int, columns: int) -> Any:
        return original(generator, rows, columns) * numpy.float32(0.02)

    return each(("init.embedding",), narrow)


@mutant(
    "M32", "behind an encoder, the second half of the prompt's rows is used", clause="PT-8",
    why="the table has 2n rows, for two submodules; HF uses the first n for the encoder, and the others never",
)  # fmt: skip
def second_half() -> Steps:
    """Rows n … 2n − 1."""

    def rows(prompt: Any, virtual: int) -> Any:
        return np.cut(prompt, prompt.shape[1] - virtual, prompt.shape[1], 1)

    return {"prompt.encoder_rows": rows}


@mutant(
    "M33", "virtual tokens of a prompt without positions", clause="PO-2",
    why="the prompt put in behind the embedding module, not before its positions are added", seen="adapters, T5X",
)  # fmt: skip
def prompt_without_positions() -> Steps:
    """The text counted from 0; nothing is added to the prompt."""
    virtual, noted = noting_virtual()

    def learned(original: Any, embeds: Any, table: Any, positions: Any) -> Any:
        n = virtual[-1] if virtual else 0
        if not n or n >= embeds.shape[1]:
            return original(embeds, table, positions)
        text = original(np.cut(embeds, n, embeds.shape[1], 1), table, positions[:, :-n])
        return np.concatenate([np.cut(embeds, 0, n, 1), text], axis=1)

    return {**noted, **each(("decoder.embeddings",), learned)}


# ---------------------------------------------------------------- positions


@mutant(
    "M34", "the text counted from 0 beside a prefix", clause="PO-1",
    why="virtual tokens in the cache are no tokens of the text", seen="OpenDelta, adapters, ChatGLM; Li's own code",
)  # fmt: skip
def from_zero() -> Steps:
    """Positions 0, 1 and so on."""

    def plain(original: Any, batch: int, queries: int, past: int, given: Any, like: Any) -> Any:
        return original(batch, queries, 0, given, like)

    def of_tokens(original: Any, ids: Any, queries: Any, past: int, pad: int, given: Any) -> Any:
        return original(ids, queries, 0, pad, given)

    return {**each(_POSITIONS[:1], plain), **each(_POSITIONS[2:], of_tokens)}


@mutant(
    "M35", "positions that skip the padding, in a forward pass", clause="PO-1",
    why="cumsum of the mask, as HF does in generate and not in forward",
)  # fmt: skip
def of_the_mask() -> Steps:
    """How many tokens of the mask stand before each."""
    masks, noted = noting_mask()

    def positions(original: Any, batch: int, queries: int, past: int, given: Any, like: Any) -> Any:
        if given is not None or not masks or masks[-1].shape != (batch, past + queries):
            return original(batch, queries, past, given, like)
        counted = numpy.maximum(numpy.cumsum(masks[-1] != 0, axis=1) - 1, 0)
        return counted[:, past:].astype(numpy.int64)

    return {**noted, **each(_POSITIONS[:1], positions)}


@mutant(
    "M81",
    "positions that the caller gives not moved on by the prefix",
    clause="PO-1",
    why="given is taken for final",
)
def given_as_they_are() -> Steps:
    """`given`, not `given + past`."""

    def plain(original: Any, batch: int, queries: int, past: int, given: Any, like: Any) -> Any:
        return original(batch, queries, past if given is None else 0, given, like)

    return each(_POSITIONS[:1], plain)


@mutant(
    "M83",
    "RoBERTa's positions counted from 0",
    clause="PO-4",
    why="as BERT's; RoBERTa's begin at pad_token_id + 1",
)
def roberta_from_zero() -> Steps:
    """0, 1, … for RoBERTa."""

    def of_tokens(original: Any, ids: Any, queries: Any, past: int, pad: int, given: Any) -> Any:
        return original(ids, queries, past, pad, given) if given is not None else queries + past

    return each(_POSITIONS[2:], of_tokens)


@mutant(
    "M82",
    "OPT's positions counted over the padding",
    clause="PO-4",
    why="as GPT-2's; OPT's skip the padding, and −1 is its place",
)
def opt_plain() -> Steps:
    """`past, past + 1, …`."""

    def of_mask(original: Any, mask: Any, past: int, given: Any) -> Any:
        if given is not None:
            return original(mask, past, given)
        return numpy.broadcast_to(numpy.arange(past, mask.shape[1]), mask[:, past:].shape)

    return each(_POSITIONS[1:2], of_mask)


MUTANTS: tuple[Mutant, ...] = (
    suffix,
    after_first_token,
    prompt_rows_of_others,
    prompt_scaled,
    text_not_scaled,
    text_padded,
    text_cut_left,
    narrow_values,
    second_half,
    prompt_without_positions,
    from_zero,
    of_the_mask,
    given_as_they_are,
    roberta_from_zero,
    opt_plain,
)
