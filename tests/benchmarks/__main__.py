"""Benchmarks of refpeft, most of them beside HF peft; ratios, because machines differ.

    python tests/benchmarks                                  everything, half an hour on two cores
    python tests/benchmarks steps gpt2 prompt                steps, forward passes, generation: jobs whose names hold the words
    python tests/benchmarks steps --device cuda              the same on a GPU, both sides; needs the extra gpu
    python tests/benchmarks products                         how much of a step is matrix products
    python tests/benchmarks start | kernels | growth         where people wait; what each kernel gains; how time grows

Needs the extra `golden`, and `plot` for --plot. THREADS=1 for another number of threads than 2. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

from common import THREADS

os.environ.setdefault("OPENBLAS_NUM_THREADS", str(THREADS))
PARTS = ("steps", "products", "start", "kernels", "growth")


def main() -> None:
    """Run the parts that are named, or all."""
    import growth
    import kernels
    import products
    import start
    import steps

    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="tests/benchmarks", description=__doc__, formatter_class=form)
    parser.add_argument("part", nargs="?", choices=PARTS, help="one part alone")
    parser.add_argument("words", nargs="*", help="of steps: those whose names hold every word")
    parser.add_argument("--repeat", type=int, default=7, help="counted runs of each")
    parser.add_argument(
        "--without", action="append", default=[], help="of steps: a side to leave out, such as hf-eager"
    )
    parser.add_argument("--device", default="cpu", help="of steps: where both sides compute")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw the ratios of steps here")
    options = parser.parse_args()
    runs = {
        "steps": lambda: steps.run(options.words, options.repeat, options.without, options.device),
        "products": lambda: products.run(options.repeat),
        "start": lambda: start.run(options.repeat),
        "kernels": lambda: kernels.run(max(3, options.repeat // 2)),
        "growth": lambda: growth.run(max(3, options.repeat // 2)),
    }
    found: dict[str, object] = {
        "machine": platform.machine(),
        "threads": THREADS,
        "device": options.device,
        "python": platform.python_version(),
    }
    for part in PARTS if options.part is None else (options.part,):
        print(f"\n## {part}\n")
        found[part] = runs[part]()
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plot and "steps" in found:
        steps.plot(found["steps"], options.plot)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
