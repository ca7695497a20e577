"""golden/kill_matrix.json: which golden case decides which known mistake, in which number format (clause JG-12).

A case's *margin* for a mutant is the largest error of a required tensor of the mutant's answer, in budgets. The mutant is
*decided* from `DECIDED` on: then not even a port whose own rounding spends a whole budget could hide it. What no case that
was asked decides in a format is a *blind spot* of a run in that format.

Margins are measured beforehand and kept apart from HF's truth, as floors are; a case is known by the hash of its files.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy

from refpeft.errors import RefpeftError
from refpeft.oracle.budget import PROFILES, Profile
from refpeft.oracle.cases import ask_of
from refpeft.oracle.derived import OfCase, derived, line_by_line, over_processes, read_derived, unknown_cases
from refpeft.oracle.judge import compare_answer
from refpeft.oracle.mutants import MUTANTS, Mutant
from refpeft.oracle.questions import Answer, Ask, answer, is_required
from refpeft.oracle.reply import Reply
from refpeft.oracle.vectors import Vector, VectorError, all_vectors, golden_directory, read_vector
from refpeft.steps import STEPS, definition, replaced

NAME = "kill_matrix.json"
FORMATS = ("float32", "tf32", "float16", "bfloat16")
"""The profiles that have a column; float64 decides whatever float32 does."""
DECIDED = 2.0
"""From this margin on a mutant is decided."""
CEILING = 1e6
"""Margins are written down up to this one; what must be equal and is not has it."""
FACTOR = 1.5
"""By how much a margin measured anew may differ: budgets are worst cases of few replays, and those differ between computers."""


class _Row(OfCase):
    margins: dict[str, list[float]]


class _Matrix(msgspec.Struct):
    format: int
    profiles: list[str]
    cases: dict[str, _Row]


@dataclass(frozen=True)
class KillMatrix:
    """The stored margins."""

    rows: Mapping[str, Mapping[str, Sequence[float]]]
    """By case and mutant; for each of `FORMATS`. A mutant that changes nothing in a case has no entry."""

    def margin(self, case: str, mutant: str, profile: str) -> float:
        """The margin; 0 where the mutant changes nothing, that of float32 for the float64 profiles."""
        column = FORMATS.index(profile) if profile in FORMATS else 0
        margins = self.rows.get(case, {}).get(mutant)
        return margins[column] if margins else 0.0

    def deciding(self, mutant: str, profile: str, cases: Iterable[str] | None = None) -> list[str]:
        """The cases that decide a mutant."""
        among = self.rows if cases is None else cases
        return [case for case in among if self.margin(case, mutant, profile) >= DECIDED]

    def blind_spots(self, asked: Iterable[tuple[str, str]]) -> list[str]:
        """Mutants that change the answer of some (case, profile) and that none decides."""
        asked = list(asked)
        changing = {mutant for case, _ in asked for mutant in self.rows.get(case, {})}
        decided = {
            m
            for case, profile in asked
            for m in self.rows.get(case, {})
            if self.margin(case, m, profile) >= DECIDED
        }
        return [name for name in MUTANTS if name in changing - decided]


@functools.lru_cache(maxsize=2)
def kill_matrix(golden: Path | None = None) -> KillMatrix:
    """The stored matrix; empty where there is none.

    Raises:
        VectorError: the file is damaged.
    """
    return KillMatrix({case: row.margins for case, row in _stored(golden or golden_directory()).items()})


def _stored(golden: Path) -> Mapping[str, _Row]:
    path = golden / NAME
    stored = read_derived(path, _Matrix)
    if stored is None:
        return {}
    if stored.format != 1 or stored.profiles != list(FORMATS):
        raise VectorError(
            f"'{path}' has format {stored.format} with {', '.join(stored.profiles)}; this refpeft reads format 1 with "
            f"{', '.join(FORMATS)}."
        )
    return stored.cases


# ---------------------------------------------------------------- measuring


def steps_called(ask: Ask) -> frozenset[str]:
    """The steps that answering a question calls."""
    called: set[str] = set()

    def counted(name: str) -> Callable[..., Any]:
        original = definition(name)

        def run(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return original(*args, **kwargs)

        return run

    with replaced({name: counted(name) for name in STEPS}):
        answer(ask)
    return frozenset(called)


def answer_of(mutants: Iterable[Mutant], ask: Ask) -> Answer | None:
    """The answer with mistakes in it; None where they make an answer impossible."""
    together = {name: step for mutant in mutants for name, step in mutant.make().items()}
    try:
        with replaced(together), numpy.errstate(all="ignore"):
            return answer(ask)
    except (RefpeftError, ArithmeticError, IndexError, KeyError, TypeError, ValueError):
        return None


def margins(vector: Vector, mutants: Iterable[Mutant] = MUTANTS.values()) -> dict[str, list[float]]:
    """The margin of each mutant that changes the case's answer, in each of `FORMATS`."""
    if vector.case.question == "config.resolve":
        return {}
    found = dict[str, list[float]]()
    with tempfile.TemporaryDirectory(prefix="refpeft-") as directory:
        ask = replace(ask_of(vector), output=Path(directory))
        called = steps_called(ask)
        for mutant in mutants:
            given = answer_of([mutant], ask) if called & mutant.make().keys() else None
            if given is not None:
                required = {n: x for n, x in given.tensors.items() if is_required(vector.case.question, n)}
                written = Answer(required, adapter=given.adapter)
                measured = [_margin(vector, ask, PROFILES[name], written) for name in FORMATS]
                found |= {mutant.id: measured} if any(measured) else {}
    return found


def _margin(vector: Vector, ask: Ask, profile: Profile, given: Answer) -> float:
    """The largest error of a required tensor, in budgets; `CEILING` for what must be equal, or a number, and is not."""
    _, differences = compare_answer(vector, ask, profile, Reply("ANSWERED", answer=given), localise=False)
    worst = 0.0
    for difference in differences:
        spent = float(difference.error) / difference.budget if difference.budget else 0.0
        if not difference.ok and (not spent > 1 or not math.isfinite(spent)):
            spent = CEILING
        worst = max(worst, spent)
    return _short(min(CEILING, worst))


def _short(margin: float) -> float:
    """Two digits are enough; whole numbers are shorter."""
    rounded = float(f"{margin:.2g}")
    return 0 if margin < 0.01 else int(rounded) if rounded >= 10 else rounded


def kill_matrix_document(golden: Path | None = None, *, keep: bool = False) -> bytes:
    """The contents of golden/kill_matrix.json; with `keep`, margins of vectors that have not changed are those of the stored file."""
    stored = _stored(golden or golden_directory()) if keep else {}
    return line_by_line(_Matrix(1, list(FORMATS), derived(_row, stored, golden)))


def _row(directory: Path) -> tuple[str, _Row]:
    vector = read_vector(directory)
    return vector.case.id, _Row(vector.digest, margins(vector))


# ---------------------------------------------------------------- what must hold


def problems(golden: Path) -> list[str]:
    """What is wrong with the stored matrix: cases that it does not know, mutants that too few cases decide."""
    stored, vectors = _stored(golden), {vector.case.id: vector for vector in all_vectors(golden)}
    found = unknown_cases(NAME, {case: row.digest for case, row in stored.items()}, golden)
    matrix = KillMatrix({case: row.margins for case, row in stored.items()})
    for mutant in MUTANTS.values():
        deciding = [vectors[case] for case in matrix.deciding(mutant.id, "float32") if case in vectors]
        places = sorted(
            {f"{vector.case.id.rpartition('/')[0]} on {vector.case.model}" for vector in deciding}
        )
        if len(places) < 2:
            found.append(
                f"{mutant.id} ({mutant.title}) is decided in float32 by {places[0] if places else 'no case'} alone; it must be "
                "by cases of two suites or two base models: add one"
            )
    return found


def stale_margins(golden: Path, every: int) -> list[str]:
    """How the stored margins of each so many-th case differ from those measured now, in words."""
    stored, found = _stored(golden), []
    directories = [v.directory for v in all_vectors(golden) if v.case.id in stored]
    for case, row in over_processes(_row, directories[::every]):
        old = stored[case].margins
        for mutant in sorted(old.keys() | row.margins.keys()):
            before, now = old.get(mutant), row.margins.get(mutant)
            if before is None or now is None or not all(map(_alike, before, now)):
                found.append(f"{NAME}: {case}, {mutant}: {before}, measured now {now}")
    return found


def _alike(before: float, now: float) -> bool:
    """Equal within `FACTOR`; what is far below a budget is rounding."""
    return max(before, now) < 1 or max(before, now) <= FACTOR * min(before, now)
