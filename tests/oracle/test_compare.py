"""One tensor or document of an answer against its expected value: what passes, what fails, and what is said."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import msgspec
import numpy
import pytest

from refpeft.oracle.budget import PROFILES, Floor
from refpeft.oracle.compare import MASKED, Difference, compare, first_difference, missing
from refpeft.oracle.names import step_of
from refpeft.oracle.questions import Answer
from refpeft.oracle.validity import Validity
from refpeft.oracle.vectors import Tensor

FLOAT32, FLOAT64 = PROFILES["float32"], PROFILES["float64"]
U = 2.0**-24
EVERYWHERE = Validity(None, 0, prompts=False)
MASK = numpy.array([[0, 0, 1, 1], [1, 1, 1, 0]])
NAN, INF = numpy.nan, numpy.inf


def judged(
    kind: Any, given: Any, expected: Any, axes: str = "text", name: str = "x", **options: Any
) -> Difference:
    floor, profile = options.get("floor", Floor(0, 0)), options.get("profile", FLOAT32)
    valid = options.get("valid", EVERYWHERE)
    return compare(name, Tensor(kind, axes.split()), given, numpy.asarray(expected), floor, profile, valid)


def ok(*arguments: Any, **options: Any) -> bool:
    return judged(*arguments, **options).ok


# ---------------------------------------------------------------- kinds


def test_composite_within_its_budget_by_both_measures() -> None:
    expected = numpy.array([3.0, 4.0])
    assert judged("composite", expected, expected) == Difference(
        "x", ok=True, error=0.0, budget=8 * U, measure="normwise",
        derivation="4.8e-07 = 8 · max(floor 0, u 6e-08); the u decides",
    )  # fmt: skip
    given = numpy.array([3.0, 4.0 + 35 * U])
    found = judged("composite", given, expected)
    error = 35 * U / (5 / 2**0.5)
    assert found == Difference(
        "x", ok=False, error=pytest.approx(error), budget=8 * U, measure="largest",
        derivation="4.8e-07 = 8 · max(floor 0, u 6e-08); the u decides", bits=pytest.approx(21.2), where="text 1",
        values="4.00000209, HF 4",
    )  # fmt: skip
    assert found.bits == round(-math.log2(7 * U), 1)
    assert ok("composite", given, expected, floor=Floor(0, 2 * U)), "a larger floor of that measure"
    assert not ok("composite", given, expected, floor=Floor(2 * U, 0))
    assert not ok("composite", given, expected, profile=FLOAT64)


def test_the_measure_that_is_nearer_to_its_budget_is_shown() -> None:
    given, expected = numpy.full(100, 1 + 5 * U), numpy.ones(100)
    found = judged("composite", given, expected, floor=Floor(U, 10 * U))
    assert (found.ok, found.measure, found.error) == (True, "normwise", pytest.approx(5 * U))
    assert judged("composite", given, expected, floor=Floor(10 * U, U)).measure == "largest"


def test_gradients_have_twice_the_budget() -> None:
    given, expected = numpy.full(3, 1 + 12 * U), numpy.ones(3)
    assert ok("composite", given, expected, name="gradients.prompt_encoder.embedding.weight")
    assert not ok("composite", given, expected, name="logits")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"])
def test_exact_whatever_the_dtype(dtype: str) -> None:
    for expected in (numpy.array([1, 0]), numpy.array([True, False]), numpy.array([1.0, 0.0])):
        assert judged("exact", numpy.array([1, 0], dtype), expected) == Difference(
            "x", ok=True, measure="exact", derivation="equal"
        )
        assert judged("exact", numpy.array([0, 0], dtype), expected) == Difference(
            "x", ok=False, error=1.0, measure="exact", derivation="equal", bits=0.0, where="text 0",
            reason="1 of 2 entries differ; they must be equal",
        )  # fmt: skip
    assert ok("exact", [1, 0], [1.0, 0.0]), "a list of numbers"


def test_exact_has_no_tolerance() -> None:
    assert not ok("exact", [1 + 2.0**-40], [1.0])
    assert not ok("exact", [5, -101], [5, -100])
    assert not ok("exact", numpy.array([2**64 - 1], "uint64"), [-1])


def test_elementary_is_relative_to_each_entry() -> None:
    expected = numpy.array([100.0, 1e-3])
    assert ok("elementary", expected * (1 + 2 * U), expected)
    assert not ok("elementary", expected * (1 + 4 * U), expected)
    assert not ok("elementary", expected * (1 + 2 * U), expected, profile=FLOAT64)
    assert ok("elementary", expected * (1 + 2.0**-52), expected, profile=FLOAT64)
    found = judged("elementary", numpy.array([100 * (1 + 2 * U), 1e-3 * (1 + 100 * U)]), expected)
    assert found == Difference(
        "x", ok=False, error=pytest.approx(50, rel=1e-6), budget=1.5, measure="elementwise",
        derivation="1.5 units in the last place", bits=pytest.approx(23.0, abs=1), where="text 1",
        values="0.00100001, HF 0.001",
    )  # fmt: skip
    assert not ok("elementary", [1e-20], [0.0]), "zero has no unit in the last place"


def test_drawn_is_absolute() -> None:
    assert judged("drawn", [3.9e-6, -1.0], [0.0, -1.0]) == Difference(
        "x", ok=True, error=3.9e-6, budget=4e-6, measure="absolute", derivation="4e-06: torch's own spread (PT-4)",
        bits=pytest.approx(18.0, abs=0.1),
    )  # fmt: skip
    assert judged("drawn", [0.0, -1 + 4.1e-6], [0.0, -1.0]).where == "text 1"
    assert not ok("drawn", [0.0, -1 + 4.1e-6], [0.0, -1.0])


# ---------------------------------------------------------------- what an error looks like


RANDOM = numpy.random.default_rng(0).normal(size=(4, 100))


@pytest.mark.parametrize(("dtype", "bits"), [(numpy.float16, 11), (ml_dtypes.bfloat16, 8)])
def test_a_narrow_answer(dtype: Any, bits: int) -> None:
    given = RANDOM.astype(dtype)
    for kind in ("composite", "elementary", "drawn"):
        found = judged(kind, given, RANDOM, "virtual hidden")
        assert found.hint == f"the answer is {numpy.dtype(dtype)}, which holds no more than {bits} bits"
    assert judged("composite", RANDOM.astype("float32"), RANDOM, "virtual hidden").ok
    assert judged("exact", numpy.zeros(2, dtype), [1, 0]).hint == "", "whole numbers are whole in any format"
    assert judged("composite", given, given.astype("float64"), "virtual hidden").hint == "", "it is right"


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.125, 0.7])
def test_a_multiple_of_the_answer(factor: float) -> None:
    found = judged("composite", factor * RANDOM, RANDOM, "virtual hidden")
    assert found.hint == f"the answer is {factor:g} times HF's: a mean for a sum, or the reverse?"
    assert judged("composite", factor * RANDOM + 0.1, RANDOM, "virtual hidden").hint == ""


def test_a_multiple_of_one_number_must_be_whole() -> None:
    """Any number is a multiple of any other."""
    assert (
        judged("composite", 7.5, 2.5, "", "loss").hint
        == "the answer is 3 times HF's: a mean for a sum, or the reverse?"
    )
    assert (
        judged("composite", 0.625, 2.5, "", "loss").hint
        == "the answer is 0.25 times HF's: a mean for a sum, or the reverse?"
    )
    for given in (2.6, 0.0, 1e9):
        assert judged("composite", given, 2.5, "", "loss").hint == "", given
    assert judged("composite", 1.0, 0.0, "", "loss").hint == ""


def test_an_answer_computed_too_narrowly() -> None:
    signs = numpy.where(RANDOM > 0, 1.0, -1.0) * numpy.where(numpy.arange(100) % 2, 1.0, -1.0)

    def hint(exponent: float, profile: Any, kind: str = "composite") -> str:
        given = RANDOM + numpy.abs(RANDOM) * signs * 2.0**-exponent
        return judged(kind, given, RANDOM, "virtual hidden", profile=profile).hint

    assert hint(10, FLOAT32) == "it agrees to 10 bits, as TF32 or half-precision matrix products would"
    assert hint(23.5, FLOAT64) == "it agrees to 23.5 bits, as float32 would"
    for exponent, profile in ((5, FLOAT32), (15, FLOAT32), (10, FLOAT64), (35, FLOAT64)):
        assert hint(exponent, profile) == ""
    assert hint(10, FLOAT32, "elementary") == ""


@pytest.mark.parametrize(
    ("given", "expected", "values"),
    [
        (1.5, 2.25, "1.5, HF 2.25"),
        (1.0000001, 1.0, "1.0000001, HF 1"),
        (1 + 2.0**-50, 1.0, "1.0000000000000009, HF 1"),
        (0, 0.5, "0, HF 0.5"),
        (True, 0.5, "1, HF 0.5"),
        (1e300, -1.0, "1e+300, HF -1"),
    ],
)
def test_the_two_numbers(given: Any, expected: float, values: str) -> None:
    found = judged("composite", numpy.array([0.5, given]), [0.5, expected], profile=FLOAT64)
    assert (found.ok, found.where) == (False, "text 1")
    assert found.values.split(", HF ")[1] == values.split(", HF ")[1]
    assert found.values == values


# ---------------------------------------------------------------- what cannot be compared


def test_another_shape() -> None:
    found = judged("composite", numpy.zeros((2, 3)), numpy.zeros((3, 2)), "batch vocab")
    assert found == Difference(
        "x", ok=False, reason="has shape (2, 3); it must be (3, 2) (batch, vocab)", clause="PP-4"
    )
    assert found.failure == "shape"
    assert judged("exact", [1], 1, "").reason == "has shape (1); it must be ()"
    assert judged("exact", 1, [1]).reason == "has shape (); it must be (1) (text)"
    assert not ok("exact", numpy.zeros((0, 3)), numpy.zeros((3, 0)), "batch vocab")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["1.0"], "its dtype is <U3"),
        (numpy.array([b"1"]), "its dtype is |S1"),
        ([None], "its dtype is object"),
        ([1j], "its dtype is complex128"),
        (numpy.array(["2020-01-01"], "datetime64[D]"), "its dtype is datetime64[D]"),
        (numpy.array([(1.0, 2)], "f8, i4"), ""),
        ([[1.0], [1.0, 2.0]], "setting an array element with a sequence."),
    ],
)
def test_no_numbers(given: Any, why: str) -> None:
    found = judged("composite", given, [1.0])
    assert not found.ok
    assert found.reason.startswith(f"is not an array of numbers: {why}")


def test_bfloat16_is_a_number() -> None:
    given = numpy.array([1.5, -2.0], ml_dtypes.bfloat16)
    assert ok("composite", given, [1.5, -2.0])
    assert not ok("composite", given, [1.5, -2.25])


def test_empty_tensors() -> None:
    for kind in ("exact", "elementary", "composite", "drawn"):
        assert ok(kind, numpy.zeros((0, 3)), numpy.zeros((0, 3)), "batch vocab")


def test_numbers_of_any_size() -> None:
    """No warning, and an error that JSON can hold."""
    for given in ([1e200, 1.0], [1.7e308, -1.7e308]):
        found = judged("composite", numpy.array(given), [-1e29, 1.0])
        assert not found.ok
        assert (found.error, found.bits) == ("inf", None)
        assert found.where == "text 0" or given[1] < 0
        assert msgspec.json.decode(msgspec.json.encode(found), type=Difference) == found


# ---------------------------------------------------------------- NaN, infinity, masked scores


@pytest.mark.parametrize(("given", "shown"), [(NAN, "nan"), (INF, "inf"), (-INF, "-inf")])
@pytest.mark.parametrize("kind", ["composite", "exact", "drawn", "elementary"])
def test_no_number_where_hf_has_one(kind: str, given: float, shown: str) -> None:
    assert judged(kind, [1.0, given], [1.0, 2.5]) == Difference(
        "x", ok=False, reason=f"is {shown} where HF has 2.5", where="text 1"
    )


def test_no_number_where_hf_has_none() -> None:
    """The loss over no labels."""
    assert ok("composite", NAN, NAN, "")
    assert ok("composite", numpy.float32(NAN), NAN, "")
    found = judged("composite", 0.0, NAN, "", "loss")
    assert (found.reason, found.where, found.clause) == ("is 0.0 where HF has nan", "", "TK-3")
    assert ok("composite", [NAN, 1.0], [NAN, 1.0])
    assert not ok("composite", [NAN, 1.1], [NAN, 1.0])
    assert not ok("composite", [1.0], [INF])
    assert ok("composite", [INF], [INF])
    assert not ok("exact", [0], [NAN])


MOST_NEGATIVE = float(numpy.finfo("float64").min)


@pytest.mark.parametrize("hidden", [-INF, MASKED, -1e9, -3.4e38, MOST_NEGATIVE])
def test_a_masked_score_is_any_number_that_is_low_enough(hidden: float) -> None:
    expected = numpy.array([0.5, MOST_NEGATIVE])
    assert ok("composite", [0.5, hidden], expected, "key")
    assert not ok("composite", [0.6, hidden], expected, "key"), "beside it the budget holds"
    assert not ok("composite", [hidden, hidden], expected, "key")


@pytest.mark.parametrize(
    ("visible", "shown"),
    [(MASKED + 1, f"{MASKED + 1:g}"), (-20.0, "-20"), (NAN, "nan"), (INF, "inf"), (0.5, "0.5")],
)
def test_a_masked_score_that_is_not_masked(visible: float, shown: str) -> None:
    expected = numpy.array([[0.5, MOST_NEGATIVE], [MOST_NEGATIVE, 0.5]])
    given = numpy.array([[0.5, MASKED], [visible, 0.5]])
    assert judged("composite", given, expected, "query key") == Difference(
        "x", ok=False, reason=f"is {shown} where the key is masked; it must be {MASKED:g} or less",
        where="token 1, key: token 0 (the first)",
    )  # fmt: skip
    assert not ok("composite", [-INF, 0.5], [0.5, MOST_NEGATIVE], "key")


# ---------------------------------------------------------------- which positions count

PROMPTS = Validity(MASK != 0, 2, prompts=True)
PREFIX = Validity(MASK != 0, 2, prompts=False)


def test_garbage_where_padding_predicts_a_label_counts() -> None:
    """The loss depends on it."""
    expected = numpy.random.default_rng(0).normal(size=(2, 4, 3))
    predicting = numpy.array([[False, True, True, False], [True, True, False, False]])
    valid = Validity(MASK != 0, 2, prompts=False, predicting=predicting)
    spoilt = expected.copy()
    spoilt[0, 0], spoilt[1, 3] = 1e9, NAN
    assert ok("composite", spoilt, expected, "batch query vocab", valid=valid)
    spoilt[0, 1, 2] = 1e9
    found = judged("composite", spoilt, expected, "batch query vocab", valid=valid)
    assert (found.ok, found.where) == (False, "row 0, token 1 (padding), vocab 2")


def test_garbage_counts_at_valid_positions_only() -> None:
    expected = numpy.random.default_rng(0).normal(size=(2, 4, 3))
    for garbage in (NAN, 1e9):
        padded = numpy.where(MASK[..., None] == 0, garbage, expected)
        assert ok("composite", padded, expected, "batch query vocab", valid=PREFIX)
        assert not ok("composite", padded, expected, "batch query vocab", valid=EVERYWHERE)
        spoilt = expected.copy()
        spoilt[0, 2, 1] = garbage
        found = judged("composite", spoilt, expected, "batch query vocab", valid=PREFIX)
        assert not found.ok
        assert found.where == "row 0, token 2 (the first after the padding), vocab 1"


def test_padding_does_not_stretch_the_scale() -> None:
    expected = numpy.where(MASK == 0, 1e6, 1.0)
    assert not ok("composite", numpy.where(MASK == 0, 1e6, 1.001), expected, "batch query", valid=PREFIX)


def test_masks_and_labels_count_at_every_position() -> None:
    """A mask of ones would be right wherever it is one."""
    extended = numpy.concatenate([numpy.ones((2, 2)), MASK], axis=1)
    found = judged("exact", numpy.ones((2, 6)), extended, "batch key", "inputs.attention_mask", valid=PROMPTS)
    assert (found.ok, found.reason, found.where, found.clause) == (
        False,
        "3 of 12 entries differ; they must be equal",
        "row 0, key: token 0 (padding)",
        "MK-1",
    )
    labels = numpy.where(extended == 0, -100, 5)
    assert not ok("exact", numpy.full((2, 6), 5), labels, "batch query", "inputs.labels", valid=PROMPTS)
    assert ok("exact", numpy.full((2, 6), 5), labels, "batch query", "inputs.position_ids", valid=PROMPTS)


# ---------------------------------------------------------------- the worst entry


def test_the_worst_entry_is_named_with_clause_and_source() -> None:
    expected = numpy.ones((2, 4, 3))
    given = expected.copy()
    given[0, 3, 2], given[1, 1, 1] = 1.1, 0.8
    found = judged("composite", given, expected, "batch query vocab", "logits", valid=PREFIX)
    assert found.where == "row 1, token 1, vocab 1"
    step = step_of("logits")
    assert step is not None
    assert (found.clause, found.source) == ("TK-2", step.source)
    assert judged("composite", given, expected, "batch query vocab", "draws.0").clause == "PT-4"
    assert judged("composite", given, expected, "batch query vocab", "my.debug").clause == ""


# ---------------------------------------------------------------- missing tensors


@pytest.mark.parametrize(
    ("given", "step", "values", "clause"),
    [
        ([1.0, 2.0, 3.0 + 1e-4, 9.0], "step 2 (counted from 0)", "3.0001, HF 3", "TR-1"),
        ([1.0 + 1e-7, 2.0 - 1e-7, 3.0, 4.0 + 1e-3], "step 3 (counted from 0)", "4.001, HF 4", "TR-1"),
        ([0.0, 0.0, 0.0, 0.0], "step 0 (the first)", "0, HF 1", "TR-5"),
    ],
)
def test_a_series_over_steps_names_the_first_over_budget(
    given: list[float], step: str, values: str, clause: str
) -> None:
    """Not the worst: later steps only suffer from it. And few right bits are no sign of narrow products.

    The first loss comes before any update; later ones come after what TR-1 to TR-3 say.
    """
    expected = numpy.array([1.0, 2.0, 3.0, 4.0])
    found = judged("composite", numpy.array(given), expected, "steps", "training.losses")
    assert (found.ok, found.where, found.values, found.hint) == (False, step, values, "")
    assert found.worst == f"over budget first at {step}: {values}"
    assert found.clause == clause
    rates = judged("composite", numpy.array(given), expected, "steps", "training.learning_rates")
    assert (rates.where, rates.clause) == (step, "TR-2")


@pytest.mark.parametrize(("step", "clause"), [(0, "TR-5"), (1, "TR-1")])
def test_a_loss_that_is_no_number(step: int, clause: str) -> None:
    given = numpy.ones(3)
    given[step:] = numpy.nan
    found = judged("composite", given, numpy.ones(3), "steps", "training.losses")
    assert (found.reason, found.failure, found.clause) == ("is nan where HF has 1", "reason", clause)


def test_a_series_that_drifts_is_over_budget_where_the_sum_is() -> None:
    """No single error exceeds the largest that is allowed, but together they do."""
    expected = numpy.ones(100)
    floor = Floor(0, 10 * U)
    found = judged("composite", expected + 20 * U, expected, "steps", "training.losses", floor=floor)
    assert (found.measure, found.where) == ("normwise", "step 64 (counted from 0)"), (
        "√65 · 20 u > √100 · 16 u, and √64 is not"
    )


def test_training_has_its_own_budget_and_says_how_far_replays_agree() -> None:
    found = judged("composite", [1.0], [1.0], name="trained.x", floor=Floor(2.0**-20, 2.0**-19))
    assert (found.ok, found.budget) == (True, 16 * 2.0**-20)
    assert found.derivation == (
        "1.5e-05 = 16 · max(floor 9.5e-07, u 6e-08); the floor decides; replays of the trajectory agree to 20 bits"
    )
    assert judged("composite", [1.0], [1.0], name="training.losses").derivation.endswith("the u decides")


def test_missing() -> None:
    assert missing("logits", Answer()) == Difference(
        "logits", ok=False, reason="is missing from the answer, which has no tensors", clause="PP-4"
    )
    assert missing("logits", Answer()).failure == "missing"
    assert missing("draws.0", Answer({"b": 1, "a": 2})).reason == "is missing from the answer, which has a, b"
    many = Answer(dict.fromkeys("gfedcba"))
    assert missing("logits", many).reason == "is missing from the answer, which has a, b, c, d, e …"
    known = Answer({"loss": 1, "prefix.flat": 2})
    assert missing("logits", known).reason == "is missing from the answer, which has loss, prefix.flat"


def test_missing_under_another_name() -> None:
    """Names that refpeft does not know come first: the right one is known."""
    close = Answer({"logit": 1, "loss": 2, "decoder.layers.0.output": 3})
    assert missing("logits", close).reason == "is missing from the answer, which has logit; is logit meant?"
    far = Answer({"xyz": 1, "loss": 2})
    assert missing("logits", far).reason == "is missing from the answer, which has xyz"
    name = "gradients.prompt_encoder.embedding.weight"
    found = missing(name, Answer({"loss": 1, "grad.prompt_encoder.embedding.weight": 2}))
    assert found.reason.endswith("; is grad.prompt_encoder.embedding.weight meant?")
    assert found.clause == "PP-4"


@pytest.mark.parametrize(
    ("before", "measure", "kept"),
    [
        ("decoder.layers.0.attention.query", "normwise", False),
        ("decoder.layers.0.input_norm", "normwise", True),
        ("decoder.layers.0.attention.query", "exact", True),
    ],
)
def test_narrow_products_are_blamed_unless_a_product_before_was_right(
    before: str, measure: str, kept: bool
) -> None:
    """A norm in full precision proves nothing about matrix products; a product does."""
    hint = "it agrees to 11 bits, as TF32 or half-precision matrix products would"
    wrong = Difference("decoder.layers.0.mlp.activation", ok=False, measure="normwise", hint=hint)
    found = first_difference(
        [Difference(before, ok=True, measure=measure), wrong, Difference("logits", ok=False)]
    )
    assert found is not None
    assert (found.name, found.hint) == (wrong.name, hint if kept else "")
    assert first_difference([Difference("logits", ok=True)]) is None


@pytest.mark.parametrize(
    ("where", "values", "said"),
    [
        ("row 1", "1.5, HF 2.25", "worst at row 1: 1.5, HF 2.25"),
        ("row 1", "", "worst at row 1"),
        ("", "12.5, HF 13.9", "given 12.5, HF 13.9"),
        ("", "", ""),
    ],
)
def test_the_numbers_are_said_with_and_without_a_place(where: str, values: str, said: str) -> None:
    """A loss has no place, and its two numbers are shown all the same."""
    assert Difference("loss", ok=False, where=where, values=values).worst == said


# ---------------------------------------------------------------- profiles that decide little

BFLOAT16 = PROFILES["bfloat16"]


def test_what_a_profile_cannot_decide_is_not_compared() -> None:
    assert judged("composite", [9.0, NAN], [3.0, 4.0], profile=BFLOAT16, floor=Floor(0.126, 0.2)) == Difference(
        "x", ok=True, measure="undecided",
        reason="x decides nothing in bfloat16: its budget is 0.5 = 4 · max(floor 0.13, u 0.0039); the floor decides",
    )  # fmt: skip
    assert not ok("composite", [9.0, NAN], [3.0, 4.0], profile=BFLOAT16, floor=Floor(0.125, 0.2)), "½ decides"
    assert not ok("composite", [9.0], [3.0, 4.0], profile=BFLOAT16, floor=Floor(1, 1)), "a shape is decided"
    assert not ok("exact", [9], [3], profile=BFLOAT16, floor=Floor(1, 1))


def test_bfloat16_holds_no_more_than_it_is_asked_for() -> None:
    """A copy of a number off the grid is as near as the format has one, and the format is no hint."""
    assert ok("exact", [0.10009765625], [0.1], profile=BFLOAT16)
    assert not ok("exact", [0.1015625], [0.1], profile=BFLOAT16)
    assert not ok("exact", [0.10009765625], [0.1])
    narrow = numpy.array([3.0, 4.125], dtype=ml_dtypes.bfloat16)
    found = judged("composite", narrow, [3.0, 4.0], profile=BFLOAT16)
    assert (found.ok, found.hint) == (False, "")
    assert ok(
        "composite", numpy.array([3.0, 4.03125], dtype=ml_dtypes.bfloat16), [3.0, 4.0], profile=BFLOAT16
    )
