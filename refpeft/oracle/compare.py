"""One answer against what is expected of it: errors, budgets, masked scores, documents, and indices in words.

Clauses JG-1 to JG-5; specs/judging.md says why.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy
from numpy.typing import NDArray

from refpeft.oracle import budget, names
from refpeft.oracle.budget import HIDDEN, Floor, Profile
from refpeft.oracle.questions import Answer
from refpeft.oracle.reply import printable
from refpeft.oracle.trajectory import TRAINED, TRAINING
from refpeft.oracle.validity import Validity
from refpeft.oracle.vectors import Tensor

MASKED = -1e3
"""A masked score must be at most this (clause JG-5): its weight is then exactly zero in every format, and a port that *adds*
−1e4 to its scores passes."""
DECIDE_WHAT_COUNTS = ("inputs.attention_mask", "inputs.labels")
"""What says which positions count is itself compared at every position."""
NARROW_PRODUCTS = "TF32 or half-precision matrix products"
PRODUCTS = (
    *("attention.query", "attention.key", "attention.value", "attention.scores", "attention.context"),
    *("attention.output", "mlp.activation", "mlp.output", "logits"),
)
"""Steps with a matrix product that narrow arithmetic would show in. Not a projection's first: its factors lie on the bfloat16 grid."""
NARROW = {"float16": 11, "bfloat16": 8}
"""Formats too narrow for every profile, and their significant bits."""
WHAT_IS_WANTED = "PP-4"
"""The clause about tensors that are missing or have another shape."""
LOSSES, UPDATE = f"{TRAINING}losses", "TR-1"
"""The losses of training, each before its step's update, and the clause about those that come after one: AdamW, schedule and
clipping (TR-1 to TR-3) are between them and the first."""
UNDECIDED = "undecided"
"""The measure of a tensor that is not compared: its budget would let anything pass (clause JG-3)."""
MISSING, SHAPE = "is missing", "has shape"
"""How reasons begin that are about no number."""
STEP = "step "
"""How the index of a series over the steps of training begins, in words."""
LONGEST_REASON = 2000
"""Characters of a reason that are kept."""


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tensor or document of an answer, compared."""

    name: str
    ok: bool
    error: float | str = 0.0
    """Of the measure that came nearest to its budget, or exceeded it most. NaN and infinities are strings, as JSON wants."""
    budget: float = 0.0
    measure: str = ""
    """`normwise`, `largest`, `elementwise`, `absolute`, `exact`, `undecided`."""
    derivation: str = ""
    """How the budget came about."""
    bits: float | None = None
    """To how many bits the tensor agrees: −log2 of the normwise error."""
    where: str = ""
    """The worst index, in words."""
    values: str = ""
    """The two numbers at the worst index."""
    hint: str = ""
    """What the kind of error looks like: a factor, a narrower format."""
    reason: str = ""
    """What is wrong, where it is not a size of error."""
    clause: str = ""
    source: str = ""
    golden: bool = True
    """Compared with HF's own value; else with refpeft's, only to localise."""

    def __post_init__(self) -> None:
        """A port's words are among these: nothing that would steer a terminal, and no book."""
        for name in ("name", "reason", "where"):
            text = printable(getattr(self, name))
            shown = text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 2]} …"
            msgspec.structs.force_setattr(self, name, shown)

    @property
    def failure(self) -> str:
        """What kind of failure it is: missing, shape, reason (another one: not finite, say), exact, or over budget."""
        if self.reason.startswith((MISSING, SHAPE)):
            return "missing" if self.reason.startswith(MISSING) else "shape"
        return "exact" if self.measure == "exact" else "reason" if self.reason else "over budget"

    @property
    def worst(self) -> str:
        """Where it is worst and the two numbers there, for people; a single number has no place."""
        if not self.where:
            return f"given {self.values}" if self.values else ""
        at = "over budget first at" if self.where.startswith(STEP) else "worst at"
        return f"{at} {self.where}: {self.values}" if self.values else f"{at} {self.where}"


def compare(
    name: str,
    tensor: Tensor,
    given: Any,
    expected: NDArray[Any],
    floor: Floor,
    profile: Profile,
    valid: Validity,
    truth: str = "HF",
) -> Difference:
    """One tensor of an answer against its expected value, which is `truth`'s; clauses JG-1 to JG-5."""
    step = names.step_of(name)
    clause, source = names.clause_of(name), step.source if step else ""

    def wrong(reason: str, where: str = "", clause: str = clause) -> Difference:
        return Difference(name, ok=False, reason=reason, where=where, clause=clause, source=source)

    try:
        given = numpy.asarray(given)
        if given.dtype.kind not in "iubfV":  # V: bfloat16 and the like
            return wrong(f"is not an array of numbers: its dtype is {given.dtype}")
        answered_in = str(given.dtype)
        given = given.astype(numpy.float64) if given.dtype.kind not in "iub" else given
    except (TypeError, ValueError) as error:
        return wrong(f"is not an array of numbers: {error}")
    if given.shape != expected.shape:
        axes = f" ({', '.join(tensor.axes)})" if tensor.axes else ""
        reason = f"{SHAPE} {_shape(given.shape)}; it must be {_shape(expected.shape)}{axes}"
        return wrong(reason, clause=WHAT_IS_WANTED)
    allowed = budget.budget_of(name, floor, profile)
    if tensor.kind == "composite" and not allowed.decides:
        reason = f"{name} decides nothing in {profile.name}: its budget is {allowed.derivation()}"
        return Difference(name, True, measure=UNDECIDED, reason=reason, clause=clause, source=source)
    if tensor.kind == "exact" and expected.dtype.kind == "f" and profile.dtype in NARROW:
        tensor = msgspec.structs.replace(tensor, kind="elementary")  # a copy of what is read into the format
    everywhere = name in DECIDE_WHAT_COUNTS
    compared = (
        numpy.ones(expected.shape, bool) if everywhere else valid.of_tensor(tensor.axes, expected.shape)
    )
    compared, unlike = _numbers(given, expected, compared, truth)
    if unlike is not None:
        reason, index = unlike
        later = name == LOSSES and index > (0,)
        return wrong(reason, valid.words(tensor.axes, index), UPDATE if later else clause)
    with numpy.errstate(over="ignore", invalid="ignore"):  # an answer may be as large as it likes
        found = _measured(name, tensor.kind, given, expected, compared, floor, profile)
        worst = _worst(given, expected, compared, relative=tensor.kind == "elementary")
        if found.ok:
            return msgspec.structs.replace(found, clause=clause, source=source)
        if tensor.axes == ["steps"]:
            worst = _first_over(found, given, expected)
            clause = UPDATE if name == LOSSES and worst > (0,) else clause
        hint = _hint(found, given[compared], expected[compared], answered_in, profile, truth)
    values = _values(given[worst], expected[worst], truth) if found.measure != "exact" else ""
    where = valid.words(tensor.axes, worst)
    return msgspec.structs.replace(found, where=where, values=values, hint=hint, clause=clause, source=source)


def _numbers(
    given: NDArray[Any], expected: NDArray[Any], compared: NDArray[Any], truth: str
) -> tuple[NDArray[Any], tuple[str, tuple[int, ...]] | None]:
    """What is left to be compared by its size; and what is wrong before that, with its place, or None (clause JG-5)."""
    if expected.dtype.kind != "f":
        return compared, None
    masked = numpy.asarray(compared & (expected < -HIDDEN))
    if (given[masked] > MASKED).any() or numpy.isnan(given[masked]).any():
        index = _first(masked & ~(given <= MASKED))
        return compared, (
            f"is {given[index]:.4g} where the key is masked; it must be {MASKED:g} or less",
            index,
        )
    compared = numpy.asarray(compared & ~masked)
    unlike = numpy.asarray(compared & (numpy.isfinite(given) != numpy.isfinite(expected)))
    if unlike.any():
        index = _first(unlike)
        return compared, (f"is {given[index]} where {truth} has {expected[index]:.6g}", index)
    return numpy.asarray(compared & numpy.isfinite(expected)), None


def _values(y: Any, wanted: Any, truth: str) -> str:
    """The two numbers with as many digits as tell them apart."""
    for digits in (6, 9, 17):
        if f"{y:.{digits}g}" != f"{wanted:.{digits}g}":
            break
    return f"{y:.{digits}g}, {truth} {wanted:.{digits}g}"


def _hint(
    found: Difference, y: NDArray[Any], wanted: NDArray[Any], answered_in: str, profile: Profile, truth: str
) -> str:
    """What a wrong answer looks like: stored too narrowly, a multiple of the right one, computed too narrowly."""
    if answered_in in NARROW and found.measure != "exact" and answered_in != profile.dtype:
        return f"the answer is {answered_in}, which holds no more than {NARROW[answered_in]} bits"
    square = float((wanted * wanted).sum())
    factor = float((y * wanted).sum()) / square if square else 1.0
    apart = abs(factor - 1) > max(1e-3, 4 * found.budget)
    if found.measure in ("normwise", "largest") and apart and _telling(factor, wanted.size):
        norm, _ = budget.errors(y / factor, wanted)
        if norm <= found.budget:
            return f"the answer is {factor:.6g} times {truth}'s: a mean for a sum, or the reverse?"
    narrow = 20 < (found.bits or 0) < 27 if profile.unit_roundoff < 2.0**-40 else 7 < (found.bits or 0) < 13
    if profile.unit_roundoff > 2.0**-40 and found.name.startswith((TRAINING, TRAINED)):
        narrow = False  # so many bits are left by any mistake in the optimiser
    narrow = narrow and not profile.simulated
    if narrow and found.measure in ("normwise", "largest"):
        like = "float32" if profile.unit_roundoff < 2.0**-40 else NARROW_PRODUCTS
        return f"it agrees to {found.bits:g} bits, as {like} would"
    return ""


def first_difference(differences: Sequence[Difference]) -> Difference | None:
    """The first tensor that differs, in topological order.

    Narrow matrix products are not to blame for it if a product before it came out in full precision.
    """
    exonerated = False
    for found in differences:
        if not found.ok:
            guess = exonerated and NARROW_PRODUCTS in found.hint
            return msgspec.structs.replace(found, hint="") if guess else found
        step = names.step_of(found.name)
        exonerated = exonerated or (
            step is not None and step.name in PRODUCTS and found.measure in ("normwise", "largest")
        )
    return None


def _telling(factor: float, size: int) -> bool:
    """Whether a factor says something: a single number is a multiple of any other, so there it must be whole."""
    if factor == 0 or not math.isfinite(factor):
        return False
    whole = max(abs(factor), 1 / abs(factor))
    return size > 1 or (whole < 1e6 and abs(whole - round(whole)) < 1e-4)


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
            name,
            worst <= allowed,
            _number(worst),
            allowed,
            "absolute",
            f"{allowed:g}: torch's own spread (PT-4)",
            bits,
        )
    if kind == "elementary":
        ulps = distance / numpy.maximum(2 * profile.unit_roundoff * numpy.abs(wanted), 1e-300)
        worst = float(ulps.max(initial=0))
        allowed = budget.ELEMENTARY_ULPS
        return Difference(
            name,
            worst <= allowed,
            _number(worst),
            allowed,
            "elementwise",
            f"{allowed:g} units in the last place",
            bits,
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


def _first_over(found: Difference, given: NDArray[Any], expected: NDArray[Any]) -> tuple[int]:
    """The step of training at which the budget is exceeded: from there on, errors only grow."""
    distance, wanted = numpy.abs(given - expected).astype(numpy.float64), expected.astype(numpy.float64)
    scale = float(numpy.linalg.norm(wanted))
    if found.measure == "normwise":
        spent = numpy.sqrt(numpy.cumsum(distance**2)) / (scale or 1.0)
    else:
        spent = distance / (scale / wanted.size**0.5 or 1.0)
    return (int((spent > found.budget).argmax()),)


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def missing(name: str, answer: Answer) -> Difference:
    """A required tensor that the answer lacks."""
    strange = [there for there in answer.tensors if not names.is_known(there)]
    near = difflib.get_close_matches(name, strange or list(answer.tensors), 1, 0.5)
    there = sorted(strange) or sorted(answer.tensors)
    has = (
        f"which has {', '.join(there[:5])}{' …' if len(there) > 5 else ''}"
        if there
        else "which has no tensors"
    )
    reason = f"{MISSING} from the answer, {has}" + (f"; is {near[0]} meant?" if near and strange else "")
    return Difference(name, ok=False, reason=reason, clause=WHAT_IS_WANTED)
