"""Training steps, forward passes and generation beside HF peft, on the same weights, inputs and threads.

Each side in a process of its own, taking turns; HF with its default attention (sdpa) and with eager: the faster one counts. New
processes for each job, so that the peak memory is that job's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import SHAPES, SIDES, in_turns, make_base, workers

TARGETS = {
    "step prompt all": 2.0,
    "step prompt last": 2.5,
    "step prefix all": 1.5,
    "step prefix last": 2.0,
    "forward": 1.8,
    "generate": 2.0,
}
"""Times as fast as the faster HF, on a CPU."""
MEMORY = 0.5
"""Of HF's peak."""
SAME = 1e-3
"""How far losses in float32 may be apart before the two sides are said to do different work."""


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, kind (a key of TARGETS), and what a worker is told."""
    for method in ("prompt", "prefix"):
        common = {"method": method, "virtual": 20, "rows": 8, "tokens": 64}
        for virtual in (20, 100):
            for labels in ("all", "last"):
                told = {**common, "do": "step", "virtual": virtual, "labels": labels}
                yield f"step {method} n={virtual} labels={labels}", f"step {method} {labels}", told
        yield f"forward {method} n=20", "forward", {**common, "do": "forward"}
        told = {**common, "do": "generate", "rows": 4, "tokens": 16, "new": 64}
        yield f"generate {method} n=20 new=64", "generate", told


def run(
    words: Sequence[str], repeat: int, without: Sequence[str], device: str = "cpu"
) -> list[dict[str, Any]]:
    """Every job whose name holds all words; prints a row for each, and returns the rows."""
    sides, rows = [side for side in SIDES if side not in without], []
    print(f"| job | {' | '.join(f'{side}, s' for side in sides)} | times as fast | target | GB | of HF's |")
    print(f"|---|{'---|' * (len(sides) + 4)}")
    with tempfile.TemporaryDirectory() as directory:
        for shape, options in SHAPES.items():
            chosen = [job for job in jobs() if all(word in f"{shape} {job[0]}" for word in words)]
            base = make_base(options, Path(directory) / shape) if chosen else Path()
            for name, kind, told in chosen:
                rows.append(_row(f"{shape} {name}", kind, _measured(told, base, repeat, sides, device)))
                print(_line(rows[-1], sides), flush=True)
    return rows


def _measured(
    told: dict[str, Any], base: Path, repeat: int, sides: Sequence[str], device: str
) -> dict[str, dict[str, Any]]:
    with workers(base, sides, device) as started:
        found = in_turns({side: (worker, told) for side, worker in started.items()}, repeat)
    mine = found["refpeft"]["value"]
    for side, one in found.items():
        if abs(mine - one["value"]) > SAME * abs(one["value"]):
            raise SystemExit(
                f"{told}: refpeft computes {mine}, {side} {one['value']}: that is not the same work"
            )
    return found


def _row(name: str, kind: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    mine, theirs = found["refpeft"], [one for side, one in found.items() if side != "refpeft"]
    smallest = min(one["peak_gigabytes"] for one in theirs)
    return {
        "job": name,
        "seconds": {side: one["seconds"] for side, one in found.items()},
        "times as fast": min(one["seconds"] for one in theirs) / mine["seconds"],
        "target": TARGETS[kind],
        "gigabytes": mine["peak_gigabytes"],
        "of HF": mine["peak_gigabytes"] / smallest,
    }


def _line(row: dict[str, Any], sides: Sequence[str]) -> str:
    times = " | ".join(f"{row['seconds'][side]:.3f}" for side in sides)
    reached = f"{row['times as fast']:.2f} | {row['target']:.1f} | {row['gigabytes']:.2f}"
    return f"| {row['job']} | {times} | {reached} | {row['of HF']:.2f} |"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A bar for each job: how many times as fast as the faster HF, and the target beside it."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(rows) + 1), layout="constrained")
    names = [row["job"] for row in rows]
    axes.barh(names, [row["times as fast"] for row in rows], color="#3f51b5")
    axes.scatter([row["target"] for row in rows], names, marker="|", color="black", s=120)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as HF peft (medians; the faster of sdpa and eager); strokes: targets")
    figure.savefig(path)
