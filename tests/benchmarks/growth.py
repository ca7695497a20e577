"""How time and memory grow, and how near a step is to the products that it must do.

The model is a GPT-2 of 6 layers and width 512 unless its axis is drawn out. An exponent is the slope of a line through the
logarithms of size and time: of a step, of its matrix products alone (`products`), and of their floating-point operations, counted
from the sizes. The floor is those operations at the speed of a large product in the same run.
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
        "| axis | method | sizes | seconds | exponent | of its products | of operations | GB | share of the floor | of its products |\n"
        f"|{'---|' * 10}"
    )
    with tempfile.TemporaryDirectory() as directory:
        for axis, sizes in AXES.items():
            for method in ("prompt", "prefix"):
                rows.append(_grown(axis, sizes, method, repeat, Path(directory)))
                row = rows[-1]
                shown = " | ".join(
                    ", ".join(f"{value:.3g}" for value in row[key]) for key in ("sizes", "seconds")
                )
                exponents = " | ".join(
                    f"{row[key]:.2f}" for key in ("exponent", "of products", "of operations")
                )
                ends = " | ".join(
                    ", ".join(f"{value:.2f}" for value in row[key])
                    for key in ("gigabytes", "floor", "share of products")
                )
                print(f"| {axis} | {method} | {shown} | {exponents} | {ends} |", flush=True)
    return rows


def _grown(axis: str, sizes: tuple[int, ...], method: str, repeat: int, directory: Path) -> dict[str, Any]:
    seconds, alone, counts, memory, floors = [], [], [], [], []
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
            found = in_turns({"step": (started["refpeft"], told)}, repeat)["step"]
            peak = in_turns({"product": (started["refpeft"], product)}, repeat)["product"]
            job = {**told, "do": "products"}
            products = in_turns({"products": (started["refpeft"], job)}, repeat)["products"]
        rate = 2 * 512 * 2048 * 2048 / peak["seconds"]
        count = operations(method, told["rows"], told["tokens"], told["virtual"], layers)
        seconds.append(found["seconds"])
        counts.append(count)
        memory.append(found["peak_gigabytes"])
        alone.append(products["seconds"])
        floors.append(count / rate / found["seconds"])
    return {
        "axis": axis, "method": method, "sizes": sizes, "seconds": seconds, "exponent": slope(sizes, seconds),
        "of products": slope(sizes, alone), "of operations": slope(sizes, counts), "gigabytes": memory, "floor": floors,
        "share of products": [part / whole for part, whole in zip(alone, seconds, strict=True)],
    }  # fmt: skip
