"""Numbers of a wrong answer around its worst place, few enough to be kept in a report: what heat maps are drawn from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy
from numpy.typing import NDArray

from refpeft.oracle import names, questions
from refpeft.oracle.budget import HIDDEN
from refpeft.oracle.questions import Answer, Ask
from refpeft.oracle.validity import Validity
from refpeft.oracle.vectors import Tensor, Vector

ROWS, COLUMNS = 16, 24
"""The largest excerpt."""
WEIGHTS = re.compile(r".+\.(?:cross_)?attention\.weights")
"""The stages that are attention maps."""

Numbers = list[list[float | str]]


class Excerpt(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A part of one tensor as a table: what was expected, what was given. NaN and infinities are strings."""

    name: str
    axes: list[str]
    """Of rows and columns; a series has columns alone."""
    at: str
    """Where the table lies along the tensor's other axes, in words."""
    size: list[int]
    """Rows and columns of the whole table."""
    start: list[int]
    """The first row and column shown."""
    worst: list[int]
    """Row and column of the largest difference, counted in the whole table."""
    expected: Numbers
    given: Numbers
    difference: Numbers
    """given − expected, by itself: it may be far smaller than the digits kept of either."""
    virtual: int = 0
    """Of an attention map: so many of the first columns are virtual tokens."""


def excerpts_of(
    vector: Vector, ask: Ask, answer: Answer, differences: Sequence[Any], first: Any
) -> list[Excerpt]:
    """The first tensor that differs, and an attention map: the first that differs, else the first that was answered.

    Args:
        vector: The case.
        ask: Its question.
        answer: What was given.
        differences: Every comparison (`Difference`), in order.
        first: The first that differs.
    """
    maps = [d for d in differences if WEIGHTS.fullmatch(d.name)]
    attention = next((d for d in maps if not d.ok), maps[0] if maps else first)
    own: Mapping[str, Any] = {}
    found = []
    for name in dict.fromkeys((first.name, attention.name)):
        if name not in answer.tensors:
            continue
        if name not in vector.expected and not own:
            own = questions.answer(ask).tensors
        wanted = vector.expected.get(name, own.get(name))
        step = names.step_of(name)
        tensor = vector.case.tensors.get(name) or (Tensor(step.kind, list(step.axes)) if step else None)
        excerpt = None if wanted is None or tensor is None else _excerpt(name, tensor, answer, wanted, ask)
        found += [] if excerpt is None else [excerpt]
    return found


def _excerpt(name: str, tensor: Tensor, answer: Answer, wanted: Any, ask: Ask) -> Excerpt | None:
    """A window around the worst element; None where the two cannot be laid side by side."""
    given, expected = numpy.asarray(answer.tensors[name]), numpy.asarray(wanted)
    if given.shape != expected.shape or given.dtype.kind not in "iubfV" or not given.size:
        return None
    given, expected = given.astype(numpy.float64), expected.astype(numpy.float64)
    valid = Validity.of(ask)
    with numpy.errstate(all="ignore"):
        difference = given - expected
        worst = _worst(difference, expected, valid.of_tensor(tensor.axes, expected.shape))
    axes = list(tensor.axes) if len(tensor.axes) == expected.ndim else [""] * expected.ndim
    along = max(0, expected.ndim - 2)
    tables = [numpy.atleast_2d(array[worst[:along]]) for array in (expected, given, difference)]
    place = (0, 0, *worst[along:])[-2:]
    size = tables[0].shape
    start = [max(0, min(place[i] - most // 2, size[i] - most)) for i, most in enumerate((ROWS, COLUMNS))]
    window = tuple(slice(begin, begin + most) for begin, most in zip(start, (ROWS, COLUMNS), strict=True))
    expected_part, given_part, difference_part = (
        _numbers(table[window], digits) for table, digits in zip(tables, (6, 6, 3), strict=True)
    )
    return Excerpt(
        name,
        axes[along:],
        valid.words(axes[:along], worst[:along]),
        list(size),
        start,
        [int(i) for i in place],
        expected_part,
        given_part,
        difference_part,
        virtual=_virtual_columns(name, ask, size) if WEIGHTS.fullmatch(name) else 0,
    )


def _worst(difference: NDArray[Any], expected: NDArray[Any], counted: NDArray[Any]) -> tuple[int, ...]:
    """Where the largest difference is; masked scores do not count, and what is no number counts most."""
    distance = numpy.where(numpy.isfinite(difference), numpy.abs(difference), numpy.inf)
    distance = numpy.where(counted & ~(expected < -HIDDEN), distance, -1.0)
    return tuple(int(i) for i in numpy.unravel_index(int(distance.argmax()), distance.shape))


def _virtual_columns(name: str, ask: Ask, size: Sequence[int]) -> int:
    """How many of the keys of an attention map are virtual tokens: a prefix has no queries, a prompt has."""
    queries, keys = size
    config = ask.config or {}
    if "cross_attention" in name:
        return 0
    if keys > queries:
        return keys - queries
    behind = config.get("task_type") == "SEQ_2_SEQ_LM" and name.startswith("decoder.")
    prompts = config.get("peft_type") == "PROMPT_TUNING" and not behind
    return min(keys, int(config.get("num_virtual_tokens") or 0)) if prompts else 0


def _numbers(table: NDArray[Any], digits: int) -> Numbers:
    return [[_number(float(x), digits) for x in row] for row in table]


def _number(x: float, digits: int) -> float | str:
    return float(f"{x:.{digits}g}") if math.isfinite(x) else str(x)
