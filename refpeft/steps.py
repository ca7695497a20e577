"""What a step is: a decision that a port can get wrong, as a small function with a name and a clause label.

    @step("prefix.key", clause="PX-4", stage="prefix.layers.{layer}.key", axes="batch kv_heads virtual head_dim")
    def key(rows, layer): ...

One mechanism, four uses: the body is the *definition* that people read; inside `recording()` each step's result is
kept under the name of its *stage*; inside `replaced({...})` another function takes a step's place (a *mutant*). Both live in
context variables, so threads do not meet and nothing is patched. Where nobody looks inside, a *kernel* computes a whole
function at once, and faster (`accelerated`).

A stage's name is its step's template filled in with the current scope, e.g. `prefix.layers.{layer}.key` within
`scope(layer=0)` gives `prefix.layers.0.key`. Stage names are public and never change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar, cast

from refpeft.arrays import value_of

P = ParamSpec("P")
R = TypeVar("R")

Kind = Literal["exact", "elementary", "composite", "tokens"]
"""How far apart two right answers may be: not at all; one rounding; a derived budget; ties aside not at all (clause JG-2)."""


@dataclass(frozen=True)
class Step:
    """One row of the table of steps."""

    name: str
    """The step's name, the same for every layer: what `replaced` takes."""
    clause: str
    """The label of the clause in specs/ that this step implements."""
    stage: str
    """Template of the stage's name; `{stack}`, `{layer}`, `{attention}` (or cross_attention) and `{which}` (nothing, or
    decoder_ for what is given to a decoder behind an encoder) come from the scope. Empty: replaceable, not recorded."""
    kind: Kind
    """The class of the result, by provenance."""
    axes: tuple[str, ...]
    """Names of the result's axes, from the one axis alphabet of specs/notation.md."""
    source: str
    """Where HF computes this: file and function, transformers 5.23.0 and peft 0.21.2."""
    definition: Callable[..., Any]
    """The body, undecorated."""


STEPS: dict[str, Step] = {}
"""Every step by name, in the order of definition."""

_recorder: ContextVar[Callable[[str, Any], None] | None] = ContextVar("refpeft_recorder", default=None)
_replacements: ContextVar[Mapping[str, Callable[..., Any]]] = ContextVar("refpeft_replacements")
_scope: ContextVar[Mapping[str, object]] = ContextVar("refpeft_scope")
_NOTHING: Mapping[str, Any] = {}
_OUTSIDE: Mapping[str, object] = {"which": "", "attention": "attention"}
"""What a stage's name says where no scope says otherwise: the only sequence, and a layer's own attention."""


def step(
    name: str, *, clause: str, axes: str, stage: str | None = None, kind: Kind = "composite", source: str = ""
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Enter a function in the table of steps (see the module's docstring).

    Raises:
        ValueError: another step has the name.
    """

    def enter(function: Callable[P, R]) -> Callable[P, R]:
        if name in STEPS:
            raise ValueError(f"two steps are named {name!r}: {STEPS[name].definition} and {function}")
        entry = Step(
            name, clause, name if stage is None else stage, kind, tuple(axes.split()), source, function
        )
        STEPS[name] = entry

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            replacement = _replacements.get(_NOTHING).get(name)
            result = cast("R", replacement(*args, **kwargs)) if replacement else function(*args, **kwargs)
            record = _recorder.get()
            if record is not None and entry.stage:
                record(entry.stage.format_map(_scope.get(_OUTSIDE)), value_of(result))
            return result

        return run

    return enter


# ---------------------------------------------------------------- faster equals

KERNELS: dict[str, Callable[..., Any]] = {}
"""Faster equals by the name of the function, `attention.dot_product_attention`; entered by `kernel`."""
_kernels: ContextVar[frozenset[str] | None] = ContextVar("refpeft_kernels", default=None)


def accelerated(function: Callable[P, R]) -> Callable[P, R]:
    """A definition whose kernel, if there is one, is called instead of it, wherever that cannot be seen.

    Inside `recording()` and `replaced()` the definition runs, so that every stage is recorded and every mutant takes effect; and
    where the kernel answers `NotImplemented`: it does not serve these arguments.
    """
    name = f"{function.__module__.removeprefix('refpeft.')}.{function.__name__}"

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        found = KERNELS.get(name)
        if found is None or not _unseen(name):
            return function(*args, **kwargs)
        result = found(*args, **kwargs)
        return function(*args, **kwargs) if result is NotImplemented else cast("R", result)

    return run


def _unseen(name: str) -> bool:
    allowed = _kernels.get()
    return (
        _recorder.get() is None and not _replacements.get(_NOTHING) and (allowed is None or name in allowed)
    )


def kernel(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Enter a faster equal of an `accelerated` function, by that function's name."""

    def enter(function: Callable[P, R]) -> Callable[P, R]:
        KERNELS[name] = function
        return function

    return enter


@contextmanager
def kernels(*names: str) -> Iterator[None]:
    """Within it, these kernels alone are used. Without a name none is, so that every definition runs as it reads.

    Raises:
        KeyError: there is no kernel of a name.
    """
    unknown = sorted(set(names) - set(KERNELS))
    if unknown:
        raise KeyError(f"no kernel is named {', '.join(unknown)}; there are: {', '.join(sorted(KERNELS))}")
    token = _kernels.set(frozenset(names))
    try:
        yield
    finally:
        _kernels.reset(token)


@contextmanager
def scope(**variables: object) -> Iterator[None]:
    """Say in which layer, of which stack, the steps inside run; it fills in the names of their stages. Scopes nest."""
    token = _scope.set({**_scope.get(_OUTSIDE), **variables})
    try:
        yield
    finally:
        _scope.reset(token)


@contextmanager
def recording(into: Callable[[str, Any], None] | None = None) -> Iterator[dict[str, Any]]:
    """Collect the result of each step run inside, by stage name, in the order of computation, unboxed from autograd.

    With `into`, nothing is kept: each stage's name and value are handed to it as they are computed, so that a large
    model's stages need not all exist at once. What it raises ends the computation. A recording inside another collects
    for itself only.
    """
    stages: dict[str, Any] = {}
    token = _recorder.set(stages.__setitem__ if into is None else into)
    try:
        yield stages
    finally:
        _recorder.reset(token)


def _forgotten(stage: str, value: Any) -> None:
    """A recorder that keeps nothing."""


@contextmanager
def unrecorded() -> Iterator[None]:
    """Within it, nothing is recorded; within a recording, definitions run all the same, as in the rest of it."""
    token = _recorder.set(_recorder.get() and _forgotten)
    try:
        yield
    finally:
        _recorder.reset(token)


@contextmanager
def replaced(replacements: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Run other functions in the place of the named steps. Nested replacements add up; the inner one wins.

    A replacement that wants the original calls `definition(name)`.

    Raises:
        KeyError: a name that is no step, with the names that are near it.
    """
    for name in replacements:
        definition(name)
    token = _replacements.set({**_replacements.get(_NOTHING), **replacements})
    try:
        yield
    finally:
        _replacements.reset(token)


def definition(name: str) -> Callable[..., Any]:
    """The defining function of a step, whatever replaces it now.

    Raises:
        KeyError: no step has the name; with the names that are near it.
    """
    if name not in STEPS:
        import difflib

        near = difflib.get_close_matches(name, STEPS) or sorted(STEPS)
        raise KeyError(f"no step is named {name!r}; did you mean: {', '.join(near)}?")
    return STEPS[name].definition
