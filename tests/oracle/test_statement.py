"""What may be published about a port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from oracle.report.made import HOSTILE, case, hostile, results, wrong
from oracle.report.test_markdown import outside

from refpeft.errors import RefpeftError
from refpeft.oracle.claims import Known
from refpeft.oracle.protocol import Implementation
from refpeft.oracle.report.statement import markdown
from refpeft.oracle.statement import (
    Failing,
    Level,
    Statement,
    broken,
    encode_statement,
    golden_hash,
    read_statement,
    statement_of,
)

ODD = "peft-0.21.2/prefix_tuning/prefix_encode/odd-layers (float32)"
MIXED = results(
    case(), case(name="prefix_tuning/forward/full"), case("SKIPPED", "prefix_tuning/forward/mean"),
    msgspec.structs.replace(wrong(), expected=Known("not split yet")),
    summary={"verdict": "CONFORMS", "not_asked": 3, "expected_failures": 1}, blind_spots=["M102"],
)  # fmt: skip


def test_what_is_stated() -> None:
    assert statement_of(MIXED, "2026-01-02") == Statement(
        format=1,
        refpeft="1.2.3",
        dialect="peft-0.21.2",
        golden=golden_hash(),
        date="2026-01-02",
        implementation=Implementation("my-port", "rust", "0.3.1"),
        verdict="CONFORMS",
        float64_exact=False,
        profiles=["float32"],
        levels=[Level("components", "float32", 0, 1, 0), Level("model", "float32", 2, 2, 1)],
        not_asked=3,
        blind_spots=["M102"],
        failing=[Failing(ODD, "NONCONFORMING", "not split yet")],
        command=["refpeft", "check", "--", "./my port"],
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            results(case(), summary={"partial": True, "partial_because": "interrupted"}),
            "No statement: the run is partial (interrupted). Ask everything.",
        ),
        (results(case("SKIPPED")), "No statement: nothing was decided."),
        (
            results(case(), expected_from="refpeft"),
            "No statement: the run was on your own model, which HF peft has not answered for (JG-11).",
        ),
    ],
)
def test_nothing_is_stated_of_less(made: Any, said: str) -> None:
    with pytest.raises(RefpeftError) as caught:
        statement_of(made, "2026-01-02")
    assert str(caught.value) == said


def test_it_is_read_again_strictly(tmp_path: Path) -> None:
    stated = statement_of(MIXED, "2026-01-02")
    (tmp_path / "s.json").write_bytes(encode_statement(stated))
    assert read_statement(tmp_path / "s.json") == stated
    for change in ({"levels": 3}, {"more": 1}, {"format": 2}):
        document = {**msgspec.to_builtins(stated), **change}
        (tmp_path / "s.json").write_bytes(msgspec.json.encode(document))
        with pytest.raises(
            RefpeftError, match=r"holds no statement of refpeft: |has format 2, written by refpeft 1\.2\.3"
        ):
            read_statement(tmp_path / "s.json")


# ---------------------------------------------------------------- whether it holds


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (MIXED, []),
        (results(case(), case(name="prefix_tuning/forward/full"), case(name="prefix_tuning/forward/mean")), []),
        (
            results(case(), case("CRASHED", "prefix_tuning/forward/full"), summary={"not_asked": 4}),
            [
                "4 cases are beyond what the port says it can do, stated are 3",
                "model in float32: 1 of 2 conform, stated are 2 of 2",
                "failing, which is not stated: peft-0.21.2/prefix_tuning/forward/full (float32)",
            ],
        ),
        (
            results(
                case(profile="float64"), profiles=["float64"], implementation=Implementation("a", "rust", "2"),
                summary={"partial": True, "partial_because": "interrupted"},
            ),
            [
                "the port's name is 'a', stated is 'my-port'",
                "the port's version is '2', stated is '0.3.1'",
                "the run is partial: interrupted",
                "the port no longer declares float32",
                "model in float32: 0 of 0 conform, stated are 2 of 2",
            ],
        ),
    ],
)  # fmt: skip
def test_whether_it_holds(now: Any, said: list[str]) -> None:
    assert broken(statement_of(MIXED, "2026-01-02"), now) == said


def test_float64_is_part_of_it() -> None:
    stated = statement_of(results(case(), summary={"float64_exact": True}), "2026-01-02")
    assert broken(stated, results(case())) == ["it is not float64-exact, as is stated"]


# ---------------------------------------------------------------- as Markdown


def test_as_markdown() -> None:
    assert markdown(statement_of(MIXED, "2026-01-02")) == (
        "`my-port 0.3.1` (`rust`) conforms, but for expected failures, to HF peft as recorded in `peft-0.21.2`. Judged on "
        "`2026-01-02` by refpeft `1.2.3`.\n\n"
        "| level | format | conforms | skipped |\n|---|---|---:|---:|\n"
        "| `components` | `float32` | 0/1 | 0 |\n| `model` | `float32` | 2/2 | 1 |\n\n"
        "3 golden cases not asked: beyond what the port says it can do.\n\n"
        f"1 case failing:\n\n- `{ODD}` `NONCONFORMING`: `not split yet`\n\n"
        "Known mistakes that no case could have shown in these formats:\n\n- `M102` ε of the norms a tenth\n\n"
        f"Golden vectors: manifest `sha256:{golden_hash()}`.\n\n"
        "To repeat it:\n\n```text\nrefpeft check -- './my port'\n```\n"
    )


def test_a_port_s_words_are_code() -> None:
    made = markdown(statement_of(hostile(), HOSTILE))
    assert "alert" in made
    assert "alert" not in outside(made)
