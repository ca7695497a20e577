"""The search: an honest port is found nothing of, a broken one is found and shrunk, and whatever it does ends in a verdict."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from oracle.fake_ports import START, command
from oracle.test_diagnosis import RELU, Mistaken
from support import need

from refpeft.oracle import fuzzed, search
from refpeft.oracle.budget import PROFILES
from refpeft.oracle.evidence import Evidence
from refpeft.oracle.floors import Hurried
from refpeft.oracle.judge import judge_one
from refpeft.oracle.port import ReferencePort
from refpeft.oracle.process import ProcessPort
from refpeft.oracle.protocol import RunCommand
from refpeft.oracle.questions import Answer, Ask
from refpeft.oracle.reply import Port, Reply
from refpeft.oracle.search import Search, kept_failures, try_kept
from refpeft.oracle.vectors import Vector, all_vectors
from refpeft.testing import cases
from refpeft.transformer.families import FAMILIES

NODE = Path(__file__).resolve().parent.parent / "ports/node/port.mjs"


def searched(
    port: Port, work: Path, examples: int = 60, seed: int = 0, until: float | None = None, **chosen: Any
) -> Search:
    found = Search(port, work, until=until)
    found.run(cases(port.abilities, **chosen), max_examples=examples, seed=seed)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_found_of_the_reference(family: str, tmp_path: Path) -> None:
    found = searched(ReferencePort(), tmp_path, 25, families=[family])
    assert found.found is None
    assert not found.ended
    assert set(found.counts) <= {"CONFORMS", "SKIPPED"}
    assert found.counts["CONFORMS"] > 15


def test_floors_are_measured_as_far_as_an_answer_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None, then those of one replay, then all: what conforms by fewer conforms by more, and only the last says no."""
    measured: list[int | None] = []

    def compare(vector: Vector, *_: Any) -> tuple[str, list[Any]]:
        measured.append(vector.replays if isinstance(vector, Hurried) else None)
        return ("NONCONFORMING" if isinstance(vector, Hurried) else "CONFORMS"), []

    monkeypatch.setattr(search, "compare_answer", compare)
    found = searched(ReferencePort(), tmp_path, 25, questions=["forward"], profiles=["float32"])
    assert found.found is None
    assert measured
    assert measured == [1, None] * (len(measured) // 2)


def test_a_mistake_is_found_shrunk_and_named(tmp_path: Path) -> None:
    """Relu for tanh shows in a prefix with a projection alone; a question about the prefix is the simplest there is."""
    found = searched(Mistaken(RELU), tmp_path / "work", 400)
    smallest = fuzzed.of_search(found, tmp_path / "failures")
    assert smallest is not None
    example, results = smallest
    sizes = (example.family, example.layers, example.heads, example.virtual, example.batch, example.tokens)
    assert sizes == ("gpt2", 1, 1, 1, 1, 1)
    (case,) = results.cases
    assert (case.question, case.verdict) == ("prefix.encode", "NONCONFORMING")
    assert case.first is not None
    assert case.first.name == "prefix.projection_activation"
    assert (results.expected_from, results.blind_spots) == ("refpeft", [])
    assert results.diagnosis[0].mutants == ["M16"]
    assert 0 < example.first_at <= 400
    assert example.asked_to_shrink == found.examples - example.first_at > 0


def test_what_was_found_is_a_case_that_can_be_judged_alone(tmp_path: Path) -> None:
    port = Mistaken(RELU)
    smallest = fuzzed.of_search(searched(port, tmp_path / "work", 400), tmp_path / "failures")
    assert smallest is not None
    directory = Path(str(smallest[1].cases[0].reproduce))
    assert directory.parent == tmp_path / "failures"
    shutil.rmtree(tmp_path / "work")
    (vector,) = all_vectors(directory)
    again = judge_one(port, vector, PROFILES["float32"], tmp_path / "output", 1, None)
    assert (again.verdict, again.first and again.first.name) == (
        "NONCONFORMING",
        "prefix.projection_activation",
    )
    right = judge_one(ReferencePort(), vector, PROFILES["float32"], tmp_path / "output", 2, None)
    assert right.verdict == "CONFORMS"


class EveryOther(ReferencePort):
    """Adds something to every second answer."""

    may_differ = True
    count = 0

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        self.count += 1
        reply = super().ask(ask, request)
        if self.count % 2:
            return reply
        off = {name: numpy.asarray(value) + 1 for name, value in reply.answer.tensors.items()}
        return replace(reply, answer=Answer(off))


def test_two_different_answers_are_a_verdict_and_no_trouble(tmp_path: Path) -> None:
    found = searched(EveryOther(), tmp_path, questions=["mask"])
    assert found.found is not None
    assert found.found[1].verdict == "NONDETERMINISTIC"
    assert not found.ended


class Raising(ReferencePort):
    """Gives an error where there is padding."""

    may_differ = True

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        if not numpy.asarray(ask.inputs.get("attention_mask", 1)).all():
            return Reply("ERRORED", message="no padding here")
        return super().ask(ask, request)


def test_an_error_is_found_and_shrunk(tmp_path: Path) -> None:
    """Padding needs a row of two tokens."""
    found = searched(Raising(), tmp_path)
    assert found.found is not None
    drawn, asked = found.found
    assert (asked.verdict, asked.reply.message) == ("ERRORED", "no padding here")
    assert (drawn.batch, drawn.tokens, drawn.question) == (1, 2, "mask")


def test_a_crash_is_found(tmp_path: Path) -> None:
    port = ProcessPort(command(rest=[["exit", 3]], start=[["say", {**START, "questions": ["mask"]}]]))
    try:
        found = searched(port, tmp_path)
    finally:
        port.close()
    assert found.found is not None
    assert found.found[1].verdict == "CRASHED"


def test_a_port_that_hangs_ends_the_search(tmp_path: Path) -> None:
    port = ProcessPort(
        command(rest=[["hang"]], start=[["say", {**START, "questions": ["mask"]}]]), timeout=1.0
    )
    try:
        found = searched(port, tmp_path)
    finally:
        port.close()
    assert (found.ended, found.examples) == ("a time-out", 1)
    assert found.found is not None
    assert found.found[1].verdict == "TIMEOUT"


def test_the_time_limit_ends_the_search(tmp_path: Path) -> None:
    found = searched(ReferencePort(), tmp_path, until=time.monotonic() - 1)
    assert (found.ended, found.examples, found.found) == ("time limit", 0, None)


def test_a_time_limit_amid_shrinking_keeps_the_smallest_so_far(tmp_path: Path) -> None:
    """The clock stops at the fifth wrong answer."""
    found = Search(Mistaken(RELU), tmp_path, until=float("inf"))

    def advance() -> None:
        if len(found.wrong) == 4:  # the fifth is counted, and not yet kept
            found.until = 0.0

    found.advance = advance
    found.run(cases(found.port.abilities), max_examples=400, seed=0)
    assert (found.ended, len(found.wrong)) == ("time limit", 5)
    assert found.found is not None
    sizes = list(found._sizes.values())
    assert found._sizes[found.found[0].key] == min(sizes) < sizes[0]


class Interrupting(Mistaken):
    """Ctrl-C at a question."""

    def ask(self, ask: Ask, request: RunCommand) -> Reply:
        if request.seq == 5:
            raise KeyboardInterrupt
        return super().ask(ask, request)


def test_an_interrupt_keeps_what_there_is(tmp_path: Path) -> None:
    found = searched(Interrupting({}), tmp_path)
    assert (found.ended, found.examples, found.found) == ("interrupted", 4, None)


def test_the_same_seed_asks_the_same(tmp_path: Path) -> None:
    first, second, other = (
        searched(Mistaken(RELU), tmp_path / str(i), 400, seed) for i, seed in enumerate((1, 1, 2))
    )
    assert first.found is not None
    assert second.found is not None
    assert first.found[0] == second.found[0]
    assert list(first.wrong) == list(second.wrong) != list(other.wrong)


def test_nothing_is_left_of_what_conforms(tmp_path: Path) -> None:
    searched(ReferencePort(), tmp_path, 10)
    assert not list((tmp_path / "drawn/models").iterdir())
    assert not (tmp_path / "answers").exists()


def test_kept_failures_are_asked_again_and_go_when_mended(tmp_path: Path) -> None:
    state = tmp_path / "state"
    smallest = fuzzed.of_search(searched(Mistaken(RELU), tmp_path / "work", 400), state)
    assert smallest is not None
    (state / "fuzz.damaged.float32").mkdir()
    (state / "other").mkdir()
    assert [directory.name for directory, _, _ in kept_failures(state)] == [
        Path(str(smallest[1].cases[0].reproduce)).name
    ]
    evidence = Evidence()
    ((still, _),) = try_kept(Mistaken(RELU), state, tmp_path / "again", ["float32"], evidence)
    assert (still.result.verdict, len(evidence.failed)) == ("NONCONFORMING", 1)
    assert not list(try_kept(Mistaken(RELU), state, tmp_path / "again", ["float64"], evidence))
    ((mended, _),) = try_kept(ReferencePort(), state, tmp_path / "again", ["float32"], evidence)
    assert mended.result.verdict == "CONFORMS"
    assert sorted(path.name for path in state.iterdir()) == ["fuzz.damaged.float32", "other"]


def test_shards_have_seeds_of_their_own() -> None:
    seeds = [fuzzed.seed_of(5, (part, 3)) for part in (1, 2, 3)]
    assert len({5, *seeds}) == 4
    assert fuzzed.seed_of(5, (1, 1)) == 5
    assert fuzzed.seed_of(5, (2, 3)) == seeds[1]


def test_a_port_in_another_language_conforms(tmp_path: Path) -> None:
    port = ProcessPort([need("node"), str(NODE)])
    try:
        found = searched(port, tmp_path, 100)
    finally:
        port.close()
    assert found.found is None
    assert found.counts["CONFORMS"] > 50
