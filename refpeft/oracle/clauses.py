"""The clauses of specs/: what each says, and what each has by specs/traceability.json: code, cases, properties, mistakes."""

from __future__ import annotations

import functools
import re
import textwrap
from pathlib import Path

import msgspec

WIDTH = 100
"""Prose is wrapped so that its lines have no more characters."""
CLAUSE = re.compile(r"^### ([A-Z]{2}-\d+) (.*)$", re.MULTILINE)
"""The heading of a clause."""
COLUMNS = ("code", "golden cases", "properties", "live tests", "known mistakes")
"""What a clause may have."""
_KEPT = re.compile(r"(^```.*?^```$|(?<=\n\n)(?: {4}[^\n]*(?:\n|\Z))+|^\|[^\n]*$)", re.MULTILINE | re.DOTALL)
"""Blocks of code, formulas and rows of tables."""
_LOST = "The pages of specs/ are not installed. Reinstall refpeft, or run from a complete checkout."


def specs_directory() -> Path:
    """The pages of specs/: inside the installed package, or in the checkout.

    Raises:
        LookupError: there are none.
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "specs", package.parent / "specs"):
        if (candidate / "protocol.md").is_file():
            return candidate
    raise LookupError(_LOST)


def clauses() -> dict[str, str]:
    """Every clause by label: its heading, text, and the page it stands on.

    Raises:
        LookupError: a label stands twice.
    """
    found: dict[str, str] = {}
    for page in sorted(specs_directory().glob("*.md")):
        text = page.read_text(encoding="utf-8")
        headings = list(CLAUSE.finditer(text))
        ends = [*(h.start() for h in headings[1:]), len(text)]
        for heading, end in zip(headings, ends, strict=False):
            label = heading[1]
            if label in found:
                raise LookupError(f"The clause {label} stands twice in specs/.")
            body = text[heading.end() : end]
            body = re.split(r"^## ", body, maxsplit=1, flags=re.MULTILINE)[0].strip("\n").rstrip()
            found[label] = f"{label} {heading[2]}\n\n{body}\n\n(specs/{page.name})"
    return found


@functools.cache
def _titles() -> dict[str, str]:
    try:
        return {label: text.split("\n", 1)[0] for label, text in clauses().items()}
    except LookupError:
        return {}


def clause_title(label: str) -> str:
    """A clause's label with its title, or the label alone where the pages are not installed."""
    return _titles().get(label, label)


def fitted(text: str) -> str:
    """Paragraphs and items of lists in lines of at most `WIDTH` characters; code, formulas and tables as they are."""
    parts = _KEPT.split(text)
    for place in range(0, len(parts), 2):
        parts[place] = "".join(map(_filled, re.split(r"(\n\s*\n|\n(?= *(?:-|\d+\.) ))", parts[place])))
    return "".join(parts)


def _filled(lines: str) -> str:
    """A paragraph; as it is if it fits."""
    if all(len(line) <= WIDTH for line in lines.split("\n")):
        return lines
    start = re.match(r"\n* *(?:(?:-|\d+\.) )?", lines)
    indent = " " * len(start[0].lstrip("\n")) if start else ""
    before, after = lines[: len(lines) - len(lines.lstrip("\n"))], lines[len(lines.rstrip("\n")) :]
    joined = re.sub(r"\n\s*", " ", lines.strip("\n"))
    return f"{before}{hanging(joined, indent)}{after}"


def hanging(text: str, indent: str) -> str:
    """One paragraph in lines of at most `WIDTH` characters, all but the first of them indented."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


# ---------------------------------------------------------------- what a clause has


class Traced(msgspec.Struct, rename={name.replace(" ", "_"): name for name in (*COLUMNS, "why empty")}):
    """A row of specs/traceability.md, whole: names, by column, and the reason of each column without any."""

    code: list[str]
    golden_cases: list[str]
    properties: list[str]
    live_tests: list[str]
    known_mistakes: list[str]
    why_empty: dict[str, str]

    def column(self, name: str) -> list[str]:
        """What stands in one of `COLUMNS`."""
        found: list[str] = getattr(self, name.replace(" ", "_"))
        return found


class Traceability(msgspec.Struct):
    """The contents of specs/traceability.json, which `python tests/traceability.py` writes."""

    clauses: dict[str, Traced]
    properties: dict[str, str]
    """By number (T26): title and statement."""
    noticed: dict[str, list[str]] = msgspec.field(default_factory=dict)
    """For each property the known mistakes under which it fails."""


@functools.cache
def traceability() -> Traceability:
    """What every clause has.

    Raises:
        LookupError: the file is not installed, or another version's.
    """
    try:
        return msgspec.json.decode((specs_directory() / "traceability.json").read_bytes(), type=Traceability)
    except (OSError, msgspec.ValidationError, msgspec.DecodeError):
        raise LookupError(_LOST) from None
