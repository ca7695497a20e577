"""What each kernel gains: a job with all kernels beside the same job without one of them, in turns, in one process.

Times are pairs, one right after the other, for a shared machine changes its speed within seconds; memory is that of the arrays
which a job makes, at its peak. A kernel is listed where it is called at all.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import SHAPES, make_base

_STEP = {"do": "step", "virtual": 20, "rows": 8, "tokens": 64}
JOBS: dict[str, dict[str, Any]] = {
    "step prompt labels=last": {**_STEP, "method": "prompt", "labels": "last"},
    "step prefix labels=all": {**_STEP, "method": "prefix", "labels": "all"},
    "generate prefix": {"do": "generate", "method": "prefix", "virtual": 20, "rows": 4, "tokens": 16, "new": 16},
    "logits and loss": {**_STEP, "do": "losses", "method": "prefix", "labels": "all"},
}  # fmt: skip
EXACT = {**SHAPES["gpt2"], "activation_function": "gelu"}
LONG = {**JOBS["step prefix labels=all"], "virtual": 100}
MORE = [
    ("gpt2, gelu", EXACT, "step prefix labels=all", JOBS["step prefix labels=all"], "activations.gelu"),
    ("gpt2", SHAPES["gpt2"], "step prefix n=100", LONG, "shared_prompt.prompt_before"),
]
"""Jobs in which one kernel alone is of interest."""


def run(repeat: int) -> list[dict[str, Any]]:
    """For each kernel that a job calls, how much longer the job takes without it, and how much more memory."""
    import worker

    from refpeft import steps

    told = [(shape, base, name, job, None) for shape, base in SHAPES.items() for name, job in JOBS.items()]
    rows = []
    print("| shape | job | without | times as long | times the memory |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        made: dict[str, worker.Refpeft] = {}
        for shape, base, name, job, alone in [*told, *MORE]:
            if shape not in made:
                made = {shape: worker.Refpeft(str(make_base(base, Path(directory) / shape)), "cpu")}
            run_job = getattr(made[shape], job["do"])(job)
            called = _called(run_job, steps)
            for without in [[alone]] if alone else [called, *([kernel] for kernel in called)]:
                others = [kernel for kernel in steps.KERNELS if kernel not in without]
                row = {
                    "shape": shape,
                    "job": name,
                    "without": without,
                    **_gain(run_job, steps, others, repeat),
                }
                rows.append(row)
                shown = "all of them" if without is called else without[0]
                print(f"| {shape} | {name} | {shown} | {row['time']:.2f} | {row['memory']:.2f} |", flush=True)
    return rows


def _called(job: Callable[[], Any], steps: Any) -> list[str]:
    """The kernels that serve the job, in the order of their table."""
    called, own = set(), dict(steps.KERNELS)

    def counted(name: str) -> Callable[..., Any]:
        def kernel(*args: Any, **kwargs: Any) -> Any:
            result = own[name](*args, **kwargs)
            if result is not NotImplemented:
                called.add(name)
            return result

        return kernel

    steps.KERNELS.update({name: counted(name) for name in own})
    try:
        job()
    finally:
        steps.KERNELS.update(own)
    return [name for name in own if name in called]


def _gain(job: Callable[[], Any], steps: Any, others: Sequence[str], repeat: int) -> dict[str, float]:
    """Time and memory of the job with the other kernels alone, over those with all: medians of pairs; memory once."""
    choices = {"all": tuple(steps.KERNELS), "others": tuple(others)}
    peaks, ratios = {}, []
    for name, kernels in choices.items():
        with steps.kernels(*kernels):
            job()
            tracemalloc.start(1)
            job()
            peaks[name] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    for turn in range(repeat):
        seconds = {}
        for name, kernels in list(choices.items())[:: -1 if turn % 2 else 1]:
            with steps.kernels(*kernels):
                start = time.perf_counter()
                job()
                seconds[name] = time.perf_counter() - start
        ratios.append(seconds["others"] / seconds["all"])
    return {"time": statistics.median(ratios), "memory": peaks["others"] / peaks["all"]}
