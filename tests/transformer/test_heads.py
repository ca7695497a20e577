"""Heads by loops: which position each of them reads, what it adds, scales and caps."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
from foreign import Foreign, fetch

from refpeft.steps import STEPS
from refpeft.transformer import heads

RANDOM = numpy.random.default_rng(21)
HIDDEN = RANDOM.normal(size=(2, 4, 5))
WEIGHT, BIAS = RANDOM.normal(size=(3, 5)), RANDOM.normal(size=3)


def test_the_head_has_no_bias() -> None:
    hidden, weight = numpy.array([[[1.0, 2.0]]]), numpy.array([[3.0, 4.0], [5.0, 6.0], [0.0, 0.0]])
    assert heads.language_model_head(hidden, weight).tolist() == [[[11.0, 17.0, 0.0]]]


@pytest.mark.parametrize("row", [False, True], ids=["Phi's", "BART's row"])
def test_a_language_model_head_with_a_bias(row: bool) -> None:
    logits = heads.language_model_head(HIDDEN, WEIGHT, BIAS[None] if row else BIAS)
    numpy.testing.assert_allclose(logits, HIDDEN @ WEIGHT.T + BIAS, rtol=1e-14)


def test_a_language_model_head_that_scales_and_one_that_caps() -> None:
    """T5 scales what it reads; Gemma-2 caps what it says."""
    scaled = heads.language_model_head(HIDDEN, WEIGHT, scale=0.25)
    numpy.testing.assert_array_equal(scaled, (HIDDEN * 0.25) @ WEIGHT.T)
    capped = heads.language_model_head(HIDDEN, WEIGHT, cap=1.5)
    for index in numpy.ndindex(capped.shape):
        plain = math.fsum(HIDDEN[index[:2]] * WEIGHT[index[2]])
        assert capped[index] == pytest.approx(1.5 * math.tanh(plain / 1.5), rel=1e-13)
    assert numpy.abs(capped).max() < 1.5


def test_the_pooler_reads_the_first_position() -> None:
    weight, bias = RANDOM.normal(size=(5, 5)), RANDOM.normal(size=5)
    pooled = heads.pooler_output(HIDDEN, weight, bias)
    for b, o in numpy.ndindex(2, 5):
        assert pooled[b, o] == pytest.approx(
            math.tanh(math.fsum(HIDDEN[b, 0] * weight[o]) + bias[o]), rel=1e-13
        )


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_a_dense_map_of_the_first_position(name: str) -> None:
    weight, bias = RANDOM.normal(size=(5, 5)), RANDOM.normal(size=5)
    hidden = heads.first_token_hidden(HIDDEN, weight, bias, name)
    exact = {"tanh": math.tanh, "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2}[name]
    for b, o in numpy.ndindex(2, 5):
        assert hidden[b, o] == pytest.approx(exact(math.fsum(HIDDEN[b, 0] * weight[o]) + bias[o]), rel=1e-12)


def test_classifiers_of_a_text_and_of_each_position() -> None:
    pooled = HIDDEN[:, 1]
    numpy.testing.assert_allclose(
        heads.pooled_logits(pooled, WEIGHT, BIAS), pooled @ WEIGHT.T + BIAS, rtol=1e-14
    )
    numpy.testing.assert_array_equal(heads.pooled_logits(pooled, WEIGHT, None), pooled @ WEIGHT.T)
    numpy.testing.assert_array_equal(heads.score_logits(HIDDEN, WEIGHT), HIDDEN @ WEIGHT.T)
    numpy.testing.assert_allclose(
        heads.token_logits(HIDDEN, WEIGHT, BIAS), HIDDEN @ WEIGHT.T + BIAS, rtol=1e-14
    )
    numpy.testing.assert_array_equal(heads.token_logits(HIDDEN, WEIGHT, None), HIDDEN @ WEIGHT.T)


def test_the_span_head_has_a_row_for_the_start_and_one_for_the_end() -> None:
    for ask, row in ((heads.start_logits, 0), (heads.end_logits, 1)):
        logits = ask(HIDDEN, WEIGHT[:2], BIAS[:2])
        assert logits.shape == (2, 4)
        numpy.testing.assert_allclose(logits, HIDDEN @ WEIGHT[row] + BIAS[row], rtol=1e-14)


def test_features_are_what_they_are() -> None:
    assert heads.last_hidden_state(HIDDEN) is HIDDEN


IDS = numpy.array([[7, 3, 0, 0], [0, 0, 5, 6], [0, 0, 0, 0], [1, 0, 2, 0]])


@pytest.mark.parametrize("form", [lambda x: x, Foreign], ids=["ndarray", "foreign"])
@pytest.mark.parametrize(
    ("ids", "pad", "expected"),
    [
        (IDS, 0, [1, 3, 0, 2]),  # the last that is no padding; none: the first
        (IDS, 6, [3, 2, 3, 3]),
        (IDS, None, [3, 3, 3, 3]),
        (None, 0, [3, 3, 3, 3]),  # embeddings without ids: the very last, padding or not
    ],
)
def test_which_position_counts(form: Any, ids: Any, pad: int | None, expected: list[int]) -> None:
    read = fetch if form is Foreign else numpy.asarray
    given = None if ids is None else form(ids)
    positions = heads.last_token(given, pad, form(RANDOM.normal(size=(4, 4, 2))))
    assert read(positions).tolist() == [[position] for position in expected]


def test_the_logits_of_one_position_of_each_row() -> None:
    logits = RANDOM.normal(size=(3, 4, 2))
    logits[0, 3] = numpy.nan  # behind the padding, whatever it is
    chosen = heads.last_token_logits(logits, numpy.array([[1], [3], [0]]))
    assert chosen.tolist() == [logits[0, 1].tolist(), logits[1, 3].tolist(), logits[2, 0].tolist()]


def test_stages_of_the_heads() -> None:
    stages = {name: STEPS[name].stage for name in STEPS if name.startswith("head.")}
    assert stages == {
        "head.hidden": "head.hidden",
        "head.pooled_logits": "pooled_logits",
        "head.score_logits": "score_logits",
        "head.last_token_logits": "pooled_logits",
        "head.token_logits": "token_logits",
        "head.start_logits": "start_logits",
        "head.end_logits": "end_logits",
    }
