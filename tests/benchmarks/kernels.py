"""What each kernel gains: a step with all kernels beside the same step without one of them, taking turns in one process."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import SHAPES, make_base

JOBS: dict[str, dict[str, Any]] = {
    "step prompt labels=last": {"do": "step", "method": "prompt", "virtual": 20, "labels": "last", "rows": 8, "tokens": 64},
    "step prefix labels=all": {"do": "step", "method": "prefix", "virtual": 20, "labels": "all", "rows": 8, "tokens": 64},
    "generate prefix": {"do": "generate", "method": "prefix", "virtual": 20, "rows": 4, "tokens": 16, "new": 16},
}  # fmt: skip


def run(repeat: int) -> list[dict[str, Any]]:
    """For each kernel, how much longer each job takes without it; gelu is that of a GPT-2 whose activation is exact."""
    import worker

    from refpeft import steps

    rows = []
    print("| shape | job | with all, s | " + "without → times as long |\n|---|---|---|---|")
    shapes = {**SHAPES, "gpt2, gelu": {**SHAPES["gpt2"], "activation_function": "gelu"}}
    with tempfile.TemporaryDirectory() as directory:
        for shape, options in shapes.items():
            side = worker.Refpeft(str(make_base(options, Path(directory) / shape)), "cpu")
            for name, job in JOBS.items():
                times = _times(getattr(side, job["do"])(job), steps, repeat)
                whole = times.pop("")
                ratios = {kernel: seconds / whole for kernel, seconds in times.items()}
                rows.append({"shape": shape, "job": name, "seconds": whole, "without": ratios})
                shown = ", ".join(f"{kernel} {ratio:.2f}" for kernel, ratio in ratios.items())
                print(f"| {shape} | {name} | {whole:.3f} | {shown} |", flush=True)
    return rows


def _times(job: Any, steps: Any, repeat: int) -> dict[str, float]:
    """Median seconds with all kernels (the empty name), with none, and without each."""
    everything = tuple(steps.KERNELS)
    choices: dict[str, Sequence[str]] = {"": everything, "all of them": ()}
    choices |= {kernel: [other for other in everything if other != kernel] for kernel in everything}
    times: dict[str, list[float]] = {name: [] for name in choices}
    for turn in range(repeat + 1):
        for name, kernels in choices.items():
            with steps.kernels(*kernels):
                start = time.perf_counter()
                job()
                if turn:  # the first warms up
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}
