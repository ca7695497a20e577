"""Make the golden vectors from the real HF peft (needs the `golden` extra).

python golden/generate.py              make everything anew: models, vectors, floors, manifest
python golden/generate.py --check      make the values anew and compare them with the stored ones
python golden/generate.py --only GLOB  make some cases anew, from the stored models, and what is derived from them
python golden/generate.py --derive     only measure floors and margins anew, and write the manifest
python golden/generate.py --against installed    ask another release of HF, and say what it answers otherwise
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import msgspec
import numpy
import transformers
from cases import Made, make
from components import RECIPES
from models import MODELS, make_model
from numpy.typing import NDArray
from safetensors.numpy import load, save
from tasks import model_problems, stored_model

from refpeft.files import write_atomically
from refpeft.oracle import budget, floors, kill_matrix
from refpeft.oracle.lint import lint
from refpeft.oracle.vectors import DIALECT, FORMAT, Vector, matches, read_vector

GOLDEN = Path(__file__).resolve().parent
MANIFEST, FLOORS = "manifest.json", "floors.json"
TOLERANCE = 1e-12
"""How far two computers' float64 may be apart, as a normwise relative error."""
ADAPTER_TOLERANCE = 1e-6
"""How far two computers' float32 adapters may be apart, likewise."""
FACTOR = 4.0
"""How far apart HF's float32 distance may be on two computers."""
SAMPLED = 12
"""Of so many cases, the margins of one are measured anew by a check."""
LUCK = 2.0**-21
"""A few numbers, such as a loss, may be nearer than this, eight roundings, by luck."""


@contextlib.contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Work in a directory, so that models have short names and no file holds a path of this machine."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def files_below(root: Path) -> dict[str, bytes]:
    """Every file below a directory, by its relative path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def files_of(made: Made) -> dict[str, bytes]:
    """The files of one vector."""
    text = msgspec.json.format(msgspec.json.encode(made.case), indent=2) + b"\n"
    files = {"case.json": text}
    for name, tensors in (("inputs", made.inputs), ("expected", made.expected)):
        if tensors:
            files[f"{name}.safetensors"] = save(dict(tensors))
    files |= {f"adapter/{name}": data for name, data in made.adapter.items()}
    return {f"vectors/{made.case.id}/{name}": data for name, data in files.items()}


def manifest() -> bytes:
    """The SHA-256 of every file that a wheel carries."""
    paths = [p for top in ("models", "vectors") for p in (GOLDEN / top).rglob("*") if p.is_file()]
    paths += [p for p in (GOLDEN / FLOORS, GOLDEN / kill_matrix.NAME) if p.is_file()]
    hashes = {p.relative_to(GOLDEN).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    document = {"format": FORMAT, "dialect": DIALECT, "files": dict(sorted(hashes.items()))}
    return json.dumps(document, indent=2).encode() + b"\n"


def replace_tree(top: str, files: dict[str, bytes]) -> None:
    """Make the directory `top` hold exactly these files; each changes in one piece."""
    for name, data in files.items():
        path = GOLDEN / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != data:
            write_atomically(path, data)
    for path in sorted((GOLDEN / top).rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(GOLDEN).as_posix() not in files:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def generate() -> str:
    """Make everything but the trained model; answers one line."""
    trained = stored_model()
    with tempfile.TemporaryDirectory() as directory, inside(Path(directory)):
        for name in MODELS:
            make_model(name, Path(name))
        models = {f"models/{name}": data for name, data in files_below(Path(directory)).items()}
        made = [make(recipe) for recipe in RECIPES]
    models |= trained
    vectors = {name: data for vector in made for name, data in files_of(vector).items()}
    replace_tree("models", models)
    replace_tree("vectors", vectors)
    write_atomically(GOLDEN / MANIFEST, manifest())
    derive()
    size = sum(map(len, [*models.values(), *vectors.values()]))
    return f"{len(made)} vectors, {len(MODELS) + 1} models, {size / 1e6:.2f} MB"


def generate_only(pattern: str) -> str:
    """Make the cases anew whose ids match a glob or hold a part; those that agree with what is stored stay. Answers one line."""
    chosen, changed = [recipe for recipe in RECIPES if matches(recipe.id, pattern)], 0
    for recipe in chosen:
        directory = GOLDEN / "vectors" / recipe.id
        with inside(GOLDEN / "models"):
            made = make(recipe)
        if not (directory / "case.json").is_file() or compare(made, read_vector(directory)):
            replace_tree(f"vectors/{recipe.id}", files_of(made))
            changed += 1
    derive(keep=True)
    return f"{changed} of {len(chosen)} vectors have changed"


def derive(keep: bool = False) -> None:
    """Floors, the kill matrix, the manifest: what follows from the vectors, without HF. `keep` those of unchanged vectors."""
    write_atomically(GOLDEN / FLOORS, floors.floors_document(GOLDEN, keep=keep))
    write_atomically(GOLDEN / kill_matrix.NAME, kill_matrix.kill_matrix_document(GOLDEN, keep=keep))
    write_atomically(GOLDEN / MANIFEST, manifest())


def check() -> list[str]:
    """Make the values anew from the stored models; everything that differs from the stored vectors, in words."""
    problems = lint(GOLDEN) + model_problems()
    stored = {path.parent.relative_to(GOLDEN / "vectors").as_posix() for path in GOLDEN.rglob("case.json")}
    expected = {recipe.id for recipe in RECIPES}
    problems += [f"{name} is stored, but no recipe makes it" for name in sorted(stored - expected)]
    problems += [f"{name} is not stored" for name in sorted(expected - stored)]
    places = [i for i, recipe in enumerate(RECIPES) if recipe.id in stored]
    with concurrent.futures.ProcessPoolExecutor(
        mp_context=multiprocessing.get_context("spawn"), initializer=be_quiet
    ) as pool:
        for found in pool.map(made_anew, places, chunksize=16):
            problems += found
    problems += floors.stale_floors(GOLDEN) + kill_matrix.problems(GOLDEN)
    return problems + kill_matrix.stale_margins(GOLDEN, SAMPLED)


def be_quiet() -> None:
    """Hear nothing of HF's advice."""
    warnings.simplefilter("ignore", FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def made_anew(place: int) -> list[str]:
    """How one recipe's vector, made anew, differs from the stored one, in words."""
    recipe = RECIPES[place]
    vector = read_vector(GOLDEN / "vectors" / recipe.id)
    with inside(GOLDEN / "models"):
        made = make(replace(recipe, adapter=vector.adapter_directory))
    return [f"{recipe.id}: {problem}" for problem in compare(made, vector)]


def compare(made: Made, vector: Vector) -> list[str]:
    """How a vector made anew differs from the stored one."""
    problems = []
    kinds = {name: tensor.kind for name, tensor in made.case.tensors.items()}
    for what, new, old in (
        ("input", made.inputs, vector.inputs),
        ("expected", made.expected, vector.expected),
    ):
        if new.keys() != old.keys():
            problems.append(f"{what} tensors {sorted(new)} are stored as {sorted(old)}")
            continue
        for name in new:
            kind = "exact" if what == "input" else kinds[name]
            error = difference(new[name], old[name], kind)
            if error > {"exact": 0.0, "drawn": budget.DRAWN_TOLERANCE}.get(kind, TOLERANCE):
                problems.append(f"{what} {name} is off by {error:.1e}")
    if not same_case(msgspec.to_builtins(made.case), msgspec.to_builtins(vector.case)):
        problems.append("case.json differs")
    for name, data in made.adapter.items():
        old = (vector.directory / "adapter" / name).read_bytes()
        if name.endswith(".json") and old != data:
            problems.append(f"adapter/{name} differs")
        elif name.endswith(".safetensors"):
            error = difference(
                *(load(x)["prompt_embeddings"].astype(float) for x in (data, old)), "composite"
            )
            if error > ADAPTER_TOLERANCE:
                problems.append(f"adapter/{name} is off by {error:.1e}")
    return problems


def difference(new: NDArray[Any], old: NDArray[Any], kind: str) -> float:
    """The error by kind: equal or infinite; largest; normwise relative. Infinite for another shape or dtype.

    Masked scores are left out of the last, but must agree.
    """
    if new.shape != old.shape or new.dtype != old.dtype:
        return float("inf")
    if kind == "exact" or new.dtype.kind in "iub":
        return 0.0 if numpy.array_equal(new, old) else float("inf")
    if kind == "drawn":
        return float(numpy.abs(new - old).max(initial=0.0))
    seen = numpy.abs(old) < 1e30
    if not numpy.array_equal(new[~seen], old[~seen]):
        return float("inf")
    scale = float(numpy.linalg.norm(old[seen]))
    error = float(numpy.linalg.norm(new[seen] - old[seen]))
    return error / scale if scale else error


def same_case(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether two cases are the same, HF's float32 distances apart within a factor."""
    for name, tensor in new["tensors"].items():
        a = tensor.pop("float32_distance", 0.0)
        b = old["tensors"].get(name, {}).pop("float32_distance", 0.0)
        if max(a, b) > FACTOR * max(min(a, b), LUCK):
            return False
    return new == old and list(new["tensors"]) == list(old["tensors"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="compare with the stored vectors")
    choice.add_argument("--only", metavar="GLOB", help="make some cases anew, from the stored models")
    choice.add_argument("--derive", action="store_true", help="only measure floors and margins anew")
    choice.add_argument(
        "--against", choices=["installed"], help="what the installed release of HF answers otherwise"
    )
    arguments = parser.parse_args()
    be_quiet()
    start = time.perf_counter()
    if arguments.derive:
        derive()
        print(f"floors, kill matrix and manifest, {time.perf_counter() - start:.0f} s")
        return 0
    if arguments.against:
        from against import changes, report  # which asks HF when it is imported

        with inside(GOLDEN / "models"):
            print(report(list(changes(RECIPES, GOLDEN / "vectors"))))
        print(f"{time.perf_counter() - start:.0f} s")
        return 0
    if arguments.check:
        problems = check()
        print(*problems, sep="\n", end="\n" if problems else "")
        print(f"{len(RECIPES)} vectors, {len(problems)} problems, {time.perf_counter() - start:.0f} s")
        return 1 if problems else 0
    made = generate_only(arguments.only) if arguments.only else generate()
    print(f"{made}, {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
