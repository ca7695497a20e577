"""What the benchmarks share: shapes, base models made by HF, workers in processes of their own, turns and medians."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
THREADS = int(os.environ.get("THREADS", "2"))
SIDES = ("refpeft", "hf-sdpa", "hf-eager")
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "llama": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 4, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048,
    },
}  # fmt: skip
"""GPT-2 of 124 million parameters, and four layers of a LLaMA of 1.1 thousand million (TinyLlama's sizes)."""


def environment() -> dict[str, str]:
    """The same number of threads for everyone, refpeft from this checkout, and no network."""
    return {
        **os.environ, "OMP_NUM_THREADS": str(THREADS), "OPENBLAS_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip


def make_base(options: dict[str, Any], where: Path) -> Path:
    """A base model of random weights, written by HF."""
    code = (
        "import sys, json, torch, transformers\n"
        "torch.manual_seed(0)\n"
        "options = json.loads(sys.argv[1])\n"
        "config = transformers.AutoConfig.for_model(options.pop('model_type'), **options)\n"
        "transformers.AutoModelForCausalLM.from_config(config).save_pretrained(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, json.dumps(options), str(where)]
    subprocess.run(command, check=True, env=environment(), stderr=subprocess.DEVNULL)
    return where


class Worker:
    """A process that runs one side's jobs."""

    def __init__(self, side: str, base: Path, device: str = "cpu") -> None:
        self.command = [sys.executable, str(HERE / "worker.py"), side, str(base), device]
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()
        )  # fmt: skip

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job once more; the first time it is prepared, and run once without being counted."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.command[1:])} ended without an answer to {job}")
        return dict(json.loads(line))


@contextmanager
def workers(base: Path, sides: Sequence[str], device: str = "cpu") -> Iterator[dict[str, Worker]]:
    """One for each side."""
    started = {side: Worker(side, base, device) for side in sides}
    try:
        yield started
    finally:
        for worker in started.values():
            assert worker.process.stdin is not None
            worker.process.stdin.close()
            worker.process.wait()


def in_turns(jobs: dict[str, tuple[Worker, dict[str, Any]]], repeat: int) -> dict[str, dict[str, Any]]:
    """Each job in turn, again and again: the median of its seconds, its value, its process's peak memory."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for _ in range(repeat):
        for name, (worker, job) in jobs.items():
            answers[name].append(worker.ask(job))
    return {
        name: {**given[-1], "seconds": statistics.median(answer["seconds"] for answer in given)}
        for name, given in answers.items()
    }
