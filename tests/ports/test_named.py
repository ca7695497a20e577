"""Forty broken ports: each is found at the stage, and named as, that was written down before it was run (clause JG-13)."""

from __future__ import annotations

from pathlib import Path

import pytest
from ports.named import NEEDS, TABLES, Broken, command_of, find
from support import need

ALL = [(language, name) for language, table in TABLES.items() for name in table]
LIVE = ("torch", "jax")


def test_there_are_forty_and_ten_have_no_name() -> None:
    broken = [TABLES[language][name] for language, name in ALL]
    assert len(broken) >= 40
    assert sum(not b.mutant for b in broken) >= 10
    named = [b.mutant for b in broken if b.mutant]
    assert len(set(named)) == len(named), "each mistake once"


@pytest.mark.parametrize(
    ("language", "name"),
    [
        pytest.param(*row, marks=[pytest.mark.live] if row[0] in LIVE else [], id=f"{row[0]}: {row[1]}")
        for row in ALL
    ],
)
def test_it_is_found_and_named(language: str, name: str, tmp_path: Path) -> None:
    need(NEEDS[language])
    broken = TABLES[language][name]
    found = find(command_of(language, broken, tmp_path / "port"), broken.pattern, tmp_path / "work", 120.0)
    assert broken.stage in found.stages
    if broken.mutant:
        assert broken.mutant in found.names
        assert set(found.names) <= {broken.mutant, *broken.also}
        assert found.explained == found.cases, "it explains every failing case"
    else:
        assert found.names == ()
    assert found.is_right(broken)


def test_what_is_right() -> None:
    from dataclasses import replace

    from ports.named import Found

    named, unnamed = Broken((), "*", "logits", "M16", ("M70",)), Broken((), "*", "logits")
    found = Found(frozenset({"logits"}), ("M16",), 2, 2, 0.1)
    assert found.is_right(named)
    assert replace(found, names=("M16", "M70")).is_right(named)
    assert not replace(found, names=("M16", "M17")).is_right(named)
    assert not replace(found, names=("M70",)).is_right(named)
    assert not replace(found, stages=frozenset({"loss"})).is_right(named)
    assert not found.is_right(unnamed)
    assert replace(found, names=()).is_right(unnamed)
