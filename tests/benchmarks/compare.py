"""refpeft beside HF peft, on the same weights, inputs and threads: ratios of time and memory.

    python tests/benchmarks/compare.py                       every job, both shapes
    python tests/benchmarks/compare.py gpt2 step --repeat 5  those whose names hold each of the words
    python tests/benchmarks/compare.py --json FILE --plot FILE

Needs the extra `golden` (and `plot` for a plot). Each side runs in a process of its own; they take turns, A B C A B C …, and the
medians are compared. HF runs with its default attention (sdpa) and with eager; the faster one counts. A new process for each job,
so that the peak memory is that job's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
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


def jobs() -> dict[str, dict[str, Any]]:
    """Every job by name, without the shape."""
    found: dict[str, dict[str, Any]] = {}
    for method in ("prompt", "prefix"):
        for virtual in (20, 100):
            for labels in ("all", "last"):
                found[f"step {method} n={virtual} labels={labels}"] = {
                    "do": "step", "method": method, "virtual": virtual, "labels": labels, "rows": 8, "tokens": 64,
                }  # fmt: skip
        found[f"forward {method} n=20"] = {
            "do": "forward", "method": method, "virtual": 20, "rows": 8, "tokens": 64,
        }  # fmt: skip
        found[f"generate {method} n=20 new=64"] = {
            "do": "generate", "method": method, "virtual": 20, "rows": 4, "tokens": 16, "new": 64,
        }  # fmt: skip
    return found


def make_base(shape: str, directory: Path) -> Path:
    """A base model of random weights, written by HF."""
    where = directory / shape
    code = (
        "import sys, json, torch, transformers\n"
        "torch.manual_seed(0)\n"
        "options = json.loads(sys.argv[1])\n"
        "config = transformers.AutoConfig.for_model(options.pop('model_type'), **options)\n"
        "transformers.AutoModelForCausalLM.from_config(config).save_pretrained(sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, json.dumps(SHAPES[shape]), str(where)], check=True, env=environment()
    )
    return where


def environment() -> dict[str, str]:
    """The same number of threads for everyone, and no network."""
    return {
        **os.environ, "OMP_NUM_THREADS": str(THREADS), "OPENBLAS_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip


class Worker:
    """A process that runs one side's jobs."""

    def __init__(self, side: str, base: Path) -> None:
        command = [sys.executable, str(HERE / "worker.py"), side, str(base)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            stderr=subprocess.DEVNULL,
        )

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args[2:])} ended without an answer to {job}")  # type: ignore[arg-type]
        return dict(json.loads(line))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measured(job: dict[str, Any], base: Path, repeat: int, sides: tuple[str, ...]) -> dict[str, Any]:
    """Medians and peaks of each side, taking turns; and that they computed the same."""
    workers = {side: Worker(side, base) for side in sides}
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeat):
        for side, worker in workers.items():
            answers[side].append(worker.ask(job))
    for worker in workers.values():
        worker.close()
    mine = answers["refpeft"][0]["value"]
    for side in sides:
        theirs = answers[side][0]["value"]
        if abs(mine - theirs) > 1e-3 * abs(theirs):
            raise SystemExit(f"{job}: refpeft computes {mine}, {side} {theirs}: not the same work")
    return {
        side: {
            "seconds": statistics.median(answer["seconds"] for answer in given),
            "peak_gigabytes": given[-1]["peak_gigabytes"],
        }
        for side, given in answers.items()
    }


def row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    theirs = [found[side] for side in found if side != "refpeft"]
    mine = found["refpeft"]
    fastest = min(other["seconds"] for other in theirs)
    smallest = min(other["peak_gigabytes"] for other in theirs)
    return {
        "job": name,
        **{f"{side} seconds": one["seconds"] for side, one in found.items()},
        "times as fast": fastest / mine["seconds"],
        "gigabytes": mine["peak_gigabytes"],
        "hf gigabytes": smallest,
        "memory ratio": mine["peak_gigabytes"] / smallest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", help="run the jobs whose names hold every word, such as: gpt2 prompt last"
    )
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--without", action="append", default=[], choices=SIDES[1:], help="leave a side out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    sides = tuple(side for side in SIDES if side not in options.without)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        bases: dict[str, Path] = {}
        print(f"| job | {' | '.join(f'{side}, s' for side in sides)} | times as fast | GB | HF GB |")
        print(f"|---|{'---|' * (len(sides) + 3)}")
        for shape in SHAPES:
            for name, job in jobs().items():
                whole = f"{shape} {name}"
                if not all(word in whole for word in options.words):
                    continue
                if shape not in bases:
                    bases[shape] = make_base(shape, Path(directory))
                one = row(whole, measured(job, bases[shape], options.repeat, sides))
                rows.append(one)
                times = " | ".join(f"{one[f'{side} seconds']:.3f}" for side in sides)
                print(f"| {whole} | {times} | {one['times as fast']:.2f} | {one['gigabytes']:.2f} | {one['hf gigabytes']:.2f} |", flush=True)  # fmt: skip
    if options.json:
        about = {"machine": platform.processor() or platform.machine(), "threads": THREADS, "rows": rows}
        options.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(rows, options.plot)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A bar for each job: how many times as fast as the faster HF."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(rows) + 1), layout="constrained")
    axes.barh([one["job"] for one in rows], [one["times as fast"] for one in rows], color="#3f51b5")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as HF peft (median, the faster of sdpa and eager)")
    figure.savefig(path)


if __name__ == "__main__":
    main()
