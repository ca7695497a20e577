"""Reading a small JSON file that somebody else wrote; writing a file or a directory so that no reader sees half of it."""

import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refpeft.errors import ConfigError, RefpeftError
from refpeft.rules import MAXIMUM_DEPTH, is_shallow

MAXIMUM_JSON_BYTES = 10_000_000
"""A configuration is a few kilobytes; a larger file is something else, and is not parsed."""


def read_json_object(path: Path, what: str, *, unique: bool = False) -> dict[str, Any]:
    """Read the JSON object in the file at `path`; `what` says in messages what it holds ("the adapter's …").

    Of a key that stands twice the last value counts, as with Python's `json`, unless keys have to be `unique`.

    Raises:
        ConfigError: the file is missing, unreadable, larger than 10 MB, not UTF-8, not JSON (with line and
            column), holds a number that JSON does not have (NaN, Infinity, 1e999), is nested more than 100
            deep, has a key twice that must not, or its outermost value is not an object.
    """
    text = _read_text(path, what)
    pairs = _unique if unique else None
    try:
        value = json.loads(
            text, parse_constant=refuse_constant, parse_float=_finite_float, object_pairs_hook=pairs
        )
        if not is_shallow(value):
            raise RecursionError(f"it is nested more than {MAXIMUM_DEPTH} deep")  # noqa: TRY301
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"'{path}' is not valid JSON: {error.msg}, line {error.lineno}, column {error.colno}. "
            f"Correct {what} there, or write it anew."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' cannot be used: {error}. Correct {what} there.") from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"'{path}' must hold a JSON object ({{…}}) with {what}, not a {type(value).__name__}."
        )
    return value


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to the file at `path`: whoever opens it finds the old contents or the new, never a part.

    The bytes go to a temporary name in the same directory, which then replaces `path` in one operation of the
    file system. If anything fails, `path` is as it was and the temporary file is gone.

    Raises:
        OSError: the directory is missing or cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A new directory at `target`, whole or not at all: what the block writes into the path that it gets.

    That path has a temporary name beside `target`; after the block it takes `target`'s name. A directory that exists
    and is empty (the working directory, say) is filled instead: it is written below it, and moved up one by one. If
    anything fails, `target` is as it was.

    Raises:
        RefpeftError: `target` exists and is not an empty directory.
        OSError: it cannot be written.
    """
    there = os.path.lexists(target)
    if there and not (target.is_dir() and next(target.iterdir(), None) is None):
        raise RefpeftError(
            f"'{target}' exists and is not an empty directory; nothing was written. Give the name of a new directory, "
            "or remove this one first."
        )
    place = target if there else target.absolute().parent
    if not place.exists():
        place.mkdir(parents=True)
    building = place / f".building-{secrets.token_hex(8)}"
    moved: list[Path] = []
    try:
        building.mkdir()
        yield building
        if not there:
            building.rename(target)
            return
        for path in sorted(building.iterdir()):
            moved.append(target / path.name)
            path.rename(target / path.name)
        building.rmdir()
    except BaseException:
        for path in (building, *moved):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def _read_text(path: Path, what: str) -> str:
    if not path.is_file():
        reason = "that directory has no such file" if path.parent.is_dir() else "there is no such directory"
        raise ConfigError(
            f"Can't find '{path.name}' at '{path.parent}': {reason}. Give the directory that holds {what}."
        )
    try:
        with path.open("rb") as file:
            data = file.read(MAXIMUM_JSON_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"Can't read '{path}': {error.strerror}.") from error
    if len(data) > MAXIMUM_JSON_BYTES:
        raise ConfigError(f"'{path}' is larger than 10 MB, which {what} never is. Is it another file?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"'{path}' is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}. Save {what} as UTF-8."
        ) from error


def refuse_constant(name: str) -> float:
    """Python reads NaN and Infinity as numbers; JSON has none of them.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"it has the key {key[:100]!a} twice")
    return found


def _finite_float(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise ValueError(f"{text} is too large a number")
    return value
