"""Wrong answers, kept for a diagnosis: what a port gave, and how it compares with anything that was computed."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy
from numpy.typing import NDArray

from refpeft.errors import RefpeftError
from refpeft.oracle import budget, names
from refpeft.oracle.budget import PROFILES, Floor, Profile
from refpeft.oracle.cases import ask_of
from refpeft.oracle.compare import PRODUCTS, compare
from refpeft.oracle.documents import read_adapter
from refpeft.oracle.excerpts import excerpts_of
from refpeft.oracle.floors import floors, floors_of_stages
from refpeft.oracle.judge import ONE_AT_A_TIME, Asked, CaseResult
from refpeft.oracle.own import OwnVector
from refpeft.oracle.validity import Validity
from refpeft.oracle.vectors import Tensor

KEPT = 60
"""So many failing answers are kept."""
PICTURED, PICTURED_ALIKE = 50, 10
"""Of so many failing answers excerpts are kept, and of so many to one question."""
FEW, HARDLY_ANY = 16, 3
"""Of fewer numbers one must look closely to say that they are off by more than chance; and of so few nobody can."""


@dataclass
class Evidence:
    """Answers of a run, kept for a diagnosis: the wrong ones whole, of the right ones the names."""

    failed: list[Clue] = field(default_factory=list)
    conforming: list[tuple[str, str]] = field(default_factory=list)
    pictured: Counter[str] = field(default_factory=Counter)

    def take(self, asked: Asked) -> None:
        """Keep what a diagnosis can use of one question's answer, while its file is there."""
        case, profile = asked.vector.case, asked.profile
        if isinstance(asked.vector, OwnVector):
            return
        if asked.verdict == "CONFORMS":
            self.conforming.append((case.id, profile.name))
        first = asked.first
        numeric = first is not None and first.failure in ("over budget", "exact", "reason")
        if asked.verdict == "NONCONFORMING" and numeric and len(self.failed) < KEPT:
            with contextlib.suppress(RefpeftError):  # a large answer that cannot be read
                self.failed.append(Clue(asked))

    def illustrated(self, asked: Asked, result: CaseResult) -> CaseResult:
        """The result with excerpts of the wrong answer, as long as there are few; asked by the user's own model, without."""
        question = result.question
        full = self.pictured.total() >= PICTURED or self.pictured[question] >= PICTURED_ALIKE
        if full or asked.first is None or result.verdict != "NONCONFORMING" or asked.vector.truth != "HF":
            return result
        with ONE_AT_A_TIME, contextlib.suppress(RefpeftError):
            excerpts = excerpts_of(
                asked.vector, asked.ask, asked.reply.answer, asked.differences, asked.first
            )
            self.pictured[question] += bool(excerpts)
            return msgspec.structs.replace(result, excerpts=excerpts)
        return result


class Clue:
    """One wrong answer: its tensors that can be compared with a mutant's."""

    def __init__(self, asked: Asked) -> None:
        self.vector, self.profile, self.ask = asked.vector, asked.profile, ask_of(asked.vector)
        self.name = f"{self.vector.case.id} ({self.profile.name})"
        self.first = asked.first.name if asked.first else ""
        self.kinds = dict(self.vector.case.tensors)
        self.given: dict[str, NDArray[Any]] = {}
        for name, value in _tensors(asked).items():
            step = names.step_of(name)
            if name not in self.kinds and step is not None:
                self.kinds[name] = Tensor(step.kind, list(step.axes))
            if name in self.kinds:
                self.given[name] = numpy.asarray(value)
        order = [difference.name for difference in asked.differences]
        before = asked.differences[: order.index(self.first)] if self.first in order else []
        self.before = [difference.name for difference in before]
        self.bits = min((d.bits for d in before if d.bits is not None), default=None)
        self.valid = Validity.of(self.ask)

    @functools.cached_property
    def floors(self) -> Mapping[str, Floor]:
        """Of every tensor of the answer, in its profile: the stored ones, and of other stages those measured now."""
        known = floors(self.vector, self.profile)
        beyond = self.given.keys() - self.vector.case.tensors.keys()
        return {**floors_of_stages(self.vector, self.profile), **known} if beyond else known

    def wrong(
        self, computed: Mapping[str, Any], profile: Profile | None = None, *, stages: bool = True
    ) -> Iterator[str]:
        """The tensors of the answer that are not within the budget of what was computed, in their order.

        Without `stages`, only those that the case has golden values of.
        """
        every = stages and profile is None
        known = self.floors if every else floors(self.vector, profile or self.profile)
        for name, wanted in computed.items():
            counts = name in self.given and (every or name in self.vector.case.tensors)
            if counts and not self._agrees(name, wanted, profile or self.profile, known):
                yield name

    def _agrees(self, name: str, computed: Any, profile: Profile, known: Mapping[str, Floor]) -> bool:
        given, tensor, wanted = self.given[name], self.kinds[name], numpy.asarray(computed)
        if tensor.kind == "tokens":
            return given.shape == wanted.shape and bool((given == wanted).all())
        floor = known.get(name, Floor(0.0, 0.0))
        return compare(name, tensor, given, wanted, floor, profile, self.valid, "the mutant").ok


def _tensors(asked: Asked) -> Mapping[str, Any]:
    """What the port answered; of an adapter that it wrote, what is in the file."""
    answer = asked.reply.answer
    return (read_adapter(answer)[0] if asked.vector.case.question == "checkpoint.save" else answer).tensors


def exonerated(clue: Clue) -> bool:
    """Whether a matrix product came out in full precision before the first difference: then arithmetic is not to blame."""
    steps = map(names.step_of, clue.before)
    return any(step is not None and step.name in PRODUCTS for step in steps)


def is_noise(clue: Clue) -> bool:
    """Whether the first difference points nowhere: rounding does, a factor or an offset does not."""
    if clue.first not in clue.given:
        return False  # a document, in which nothing is rounded
    wanted = clue.vector.expected.get(clue.first)
    if wanted is None or wanted.size < HARDLY_ANY or wanted.shape != clue.given[clue.first].shape:
        return True
    counted = _counted(clue, clue.first)
    off = (clue.given[clue.first].astype(numpy.float64) - wanted)[counted]
    size = float(numpy.linalg.norm(off) * numpy.linalg.norm(wanted[counted]))
    return size == 0 or abs(float(off @ wanted[counted])) / size < (0.5 if off.size >= FEW else 0.99)


def effective_bits(clue: Clue) -> Iterator[float]:
    """How many significant bits each computed tensor has been computed with.

    Read off between two formats whose floors are known, on a logarithmic scale: float32 has 24 bits and bfloat16 8, or, in a
    profile of float64, float64 53 and float32 24.
    """
    wide, narrow, most, least = (
        ("float64", "float32", 53, 24) if clue.profile.dtype == "float64" else ("float32", "bfloat16", 24, 8)
    )
    fine, coarse = (floors(clue.vector, PROFILES[name]) for name in (wide, narrow))
    for name, tensor in clue.vector.case.tensors.items():
        wanted = clue.vector.expected[name]
        if tensor.kind != "composite" or name not in clue.given or clue.given[name].shape != wanted.shape:
            continue
        counted = _counted(clue, name)
        norm, _ = budget.errors(clue.given[name].astype(numpy.float64)[counted], wanted[counted])
        low, high = fine[name].norm, coarse[name].norm
        if 0 < low < high < 1 and norm > 0:
            yield most - (most - least) * math.log(norm / low) / math.log(high / low)


def _counted(clue: Clue, name: str) -> NDArray[Any]:
    """Which elements of a tensor are compared, masked scores aside."""
    wanted = clue.vector.expected[name]
    shown = numpy.isfinite(wanted) & (numpy.abs(wanted) < budget.HIDDEN)
    return numpy.asarray(clue.valid.of_tensor(clue.kinds[name].axes, wanted.shape) & shown)
