"""The badge: what badge services read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from oracle.report.made import case, hostile, results, wrong

from refpeft.oracle.report.badge import badge


@pytest.mark.parametrize(
    ("made", "label", "message", "colour"),
    [
        (results(case()), "refpeft peft-0.21.2", "conforms 1/1", "brightgreen"),
        (results(case(), wrong()), "refpeft peft-0.21.2", "nonconforming 1/2", "red"),
        (results(case("SKIPPED")), "refpeft peft-0.21.2", "inconclusive 0/1", "lightgrey"),
        (
            results(case(), summary={"float64_exact": True}),
            "refpeft peft-0.21.2",
            "conforms 1/1, float64-exact",
            "brightgreen",
        ),
        (
            results(case(), summary={"partial": True}),
            "refpeft peft-0.21.2",
            "conforms 1/1 (partial)",
            "yellowgreen",
        ),
        (
            results(case(), wrong(), summary={"verdict": "CONFORMS", "expected_failures": 1}),
            "refpeft peft-0.21.2",
            "conforms 1/2, 1 expected failure",
            "yellowgreen",
        ),
        (results(case(), expected_from="refpeft"), "refpeft own model", "conforms 1/1", "brightgreen"),
    ],
)
def test_the_verdict_in_a_badge(made: Any, label: str, message: str, colour: str) -> None:
    assert json.loads(badge(made)) == {
        "schemaVersion": 1,
        "label": label,
        "message": message,
        "color": colour,
    }


def test_a_port_says_nothing_in_it() -> None:
    assert b"script" not in badge(hostile())
