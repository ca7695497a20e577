"""The results document: what is written is read again, anything else is refused, and its schema is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from oracle.report.made import case, hostile, results, wrong
from support import need

from refpeft.oracle.results import ResultsError, decode_results, encode_results, read_results, results_schema

SCHEMA = Path(__file__).resolve().parents[2] / "specs/results.schema.json"
BY = "Give a file that `refpeft check --report FILE.json` or `--format json` wrote."


def document(**changes: Any) -> bytes:
    return json.dumps({**json.loads(encode_results(results(case(), wrong()))), **changes}).encode()


@pytest.mark.parametrize("made", [results(case(), wrong()), hostile(), results()])
def test_what_is_written_is_read_again(made: Any, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(encode_results(made))
    assert read_results(tmp_path / "r.json") == made


def test_the_published_schema_is_current() -> None:
    assert SCHEMA.read_bytes() == results_schema()


def test_documents_satisfy_the_schema() -> None:
    need("jsonschema")
    import jsonschema

    validator = jsonschema.Draft202012Validator(json.loads(results_schema()))
    jsonschema.Draft202012Validator.check_schema(validator.schema)
    for made in (results(case(), wrong()), hostile()):
        validator.validate(json.loads(encode_results(made)))
    assert not validator.is_valid(json.loads(document(format=2)))
    assert not validator.is_valid(json.loads(document(cases=[{}])))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", f"'r.json' is not JSON: Input data was truncated. {BY}"),
        (b"{", f"'r.json' is not JSON: Input data was truncated. {BY}"),
        (b"[]", f"'r.json' holds no results of refpeft: Expected `object`, got `array`. {BY}"),
        (b"{}", f"'r.json' holds no results of refpeft: Object missing required field `format`. {BY}"),
        (b'{"format": 1}', f"'r.json' holds no results of refpeft: Object missing required field `refpeft`. {BY}"),
        (
            document(format=7, refpeft="9\x1b[1m"),
            "'r.json' has format 7, written by refpeft 9?[1m; this refpeft reads format 1. Read it with the refpeft that wrote it, or run the check again.",
        ),
        (
            document(extra=1),
            f"'r.json' holds no results of refpeft: Object contains unknown field `extra`. {BY}",
        ),
        (
            document(cases=[{"case": 3}]),
            f"'r.json' holds no results of refpeft: Expected `str`, got `int` - at `$.cases[0].case`. {BY}",
        ),
    ],
)  # fmt: skip
def test_anything_else_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ResultsError) as caught:
        decode_results(data, "r.json")
    assert str(caught.value) == said


def test_hostile_bytes_end_in_an_error(tmp_path: Path) -> None:
    for data in (b"[" * 100_000, b"\xff\xfe", b'{"format": 1e999}', b'{"format": NaN}'):
        with pytest.raises(ResultsError, match="'r' "):
            decode_results(data, "r")
    with pytest.raises(ResultsError, match=r"Can't read '.*gone': No such file or directory"):
        read_results(tmp_path / "gone")
    with pytest.raises(ResultsError, match="Can't read"):
        read_results(tmp_path)


def test_nothing_read_steers_a_terminal() -> None:
    made = json.loads(document())
    made["cases"][0]["message"] = "\x1b[2J\x07"
    assert decode_results(json.dumps(made).encode(), "r").cases[0].message == "?[2J?"
