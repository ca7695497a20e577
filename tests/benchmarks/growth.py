"""How time and memory grow, and how near a step is to the products that it must do.

The model is a GPT-2 of 6 layers and width 512 unless its axis is drawn out. Theory: the floating-point operations of the
products, counted from the sizes; an exponent is the slope of a line through the logarithms of size and time (or operations).
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from common import in_turns, make_base, workers

WIDTH, INNER, VOCABULARY, LAYERS = 512, 2048, 8192, 6
SIZES = {"virtual": 64, "tokens": 64, "rows": 8}
AXES = {"rows": (8, 16, 32), "tokens": (128, 256, 512), "virtual": (128, 256, 512), "layers": (4, 8, 16)}


def operations(method: str, rows: int, tokens: int, virtual: int, layers: int) -> float:
    """Of a training step's products, labels everywhere: forwards, and backwards to the inputs alone, for weights are frozen.

    A prompt goes through the layers once for all rows, and makes keys and values alone in the last one. The first layer has no
    gradient of its queries, keys and values in the text, nor of anything but its prefix.
    """
    weights = 4 * WIDTH * WIDTH + 2 * WIDTH * INNER
    own = virtual if method == "prompt" else 0
    of_prompt = own * (weights * (layers - 1) + 2 * WIDTH * WIDTH)
    affine = 2 * (rows * tokens * weights * layers + of_prompt)
    scores = 2 * 2 * WIDTH * (rows * tokens * (tokens + virtual) * layers + own * own * (layers - 1))
    head = 2 * rows * tokens * WIDTH * VOCABULARY
    unneeded = 2 * rows * tokens * 3 * WIDTH * WIDTH
    return 2 * affine + 3 * scores + 2 * head - unneeded


def slope(sizes: tuple[int, ...], values: list[float]) -> float:
    """Of the line of least squares through the logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum(
        (a - mean_x) ** 2 for a in x
    )


def run(repeat: int) -> list[dict[str, Any]]:
    """Exponents of each axis, and the share of the products in a step."""
    rows = []
    print(
        "| axis | method | sizes | seconds | exponent | of the products | GB | share of the floor |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as directory:
        for axis, sizes in AXES.items():
            for method in ("prompt", "prefix"):
                rows.append(_grown(axis, sizes, method, repeat, Path(directory)))
                row = rows[-1]
                shown = " | ".join(
                    ", ".join(f"{value:.3g}" for value in row[key]) for key in ("sizes", "seconds")
                )
                memory, shares = (", ".join(f"{x:.2f}" for x in row[key]) for key in ("gigabytes", "shares"))
                print(f"| {axis} | {method} | {shown} | {row['exponent']:.2f} | {row['theory']:.2f} | {memory} | {shares} |", flush=True)  # fmt: skip
    return rows


def _grown(axis: str, sizes: tuple[int, ...], method: str, repeat: int, directory: Path) -> dict[str, Any]:
    seconds, counts, memory, shares = [], [], [], []
    for size in sizes:
        layers = size if axis == "layers" else LAYERS
        told = {
            **SIZES,
            "do": "step",
            "method": method,
            "labels": "all",
            **({axis: size} if axis != "layers" else {}),
        }
        base = directory / str(layers)
        if not base.exists():
            options = {
                "n_layer": layers,
                "n_embd": WIDTH,
                "n_head": 8,
                "vocab_size": VOCABULARY,
                "n_positions": 2048,
            }
            make_base({"model_type": "gpt2", **options}, base)
        with workers(base, ("refpeft",)) as started:
            product = {"do": "matrix_product", "rows": 512, "inner": 2048, "columns": 2048}
            jobs = {"step": (started["refpeft"], told)}
            found = in_turns(jobs, repeat)["step"]
            peak = in_turns({"product": (started["refpeft"], product)}, repeat)["product"]
        rate = 2 * 512 * 2048 * 2048 / peak["seconds"]
        count = operations(method, told["rows"], told["tokens"], told["virtual"], layers)
        seconds.append(found["seconds"])
        counts.append(count)
        memory.append(found["peak_gigabytes"])
        shares.append(count / rate / found["seconds"])
    return {
        "axis": axis, "method": method, "sizes": sizes, "seconds": seconds, "exponent": slope(sizes, seconds),
        "theory": slope(sizes, counts), "gigabytes": memory, "shares": shares,
    }  # fmt: skip
