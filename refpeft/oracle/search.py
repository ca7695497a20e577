"""A search for a question that a port answers wrongly: drawn, asked, judged, and shrunk to the smallest; then kept.

Hypothesis draws and shrinks. Verdicts are those of every run (`refpeft.oracle.judge`); an answer is remembered with its
question, so that a port which answers differently the second time is NONDETERMINISTIC, and no trouble of the search.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
from hypothesis import HealthCheck, Phase, Verbosity

from refpeft.errors import RefpeftError
from refpeft.oracle import drawn as drawing
from refpeft.oracle.answer_files import discard
from refpeft.oracle.budget import PROFILES, Profile
from refpeft.oracle.cases import can_answer
from refpeft.oracle.compare import first_difference
from refpeft.oracle.drawn import Drawn
from refpeft.oracle.evidence import Evidence
from refpeft.oracle.floors import hurried
from refpeft.oracle.handed_out import HandedOut
from refpeft.oracle.judge import Asked, CaseResult, Selection, ask_one, compare_answer
from refpeft.oracle.questions import loaded_base
from refpeft.oracle.repeat import may_differ
from refpeft.oracle.reply import Port
from refpeft.oracle.run import compared_twice, judge
from refpeft.oracle.vectors import Vector, VectorError, all_vectors

RIGHT = ("CONFORMS", "SKIPPED")
SPOKEN = 4
"""So many wrong answers beside the smallest are looked at for a diagnosis: the smallest may look like several mistakes."""


class _Disagreement(Exception):  # noqa: N818  (of a port, and what hypothesis looks for)
    """An answer is wrong."""


class _Over(BaseException):
    """The search ends here: no `Exception`, so that hypothesis lets it through."""


@dataclass
class Search:
    """What a search has come to, while it goes on and afterwards."""

    port: Port
    work: Path
    """An empty directory, for the questions and the port's answers."""
    until: float | None = None
    """When it ends at the latest, on `time.monotonic`'s clock."""
    advance: Callable[[], None] = lambda: None
    """Is called after each question."""
    counts: Counter[str] = field(default_factory=Counter)
    """How many questions got which verdict."""
    wrong: dict[str, tuple[Drawn, Asked]] = field(default_factory=dict)
    """Each wrong answer by the key of its question, in the order found."""
    first_at: int = 0
    """At which question the first wrong answer came."""
    ended: str = ""
    """Why it ended before it was done."""
    smallest: str = ""
    """The key of the wrong answer that hypothesis ended with."""
    _sizes: dict[str, int] = field(default_factory=dict)
    _right: set[str] = field(default_factory=set)
    _repeated: set[tuple[str, str]] = field(default_factory=set)
    _seq: int = 0

    @property
    def examples(self) -> int:
        """How many questions were asked."""
        return sum(self.counts.values())

    @property
    def found(self) -> tuple[Drawn, Asked] | None:
        """The smallest question that was answered wrongly."""
        if not self.wrong:
            return None
        if self.smallest:
            return self.wrong[self.smallest]
        return self.wrong[min(self.wrong, key=self._sizes.__getitem__)]

    def evidence(self) -> Evidence:
        """The smallest wrong answer, and some of those found first, for a diagnosis."""
        evidence, found = Evidence(), self.found
        if found is not None:
            others = [asked for drawn, asked in self.wrong.values() if drawn is not found[0]]
            for asked in [found[1], *others[:SPOKEN]]:
                evidence.take(asked)
        return evidence

    def run(self, strategy: Any, *, max_examples: int, seed: int) -> None:
        """Draw, ask and judge; at the first wrong answer, shrink it.

        Raises:
            VectorError: refpeft cannot judge its own question.
        """

        @hypothesis.seed(seed)
        @hypothesis.settings(
            database=None,
            max_examples=max_examples,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
            verbosity=Verbosity.quiet,
        )
        @hypothesis.given(strategy)
        def disagreements(drawn: Drawn) -> None:
            if not self._is_right(drawn):
                raise _Disagreement(
                    drawn.key
                )  # always here: hypothesis knows one failure from another by its line

        try:
            disagreements()
        except _Disagreement as error:
            self.smallest = error.args[0]
        except _Over as over:
            self.ended = over.args[0]
        except hypothesis.errors.Unsatisfiable:
            self.ended = "nothing could be drawn"
        except KeyboardInterrupt:
            self.ended = "interrupted"

    def take(self, counts: Mapping[str, int], first_at: int, ended: str, smallest: Drawn | None) -> None:
        """What another search came to; its smallest wrong answer is asked for again, here."""
        if smallest is not None:
            self.first_at = min(first_at, self.first_at or first_at)
            self._is_right(smallest)
        self.counts.update(counts)
        self.ended = self.ended or ended

    def _is_right(self, drawn: Drawn) -> bool:
        """Whether the answer to a question is right; one that was asked before is not asked again."""
        if drawn.key in self.wrong or drawn.key in self._right:
            return drawn.key in self._right
        if self.until is not None and time.monotonic() > self.until:
            raise _Over("time limit")
        vector = self._written(drawn)
        asked = self._ask(vector, PROFILES[drawn.profile])
        self.counts[asked.verdict] += 1
        self.advance()
        if asked.verdict in RIGHT:
            self._right.add(drawn.key)
            drawing.discard(vector)
            return True
        self.first_at = self.first_at or self.examples
        self.wrong[drawn.key], self._sizes[drawn.key] = (drawn, asked), size_of(vector)
        if asked.silent:
            raise _Over("a time-out")
        return False

    def _written(self, drawn: Drawn) -> Vector:
        """The question as a case; what refpeft refuses, and what HF computes by accident, is not drawn."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what HF ignores is an input all the same
            try:
                vector = drawing.write(drawn, self.work / "drawn")
            except VectorError:
                raise
            except RefpeftError:
                hypothesis.reject()
        if drawing.is_blind(vector):
            drawing.discard(vector)
            hypothesis.reject()
        return vector

    def _ask(self, vector: Vector, profile: Profile) -> Asked:
        """Asked and judged as in every run, some questions twice (JG-10)."""
        asked = self._once(vector, profile)
        kind = (vector.case.question, profile.name)
        fresh = asked.reply.status == "ANSWERED" and kind not in self._repeated
        if may_differ(self.port) and (asked.doubtful or fresh):
            self._repeated.add(kind)
            asked = compared_twice(asked, self._once(vector, profile))
        if asked.verdict in RIGHT:
            discard(self.work / "answers")
        return asked

    def _once(self, vector: Vector, profile: Profile) -> Asked:
        """The floors are measured only where they may matter."""
        self._seq += 1
        output = self.work / "answers" / str(self._seq)
        asked = ask_one(
            self.port, hurried(vector, 0), profile, output, self._seq, HandedOut(), localise=False
        )
        for measured in (hurried(vector, 1), vector):
            if asked.verdict != "NONCONFORMING":
                break
            verdict, differences = compare_answer(measured, asked.ask, profile, asked.reply)
            asked = replace(
                asked, verdict=verdict, differences=differences, first=first_difference(differences)
            )
        return replace(asked, vector=vector)


def size_of(vector: Vector) -> int:
    """How many numbers a question consists of."""
    given = sum(value.size for value in vector.inputs.values())
    if vector.model_directory is None:
        return given
    return given + sum(value.size for value in loaded_base(vector.model_directory).parameters.values())


# ---------------------------------------------------------------- failures kept from earlier


class Kept(msgspec.Struct, frozen=True):
    """A failure of an earlier search, asked again."""

    directory: str
    result: CaseResult


def kept_failures(state: Path) -> Iterator[tuple[Path, Vector, Profile]]:
    """What earlier searches found: directory, case and profile of each; damaged ones are left out."""
    for directory in sorted(state.glob("fuzz.*")):
        profile = PROFILES.get(directory.name.rpartition(".")[2])
        try:
            vectors = list(all_vectors(directory))
        except RefpeftError:
            continue
        if profile is not None and len(vectors) == 1:
            yield directory, vectors[0], profile


def try_kept(
    port: Port, state: Path, work: Path, profiles: list[str], evidence: Evidence
) -> Iterator[tuple[Kept, Vector]]:
    """Ask again what earlier searches found, as far as the port can answer it; what conforms now is removed."""
    for number, (directory, vector, profile) in enumerate(kept_failures(state)):
        if profile.name not in profiles or not can_answer(port.abilities, vector):
            continue
        selection = Selection([vector], [profile])
        for result in judge(port, selection, work / f"kept-{number}", None, evidence=evidence):
            if result.verdict == "CONFORMS":
                shutil.rmtree(directory, ignore_errors=True)
            kept = (
                msgspec.structs.replace(result, reproduce=str(directory))
                if result.verdict not in RIGHT
                else result
            )
            yield Kept(str(directory), kept), vector
