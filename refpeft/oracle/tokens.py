"""Generated tokens, compared as far as they are decided (clause JG-9).

Two honest answers may choose different tokens where the scores are almost a tie, and then go on differently. So a token
counts only if the reference won every choice up to it by more than rounding could turn. Gaps and budget are computed from
the specification, in float64, each time; neither is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy
from numpy.typing import NDArray

from refpeft.decoding import as_generation_config
from refpeft.oracle import budget, choices, names, questions
from refpeft.oracle.budget import Floor, Profile
from refpeft.oracle.compare import Difference
from refpeft.oracle.questions import TOKENS, Ask
from refpeft.oracle.validity import Validity

RETURNED, GIVEN, CHOSEN, BEAMS = "GN-5", "GN-3", "GN-4", "GN-6"
"""The clauses of a wrong token: what is returned and where rows end, what a later step is given, the first choice, beams."""
NEW_TOKENS = "new_tokens"
"""The axis of what was generated, one entry for each step."""


@dataclass(frozen=True)
class Decisions:
    """How far a generation is decided, in one profile."""

    gaps: NDArray[Any]
    """(sequences, new_tokens): by how much a token was won; with beams, the closest decision of its row's whole search."""
    allowed: float
    """What two scores may be off together."""
    derivation: str
    """How that came about."""
    prompt: int
    """The length of what stands before the new tokens: the text, or a decoder's start token."""
    beams: bool
    ended: NDArray[Any]
    """(sequences, new_tokens): the row had ended before."""

    @classmethod
    def of(cls, ask: Ask, floor: Floor, profile: Profile) -> Decisions:
        """From refpeft's own answer in float64, and the floor of its choosing scores."""
        with choices.recorded() as made:
            sequences = questions.answer(ask).tensors[TOKENS]
        options, prompt = as_generation_config(dict(ask.arguments)), ask.inputs["input_ids"].shape[1]
        if (ask.config or {}).get("task_type") == "SEQ_2_SEQ_LM":
            prompt = 1  # a decoder behind an encoder begins with its start token
        ends = numpy.isin(sequences[:, prompt:], options.eos_token_ids)
        ended = numpy.concatenate([numpy.zeros_like(ends[:, :1]), ends.cumsum(axis=1)[:, :-1] > 0], axis=1)
        if options.num_beams == 1:
            gaps = numpy.where(ended, numpy.inf, numpy.stack([choice.gap() for choice in made.made], axis=1))
        else:
            closest = _closest(made, options.num_return_sequences).repeat(options.num_return_sequences)
            gaps = numpy.broadcast_to(closest[:, None], ends.shape)
        allowed = budget.budget_of(TOKENS, floor, profile)
        size = float(numpy.sqrt(numpy.mean(made.scores.astype(numpy.float64) ** 2)))
        derivation = f"2 · {size:.3g} · {allowed.derivation('largest')}"
        return cls(gaps, 2 * size * allowed.largest, derivation, prompt, options.num_beams > 1, ended)

    @property
    def decided(self) -> NDArray[Any]:
        """(sequences, new_tokens): every choice up to this token was won by more than the budget."""
        return numpy.logical_and.accumulate(self.gaps > self.allowed, axis=1)

    @property
    def nothing(self) -> bool:
        """Whether not one token is decided."""
        return not self.decided.any()

    def narrowed(self, valid: Validity) -> Validity:
        """What counts of logits and scores: those computed from decided tokens, of rows that go on."""
        decided = self.decided
        if self.beams:
            return replace(valid, sequences=numpy.asarray(decided.all(axis=1)))
        before = numpy.concatenate([numpy.ones_like(decided[:, :1]), decided[:, :-1]], axis=1)
        return replace(valid, new_tokens=before & ~self.ended)

    def fitted(self, given: Any, expected: NDArray[Any], axes: list[str]) -> Any:
        """An answer cut or filled to the expected length: where a row is not decided, it may end elsewhere."""
        axis = axes.index(NEW_TOKENS if NEW_TOKENS in axes else "length")
        shape = numpy.shape(given)
        others = [i for i in range(expected.ndim) if i != axis]
        alike = len(shape) == expected.ndim and all(shape[i] == expected.shape[i] for i in others)
        if self.decided.all() or not alike or shape == expected.shape:
            return given
        fitted = numpy.full(expected.shape, -1 if expected.dtype.kind == "i" else numpy.nan)
        common = [slice(min(a, b)) for a, b in zip(shape, expected.shape, strict=True)]
        fitted[tuple(common)] = numpy.asarray(given)[tuple(common)]
        return fitted


def _closest(made: choices.Choices, returned: int) -> NDArray[Any]:
    """(batch): the closest decision of each row's search, the order of what is returned among them.

    Each step of the search chooses candidates, finished and running beams, and compares whether to go on.
    """
    last = made.made[-3]
    gaps = [*(choice.gap() for choice in made.made), last.gap(returned)]
    return numpy.asarray(numpy.stack(gaps).min(axis=0))


def compare_tokens(given: Any, expected: NDArray[Any], decisions: Decisions) -> Difference:
    """Token ids of an answer against HF's: equal as far as they are decided."""
    step = names.step_of(TOKENS)
    found = Difference(
        TOKENS,
        True,
        0.0,
        0.0,
        "tokens",
        decisions.derivation,
        clause=RETURNED,
        source=step.source if step else "",
    )

    def wrong(reason: str, where: str = "", clause: str = RETURNED) -> Difference:
        return Difference(TOKENS, ok=False, reason=reason, where=where, clause=clause, source=found.source)

    given = numpy.asarray(given)
    if given.dtype.kind not in "iuf":
        return wrong(f"is not an array of token ids: its dtype is {given.dtype}")
    given = decisions.fitted(given, expected, ["sequences", "length"])
    if given.shape != expected.shape:
        text = f"the text's {decisions.prompt} tokens and the new ones, virtual tokens not counted"
        return wrong(f"has shape {given.shape}; it must be {expected.shape}: {text}")
    counted = numpy.concatenate(
        [numpy.ones((len(expected), decisions.prompt), bool), decisions.decided], axis=1
    )
    differing = numpy.argwhere(((given != expected) & counted).T)  # by step, then by row
    if not len(differing):
        if decisions.nothing:
            closest = f"HF's choice leads by {decisions.gaps[:, 0].max():.2g} at most, the budget is {decisions.allowed:.2g}"
            reason = f"nothing is decided: the first new token is a tie in every row ({closest})"
            return msgspec.structs.replace(found, reason=reason)
        return found
    column, row = map(int, differing[0])
    tokens = f"has token {given[row, column]:.0f} where HF has {expected[row, column]}"
    if column < decisions.prompt:
        return wrong(f"{tokens}, the text's own", f"row {row}, token {column}")
    at = column - decisions.prompt
    won = (
        "the closest decision of HF's search for this row was won by"
        if decisions.beams
        else "HF's first choice leads by"
    )
    gap = decisions.gaps[row, at]
    lead = (
        "the row has ended"
        if decisions.ended[row, at]
        else f"{won} {gap:.2g}, the budget is {decisions.allowed:.2g}: no tie (JG-9)"
    )
    clause = BEAMS if decisions.beams else CHOSEN if at == 0 else GIVEN
    where = f"row {row}, new token {at}{' (the first)' if at == 0 else ''}"
    return wrong(f"{tokens}; {lead}", where, RETURNED if decisions.ended[row, at] else clause)
