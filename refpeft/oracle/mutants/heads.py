"""Mistakes in heads: logits, pooling, token types (TK-2, TK-4 to TK-8)."""

from __future__ import annotations

from typing import Any

import numpy

from refpeft import arrays as np
from refpeft import ops
from refpeft.oracle.mutants.mutant import Mutant, Steps, each, mutant, noting_mask, noting_virtual


@mutant(
    "M119",
    "T5's logits not scaled by 1/√hidden",
    clause="TK-2",
    why="other heads have no factor; T5's has where it is tied",
)
def logits_not_scaled() -> Steps:
    """`hidden · weightᵀ`."""

    def logits(
        original: Any, hidden: Any, weight: Any, bias: Any = None, *, scale: float = 1.0, **options: Any
    ) -> Any:
        return original(hidden, weight, bias, **options)

    return each(("logits",), logits)


@mutant(
    "M120", "the soft-capping of the logits left out", clause="TK-2", why="final_logit_softcapping not read"
)
def logits_not_capped() -> Steps:
    """The logits as they are."""

    def logits(
        original: Any, hidden: Any, weight: Any, bias: Any = None, *, cap: Any = None, **options: Any
    ) -> Any:
        return original(hidden, weight, bias, **options)

    return each(("logits",), logits)


@mutant(
    "M121",
    "the bias of the language-model head left out",
    clause="TK-2",
    why="most heads have none; Phi's and BART's have",
)
def no_head_bias() -> Steps:
    """`hidden · weightᵀ`."""

    def logits(original: Any, hidden: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
        return original(hidden, weight, None if bias is None else 0.0 * bias, **options)

    return each(("logits",), logits)


@mutant(
    "M57", "the text's first token pooled, behind the prompt", clause="TK-5",
    why="[CLS] is looked for; HF takes position 0, which is the first virtual token",
)  # fmt: skip
def first_of_the_text() -> Steps:
    """Position n instead of 0."""
    virtual, noted = noting_virtual()

    def pooled(original: Any, hidden: Any, *args: Any) -> Any:
        ahead = virtual[-1] if virtual else 0
        return original(np.cut(hidden, ahead, hidden.shape[1], 1), *args)

    return {**noted, **each(("pooler_output", "head.hidden"), pooled)}


@mutant(
    "M56", "the last token of the text pooled, behind a prompt", clause="TK-6",
    why="padding skipped; HF has no ids there and takes the very last position",
)  # fmt: skip
def last_of_the_text() -> Steps:
    """The last position whose mask is 1."""
    masks, noted = noting_mask()

    def pooled(original: Any, logits: Any, places: Any) -> Any:
        if masks and masks[-1].shape == logits.shape[:2]:
            last = numpy.arange(logits.shape[1]) * (masks[-1] != 0)
            places = last.max(axis=1, keepdims=True)
        return original(logits, places)

    return {**noted, **each(("head.last_token_logits",), pooled)}


@mutant("M126", "a decoder's first position pooled", clause="TK-6", why="as BERT's classifier")
def first_position() -> Steps:
    """Position 0."""

    def pooled(original: Any, logits: Any, places: Any) -> Any:
        return original(logits, 0 * places)

    return each(("head.last_token_logits",), pooled)


@mutant("M125", "pooling without tanh", clause="TK-5", why="the dense layer alone")
def pooled_linearly() -> Steps:
    """`dense(hidden[:, 0])`."""

    def pooled(hidden: Any, weight: Any, bias: Any) -> Any:
        return ops.linear(np.entry(hidden, 0, 1), weight, bias)

    return {"pooler_output": pooled}


@mutant(
    "M127",
    "starts and ends of answers exchanged",
    clause="TK-8",
    why="the head's two outputs in the other order",
)
def ends_exchanged() -> Steps:
    """The head's second output for the start."""

    def swapped(original: Any, hidden: Any, weight: Any, bias: Any) -> Any:
        order = numpy.array([1, 0])
        return original(
            hidden, np.take_rows(weight, order), np.entry(np.take_rows(bias[:, None], order), 0, 1)
        )

    return each(("head.start_logits", "head.end_logits"), swapped)


@mutant(
    "M65",
    "type 1 for the virtual tokens",
    clause="TK-4",
    why="a segment of their own; or the text's type repeated",
)
def types_of_one() -> Steps:
    """[1 … ; token_type_ids]."""

    def extended(original: Any, types: Any, n: int) -> Any:
        result = original(types, n)
        return numpy.concatenate([numpy.ones_like(result[:, :n]), result[:, n:]], axis=1)

    return each(("inputs.token_type_ids",), extended)


MUTANTS: tuple[Mutant, ...] = (
    logits_not_scaled,
    logits_not_capped,
    no_head_bias,
    first_of_the_text,
    last_of_the_text,
    first_position,
    pooled_linearly,
    ends_exchanged,
    types_of_one,
)
