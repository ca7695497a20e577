"""T1 to T50 hold where their preconditions do, in every family, and fail by a margin where they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from identities.attention_cases import attention_cases
from identities.model_cases import DRAWN, model_cases
from identities.table import EVERY, FAMILIES, PROPERTIES, Run

from refpeft.steps import replaced

MARGIN = 1e4
"""A negative control fails by more than so many tolerances."""
FEW = max(1, settings().max_examples // 30)
"""Inputs of each identity, family, method and number of layers; of drawn sizes a whole profile's, of a control one."""

Make = Callable[[], Any]


def _runs(controls: bool) -> Iterator[Any]:
    for row in PROPERTIES:
        for run in row.fails if controls else row.holds:
            what = f"{row.number} {run.name} of {'a model' if run.methods else 'a layer'}"
            words = f": {run.violated}" if controls else ""
            yield from (pytest.param(run, name, id=f"{what}, {name}{words}") for name in run.on)


def _on_each(run: Run, name: str, check: Callable[[Make], None]) -> None:
    """The check on one attention layer, or on a model with each method, of each number of layers."""
    strategies = [model_cases(name, method, n) for method in run.methods for n in run.layers or (None,)]
    examples = 1 if run.violated else settings().max_examples if name == DRAWN else FEW
    for strategy in strategies or [attention_cases(name)]:
        _drawn(strategy, examples, check)


def _drawn(strategy: st.SearchStrategy[Make], examples: int, check: Callable[[Make], None]) -> None:
    @settings(max_examples=examples)
    @given(make=strategy)
    def run(make: Make) -> None:
        check(make)

    run()


@pytest.mark.parametrize(("run", "name"), list(_runs(controls=False)))
def test_holds(run: Run, name: str) -> None:
    _on_each(run, name, lambda make: run.check(make()))


@pytest.mark.parametrize(("run", "name"), list(_runs(controls=True)))
def test_fails_where_a_precondition_is_violated(run: Run, name: str) -> None:
    def check(make: Make) -> None:
        case = replace(make(), slack=MARGIN)
        with replaced(run.steps() if run.steps else {}), pytest.raises(AssertionError):
            run.check(case)

    _on_each(run, name, check)


def test_nothing_is_forgotten() -> None:
    """T1 to T50, each with what it says, where it holds and where it fails."""
    assert [row.number for row in PROPERTIES] == [f"T{number}" for number in range(1, 51)]
    for row in PROPERTIES:
        assert all((row.title, row.statement, row.preconditions, row.paper, row.holds, row.fails)), row.number
        assert all(run.on and set(run.on) <= set(EVERY) and not run.violated for run in row.holds), row.number
        assert all(run.on and set(run.on) <= set(FAMILIES) and run.violated for run in row.fails), row.number


def test_a_family_that_is_left_out_has_a_reason() -> None:
    """Over each family an identity holds or fails, or it says why it is about something else."""
    for row in PROPERTIES:
        said = {name for run in (*row.holds, *row.fails) for name in run.on}
        assert bool(row.silent) == bool(set(FAMILIES) - said), row.number
