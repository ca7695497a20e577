"""Failures that somebody expects."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle.report.made import case, results, wrong

from refpeft.errors import RefpeftError
from refpeft.oracle.claims import Known
from refpeft.oracle.expected_failures import EXAMPLE, Entry, Expected, fits, read_expected, with_expected

IDS = ["peft-0.21.2/prefix_tuning/prefix_encode/odd-layers", "peft-0.21.2/common/mask/full"]
ODD = "peft-0.21.2/prefix_tuning/prefix_encode/odd-layers (float32)"


def expecting(pattern: str = "*/odd-layers", *, strict: bool = False, profile: object = None) -> Expected:
    return Expected([Entry(pattern, "not split yet", profile, "https://x.org/1")], strict)  # type: ignore[arg-type]


def test_an_expected_failure_does_not_fail_the_run() -> None:
    found = with_expected(results(case(), wrong(), summary={"float64_exact": True}), expecting())
    assert found.summary.verdict == "CONFORMS"
    assert (found.summary.expected_failures, found.summary.unexpected_passes) == (1, [])
    assert not found.summary.float64_exact
    assert found.cases[1].verdict == "NONCONFORMING"
    assert found.cases[1].expected == Known("not split yet", "https://x.org/1")
    assert found.summary.counts == {"CONFORMS": 1, "NONCONFORMING": 1}


def test_any_other_failure_does() -> None:
    found = with_expected(results(case(), wrong(), case("CRASHED", "common/mask/full")), expecting())
    assert (found.summary.verdict, found.summary.expected_failures) == ("NONCONFORMING", 1)
    assert with_expected(results(wrong()), expecting()).summary.verdict == "INCONCLUSIVE"


def test_a_profile_is_its_own() -> None:
    found = with_expected(results(case(), wrong(), wrong(profile="float64")), expecting(profile="float64"))
    assert [c.expected is not None for c in found.cases] == [False, False, True]
    assert found.summary.verdict == "NONCONFORMING"


@pytest.mark.parametrize(("strict", "verdict"), [(False, "CONFORMS"), (True, "NONCONFORMING")])
def test_an_unexpected_pass(strict: bool, verdict: str) -> None:
    passing = case(name="prefix_tuning/prefix_encode/odd-layers")
    found = with_expected(results(passing), expecting(strict=strict))
    assert (found.summary.verdict, found.summary.unexpected_passes) == (verdict, [ODD])
    skipped = with_expected(
        results(case(), case("SKIPPED", "prefix_tuning/prefix_encode/odd-layers")), expecting(strict=strict)
    )
    assert (skipped.summary.verdict, skipped.summary.unexpected_passes) == ("CONFORMS", [])


def test_globs_are_over_whole_ids() -> None:
    for pattern in (IDS[0], "prefix_tuning/prefix_encode/odd-layers", "*/odd-layers", "prefix_tuning/*"):
        assert fits(IDS[0], pattern)
    for pattern in ("odd-layers", "prefix_tuning/prefix_encode/odd", "prefix_encode/*", ""):
        assert not fits(IDS[0], pattern)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    path.write_text(
        'strict = true\n[[expected]]\ncase = "*/odd-layers"\nprofile = "float64"\nreason = "not split yet"\nurl = "u"\n'
    )
    assert read_expected(path, IDS) == Expected(
        [Entry("*/odd-layers", "not split yet", "float64", "u")], strict=True
    )
    path.write_text("")
    assert read_expected(path, IDS) == Expected()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "is no list of expected failures: Expected '=' after a key in a key/value pair (at end of document). "),
        ("strikt = true", "is no list of expected failures: Object contains unknown field `strikt`. "),
        ("[[expected]]\ncase = 'x'", "is no list of expected failures: Object missing required field `reason` - at `$.expected[0]`. "),
        ("[[expected]]\ncase = 'x'\nreason = 'y'\nprofile = 'float8'", "is no list of expected failures: Invalid enum value 'float8' - at `$.expected[0].profile`. "),
        ("[[expected]]\ncase = 'gone'\nreason = 'y'", ", entry 1: no case matches 'gone'; `refpeft list` shows all. Correct it, or remove the entry."),
        ("[[expected]]\ncase = '*'\nreason = ' '", ", entry 1 (*): the reason is empty. Say why it fails."),
    ],
)  # fmt: skip
def test_anything_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "known.toml"
    path.write_text(text)
    with pytest.raises(RefpeftError) as caught:
        read_expected(path, IDS)
    whole = f"'{path}'{'' if said.startswith(',') else ' '}{said}"
    assert str(caught.value) == whole + (f"It holds {EXAMPLE}." if said.endswith(". ") else "")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RefpeftError, match="Can't read '.*': No such file or directory") as caught:  # noqa: RUF043
        read_expected(tmp_path / "gone", IDS)
    assert str(caught.value).endswith("directory.")
    (tmp_path / "b").write_bytes(b"\xff")
    with pytest.raises(RefpeftError, match="is no list of expected failures"):
        read_expected(tmp_path / "b", None)
