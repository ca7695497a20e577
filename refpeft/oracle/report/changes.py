"""What has changed between two runs, on a terminal."""

from __future__ import annotations

from rich.text import Text

from refpeft.oracle.changes import Changes, in_words

SHOWN = 40
"""Cases of a kind that are named."""


def render(found: Changes) -> Text:
    """Each kind of change with its cases, and one line about all."""
    lines = Text()
    for title, style, names in (
        ("newly failing", "bold red", found.newly_failing),
        ("newly passing", "bold green", found.newly_passing),
        ("still failing", "yellow", found.still_failing),
    ):
        _append(lines, title, style, names)
    drift = [
        f"{d.case}: {d.tensor} spends {d.now:.2g} of its budget, before {d.before:.2g}" for d in found.drift
    ]
    _append(lines, "nearer to their budgets", "yellow", drift)
    lines.append(in_words(found), "bold")
    return lines


def _append(lines: Text, title: str, style: str, names: list[str]) -> None:
    if names:
        lines.append(f"{title} ({len(names)})\n", style)
        lines.append("".join(f"  {name}\n" for name in names[:SHOWN]))
        lines.append(
            f"  … and {len(names) - SHOWN} more; --format json has them all\n" if len(names) > SHOWN else ""
        )
        lines.append("\n")
