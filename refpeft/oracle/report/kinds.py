"""The kinds of report that a results document can be turned into, and which of them a file's name asks for."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from refpeft.errors import RefpeftError
from refpeft.oracle.judge import Results


def of_file(text: str) -> tuple[str, Path]:
    """The kind and path of `KIND:FILE`, or of a file whose name says the kind.

    Raises:
        RefpeftError: it does not.
    """
    kind, colon, rest = text.partition(":")
    if colon and rest and kind in KINDS:
        return kind, Path(rest)
    path = Path(text)
    kind = "badge" if path.name.endswith("badge.json") else ENDINGS.get(path.suffix.lower(), "")
    if not kind:
        raise RefpeftError(
            f"'{text}' does not say which report it shall be. Name it *{', *'.join(ENDINGS)} or *badge.json, or write "
            f"KIND:FILE with a kind of {', '.join(KINDS)}."
        )
    return kind, path


def make(results: Results, kind: str) -> bytes:
    """A report of this kind."""
    return KINDS[kind](results)


def _html(results: Results) -> bytes:
    from refpeft.oracle.report.page import page

    return page(results).encode()


def _markdown(results: Results) -> bytes:
    from refpeft.oracle.report.markdown import markdown

    return markdown(results).encode()


def _junit(results: Results) -> bytes:
    from refpeft.oracle.report.junit import junit

    return junit(results)


def _badge(results: Results) -> bytes:
    from refpeft.oracle.report.badge import badge

    return badge(results)


def _json(results: Results) -> bytes:
    from refpeft.oracle.results import encode_results

    return encode_results(results)


def _pretty(results: Results) -> bytes:
    from rich.console import Console

    from refpeft.oracle.report.terminal import render

    console = Console(file=io.StringIO(), width=120, highlight=False, soft_wrap=True)
    console.print(render(results))
    return str(console.file.getvalue()).encode()  # type: ignore[attr-defined]


KINDS: dict[str, Callable[[Results], bytes]] = {
    "html": _html,
    "markdown": _markdown,
    "junit": _junit,
    "badge": _badge,
    "json": _json,
    "pretty": _pretty,
}
"""What makes each."""
ENDINGS = {".html": "html", ".md": "markdown", ".xml": "junit", ".json": "json", ".txt": "pretty"}
"""What the end of a file's name asks for."""
