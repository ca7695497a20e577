"""Every clause has code, cases, properties, live tests and mistakes, or says why not; and the page is that of the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from traceability import (
    COLUMNS,
    DOCUMENT,
    LIVE,
    MUTANTS,
    PAGE,
    PROPERTIES,
    PROPERTIES_PAGE,
    REASONS,
    WITNESSES,
    cases_of,
    document,
    noticed,
    page,
    properties_of,
    properties_page,
    reason,
    row,
)

from refpeft.oracle.explain import clauses

TESTS = Path(__file__).resolve().parent


def test_the_page_is_that_of_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/traceability.py"


def test_the_document_is_that_of_the_code() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "run python tests/traceability.py"


def test_the_page_of_properties_is_that_of_the_code() -> None:
    assert PROPERTIES_PAGE.read_text(encoding="utf-8") == properties_page(), (
        "run python tests/traceability.py"
    )


@pytest.mark.parametrize("label", clauses())
def test_an_empty_cell_has_a_reason(label: str) -> None:
    found = row(label)
    assert {column for column in COLUMNS if not found[column] and reason(label, column) is None} == set()


def test_a_reason_is_for_something_empty() -> None:
    rows = {label: row(label) for label in clauses()}
    own = {key for key in REASONS if "-" in key[0]}
    assert {key for key in own if key[0] not in rows or rows[key[0]][key[1]]} == set()
    used = {(label[:2], column) for label, found in rows.items() for column in COLUMNS if not found[column]}
    assert {key for key in set(REASONS) - own if key not in used} <= {
        (prefix, "code") for prefix in ("JG", "PP", "VF")
    }


def test_live_tests_exist() -> None:
    assert LIVE.keys() <= clauses().keys()
    for name in {name for names in LIVE.values() for name in names}:
        file, function = name.split("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name


def test_properties_and_cases_count_by_what_they_notice() -> None:
    assert "M01" in noticed()["T26"]
    assert noticed()["T5"].isdisjoint({"M69", "M01"})  # permuted slots show nothing
    assert "T26" in properties_of("PX-4")
    assert properties_of("MK-2") == []  # it has no mutant
    assert properties_of("MK-5") == ["T50"]
    assert {"T38", "T50"} <= set(properties_of("MK-4"))
    assert {"T26", "T35"} <= set(properties_of("PX-8"))
    assert len(cases_of("PX-3")) > 50
    assert cases_of("MK-2") == []
    assert set().union(*noticed().values()) <= MUTANTS.keys()


def test_witnesses_are_among_what_is_run() -> None:
    runs = [run for row in PROPERTIES for run in row.holds]
    pairs = {(run.name, name, method) for run in runs for name in run.on for method in run.methods or ("",)}
    assert {(check, *pair) for check, given in WITNESSES.items() for pair in given} <= pairs
    assert [number for number, mutants in noticed().items() if not mutants] == ["T6", "T10", "T30", "T31"]
