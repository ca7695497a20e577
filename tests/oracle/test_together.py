"""One pass gives what separate replays give; and its floors, with C, tell honest ports from mild mistakes (clause JG-11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
from oracle.honest import HONEST
from oracle.own_models import KINDS, adapter_directory, base_directory
from support import EVERY_CASE

from refpeft.oracle import budget, questions
from refpeft.oracle.budget import PROFILES, Floor, in_profile
from refpeft.oracle.cases import ask_of
from refpeft.oracle.expected import own_expected
from refpeft.oracle.mutants import MUTANTS
from refpeft.oracle.own import OwnVector, draw_texts, open_own_model, own_vectors
from refpeft.oracle.questions import Arithmetic, Ask, is_required
from refpeft.oracle.together import MOVES, Replay, Shared, Together, floor_of
from refpeft.oracle.wrapped import plain
from refpeft.steps import replaced
from refpeft.stored import Stored

MODELS = ("gpt2-odd", "gpt2-even", "gpt2-aligned")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[OwnVector]]:
    """The questions with logits or gradients of each golden model with each kind of adapter, as somebody's own."""
    found = {}
    for model in MODELS:
        for kind in KINDS:
            work = tmp_path_factory.mktemp(f"{model}-{kind}")
            own = open_own_model(base_directory(model), adapter_directory(work / "adapter", kind, model))
            asked = own_vectors(own, draw_texts(own), work)
            found[model, kind] = [
                v for v in asked if v.case.question in ("forward", "gradients", "checkpoint.load")
            ]
    return found


def expected(ask: Ask, profile: str, names: Any) -> dict[str, tuple[Any, Floor]]:
    found: dict[str, tuple[Any, Floor]] = {}
    own_expected(
        ask, PROFILES[profile], names, lambda name, value, floor: found.update({name: (value, floor)})
    )
    return found


# ---------------------------------------------------------------- the array


def test_integers_are_the_same_in_all_and_real_numbers_are_not() -> None:
    value = Replay("float32").wrap(numpy.array([[1.0, 2.0], [3.0, 1e-9]]))
    assert isinstance(value, Together)
    assert len(value.values) == 1 + 2 * (MOVES + 1)
    assert (value.shape, value.ndim, value.size, len(value)) == ((2, 2), 2, 4, 2)
    assert [str(v.dtype) for v in value.values] == ["float64"] + ["float32"] * 8
    counted = numpy.arange(3, like=value)
    assert isinstance(counted, numpy.ndarray)
    assert numpy.zeros_like(value, dtype=numpy.int64).tolist() == [[0, 0], [0, 0]]
    assert isinstance(value > 1, Together)
    lowest = numpy.full_like(value, float(numpy.finfo("float64").min), dtype="float64", shape=(1,))
    assert [float(numpy.asarray(plain(v))[0]) for v in lowest.values] == [
        float(numpy.finfo(plain(v).dtype).min) for v in lowest.values
    ]


def test_a_plain_array_comes_in_each_format() -> None:
    """Else it would lift the replays to float64."""
    total = Replay("float32").wrap(numpy.ones((2, 2))) + numpy.full((2, 2), 0.1)
    assert [str(v.dtype) for v in total.values] == ["float64"] + ["float32"] * 8


def test_a_product_with_a_stored_weight_is_each_arithmetic_s_own() -> None:
    random, replay = numpy.random.default_rng(0), Replay("float32")
    left, right = random.normal(size=(2, 3, 5)), random.normal(size=(4, 5)).astype(numpy.float32)
    weight = replay.wrap(Stored(right, "float64"))
    assert isinstance(weight, Shared)
    product = replay.wrap(left) @ numpy.swapaxes(weight, -1, -2)
    numpy.testing.assert_allclose(product.values[0], left @ right.T, rtol=1e-15)
    for i, value in enumerate(product.values[1:]):
        inside = plain(value)
        assert (inside.dtype, isinstance(value, budget._Reversed)) == (numpy.float32, i % 2 == 1)
        numpy.testing.assert_allclose(inside, left @ right.T, rtol=1e-5)
    forwards = left.astype(numpy.float32).reshape(-1, 5) @ right.T
    numpy.testing.assert_array_equal(product.values[1].reshape(-1, 4), forwards)
    backwards = left.astype(numpy.float32).reshape(-1, 5)[:, ::-1].copy() @ right.T[::-1].copy()
    numpy.testing.assert_array_equal(plain(product.values[2]).reshape(-1, 4), backwards)


def test_a_product_with_a_slice_of_a_stored_tensor() -> None:
    """A view of more axes than the matrix that it stands for."""
    random, replay = numpy.random.default_rng(0), Replay("float32")
    left = random.normal(size=(2, 3, 5))
    fused = random.normal(size=(2, 3, 2, 5)).astype(numpy.float32)
    weight = replay.wrap(Stored(fused[:, 1], "float64", (4, 5)))
    product = replay.wrap(left) @ numpy.swapaxes(weight, -1, -2)
    for value in product.values:
        numpy.testing.assert_allclose(plain(value), left @ fused[:, 1].reshape(4, 5).T, atol=1e-5)


def test_rows_of_a_stored_table_are_moved_and_exact_in_the_first_replay() -> None:
    table = numpy.random.default_rng(0).normal(size=(7, 5)).astype(numpy.float32)
    ids = numpy.array([[1, 6]])
    rows = Replay("float32").wrap(Stored(table, "float64"))[ids]
    numpy.testing.assert_array_equal(rows.values[0], table[ids])
    numpy.testing.assert_array_equal(rows.values[1], table[ids])
    moved = numpy.abs(rows.values[3] - table[ids]) / numpy.spacing(numpy.abs(table[ids]))
    assert 0 < moved.max() <= 1


def test_the_floor_is_the_worst_replay_masked_scores_aside() -> None:
    low = numpy.finfo("float64").min
    value = Together(
        (numpy.array([3.0, 4.0, low]), numpy.array([3.0, 4.5, -1.0]), numpy.array([3.1, 4.0, low]))
    )
    assert floor_of(value, numpy.ones(value.shape, bool)) == Floor(0.1, 0.5 / (5 / 2**0.5))


def test_what_counts_and_comes_out_as_no_number_decides_nothing() -> None:
    """As for golden cases; what does not count is left out."""
    value = Together((numpy.array([3.0, 4.0]), numpy.array([3.0, numpy.nan])))
    assert floor_of(value, numpy.array([True, True])) == Floor(1.0, 1.0)
    assert floor_of(value, numpy.array([True, False])) == Floor(0.0, 0.0)


# ---------------------------------------------------------------- against separate replays


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_specification_in_float64(vectors: Any, kind: str) -> None:
    for vector in vectors["gpt2-odd", kind]:
        ask = ask_of(vector)
        wanted = questions.answer(ask).tensors
        found = expected(ask, "float32", list(vector.case.tensors))
        assert list(found) == list(vector.case.tensors)
        assert set(found) <= set(wanted)
        for name, (value, _) in found.items():
            shown = numpy.isfinite(value) & (numpy.abs(value) < 1e30)
            numpy.testing.assert_allclose(
                value[shown], numpy.asarray(wanted[name])[shown], rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize("profile", ["float32", "float64-islands"])
def test_its_floors_are_near_those_of_sixteen_replays(vectors: Any, profile: str) -> None:
    """Of which every input is moved: never twice as far off, and seldom less than a third."""
    ratios = []
    for kind in KINDS:
        for vector in vectors["gpt2-odd", kind][:1]:
            ask, u = ask_of(vector), PROFILES[profile].unit_roundoff
            measured = budget.measure(ask, PROFILES[profile])
            for name, (_, floor) in expected(ask, profile, list(vector.case.tensors)).items():
                if vector.case.tensors[name].kind == "composite" and name != "loss":
                    ratios.append(max(floor.norm, u) / max(measured[name].norm, u))
    assert len(ratios) > 100
    assert min(ratios) > 0.25
    assert max(ratios) < 2


def test_the_loss_has_at_least_the_floor_of_its_logits(vectors: Any) -> None:
    for kind in KINDS:
        vector = next(v for v in vectors["gpt2-odd", kind] if v.case.id.endswith("forward/labels"))
        found = expected(ask_of(vector), "float32", ["logits", "loss"])
        assert found["loss"][1].norm >= found["logits"][1].norm > 0
        alone = expected(ask_of(vector), "float32", ["loss"])
        assert alone["loss"][1] == found["loss"][1]


def test_floors_of_float64_are_those_of_float32_scaled(vectors: Any) -> None:
    """Measured against long double they come out alike."""
    vector = vectors["gpt2-odd", "prefix"][0]
    ask = ask_of(vector)
    single, double = (expected(ask, name, ["logits"])["logits"][1] for name in ("float32", "float64"))
    assert double == Floor(single.norm * 2.0**-29, single.largest * 2.0**-29)
    measured = budget.measure(ask, PROFILES["float64"])["logits"].norm
    assert 0.3 < double.norm / measured < 3


# ---------------------------------------------------------------- calibration


Steps = Mapping[str, Callable[..., Any]]
MISTAKEN = ("M102", "M103", "M101", "M99")
"""The mildest: ε a tenth, ε outside the root, the other gelu, a mask of −10."""


def spent(
    vector: OwnVector, steps: Steps, profile: str, known: dict[str, tuple[Any, Floor]], backwards: bool
) -> float:
    """The largest error of a required tensor, in budgets, of the specification with some steps replaced."""
    dtype, of = PROFILES[profile].dtype, PROFILES[profile]
    arithmetic = Arithmetic(dtype)
    if backwards:
        arithmetic = Arithmetic(dtype, budget._Reversed, plain)
    with in_profile(of), replaced(steps):
        given = questions.answer(ask_of(vector), arithmetic).tensors
    worst = 0.0
    for name, (value, floor) in known.items():
        allowed = budget.budget_of(name, floor, of)
        norm, largest = budget.errors(numpy.asarray(given[name]), value)
        worst = max(worst, norm / allowed.norm, largest / allowed.largest)
    return worst


@pytest.mark.parametrize("profile", ["float32", "float64"])
def test_honest_variants_stay_inside_and_mild_mistakes_out(vectors: Any, profile: str) -> None:
    """With REFPEFT_CASES=all every question with logits on every golden model: the figures of specs/judging.md."""
    honest: list[float] = []
    mistaken: dict[str, list[float]] = {name: [] for name in MISTAKEN}
    for which, of_model in vectors.items():
        asked = of_model if EVERY_CASE else of_model[1:2] if which[0] != "gpt2-aligned" else []
        for vector in asked:
            names = [name for name in vector.case.tensors if is_required(vector.case.question, name)]
            known = expected(ask_of(vector), profile, names)
            honest += [
                spent(vector, steps, profile, known, b) for steps in HONEST.values() for b in (False, True)
            ]
            for name in MISTAKEN:
                steps = MUTANTS[name].make()
                mistaken[name].append(spent(vector, steps, profile, known, False))
    print(f"\n{profile}: honest at most {max(honest):.2f} budgets over {len(honest)}")
    for name, ratios in mistaken.items():
        print(
            f"{profile}: {name}: {sum(r > 1 for r in ratios)} of {len(ratios)} over, the mildest {min(ratios):.3g}"
        )
    assert max(honest) < 1
    assert all(sum(ratio > 1 for ratio in ratios) >= 2 for ratios in mistaken.values())


def test_adapters_lie_where_they_were_written(tmp_path: Path) -> None:
    assert {p.name for p in adapter_directory(tmp_path, "folded").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
