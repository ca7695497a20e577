"""Failures that somebody expects: a TOML file that says which, and why; they do not fail a run.

strict = true                # a case that was expected to fail and conforms fails the run

[[expected]]
case = "peft-0.21.2/prefix_tuning/generate/*"     # a glob over ids; the dialect may be left out
profile = "float64"                               # optional
reason = "no beams yet"
url = "https://…"                                 # optional
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from refpeft.errors import RefpeftError
from refpeft.files import MAXIMUM_JSON_BYTES
from refpeft.oracle.changes import key_of
from refpeft.oracle.claims import Known
from refpeft.oracle.judge import CaseResult, Results
from refpeft.oracle.protocol import ProfileName
from refpeft.oracle.reply import printable

EXAMPLE = (
    '[[expected]] with case = "…" and reason = "…"; profile, url and a strict = true above them may be added'
)


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cases that are expected to fail."""

    case: str
    reason: str
    profile: ProfileName | None = None
    url: str = ""

    def fits(self, case: CaseResult) -> bool:
        """Whether it is about this case, in this profile."""
        return fits(case.case, self.case) and self.profile in (None, case.profile)


def fits(case: str, pattern: str) -> bool:
    """Whether an id, or what follows its dialect, matches a glob. A mere part does not: it might be a part of others."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in (case, case.partition("/")[2]))


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    expected: list[Entry] = []
    strict: bool = False


def read_expected(path: Path, known: Sequence[str] | None) -> Expected:
    """The file, every entry of it about some of the `known` cases, where they are known.

    Raises:
        RefpeftError: it cannot be read, is no such file, or is about a case that does not exist.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAXIMUM_JSON_BYTES + 1)
        if len(data) > MAXIMUM_JSON_BYTES:
            raise RefpeftError(f"'{path}' is larger than 10 MB; is it another file?")
        found = msgspec.toml.decode(data, type=Expected)
    except OSError as error:
        raise RefpeftError(f"Can't read '{path}': {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        said = printable(str(error))[:300]
        raise RefpeftError(
            f"'{path}' is no list of expected failures: {said}. It holds {EXAMPLE}."
        ) from error
    for number, entry in enumerate(found.expected, 1):
        if known is not None and not any(fits(case, entry.case) for case in known):
            raise RefpeftError(
                f"'{path}', entry {number}: no case matches {entry.case!r}; `refpeft list` shows all. Correct it, or "
                "remove the entry."
            )
        if not entry.reason.strip():
            raise RefpeftError(
                f"'{path}', entry {number} ({entry.case}): the reason is empty. Say why it fails."
            )
    return found


def with_expected(results: Results, expected: Expected) -> Results:
    """The results with expected failures marked, and the verdict about the others (clause JG-7).

    A run with expected failures is not float64-exact. What conforms though it was expected to fail is named, and fails a
    strict run.
    """
    cases: list[CaseResult] = []
    passes: list[str] = []
    for case in results.cases:
        entry = next((each for each in expected.expected if each.fits(case)), None)
        if entry is not None and case.verdict not in ("CONFORMS", "SKIPPED"):
            case = msgspec.structs.replace(
                case, expected=Known(printable(entry.reason), printable(entry.url))
            )
        elif entry is not None and case.verdict == "CONFORMS":
            passes.append(key_of(case))
        cases.append(case)
    known = sum(case.expected is not None for case in cases)
    failed = any(c.verdict not in ("CONFORMS", "SKIPPED") and c.expected is None for c in cases)
    counts = Counter(case.verdict for case in cases)
    verdict: Any = "CONFORMS" if counts["CONFORMS"] else "INCONCLUSIVE"
    summary = msgspec.structs.replace(
        results.summary,
        verdict="NONCONFORMING" if failed or (passes and expected.strict) else verdict,
        float64_exact=results.summary.float64_exact and not known,
        expected_failures=known,
        unexpected_passes=passes,
        strict=expected.strict,
    )
    return msgspec.structs.replace(results, cases=cases, summary=summary)
