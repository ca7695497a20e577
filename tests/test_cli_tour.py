"""`refpeft tour` on the command line."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from refpeft import cli
from refpeft.oracle import clauses
from refpeft.oracle.report.tour import markdown
from refpeft.oracle.tour import Tour, tour


def test_piped_it_is_json() -> None:
    import msgspec

    result = CliRunner().invoke(cli.main, ["tour"])
    assert result.exit_code == 0
    assert msgspec.json.decode(result.stdout, type=Tour) == tour()
    assert list(json.loads(result.stdout)) == ["model", "virtual", "text", "followed", "stops"]


def test_pretty_and_markdown() -> None:
    pretty = CliRunner().invoke(cli.main, ["tour", "--format", "pretty"])
    assert pretty.exit_code == 0
    assert pretty.stdout.startswith("Followed: t1, token 3 of the text 1, 3, 0,")
    page = CliRunner().invoke(cli.main, ["tour", "--format", "markdown"])
    assert (page.exit_code, page.stdout) == (0, markdown(tour()))


def test_without_the_pages_there_is_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> None:
        raise LookupError("The pages of specs/ are not installed.")

    monkeypatch.setattr(clauses, "specs_directory", nowhere)
    result = CliRunner().invoke(cli.main, ["tour", "--format", "markdown"])
    assert result.exit_code == 2
    assert result.stderr.endswith("\nError: The pages of specs/ are not installed.\n")
