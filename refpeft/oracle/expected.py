"""What an answer is compared with: HF's values from a golden case, or refpeft's own, stage by stage as they are computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import numpy
from numpy.typing import NDArray

from refpeft.oracle import questions
from refpeft.oracle.budget import PROFILES, Floor, Profile, in_profile
from refpeft.oracle.floors import floors
from refpeft.oracle.names import step_of
from refpeft.oracle.own import OwnVector
from refpeft.oracle.questions import Arithmetic, Ask
from refpeft.oracle.together import MOVES, Replay, Together, floor_of
from refpeft.oracle.validity import Validity
from refpeft.oracle.vectors import Vector

Take = Callable[[str, NDArray[Any], Floor], None]
"""Is given a tensor's name, its expected value in float64, and its floor."""
FLOAT64_FROM_FLOAT32 = PROFILES["float64"].unit_roundoff / PROFILES["float32"].unit_roundoff
"""Rounding errors grow with u: float64's floors are float32's times this (clause JG-11)."""


class _Enough(Exception):  # noqa: N818  (nothing has failed)
    """Every tensor that was asked for has been taken."""


def each_expected(vector: Vector, ask: Ask, profile: Profile, names: Collection[str], take: Take) -> None:
    """Hand over the expected value and the floor of each of the named tensors, in the order of computation."""
    if isinstance(vector, OwnVector):
        if names:
            own_expected(ask, profile, names, take)
        return
    known = floors(vector, profile)
    for name in names:
        take(name, vector.expected[name], known.get(name, Floor(0.0, 0.0)))


def derivation_of_floors(vector: Vector, profile: Profile) -> str:
    """How a floor came about that is not a golden case's, for people; else nothing."""
    if not isinstance(vector, OwnVector):
        return ""
    scaled = ", scaled from float32" if profile.name == "float64" else ""
    return f"; the floor is of {2 * (MOVES + 1)} replays on your model{scaled} (JG-11)"


def own_expected(ask: Ask, profile: Profile, names: Collection[str], take: Take) -> None:
    """The same for the user's own model, one stage at a time, all in one pass (clause JG-11).

    A single number has too few replays to go by: the loss has at least the floor of its logits.
    """
    scale = FLOAT64_FROM_FLOAT32 if profile.name == "float64" else 1.0
    left, of_logits, valid = set(names), Floor(0.0, 0.0), Validity.of(ask)

    def consume(name: str, value: Any) -> None:
        nonlocal of_logits
        if name not in left and name != "logits":
            return
        step = step_of(name)
        counted = valid.of_tensor(step.axes if step else (), numpy.shape(value))
        floor = floor_of(value, counted) if isinstance(value, Together) else Floor(0.0, 0.0)
        floor = Floor(scale * floor.norm, scale * floor.largest)
        if name == "logits":
            of_logits = floor
        elif name == "loss":
            floor = Floor(max(floor.norm, of_logits.norm), max(floor.largest, of_logits.norm))
        if name in left:
            left.remove(name)
            take(name, numpy.asarray(value.values[0] if isinstance(value, Together) else value), floor)
        if not left:
            raise _Enough

    replay = Replay("float32" if profile.name == "float64" else profile.dtype)
    arithmetic = Arithmetic("float64", replay.wrap, lazy=True, into=consume)
    try:
        with warnings.catch_warnings(), in_profile(profile):
            warnings.simplefilter("ignore", UserWarning)
            for name, value in questions.answer(ask, arithmetic).tensors.items():
                consume(name, value)
    except _Enough:
        pass
