"""Identities of one attention layer with a prefix: T1–T6, T11, T12, T15–T18, T20, T21 and T31.

Notation: q, k, v of the text; Pk, Pv of the prefix; l the scaled, masked logits; A the weights; λᵢ = Σ_p A_ip
the prefix's share of query i; o the output; o⁰ the output without a prefix; LSE = log Σ exp. Preconditions
common to all: one softmax over prefix and text, no bias that depends on the key's slot, no dropout, no
sliding window, no soft cap. Each `check_…` is an identity; `test_mutants.py` shows that wrong versions of
refpeft fail them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from identities.strategies import AttentionCase, assert_close, attention_cases, log_sum_exp


def check_t01_gating(case: AttentionCase) -> None:
    """Gating: o = (1 − λ)·Attn(q, K, V) + λ·Attn(q, Pk, Pv).

    Pre: virtual ≥ 1; rows that see a key of the text. Kills a softmax of its own for the
    prefix, with or without a gate.
    """
    share = case.weights()[..., : case.virtual].sum(axis=-1, keepdims=True)
    mixed = (1 - share) * case.attend_text() + share * case.attend_prefix()
    assert_close(case.attend(), mixed, case.tolerance(), case.rows())


def check_t02_share_is_a_sigmoid(case: AttentionCase) -> None:
    """λ = σ(LSE_prefix − LSE_text). Pre: virtual ≥ 1. Kills a scale missing on the prefix's logits."""
    share = case.weights()[..., : case.virtual].sum(axis=-1, keepdims=True)
    assert_close(share, case.share(), case.tolerance())


def check_t03_text_is_rescaled(case: AttentionCase) -> None:
    """A_ij = (1 − λᵢ)·A⁰_ij for every key j of the text.

    Pre: the same q and k; rows that see a key of the text. Kills whatever lets the prefix
    change the relations among the text's own keys.
    """
    without = replace(case, past_key=case.past_key[:, :, :0], past_value=case.past_value[:, :, :0])
    expected = (1 - case.share()) * without.weights()
    assert_close(case.weights()[..., case.virtual :], expected, case.tolerance(), case.rows())


def check_t04_bias_lies_in_the_cone(case: AttentionCase) -> None:
    """oᵢ − (1 − λᵢ)·oᵢ⁰ = Σ_p c_p·Pv_p with c_p ≥ 0 and Σ c_p = λᵢ.

    It has no part outside the span of Pv's rows.
    Pre: virtual ≥ 1; rows that see a key of the text. Kills values that passed a projection or got a bias.
    """
    share, tolerance = case.share(), case.tolerance()
    bias = case.attend() - (1 - share) * case.attend_text()
    coefficients = case.weights()[..., : case.virtual]
    assert (coefficients >= 0).all()
    assert_close(coefficients.sum(axis=-1, keepdims=True), share, tolerance)
    values = numpy.repeat(case.past_value, case.group, axis=1)
    assert_close(bias, coefficients @ values, tolerance, case.rows())
    span = numpy.linalg.qr(numpy.swapaxes(values, -1, -2))[
        0
    ]  # (batch, heads, head_dim, min(virtual, head_dim))
    outside = bias - bias @ span @ numpy.swapaxes(span, -1, -2)
    # QR is backward stable (error ≤ virtual·head_dim·ε·‖Pv‖), however near Pv is to a lower rank.
    assert_close(outside, 0 * bias, 2 * values.shape[2] * values.shape[3] * tolerance, case.rows())


def _permuted(case: AttentionCase) -> tuple[AttentionCase, AttentionCase]:
    """The slots turned round by one: keys and values together, and keys only."""
    keys, values = (numpy.roll(x, 1, axis=2) for x in (case.past_key, case.past_value))
    return replace(case, past_key=keys, past_value=values), replace(case, past_key=keys)


def check_t05_slots_may_be_permuted(case: AttentionCase) -> None:
    """o(Pk[π], Pv[π]) = o(Pk, Pv). Pre: no position in a key's slot. Kills positions of slots."""
    together, _ = _permuted(case)
    assert_close(together.attend(), case.attend(), case.tolerance())


def check_t06_keys_alone_may_not(case: AttentionCase) -> None:
    """o(Pk[π], Pv) ≠ o(Pk, Pv): the negative control of T5. Pre: virtual ≥ 2, no two slots alike, one row.

    Kills a prefix that is not read, or read with equal weights.
    """
    _, keys_only = _permuted(case)
    assert numpy.abs(keys_only.attend() - case.attend()).max() > 1000 * case.tolerance()


def check_t11_zeros_shrink(case: AttentionCase) -> None:
    """Pk = Pv = 0 ⇒ o = (1 − λ)·o⁰ with λ = n / (n + Σⱼ exp lⱼ); Pk = 0, Pv = v̄ ⇒ o = (1 − λ)·o⁰ + λ·v̄.

    Pre: virtual ≥ 1; rows that see a key of the text. Kills zeros taken for a no-op (slots of zero logit
    hidden or left out).
    """
    zeros = replace(case, past_key=0 * case.past_key, past_value=0 * case.past_value)
    text = numpy.exp(log_sum_exp(case.logits()[..., case.virtual :]))
    share = case.virtual / (case.virtual + text)
    shrunk = (1 - share) * case.attend_text()
    assert_close(zeros.attend(), shrunk, case.tolerance(), case.rows())
    mean = case.random().uniform(-1.0, 1.0, case.past_value[:, :, :1].shape)
    constant = replace(zeros, past_value=numpy.broadcast_to(mean, case.past_value.shape))
    expected = shrunk + share * numpy.repeat(mean, case.group, axis=1)
    assert_close(constant.attend(), expected, case.tolerance(), case.rows())


def check_t12_limits_without_effect(case: AttentionCase) -> None:
    """A hidden prefix: o = o⁰. A prefix of low logits: |o − o⁰| ≤ λ·diam and λ ≤ n·exp(max_p l_p − LSE_text).

    diam is the spread of a coordinate of the visible values. Hidden weights are 0 exactly; only the order of
    sums differs. Pre: virtual ≥ 1; rows that see a key of the text. Kills a mask that is not applied to the
    prefix, or once too few.
    """
    visible = case.visible()
    visible[..., : case.virtual] = False
    rows = numpy.broadcast_to(case.rows()[:, None], case.query.shape[:3])
    assert (case.weights(visible)[..., : case.virtual][rows] == 0).all()
    assert_close(case.attend(visible), case.attend_text(), case.tolerance(), case.rows())
    q, one = case.query[:, :: case.group, :1], slice(None, 1)
    single = replace(
        case, query=q, key=case.key[:, :, one], value=case.value[:, :, one], mask=None
    )  # one query per kv head, so that a key can point away from it
    for depth in (1.0, 8.0, 30.0):
        away = -depth * q / (case.scale * (q * q).sum(axis=-1, keepdims=True))
        low = replace(single, past_key=numpy.broadcast_to(away, case.past_key.shape))
        share = case.virtual * numpy.exp(
            -depth - low.logits()[..., case.virtual :]
        )  # one key: LSE_text is its logit
        spread = low.all_values.max(axis=2, keepdims=True) - low.all_values.min(axis=2, keepdims=True)
        excess = numpy.abs(low.attend() - low.attend_text()) - share * spread
        assert excess.max() <= low.tolerance()


def check_t15_blocks_merge(case: AttentionCase) -> None:
    """Merge: o = Σ_B exp(LSE_B − LSE)·o_B for any partition of the keys in two blocks.

    Pre: rows that see a key of each. It covers a prefix cut in two and the merge of flash attention.
    Kills blocks joined by their mean or sum.
    """
    visible, logits = case.visible(), case.logits()
    first = case.random().random(visible.shape[-1]) < 0.5
    total, merged = log_sum_exp(logits), numpy.zeros(case.query.shape)
    total = numpy.where(numpy.isfinite(total), total, 0.0)  # rows that see nothing, which are not compared
    both = numpy.ones(visible.shape[:2], bool)
    for block in (first, ~first):
        seen = visible & block
        share = numpy.exp(log_sum_exp(numpy.where(block, logits, -numpy.inf)) - total)
        merged = merged + share * case.attend(seen)
        both &= seen.any(axis=-1)
    assert_close(case.attend(), merged, case.tolerance(), both)


def check_t16_convex_hull(case: AttentionCase) -> None:
    """min_j v_j ≤ o ≤ max_j v_j in each coordinate, over the keys that the row sees. Pre: it sees one.

    Kills weights that do not sum to one (a gate without renormalisation, dropout left on).
    """
    values = numpy.repeat(case.all_values, case.group, axis=1)[:, :, None]  # (batch, heads, 1, key, head_dim)
    visible = case.visible()[:, None, :, :, None]
    lowest = numpy.where(visible, values, numpy.inf).min(axis=3)
    highest = numpy.where(visible, values, -numpy.inf).max(axis=3)
    output, sees = case.attend(), case.visible().any(axis=-1)
    assert_close(numpy.clip(output, lowest, highest), output, case.tolerance(), sees)


def check_t17_share_grows(case: AttentionCase) -> None:
    """One more slot makes λ strictly larger; 0 < λ < 1; λᵢ ≤ 1 − A_ii, the weight of a query's own key.

    Pre: virtual ≥ 1; rows that see a key of the text (for λᵢ ≤ 1 − A_ii: their own); logits within ±36 of one
    another, so that no weight vanishes beside 1. Kills a slot that is cut off, or attention to a fixed number
    of slots.
    """
    extra = case.random().normal(0.0, 1.0, (2, *case.past_key[:, :, :1].shape))
    longer = replace(
        case,
        past_key=numpy.concatenate([case.past_key, extra[0]], axis=2),
        past_value=numpy.concatenate([case.past_value, extra[1]], axis=2),
    )
    shares = [
        c.weights()[..., : c.virtual].sum(axis=-1)[case.rows()[:, None].repeat(case.query.shape[1], 1)]
        for c in (case, longer)
    ]
    assert (shares[0] > 0).all()
    assert (shares[0] < shares[1]).all()
    assert (shares[1] < 1).all()
    logits = case.logits()
    own = numpy.diagonal(logits[..., case.virtual :], axis1=-2, axis2=-1)[..., None]
    bound = 1 - numpy.exp(own - log_sum_exp(logits))
    assert_close(numpy.minimum(case.share(), bound), case.share(), case.tolerance())


def check_t18_first_token(case: AttentionCase) -> None:
    """o₀ = λ₀·Attn(q₀, Pk, Pv) + (1 − λ₀)·v₀.

    The first query sees the whole prefix, and of the text only itself.
    Pre: token 0 is not masked. By NumPy alone. Kills a triangle aligned to the top left, and a bidirectional
    mask.
    """
    q, keys = case.query[:, :, :1], numpy.repeat(case.all_keys, case.group, axis=1)[:, :, : case.virtual + 1]
    logits = case.scale * q @ numpy.swapaxes(keys, -1, -2)  # (batch, heads, 1, virtual + 1)
    values = numpy.repeat(case.all_values, case.group, axis=1)[:, :, : case.virtual + 1]
    expected = numpy.exp(logits - log_sum_exp(logits)) @ values
    rows = numpy.ones((len(q), 1), bool) if case.mask is None else case.mask[:, :1] != 0
    assert_close(case.attend()[:, :, :1], expected, case.tolerance(), rows)


def check_t20_grouped_heads(case: AttentionCase) -> None:
    """Head h of the output is attention of query head h alone to key/value head h // group.

    Copying each key/value head `group` times in a row changes nothing.
    Pre: heads = kv_heads · group. Kills `tile` (h mod kv_heads) in prefix or text, keys or values.
    """
    outputs = case.attend()
    parts = {name: getattr(case, name) for name in ("key", "value", "past_key", "past_value")}
    copied = replace(case, **{name: part.repeat(case.group, axis=1) for name, part in parts.items()})
    assert_close(copied.attend(), outputs, case.tolerance())
    for head in range(case.query.shape[1]):
        kv = slice(head // case.group, head // case.group + 1)
        alone = {name: part[:, kv] for name, part in parts.items()}
        single = replace(case, query=case.query[:, head : head + 1], **alone)
        assert_close(single.attend()[:, 0], outputs[:, head], case.tolerance())


def check_t21_rows_of_a_batch(case: AttentionCase) -> None:
    """o(x)[b] = o(x[b : b+1]). Kills sums or maxima over the batch, and a mask of one row used for all."""
    outputs = case.attend()
    for b in range(len(outputs)):
        names = ("query", "key", "value", "past_key", "past_value")
        row = {name: getattr(case, name)[b : b + 1] for name in names}
        mask = None if case.mask is None else case.mask[b : b + 1]
        assert_close(replace(case, mask=mask, **row).attend()[0], outputs[b], case.tolerance())


def check_t31_no_slots(case: AttentionCase) -> None:
    """A prefix of no slots is no prefix, exactly. Kills a slot that is always there."""
    empty = replace(case, past_key=case.past_key[:, :, :0], past_value=case.past_value[:, :, :0])
    numpy.testing.assert_array_equal(empty.attend(), case.attend_text())


Check = Callable[[AttentionCase], None]


@pytest.mark.parametrize(
    "check",
    [
        check_t03_text_is_rescaled,
        check_t05_slots_may_be_permuted,
        check_t15_blocks_merge,
        check_t16_convex_hull,
        check_t18_first_token,
        check_t20_grouped_heads,
        check_t21_rows_of_a_batch,
        check_t31_no_slots,
    ],
)
@given(case=attention_cases())
def test_identity_of_attention(check: Check, case: AttentionCase) -> None:
    check(case)


@pytest.mark.parametrize(
    "check",
    [
        check_t01_gating,
        check_t02_share_is_a_sigmoid,
        check_t04_bias_lies_in_the_cone,
        check_t11_zeros_shrink,
        check_t12_limits_without_effect,
        check_t17_share_grows,
    ],
)
@given(case=attention_cases(virtual=1))
def test_identity_of_attention_with_a_prefix(check: Check, case: AttentionCase) -> None:
    check(case)


@given(case=attention_cases(virtual=2))
def test_negative_control_of_attention(case: AttentionCase) -> None:
    check_t06_keys_alone_may_not(case)


@given(case=attention_cases(virtual=1, group=2))
def test_grouped_heads_are_grouped(case: AttentionCase) -> None:
    check_t20_grouped_heads(case)
