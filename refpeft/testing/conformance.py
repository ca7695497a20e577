"""Golden cases as the tests of somebody's own suite: each asks a port one question and raises what `refpeft check` would print.

import pytest
from refpeft.testing import conformance_cases

@pytest.mark.parametrize("case", conformance_cases("my_package:port"))
def test_conforms(case):
    case.check()
"""

from __future__ import annotations

import atexit
import io
import shlex
import tempfile
import unittest
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group

from refpeft.errors import ConfigError
from refpeft.oracle.answer_files import discard
from refpeft.oracle.budget import PROFILES, Profile
from refpeft.oracle.cases import can_answer, in_order
from refpeft.oracle.diagnosis import with_diagnosis
from refpeft.oracle.evidence import Evidence
from refpeft.oracle.handed_out import HandedOut
from refpeft.oracle.judge import CaseResult, Results, Selection, ask_one, finish, summarise
from refpeft.oracle.port import ObjectPort, open_port
from refpeft.oracle.questions import LEVELS, METHODS, QUESTIONS
from refpeft.oracle.repeat import may_differ
from refpeft.oracle.reply import Port
from refpeft.oracle.report.looks import finding_text
from refpeft.oracle.report.terminal import block
from refpeft.oracle.run import PATIENCE, compared_twice
from refpeft.oracle.vectors import Vector, all_vectors, matches

FAILURES = Path(".refpeft") / "failures"
"""Where a directory is written that reproduces a failure alone, below the working directory."""
WIDTH = 120


class Nonconforming(AssertionError):  # noqa: N818  (it says what the answer is)
    """A port's answer is not HF peft's; the message is the diagnosis."""


@dataclass
class Asking:
    """One port, asked question after question, for as long as the tests run."""

    port: Port
    _work: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="refpeft-")
    )
    _handed_out: HandedOut = field(default_factory=HandedOut)
    _repeated: set[tuple[str, str]] = field(default_factory=set)
    _seq: int = 0
    _silent: int = 0

    @classmethod
    def of(cls, port: Any, timeout: float | None = None) -> Asking:
        """Of a command line, `module:object`, or an object with `start` and `run`.

        Raises:
            PortError: it cannot be reached.
        """
        if isinstance(port, str):
            port = shlex.split(port)
        if isinstance(port, Sequence):
            asking = cls(open_port(list(port), timeout))
        else:
            asking = cls(port if isinstance(port, Port) else ObjectPort(port))
        atexit.register(asking.close)
        return asking

    def close(self) -> None:
        """End the port; once is enough."""
        atexit.unregister(self.close)
        self.port.close()
        self._work.cleanup()

    def ask(self, vector: Vector, profile: Profile) -> tuple[CaseResult, Evidence]:
        """The verdict on one question. Doubtful answers, and the first to each kind of question, are asked for twice (JG-10)."""
        self._seq += 1
        output = Path(self._work.name) / str(self._seq)
        asked = ask_one(self.port, vector, profile, output, self._seq, self._handed_out)
        kind = (vector.case.question, profile.name)
        fresh = asked.reply.status == "ANSWERED" and kind not in self._repeated
        if may_differ(self.port) and (asked.doubtful or fresh):
            self._repeated.add(kind)
            again = ask_one(
                self.port, vector, profile, output / "again", self._seq, self._handed_out, localise=False
            )
            asked = compared_twice(asked, again)
        self._silent = self._silent + 1 if asked.silent else 0
        evidence = Evidence()
        evidence.take(asked)
        result = finish(asked, FAILURES)
        discard(output)
        return result, evidence

    @property
    def hangs(self) -> bool:
        """It did not answer so often in a row that nothing more is asked."""
        return self._silent >= PATIENCE


@dataclass(frozen=True, eq=False)
class ConformanceCase:
    """One golden case in one number format, and the port that is asked about it."""

    vector: Vector
    profile: Profile
    asking: Asking

    @property
    def name(self) -> str:
        """The case's id without its dialect, and the profile: `prefix_tuning/forward/left-padding[float32]`."""
        return f"{self.vector.case.id.partition('/')[2]}[{self.profile.name}]"

    __name__ = name
    """Under which pytest shows it as a parameter."""

    def check(self) -> None:
        """Ask, and judge the answer as `refpeft check` does.

        Raises:
            Nonconforming: it does not conform; the message says where it first differs, by how much, and what it looks like.
            unittest.SkipTest: the port skipped the question, or nothing of it is decided in this format.
        """
        if self.asking.hangs:
            raise Nonconforming(
                f"not asked: the port did not answer in time {PATIENCE} times in a row, so it is taken to hang always"
            )
        result, evidence = self.asking.ask(self.vector, self.profile)
        if result.verdict == "SKIPPED":
            raise unittest.SkipTest(result.message)
        if result.verdict != "CONFORMS":
            raise Nonconforming(self._in_words(result, evidence))

    def _in_words(self, result: CaseResult, evidence: Evidence) -> str:
        port = self.asking.port
        results: Results = summarise(port, Selection([self.vector], [self.profile], partial=True), [result])
        results = with_diagnosis(results, evidence, port)
        parts = [block([result], results.expected_from, projected=False)]
        parts += [finding_text(finding, 1) for finding in results.diagnosis]
        written = io.StringIO()
        Console(file=written, width=WIDTH, soft_wrap=True, highlight=False, no_color=True).print(
            Group(*parts)
        )
        lines = [line.rstrip() for line in written.getvalue().splitlines()]
        return "\n".join([_headline(results), *filter(None, lines)])


def _headline(results: Results) -> str:
    """All of it in a line, for summaries: the verdict, where it first differs, the mistake it looks like."""
    (case,) = results.cases
    where = f" at {case.first.name}" if case.first else ""
    looks = [finding.title for finding in results.diagnosis if finding.kind != "none"]
    return f"{case.verdict}{where}{f': {looks[0]}' if looks else ''}"


def conformance_cases(
    port: Any,
    *,
    levels: Iterable[str] | None = None,
    methods: Iterable[str] | None = None,
    profiles: Iterable[str] | None = None,
    patterns: Iterable[str] | None = None,
    golden: Path | None = None,
    timeout: float | None = None,
) -> list[ConformanceCase]:
    """The golden cases that a port says it can answer, the simplest questions first, in each of its number formats.

    Args:
        port: `module:object`, a command line, or an object with `start()` and `run(request, inputs)` (PP-8).
        levels: Of these alone (`config`, `components`, `model`, …).
        methods: Of these alone.
        profiles: In these alone (`float32`, …); else in all that the port declares.
        patterns: Those whose id matches one of these globs, or contains it.
        golden: Other vectors than the shipped ones.
        timeout: Seconds for each answer, for a port that is a program.

    The port is started now and ended when Python ends.

    Raises:
        PortError: the port cannot be reached.
        ConfigError: a level, a method or a profile that there is not, or that the port does not declare.
    """
    asking = Asking.of(port, timeout)
    declared = asking.port.abilities.profiles
    wanted = _known("profile", profiles, declared)
    chosen = _known("level", levels, LEVELS)
    of_methods = _known("method", methods, ("common", *METHODS))
    globs = None if patterns is None else list(patterns)
    vectors = [
        vector
        for vector in in_order(all_vectors(golden))
        if can_answer(asking.port.abilities, vector)
        and QUESTIONS[vector.case.question].level in chosen
        and vector.case.method in of_methods
        and (globs is None or any(matches(vector.case.id, glob) for glob in globs))
    ]
    return [ConformanceCase(vector, PROFILES[name], asking) for vector in vectors for name in wanted]


def _known(what: str, names: Iterable[str] | None, known: Sequence[str]) -> list[str]:
    """The names, or all; a mistake if one is unknown."""
    if names is None:
        return list(known)
    given = [names] if isinstance(names, str) else list(names)
    beyond = [name for name in given if name not in known]
    if beyond:
        raise ConfigError(f"There is no {what} {beyond[0]!r} for this port; there are {', '.join(known)}.")
    return given
