"""What a mutant is: a known mistake, as other functions in the place of some steps.

    @mutant("M16", "relu instead of tanh in the projection", clause="PX-2", why=…, seen=…)
    def relu_in_the_projection() -> Steps:
        return {"prefix.projection_activation": relu}

A mutant is made anew for each use, so that one that has to remember something between two steps (how many virtual
tokens there are, say) remembers nothing of another computation. Its functions are called with a step's own arguments.
What they do not change they leave to the step's definition: `steps.definition(name)`.

Mistakes that change a shape are no mutants: every comparison names those by the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from refpeft.oracle import questions  # noqa: F401  (whatever can be asked: its steps are in the table)
from refpeft.steps import definition

Steps = Mapping[str, Callable[..., Any]]
"""Replacements by the names of the steps that they replace."""


@dataclass(frozen=True)
class Mutant:
    """A known mistake. Ids and titles are printed in reports; ids never change."""

    id: str
    title: str
    """What is done instead of what the clause says."""
    clause: str
    """The clause that it violates."""
    why: str
    """Why people make it."""
    seen: str
    """Where it was seen; empty if it was not."""
    make: Callable[[], Steps]
    """The replacements, made anew."""


def mutant(
    name: str, title: str, *, clause: str, why: str, seen: str = ""
) -> Callable[[Callable[[], Steps]], Mutant]:
    """Makes a mutant of the function that makes its replacements."""

    def entered(make: Callable[[], Steps]) -> Mutant:
        return Mutant(name, title, clause, why, seen, make)

    return entered


def each(names: tuple[str, ...], change: Callable[..., Any]) -> Steps:
    """`change(definition, *arguments)` in the place of each of the steps."""

    def replacement(name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: change(definition(name), *args, **kwargs)

    return {name: replacement(name) for name in names}


def noting(name: str, what: Callable[..., Any]) -> tuple[list[Any], Steps]:
    """A step as it is, and what it saw, for the steps that come after it: `what(result, *arguments)` of each call."""
    notes: list[Any] = []

    def noted(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        notes.append(what(result, *args, **kwargs))
        return result

    return notes, each((name,), noted)


def noting_virtual() -> tuple[list[int], Steps]:
    """How many virtual tokens a prompt has."""
    return noting("inputs.embeddings", lambda result, prompts, embeds: prompts.shape[1])


def noting_mask() -> tuple[list[Any], Steps]:
    """The mask over virtual tokens and text."""
    return noting("inputs.attention_mask", lambda result, mask, n: result)
