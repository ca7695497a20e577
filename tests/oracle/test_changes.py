"""What has changed between two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from oracle.report.made import case, results, wrong

from refpeft.errors import RefpeftError
from refpeft.oracle.changes import Changes, Drift, changes, in_words, last_of, share, track, tracked
from refpeft.oracle.claims import Known
from refpeft.oracle.compare import Difference
from refpeft.oracle.judge import CaseResult
from refpeft.oracle.report.changes import SHOWN, render

NOTHING = Changes([], [], [], [], 0, 0, partial=False)


def named(end: str, verdict: Any = "CONFORMS", **more: Any) -> CaseResult:
    return case(verdict, f"common/mask/{end}", **more)


def key(end: str, profile: str = "float32") -> str:
    return f"peft-0.21.2/common/mask/{end} ({profile})"


def spending(*errors: float | str) -> list[Difference]:
    return [
        Difference(f"t{i}", ok=True, error=e, budget=2.0, measure="normwise") for i, e in enumerate(errors)
    ]


def test_what_fails_and_passes_newly() -> None:
    old = results(
        named("a"),
        named("b", "CRASHED"),
        named("c", "ERRORED"),
        named("d", "SKIPPED"),
        named("e"),
        named("g"),
    )
    new = results(
        named("a", "TIMEOUT"), named("b"), named("c", "NONCONFORMING"), named("d", "ERRORED"), named("e", "SKIPPED"),
        named("f", "CRASHED"), named("g", profile="float64"),
    )  # fmt: skip
    assert changes(old, new) == Changes(
        newly_failing=[key("a"), key("d"), key("f")],
        newly_passing=[key("b")],
        still_failing=[key("c")],
        drift=[],
        appeared=3,
        gone=2,
        partial=False,
    )
    assert changes(old, old) == msgspec.structs.replace(NOTHING, still_failing=[key("b"), key("c")])


def test_an_expected_failure_is_not_decided() -> None:
    expected = named("a", "CRASHED", expected=Known("why"))
    assert changes(results(named("a")), results(expected)) == msgspec.structs.replace(NOTHING, gone=1)


def test_budgets_are_drifted_towards() -> None:
    old = results(named("a", differences=spending(0.2, 0.2)), named("b", differences=spending(0.4)))
    new = results(named("a", differences=spending(0.5, 0.9)), named("b", differences=spending(0.7)))
    assert changes(old, new).drift == [Drift(key("a"), "t1", 0.1, 0.45)]
    assert [d.case for d in changes(old, new, factor=1.5).drift] == [key("a"), key("b")]
    assert changes(new, old).drift == []


def test_rounding_is_no_drift() -> None:
    old, new = (results(named("a", differences=spending(error))) for error in (1e-9, 0.19))
    assert changes(old, new).drift == []
    assert (
        share(Difference("a", ok=False, error="what", budget=1.0)) == share(Difference("a", ok=True)) == 0.0
    )


def test_a_partial_run_says_so() -> None:
    partial = results(named("a"), summary={"partial": True})
    found = changes(results(named("a")), partial)
    assert found.partial
    assert (
        in_words(found) == "0 newly failing, 0 newly passing, 0 still failing; a partial run is among the two"
    )


def test_on_a_terminal() -> None:
    drift = [Drift(key("z"), "logits", 0.1, 0.45)]
    failing = [key(str(i)) for i in range(SHOWN + 1)]
    found = Changes(failing, [key("p")], [], drift, 1, 2, partial=False)
    text = render(found).plain
    assert text.startswith(f"newly failing (41)\n  {key('0')}\n")
    assert text.endswith(
        f"  {key('39')}\n  … and 1 more; --format json has them all\n\n"
        f"newly passing (1)\n  {key('p')}\n\n"
        f"nearer to their budgets (1)\n  {key('z')}: logits spends 0.45 of its budget, before 0.1\n\n"
        "41 newly failing, 1 newly passing, 0 still failing, 1 nearer to their budgets, 1 not asked before, 2 no longer asked"
    )


# ---------------------------------------------------------------- tracks


def test_a_track_grows_by_a_line_and_compares_with_the_last(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    runs = [
        results(named("a"), named("b", "CRASHED")),
        results(named("a", "CRASHED"), named("b")),
        results(named("a")),
    ]
    found = [track(path, tracked(each, f"2026-01-0{day}")) for day, each in enumerate(runs, 1)]
    assert found[0] is None
    assert found[1] == msgspec.structs.replace(NOTHING, newly_failing=[key("a")], newly_passing=[key("b")])
    assert found[2] == msgspec.structs.replace(NOTHING, newly_passing=[key("a")], gone=1)
    lines = path.read_bytes().splitlines()
    assert [msgspec.json.decode(line)["time"] for line in lines] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert msgspec.json.decode(lines[0])["failing"] == [key("b")]


def test_a_line_that_was_cut_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"format": 1, "time"')
    with pytest.raises(RefpeftError, match=r"t\.jsonl' is no track of runs: its last line does not read: "):
        track(path, tracked(results(wrong()), "now"))
    assert path.read_bytes() == b'{"format": 1, "time"'


def test_another_format_is_refused() -> None:
    line = msgspec.json.encode({**msgspec.to_builtins(tracked(results(), "now")), "format": 2})
    with pytest.raises(RefpeftError) as caught:
        last_of(line, "t")
    assert str(caught.value) == (
        "'t' ends in a run of format 2; this refpeft reads format 1. Give the name of a new file."
    )
