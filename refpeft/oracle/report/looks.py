"""What failures look like, and what could not be seen: a diagnosis on a terminal (clauses JG-12 and JG-13)."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from refpeft.oracle.claims import Finding
from refpeft.oracle.judge import Results

PASSES = 6
"""Unexpected passes that are named."""


def finding_text(finding: Finding, failed: int) -> Text:
    """What some failures look like, in honest words."""
    lines = Text("\n≈ ", "bold magenta")
    lines.append(looks_like(finding, failed), "bold magenta")
    if finding.kind == "arithmetic":
        about = f"about {finding.bits:g} significant bits are right; " if finding.bits is not None else ""
        lines.append(
            f"  {about}a mild mistake could look like that, but first switch it off and ask again:\n"
        )
        lines.append(f"  {finding.switch}\n")
    else:
        before = f"; everything before agrees to {finding.bits:g} bits" if finding.bits is not None else ""
        lines.append(f"  first seen at {finding.first}{before}\n")
    lines.append(f"  {finding.forced}\n" if finding.forced else "")
    lines.append(f"  seen before: {finding.seen}\n" if finding.seen else "")
    if finding.against:
        cases = f"{counted(finding.against, 'case')} that would show it conform{'s' * (finding.against == 1)}"
        lines.append(f"  but {cases}: it is not made everywhere\n")
    lines.append("  a match suggests, it does not prove\n" if finding.mutants else "", "dim")
    for topic in finding.mutants or finding.clauses:
        lines.append(f"  → refpeft explain {topic}\n", "cyan")
    return lines


def looks_like(finding: Finding, failed: int) -> str:
    """What it is, of how many failing cases; of how many, if not all of them were looked at."""
    some = f" looked at ({failed} fail)" if finding.looked_at < failed else ""
    count = f"{len(finding.cases)} of {counted(finding.looked_at, 'failing case')}{some}"
    if finding.kind == "arithmetic":
        return f"{count} agree with HF peft as far as {finding.title} would\n"
    if finding.kind == "none":
        return f"{count} look like no known mistake, nor like two at once\n"
    mistakes = "the mistakes" if finding.kind == "two mutants" else "the mistake"
    return (
        f"{count}: the answer is HF peft's with {mistakes} {finding.title} ({', '.join(finding.clauses)})\n"
    )


def expectations(results: Results) -> Iterator[str]:
    """What failed as expected, by its reason, and what was expected to fail and did not."""
    reasons: dict[tuple[str, str], int] = {}
    for case in results.cases:
        if case.expected is not None:
            said = (case.expected.reason, case.expected.url)
            reasons[said] = reasons.get(said, 0) + 1
    for (reason, url), count in reasons.items():
        yield f"expected to fail, {count}: {reason}{f' ({url})' if url else ''}"
    passes = results.summary.unexpected_passes
    if passes:
        fails = ", which fails this run (strict)" if results.summary.strict else ""
        more = f" … and {len(passes) - PASSES} more" if len(passes) > PASSES else ""
        yield f"expected to fail, but conforms{fails}: {', '.join(passes[:PASSES])}{more}; remove the entry"


def blind_spots(results: Results) -> list[RenderableType]:
    """Known mistakes that could not show in the number formats of a whole run."""
    if not results.blind_spots or results.summary.partial:
        return []
    spots = results.blind_spots
    shown = f"{', '.join(spots[:12])}{' …' if len(spots) > 12 else ''}"
    formats = " and ".join(results.profiles)
    return [
        Text(
            f"\nblind spots: {counted(len(spots), 'known mistake')} that no case decides in {formats} ({shown})",
            "yellow",
        )
    ]


def counted(count: int, what: str) -> str:
    """A number of things, in words."""
    return f"{count} {what}{'' if count == 1 else 's'}"
