"""Rotary positions: frequencies by their formulas, one by one; what a configuration may say of them."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
from foreign import Foreign, fetch
from hypothesis import given
from hypothesis import strategies as st
from support import need

from refpeft.errors import ConfigError
from refpeft.transformer.rotary import Rotary, angles, inverse_frequencies, read_rotary

LIKE = numpy.zeros(1)
DEFAULT = Rotary(100.0, 10)
LINEAR = Rotary(100.0, 10, "linear", factor=4.0)
LLAMA3 = Rotary(500.0, 12, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original=64.0)


def frequency(rotary: Rotary, i: int) -> float:
    """By its formula: of the i-th pair."""
    plain = rotary.theta ** (-2 * i / rotary.dimensions)
    if rotary.kind == "default":
        return plain
    if rotary.kind == "linear":
        return plain / rotary.factor
    wavelength = 2 * math.pi / plain
    if wavelength > rotary.original / rotary.low_freq_factor:
        return plain / rotary.factor
    if wavelength < rotary.original / rotary.high_freq_factor:
        return plain
    share = (rotary.original / wavelength - rotary.low_freq_factor) / (
        rotary.high_freq_factor - rotary.low_freq_factor
    )
    return (1 - share) * plain / rotary.factor + share * plain


@pytest.mark.parametrize("rotary", [DEFAULT, LINEAR, LLAMA3], ids=lambda rotary: rotary.kind)
def test_frequencies_by_their_formulas(rotary: Rotary) -> None:
    given_frequencies = inverse_frequencies(rotary, LIKE)
    expected = [frequency(rotary, i) for i in range(rotary.dimensions // 2)]
    numpy.testing.assert_allclose(given_frequencies, expected, rtol=1e-14)
    assert inverse_frequencies(rotary, LIKE.astype("float32")).dtype == numpy.float32


def test_llama3_has_all_three_ranges_here() -> None:
    slowed = [frequency(LLAMA3, i) / LLAMA3.theta ** (-2 * i / 12) for i in range(6)]
    assert slowed[0] == 1.0
    assert 1 / 8 < slowed[2] < slowed[1] < 1
    assert slowed[3:] == pytest.approx([1 / 8] * 3, rel=1e-15)


def test_by_hand() -> None:
    assert inverse_frequencies(Rotary(16.0, 8), LIKE).tolist() == [1.0, 0.5, 0.25, 0.125]
    assert inverse_frequencies(Rotary(16.0, 8, "linear", factor=2.0), LIKE).tolist() == [
        0.5,
        0.25,
        0.125,
        0.0625,
    ]


@given(
    theta=st.floats(2.0, 1e6), half=st.integers(1, 8), factor=st.floats(1.0, 64.0), low=st.floats(0.5, 2.0),
    above=st.floats(0.5, 8.0), original=st.floats(4.0, 1e4),
)  # fmt: skip
def test_llama3_by_its_formula(
    theta: float, half: int, factor: float, low: float, above: float, original: float
) -> None:
    rotary = Rotary(theta, 2 * half, "llama3", factor, low, low + above, original)
    expected = [frequency(rotary, i) for i in range(half)]
    numpy.testing.assert_allclose(inverse_frequencies(rotary, LIKE), expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles_are_position_times_frequency_for_both_halves(dtype: str) -> None:
    positions = numpy.array([[0, 1, 5], [7, 7, 2]])
    cosine, sine = angles(DEFAULT, positions, LIKE.astype(dtype))
    assert cosine.shape == sine.shape == (2, 1, 3, 10)
    assert cosine.dtype == sine.dtype == numpy.dtype(dtype)
    for b, t, i in numpy.ndindex(2, 3, 10):
        turn = positions[b, t] * frequency(DEFAULT, i % 5)
        assert cosine[b, 0, t, i] == pytest.approx(math.cos(turn), abs=1e-6 if dtype == "float32" else 1e-14)
        assert sine[b, 0, t, i] == pytest.approx(math.sin(turn), abs=1e-6 if dtype == "float32" else 1e-14)


def test_angles_live_where_the_embeddings_live() -> None:
    positions = numpy.array([[3, 4]])
    expected = angles(LLAMA3, positions, LIKE)
    given_angles = angles(LLAMA3, Foreign(positions), Foreign(LIKE))
    for own, other in zip(fetch(given_angles), expected, strict=True):
        numpy.testing.assert_array_equal(own, other)


# ---------------------------------------------------------------- what a configuration says

FACTORS = {"factor": 8, "low_freq_factor": 1.5, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"rope_theta": 10}, Rotary(10.0, 8)),
        ({"rope_theta": 10.0, "rope_type": "default", "factor": 3.0}, Rotary(10.0, 8)),
        ({"rope_theta": 10.0, "partial_rotary_factor": 0.5}, Rotary(10.0, 4)),
        ({"rope_theta": 10.0, "partial_rotary_factor": 0.8}, Rotary(10.0, 6)),
        ({"rope_theta": 10.0, "rope_type": "linear", "factor": 2}, Rotary(10.0, 8, "linear", factor=2.0)),
        ({"rope_theta": 10.0, "type": "linear", "factor": 2}, Rotary(10.0, 8, "linear", factor=2.0)),
        ({"rope_theta": 9.0, "rope_type": "default", "type": "linear"}, Rotary(9.0, 8)),
        (
            {"rope_theta": 9.0, "rope_type": "llama3", **FACTORS},
            Rotary(9.0, 8, "llama3", 8.0, 1.5, 4.0, original=99.0),
        ),
        (
            {"rope_theta": 9.0, "rope_type": "llama3", **FACTORS, "original_max_position_embeddings": 32},
            Rotary(9.0, 8, "llama3", 8.0, 1.5, 4.0, original=32.0),
        ),
    ],
)
def test_what_is_read(parameters: dict[str, Any], expected: Rotary) -> None:
    assert read_rotary(parameters, 8, 99) == expected


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (
            {"rope_type": "longrope"},
            (
                "The base model's rope_type is 'longrope'; refpeft computes default, linear and llama3. Use a base model with one of "
                "these."
            ),
        ),
        (
            {},
            "rope_parameters['rope_theta'] of the base model must be a finite number above 0, not None (NoneType).",
        ),
        (
            {"rope_theta": math.inf},
            "rope_parameters['rope_theta'] of the base model must be a finite number above 0, not inf (float).",
        ),
        (
            {"rope_theta": 1.0, "rope_type": "llama3", **FACTORS, "high_freq_factor": "4"},
            "rope_parameters['high_freq_factor'] of the base model must be a finite number above 0, not '4' (str).",
        ),
        (
            {"rope_theta": 1.0, "partial_rotary_factor": 0.4},
            (
                "The base model turns 3 of the 8 numbers of a head by their positions; it must be an even number from 2. Check "
                "head_dim and partial_rotary_factor."
            ),
        ),
        (
            {"rope_theta": 10**400},
            f"rope_parameters['rope_theta'] of the base model must be a finite number above 0, not {str(10**400)[:77]}... (int).",
        ),
        (
            {"rope_theta": 1.0, "partial_rotary_factor": "half"},
            "rope_parameters['partial_rotary_factor'] of the base model must be a finite number above 0, not 'half' (str).",
        ),
        (
            {"rope_theta": 1.0, "partial_rotary_factor": 1e300},
            (
                "The base model turns 16 of the 8 numbers of a head by their positions; it must be an even number from 2. Check "
                "head_dim and partial_rotary_factor."
            ),
        ),
        (
            {"rope_theta": 1.0, "rope_type": "llama3", **FACTORS, "original_max_position_embeddings": None},
            "rope_parameters['original_max_position_embeddings'] of the base model must be a finite number above 0, not None (NoneType).",
        ),
    ],
)
def test_what_is_refused(parameters: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_rotary(parameters, 8, 99)
    assert str(caught.value) == expected


@pytest.mark.live
@pytest.mark.parametrize(
    ("rotary", "parameters"),
    [
        (Rotary(100.0, 10), {"rope_type": "default", "rope_theta": 100.0}),
        (LINEAR, {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}),
        (
            LLAMA3,
            {
                "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
    ids=["default", "linear", "llama3"],
)  # fmt: skip
def test_live_frequencies(rotary: Rotary, parameters: dict[str, Any]) -> None:
    """HF's, which are rounded to float32."""
    transformers = need("transformers")
    need("torch")
    config = transformers.LlamaConfig(
        hidden_size=24, num_attention_heads=2, head_dim=rotary.dimensions, rope_parameters=parameters
    )
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq.numpy()
    numpy.testing.assert_allclose(inverse_frequencies(rotary, LIKE), theirs, rtol=3e-7)
