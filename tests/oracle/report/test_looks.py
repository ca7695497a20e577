"""How a diagnosis and blind spots read on a terminal: complete texts."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from refpeft.oracle.claims import Finding
from refpeft.oracle.judge import Results, Summary
from refpeft.oracle.protocol import Implementation
from refpeft.oracle.report.looks import blind_spots, counted, finding_text

CASES = ["peft-0.21.2/prefix_tuning/forward/a (float32)", "peft-0.21.2/prefix_tuning/forward/b (float32)"]
NAMED = Finding(
    "mutant", "M16 relu instead of tanh in the projection", CASES, 3, first="prefix.projection_activation", mutants=["M16"],
    clauses=["PX-2"], bits=23.6, seen="peft-rs (prefix_tuning.rs)",
    forced="asked for virtual tokens to each layer's keys and values with refpeft's own inputs, it is right: the cause lies before x",
)  # fmt: skip


def shown(*renderables: Any) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False, soft_wrap=True)
    for renderable in renderables:
        console.print(renderable, end="")
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_a_named_mistake() -> None:
    assert shown(finding_text(NAMED, 3)) == (
        "\n≈ 2 of 3 failing cases: the answer is HF peft's with the mistake M16 relu instead of tanh in the projection (PX-2)\n"
        "  first seen at prefix.projection_activation; everything before agrees to 23.6 bits\n"
        "  asked for virtual tokens to each layer's keys and values with refpeft's own inputs, it is right: the cause lies before x\n"
        "  seen before: peft-rs (prefix_tuning.rs)\n"
        "  a match suggests, it does not prove\n"
        "  → refpeft explain M16\n"
    )


@pytest.mark.parametrize(
    ("against", "said"),
    [
        (1, "  but 1 case that would show it conforms: it is not made everywhere\n"),
        (2, "  but 2 cases that would show it conform: it is not made everywhere\n"),
    ],
)
def test_conforming_cases_speak_against_it(against: int, said: str) -> None:
    bare = msgspec.structs.replace(NAMED, seen="", forced="", bits=None, against=against, looked_at=2)
    assert shown(finding_text(bare, 2)) == (
        "\n≈ 2 of 2 failing cases: the answer is HF peft's with the mistake M16 relu instead of tanh in the projection (PX-2)\n"
        "  first seen at prefix.projection_activation\n"
        f"{said}"
        "  a match suggests, it does not prove\n"
        "  → refpeft explain M16\n"
    )


def test_two_mistakes() -> None:
    both = Finding(
        "two mutants", "M01 all keys before all values and M34 the text counted from 0 beside a prefix", CASES[:1], 1,
        first="prefix.layers.0.value", mutants=["M01", "M34"], clauses=["PX-4", "PO-1"],
    )  # fmt: skip
    assert shown(finding_text(both, 1)) == (
        "\n≈ 1 of 1 failing case: the answer is HF peft's with the mistakes M01 all keys before all values and M34 the text counted "
        "from 0 beside a prefix (PX-4, PO-1)\n"
        "  first seen at prefix.layers.0.value\n"
        "  a match suggests, it does not prove\n"
        "  → refpeft explain M01\n"
        "  → refpeft explain M34\n"
    )


@pytest.mark.parametrize(("bits", "about"), [(13.4, "about 13.4 significant bits are right; "), (None, "")])
def test_arithmetic(bits: float | None, about: str) -> None:
    narrow = Finding(
        "arithmetic",
        "the arithmetic of bfloat16",
        CASES,
        2,
        first="logits",
        clauses=["JG-4"],
        bits=bits,
        switch="turn it off",
    )
    assert shown(finding_text(narrow, 2)) == (
        "\n≈ 2 of 2 failing cases agree with HF peft as far as the arithmetic of bfloat16 would\n"
        f"  {about}a mild mistake could look like that, but first switch it off and ask again:\n"
        "  turn it off\n"
        "  → refpeft explain JG-4\n"
    )


def test_what_was_not_looked_at_is_not_said_to_be_something_else() -> None:
    first, *_ = shown(finding_text(NAMED, 68)).strip().splitlines()
    assert first.startswith(
        "≈ 2 of 3 failing cases looked at (68 fail): the answer is HF peft's with the mistake M16 "
    )


def test_no_known_mistake() -> None:
    unknown = Finding("none", "no known mistake", CASES, 2, first="logits", bits=21.0)
    assert shown(finding_text(unknown, 2)) == (
        "\n≈ 2 of 2 failing cases look like no known mistake, nor like two at once\n"
        "  first seen at logits; everything before agrees to 21 bits\n"
    )


def results(spots: list[str], profiles: list[str], *, partial: bool = False) -> Results:
    summary = Summary("CONFORMS", False, 1, {"CONFORMS": 1}, 0, partial)
    return Results("1", "peft", Implementation("x", "y", "z"), profiles, summary, [], [], blind_spots=spots)


def test_blind_spots() -> None:
    assert shown(*blind_spots(results(["M101", "M102"], ["bfloat16"]))) == (
        "\nblind spots: 2 known mistakes that no case decides in bfloat16 (M101, M102)"
    )
    many = [f"M{i}" for i in range(10, 30)]
    assert shown(*blind_spots(results(many, ["tf32", "float16"]))) == (
        "\nblind spots: 20 known mistakes that no case decides in tf32 and float16 "
        "(M10, M11, M12, M13, M14, M15, M16, M17, M18, M19, M20, M21 …)"
    )
    assert blind_spots(results(["M101"], ["bfloat16"], partial=True)) == [], (
        "of a part of the cases nobody claims anything"
    )
    assert blind_spots(results([], ["float32"])) == []


def test_counting() -> None:
    assert [counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
