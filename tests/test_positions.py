"""Positions of the real tokens by each family's rule, and how they enter: rows of a table, slopes, buckets, turns."""

from __future__ import annotations

import cmath
import math

import numpy
import pytest
from foreign import Foreign, fetch
from hypothesis import given
from hypothesis import strategies as st
from support import need

from refpeft.positions import (
    add_learned_positions,
    alibi,
    alibi_slopes,
    position_ids,
    position_ids_of_mask,
    position_ids_of_tokens,
    relative_bias,
    relative_buckets,
    rotate,
)

LIKE = numpy.zeros((1, 1, 1), dtype=numpy.float32)


@pytest.mark.parametrize(("past", "expected"), [(0, [0, 1, 2]), (4, [4, 5, 6])])
def test_positions_start_after_the_past(past: int, expected: list[int]) -> None:
    positions = position_ids(2, 3, past, None, LIKE)
    assert positions.tolist() == [expected] * 2
    assert positions.dtype == numpy.int64


def test_given_positions_are_counted_without_the_past() -> None:
    given = numpy.array([[0, 0, 1], [5, 3, 4]])
    assert position_ids(2, 3, 4, given, LIKE).tolist() == [[4, 4, 5], [9, 7, 8]]
    assert position_ids(2, 3, 0, given, LIKE).tolist() == given.tolist()
    assert given.tolist() == [[0, 0, 1], [5, 3, 4]]


def test_positions_live_where_the_embeddings_live() -> None:
    assert fetch(position_ids(1, 2, 1, None, Foreign(LIKE))).tolist() == [[1, 2]]


def test_rows_of_the_table_are_added() -> None:
    table = numpy.array([[0.0, 0.5], [10.0, 20.0], [100.0, 200.0], [1000.0, 2000.0]])
    embeds = numpy.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    positions = numpy.array([[2, 3], [1, 1]])
    added = add_learned_positions(embeds, table, positions)
    assert added.tolist() == [[[101.0, 202.0], [1003.0, 2004.0]], [[15.0, 26.0], [17.0, 28.0]]]


# ---------------------------------------------------------------- OPT's and RoBERTa's rules


def test_positions_of_a_mask_count_the_tokens() -> None:
    """Two virtual tokens; a text padded on the left, one padded on the right, one with a hole."""
    mask = numpy.array([[1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 1, 1]], dtype=numpy.float32)
    expected = [[0, 1, -1, -1, 2, 3], [0, 1, 2, 3, 4, -1], [0, 1, 2, -1, 3, 4]]
    positions = position_ids_of_mask(mask, 0, None)
    assert positions.tolist() == expected
    assert positions.dtype == numpy.int64
    assert position_ids_of_mask(mask, 2, None).tolist() == [row[2:] for row in expected]


def test_given_positions_replace_those_of_the_mask() -> None:
    given_positions = numpy.array([[5, 3]])
    mask = numpy.array([[1.0, 1.0, 0.0, 1.0]])
    assert position_ids_of_mask(mask, 2, given_positions).tolist() == [[7, 5]]


IDS = numpy.array([[9, 1, 7, 1, 1], [1, 1, 5, 5, 5], [1, 1, 1, 1, 1]])
QUERIES = numpy.arange(5)[None].repeat(3, axis=0)


def test_positions_of_tokens_leave_the_padding_out() -> None:
    """Counted from pad_token_id + 1, here 2; padding keeps pad_token_id, wherever it stands."""
    assert position_ids_of_tokens(IDS, QUERIES, 0, 1, None).tolist() == [
        [2, 1, 3, 1, 1],
        [1, 1, 2, 3, 4],
        [1, 1, 1, 1, 1],
    ]
    behind_a_prefix = position_ids_of_tokens(IDS, QUERIES, 3, 1, None)
    assert behind_a_prefix.tolist() == [[5, 1, 6, 1, 1], [1, 1, 5, 6, 7], [1, 1, 1, 1, 1]]
    assert behind_a_prefix.dtype == numpy.int64


def test_positions_of_embeddings_count_padding_too() -> None:
    assert position_ids_of_tokens(None, QUERIES, 0, 1, None).tolist() == [[2, 3, 4, 5, 6]] * 3


def test_given_positions_are_rows_of_the_table() -> None:
    assert position_ids_of_tokens(IDS[:1], QUERIES[:1], 4, 1, QUERIES[:1]).tolist() == [[4, 5, 6, 7, 8]]


# ---------------------------------------------------------------- ALiBi


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (16, [i / 2 for i in range(1, 17)]),
        (3, [4, 8, 2]),
        (5, [2, 4, 6, 8, 1]),
        (6, [2, 4, 6, 8, 1, 3]),
        (7, [2, 4, 6, 8, 1, 3, 5]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_slopes_are_powers_of_two(heads: int, exponents: list[float]) -> None:
    assert alibi_slopes(heads) == pytest.approx([2.0**-exponent for exponent in exponents], rel=1e-15)


def test_the_bias_is_the_slope_times_the_position_of_the_key() -> None:
    """Counted along the mask; what is masked has 0."""
    like = numpy.zeros(1)
    mask = numpy.array([[1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 1, 0]], dtype=float)
    bias = alibi(mask, 2, 6, [0.5, 0.25], like)
    assert bias.tolist() == [
        [[0, 0.5, 0, 0, 1, 1.5], [0, 0.25, 0, 0, 0.5, 0.75]],
        [[0, 0.5, 1, 1.5, 2, 0], [0, 0.25, 0.5, 0.75, 1, 0]],
    ]
    assert alibi(None, 2, 3, [0.5], like).tolist() == [[[0, 0.5, 1]]] * 2
    assert alibi(mask, 2, 6, [0.5, 0.25], like, times=3.0).tolist() == (3 * bias).tolist()
    assert alibi(mask, 2, 6, [0.5], like.astype("float32")).dtype == numpy.float32


def test_falcon_s_slopes_and_without_a_mask_its_products_have_eight_bits() -> None:
    like, slope = numpy.zeros(1), 2**-0.5  # 0.70703125 in bfloat16
    assert alibi(None, 1, 4, [slope], like, rounded=True).tolist() == [[[0, 0.70703125, 1.4140625, 2.125]]]
    mask = numpy.ones((1, 4))
    assert alibi(mask, 1, 4, [slope], like, rounded=True).tolist() == [
        [[0, 0.70703125, 1.4140625, 2.12109375]]
    ]
    assert alibi(mask[:, :2], 1, 2, [slope], like).tolist() == [[[0, slope]]]


def test_the_bias_lives_where_the_embeddings_live() -> None:
    mask = numpy.array([[1.0, 0.0, 1.0]])
    for given_mask in (None, Foreign(mask)):
        plain = None if given_mask is None else mask
        foreign = fetch(alibi(given_mask, 1, 3, [0.5, 0.3], Foreign(LIKE), times=2.0, rounded=True))
        numpy.testing.assert_array_equal(
            foreign, alibi(plain, 1, 3, [0.5, 0.3], LIKE, times=2.0, rounded=True)
        )


# ---------------------------------------------------------------- T5's distances


def bucket(distance: int, buckets: int, maximum: int) -> int:
    """By the formula, in exact arithmetic: whole distances, then logarithms."""
    exact = buckets // 2
    if distance < exact:
        return distance
    further = math.log(distance / exact) / math.log(maximum / exact) * (buckets - exact)
    return min(exact + math.floor(further + 1e-9), buckets - 1)


@given(
    st.integers(1, 6), st.integers(0, 5), st.sampled_from([(4, 5), (8, 10), (8, 20), (32, 128), (12, 40)]), st.booleans()
)  # fmt: skip
def test_buckets_by_loops(queries: int, past: int, sizes: tuple[int, int], both: bool) -> None:
    buckets, maximum = sizes
    keys = past + queries + (3 if both else 0)
    found = relative_buckets(queries, keys, past, buckets, maximum, both_directions=both)
    for q, k in numpy.ndindex(queries, keys):
        distance = k - (q + past)
        if both:
            half = buckets // 2
            expected = bucket(abs(distance), half, maximum) + (half if distance > 0 else 0)
        else:
            expected = bucket(max(0, -distance), buckets, maximum)
        assert found[q, k] == expected, (q, k)


def test_buckets_by_hand() -> None:
    """Eight buckets to the left: four distances of their own, then 4 and 5 together, 6, 7, and all from 8 on."""
    assert relative_buckets(1, 14, 13, 8, 10, both_directions=False).tolist() == [
        [7, 7, 7, 7, 7, 7, 6, 5, 4, 4, 3, 2, 1, 0]
    ]
    assert relative_buckets(2, 4, 0, 8, 10, both_directions=True).tolist() == [[0, 5, 6, 6], [1, 0, 5, 6]]
    assert relative_buckets(2, 4, 2, 8, 10, both_directions=False).tolist() == [[2, 1, 0, 0], [3, 2, 1, 0]]


def test_the_relative_bias_is_looked_up_for_each_head() -> None:
    table = numpy.arange(8.0).reshape(4, 2)
    bias = relative_bias(table, numpy.array([[0, 3, 1]]))
    assert bias.tolist() == [[[0, 6, 2]], [[1, 7, 3]]]


# ---------------------------------------------------------------- turning


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_rotation_by_loops(batch: int, heads: int, queries: int, half: int, beyond: int) -> None:
    random = numpy.random.default_rng(batch + 10 * heads + 100 * queries + 1000 * half)
    x = random.normal(size=(batch, heads, queries, 2 * half + beyond))
    turns = random.uniform(-3, 3, (batch, 1, queries, half))
    cosine, sine = (f(numpy.concatenate([turns, turns], axis=-1)) for f in (numpy.cos, numpy.sin))
    turned = rotate(x, cosine, sine)
    numpy.testing.assert_array_equal(turned[..., 2 * half :], x[..., 2 * half :])
    for b, h, t, i in numpy.ndindex(batch, heads, queries, half):
        pair = complex(x[b, h, t, i], x[b, h, t, i + half]) * cmath.exp(1j * turns[b, 0, t, i])
        assert turned[b, h, t, i] == pytest.approx(pair.real, abs=1e-14)
        assert turned[b, h, t, i + half] == pytest.approx(pair.imag, abs=1e-14)


def test_neighbours_are_not_turned_with_one_another() -> None:
    """GPT-J's pairs are (x₀, x₁): here x₀ goes with x₂."""
    quarter = numpy.array([[[[0.0, 0.0, 0.0, 0.0]]]]), numpy.array([[[[1.0, 1.0, 1.0, 1.0]]]])
    assert rotate(numpy.array([[[[1.0, 2.0, 3.0, 4.0]]]]), *quarter).tolist() == [[[[-3.0, -4.0, 1.0, 2.0]]]]


# ---------------------------------------------------------------- the real HF transformers


@pytest.mark.live
@pytest.mark.parametrize("family", ["bloom", "falcon"])
@pytest.mark.parametrize("heads", [1, 3, 4, 5, 8, 12])
def test_live_alibi(family: str, heads: int) -> None:
    torch = need("torch")
    modeling = need(f"transformers.models.{family}.modeling_{family}")
    mask = numpy.array([[1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]])
    theirs = modeling.build_alibi_tensor(torch.tensor(mask), heads, torch.float32).numpy()
    ours = alibi(mask.astype(float), 2, 7, alibi_slopes(heads), numpy.zeros(1), rounded=family == "falcon")
    tolerance = {"bloom": 3e-7, "falcon": 2**-8}[
        family
    ]  # with whole numbers in the mask Falcon's products are rounded too
    numpy.testing.assert_allclose(ours.reshape(2 * heads, 1, 7), theirs, rtol=tolerance)


@pytest.mark.live
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("buckets", "maximum"), [(4, 5), (8, 10), (32, 128), (7, 9), (64, 1000)])
def test_live_buckets(buckets: int, maximum: int, both: bool) -> None:
    """Each distance up to two thousand: HF's logarithms in float32 fall on the same side."""
    torch = need("torch")
    attention = need("transformers.models.t5.modeling_t5").T5Attention
    queries, past = 2 if both else 1, 1000
    keys = past + 1001 if both else past + 1
    distances = numpy.arange(keys)[None] - (numpy.arange(queries)[:, None] + past)
    theirs = attention._relative_position_bucket(torch.tensor(distances), both, buckets, maximum).numpy()
    ours = relative_buckets(queries, keys, past, buckets, maximum, both_directions=both)
    numpy.testing.assert_array_equal(ours, theirs)


@pytest.mark.live
@pytest.mark.parametrize("past", [0, 3])
def test_live_positions_of_tokens(past: int) -> None:
    torch = need("torch")
    embeddings = need("transformers.models.roberta.modeling_roberta").RobertaEmbeddings
    theirs = embeddings.create_position_ids_from_input_ids(torch.tensor(IDS), 1, past).numpy()
    numpy.testing.assert_array_equal(position_ids_of_tokens(IDS, QUERIES, past, 1, None), theirs)
