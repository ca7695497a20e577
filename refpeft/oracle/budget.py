"""How far an answer may be off: derived for each tensor and number format, never tuned (clause JG-3).

    budget = C · max(floor, u)

u is the format's unit roundoff. The floor is how far the specification itself is off when it is replayed in that format,
the worst of sixteen replays that differ in the order of summation and in the last place of the parameters, measured
against the same computation in a wider format. C leaves room for honest ports that do things in another order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy
from numpy.typing import NDArray

from refpeft import arrays
from refpeft.oracle import choices, names, rounded
from refpeft.oracle.protocol import Dtype
from refpeft.oracle.questions import GRADIENTS, TOKENS, Answer, Arithmetic, Ask, answer
from refpeft.oracle.rounded import FORMATS, Rounded
from refpeft.oracle.trajectory import STAGE, TRAINED, TRAINING
from refpeft.oracle.validity import Validity
from refpeft.oracle.wrapped import Wrapped, plain
from refpeft.steps import definition, replaced

FORWARD_MULTIPLIER = 8.0
"""C for values: specs/calibration.md has what honest ports spend of a budget, and by how much mistakes exceed one."""
GRADIENT_MULTIPLIER = 16.0
"""C for gradients: twice the forward's, because backward passes come in more orders."""
TRAINING_MULTIPLIER = 16.0
"""C for training: its steps are made of gradients."""
NARROW_MULTIPLIER = 4.0
"""C for everything in TF32, float16 and bfloat16, where replays round after each operation and most ports do so after several."""
DECIDING = 0.5
"""A budget above this decides nothing: an answer of zeros would be off by 1."""
MEANINGFUL_BITS = 12
"""A trajectory means something while the replays agree to half of float32's 24 bits (clause TR-8)."""
DRAWN_TOLERANCE = 4e-6
"""Absolute, for normal variates: torch's own vector and scalar code differ by up to 2.5e-6."""
MOVES = 7
"""In how many ways the inputs are moved: a scalar such as the loss needs several, or its floor is luck."""
HIDDEN = 1e30
"""Scores of this size and beyond are masked; they are compared by class (clause JG-5)."""
ELEMENTARY_ULPS = 1.5
"""One unit in the last place for the operation, half for storing it."""
ISLANDS = (
    "attention.weights",
    "attention.query_norm",
    "attention.key_norm",
    "block.input_norm",
    "block.attention_output_norm",
    "block.post_attention_norm",
    "block.post_cross_attention_norm",
    "block.mlp_output_norm",
    "block.output_norm",
    "decoder.embeddings_norm",
    "decoder.final_norm",
    "positions.rotary",
    "loss",
)
"""The steps that the profile float64-islands computes in float32: softmax, norms, rotary angles, loss (clause JG-4)."""


@dataclass(frozen=True)
class Profile:
    """In which numbers a port says that it computes."""

    name: str
    dtype: Dtype
    """What it reads and answers in."""
    unit_roundoff: float
    """u: half the distance from 1 to the next number of the format that limits it."""
    islands: tuple[str, ...] = ()
    """The steps that it computes in float32 all the same."""

    @property
    def simulated(self) -> type[Rounded] | None:
        """The arrays that its narrow arithmetic is replayed with; None where NumPy's own does it."""
        return FORMATS.get(self.name)


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("float32", "float32", 2.0**-24),
        Profile("float64", "float64", 2.0**-53),
        Profile("float64-islands", "float64", 2.0**-24, ISLANDS),
        Profile("tf32", "float32", 2.0**-11),
        Profile("float16", "float16", 2.0**-11, ("positions.rotary", "loss")),
        Profile("bfloat16", "bfloat16", 2.0**-8, ("positions.rotary", "loss")),
    )
}
"""The profiles that a port can declare. *Conforms* is a claim about float32, *float64-exact* about float64."""


class Floor(msgspec.Struct, frozen=True, array_like=True):
    """The worst errors of the replays."""

    norm: float
    """Of the normwise relative error."""
    largest: float
    """Of the largest error over the root mean square."""


@dataclass(frozen=True)
class Budget:
    """How far one tensor may be off, and why."""

    norm: float
    largest: float
    multiplier: float
    floor: Floor
    unit_roundoff: float
    trajectory: bool = False
    """Whether it grows over steps of training."""

    @property
    def decides(self) -> bool:
        """Whether a wrong answer could exceed it (clause JG-3)."""
        return self.norm <= DECIDING

    def derivation(self, measure: str = "normwise") -> str:
        """How the budget of one measure of error came about, for people."""
        floor, total = (
            (self.floor.norm, self.norm) if measure == "normwise" else (self.floor.largest, self.largest)
        )
        larger = "floor" if floor > self.unit_roundoff else "u"
        return (
            f"{total:.2g} = {self.multiplier:g} · max(floor {floor:.2g}, u {self.unit_roundoff:.2g}); "
            f"the {larger} decides{self._trajectory()}"
        )

    def _trajectory(self) -> str:
        if not self.trajectory or self.floor.norm == 0:
            return ""
        return f"; replays of the trajectory agree to {-math.log2(self.floor.norm):.0f} bits"


def budget_of(name: str, floor: Floor, profile: Profile) -> Budget:
    """C · max(floor, u) for both measures of error."""
    trajectory = name.startswith((TRAINING, TRAINED))
    multiplier = GRADIENT_MULTIPLIER if name.startswith(GRADIENTS) else FORWARD_MULTIPLIER
    multiplier = TRAINING_MULTIPLIER if trajectory else multiplier
    multiplier = NARROW_MULTIPLIER if profile.simulated else multiplier
    u = profile.unit_roundoff
    return Budget(
        multiplier * max(floor.norm, u), multiplier * max(floor.largest, u), multiplier, floor, u, trajectory
    )


def errors(given: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    """Normwise relative error ‖Δ‖/‖y‖, and largest error over the root mean square of y. Clause JG-1.

    Where y is zero throughout, errors are measured against one.
    """
    if expected.size == 0:
        return 0.0, 0.0
    difference = (given - expected).astype(numpy.float64)
    wanted = expected.astype(numpy.float64)
    scale = float(numpy.linalg.norm(wanted.ravel()))
    norm = float(numpy.linalg.norm(difference.ravel())) / (scale or 1.0)
    largest = float(numpy.abs(difference).max()) / (scale / wanted.size**0.5 or 1.0)
    return norm, largest


class _Reversed(Wrapped):
    """An array whose matrix products and sums run from the last term to the first."""

    __slots__ = ()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or not self.knows(inputs):
            return NotImplemented
        given = [plain(x) for x in inputs]
        if ufunc is numpy.matmul and given[0].ndim > 1 and given[1].ndim > 1:
            given = [
                numpy.ascontiguousarray(given[0][..., ::-1]),
                numpy.ascontiguousarray(given[1][..., ::-1, :]),
            ]
        return _Reversed(ufunc(*given, **kwargs))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        plain_args, plain_kwargs = plain(args), {name: plain(value) for name, value in kwargs.items()}
        if function in (numpy.sum, numpy.mean):
            plain_args = (numpy.ascontiguousarray(numpy.flip(plain_args[0])), *plain_args[1:])
            result = function(*plain_args, **plain_kwargs)
            return _Reversed(numpy.flip(result))
        result = function(*plain_args, **plain_kwargs)
        return _Reversed(result) if isinstance(result, numpy.ndarray | numpy.generic) else result


@functools.cache
def register_reversed() -> None:
    """Let autograd trace arrays that are summed backwards."""
    arrays.register(_Reversed, lambda array: array.value)


def _moved(seed: int) -> Callable[[Any], Any]:
    """Moves each entry by at most one unit in the last place: half stay, a quarter go up, a quarter down."""
    random = numpy.random.default_rng(seed)

    def move(array: Any) -> Any:
        where = random.integers(0, 4, size=array.shape)
        towards = numpy.where(where == 0, -numpy.inf, numpy.inf).astype(array.dtype)
        return numpy.where(where < 2, numpy.nextafter(array, towards), array).astype(array.dtype)

    return move


def replays(profile: Profile) -> Sequence[Arithmetic]:
    """Each plain, and with inputs moved in the last place in several ways; in wide formats summed forwards and backwards.

    In simulated formats products are added up in float32, so that their order does not matter.
    """
    if profile.simulated:
        return [simulation(profile.simulated, seed) for seed in range(MOVES + 1)]
    register_reversed()

    def unwrap(array: Any) -> Any:
        return array.value if isinstance(array, _Reversed) else array

    moves: list[Callable[[Any], Any]] = [lambda array: array, *(_moved(seed) for seed in range(1, MOVES + 1))]
    forwards = [Arithmetic(profile.dtype, move) for move in moves]
    backwards = [Arithmetic(profile.dtype, functools.partial(_reversed, move), unwrap) for move in moves]
    return (*forwards, *backwards)


def simulation(kind: type[Rounded], seed: int = 0) -> Arithmetic:
    """A narrow format's arithmetic; with a seed, inputs are moved to a neighbour at most."""
    rounded.register(kind)

    def wrap(array: Any) -> Rounded:
        return kind(rounded.moved(kind, seed, array)) if seed else kind.of(array)

    return Arithmetic("float32", wrap, rounded.opened)


def _reversed(move: Callable[[Any], Any], array: Any) -> _Reversed:
    return _Reversed(move(array))


def _island(name: str, profile: Profile) -> Callable[..., Any]:
    """The step, computed in float32 whatever comes in, its result put back into the format."""
    original, kind = definition(name), profile.simulated

    def narrow(x: Any) -> Any:
        floating = hasattr(x, "dtype") and numpy.dtype(x.dtype).kind == "f"
        return arrays.cast_to(rounded.opened(x), "float32") if floating else x

    def back(x: Any) -> Any:
        return rounded.closed(x, kind) if kind else arrays.cast_to(x, profile.dtype)

    def run(*args: Any, **kwargs: Any) -> Any:
        with numpy.errstate(over="ignore"):  # masked scores become −inf, as they may
            result = original(*map(narrow, args), **{key: narrow(value) for key, value in kwargs.items()})
        if isinstance(result, tuple):  # cosine and sine
            return tuple(back(part) for part in result)
        return back(result)

    return run


def in_profile(profile: Profile) -> AbstractContextManager[None]:
    """Within it, refpeft computes as the profile says: with float32 islands, or as usual."""
    return replaced({name: _island(name, profile) for name in profile.islands})


def reference(ask: Ask, profile: Profile) -> Answer:
    """The answer that a profile's floors are measured against: float64, or long double for float64 itself.

    Where a platform's long double is no wider than float64, the floor of float64 is only how far replays scatter.
    """
    return answer(ask, Arithmetic("longdouble" if profile.name == "float64" else "float64"))


def strayed(replay: NDArray[Any], target: NDArray[Any], counted: NDArray[Any]) -> tuple[float, float]:
    """The errors of one replay, masked scores aside; 1 where an element that counts is no number, which others may be.

    Of all elements, or of those that count alone, as a port's are measured, whichever is larger: next to padding of large
    values a small score that counts would seem exact.
    """
    lost, shown = ~numpy.isfinite(replay), numpy.abs(target) < HIDDEN
    if (lost & shown & counted).any():
        return 1.0, 1.0
    found = [errors(replay[kept], target[kept]) for kept in (shown & ~lost, shown & ~lost & counted)]
    return max(norm for norm, _ in found), max(largest for _, largest in found)


def measure(ask: Ask, profile: Profile, first: int | None = None) -> dict[str, Floor]:
    """The floor of every floating-point tensor of refpeft's answer, by replaying it; or by the `first` few replays alone.

    It is 1 where an element that counts comes out as no number: in float32, float64's most negative score is −∞, and the
    softmax over nothing but those is 0/0. Elements that do not count (JG-1) may.

    Replays of a generation follow the reference's tokens; the floor of its tokens is that of the scores that chose them.
    """
    with choices.recorded() as followed:
        wanted = dict(reference(ask, profile).tensors)
    worst: dict[str, tuple[float, float]] = {}
    valid = Validity.of(ask)
    for arithmetic in replays(profile)[:first]:
        with numpy.errstate(all="ignore"), in_profile(profile), choices.repeated(followed) as again:
            given = dict(answer(ask, arithmetic).tensors)
        if followed.made:
            given[TOKENS], wanted[TOKENS] = again.scores_as_in(followed), followed.scores
        for name, tensor in given.items():
            tensor, target = numpy.asarray(tensor), numpy.asarray(wanted[name])
            if tensor.dtype.kind != "f" or not numpy.isfinite(target).any():
                continue
            step = names.step_of(name)
            norm, largest = strayed(tensor, target, valid.of_tensor(step.axes if step else (), tensor.shape))
            before = worst.get(name, (0.0, 0.0))
            worst[name] = (max(norm, before[0]), max(largest, before[1]))
    return {name: Floor(*pair) for name, pair in worst.items()}


def agreement(ask: Ask, profile: Profile) -> list[float]:
    """To how many bits the replays of a training agree after each step: the least of its loss and parameters (TR-8)."""
    found: dict[int, float] = {}
    for name, floor in measure(ask, profile).items():
        stage = STAGE.fullmatch(name)
        if stage:
            bits = -math.log2(max(floor.norm, profile.unit_roundoff))
            found[int(stage[1])] = min(bits, found.get(int(stage[1]), bits))
    return [found[step] for step in sorted(found)]


def meaningful(bits: Sequence[float]) -> int:
    """The number of steps from the first on that agree to `MEANINGFUL_BITS`."""
    return next((step for step, agreed in enumerate(bits) if agreed < MEANINGFUL_BITS), len(bits))
