"""Budgets: errors measured by hand, floors that mean something, and honest ports that stay below them.

Run as a program, this file measures over all vectors, without the type checks that make it slow: see `alone`.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import pytest

from refpeft import arrays
from refpeft.oracle import budget, questions
from refpeft.oracle.budget import (
    HIDDEN,
    ISLANDS,
    PROFILES,
    Budget,
    Floor,
    _moved,
    _Reversed,
    budget_of,
    errors,
    in_profile,
    measure,
)
from refpeft.oracle.cases import ask_of
from refpeft.oracle.floors import _stored, floors
from refpeft.oracle.names import step_of
from refpeft.oracle.questions import Arithmetic
from refpeft.oracle.validity import Validity
from refpeft.oracle.vectors import Vector, all_vectors, golden_directory
from refpeft.oracle.wrapped import plain
from refpeft.steps import definition, replaced

FLOAT32, FLOAT64, WITH_ISLANDS = PROFILES["float32"], PROFILES["float64"], PROFILES["float64-islands"]
SOME = 5
"""Each fifth vector is computed in many ways by a test; `python tests/oracle/test_budget.py honest` takes all."""
VECTORS = list(all_vectors())
COMPUTED = [v for v in VECTORS if any(t.kind == "composite" for t in v.case.tensors.values())]
STAGES = next(v for v in VECTORS if v.case.id.endswith("prefix_tuning/forward/stages-projected"))
GRADIENTS = next(v for v in VECTORS if v.case.id.endswith("prefix_tuning/gradients/projected"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floors of four replays instead of all."""
    monkeypatch.setattr(budget, "MOVES", 1)


# ---------------------------------------------------------------- errors


def test_errors_by_hand() -> None:
    assert errors(numpy.array([3.0, 4.5]), numpy.array([3.0, 4.0])) == (0.1, 0.5 / (5 / 2**0.5))
    assert errors(numpy.array([[1.0, -2.0]]), numpy.array([[1.0, -2.0]])) == (0.0, 0.0)
    norm, largest = errors(numpy.array([0.0, 2.0, 2.0, 1.0]), numpy.array([1.0, 1.0, 1.0, 1.0]))
    assert (norm, largest) == (3**0.5 / 2, 1.0)
    assert errors(numpy.array(3.0), numpy.array(2.0)) == (0.5, 0.5), "a single number"


def test_errors_of_zeros_are_measured_against_one() -> None:
    assert errors(numpy.array([0.0, 1e-3]), numpy.zeros(2)) == (1e-3, 1e-3)
    assert errors(numpy.zeros(2), numpy.zeros(2)) == (0.0, 0.0)
    assert errors(numpy.zeros((0, 3)), numpy.zeros((0, 3))) == (0.0, 0.0)


def test_one_bad_entry_of_many_shows_in_the_largest_error() -> None:
    wanted = numpy.ones(10_000)
    given = wanted.copy()
    given[77] += 1e-3
    norm, largest = errors(given, wanted)
    assert norm == pytest.approx(1e-5)
    assert largest == pytest.approx(1e-3)


def test_errors_of_long_double_are_not_rounded_first() -> None:
    if numpy.finfo(numpy.longdouble).eps == numpy.finfo(numpy.float64).eps:
        pytest.skip("long double is float64 here")
    wanted = numpy.array([1], numpy.longdouble) + numpy.longdouble(2) ** -60
    assert errors(numpy.array([1.0]), wanted)[0] == 2.0**-60


# ---------------------------------------------------------------- budgets


def test_the_larger_of_floor_and_roundoff_times_the_multiplier() -> None:
    u = 2.0**-24
    floor = Floor(3 * u, u / 2)
    assert budget_of("logits", floor, FLOAT32) == Budget(24 * u, 8 * u, 8.0, floor, u)
    assert budget_of("gradients.x", floor, FLOAT32) == Budget(48 * u, 16 * u, 16.0, floor, u)
    assert budget_of("loss", Floor(0, 0), FLOAT64) == Budget(2.0**-50, 2.0**-50, 8.0, Floor(0, 0), 2.0**-53)
    assert budget_of("my.gradients.x", floor, FLOAT32).multiplier == 8


def test_the_derivation_says_which_decides() -> None:
    allowed = budget_of("logits", Floor(1.25e-7, 1e-9), FLOAT32)
    assert allowed.derivation() == "1e-06 = 8 · max(floor 1.2e-07, u 6e-08); the floor decides"
    assert allowed.derivation("largest") == "4.8e-07 = 8 · max(floor 1e-09, u 6e-08); the u decides"
    assert (
        budget_of("gradients.a", Floor(0, 2e-16), FLOAT64).derivation("largest")
        == "3.2e-15 = 16 · max(floor 2e-16, u 1.1e-16); the floor decides"
    )


# ---------------------------------------------------------------- summation the other way round


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
def test_reversed_sums_in_another_order_and_keeps_the_dtype(dtype: str) -> None:
    random = numpy.random.default_rng(0)
    a, b = (1 / random.normal(size=shape).astype(dtype) for shape in ((5, 301), (301, 4)))
    differ = []
    for forwards, backwards in (
        (a @ b, _Reversed(a) @ b),
        (a @ b, a @ _Reversed(b)),
        (arrays.sum(a, axis=1), arrays.sum(_Reversed(a), axis=1)),
        (arrays.sum(a), arrays.sum(_Reversed(a))),
        (arrays.mean(a, axis=-1, keepdims=True), arrays.mean(_Reversed(a), axis=-1, keepdims=True)),
    ):
        assert isinstance(backwards, _Reversed)
        assert backwards.dtype == numpy.dtype(dtype)
        assert backwards.shape == forwards.shape
        assert errors(plain(backwards), numpy.asarray(forwards))[0] < 300 * float(numpy.finfo(dtype).eps)
        differ.append(bool((plain(backwards) != forwards).any()))
    assert any(differ[:2]), "matrix products run in another order"
    assert any(differ[2:]), "sums run in another order"


def test_reversed_terms_stand_where_they_did() -> None:
    """Whole numbers, where order does not matter: what comes out is the sum, not a reversed array."""
    a = numpy.arange(24.0).reshape(2, 3, 4)
    for axis in (None, 0, 1, 2, (0, 2), -1):
        for keepdims in (False, True):
            expected = numpy.sum(a, axis=axis, keepdims=keepdims)
            given = arrays.sum(_Reversed(a), axis=axis, keepdims=keepdims)
            assert (plain(given) == expected).all(), (axis, keepdims)
            assert given.shape == numpy.shape(expected)
    assert (plain(_Reversed(a) @ numpy.swapaxes(a, 1, 2)) == a @ numpy.swapaxes(a, 1, 2)).all()
    assert (plain(_Reversed(a)[0, 1:]) == a[0, 1:]).all()
    assert (len(_Reversed(a)), _Reversed(a).ndim, _Reversed(a).size) == (2, 3, 24)


@pytest.mark.parametrize("vector", [STAGES, GRADIENTS], ids=lambda v: v.case.question)
def test_the_whole_specification_runs_backwards_in_float32(vector: Vector) -> None:
    """Every stage is float32, equal to rounding, and some bits differ."""
    budget.register_reversed()
    ask = ask_of(vector)
    usual = questions.answer(ask, Arithmetic("float32")).tensors
    backwards = questions.answer(ask, Arithmetic("float32", _Reversed, plain)).tensors
    assert list(backwards) == list(usual)
    other = 0
    for name, tensor in usual.items():
        tensor, twin = numpy.asarray(tensor), numpy.asarray(backwards[name])
        assert twin.dtype == tensor.dtype != numpy.float64, name
        shown = numpy.abs(tensor) < HIDDEN
        assert errors(twin[shown].astype("float64"), tensor[shown].astype("float64"))[0] < 1e-5, name
        other += bool((twin != tensor).any())
    assert other > len(usual) / 2


def test_moved_moves_half_of_the_entries_by_one_unit() -> None:
    for dtype in ("float32", "float64"):
        array = numpy.linspace(-3, 5, 4000).astype(dtype)
        moved = _moved(1)(array)
        assert moved.dtype == array.dtype
        up, down = numpy.nextafter(array, numpy.inf), numpy.nextafter(array, -numpy.inf)
        assert ((moved == array) | (moved == up) | (moved == down)).all()
        parts = [(moved == x).mean() for x in (array, up, down)]
        assert numpy.allclose(parts, [0.5, 0.25, 0.25], atol=0.04)
        assert (moved == _moved(1)(array)).all()
        assert (moved != _moved(2)(array)).any()


# ---------------------------------------------------------------- islands


def representable(tensor: Any) -> bool:
    with numpy.errstate(over="ignore"):
        return bool((numpy.asarray(tensor).astype("float32") == tensor).all())


def test_islands_and_only_they_are_computed_in_float32() -> None:
    ask = ask_of(STAGES)
    usual = questions.answer(ask).tensors
    with in_profile(WITH_ISLANDS):
        given = questions.answer(ask).tensors
    islands = {name for name in given if (step := step_of(name)) and step.name in ISLANDS}
    islands = {name for name in islands if not name.endswith(".output")}  # a norm in BART, a sum in GPT-2
    assert len(islands) == 3 * 3 + 2
    for name, tensor in given.items():
        tensor = numpy.asarray(tensor)
        if tensor.dtype.kind == "f":
            exact = name.startswith("inputs.") or name == "decoder.embeddings"  # sums of bfloat16 numbers
            assert tensor.dtype == numpy.float64 or name == "inputs.attention_mask", name
            assert representable(tensor) == (name in islands or exact), name
        if name.startswith("prefix."):
            assert (tensor == usual[name]).all(), f"{name} comes before the first island"
    assert not any(representable(usual[name]) for name in islands)


def test_an_island_is_the_step_in_float32() -> None:
    scores = numpy.random.default_rng(0).normal(size=(1, 2, 3, 4))
    with in_profile(WITH_ISLANDS):
        island = budget._island("attention.weights", WITH_ISLANDS)(scores)
    assert island.dtype == numpy.float64
    assert (island == definition("attention.weights")(scores.astype("float32"))).all()
    with in_profile(FLOAT32), in_profile(FLOAT64):
        assert not representable(questions.answer(ask_of(STAGES)).tensors["loss"])


def test_gradients_pass_through_islands() -> None:
    ask = ask_of(GRADIENTS)
    with in_profile(WITH_ISLANDS):
        given = questions.answer(ask).tensors
    for name, tensor in GRADIENTS.expected.items():
        assert given[name].dtype == numpy.float64
        assert 2.0**-40 < errors(given[name], tensor)[0] < 1e-5, name


# ---------------------------------------------------------------- floors


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_floors_are_positive_and_small(profile: budget.Profile) -> None:
    """Everything computed is off by something, and by less than a hundred roundings for each of n steps in sequence."""
    steps = 60
    for vector in (STAGES, GRADIENTS):
        measured = measure(ask_of(vector), profile)
        for name, tensor in vector.case.tensors.items():
            before_islands = profile.islands == ISLANDS and name.startswith("prefix.")
            if tensor.kind == "composite":
                floor = measured[name]
                assert 0 < floor.norm < min(100 * steps * profile.unit_roundoff, 0.1), name
                assert 0 < floor.largest < min(100 * steps * profile.unit_roundoff, 1), name
                assert (floor.norm < 2.0**-45) == (profile.name == "float64" or before_islands), name
                assert floor.largest >= floor.norm, (
                    "the largest error over the root mean square is at least the mean one"
                )


def test_the_floor_is_the_worst_of_the_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matter in which order they come."""
    ask = ask_of(STAGES)
    replays = budget.replays(FLOAT32)
    answers = [questions.answer(ask, arithmetic).tensors for arithmetic in replays]
    wanted, found, valid = questions.answer(ask).tensors, measure(ask, FLOAT32), Validity.of(ask)
    for name in (
        "prefix.flat",
        "decoder.layers.0.attention.context",
        "decoder.layers.2.output",
        "logits",
        "loss",
    ):
        counts = valid.of_tensor(step_of(name).axes, wanted[name].shape)
        pairs = [
            errors(given[name][kept], wanted[name][kept])
            for given in answers
            for kept in (counts | True, counts)
        ]
        assert (found[name].norm, found[name].largest) == (max(p[0] for p in pairs), max(p[1] for p in pairs))
    pairs = [errors(given["logits"], wanted["logits"]) for given in answers]
    assert len(set(pairs)) == len(replays), "no two replays are alike"
    assert {str(given["logits"].dtype) for given in answers} == {"float32"}
    worst = max(range(len(pairs)), key=lambda i: pairs[i][0])
    monkeypatch.setattr(budget, "replays", lambda profile: replays[:1] if worst else replays[1:2])
    assert measure(ask, FLOAT32)["logits"].norm < found["logits"].norm


def test_a_few_replays_give_no_larger_floors() -> None:
    few, all_of_them = measure(ask_of(STAGES), FLOAT32, 1), measure(ask_of(STAGES), FLOAT32)
    assert few.keys() == all_of_them.keys()
    assert all(few[name].norm <= floor.norm for name, floor in all_of_them.items())
    assert few["logits"].norm < all_of_them["logits"].norm


def test_a_small_value_that_counts_is_not_measured_by_its_large_neighbours() -> None:
    """Found by the search: a score of 3e-4 beside padding of size 1, right to 2e-4 of itself, failed."""
    target, replay = numpy.array([1.0, 3e-4]), numpy.array([1.0, 3e-4 + 6e-8])
    everywhere, counted = numpy.array([True, True]), numpy.array([False, True])
    assert budget.strayed(replay, target, everywhere)[0] == pytest.approx(6e-8)
    assert budget.strayed(replay, target, counted)[0] == pytest.approx(2e-4)


def test_float64_is_measured_against_long_double() -> None:
    reference = budget.reference(ask_of(STAGES), FLOAT64).tensors["logits"]
    assert reference.dtype == numpy.longdouble
    assert budget.reference(ask_of(STAGES), FLOAT32).tensors["logits"].dtype == numpy.float64
    assert budget.reference(ask_of(STAGES), WITH_ISLANDS).tensors["logits"].dtype == numpy.float64


@pytest.mark.usefixtures("quick")
def test_masked_scores_and_nan_do_not_spoil_a_floor() -> None:
    ask = ask_of(STAGES)
    assert measure(ask, FLOAT32)["decoder.layers.0.attention.scores"].norm < 1e-6
    inputs = {**ask.inputs, "labels": numpy.full_like(ask.inputs["labels"], -100)}
    without = questions.Ask(ask.question, ask.method, ask.config, ask.arguments, inputs, ask.model)
    measured = measure(without, FLOAT32)
    assert "loss" not in measured
    assert measured["logits"].norm < 1e-5


# ---------------------------------------------------------------- honest ports


class Chunked(_Reversed):
    """Sums one term after another, matrix products in chunks of four: neither NumPy's order nor its reverse."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Chunked:
        return Chunked(self.value[plain(index)])

    def astype(self, dtype: Any) -> Chunked:
        return Chunked(self.value.astype(dtype))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        known = _Reversed | numpy.ndarray | numpy.generic | int | float
        if method != "__call__" or not all(isinstance(x, known) for x in inputs):
            return NotImplemented
        given = [plain(x) for x in inputs]
        if ufunc is not numpy.matmul:
            return Chunked(ufunc(*given, **kwargs))
        a, b = given
        chunks = [slice(start, start + 4) for start in range(0, a.shape[-1], 4)]
        products = (a[..., :, c, None] * b[..., None, c, :] for c in chunks)  # (…, rows, chunk, columns)
        return Chunked(functools.reduce(numpy.add, map(functools.partial(_one_by_one, axis=-2), products)))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function not in (numpy.sum, numpy.mean):
            result = function(*plain(args), **{key: plain(x) for key, x in kwargs.items()})
            return Chunked(result) if isinstance(result, numpy.ndarray | numpy.generic) else result
        x, axis = plain(args[0]), kwargs.get("axis")
        axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        axes = tuple(a % x.ndim for a in axes)
        total = x
        for a in sorted(axes, reverse=True):
            total = _one_by_one(total, a)
        if function is numpy.mean:
            total = total / total.dtype.type(x.size / max(total.size, 1))
        return Chunked(numpy.expand_dims(total, axes) if kwargs.get("keepdims") else total)


def _one_by_one(array: Any, axis: int) -> Any:
    return numpy.asarray(functools.reduce(numpy.add, numpy.moveaxis(array, axis, 0)))


def honest(dtype: str) -> Iterator[Arithmetic]:
    """Ways to compute that no floor was measured by."""
    first, second = _moved(101), _moved(102)
    yield Arithmetic(dtype, Chunked, plain)
    yield Arithmetic(dtype, first)
    yield Arithmetic(dtype, lambda array: Chunked(second(array)), plain)


def ratios(vector: Vector, profile: budget.Profile, given: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    """Error over budget, for every computed tensor and both measures."""
    stored, valid = floors(vector, profile), Validity.of(ask_of(vector))
    for name, tensor in vector.case.tensors.items():
        if tensor.kind == "composite":
            expected = vector.expected[name]
            counted = valid.of_tensor(tensor.axes, expected.shape) & (numpy.abs(expected) < HIDDEN)
            norm, largest = errors(numpy.asarray(given[name])[counted], expected[counted])
            allowed = budget_of(name, stored[name], profile)
            yield max(norm / allowed.norm, largest / allowed.largest), name


def worst_ratio(profile: budget.Profile, step: int) -> tuple[float, str, str]:
    """The largest part of a budget that an honest port uses, for each `step`-th vector: how much, of which tensor and case."""
    arrays.register(Chunked, lambda array: array.value)
    return max(
        (ratio, name, vector.case.id)
        for vector in COMPUTED[::step]
        for arithmetic in honest(profile.dtype)
        for ratio, name in ratios(vector, profile, questions.answer(ask_of(vector), arithmetic).tensors)
    )


def alone(what: str) -> dict[str, Any]:
    """What this file prints as a program, for some of the vectors; without a number it takes all."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run(
        [sys.executable, __file__, what, str(SOME)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    return dict(json.loads(process.stdout))


def test_honest_ports_stay_below_their_budgets() -> None:
    """With room to spare: at most three quarters of the budget is used. And the room is not a hall."""
    for profile, worst in alone("honest").items():
        assert 0.1 < worst[0] < 3 / 4, (profile, worst)


def test_a_mild_mistake_is_above_its_budget() -> None:
    """Norms with ε = 1e-6 instead of 1e-5: found at the first norm, and still visible in the logits."""

    def with_epsilon(name: str) -> Any:
        return lambda hidden, weight, bias, epsilon: definition(name)(hidden, weight, bias, 1e-6)

    norms = ("block.input_norm", "block.post_attention_norm", "decoder.final_norm")
    with replaced({name: with_epsilon(name) for name in norms}):
        given = questions.answer(ask_of(STAGES)).tensors
    found = {name: ratio for ratio, name in ratios(STAGES, FLOAT32, given)}
    assert found["logits"] > 2
    assert next(name for name, ratio in found.items() if ratio > 1) == "decoder.layers.0.input_norm"


# ---------------------------------------------------------------- floors.json


def worst_change(profile: budget.Profile, step: int) -> tuple[float, str, str]:
    """By what factor a stored floor and a measured one differ, at most. Below the unit roundoff it does not matter.

    Each profile is measured for a third of the cases (and of them, for each `step`-th), another third for each.
    """
    stored, u, worst = _stored(golden_directory()), profile.unit_roundoff, (1.0, "", "")
    for vector in COMPUTED[list(PROFILES).index(profile.name) :: step * len(PROFILES)]:
        measured = measure(ask_of(vector), profile)
        for name, floor in stored[vector.case.id].profiles[profile.name].items():
            for before, now in ((floor.norm, measured[name].norm), (floor.largest, measured[name].largest)):
                factor = max(before, u) / max(now, u)
                worst = max(worst, (max(factor, 1 / factor), name, vector.case.id))
    return worst


def test_stored_floors_are_what_is_measured() -> None:
    """Within a factor of four, for another BLAS."""
    found = alone("floors")
    assert set(found) == set(PROFILES)
    for profile, worst in found.items():
        assert worst[0] < 4, (profile, worst)


if __name__ == "__main__":
    measured_by = {"honest": (worst_ratio, (FLOAT32, FLOAT64)), "floors": (worst_change, PROFILES.values())}
    function, profiles = measured_by[sys.argv[1]]
    step = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    print(json.dumps({profile.name: function(profile, step) for profile in profiles}))
