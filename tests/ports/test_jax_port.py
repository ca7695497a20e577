"""A second implementation, in JAX and of three families, agrees with HF peft's values in every format that it has.

It shares no code with refpeft. By default it is asked every tenth case of each question; all of them with REFPEFT_CASES=all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from support import EVERY_CASE, need

from refpeft.oracle.budget import PROFILES
from refpeft.oracle.cases import can_answer, in_order
from refpeft.oracle.judge import Results, Selection, summarise
from refpeft.oracle.port import ProcessPort
from refpeft.oracle.run import judge
from refpeft.oracle.vectors import Vector, all_vectors

PORT = Path(__file__).parent / "jax_port.py"
STEP = 1 if EVERY_CASE else 10

pytestmark = pytest.mark.live

need("jax")


def sample(port: ProcessPort) -> list[Vector]:
    """Every tenth case of each question that the port is asked, the simplest first."""
    by_question = defaultdict(list)
    for vector in in_order(all_vectors()):
        if can_answer(port.abilities, vector):
            by_question[vector.case.question].append(vector)
    return [vector for vectors in by_question.values() for vector in vectors[::STEP]]


def judged(profile: str, work: Path) -> Results:
    port = ProcessPort([sys.executable, str(PORT)], timeout=120)
    try:
        selection = Selection(sample(port), [PROFILES[profile]], partial=STEP > 1)
        return summarise(port, selection, list(judge(port, selection, work, None)))
    finally:
        port.close()


@pytest.mark.parametrize("profile", ["float64", "float32", "bfloat16"])
def test_the_jax_port_conforms(tmp_path: Path, profile: str) -> None:
    """It skips nothing itself. What bfloat16 does not decide are tokens, which depend on the smallest differences."""
    results = judged(profile, tmp_path)
    found = [(case.case, case.verdict, case.first, case.message) for case in results.cases]
    assert [one for one in found if one[1] not in ("CONFORMS", "SKIPPED")] == []
    assert results.summary.verdict == "CONFORMS"
    assert results.summary.float64_exact == (profile == "float64")
    skipped = [case for case in results.cases if case.verdict == "SKIPPED"]
    assert all("nothing is decided" in case.message for case in skipped)
    assert {case.question for case in skipped} == ({"generate"} if profile == "bfloat16" else set())
    assert len({case.question for case in results.cases}) == 10


def test_it_answers_what_it_cannot_do() -> None:
    """A task beyond it is skipped with a reason, an unknown command is an error (PP-1), and `stop` ends it."""
    saving = {
        "question": "checkpoint.save",
        "config": {"task_type": "SEQ_CLS"},
        "inputs": None,
        "output": ".",
    }
    commands = [{"cmd": "run", "seq": 3, **saving}, {"cmd": "sing"}, {"cmd": "stop"}]
    lines = "".join(json.dumps(command) + "\n" for command in commands)
    run = subprocess.run([sys.executable, PORT], input=lines, capture_output=True, text=True, check=True)
    skipped, errored = map(json.loads, run.stdout.splitlines())
    assert skipped == {"seq": 3, "skipped": {"message": "the task SEQ_CLS is not written"}}
    assert errored["seq"] == -1
    assert errored["errored"]["traceback"]
