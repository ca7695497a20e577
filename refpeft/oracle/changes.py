"""Two runs compared: what fails newly, what passes newly, which errors have come nearer to their budgets; and a track of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from refpeft.errors import RefpeftError
from refpeft.files import write_atomically
from refpeft.oracle.compare import Difference
from refpeft.oracle.judge import CaseResult, Results
from refpeft.oracle.reply import printable

FACTOR = 2.0
"""By how much the share of a budget must have grown to be told."""
LEAST = 0.05
"""Shares below this one are rounding, and may grow as they like."""
TRACK_FORMAT = 1
LARGEST_TRACK = 2**28
"""Bytes of a track that is read."""


class Drift(msgspec.Struct, frozen=True):
    """A case whose errors, still within their budgets, have come nearer to them."""

    case: str
    tensor: str
    before: float
    """The largest share of a budget."""
    now: float


class Changes(msgspec.Struct, frozen=True):
    """What a run has that an earlier one had not; a case stands as `case (profile)`."""

    newly_failing: list[str]
    newly_passing: list[str]
    still_failing: list[str]
    drift: list[Drift]
    appeared: int
    """Asked now, not before."""
    gone: int
    """Asked before, not now."""
    partial: bool
    """One of the runs asked less than it could."""


def changes(old: Results, new: Results, factor: float = FACTOR) -> Changes:
    """The difference between two runs."""
    before, now = outcomes(old.cases), outcomes(new.cases)
    drift = []
    earlier = {key_of(case): case for case in old.cases}
    for case in new.cases:
        if case.verdict == "CONFORMS" and (then := earlier.get(key_of(case))) and then.verdict == "CONFORMS":
            found = _drift(then, case, factor)
            drift += [found] if found else []
    return _changes(before, now, drift, partial=old.summary.partial or new.summary.partial)


def key_of(case: CaseResult) -> str:
    """What a case in a profile is called."""
    return f"{case.case} ({case.profile})"


def outcomes(cases: Iterable[CaseResult]) -> dict[str, bool]:
    """Whether each case that was decided fails; what was skipped, or fails as expected, is not decided."""
    return {
        key_of(c): c.verdict != "CONFORMS" for c in cases if c.verdict != "SKIPPED" and c.expected is None
    }


def _changes(
    before: Mapping[str, bool], now: Mapping[str, bool], drift: list[Drift], *, partial: bool
) -> Changes:
    failing = [key for key, fails in now.items() if fails]
    return Changes(
        newly_failing=[key for key in failing if not before.get(key, False)],
        newly_passing=[key for key, fails in now.items() if not fails and before.get(key, False)],
        still_failing=[key for key in failing if before.get(key, False)],
        drift=sorted(drift, key=lambda each: each.before / each.now),
        appeared=len(now.keys() - before.keys()),
        gone=len(before.keys() - now.keys()),
        partial=partial,
    )


def _drift(then: CaseResult, case: CaseResult, factor: float) -> Drift | None:
    """The tensor whose share has grown most, if that is by more than the factor."""
    shares = {d.name: share(d) for d in then.differences}
    grown = [
        Drift(key_of(case), d.name, shares[d.name], share(d))
        for d in case.differences
        if d.name in shares and share(d) > factor * max(shares[d.name], LEAST)
    ]
    return max(grown, key=lambda each: each.now / max(each.before, LEAST), default=None)


def share(difference: Difference) -> float:
    """How much of its budget an error spends; nothing where there is no budget."""
    error = difference.error
    if isinstance(error, str) or difference.budget <= 0 or not math.isfinite(error):
        return 0.0
    return error / difference.budget


def in_words(found: Changes) -> str:
    """One sentence."""
    said = [
        f"{len(found.newly_failing)} newly failing",
        f"{len(found.newly_passing)} newly passing",
        f"{len(found.still_failing)} still failing",
    ]
    said += [f"{len(found.drift)} nearer to their budgets"] if found.drift else []
    said += [f"{found.appeared} not asked before"] if found.appeared else []
    said += [f"{found.gone} no longer asked"] if found.gone else []
    return ", ".join(said) + ("; a partial run is among the two" if found.partial else "")


# ---------------------------------------------------------------- a track of runs


class Tracked(msgspec.Struct, frozen=True):
    """One run, a line of a track."""

    format: int
    time: str
    refpeft: str
    dialect: str
    port: str
    verdict: str
    partial: bool
    counts: dict[str, int]
    decided: list[str]
    """What conforms."""
    failing: list[str]


def tracked(results: Results, time: str) -> Tracked:
    """A run as a line; `time` is when it ended."""
    found = outcomes(results.cases)
    port, summary = results.implementation, results.summary
    return Tracked(
        TRACK_FORMAT,
        time,
        results.refpeft,
        results.dialect,
        f"{port.name} {port.version}",
        summary.verdict,
        summary.partial,
        summary.counts,
        [key for key, fails in found.items() if not fails],
        [key for key, fails in found.items() if fails],
    )


def track(path: Path, line: Tracked) -> Changes | None:
    """Append a run to the file, and compare it with the one before; None if it is the first.

    Raises:
        RefpeftError: the file is no track.
        OSError: it cannot be written.
    """
    data = b"" if not path.exists() else path.read_bytes()
    last = last_of(data, str(path))
    write_atomically(
        path, data + (b"" if not data or data.endswith(b"\n") else b"\n") + msgspec.json.encode(line) + b"\n"
    )
    if last is None:
        return None
    before, now = (
        dict.fromkeys(run.decided, False) | dict.fromkeys(run.failing, True) for run in (last, line)
    )
    return _changes(before, now, [], partial=last.partial or line.partial)


def last_of(data: bytes, name: str) -> Tracked | None:
    """The last run of a track; None if there is none.

    Raises:
        RefpeftError: it is no track.
    """
    lines = data[-LARGEST_TRACK:].splitlines()
    if not lines:
        return None
    try:
        last = msgspec.json.decode(lines[-1], type=Tracked)
    except (ValueError, RecursionError) as error:
        raise RefpeftError(
            f"'{name}' is no track of runs: its last line does not read: {printable(str(error))[:200]}. Give a file that "
            "`refpeft check --track FILE` made, or the name of a new one."
        ) from error
    if last.format != TRACK_FORMAT:
        raise RefpeftError(
            f"'{name}' ends in a run of format {last.format}; this refpeft reads format {TRACK_FORMAT}. Give the name of a "
            "new file."
        )
    return last
