"""A run as Markdown, for the summary of a CI job: verdict, levels, failures, what they look like, how to repeat it.

Whatever may be a port's words stands in code spans or fenced blocks whose fences are longer than any in the words.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from refpeft.oracle.judge import CaseResult, Results
from refpeft.oracle.questions import LEVELS
from refpeft.oracle.report.looks import blind_spots, expectations, finding_text
from refpeft.oracle.report.terminal import block, grouped, projected_alone, verdict_line

BLOCKS = 12
"""How many kinds of failure are shown in full."""
LONGEST_BLOCK = 4000
"""Characters of one of them: a CI summary may have a megabyte in all."""
SIGNS = {"CONFORMS": "✅", "NONCONFORMING": "❌", "INCONCLUSIVE": "❔"}


def markdown(results: Results) -> str:
    """The whole summary."""
    return "\n".join(_parts(results)).rstrip() + "\n"


def code(text: str) -> str:
    """Words as a code span, also within a table."""
    text = " ".join(text.split()) or " "
    ticks = "`" * (_longest(text) + 1)
    return f"{ticks} {text} {ticks}".replace("|", "\\|") if "`" in text else f"`{text}`".replace("|", "\\|")


def fenced(text: str) -> str:
    """Words as a block of code."""
    ticks = "`" * max(3, _longest(text) + 1)
    return f"{ticks}text\n{text.strip(chr(10))}\n{ticks}"


def _longest(text: str) -> int:
    """Of runs of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


def _parts(results: Results) -> Iterator[str]:
    port, summary = results.implementation, results.summary
    known = (
        " but for expected failures" if summary.verdict == "CONFORMS" and summary.expected_failures else ""
    )
    yield f"## {SIGNS[summary.verdict]} refpeft: {summary.verdict}{known}{' (partial)' if summary.partial else ''}\n"
    by = "HF peft" if results.expected_from == "HF peft" else "refpeft on your own model"
    yield (
        f"{code(f'{port.name} {port.version}')} ({code(port.language)}) against {by}, {code(results.dialect)}, refpeft "
        f"{code(results.refpeft)}.\n"
    )
    yield f"{fenced(verdict_line(results).plain)}\n"
    yield from _levels(results)
    failed = [case for case in results.cases if case.verdict not in ("CONFORMS", "SKIPPED")]
    yield from _failures(results, [case for case in failed if case.expected is None])
    said = "\n".join(expectations(results))
    if said:
        yield f"### Expected failures\n\n{fenced(said)}\n"
    if results.diagnosis:
        yield "### What it looks like\n"
        for finding in results.diagnosis:
            yield f"{fenced(finding_text(finding, len(failed)).plain)}\n"
    for text in blind_spots(results):
        yield f"{fenced(str(text))}\n"
    if results.command:
        yield f"### To repeat it\n\n{fenced(shlex.join(results.command))}\n"


def _levels(results: Results) -> Iterator[str]:
    """How many of each level conform."""
    asked = [level for level in LEVELS if any(case.level == level for case in results.cases)]
    if asked:
        yield f"| level | {' | '.join(map(code, results.profiles))} |"
        yield f"|---|{'---:|' * len(results.profiles)}"
        for level in asked:
            yield f"| {level} | {' | '.join(_cell(results.cases, level, p) for p in results.profiles)} |"
        yield ""
    rest = [level for level in LEVELS if level not in asked]
    if rest:
        yield f"Not asked: {', '.join(rest)}.\n"


def _cell(cases: Sequence[CaseResult], level: str, profile: str) -> str:
    decided = [c for c in cases if (c.level, c.profile) == (level, profile) and c.verdict != "SKIPPED"]
    good = sum(case.verdict == "CONFORMS" for case in decided)
    return ("" if good == len(decided) else "❌ ") + f"{good}/{len(decided)}" if decided else "-"


def _failures(results: Results, failed: Sequence[CaseResult]) -> Iterator[str]:
    groups = grouped(failed)
    projected = projected_alone(results.cases)
    if groups:
        yield "### Failures, by how they begin\n"
    for group in groups[:BLOCKS]:
        text = block(group, results.expected_from, projected).plain
        yield f"{fenced(text if len(text) <= LONGEST_BLOCK else text[:LONGEST_BLOCK] + ' …')}\n"
    if len(groups) > BLOCKS:
        yield f"… and {len(groups) - BLOCKS} more kinds of failure; the JSON report has them all.\n"
