"""The results document: everything about a run, as a file from which each report can be made later."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from refpeft.errors import RefpeftError
from refpeft.oracle.judge import Results
from refpeft.oracle.reply import printable

FORMAT = 1
"""The version of the document; another one is refused."""
LARGEST = 2**28
"""Bytes of a document that is read; a full run with failures everywhere has about a tenth of that."""
WRITTEN_BY = "Give a file that `refpeft check --report FILE.json` or `--format json` wrote."


Document = TypeVar("Document")


class ResultsError(RefpeftError):
    """A file is no results document, or one of another version."""


class _Format(msgspec.Struct):
    format: int
    refpeft: str


def encode_results(results: Results) -> bytes:
    """The document, indented."""
    return msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n"


def read_results(path: Path) -> Results:
    """Read a document that somebody may have changed.

    Raises:
        ResultsError: the file cannot be read, is no JSON, no results document, or one of another format.
    """
    return decode_results(read_whole(path), str(path))


def read_whole(path: Path) -> bytes:
    """The bytes of a document.

    Raises:
        ResultsError: the file cannot be read, or is too large to be a document.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ResultsError(f"Can't read '{path}': {error.strerror}. {WRITTEN_BY}") from error
    if len(data) > LARGEST:
        raise ResultsError(f"'{path}' has more than {LARGEST >> 20} MiB, which no results have. {WRITTEN_BY}")
    return data


def decode_results(data: bytes, name: str) -> Results:
    """The results in a document; `name` is what messages call it.

    Raises:
        ResultsError: it is none.
    """
    return decode_document(data, name, Results, f"no results of refpeft. {WRITTEN_BY}", FORMAT)


def decode_document(data: bytes, name: str, kind: type[Document], otherwise: str, number: int) -> Document:
    """A document of this kind and format; `otherwise` says what else it is, and what to do.

    Raises:
        ResultsError: it is another.
    """
    what, _, advice = otherwise.partition(". ")
    try:
        document = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"'{name}' is not JSON: {error}. {advice}") from error
    try:
        head = msgspec.convert(document, _Format)
        if head.format == number:
            return msgspec.convert(_plain(document), kind)
    except (ValueError, RecursionError) as error:
        said = printable(str(error))[:300]
        raise ResultsError(f"'{name}' holds {what}: {said}. {advice}") from error
    raise ResultsError(
        f"'{name}' has format {head.format}, written by refpeft {printable(head.refpeft)[:50]}; this refpeft reads "
        f"format {number}. Read it with the refpeft that wrote it, or run the check again."
    )


def _plain(value: Any) -> Any:
    """With strings that steer no terminal, wherever they stand."""
    if isinstance(value, str):
        return value if value.isprintable() else printable(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    return value


def results_schema() -> bytes:
    """The JSON schema of the document: the contents of specs/results.schema.json."""
    (_,), components = msgspec.json.schema_components((Results,), ref_template="#/$defs/{name}")
    components["Results"]["properties"]["format"] |= {"const": FORMAT}
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"The results of a run of refpeft check, format {FORMAT}",
        "$ref": "#/$defs/Results",
        "$defs": components,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
