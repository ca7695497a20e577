"""What the wrong answers of a run look like: a known mistake, two of them, or narrow arithmetic (clause JG-13).

Every mutant that a failing case calls is computed; one *explains* the port's answer if each tensor that the port gave is
within the budget of the mutant's, as it is not within that of the reference. It is then tried on the other failing cases. Where
none explains a case alone, two at once are tried: the first of them must explain everything up to the first difference.
Where nothing does, the answer is compared with what narrower arithmetic would give.

A match suggests; it does not prove. What is reported says how many cases it explains, and whether conforming cases speak
against it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy

from refpeft.oracle import names
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.claims import Finding
from refpeft.oracle.evidence import Clue, Evidence, effective_bits, exonerated, is_noise
from refpeft.oracle.files_port import FilesPort
from refpeft.oracle.judge import Results
from refpeft.oracle.kill_matrix import DECIDED, KillMatrix, answer_of, kill_matrix, steps_called
from refpeft.oracle.mutants import MUTANTS, Mutant
from refpeft.oracle.reply import Port
from refpeft.oracle.teacher_forcing import ask_again
from refpeft.oracle.vectors import golden_directory

SECONDS = 4.0
"""After so long nothing new is tried."""
FIRST_OF_TWO = 3
"""So many mutants are tried as the first of two."""
LEAST = 20
"""So many mutants are tried whatever the time."""
SOME = 8
"""So many cases an arithmetic is read off."""
SWITCHES = {
    "tf32": (
        "torch: torch.set_float32_matmul_precision('highest') and torch.backends.cudnn.allow_tf32 = False; "
        "JAX: jax.config.update('jax_default_matmul_precision', 'highest'); MLX: MLX_ENABLE_TF32=0"
    ),
    "float16": "torch: no autocast, no .half(), torch_dtype=torch.float32; JAX: jax_default_matmul_precision='highest'; MLX: load in mx.float32",
    "bfloat16": (
        "torch: no autocast, torch_dtype=torch.float32; JAX on a TPU: jax.config.update('jax_default_matmul_precision', "
        "'highest'); MLX: load in mx.float32"
    ),
    "float32": "torch: .double() for inputs too; JAX: jax.config.update('jax_enable_x64', True); MLX has no float64 on a GPU",
}
"""What turns a narrow arithmetic off."""


def diagnose(evidence: Evidence, matrix: KillMatrix | None = None, seconds: float = SECONDS) -> list[Finding]:
    """What the failures look like, the most telling first; nothing if everything conforms."""
    if not evidence.failed:
        return []
    return list(_Search(evidence, matrix or kill_matrix(golden_directory()), seconds).findings())


class _Search:
    """One diagnosis: what was computed already, and how long it may go on."""

    def __init__(self, evidence: Evidence, matrix: KillMatrix, seconds: float) -> None:
        self._evidence, self._matrix = evidence, matrix
        self._end = time.monotonic() + seconds
        self._computed: dict[tuple[str, tuple[str, ...]], Mapping[str, Any] | None] = {}
        self._called: dict[str, frozenset[str]] = {}

    @property
    def _late(self) -> bool:
        return time.monotonic() > self._end

    def findings(self) -> Iterator[Finding]:
        """One after the other, each of the cases that those before it do not explain; last what nothing explains."""
        left, unknown = self._simplest_first(), list[Clue]()
        while left and not (self._late and len(left) < len(self._evidence.failed)):
            found = (
                self._of_one(left) or (None if unknown else self._of_arithmetic(left)) or self._of_two(left)
            )
            if found:
                yield found
                left = [clue for clue in left if clue.name not in found.cases]
                continue
            unknown += [clue for clue in left if clue.first == left[0].first]
            left = [clue for clue in left if clue.first != left[0].first]
        if unknown:
            yield Finding(
                "none",
                "no known mistake",
                [clue.name for clue in unknown],
                len(self._evidence.failed),
                first=unknown[0].first,
                bits=unknown[0].bits,
            )

    def _simplest_first(self) -> list[Clue]:
        """In the order asked, but of each first tensor one before any other of it: what differs early is told first."""
        seen: set[str] = set()
        fresh = [c for c in self._evidence.failed if not (c.first in seen or seen.add(c.first))]  # type: ignore[func-returns-value]
        return fresh + [c for c in self._evidence.failed if c not in fresh]

    def _answer(self, clue: Clue, mutants: Sequence[Mutant]) -> Mapping[str, Any] | None:
        """What the case comes to with these mistakes in it; None where it comes to nothing."""
        key = clue.vector.case.id, tuple(mutant.id for mutant in mutants)
        if key not in self._computed:
            given = answer_of(mutants, clue.ask)
            self._computed[key] = None if given is None else given.tensors
        return self._computed[key]

    def _explains(self, clue: Clue, mutants: Sequence[Mutant], *, stages: bool = False) -> bool:
        computed = self._answer(clue, mutants)
        answers = computed is not None and clue.first in clue.given and clue.first in computed
        return answers and not any(True for _ in clue.wrong(computed or {}, stages=stages))

    def _candidates(self, clue: Clue) -> list[Mutant]:
        """The mutants whose steps the case calls, the likely ones first: none conforming speaks against, they show, they are near."""
        case = clue.vector.case.id
        if case not in self._called:
            self._called[case] = steps_called(clue.ask)
        called = [m for m in MUTANTS.values() if m.make().keys() & self._called[case]]
        page = names.clause_of(clue.first)[:2]

        def likely(mutant: Mutant) -> tuple[bool, bool, bool]:
            silent = self._matrix.margin(case, mutant.id, "float32") == 0
            return self._against(mutant) > 0, silent, mutant.clause[:2] != page

        return sorted(called, key=likely)

    def _against(self, mutant: Mutant) -> int:
        """How many conforming cases decide the mutant."""
        return sum(
            self._matrix.margin(case, mutant.id, profile) >= DECIDED
            for case, profile in self._evidence.conforming
        )

    def _of_one(self, left: Sequence[Clue]) -> Finding | None:
        clue = left[0]
        matching: list[Mutant] = []
        for tried, mutant in enumerate(self._candidates(clue)):
            if self._late and (matching or tried >= LEAST):
                break
            matching += [mutant] if self._explains(clue, [mutant], stages=True) else []
        others = left[1:]
        for other in others:  # until one is left
            if len(matching) < 2 or self._late:
                break
            still = [m for m in matching if self._explains(other, [m])]
            matching = still or matching
        if not matching:
            return None
        fewest = min(map(self._against, matching))
        matching = [m for m in matching if self._against(m) == fewest]
        return self._finding("mutant", left, matching[:1], matching, fewest)

    def _of_two(self, left: Sequence[Clue]) -> Finding | None:
        clue = left[0]
        candidates = self._candidates(clue)
        beginnings = [m for m in candidates if self._begins(clue, m)][:FIRST_OF_TWO]
        for pair in ([first, second] for first in beginnings for second in candidates):
            if self._late:
                return None
            if not pair[0].make().keys() & pair[1].make().keys() and self._explains(clue, pair, stages=True):
                against = max(map(self._against, pair))
                return self._finding("two mutants", left, pair, pair, against)
        return None

    def _begins(self, clue: Clue, mutant: Mutant) -> bool:
        """Whether the mutant explains everything up to the first difference, and not what follows."""
        computed = self._answer(clue, [mutant])
        if computed is None:
            return False
        order = list(computed)
        if clue.first not in order:
            return False
        return all(order.index(name) > order.index(clue.first) for name in clue.wrong(computed))

    def _of_arithmetic(self, left: Sequence[Clue]) -> Finding | None:
        """Whether wider budgets, of narrower formats, hold everywhere, though those of the profile do not."""
        profile = left[0].profile
        narrower = ("float32",) if profile.dtype == "float64" else ("tf32", "float16", "bfloat16")
        same = [clue for clue in left if clue.profile is profile]
        if profile.simulated or any(map(exonerated, same)) or not all(map(is_noise, same)):
            return None
        bits = [each for clue in same[:SOME] for each in effective_bits(clue)]
        for name in narrower:
            if not any(True for c in same[:SOME] for _ in c.wrong(c.vector.expected, PROFILES[name])):
                return Finding(
                    "arithmetic",
                    f"the arithmetic of {_CALLED[name]}",
                    [clue.name for clue in same],
                    len(self._evidence.failed),
                    first=left[0].first,
                    clauses=["JG-4"],
                    bits=round(float(numpy.median(bits)), 1) if bits else None,
                    switch=SWITCHES[name],
                )
        return None

    def _finding(
        self,
        kind: Literal["mutant", "two mutants"],
        left: Sequence[Clue],
        together: Sequence[Mutant],
        mutants: Sequence[Mutant],
        against: int,
    ) -> Finding:
        explained, tried = [left[0]], 1
        for clue in left[1:]:
            if self._late:
                break
            tried += 1
            explained += [clue] if self._explains(clue, together) else []
        joint = " and " if kind == "two mutants" else ", or "
        return Finding(
            kind,
            joint.join(f"{mutant.id} {mutant.title}" for mutant in mutants),
            [clue.name for clue in explained],
            len(self._evidence.failed) - len(left) + tried,
            first=left[0].first,
            mutants=[mutant.id for mutant in mutants],
            clauses=list(dict.fromkeys(mutant.clause for mutant in mutants)),
            bits=left[0].bits,
            against=against,
            seen="; ".join(filter(None, dict.fromkeys(mutant.seen for mutant in mutants))),
        )


_CALLED = {
    "tf32": "TF32: matrix products whose factors have 11 bits",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float32": "float32",
}


def with_diagnosis(
    results: Results, evidence: Evidence, port: Port, golden: Path | None = None, seconds: float = SECONDS
) -> Results:
    """A run's results, with what its failures look like, and what none of its cases could have shown (JG-12, JG-13).

    A port that is still there is asked once more for the first wrong stages.
    """
    if results.expected_from != "HF peft" and not evidence.failed:
        return results
    matrix = kill_matrix(golden or golden_directory())
    asked = [(c.case, c.profile) for c in results.cases if c.verdict in ("CONFORMS", "NONCONFORMING")]
    findings = [_forced(finding, evidence, port) for finding in diagnose(evidence, matrix, seconds)]
    return msgspec.structs.replace(results, diagnosis=findings, blind_spots=matrix.blind_spots(asked))


def _forced(finding: Finding, evidence: Evidence, port: Port) -> Finding:
    """With what came of asking for the first wrong stage alone."""
    if finding.kind == "arithmetic" or isinstance(port, FilesPort):
        return finding
    clue = next(clue for clue in evidence.failed if clue.name == finding.cases[0])
    said = ask_again(port, clue.vector, clue.ask, clue.first, clue.profile)
    return msgspec.structs.replace(finding, forced=said)
