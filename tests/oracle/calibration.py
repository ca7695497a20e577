"""The study behind C (clause JG-3): what honest variants spend of a budget, and which mistakes exceed one.

    python tests/oracle/calibration.py            writes specs/calibration.md; some minutes
    python tests/oracle/calibration.py --port "HF peft=python tests/ports/hf_peft.py" …    with what real ports spend

Honest variants (tests/oracle/honest.py) are run on every family, summed forwards and, in wide formats, backwards. Mistakes are the
mutants; their margins are those of golden/kill_matrix.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from oracle.honest import HONEST, IN_FLOAT32_ALONE, Steps, is_honest

from refpeft.oracle import budget
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import ask_of
from refpeft.oracle.floors import floors
from refpeft.oracle.judge import Selection
from refpeft.oracle.kill_matrix import CEILING, DECIDED, FORMATS, kill_matrix
from refpeft.oracle.mutants import MUTANTS
from refpeft.oracle.port import ProcessPort
from refpeft.oracle.questions import Arithmetic, answer, is_required
from refpeft.oracle.rounded import BFloat16Throughout
from refpeft.oracle.run import judge
from refpeft.oracle.vectors import Vector, all_vectors
from refpeft.oracle.wrapped import plain
from refpeft.steps import replaced

ASKED = ("forward", "gradients", "checkpoint.load", "prefix.encode", "attention")
"""Questions whose answers are computed."""
EACH = 5
"""Of so many such cases one is taken."""
PAGE = Path(__file__).resolve().parents[2] / "specs" / "calibration.md"


def sample(each: int = EACH) -> list[Vector]:
    """Every so many-th case, of every family."""
    return [v for v in all_vectors() if v.case.question in ASKED][::each]


def arithmetics(profile: str) -> list[Arithmetic]:
    """In which the variants are run: forwards and backwards, or a simulation."""
    kind = PROFILES[profile].simulated
    if kind:
        return [budget.simulation(kind)]
    budget.register_reversed()
    dtype = PROFILES[profile].dtype
    return [Arithmetic(dtype), Arithmetic(dtype, budget._Reversed, plain)]


def spent(vector: Vector, steps: Steps, profile: str, arithmetic: Arithmetic) -> float:
    """The largest error of a required tensor, in budgets, of the specification with some steps replaced."""
    known, ask = floors(vector, PROFILES[profile]), ask_of(vector)
    with numpy.errstate(all="ignore"), budget.in_profile(PROFILES[profile]), replaced(steps):
        given = answer(ask, arithmetic).tensors
    worst = 0.0
    for name, floor in known.items():
        allowed = budget.budget_of(name, floor, PROFILES[profile])
        tensor = vector.case.tensors[name]
        if is_required(vector.case.question, name) and tensor.kind == "composite" and allowed.decides:
            shown = numpy.isfinite(vector.expected[name]) & (numpy.abs(vector.expected[name]) < budget.HIDDEN)
            valid = budget.Validity.of(ask).of_tensor(tensor.axes, shown.shape) & shown
            norm, largest = budget.errors(numpy.asarray(given[name])[valid], vector.expected[name][valid])
            worst = max(worst, norm / allowed.norm, largest / allowed.largest)
    return worst


def spent_by(name: str, profile: str, vectors: Iterable[Vector]) -> list[float]:
    """What one variant spends in each case, the worse of its orders of summation."""
    steps = {**HONEST, **IN_FLOAT32_ALONE}[name]
    return [max(spent(v, steps, profile, a) for a in arithmetics(profile)) for v in vectors]


def spent_by_port(command: Sequence[str]) -> Mapping[str, list[float]]:
    """What a real port spends of its budgets, by profile: the worst required tensor of each case."""
    port, found = ProcessPort(command, timeout=120), dict[str, list[float]]()
    try:
        selection = Selection(list(all_vectors()), [PROFILES[p] for p in port.abilities.profiles])
        with tempfile.TemporaryDirectory() as work:
            for case in judge(port, selection, Path(work) / "work", None):
                used = [
                    float(d.error) / d.budget
                    for d in case.differences
                    if d.measure in ("normwise", "largest")
                ]
                if case.verdict in ("CONFORMS", "NONCONFORMING"):
                    found.setdefault(case.profile, []).append(max(used, default=0.0))
    finally:
        port.close()
    return found


# ---------------------------------------------------------------- the page


def page(ports: Mapping[str, Sequence[str]]) -> str:
    """The contents of specs/calibration.md."""
    vectors, profiles = sample(), ("float64", *FORMATS)
    lines = [
        "# Calibration of the budgets",
        "",
        "What C (JG-3) leaves room for, and what exceeds it. Written by `python tests/oracle/calibration.py`, which runs every honest",
        f"variant of [tests/oracle/honest.py](../tests/oracle/honest.py) on {len(vectors)} golden cases of every family: the worst share",
        "of a budget that a required tensor spends. In float32 and float64 each is summed forwards and backwards. A dash: in that format",
        "it is not honest (constants of float32 in float64; in float16 an exponential without a shift overflows from a score of 11.1 on).",
        "",
        _row("honest variant", *profiles),
        _row("---", *["---"] * len(profiles)),
    ]
    for name in (*HONEST, *IN_FLOAT32_ALONE):
        shares = [f"{max(spent_by(name, p, vectors)):.2f}" if is_honest(name, p) else "-" for p in profiles]
        lines.append(_row(name, *shares))
        print(lines[-1], flush=True)
    budget.rounded.register(BFloat16Throughout)
    throughout = budget.simulation(BFloat16Throughout)
    worst = max(spent(v, {}, "bfloat16", throughout) for v in vectors)
    lines.append(_row("products added up in bfloat16", *["-"] * (len(profiles) - 1), f"{worst:.2f}"))
    lines += _of_ports(ports)
    lines += _of_mutants()
    return "\n".join(lines) + "\n"


def _of_ports(ports: Mapping[str, Sequence[str]]) -> list[str]:
    lines = [
        "",
        "Real ports, over all cases that they answer:",
        "",
        _row("port", "profile", "cases", "median", "worst"),
        _row(*["---"] * 5),
    ]
    for name, command in ports.items():
        for profile, shares in spent_by_port(command).items():
            lines.append(
                _row(name, profile, str(len(shares)), f"{numpy.median(shares):.2g}", f"{max(shares):.2g}")
            )
            print(lines[-1], flush=True)
    return lines if ports else []


def _of_mutants() -> list[str]:
    matrix = kill_matrix()
    lines = [
        "",
        f"The known mistakes (JG-12): by how many of {len(matrix.rows)} cases each is decided (a margin of {DECIDED:g} budgets or more), and the",
        "clearest margin, in budgets; ∞: something that must be equal is not.",
        "",
        _row("mistake", *FORMATS),
        _row("---", *["---"] * len(FORMATS)),
    ]
    lines += [
        _row(f"{m.id} {m.title} ({m.clause})", *(_decided(matrix, m.id, p) for p in FORMATS))
        for m in MUTANTS.values()
    ]
    blind = {p: [m for m in MUTANTS if not matrix.deciding(m, p)] for p in FORMATS}
    lines += ["", "Decided by no case at all:", ""]
    lines += [f"- {profile}: {', '.join(names) if names else 'none'}" for profile, names in blind.items()]
    return lines


def _decided(matrix: Any, mutant: str, profile: str) -> str:
    margins = [matrix.margin(case, mutant, profile) for case in matrix.rows]
    finite = [margin for margin in margins if margin < CEILING]
    best = "∞" if max(margins) >= CEILING else f"{max(finite):.2g}"
    return f"{sum(margin >= DECIDED for margin in margins)}, {best}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", action="append", default=[], metavar="NAME=COMMAND")
    arguments = parser.parse_args()
    ports = {
        name: shlex.split(command) for name, _, command in (text.partition("=") for text in arguments.port)
    }
    PAGE.write_text(page(ports), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
