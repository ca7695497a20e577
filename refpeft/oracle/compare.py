"""One answer against what is expected of it: errors, budgets, masked scores, documents, and indices in words.

Clauses JG-1 to JG-5; specs/judging.md says why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy
from numpy.typing import NDArray

from refpeft.checkpoint import TENSOR
from refpeft.config import CONFIG_NAME
from refpeft.oracle import budget, questions
from refpeft.oracle.budget import HIDDEN, Floor, Profile
from refpeft.oracle.questions import PREFIX, Answer, Ask
from refpeft.oracle.vectors import Tensor
from refpeft.tensors import read_tensors

MASKED = -1e3
"""A masked score must be at most this (clause JG-5): its weight is then exactly zero in every format, and a port that *adds*
−1e4 to its scores passes."""
DECIDE_WHAT_COUNTS = ("inputs.attention_mask", "inputs.labels")
"""What says which positions count is itself compared at every position."""


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tensor or document of an answer, compared."""

    name: str
    ok: bool
    error: float | str = 0.0
    """Of the measure that came nearest to its budget, or exceeded it most. NaN and infinities are strings, as JSON wants."""
    budget: float = 0.0
    measure: str = ""
    """`normwise`, `largest`, `elementwise`, `absolute`, `exact`."""
    derivation: str = ""
    """How the budget came about."""
    bits: float | None = None
    """To how many bits the tensor agrees: −log2 of the normwise error."""
    where: str = ""
    """The worst index, in words."""
    reason: str = ""
    """What is wrong, where it is not a size of error."""
    clause: str = ""
    source: str = ""
    golden: bool = True
    """Compared with HF's own value; else with refpeft's, only to localise."""


def compare(
    name: str,
    tensor: Tensor,
    given: Any,
    expected: NDArray[Any],
    floor: Floor,
    profile: Profile,
    valid: Validity,
) -> Difference:
    """One tensor of an answer against its expected value; clauses JG-1 to JG-5."""
    step = questions.step_of(name)
    clause, source = (step.clause, step.source) if step else ("", "")

    def wrong(reason: str, where: str = "") -> Difference:
        return Difference(name, ok=False, reason=reason, where=where, clause=clause, source=source)

    try:
        given = numpy.asarray(given)
        if given.dtype.kind not in "iubfV":  # V: bfloat16 and the like
            return wrong(f"is not an array of numbers: its dtype is {given.dtype}")
        given = given.astype(numpy.float64) if given.dtype.kind not in "iub" else given
    except (TypeError, ValueError) as error:
        return wrong(f"is not an array of numbers: {error}")
    if given.shape != expected.shape:
        axes = f" ({', '.join(tensor.axes)})" if tensor.axes else ""
        return wrong(f"has shape {_shape(given.shape)}; it must be {_shape(expected.shape)}{axes}")
    everywhere = name in DECIDE_WHAT_COUNTS
    compared = (
        numpy.ones(expected.shape, bool) if everywhere else valid.of_tensor(tensor.axes, expected.shape)
    )
    if expected.dtype.kind == "f":
        masked = numpy.asarray(compared & (expected < -HIDDEN))
        if (given[masked] > MASKED).any() or numpy.isnan(given[masked]).any():
            index = _first(masked & ~(given <= MASKED))
            return wrong(
                f"is {given[index]:.4g} where the key is masked; it must be {MASKED:g} or less",
                valid.words(tensor.axes, index),
            )
        compared = numpy.asarray(compared & ~masked)
        unlike = numpy.asarray(compared & (numpy.isfinite(given) != numpy.isfinite(expected)))
        if unlike.any():
            index = _first(unlike)
            return wrong(
                f"is {given[index]} where HF has {expected[index]:.6g}", valid.words(tensor.axes, index)
            )
        compared = numpy.asarray(compared & numpy.isfinite(expected))
    with numpy.errstate(over="ignore", invalid="ignore"):  # an answer may be as large as it likes
        found = _measured(name, tensor.kind, given, expected, compared, floor, profile)
        worst = _worst(given, expected, compared, relative=tensor.kind == "elementary")
    where = "" if found.ok else valid.words(tensor.axes, worst)
    return msgspec.structs.replace(found, where=where, clause=clause, source=source)


def _measured(
    name: str,
    kind: str,
    given: NDArray[Any],
    expected: NDArray[Any],
    compared: NDArray[Any],
    floor: Floor,
    profile: Profile,
) -> Difference:
    """The error by the tensor's kind, against its budget."""
    y, wanted = given[compared].astype(numpy.float64), expected[compared].astype(numpy.float64)
    distance = numpy.abs(y - wanted)
    norm, largest = budget.errors(y, wanted)
    bits = round(-math.log2(norm), 1) if 0 < norm < math.inf else None
    if kind == "exact":
        count = int((distance != 0).sum())
        reason = f"{count} of {distance.size} entries differ; they must be equal" if count else ""
        return Difference(
            name,
            count == 0,
            _number(float(distance.max(initial=0))),
            0.0,
            "exact",
            "equal",
            bits,
            reason=reason,
        )
    if kind == "drawn":
        worst = float(distance.max(initial=0))
        allowed = budget.DRAWN_TOLERANCE
        return Difference(
            name, worst <= allowed, _number(worst), allowed, "absolute", "torch's own spread (PT-4)", bits
        )
    if kind == "elementary":
        ulps = distance / numpy.maximum(2 * profile.unit_roundoff * numpy.abs(wanted), 1e-300)
        worst = float(ulps.max(initial=0))
        allowed = budget.ELEMENTARY_ULPS
        return Difference(
            name, worst <= allowed, _number(worst), allowed, "elementwise", "units in the last place", bits
        )
    allowed_here = budget.budget_of(name, floor, profile)
    if norm / allowed_here.norm >= largest / allowed_here.largest:
        error, allowed, measure = norm, allowed_here.norm, "normwise"
    else:
        error, allowed, measure = largest, allowed_here.largest, "largest"
    return Difference(
        name, error <= allowed, _number(error), allowed, measure, allowed_here.derivation(measure), bits
    )


def _number(x: float) -> float | str:
    return x if math.isfinite(x) else str(x)


def _first(mask: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(i) for i in numpy.argwhere(mask)[0])


def _worst(
    given: NDArray[Any], expected: NDArray[Any], compared: NDArray[Any], *, relative: bool
) -> tuple[int, ...]:
    wanted = expected.astype(numpy.float64)
    distance = numpy.abs(given.astype(numpy.float64) - wanted)
    if relative:
        distance = distance / numpy.maximum(numpy.abs(wanted), 1e-300)
    distance = numpy.where(compared, distance, -1.0)
    return (
        tuple(int(i) for i in numpy.unravel_index(int(distance.argmax()), distance.shape))
        if distance.size
        else ()
    )


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def missing(name: str, answer: Answer) -> Difference:
    """A required tensor that the answer lacks."""
    step = questions.step_of(name)
    there = ", ".join(sorted(answer.tensors)[:5]) or "no tensors"
    return Difference(
        name,
        ok=False,
        reason=f"is missing from the answer, which has {there}{' …' if len(answer.tensors) > 5 else ''}",
        clause=step.clause if step else "",
    )


def compare_document(expected: Mapping[str, Any], given: Any) -> Difference:
    """A JSON answer: a configuration key for key, or a rejection."""

    def wrong(reason: str) -> Difference:
        return Difference(
            "document", ok=False, reason=reason, clause="CF-2" if "rejected" in expected else "CF-3"
        )

    if not isinstance(given, Mapping):
        return wrong(
            'is missing: answer with {"document": {"config": {…}}} or {"document": {"rejected": true}}'
        )
    if expected.get("rejected"):
        why = str(expected.get("message", ""))
        return (
            Difference("document", ok=True)
            if given.get("rejected") is True
            else wrong(f"accepts a configuration that HF peft rejects: {why}")
        )
    if given.get("rejected"):
        return wrong(f"rejects a configuration that HF peft accepts: {given.get('message', 'no message')}")
    wanted, found = expected["config"], given.get("config")
    if not isinstance(found, Mapping):
        return wrong("has no object `config`")
    for key in sorted({*wanted, *found}):
        if key not in found:
            return wrong(f"lacks the key `{key}`, which HF peft writes as {json.dumps(wanted[key])}")
        if key not in wanted:
            return wrong(f"has the key `{key}`, which HF peft does not write")
        if not _same(found[key], wanted[key]):
            return wrong(f"has `{key}` = {json.dumps(found[key])}; HF peft has {json.dumps(wanted[key])}")
    return Difference("document", ok=True, measure="exact")


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON: 1 is 1.0, but true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def read_adapter(answer: Answer) -> tuple[Answer, list[Difference]]:
    """An adapter directory that the port wrote, as tensors and document."""
    if answer.adapter is None:
        reason = 'is missing: answer with {"adapter": "…"}, the directory that the port wrote'
        return answer, [Difference("adapter", ok=False, reason=reason, clause="CK-2")]
    try:
        tensors = read_tensors(answer.adapter / "adapter_model.safetensors", "the adapter's weights")
        text = (answer.adapter / CONFIG_NAME).read_text(encoding="utf-8")
        document = {"config": json.loads(text)}
    except (OSError, ValueError, RecursionError) as error:
        return answer, [Difference("adapter", ok=False, reason=f"cannot be read: {error}", clause="CK-2")]
    strange = sorted(set(tensors) - {TENSOR})
    problems = []
    if strange:
        reason = f"adapter_model.safetensors has {', '.join(strange)}; HF peft writes one tensor, {TENSOR}"
        problems = [Difference("adapter", ok=False, reason=reason, clause="CK-1")]
    return Answer(tensors, document, answer.adapter), problems


# ---------------------------------------------------------------- which elements count, and what an index means


@dataclass(frozen=True)
class Validity:
    """Which positions hold real or virtual tokens: only those are compared (clause JG-1)."""

    mask: NDArray[Any] | None
    """(batch, tokens), True for tokens; None if the case has no mask."""
    virtual: int
    prompts: bool
    """Whether virtual tokens are among the queries (prompt tuning)."""

    @classmethod
    def of(cls, ask: Ask) -> Validity:
        """From the question's mask, configuration and method."""
        mask = ask.inputs.get("attention_mask")
        config = ask.config or {}
        prompts = config.get("peft_type") == "PROMPT_TUNING" and ask.method != PREFIX
        has_queries = ask.question != "mask"
        usable = mask is not None and has_queries
        return cls(
            numpy.asarray(mask) != 0 if usable else None, int(config.get("num_virtual_tokens") or 0), prompts
        )

    def of_tensor(self, axes: Sequence[str], shape: tuple[int, ...]) -> NDArray[Any]:
        """True where an element of a tensor with these axes counts."""
        counted = numpy.ones(shape, dtype=bool)
        if self.mask is None or "batch" not in axes:
            return counted
        rows = self.mask.shape[0]
        ahead = numpy.ones((rows, self.virtual), dtype=bool)
        extended = numpy.concatenate([ahead, self.mask], axis=1)
        along = {"tokens": self.mask, "query": extended if self.prompts else self.mask}
        if "query" not in axes:
            along["key"] = extended  # key and value states; scores and weights keep their masked keys
        for axis, valid in along.items():
            if axis in axes and valid.shape == (shape[axes.index("batch")], shape[axes.index(axis)]):
                view = [1] * len(shape)
                view[axes.index("batch")], view[axes.index(axis)] = valid.shape
                counted = counted & valid.reshape(view)
        return counted

    def words(self, axes: Sequence[str], index: tuple[int, ...]) -> str:
        """An index, said in words: "row 1, token 3 (the first after the padding), vocab 17"."""
        if len(axes) != len(index):
            return f"index {_shape(index)}" if index else ""
        row = index[axes.index("batch")] if "batch" in axes else None
        said = []
        for axis, i in zip(axes, index, strict=True):
            if axis in ("tokens", "query", "key"):
                said.append(self._position(axis, i, row))
            else:
                name = {
                    "batch": "row",
                    "head_dim": "dimension",
                    "virtual": "virtual token",
                    "kv_heads": "head",
                    "heads": "head",
                }
                said.append(f"{name.get(axis, axis)} {i}")
        return ", ".join(said)

    def _position(self, axis: str, i: int, row: int | None) -> str:
        ahead = self.virtual if axis == "key" or (axis == "query" and self.prompts) else 0
        start = "key: " if axis == "key" else ""
        if i < ahead:
            return f"{start}virtual token {i}"
        token = i - ahead
        if self.mask is not None and row is not None and token < self.mask.shape[1]:
            if not self.mask[row, token]:
                return f"{start}token {token} (padding)"
            if token > 0 and not self.mask[row, token - 1]:
                return f"{start}token {token} (the first after the padding)"
        return f"{start}token {token}{' (the first)' if token == 0 else ''}"
