"""How much of a training step is matrix products, and so how much faster it could be at most.

The products alone, in the shapes, with the weights and in the threads in which refpeft's step does them, take turns with refpeft's
step and HF's. What a step takes beyond them is everything else; HF's time over theirs is what no program without other products can
exceed on this machine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import SHAPES, Worker, in_turns, make_base, workers


def run(repeat: int) -> list[dict[str, Any]]:
    """A row for each training step of GPT-2's shape; prints it, and returns the rows."""
    rows = []
    print(
        "| step | refpeft, s | its products alone, s | share | HF peft, s | times as fast | at most |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as directory:
        base = make_base(SHAPES["gpt2"], Path(directory) / "gpt2")
        for method in ("prompt", "prefix"):
            for labels in ("all", "last"):
                told = {"method": method, "virtual": 20, "rows": 8, "tokens": 64, "labels": labels}
                rows.append({"step": f"{method}, {labels} labels", **_measured(base, told, repeat)})
                row = rows[-1]
                shown = " | ".join(
                    f"{row[key]:.2f}" for key in ("refpeft", "products", "share", "hf", "ratio", "most")
                )
                print(f"| {row['step']} | {shown} |", flush=True)
    return rows


def _measured(base: Path, told: dict[str, Any], repeat: int) -> dict[str, float]:
    step, products = {**told, "do": "step"}, {**told, "do": "products"}
    with workers(base, ("refpeft", "hf-sdpa")) as sides, workers(base, ("refpeft",)) as alone:
        jobs: dict[str, tuple[Worker, dict[str, Any]]] = {
            "refpeft": (sides["refpeft"], step),
            "products": (alone["refpeft"], products),
            "hf": (sides["hf-sdpa"], step),
        }
        seconds = {name: found["seconds"] for name, found in in_turns(jobs, repeat).items()}
    own, least, theirs = seconds["refpeft"], seconds["products"], seconds["hf"]
    return {**seconds, "share": least / own, "ratio": theirs / own, "most": theirs / least}
