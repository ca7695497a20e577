"""Which token comes next: scores that are forbidden or forced, the largest of them, and whether a row ends with it.

Follows transformers 5.23.0 `generation/logits_process.py` and `generation/stopping_criteria.py`. Scores are logits, or beams' sums of
log-probabilities; all of this is decided on the host.
"""

from __future__ import annotations

import numpy
from jaxtyping import Bool, Int

from refpeft.arrays import Array, Float
from refpeft.generation_config import GenerationConfig
from refpeft.steps import accelerated, step


@step(
    "generation.scores",
    clause="GN-4",
    stage="",
    axes="sequences vocab",
    source="transformers generation/logits_process.py MinNewTokensLengthLogitsProcessor.__call__",
)
def process_scores(
    scores: Float[Array, "rows vocab"],
    new_tokens: int,
    min_new_tokens: int | None,
    eos_token_ids: tuple[int, ...],
) -> Float[Array, "rows vocab"]:
    """−∞ for the tokens that end a row, as long as fewer than min_new_tokens were added.

    `scores` are logits (greedy) or their log-softmax (beam search), which is not normalised again.
    """
    if new_tokens >= (min_new_tokens or 0) or not eos_token_ids:
        return scores
    ends = numpy.isin(numpy.arange(scores.shape[-1]), eos_token_ids)
    return numpy.where(ends, -numpy.inf, scores)


@step("generation.forced_tokens", clause="GN-9", stage="", axes="sequences vocab", source="transformers generation/logits_process.py ForcedEOSTokenLogitsProcessor.__call__")  # fmt: skip
def force_tokens(
    scores: Float[Array, "rows vocab"], length: int, last_step: bool, options: GenerationConfig
) -> Float[Array, "rows vocab"]:
    """0 for a token that must come now and −∞ for all others, whatever was forbidden before.

    forced_bos_token_id must come behind a sequence of a single token, whatever that is: the start token of a decoder behind an
    encoder, but a text of one token too. forced_eos_token_id must come where a row reaches its maximum length.
    How others differ: the end forced without being asked for, or not although BART's config.json asks for it.
    """
    for asked, wanted in ((length == 1, _first(options)), (last_step, options.forced_eos_token_ids)):
        if asked and wanted:
            chosen = numpy.isin(numpy.arange(scores.shape[-1]), wanted)
            scores = numpy.broadcast_to(numpy.where(chosen, 0, -numpy.inf), scores.shape).astype(scores.dtype)
    return scores


def _first(options: GenerationConfig) -> tuple[int, ...]:
    return () if options.forced_bos_token_id is None else (options.forced_bos_token_id,)


@step("generation.is_finished", clause="GN-5", stage="", axes="sequences", kind="exact", source="transformers generation/stopping_criteria.py EosTokenCriteria.__call__")  # fmt: skip
def is_finished(tokens: Int[Array, ...], eos_token_ids: tuple[int, ...], last_step: bool) -> Bool[Array, ...]:
    """Whether a row ends with the token just chosen: it is one of eos_token_ids, or there is no room for another."""
    return numpy.isin(tokens, eos_token_ids) | last_step


@step(
    "generation.largest",
    clause="GN-4",
    stage="",
    axes="sequences",
    kind="exact",
    source="transformers generation/utils.py GenerationMixin._sample",
)
@accelerated
def largest(scores: Float[Array, "rows options"], count: int) -> Int[Array, "rows count"]:
    """The places of the `count` largest scores of each row, the largest first; of equal ones the first.

    Every choice that generation makes is made here, so that the oracle can see how close it was (JG-9).
    """
    return numpy.argsort(-scores, axis=-1, kind="stable")[:, :count].astype(numpy.int64)
