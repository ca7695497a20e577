"""Broken ports, found by `refpeft fuzz` alone: how many questions it takes, and how small the question is that is left.

`python tests/ports/searched.py [--seed 1] [--seconds 60] [JavaScript torch jax]` prints the table.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from named import NEEDS, TABLES, Broken, command_of

from refpeft.oracle import fuzzed
from refpeft.oracle.port import ProcessPort
from refpeft.oracle.search import Search
from refpeft.testing import cases

EXAMPLES = 600
"""So many questions at most."""


def search(command: list[str], seed: int, seconds: float, work: Path) -> tuple[Search, str]:
    """Search as `refpeft fuzz` does; what was found, in a line."""
    port = ProcessPort(command, timeout=120)
    found = Search(port, work, until=time.monotonic() + seconds)
    try:
        found.run(cases(port.abilities, profiles=("float32",)), max_examples=EXAMPLES, seed=seed)
        smallest = fuzzed.of_search(found, work / "failures")
    finally:
        port.close()
    if smallest is None:
        return found, f"not found in {found.examples} questions {found.ended}"
    example, results = smallest
    case = results.cases[0]
    mutants = results.diagnosis[0].mutants if results.diagnosis else []
    sizes = f"{example.layers}L {example.heads}H {example.virtual}v {example.batch}b {example.tokens}t {example.family}"
    stage = case.first.name if case.first else case.verdict
    return found, (
        f"at {example.first_at:3}, {example.asked_to_shrink:3} to shrink  {sizes:28} {case.question:15} {stage:42} {','.join(mutants) or '-'}"
        f"{' (' + found.ended + ')' if found.ended else ''}"
    )


def line(language: str, name: str, broken: Broken, seed: int, seconds: float) -> tuple[bool, str]:
    """Whether a broken port was found, and the line of the table."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        found, said = search(command_of(language, broken, root / "port"), seed, seconds, root / "work")
    return found.found is not None, f"{language:10} {name:50} {broken.mutant or '-':5} {said}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("languages", nargs="*", default=list(TABLES), choices=[*TABLES, []])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    count = 0
    lines = []
    for language in options.languages:
        if not (shutil.which(NEEDS[language]) or importlib.util.find_spec(NEEDS[language])):
            print(f"{language}: not here")
            continue
        for name, broken in TABLES[language].items():
            there, said = line(language, name, broken, options.seed, options.seconds)
            count += there
            lines.append(said)
            print(said, flush=True)
    print(f"{count} of {len(lines)} found")


if __name__ == "__main__":
    main()
