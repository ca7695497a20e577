"""Beam search: the most likely continuations of each row, num_beams at a time.

Follows transformers 5.23.0 `generation/utils.py` (`GenerationMixin._beam_search` and the functions before it).

At each step every row has num_beams running beams. All their continuations compete; the best K are *candidates*, where
K = num_beams · max(2, 1 + number of eos_token_ids), so that num_beams of them go on even if others end. Of those that end,
only such as are among the best num_beams candidates are kept, with their score divided by length to the length_penalty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy
from jaxtyping import Bool, Int

from refpeft import arrays as np
from refpeft.arrays import Array, Float
from refpeft.decoding import Adapted, GenerationConfig, State, advance
from refpeft.steps import step
from refpeft.token_scores import force_tokens, is_finished, largest, process_scores
from refpeft.transformer.block import KeyValue

IMPOSSIBLE = -1e9
"""What HF adds to the score of something that must not be chosen."""
_GENERATION = "transformers generation/utils.py GenerationMixin."


@dataclass(frozen=True)
class Beams:
    """Continuations of each row, the best first."""

    sequences: Array
    """Token ids (batch, beams, length): the text and what was added."""
    scores: Array
    """(batch, beams): sums of log-probabilities; of finished beams divided by the length penalty."""


@dataclass(frozen=True)
class Finished(Beams):
    """The best finished beams so far; sequences are filled up to the maximum length."""

    done: Array
    """(batch, beams), whether there is such a beam yet."""
    lengths: Array
    """(batch, beams), how many new tokens each has."""


def log_softmax(logits: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
    """`x − log Σ exp x`, shifted by the largest.

    Source: `torch.nn.functional.log_softmax`.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - numpy.log(numpy.exp(shifted).sum(axis=-1, keepdims=True))
    return result


@step(
    "generation.beam_scores", clause="GN-6", stage="", axes="sequences", source=_GENERATION + "_beam_search"
)
def first_scores(batch_size: int, num_beams: int, dtype: Any) -> Float[Array, "batch beams"]:
    """0 for a row's first beam and −1e9 for the others: they are copies, and would all choose the same token."""
    scores = numpy.full((batch_size, num_beams), IMPOSSIBLE, dtype)
    scores[:, 0] = 0
    return scores


@step("generation.candidates", clause="GN-6", stage="", axes="sequences", source=_GENERATION + "_get_top_k_continuations")  # fmt: skip
def candidates(
    running: Beams, log_probabilities: Float[Array, "batch beams vocab"], count: int
) -> tuple[Beams, Int[Array, "batch candidates"]]:
    """The best `count` continuations over all beams of a row together, and which beam each continues.

    A continuation's score is its beam's plus the token's log-probability.
    """
    batch_size, num_beams, vocabulary = log_probabilities.shape
    total = (log_probabilities + running.scores[:, :, None]).reshape(batch_size, num_beams * vocabulary)
    chosen = largest(total, count)
    beams, tokens = chosen // vocabulary, chosen % vocabulary
    before = numpy.take_along_axis(running.sequences, beams[:, :, None], axis=1)
    sequences = numpy.concatenate([before, tokens[:, :, None]], axis=2)
    return Beams(sequences, numpy.take_along_axis(total, chosen, axis=1)), beams


@step("generation.running_beams", clause="GN-6", stage="", axes="sequences", source=_GENERATION + "_get_running_beams_for_next_iteration")  # fmt: skip
def keep_running(
    top: Beams, ended: Bool[Array, "batch candidates"], num_beams: int
) -> tuple[Beams, Int[Array, "batch beams"]]:
    """The best candidates that have not ended go on; and which candidates they are."""
    scores = top.scores + ended.astype(top.scores.dtype) * IMPOSSIBLE
    chosen = largest(scores, num_beams)
    sequences = numpy.take_along_axis(top.sequences, chosen[:, :, None], axis=1)
    return Beams(sequences, numpy.take_along_axis(scores, chosen, axis=1)), chosen


@step("generation.length_penalty", clause="GN-7", stage="", axes="sequences", source=_GENERATION + "_update_finished_beams")  # fmt: skip
def penalised(scores: Float[Array, ...], new_tokens: int, length_penalty: float) -> Float[Array, ...]:
    """`score / new_tokens ** length_penalty`: the new tokens alone count, the one that ends the beam among them.

    How others differ: the text's length counted too; the end not counted; a product; ((5 + length) / 6) ** penalty.
    """
    result: Array = scores / float(new_tokens) ** length_penalty
    return result


@step("generation.finished_beams", clause="GN-7", stage="", axes="sequences", source=_GENERATION + "_update_finished_beams")  # fmt: skip
def keep_finished(
    finished: Finished,
    top: Beams,
    ended: Bool[Array, "batch candidates"],
    open_rows: Bool[Array, "batch one"],
    new_tokens: int,
    options: GenerationConfig,
) -> Finished:
    """The best num_beams of those finished before and those that end now.

    Of the candidates, only the first num_beams may finish: an end further down is dropped. A row that is no longer open
    (GN-8) takes no more, nor one with num_beams finished beams if early_stopping is True.
    """
    beams = options.num_beams
    ends_now = ended & (numpy.arange(ended.shape[1]) < beams)
    full = finished.done.all(axis=1, keepdims=True) & (options.early_stopping is True)
    refused = full.astype(int) + ~open_rows + ~ends_now
    scores = penalised(top.scores, new_tokens, options.length_penalty) + (refused * IMPOSSIBLE).astype(
        top.scores.dtype
    )
    filled = numpy.repeat(finished.sequences[:, :1], scores.shape[1], axis=1)
    filled[:, :, : top.sequences.shape[2]] = top.sequences
    merged_scores = numpy.concatenate([finished.scores, scores], axis=1)
    chosen = largest(merged_scores, beams)

    def taken(before: Array, now: Array) -> Array:
        merged = numpy.concatenate([before, now], axis=1)
        return numpy.take_along_axis(merged, chosen[:, :, None] if merged.ndim == 3 else chosen, axis=1)

    return Finished(
        taken(finished.sequences, filled),
        numpy.take_along_axis(merged_scores, chosen, axis=1),
        taken(finished.done, ends_now),
        taken(finished.lengths, numpy.full_like(ended, new_tokens, dtype=numpy.int64)),
    )


@step("generation.may_improve", clause="GN-8", stage="", axes="sequences", kind="exact", source=_GENERATION + "_check_early_stop_heuristic")  # fmt: skip
def may_improve(
    best_possible: Float[Array, "batch one"], worst_finished: Float[Array, "batch one"]
) -> Bool[Array, "batch one"]:
    """Whether a row's best running beam could still be better than its worst finished one."""
    return best_possible > worst_finished


def still_open(
    running: Beams, finished: Finished, new_tokens: int, longest: int, options: GenerationConfig
) -> Bool[Array, "batch one"]:
    """Whether a row goes on: it has fewer than num_beams finished beams, or its best running one may improve on them.

    The best running score is divided by the present number of new tokens to the length_penalty, though a longer beam could
    come out better; with early_stopping "never" and a positive penalty, by the largest number there can be.

    Source: transformers 5.23.0 `generation/utils.py`, `GenerationMixin._check_early_stop_heuristic`.
    """
    optimist = options.early_stopping == "never" and options.length_penalty > 0
    best = penalised(running.scores[:, :1], longest if optimist else new_tokens, options.length_penalty)
    worst = finished.scores.min(axis=1, keepdims=True)
    missing = ~finished.done.all(axis=1, keepdims=True)
    worst = numpy.where(missing, IMPOSSIBLE, worst).astype(best.dtype)
    return may_improve(best, worst)


@step("generation.reorder_cache", clause="GN-6", stage="", axes="sequences", kind="exact", source="transformers cache_utils.py Cache.reorder_cache")  # fmt: skip
def reorder_cache(past_key_values: tuple[KeyValue, ...], rows: Int[Array, " rows"]) -> tuple[KeyValue, ...]:
    """The cache's rows in the order of the beams that go on, those of the virtual tokens with the others.

    How others differ: not at all, so that a beam goes on with another's past; or the prefix's rows left where they are,
    which shows only where rows of the prefix differ.
    """
    return tuple(tuple(np.take_rows(half, rows) for half in layer) for layer in past_key_values)  # type: ignore[misc]


def beam_search(
    adapted: Adapted,
    state: State,
    input_ids: Int[Array, "rows tokens"],
    longest: int,
    options: GenerationConfig,
) -> tuple[Int[Array, "sequences length"], Float[Array, " sequences"]]:
    """The best num_return_sequences continuations of each row and their scores, each row's one after the other.

    Rows that are shorter than the longest are filled with pad_token_id; with the first eos_token_id if that is 0 or None.

    Source: transformers 5.23.0 `generation/utils.py`, `GenerationMixin._beam_search`.
    """
    beams, eos, tokens = options.num_beams, options.eos_token_ids, input_ids.shape[1]
    batch_size, kept = input_ids.shape[0] // beams, beams * max(2, 1 + len(eos))
    filler = (options.filler or eos[0]) if eos else -1
    scores = first_scores(batch_size, beams, adapted.base.dtype)
    running = Beams(input_ids.reshape(batch_size, beams, tokens), scores)
    finished = _none_finished(running, longest, filler)
    open_rows, new_tokens = numpy.ones((batch_size, 1), bool), 0
    while True:
        flat = running.sequences.reshape(batch_size * beams, -1)
        logits, state = advance(adapted, state, flat, options.use_cache)
        scores = process_scores(log_softmax(logits), new_tokens, options.min_new_tokens, eos)
        new_tokens += 1
        scores = force_tokens(scores, flat.shape[1], new_tokens == longest, options)
        top, parents = candidates(running, scores.reshape(batch_size, beams, -1), kept)
        ended = is_finished(top.sequences[:, :, -1], eos, new_tokens == longest)
        finished = keep_finished(finished, top, ended, open_rows, new_tokens, options)
        running, chosen = keep_running(top, ended, beams)
        if state.past_key_values is not None:
            rows = numpy.take_along_axis(parents, chosen, axis=1) + beams * numpy.arange(batch_size)[:, None]
            past = reorder_cache(state.past_key_values, adapted.base.place(rows.reshape(-1)))
            state = replace(state, past_key_values=past)
        open_rows = open_rows & still_open(running, finished, new_tokens, longest, options)
        all_full = finished.done.all() and options.early_stopping is True
        if not open_rows.any() or all_full or ended.all():
            break
    best = options.num_return_sequences
    length = tokens + int(finished.lengths[:, :best].max())
    sequences = finished.sequences[:, :best, :length].reshape(batch_size * best, length)
    return sequences, finished.scores[:, :best].reshape(-1)


def _none_finished(running: Beams, longest: int, filler: int) -> Finished:
    """Before the first step: nothing is finished."""
    batch_size, beams, tokens = running.sequences.shape
    sequences = numpy.full((batch_size, beams, tokens + longest), filler, numpy.int64)
    sequences[:, :, :tokens] = running.sequences
    scores = numpy.full((batch_size, beams), IMPOSSIBLE, running.scores.dtype)
    nothing = numpy.zeros((batch_size, beams), numpy.int64)
    return Finished(sequences, scores, nothing.astype(bool), nothing)
