"""Identities of one attention layer with a prefix: T1 to T18, T20, T21, T31 and T50. What they say stands in `table.py`.

Notation: q, k, v of the text; Pk, Pv of the prefix; l the scaled logits; A the weights; λᵢ = Σ_p A_ip the prefix's share of
query i; o the output; o⁰ the output without a prefix; LSE = log Σ exp.
"""

from __future__ import annotations

from dataclasses import replace

import numpy
from identities.attention_cases import AttentionCase, assert_close, log_sum_exp

MUCH = 1000
"""What is said to differ, differs by more than so many tolerances."""


def gating(case: AttentionCase) -> None:
    """T1."""
    share = case.measured_share()
    mixed = (1 - share) * case.attend_text() + share * case.attend_prefix()
    assert_close(case.attend(), mixed, case.tolerance(), case.rows())


def share_is_a_sigmoid(case: AttentionCase) -> None:
    """T2."""
    assert_close(case.measured_share(), case.share(), case.tolerance(), case.rows())


def text_is_rescaled(case: AttentionCase) -> None:
    """T3."""
    expected = (1 - case.share()) * case.slots([]).weights()
    assert_close(case.weights()[..., case.virtual :], expected, case.tolerance(), case.rows())


def bias_lies_in_the_cone(case: AttentionCase) -> None:
    """T4: the coefficients are no less than 0 and sum to λ; and nothing is left outside the span of Pv's rows."""
    share, tolerance = case.share(), case.tolerance()
    bias = case.attend() - (1 - share) * case.attend_text()
    coefficients = case.weights()[..., : case.virtual]
    assert (coefficients >= 0).all()
    assert_close(coefficients.sum(axis=-1, keepdims=True), share, tolerance, case.rows())
    values = numpy.repeat(case.past_value, case.group, axis=1)
    assert_close(bias, coefficients @ values, tolerance, case.rows())
    span = numpy.linalg.qr(numpy.swapaxes(values, -1, -2))[0]  # (…, head_dim, min(virtual, head_dim))
    outside = bias - bias @ span @ numpy.swapaxes(span, -1, -2)
    # QR is backward stable (error ≤ virtual·head_dim·ε·‖Pv‖), however near Pv is to a lower rank.
    assert_close(outside, 0 * bias, 2 * values.shape[2] * values.shape[3] * tolerance, case.rows())


def slots_may_be_permuted(case: AttentionCase) -> None:
    """T5: turned round by one, at the places that there were."""
    places = numpy.arange(case.virtual)
    turned = case.slots(numpy.roll(places, 1), places)
    assert_close(turned.attend(), case.attend(), case.tolerance(), case.rows())


def keys_alone_may_not(case: AttentionCase, *, alike: bool = False) -> None:
    """T6. `alike`: all slots have the first one's values, so that keys alone may be permuted after all."""
    if alike:
        values = numpy.broadcast_to(case.past_value[:, :, :1], case.past_value.shape)
        case = replace(case, past_value=values)
    turned = replace(case, past_key=numpy.roll(case.past_key, 1, axis=2))
    assert numpy.abs(turned.attend() - case.attend()).max() > MUCH * case.tolerance()


def values_moved_alike(case: AttentionCase, *, prefix_too: bool = True) -> None:
    """T7, and that o is linear in (Pv, v) together."""
    c = case.draw(len(case.query), case.value.shape[1], 1, case.value.shape[3])
    moved = replace(case, value=case.value + c, past_value=case.past_value + (c if prefix_too else 0.0))
    expected = case.attend() + numpy.repeat(c, case.group, axis=1)
    assert_close(moved.attend(), expected, moved.tolerance(), case.rows())
    scaled = replace(case, value=-3.0 * case.value, past_value=-3.0 * case.past_value)
    assert_close(scaled.attend(), -3.0 * case.attend(), scaled.tolerance(), case.rows())


def affine_in_the_prefix_s_values(case: AttentionCase) -> None:
    """T8."""
    doubled = replace(case, past_value=2 * case.past_value)
    difference = doubled.attend() - case.attend()
    assert_close(difference, case.share() * case.attend_prefix(), doubled.tolerance(), case.rows())


def keys_moved_alike(case: AttentionCase) -> None:
    """T9: all keys by w change nothing; the prefix's alone move logit(λ) by s·q·w."""
    w = case.draw(len(case.query), case.key.shape[1], 1, case.key.shape[3])
    moved = replace(case, key=case.key + w, past_key=case.past_key + w)
    assert_close(moved.attend(), case.attend(), moved.tolerance(), case.rows())
    moved = replace(case, past_key=case.past_key + w)
    by = case.scale * (case.query * numpy.repeat(w, case.group, axis=1)).sum(axis=-1, keepdims=True)
    share = case.measured_share()
    expected = share * numpy.exp(by) / (1 - share + share * numpy.exp(by))
    assert_close(moved.measured_share(), expected, moved.tolerance(), case.rows())


def queries_against_keys(case: AttentionCase, *, prefix: float = 3.0) -> None:
    """T10."""
    turned = replace(
        case, query=case.query / 3.0, key=3.0 * case.key, past_key=prefix * case.past_key
    )  # products as they were
    assert_close(turned.attend(), case.attend(), case.tolerance(), case.rows())


def zeros_shrink(case: AttentionCase) -> None:
    """T11: zeros, and a constant value; nᵢ are the slots that query i sees."""
    zeros = replace(case, past_key=0 * case.past_key, past_value=0 * case.past_value)
    visible = case.visible()
    seen = visible[..., : case.virtual].sum(axis=-1)[:, None, :, None]  # nᵢ
    share = seen / (seen + numpy.exp(log_sum_exp(zeros.logits()[..., case.virtual :])))
    shrunk = (1 - share) * case.attend_text()
    assert_close(zeros.attend(), shrunk, case.tolerance(), case.rows())
    mean = case.random().uniform(-1.0, 1.0, case.past_value[:, :, :1].shape)
    constant = replace(zeros, past_value=numpy.broadcast_to(mean, case.past_value.shape))
    expected = shrunk + share * numpy.repeat(mean, case.group, axis=1)
    assert_close(constant.attend(), expected, case.tolerance(), case.rows())


def limits_without_effect(case: AttentionCase) -> None:
    """T12: a hidden prefix exactly; one of low logits to within λ ≤ n·exp(max l − LSE) of the values' spread, at last nothing."""
    visible = case.visible()
    visible[..., : case.virtual] = False
    rows = numpy.broadcast_to(case.rows()[:, None], case.query.shape[:3])
    assert (case.weights(visible)[..., : case.virtual][rows] == 0).all()
    assert_close(case.attend(visible), case.attend_text(), case.tolerance(), case.rows())
    single = case.first_tokens()  # one query for each kv head, so that a key can point away from it
    q, text = single.query, single.open_logits()[..., single.virtual :]
    bias = 0.0 if single.bias is None else single.bias[..., : single.virtual].max(axis=-1, keepdims=True)
    for depth in (1.0, 8.0, 30.0):
        away = -depth * q / (single.scale * (q * q).sum(axis=-1, keepdims=True))
        low = replace(single, past_key=numpy.broadcast_to(away, single.past_key.shape))
        share = low.virtual * numpy.exp(bias - depth - text)  # one key: LSE_text is its logit
        spread = low.all_values.max(axis=2, keepdims=True) - low.all_values.min(axis=2, keepdims=True)
        excess = numpy.abs(low.attend() - low.attend_text()) - share * spread
        assert excess.max() <= low.tolerance()


def copies_are_one_slot(case: AttentionCase) -> None:
    """T13: two copies of the last slot, at the last two places, and one with log 2 more."""
    others, last = range(case.virtual - 2), case.virtual - 1
    twice = case.slots([*others, last, last], range(case.virtual))
    once = _with_bias(case.slots([*others, last]), float(numpy.log(2.0)))
    assert_close(once.attend(), twice.attend(), case.tolerance(), case.rows())


def _with_bias(case: AttentionCase, amount: float) -> AttentionCase:
    """The last slot's logit, larger by so much."""
    batch, heads, tokens, _ = case.query.shape
    bias = (
        numpy.zeros((batch, heads, tokens, case.virtual + tokens)) if case.bias is None else case.bias.copy()
    )
    bias[..., case.virtual - 1] += amount
    return replace(case, bias=bias)


def equal_keys_are_one_slot(case: AttentionCase) -> None:
    """T14: n slots of one key, and one with the mean of their values and log n more."""
    key, mean = case.past_key[:, :, :1], case.past_value.mean(axis=2, keepdims=True)
    equal = replace(case, past_key=numpy.broadcast_to(key, case.past_key.shape))
    one = replace(case.slots([case.virtual - 1]), past_key=key, past_value=mean)
    one = _with_bias(one, float(numpy.log(case.virtual)))
    assert_close(one.attend(), equal.attend(), case.tolerance(), case.rows())


def blocks_merge(case: AttentionCase, *, weighed: bool = True) -> None:
    """T15: any partition of the keys in two. `weighed`: by their LSE; else each counts half."""
    visible, logits = case.visible(), case.logits()
    first = case.random().random(visible.shape[-1]) < 0.5
    total, merged = log_sum_exp(logits), numpy.zeros(case.query.shape)
    total = numpy.where(numpy.isfinite(total), total, 0.0)  # rows that see nothing, which are not compared
    both = numpy.ones(visible.shape[:2], bool)
    for block in (first, ~first):
        seen = visible & block
        share = numpy.exp(log_sum_exp(numpy.where(block, logits, -numpy.inf)) - total)
        merged = merged + (share if weighed else 0.5) * case.attend(seen)
        both &= seen.any(axis=-1)
    assert_close(case.attend(), merged, case.tolerance(), both)


def convex_hull(case: AttentionCase) -> None:
    """T16: of the values that the row sees, coordinate by coordinate; they are moved away from 0, where no sum of weights is told."""
    case = replace(case, value=case.value + 10.0, past_value=case.past_value + 10.0)
    values = numpy.repeat(case.all_values, case.group, axis=1)[:, :, None]  # (batch, heads, 1, key, head_dim)
    visible = case.visible()[:, None, :, :, None]
    lowest = numpy.where(visible, values, numpy.inf).min(axis=3)
    highest = numpy.where(visible, values, -numpy.inf).max(axis=3)
    output, sees = case.attend(), case.visible().any(axis=-1)
    assert_close(numpy.clip(output, lowest, highest), output, case.tolerance(), sees)


def share_grows(case: AttentionCase) -> None:
    """T17: by one more slot at the first place, the others where they are."""
    n, (keys, values) = case.virtual, case.draw(2, *case.past_key[:, :, :1].shape)
    longer = case.slots([0, *range(n)])
    longer = replace(
        longer,
        past_key=numpy.concatenate([keys, case.past_key], axis=2),
        past_value=numpy.concatenate([values, case.past_value], axis=2),
    )
    rows = case.rows()[:, None].repeat(case.query.shape[1], 1)
    shares = [c.measured_share()[..., 0][rows] for c in (case, longer)]
    assert (shares[0] > 0).all()
    assert (shares[0] < shares[1]).all()
    assert (shares[1] < 1).all()
    logits = case.logits()
    own = numpy.diagonal(logits[..., case.virtual :], axis1=-2, axis2=-1)[..., None]
    bound = 1 - numpy.exp(own - log_sum_exp(logits))
    assert_close(numpy.minimum(case.share(), bound), case.share(), case.tolerance())


def first_token(case: AttentionCase) -> None:
    """T18: by NumPy alone, whatever refpeft says of what is visible; the first token is not masked."""
    if case.mask is not None:
        case = replace(case, mask=numpy.where(numpy.arange(case.tokens) == 0, 1, case.mask))
    logits = case.open_logits()[:, :, :1, : case.virtual + 1]
    values = numpy.repeat(case.all_values, case.group, axis=1)[:, :, : case.virtual + 1]
    expected = numpy.exp(logits - log_sum_exp(logits)) @ values
    assert_close(case.attend()[:, :, :1], expected, case.tolerance())


def grouped_heads(case: AttentionCase) -> None:
    """T20: each head alone with its key/value head; and each key/value head copied for its group."""
    outputs, parts = case.attend(), ("key", "value", "past_key", "past_value")
    copied = replace(case, **{name: getattr(case, name).repeat(case.group, axis=1) for name in parts})
    assert_close(copied.attend(), outputs, case.tolerance())
    for head in range(case.query.shape[1]):
        kv, own = slice(head // case.group, head // case.group + 1), slice(head, head + 1)
        alone = {name: getattr(case, name)[:, kv] for name in parts}
        bias = None if case.bias is None else case.bias[:, own]
        single = replace(case, query=case.query[:, own], bias=bias, **alone)
        assert_close(single.attend()[:, 0], outputs[:, head], case.tolerance())


def rows_apart(case: AttentionCase) -> None:
    """T21."""
    outputs = case.attend()
    for b in range(len(outputs)):
        assert_close(case.row(b).attend()[0], outputs[b], case.tolerance())


def no_slots(case: AttentionCase, *, slots: int = 0) -> None:
    """T31: exactly."""
    rows = case.rows()[:, None].repeat(case.query.shape[1], 1)
    first = case.slots(range(case.virtual - slots, case.virtual))
    numpy.testing.assert_array_equal(first.attend()[rows], case.attend_text()[rows])


def uniform_without_a_query(case: AttentionCase, *, larger: float = 0.0) -> None:
    """T50: λ(0·q) = nᵢ / (nᵢ + mᵢ), of the slots and keys of the text that query i sees, counted by NumPy alone."""
    alone = replace(case, query=larger * case.query)
    visible = case.sees()
    expected = visible[..., : case.virtual].sum(axis=-1) / numpy.maximum(1, visible.sum(axis=-1))
    share = numpy.broadcast_to(expected[:, None, :, None], (*case.query.shape[:3], 1))
    assert_close(alone.measured_share(), share, case.tolerance(), case.rows())
