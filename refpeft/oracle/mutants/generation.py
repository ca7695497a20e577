"""Mistakes in generation: what a step is given, how tokens and beams are chosen, when a row ends (GN-1 to GN-9)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy

from refpeft.oracle.mutants.mutant import Mutant, Steps, each, mutant


@mutant(
    "M38",
    "later positions not moved on by the prefix",
    clause="GN-3",
    why="the prefix counted at the first step alone",
)
def forgets_the_prefix() -> Steps:
    """Position T + t instead of n + T + t, from the second step on."""

    def positions(original: Any, ids: Any, queries: int, virtual: int, prefix: bool) -> Any:
        return original(ids, queries, virtual if queries > 1 else 0, prefix)

    return each(("generation.step_position_ids",), positions)


@mutant(
    "M68",
    "positions of a prompt counted by the mask, as a prefix's are",
    clause="GN-3",
    why="one rule for both methods; HF counts a prompt's from its cache",
)
def counted_for_prompts() -> Steps:
    """How many tokens of the mask stand before, and n."""

    def positions(original: Any, ids: Any, queries: int, virtual: int, prefix: bool) -> Any:
        if prefix or queries > 1:
            return original(ids, queries, virtual, prefix)
        return original(ids, queries, virtual, True)

    return each(("generation.step_position_ids",), positions)


@mutant(
    "M155",
    "positions counted over the padding in generate",
    clause="GN-2",
    why="0, 1, 2, … as in a forward pass",
)
def over_the_padding() -> Steps:
    """`arange`."""

    def positions(mask: Any) -> Any:
        return numpy.broadcast_to(numpy.arange(mask.shape[1]), mask.shape).astype(numpy.int64)

    return {"generation.position_ids": positions}


@mutant(
    "M156",
    "no mask inferred from the padding in generate",
    clause="GN-1",
    why="as in a forward pass, where none is",
)
def no_mask_inferred() -> Steps:
    """All ones."""

    def mask(ids: Any, ends: Any, pad: Any) -> Any:
        return numpy.ones_like(ids)

    return {"generation.attention_mask": mask}


@mutant(
    "M157",
    "a mask inferred though the padding is the end of sequence",
    clause="GN-1",
    why="ids ≠ pad, whatever else the token means",
)
def mask_always_inferred() -> Steps:
    """0 for every pad_token_id."""

    def mask(original: Any, ids: Any, ends: Any, pad: Any) -> Any:
        return original(ids, (), pad)

    return each(("generation.attention_mask",), mask)


@mutant("M62", "new tokens masked", clause="GN-3", why="the mask padded with zeros as it grows")
def new_tokens_masked() -> Steps:
    """A 0 for each new token."""

    def grown(original: Any, state: Any) -> Any:
        after = original(state)
        if after.attention_mask is None:
            return after
        mask = after.attention_mask.copy()
        mask[:, -1] = 0
        return replace(after, attention_mask=mask)

    return each(("generation.grow",), grown)


@mutant(
    "M158",
    "new tokens all at the last token's position",
    clause="GN-3",
    why="position_ids kept while the cache grows",
)
def positions_stand() -> Steps:
    """The last position again."""

    def grown(original: Any, state: Any) -> Any:
        after = original(state)
        if after.position_ids is None:
            return after
        ids = after.position_ids.copy()
        ids[:, -1] -= 1
        return replace(after, position_ids=ids)

    return each(("generation.grow",), grown)


@mutant(
    "M159",
    "the end of a sequence not noticed",
    clause="GN-5",
    why="eos_token_id not read, or compared with the first of several",
)
def never_ends() -> Steps:
    """Rows end at their maximum length alone."""

    def finished(original: Any, tokens: Any, ends: Any, last: bool) -> Any:
        return original(tokens, (), last)

    return each(("generation.is_finished",), finished)


@mutant(
    "M160", "only the first of several ends noticed", clause="GN-5", why="eos_token_id taken for one number"
)
def first_end_only() -> Steps:
    """`eos_token_id[0]`."""

    def finished(original: Any, tokens: Any, ends: Any, last: bool) -> Any:
        return original(tokens, ends[:1], last)

    return each(("generation.is_finished",), finished)


@mutant("M161", "rows that have ended go on", clause="GN-5", why="finished rows not filled with pad_token_id")
def not_filled() -> Steps:
    """The likeliest token, finished or not."""

    def chosen(original: Any, scores: Any, finished: Any, filler: Any) -> Any:
        return original(scores, finished, None)

    return each(("generation.next_tokens",), chosen)


@mutant("M162", "min_new_tokens not read", clause="GN-4", why="a processor that is left out")
def no_minimum() -> Steps:
    """Rows may end at once."""

    def scores(scores: Any, new_tokens: int, least: Any, ends: Any) -> Any:
        return scores

    return {"generation.scores": scores}


@mutant(
    "M163",
    "forced tokens not read",
    clause="GN-9",
    why="BART's config.json asks for its end to be forced; easy to overlook",
)
def nothing_forced() -> Steps:
    """The scores as they are."""

    def scores(scores: Any, length: int, last: bool, options: Any) -> Any:
        return scores

    return {"generation.forced_tokens": scores}


@mutant(
    "M164",
    "the decoder begins with token 1",
    clause="GN-9",
    why="bos_token_id where HF has decoder_start_token_id",
)
def begins_with_bos() -> Steps:
    """Another start token."""

    def start(original: Any, batch_size: int, token: int) -> Any:
        return original(batch_size, 1 if token != 1 else 0)

    return each(("generation.decoder_start",), start)


@mutant(
    "M165",
    "all beams start equal",
    clause="GN-6",
    why="scores of zero; the copies then choose the same tokens",
)
def beams_start_equal() -> Steps:
    """0 for all beams."""

    def scores(original: Any, *args: Any) -> Any:
        return 0.0 * original(*args)

    return each(("generation.beam_scores",), scores)


@mutant(
    "M64", "the cache not reordered with the beams", clause="GN-6", why="a beam goes on with another's past"
)
def not_reordered() -> Steps:
    """Rows stay where they are."""

    def reordered(cache: Any, rows: Any) -> Any:
        return cache

    return {"generation.reorder_cache": reordered}


@mutant("M166", "beams that have ended go on", clause="GN-6", why="ends not taken out of the running beams")
def ended_beams_run() -> Steps:
    """The best candidates, ended or not."""

    def running(original: Any, top: Any, ended: Any, beams: int) -> Any:
        return original(top, ended & False, beams)

    return each(("generation.running_beams",), running)


@mutant("M167", "no length penalty", clause="GN-7", why="length_penalty not read; HF's default is 1, a mean")
def no_length_penalty() -> Steps:
    """The sum of log-probabilities."""

    def penalised(scores: Any, new_tokens: int, penalty: float) -> Any:
        return scores

    return {"generation.length_penalty": penalised}


@mutant(
    "M168",
    "the length penalty of Google's NMT",
    clause="GN-7",
    why="((5 + length) / 6) ^ penalty, Wu et al. 2016",
)
def papers_length_penalty() -> Steps:
    """Their formula."""

    def penalised(scores: Any, new_tokens: int, penalty: float) -> Any:
        return scores / ((5.0 + new_tokens) / 6.0) ** penalty

    return {"generation.length_penalty": penalised}


@mutant(
    "M169",
    "a search that stops at its first finished beams",
    clause="GN-8",
    why="early_stopping=True for everybody; HF's default is False",
)
def stops_early() -> Steps:
    """Nothing may improve."""

    def improve(original: Any, possible: Any, worst: Any) -> Any:
        return original(possible, worst) & (worst <= -1e8)

    return each(("generation.may_improve",), improve)


@mutant(
    "M170",
    "a search that never stops before its maximum length",
    clause="GN-8",
    why="early stopping left out",
)
def never_stops() -> Steps:
    """Everything may improve."""

    def improve(original: Any, possible: Any, worst: Any) -> Any:
        return original(possible, worst) | True

    return each(("generation.may_improve",), improve)


MUTANTS: tuple[Mutant, ...] = (
    forgets_the_prefix, counted_for_prompts, over_the_padding, no_mask_inferred, mask_always_inferred, new_tokens_masked,
    positions_stand, never_ends, first_end_only, not_filled, no_minimum, nothing_forced, begins_with_bos, beams_start_equal,
    not_reordered, ended_beams_run, no_length_penalty, papers_length_penalty, stops_early, never_stops,
)  # fmt: skip
