"""The table of known mistakes: each is named, explained, called by some golden case, and changes what it answers."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy
import pytest

from refpeft.oracle.cases import ask_of
from refpeft.oracle.clauses import clauses
from refpeft.oracle.kill_matrix import kill_matrix, steps_called
from refpeft.oracle.mutants import MUTANTS, Mutant
from refpeft.oracle.mutants.mutant import each
from refpeft.oracle.questions import answer
from refpeft.oracle.vectors import Vector, all_vectors
from refpeft.steps import STEPS, definition, replaced

VECTORS = {vector.case.id: vector for vector in all_vectors()}
TRIED = 60
"""So many cases, of different models, are looked through for all of a mutant's replacements."""


def test_there_are_many_and_no_two_are_alike() -> None:
    assert len(MUTANTS) >= 130
    titles = [mutant.title for mutant in MUTANTS.values()]
    assert len(set(titles)) == len(titles)
    assert list(MUTANTS) == [mutant.id for mutant in MUTANTS.values()]
    areas = {mutant.clause[:2] for mutant in MUTANTS.values()}
    assert areas == {"PX", "PT", "MK", "PO", "AT", "TK", "TR", "GN", "CK"}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_explained(name: str) -> None:
    mutant = MUTANTS[name]
    assert re.fullmatch(r"M\d\d\d?", mutant.id)
    assert mutant.clause in clauses()
    assert 5 < len(mutant.title) <= 90
    assert not mutant.title.endswith(".")
    assert len(mutant.why) > 5
    assert mutant.make.__doc__
    assert mutant.make().keys() <= STEPS.keys()
    assert mutant.make().keys(), "it replaces something"


@functools.cache
def _cases_of(name: str) -> list[Vector]:
    """Cases in which it shows, of many kinds first."""
    found = kill_matrix().deciding(name, "float32")
    kinds: dict[tuple[str | None, str], list[str]] = {}
    for case in sorted(found, key=lambda case: VECTORS[case].case.question in ("training", "generate")):
        kinds.setdefault((VECTORS[case].case.model, VECTORS[case].case.method), []).append(case)
    firsts = [cases[0] for cases in kinds.values()]
    return [VECTORS[case] for case in [*firsts, *(c for c in found if c not in firsts)]]


def _counted(mutant: Mutant, called: set[str]) -> dict[str, Callable[..., Any]]:
    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return function(*args, **kwargs)

        return run

    return {name: wrapped(name, function) for name, function in mutant.make().items()}


@pytest.mark.parametrize("name", MUTANTS)
def test_every_replacement_is_called_and_something_changes(name: str) -> None:
    mutant, called = MUTANTS[name], set[str]()
    cases = _cases_of(name)
    for vector in cases[:TRIED]:
        ask = ask_of(vector)
        right = answer(ask).tensors
        with replaced(_counted(mutant, called)), numpy.errstate(all="ignore"):
            wrong = answer(ask).tensors
        assert any(
            numpy.shape(wrong[tensor]) != numpy.shape(right[tensor])
            or not numpy.array_equal(
                wrong[tensor], right[tensor], equal_nan=numpy.asarray(right[tensor]).dtype.kind == "f"
            )
            for tensor in right
        ), vector.case.id
        if called == mutant.make().keys():
            break
    for step in (
        mutant.make().keys() - called
    ):  # where a family's own norm, say, is not what the mistake is about
        with replaced(_counted(mutant, called)), numpy.errstate(all="ignore"):
            answer(ask_of(_case_that_calls(step)))
    assert called == mutant.make().keys()


@functools.cache
def _case_that_calls(step: str) -> Vector:
    """Any golden case that calls a step, one of each model looked at."""
    models: dict[str | None, Vector] = {}
    for vector in VECTORS.values():
        if vector.case.question == "gradients":
            models.setdefault(vector.case.model, vector)
    return next(vector for vector in models.values() if step in steps_called(ask_of(vector)))


def test_a_mutant_remembers_nothing_of_another_computation() -> None:
    """M29 notes by how much the text was scaled: in GPT-2, which does not scale, nothing may be left of Gemma."""
    gemma = next(
        v
        for v in VECTORS.values()
        if "prompt_tuning/forward/gemma-odd" in v.case.id and "logits" in v.case.tensors
    )
    gpt2 = VECTORS["peft-0.21.2/prompt_tuning/forward/aligned"]
    right = answer(ask_of(gpt2)).tensors["logits"]
    for vector in (gemma, gpt2):
        with replaced(MUTANTS["M29"].make()):
            wrong = answer(ask_of(vector)).tensors["logits"]
    assert numpy.array_equal(wrong, right)


def test_each_takes_the_definition_as_its_first_argument() -> None:
    steps = each(("loss", "logits"), lambda original, *args, **kwargs: (original, args, kwargs))
    assert steps["loss"](1, x=2) == (definition("loss"), (1,), {"x": 2})
    assert steps["logits"]() == (definition("logits"), (), {})
