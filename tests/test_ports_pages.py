"""The pages about papers and other implementations: each row has a clause and a mistake that exist, and they match."""

from __future__ import annotations

import re

import pytest

from refpeft.oracle.clauses import clauses, specs_directory
from refpeft.oracle.mutants import MUTANTS

LABEL = re.compile(r"[A-Z]{2}-\d+")


def rows(page: str, cells: int) -> list[list[str]]:
    """The body of every table of a page."""
    found = []
    for line in (specs_directory() / page).read_text(encoding="utf-8").splitlines():
        parts = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| ") and len(parts) == cells and "clause" not in parts:
            found.append(parts)
    return found


@pytest.mark.parametrize(("page", "cells", "count"), [("ports.md", 4, 25), ("papers.md", 4, 20)])
def test_every_row_has_clauses_that_exist(page: str, cells: int, count: int) -> None:
    table = rows(page, cells)
    assert len(table) == count
    for row in table:
        labels = row[3 if page == "papers.md" else 2].split(", ")
        assert all(LABEL.fullmatch(label) for label in labels), row
        assert set(labels) <= clauses().keys()


def test_what_a_difference_is_recognised_as() -> None:
    for theirs, hf, labels, known in rows("ports.md", 4):
        assert theirs
        assert hf
        ids = re.findall(r"\bM\d+", known)
        assert ids or known.startswith(("note", "a shape")), known
        for name in ids:
            assert MUTANTS[name].clause.split("-")[0] == labels.split("-")[0], (name, labels)
            assert MUTANTS[name].clause in labels.split(", "), (name, MUTANTS[name].clause, labels)
