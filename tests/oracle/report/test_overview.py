"""The picture of all cases: its stages, its colours, its levels."""

from __future__ import annotations

import pytest
from oracle.report.made import BEFORE, OVER, case, wrong
from oracle.report.test_picture import pixels

from refpeft.oracle.compare import Difference
from refpeft.oracle.report.overview import NARROWEST, in_words, overview, ratio_of
from refpeft.oracle.report.picture import NO_NUMBER, NOTHING, of_ratio


def of(*names: str, **more: float) -> list[Difference]:
    return [Difference(n, ok=True, error=more.get(n, 0.0), budget=1.0, measure="normwise") for n in names]


@pytest.mark.parametrize(
    ("difference", "ratio", "words"),
    [
        (Difference("a", ok=True, error=1e-7, budget=4e-7, measure="normwise"), 0.25, "0.25 × budget"),
        (Difference("a", ok=False, error=1.0, budget=4e-4, measure="normwise"), 2500.0, "2,500 × budget"),
        (Difference("a", ok=False, error=3.0, budget=1e-7, measure="normwise"), 3e7, "3e7 × budget"),
        (Difference("a", ok=False, error=3.0, measure="exact", reason="3 of 4 entries differ"), None, ""),
        (Difference("a", ok=False, error="nan", budget=1.0, measure="normwise"), None, ""),
        (Difference("a", ok=True, error=0.0, measure="exact"), 0.0, "0 × budget"),
    ],
)  # fmt: skip
def test_errors_are_told_in_budgets(difference: Difference, ratio: float | None, words: str) -> None:
    assert ratio_of(difference) == (None if ratio is None else pytest.approx(ratio))
    assert in_words(ratio) == words


def test_a_column_for_each_case_and_a_row_for_each_stage() -> None:
    missing = Difference("prefix.layers.1.key", ok=False, reason="is missing")
    cases = [case(), wrong(), wrong(), case(differences=[BEFORE, missing])]
    drawn = overview(cases)
    assert drawn is not None
    assert drawn["cases"] == [1, 2, 3], "the first has nothing that was compared"
    assert drawn["stages"] == drawn["names"] == ["prefix.flat", "prefix.layers.#.key"]
    little, much = of_ratio(1e-9 / 5e-7), of_ratio(1.3 / 5e-7)
    assert pixels(drawn["image"]) == [[little] * 3, [much, much, NO_NUMBER]]
    assert drawn["bands"] == [
        {"name": "components", "x": 0.0, "width": 320.0},
        {"name": "model", "x": 320.0, "width": 160.0},
    ]
    assert drawn["width"] == NARROWEST
    assert ratio_of(OVER) == pytest.approx(1.3 / 5e-7)


def test_of_the_layers_the_worst_is_shown() -> None:
    layers = [
        Difference(f"a.{i}", ok=True, error=e, budget=1.0, measure="normwise")
        for i, e in enumerate((0.1, 0.9, 0.5))
    ]
    drawn = overview([case(differences=layers), case(differences=of("b"))])
    assert drawn is not None
    assert pixels(drawn["image"]) == [[of_ratio(0.9), NOTHING], [NOTHING, of_ratio(0.0)]]


def test_stages_stand_in_the_order_of_computation() -> None:
    """Also where no case has them all."""
    orders = (
        ("document",),
        ("prefix", "loss"),
        ("ids", "prefix", "layers", "loss"),
        ("loss", "gradients"),
        ("layers", "x"),
    )
    drawn = overview([case(differences=of(*names)) for names in orders])
    assert drawn is not None
    assert drawn["stages"] == ["document", "ids", "prefix", "layers", "x", "loss", "gradients"]


def test_long_names_lose_their_beginning() -> None:
    drawn = overview(
        [case(differences=of("training.steps.3.exp_avg.prompt_encoder.embedding.weight", "x" * 60))]
    )
    assert drawn is not None
    assert drawn["names"] == ["training.steps.#.exp_avg.embedding.weight", "…" + "x" * 43]


def test_nothing_to_draw() -> None:
    assert overview([]) is overview([case()]) is None
