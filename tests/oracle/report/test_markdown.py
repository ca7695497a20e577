"""The summary for a CI job."""

from __future__ import annotations

import re

import msgspec
from oracle.report.made import HOSTILE, case, hostile, results, wrong

from refpeft.oracle.claims import Finding, Known
from refpeft.oracle.report.markdown import BLOCKS, code, fenced, markdown


def test_a_run_that_conforms() -> None:
    assert markdown(results(case())) == (
        "## ✅ refpeft: CONFORMS\n\n"
        "`my-port 0.3.1` (`rust`) against HF peft, `peft-0.21.2`, refpeft `1.2.3`.\n\n"
        "```text\nCONFORMS  every answer agrees with HF peft: 1 of 1 case conforms\n```\n\n"
        "| level | `float32` |\n|---|---:|\n| model | 1/1 |\n\n"
        "Not asked: config, components, gradients, training, generation, checkpoint.\n\n"
        "### To repeat it\n\n```text\nrefpeft check -- './my port'\n```\n"
    )


def test_a_run_that_does_not() -> None:
    finding = Finding(
        "mutant",
        "M01 all keys first",
        ["x"],
        1,
        first="prefix.layers.0.key",
        mutants=["M01"],
        clauses=["PX-4"],
    )
    made = markdown(results(case(), wrong(), diagnosis=[finding], blind_spots=["M102"]))
    assert made.startswith("## ❌ refpeft: NONCONFORMING\n")
    assert "| components | ❌ 0/1 |\n| model | 1/1 |\n" in made
    for text in (
        "✗ prefix_tuning/prefix_encode/odd-layers  float32  NONCONFORMING\n  first difference  prefix.layers.0.key",
        "    worst at row 0, head 1: -2.5, HF 0.5\n",
        "the answer is HF peft's with the mistake M01 all keys first (PX-4)",
        "blind spots: 1 known mistake that no case decides in float32 (M102)",
    ):
        assert text in made


def test_a_partial_run_says_so() -> None:
    made = markdown(results(case(), summary={"partial": True, "partial_because": "interrupted"}))
    assert made.startswith("## ✅ refpeft: CONFORMS (partial)\n")
    assert "; partial: interrupted\n" in made


def test_expected_failures_are_told_apart() -> None:
    known = msgspec.structs.replace(wrong(), expected=Known("not yet"))
    made = markdown(results(case(), known, summary={"verdict": "CONFORMS", "expected_failures": 1}))
    assert made.startswith("## ✅ refpeft: CONFORMS but for expected failures\n")
    assert "### Expected failures\n\n```text\nexpected to fail, 1: not yet\n```\n" in made
    assert "### Failures" not in made


def test_many_kinds_of_failure_are_counted() -> None:
    names = [
        case("ERRORED", f"common/mask/a{i}", message="abcdefghijklmnopqrs"[: i + 1])
        for i in range(BLOCKS + 2)
    ]
    assert "… and 2 more kinds of failure; the JSON report has them all.\n" in markdown(results(*names))


def outside(text: str) -> str:
    """What Markdown would read as more than code."""
    text = re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)


def test_a_port_s_words_are_code() -> None:
    made = markdown(hostile())
    assert made.count("alert(1)") > 5
    assert "alert" not in outside(made)
    assert "alert" in outside(made + HOSTILE), "the test would see it"


def test_fences_are_longer_than_what_they_hold() -> None:
    assert code("a|b") == "`a\\|b`"
    assert code("a ``b`` c") == "``` a ``b`` c ```"
    assert code("a\n\nb") == "`a b`"
    assert fenced("x\n````\ny") == "`````text\nx\n````\ny\n`````"
