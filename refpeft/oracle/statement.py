"""What the authors of a port may publish about it: what conforms, to what, how that was found, and what it does not say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from refpeft.errors import RefpeftError
from refpeft.oracle.changes import key_of
from refpeft.oracle.judge import CaseResult, Results
from refpeft.oracle.protocol import Implementation
from refpeft.oracle.questions import LEVELS
from refpeft.oracle.results import decode_document, read_whole
from refpeft.oracle.vectors import VectorError, golden_directory

FORMAT = 1
OTHERWISE = "no statement of refpeft. Give a file that `refpeft check --statement FILE.json` wrote."
SHOWN = 5
"""Cases that are named in one line."""


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of a level conforms in a number format."""

    level: str
    profile: str
    conforms: int
    decided: int
    skipped: int


class Failing(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A case that fails."""

    case: str
    """As `case (profile)`."""
    verdict: str
    expected: str = ""
    """Why it was expected to."""


class Statement(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The statement."""

    format: int
    refpeft: str
    dialect: str
    golden: str
    """SHA-256 of golden/manifest.json, which has the hash of every file."""
    date: str
    implementation: Implementation
    verdict: Literal["CONFORMS", "NONCONFORMING"]
    float64_exact: bool
    profiles: list[str]
    levels: list[Level]
    not_asked: int
    """Golden cases beyond what the port says it can do."""
    blind_spots: list[str]
    """Known mistakes that none of the cases asked could have shown."""
    failing: list[Failing]
    command: list[str]


def statement_of(results: Results, date: str) -> Statement:
    """What may be said of a run that ended on a day.

    Raises:
        RefpeftError: nothing: it was partial, decided nothing, or was not about HF peft.
    """
    summary = results.summary
    if results.expected_from != "HF peft":
        raise RefpeftError(
            "No statement: the run was on your own model, which HF peft has not answered for (JG-11)."
        )
    if summary.partial:
        raise RefpeftError(f"No statement: the run is partial ({summary.partial_because}). Ask everything.")
    if summary.verdict == "INCONCLUSIVE":
        raise RefpeftError("No statement: nothing was decided.")
    failing = [c for c in results.cases if c.verdict not in ("CONFORMS", "SKIPPED")]
    return Statement(
        FORMAT,
        results.refpeft,
        results.dialect,
        golden_hash(),
        date,
        results.implementation,
        summary.verdict,
        summary.float64_exact,
        list(results.profiles),
        list(_levels(results)),
        summary.not_asked,
        list(results.blind_spots),
        [Failing(key_of(c), c.verdict, c.expected.reason if c.expected else "") for c in failing],
        list(results.command),
    )


def golden_hash(golden: Path | None = None) -> str:
    """What tells the golden vectors at hand from all others."""
    path = (golden or golden_directory()) / "manifest.json"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise VectorError(f"Can't read '{path}': {error.strerror}. Reinstall refpeft.") from error


def _levels(results: Results) -> Iterator[Level]:
    for level in LEVELS:
        for profile in results.profiles:
            cases = [c for c in results.cases if (c.level, c.profile) == (level, profile)]
            if cases:
                yield _level(level, profile, cases)


def _level(level: str, profile: str, cases: list[CaseResult]) -> Level:
    skipped = sum(case.verdict == "SKIPPED" for case in cases)
    good = sum(case.verdict == "CONFORMS" for case in cases)
    return Level(level, profile, good, len(cases) - skipped, skipped)


def encode_statement(statement: Statement) -> bytes:
    """The document, indented."""
    return msgspec.json.format(msgspec.json.encode(statement), indent=1) + b"\n"


def read_statement(path: Path) -> Statement:
    """Read one that somebody may have changed.

    Raises:
        RefpeftError: it is none.
    """
    return decode_document(read_whole(path), str(path), Statement, OTHERWISE, FORMAT)


def broken(stated: Statement, results: Results) -> list[str]:
    """Why a statement does not hold of a run, in words; nothing if it does. More than was stated is no harm."""
    said = list(_about(stated, results))
    now = {(each.level, each.profile): each for each in _levels(results)}
    for level in stated.levels:
        found = now.get((level.level, level.profile), Level(level.level, level.profile, 0, 0, 0))
        if found.conforms < level.conforms:
            said.append(
                f"{level.level} in {level.profile}: {found.conforms} of {found.decided} conform, stated are "
                f"{level.conforms} of {level.decided}"
            )
    known = {each.case for each in stated.failing}
    cases = [
        key_of(c)
        for c in results.cases
        if c.verdict not in ("CONFORMS", "SKIPPED") and key_of(c) not in known
    ]
    if cases:
        more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
        said.append(f"failing, which is not stated: {', '.join(cases[:SHOWN])}{more}")
    return said


def _about(stated: Statement, results: Results) -> Iterator[str]:
    """What differs about the port and the run as a whole."""
    port, then = results.implementation, stated.implementation
    for what in ("name", "version", "language"):
        if getattr(port, what) != getattr(then, what):
            yield f"the port's {what} is {getattr(port, what)!r}, stated is {getattr(then, what)!r}"
    if results.summary.partial:
        yield f"the run is partial: {results.summary.partial_because}"
    missing = [profile for profile in stated.profiles if profile not in results.profiles]
    if missing:
        yield f"the port no longer declares {', '.join(missing)}"
    if stated.float64_exact and not results.summary.float64_exact:
        yield "it is not float64-exact, as is stated"
    if results.summary.not_asked > stated.not_asked:
        yield f"{results.summary.not_asked} cases are beyond what the port says it can do, stated are {stated.not_asked}"
