"""The clauses of specs/ are found, wrapped to a screen, and what each has is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from refpeft.oracle import clauses as module
from refpeft.oracle.clauses import (
    WIDTH,
    Traced,
    clause_title,
    clauses,
    fitted,
    hanging,
    specs_directory,
    traceability,
)


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pages of specs that a test may change."""
    (tmp_path / "protocol.md").write_text(
        "# Page\n\n### TY-1 One\n\n    a = b\n\ntext\n\n## Section\n\nmore\n\n### TY-2 Two\n\nlast\n"
    )
    (tmp_path / "b.md").write_text("### TY-10 Ten: `x`\n\n#### inside\n\n### not a clause\n")
    monkeypatch.setattr(module, "specs_directory", lambda: tmp_path)
    traceability.cache_clear()
    yield tmp_path
    traceability.cache_clear()


def test_clauses_end_at_the_next_heading(pages: Path) -> None:
    assert clauses() == {
        "TY-10": "TY-10 Ten: `x`\n\n#### inside\n\n### not a clause\n\n(specs/b.md)",
        "TY-1": "TY-1 One\n\n    a = b\n\ntext\n\n(specs/protocol.md)",
        "TY-2": "TY-2 Two\n\nlast\n\n(specs/protocol.md)",
    }
    (pages / "c.md").write_text("### TY-2 Again\n")
    with pytest.raises(LookupError) as caught:
        clauses()
    assert caught.value.args == ("The clause TY-2 stands twice in specs/.",)


NOT_INSTALLED = "The pages of specs/ are not installed. Reinstall refpeft, or run from a complete checkout."


def test_pages_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "refpeft/oracle/clauses.py"))
    with pytest.raises(LookupError) as caught:
        specs_directory()
    assert caught.value.args == (NOT_INSTALLED,)
    for place in (tmp_path / "specs", tmp_path / "refpeft/specs"):
        place.mkdir(parents=True)
        (place / "protocol.md").touch()
        assert specs_directory() == place, "those inside the package come first"


def test_titles() -> None:
    assert clause_title("PX-4") == "PX-4 Which block is which"
    assert clause_title("TY-9") == "TY-9"


# ---------------------------------------------------------------- wrapping

LONG = "word " * 30
WRAPPED = f"{'word ' * 20}".rstrip() + "\n"


def test_paragraphs_and_items_are_wrapped() -> None:
    assert (
        fitted(f"{LONG.rstrip()}\n\nshort\nlines") == f"{WRAPPED}{'word ' * 10}".rstrip() + "\n\nshort\nlines"
    )
    item = "- " + "word " * 19 + "word\n  and more"
    assert fitted(f"before:\n{item}\n- next") == (
        f"before:\n- {'word ' * 19}".rstrip() + "\n  word and more\n- next"
    )
    inner = "    - " + "word " * 19 + "word\n      and more"
    assert fitted(f"- outer\n{inner}\n\nend") == (
        f"- outer\n    - {'word ' * 19}".rstrip() + "\n      word and more\n\nend"
    )


@pytest.mark.parametrize(
    "kept",
    [
        f"```python\n{LONG}\n\n    {LONG}\n```",
        f"a formula:\n\n    {LONG}\n    {LONG}\n\nend",
        f"a table:\n\n| {LONG} |\n|---|\n| {LONG} |\n\nend",
    ],
)
def test_code_formulas_and_tables_are_kept(kept: str) -> None:
    assert fitted(kept) == kept


def test_every_clause_is_wrapped_and_nothing_of_it_is_lost() -> None:
    for label, text in clauses().items():
        shown = fitted(text)
        assert shown.split() == text.split(), label
        fenced = False
        for line in shown.splitlines():
            fenced ^= line.startswith("```")
            assert fenced or line.startswith(("    ", "|")) or len(line) <= WIDTH, (label, line)


def test_what_hangs() -> None:
    assert hanging(f"a: {LONG}", "   ").splitlines() == [
        f"a: {'word ' * 19}".rstrip(),
        f"   {'word ' * 11}".rstrip(),
    ]
    assert hanging("x" * 120, "  ") == "x" * 120


# ---------------------------------------------------------------- what a clause has


def test_the_table_is_read(pages: Path) -> None:
    (pages / "traceability.json").write_text(
        '{"clauses": {"TY-1": {"code": ["a.b"], "golden cases": ["c/d"], "properties": ["T1"], "live tests": ["x.py::test_y"],'
        ' "known mistakes": ["M01"], "why empty": {}}, "TY-2": {"code": [], "golden cases": [], "properties": [],'
        ' "live tests": [], "known mistakes": [], "why empty": {"code": "nobody"}}},'
        ' "properties": {"T1": "title: statement"}, "noticed": {"T1": ["M01"]}}'
    )
    table = traceability()
    assert table.clauses == {
        "TY-1": Traced(["a.b"], ["c/d"], ["T1"], ["x.py::test_y"], ["M01"], {}),
        "TY-2": Traced([], [], [], [], [], {"code": "nobody"}),
    }
    assert [table.clauses["TY-1"].column(name) for name in module.COLUMNS] == [
        ["a.b"],
        ["c/d"],
        ["T1"],
        ["x.py::test_y"],
        ["M01"],
    ]
    assert (table.properties, table.noticed) == ({"T1": "title: statement"}, {"T1": ["M01"]})


@pytest.mark.parametrize("contents", [None, "{", '{"clauses": 3}'])
def test_a_table_that_is_not_there_or_damaged(pages: Path, contents: str | None) -> None:
    if contents is not None:
        (pages / "traceability.json").write_text(contents)
    with pytest.raises(LookupError) as caught:
        traceability()
    assert caught.value.args == (NOT_INSTALLED,)


def test_every_clause_of_the_pages_has_a_row() -> None:
    assert traceability().clauses.keys() == clauses().keys()
