"""Results made up for the tests of reports."""

from __future__ import annotations

from typing import Any

from refpeft.oracle.claims import Finding
from refpeft.oracle.compare import Difference
from refpeft.oracle.excerpts import Excerpt
from refpeft.oracle.judge import CaseResult, Results, Summary
from refpeft.oracle.protocol import Implementation

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> ``` | \"' & <!-- {{ 7*7 }} ]]>"
"""What a port might say to whoever reads its report in a browser, an editor, or a CI system."""
BEFORE = Difference(
    "prefix.flat", ok=True, error=1e-9, budget=5e-7, measure="normwise", bits=29.9, clause="PX-2"
)
OVER = Difference(
    "prefix.layers.0.key", ok=False, error=1.3, budget=5e-7, measure="normwise",
    derivation="5e-07 = 8 · max(floor 7e-08, u 6e-08); the floor decides", bits=-0.4, where="row 0, head 1",
    values="-2.5, HF 0.5", clause="PX-4", source="peft peft_model.py PeftModel.get_prompt",
)  # fmt: skip
EXCERPT = Excerpt(
    "prefix.layers.0.key", ["virtual", "head_dim"], "row 0, head 1", [2, 3], [0, 0], [1, 2],
    [[0.0, 1.0, -2.0], [3.0, 4.0, 0.5]], [[0.0, 1.0, -2.0], [3.0, "nan", -2.5]], [[0.0, 0.0, 0.0], [0.0, "nan", -3.0]],
)  # fmt: skip
MAP = Excerpt(
    "decoder.layers.0.attention.weights", ["query", "key"], "row 0, head 0", [2, 3], [0, 0], [0, 1],
    [[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]], [[0.25, 0.75, 0.0], [0.25, 0.25, 0.5]], [[-0.25, 0.25, 0.0], [0.0, 0.0, 0.0]],
    virtual=1,
)  # fmt: skip


def case(
    verdict: Any = "CONFORMS", name: str = "prefix_tuning/forward/left-padding", **more: Any
) -> CaseResult:
    options = {
        "level": "model",
        "method": "prefix_tuning",
        "profile": "float32",
        "question": "forward",
        "seconds": 0.25,
        **more,
    }
    return CaseResult(case=f"peft-0.21.2/{name}", title="a title", verdict=verdict, **options)


def wrong(name: str = "prefix_tuning/prefix_encode/odd-layers", **more: Any) -> CaseResult:
    options = {"level": "components", "question": "prefix.encode", **more}
    return case(
        "NONCONFORMING", name, first=OVER, differences=[BEFORE, OVER], excerpts=[EXCERPT, MAP], **options
    )


def results(*cases: CaseResult, **more: Any) -> Results:
    counts: dict[str, int] = {}
    for each in cases:
        counts[each.verdict] = counts.get(each.verdict, 0) + 1
    failed = any(each.verdict not in ("CONFORMS", "SKIPPED") for each in cases)
    verdict = "NONCONFORMING" if failed else "CONFORMS" if "CONFORMS" in counts else "INCONCLUSIVE"
    summary = {"float64_exact": False, "not_asked": 0, "partial": False, **more.pop("summary", {})}
    options: dict[str, Any] = {
        "refpeft": "1.2.3",
        "dialect": "peft-0.21.2",
        "implementation": Implementation("my-port", "rust", "0.3.1"),
        "profiles": ["float32"],
        "not_asked": [],
        "command": ["refpeft", "check", "--", "./my port"],
        **more,
    }
    return Results(
        summary=Summary(**{"verdict": verdict, "asked": len(cases), "counts": counts, **summary}),
        cases=list(cases),
        **options,
    )


def hostile() -> Results:
    """Each string that a port chooses is an attack."""
    said = Finding("none", HOSTILE, ["peft-0.21.2/x (float32)"], 1, first=HOSTILE, forced=HOSTILE)
    return results(
        case("ERRORED", message=HOSTILE, detail=HOSTILE),
        case("SKIPPED", "common/mask/full", message=HOSTILE, level="components"),
        wrong(message=HOSTILE),
        case(
            "NONCONFORMING",
            first=Difference(HOSTILE, ok=False, reason=HOSTILE, where=HOSTILE, values=HOSTILE),
        ),
        implementation=Implementation(HOSTILE, HOSTILE, HOSTILE, f"javascript:{HOSTILE}", HOSTILE),
        diagnosis=[said],
        not_asked=[f"peft-0.21.2/{HOSTILE}/a"],
        command=["refpeft", "check", "--", HOSTILE],
    )
