"""Where people wait: commands, imports, the first gradient, the golden cases, the search; beside HF peft where it has the same."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, environment, in_turns, workers

MODEL = ROOT / "golden/models/gpt2-odd"
FIRST = {
    "refpeft": (
        "import numpy, refpeft\n"
        f"base = refpeft.load_base_model({str(MODEL)!r}, dtype='float32')\n"
        "config = refpeft.PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=4)\n"
        "ids = numpy.arange(12).reshape(2, 6)\n"
        "refpeft.get_peft_model(base, config).value_and_grad(ids, ids)\n"
    ),
    "HF peft": (
        "import torch, transformers, peft\n"
        f"base = transformers.AutoModelForCausalLM.from_pretrained({str(MODEL)!r}, dtype='float32')\n"
        "config = peft.PromptTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=4)\n"
        "ids = torch.arange(12).reshape(2, 6)\n"
        "peft.get_peft_model(base, config)(input_ids=ids, labels=ids).loss.backward()\n"
    ),
}
"""From the start of a process to the first loss and gradient of a tiny model."""


def _seconds(command: list[str], repeat: int) -> float:
    """The median of whole processes, the first not counted."""
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        subprocess.run(
            command, check=True, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _megabytes() -> float:
    """What `pip install` of the wheel puts in place, without what it depends on."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            directory,
            str(ROOT),
        ]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file()) / 1e6


def _first_verdict() -> float:
    """One case alone: until its verdict is there, and printed."""
    command = [
        sys.executable,
        "-m",
        "refpeft",
        "check",
        "--case",
        "*/prefix_encode/odd-layers",
        "--format",
        "json",
    ]
    return _seconds(command, 3)


def _fuzz() -> float:
    """Questions per second, refpeft as its own port, without the start of the process."""
    command = [
        sys.executable,
        "-m",
        "refpeft",
        "fuzz",
        "--max-examples",
        "400",
        "--seed",
        "1",
        "--format",
        "json",
    ]
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.run(
            command, check=True, env=environment(), cwd=directory, capture_output=True, text=True
        )
    found = json.loads(process.stdout)
    return float(found["examples"] / found["seconds"])


def _tiny_step(repeat: int) -> dict[str, float]:
    """A step of a tiny model, in milliseconds."""
    told = {"do": "step", "method": "prompt", "virtual": 4, "labels": "all", "rows": 2, "tokens": 6}
    with workers(MODEL, ("refpeft", "hf-sdpa")) as started:
        found = in_turns({side: (worker, told) for side, worker in started.items()}, 10 * repeat)
    return {side: 1000 * one["seconds"] for side, one in found.items()}


def run(repeat: int) -> list[dict[str, Any]]:
    """Everything, as rows of what, figure and target."""
    python, command = sys.executable, [sys.executable, "-m", "refpeft"]
    rows: list[dict[str, Any]] = []

    def row(what: str, figure: float, target: str = "") -> None:
        rows.append({"what": what, "measured": figure, "target": target})
        print(f"| {what} | {figure:.3g} | {target} |", flush=True)

    print("| what | measured | target |\n|---|---|---|")
    row("`refpeft --help`, s", _seconds([*command, "--help"], repeat), "≤ 0.3")
    row("`import refpeft.peft_model`, s", _seconds([python, "-c", "import refpeft.peft_model"], repeat))
    row("installed, MB", _megabytes())
    first = {side: _seconds([python, "-c", code], repeat) for side, code in FIRST.items()}
    row("start to first gradient, refpeft, s", first["refpeft"])
    row("start to first gradient, HF peft, s", first["HF peft"])
    row("start to first gradient, times as fast", first["HF peft"] / first["refpeft"], "≥ 10")
    tiny = _tiny_step(repeat)
    row("tiny step, refpeft, ms", tiny["refpeft"])
    row("tiny step, HF peft, ms", tiny["hf-sdpa"])
    row("tiny step, times as fast", tiny["hf-sdpa"] / tiny["refpeft"], "≥ 1")
    row("`refpeft check` of one case, s", _first_verdict(), "≤ 1")
    row("`refpeft check` of every case, s", _seconds([*command, "check"], 1), "≤ 20")
    row("fuzz, questions per second", _fuzz(), "≥ 50")
    return rows
