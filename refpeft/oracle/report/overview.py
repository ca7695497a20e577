"""The picture of a run: cases side by side, stages one below the other, coloured by error over budget."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from refpeft.oracle.compare import Difference
from refpeft.oracle.judge import CaseResult
from refpeft.oracle.report import picture

ROW, LABELS, NARROWEST, WIDEST = 10, 232, 480, 1000
"""In pixels: a stage's height, its name's width, and the least and largest width of the rest."""
LONGEST_LABEL = 44
"""Characters of a stage's name."""


def overview(cases: Sequence[CaseResult]) -> dict[str, Any] | None:
    """What the page draws; nothing where no tensor was compared."""
    shown = [(i, case) for i, case in enumerate(cases) if case.differences]
    if not shown:
        return None
    worst = [_worst_by_stage(case.differences) for _, case in shown]
    stages = _merged(worst)
    rows = [[picture.of_ratio(w[s]) if s in w else picture.NOTHING for w in worst] for s in stages]
    width = max(NARROWEST, min(WIDEST, 6 * len(shown)))
    return {
        "stages": stages,
        "names": [_label(stage) for stage in stages],
        "image": picture.data_uri(rows),
        "cases": [i for i, _ in shown],
        "width": width,
        "height": ROW * len(stages),
        "labels": LABELS,
        "row": ROW,
        "bands": list(_bands([case for _, case in shown], width / len(shown))),
    }


def ratio_of(difference: Difference) -> float | None:
    """The error in budgets; None where it is no number, or none is allowed and there is one."""
    try:
        error = float(difference.error)
    except ValueError:
        return None
    if not math.isfinite(error) or (not difference.ok and (difference.reason or not difference.budget)):
        return None
    return error / difference.budget if difference.budget > 0 else 0.0


def in_words(ratio: float | None) -> str:
    """A ratio for people."""
    if ratio is None or not math.isfinite(ratio):
        return ""
    if ratio >= 1e6:
        return f"{ratio:.0e} × budget".replace("e+0", "e").replace("e+", "e")
    return f"{ratio:,.0f} × budget" if ratio >= 10 else f"{ratio:.2g} × budget"


def _worst_by_stage(differences: Sequence[Difference]) -> Mapping[str, float | None]:
    """Of each stage, layers and steps together, the largest error in budgets; None above all."""
    found: dict[str, float | None] = {}
    for difference in differences:
        stage, ratio = re.sub(r"\d+", "#", difference.name), ratio_of(difference)
        known = found.get(stage, 0.0)
        found[stage] = None if ratio is None or known is None else max(known, ratio)
    return found


def _merged(orders: Sequence[Mapping[str, Any]]) -> list[str]:
    """One order of all stages: each behind the one before it in the first case that has it, or before the one after it."""
    merged: list[str] = []
    for order in orders:
        stages = list(order)
        for number, stage in enumerate(stages):
            if stage not in merged:
                behind = next((merged.index(s) for s in stages[number + 1 :] if s in merged), len(merged))
                merged.insert(merged.index(stages[number - 1]) + 1 if number else behind, stage)
    return merged


def _label(stage: str) -> str:
    """A stage's name, as much as there is room for: its end says more than its beginning."""
    name = stage.replace("prompt_encoder.", "")
    return name if len(name) <= LONGEST_LABEL else f"…{name[1 - LONGEST_LABEL :]}"


def _bands(cases: Sequence[CaseResult], width: float) -> Iterator[dict[str, Any]]:
    """Where each level begins and ends along the picture."""
    start = 0
    for place in range(1, len(cases) + 1):
        if place == len(cases) or cases[place].level != cases[start].level:
            yield {
                "name": cases[start].level,
                "x": round(start * width, 2),
                "width": round((place - start) * width, 2),
            }
            start = place
