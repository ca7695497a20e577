"""Which report a file's name asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle.report.made import case, hostile, results, wrong

from refpeft.errors import RefpeftError
from refpeft.oracle.report.kinds import KINDS, make, of_file


@pytest.mark.parametrize(
    ("text", "kind", "path"),
    [
        ("a/r.html", "html", "a/r.html"),
        ("summary.MD", "markdown", "summary.MD"),
        ("junit.xml", "junit", "junit.xml"),
        ("r.json", "json", "r.json"),
        ("port-badge.json", "badge", "port-badge.json"),
        ("badge:x", "badge", "x"),
        ("markdown:/dev/stdout", "markdown", "/dev/stdout"),
        ("r.txt", "pretty", "r.txt"),
        ("C:r.json", "json", "C:r.json"),
    ],
)
def test_a_file_says_its_kind(text: str, kind: str, path: str) -> None:
    assert of_file(text) == (kind, Path(path))


@pytest.mark.parametrize("text", ["r", "r.pdf", "pdf:r", "html:"])
def test_or_it_is_refused(text: str) -> None:
    with pytest.raises(RefpeftError) as caught:
        of_file(text)
    assert str(caught.value) == (
        f"'{text}' does not say which report it shall be. Name it *.html, *.md, *.xml, *.json, *.txt or *badge.json, or "
        "write KIND:FILE with a kind of html, markdown, junit, badge, json, pretty."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_made_of_anything(kind: str) -> None:
    for made in (results(), results(case(), wrong()), hostile()):
        assert make(made, kind)
