"""A run as one HTML page that needs nothing else: what it shows is chosen here, how it looks is in web/.

The template escapes every string. A content security policy forbids whatever is not in the page: other styles and scripts,
and the network.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refpeft.oracle.claims import Finding
from refpeft.oracle.clauses import clause_title
from refpeft.oracle.compare import Difference
from refpeft.oracle.excerpts import Excerpt
from refpeft.oracle.judge import CaseResult, Results
from refpeft.oracle.mutants import MUTANTS
from refpeft.oracle.questions import LEVELS
from refpeft.oracle.report import picture
from refpeft.oracle.report.looks import looks_like
from refpeft.oracle.report.overview import in_words, overview, ratio_of
from refpeft.oracle.report.terminal import (
    PROTOCOL,
    before,
    projected_alone,
    short,
    verdict_line,
    where_to_look,
)

WEB = Path(__file__).parent / "web"
CHAINS = 150
"""Of so many failing cases without excerpts the chain of stages is shown; of those with excerpts, of all."""
BEHIND, AHEAD = 3, 6
"""Stages of a chain shown before the first difference and after it."""
MAP_WIDTH, LARGEST_CELL = 230, 15
"""Of a heat map, in pixels."""


def page(results: Results) -> str:
    """The page."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(WEB)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (WEB.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    view = _View(results)
    return environment.get_template("page.html").render(
        style=Markup(style),  # noqa: S704  (refpeft's own files)
        script=Markup(script),  # noqa: S704
        policy=policy,
        results=results,
        view=view,
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _spent(difference: Difference, ratio: float | None) -> str:
    """A stage's error in words, for the chain."""
    if difference.ok and not ratio:
        return "not compared" if difference.reason else "equal"
    return in_words(ratio) or "no number, or not equal"


class _View:
    """What the template shows of the results."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.failed = [c for c in results.cases if c.verdict not in ("CONFORMS", "SKIPPED")]
        self._projected = projected_alone(results.cases)
        self._numbers: list[list[Any]] = []
        self._chains = 0
        self._finding_of = {
            name: place for place, finding in enumerate(results.diagnosis) for name in finding.cases
        }
        self.suites = list(self._suites())

    @property
    def verdict(self) -> str:
        """The word, as a class of styles."""
        return self.results.summary.verdict.lower()

    @property
    def said(self) -> str:
        """The verdict in words, without the word itself."""
        return verdict_line(self.results).plain.strip().removeprefix(self.results.summary.verdict).strip()

    @property
    def command(self) -> str:
        """What repeats the run."""
        return shlex.join(self.results.command)

    @property
    def homepage(self) -> str:
        """The port's address, if it is one that may be linked."""
        return link(self.results.implementation.homepage or "")

    @property
    def numbers(self) -> list[list[Any]]:
        """Of each heat map: first row and column, expected, given, difference."""
        return self._numbers

    # ------------------------------------------------------------ levels

    def levels(self) -> Iterator[dict[str, Any]]:
        """Each level with how many conform in each profile; those not asked, with nothing."""
        for level in LEVELS:
            cells = [self._cell(level, profile) for profile in self.results.profiles]
            yield {"name": level, "cells": cells, "asked": any(cell["total"] for cell in cells)}

    def _cell(self, level: str, profile: str) -> dict[str, int]:
        cases = [c for c in self.results.cases if (c.level, c.profile) == (level, profile)]
        decided = [c for c in cases if c.verdict != "SKIPPED"]
        good = sum(c.verdict == "CONFORMS" for c in decided)
        return {"good": good, "total": len(decided), "skipped": len(cases) - len(decided)}

    # ------------------------------------------------------------ the picture of all cases

    def overview(self) -> dict[str, Any] | None:
        """Cases side by side, stages one below the other; nothing where no tensor was compared."""
        return overview(self.results.cases)

    # ------------------------------------------------------------ findings

    def findings(self) -> Iterator[dict[str, Any]]:
        """What failures look like, with the known mistakes in words."""
        for finding in self.results.diagnosis:
            yield {
                "finding": finding,
                "said": looks_like(finding, len(self.failed)).strip(),
                "mutants": [(m, MUTANTS[m]) for m in finding.mutants if m in MUTANTS],
                "cases": self._places(finding),
            }

    def _places(self, finding: Finding) -> list[tuple[int, str]]:
        named = {f"{case.case} ({case.profile})": i for i, case in enumerate(self.results.cases)}
        return [(named[name], _name(name)) for name in finding.cases if name in named]

    # ------------------------------------------------------------ cases

    def _suites(self) -> Iterator[dict[str, Any]]:
        """The cases by suite, in the order asked; those that fail in full."""
        suites: dict[str, list[tuple[int, CaseResult]]] = {}
        for place, case in enumerate(self.results.cases):
            suites.setdefault(short(case).rpartition("/")[0], []).append((place, case))
        for name, cases in suites.items():
            failing = [self._failing(i, c) for i, c in cases if c.verdict not in ("CONFORMS", "SKIPPED")]
            rest = [self._brief(i, c) for i, c in cases if c.verdict in ("CONFORMS", "SKIPPED")]
            good = sum(c.verdict == "CONFORMS" for _, c in cases)
            yield {"name": name, "failing": failing, "rest": rest, "good": good, "total": good + len(failing)}

    def _brief(self, place: int, case: CaseResult) -> dict[str, Any]:
        return {
            "place": place,
            "case": case,
            "name": short(case).rpartition("/")[2],
            "strip": picture.data_uri([[picture.of_ratio(ratio_of(d)) for d in case.differences]])
            if case.differences and case.verdict not in ("CONFORMS", "SKIPPED")
            else "",
            "text": f"{case.case} {case.title} {case.question} {case.profile} {case.verdict}".lower(),
        }

    def _failing(self, place: int, case: CaseResult) -> dict[str, Any]:
        first = case.first
        clause, advice = PROTOCOL.get(case.verdict, ""), list[str]()
        if first is not None:
            clause, advice = where_to_look(case, first, self._projected)
        finding = self._finding_of.get(f"{case.case} ({case.profile})")
        brief = self._brief(place, case)
        return {
            **brief,
            "text": f"{brief['text']} {first.name if first else case.message[:300]}".lower(),
            "first": first,
            "ratio": in_words(ratio_of(first)) if first else "",
            "clause": clause,
            "clause_title": clause_title(clause) if clause else "",
            "advice": [line for line in (before(case), *advice) if line],
            "chain": list(self._chain(case)),
            "maps": [self._maps(excerpt) for excerpt in case.excerpts],
            "finding": None if finding is None else (finding, self.results.diagnosis[finding]),
            "url": link(case.expected.url) if case.expected else "",
        }

    def _chain(self, case: CaseResult) -> Iterator[dict[str, Any]]:
        """The stages around the first difference; of those further away, how many there are."""
        names = [d.name for d in case.differences]
        full = self._chains >= CHAINS and not case.excerpts
        if case.first is None or case.first.name not in names or full:
            return
        self._chains += not case.excerpts
        place = names.index(case.first.name)
        start, end = max(0, place - BEHIND), place + AHEAD + 1
        if start:
            yield {"more": f"{start} before {'agrees' if start == 1 else 'agree'}"}
        for difference in case.differences[start:end]:
            ratio = ratio_of(difference)
            yield {
                "more": "",
                "difference": difference,
                "first": difference.name == case.first.name,
                "ratio": _spent(difference, ratio),
                "bar": _bar(ratio),
            }
        rest = case.differences[end:]
        if rest:
            wrong = sum(not d.ok for d in rest)
            yield {
                "more": f"{len(rest)} more after, of which {wrong} {'differs' if wrong == 1 else 'differ'}"
            }

    # ------------------------------------------------------------ heat maps

    def _maps(self, excerpt: Excerpt) -> dict[str, Any]:
        """Expected, given and difference side by side; None of them where the document is not a table."""
        tables = (
            ("expected", excerpt.expected),
            ("given", excerpt.given),
            ("difference", excerpt.difference),
        )
        height, width = len(excerpt.expected), min(map(len, excerpt.expected), default=0)
        alike = all(len(t) == height and all(len(row) == width for row in t) for _, t in tables)
        placed = all(len(place) == 2 for place in (excerpt.start, excerpt.worst, excerpt.size))
        if not (height and width and alike and placed):
            return {"excerpt": excerpt, "panels": []}
        top, left = excerpt.start
        self._numbers.append([top, left, excerpt.expected, excerpt.given, excerpt.difference])
        both = picture.scale_of(excerpt.expected, excerpt.given)
        scales = {"expected": both, "given": both, "difference": picture.scale_of(excerpt.difference)}
        cell = min(LARGEST_CELL, MAP_WIDTH / width)
        panels = [
            {
                "name": name,
                "image": picture.data_uri(
                    [[picture.of_value(x, scales[name]) for x in row] for row in table]
                ),
                "scale": f"±{scales[name]:.3g}",
            }
            for name, table in tables
        ]
        return {
            "excerpt": excerpt,
            "panels": panels,
            "place": len(self._numbers) - 1,
            "columns": width,
            "rows": height,
            "cell": cell,
            "worst": (excerpt.worst[1] - left, excerpt.worst[0] - top),
            "virtual": max(0, min(width, excerpt.virtual - left)),
            "axes": _axes(excerpt, height, width),
        }

    # ------------------------------------------------------------ what was not seen

    def not_asked(self) -> list[tuple[str, list[str]]]:
        """Cases beyond what the port says it can do, by suite."""
        suites: dict[str, list[str]] = {}
        for name in self.results.not_asked:
            suite, _, case = (name.partition("/")[2] or name).rpartition("/")
            suites.setdefault(suite, []).append(case)
        return list(suites.items())

    def blind_spots(self) -> list[tuple[str, str]]:
        """Known mistakes that could not have shown, in words."""
        return [(m, MUTANTS[m].title if m in MUTANTS else "") for m in self.results.blind_spots]


def link(address: str) -> str:
    """An address that a page may link: of the web, nothing that runs."""
    return address if re.fullmatch(r"https?://[^\s\x00-\x20]+", address) else ""


def _name(case_and_profile: str) -> str:
    return case_and_profile.partition("/")[2] or case_and_profile


def _bar(ratio: float | None) -> float:
    """How long a stage's bar is, of 100: a budget is at 50."""
    if ratio is None or not math.isfinite(ratio):
        return 100.0
    return round(min(100.0, max(0.0, 50 + 50 * math.log10(max(ratio, 1e-6)) / 6)), 1)


def _axes(excerpt: Excerpt, height: int, width: int) -> str:
    """What rows and columns are, and which of them are shown."""
    names = (["", *excerpt.axes] if len(excerpt.axes) == 1 else [*excerpt.axes, "", ""])[:2]
    said = []
    for name, start, shown, size in zip(names, excerpt.start, (height, width), excerpt.size, strict=True):
        if name:
            said.append(
                f"{name} {start} to {start + shown - 1} of {size}" if shown < size else f"{name} ({size})"
            )
    return " × ".join(said)
