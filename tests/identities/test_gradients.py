"""Identities of loss and gradients, T39–T42 and T46–T48.

Notation as in `test_attention.py` and `test_model.py`; G = ∂loss/∂o; dA = G·vᵀ; dl = A ⊙ (dA − Σⱼ
A_ij·dA_ij), s the scale. Preconditions common to all: float64, eager softmax, no dropout; a key/value head's
gradient is the sum over the query heads that read it, and rows whose keys are all hidden have no part in it
(there are none if virtual ≥ 1).
"""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from hypothesis import given
from identities import test_attention as layer
from identities import test_model as model
from identities.strategies import (
    AttentionCase,
    ModelCase,
    attention_cases,
    log_sum_exp,
    model_case,
    model_sizes,
)
from support import relative_error

from refpeft import arrays as np
from refpeft import attention, ops, peft_model, prefix_encoder
from refpeft.arrays import Parameters
from refpeft.prefix_encoder import EMBEDDING
from refpeft.transformer import heads, stack

Gradients = dict[str, numpy.ndarray]

# ---------------------------------------------------------------- one attention layer


def _gradients(case: AttentionCase) -> tuple[Gradients, Gradients, float]:
    """Gradients by refpeft of Σ G ⊙ o, those of NumPy by hand for the same G, and the tolerance.

    A sum of `count` products G·A for values, s·q·dl for keys, |dl| ≤ 2·Σ|G||v|; each factor within the
    layer's unit, the sums within count·u: at most 4 units (of keys + head_dim + count) times the sum of
    absolute terms.
    """
    batch, query_heads, tokens, head_dim = case.query.shape
    g = case.random().normal(0.0, 1.0, case.query.shape)
    visible = case.visible()

    def function(p: Parameters) -> Any:
        past = (p["past_key"], p["past_value"])
        context, _ = attention.attend(case.query, p["key"], p["value"], past, visible, case.scale)
        return np.sum(attention.split_heads(context, query_heads) * g)

    names = ("key", "value", "past_key", "past_value")
    _, given_gradients = np.value_and_grad(function, {name: getattr(case, name) for name in names})

    def to_kv_heads(x: numpy.ndarray) -> numpy.ndarray:
        return x.reshape(batch, -1, case.group, *x.shape[2:]).sum(axis=2)

    logits, values = case.logits(), numpy.repeat(case.all_values, case.group, axis=1)
    weights = numpy.exp(logits - log_sum_exp(logits))
    d_weights = g @ numpy.swapaxes(values, -1, -2)
    d_logits = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
    d_keys = to_kv_heads(case.scale * numpy.swapaxes(d_logits, -1, -2) @ case.query)
    d_values = to_kv_heads(numpy.swapaxes(weights, -1, -2) @ g)
    n = case.virtual
    by_hand = {
        "past_key": d_keys[:, :, :n],
        "past_value": d_values[:, :, :n],
        "g": to_kv_heads(g),
    }
    count = tokens * case.group
    terms = (
        count
        * numpy.abs(g).max()
        * max(1.0, 2 * head_dim * case.scale * numpy.abs(values).max() * numpy.abs(case.query).max())
    )
    return dict(given_gradients), by_hand, 4 * (case.unit() + count * numpy.finfo(float).eps) * float(terms)


def check_t39_by_hand(case: AttentionCase) -> None:
    """∂/∂Pv = A_pᵀ·G and ∂/∂Pk = s·dl_pᵀ·q, both by NumPy alone. Pre: virtual ≥ 1.

    Kills a detached cache, a gradient without the softmax's second term, one query head standing for its
    group.
    """
    gradients, by_hand, tolerance = _gradients(case)
    layer.assert_close(gradients["past_value"], by_hand["past_value"], tolerance)
    layer.assert_close(gradients["past_key"], by_hand["past_key"], tolerance)


def check_t40_keys_sum_to_zero(case: AttentionCase) -> None:
    """Σ_p ∂/∂Pk_p + Σⱼ ∂/∂k_j = s·Σᵢ (Σⱼ dl_ij)·qᵢ = 0, for each key/value head. Pre: virtual ≥ 1.

    It is T9's invariance (all keys moved alike) differentiated. Kills a prefix with a softmax of its own
    scale.
    """
    gradients, _, tolerance = _gradients(case)
    total = gradients["past_key"].sum(axis=2) + gradients["key"].sum(axis=2)
    layer.assert_close(total, 0 * total, (case.virtual + case.query.shape[2]) * tolerance)


def check_t41_values_sum_to_the_output(case: AttentionCase) -> None:
    """Σ_p ∂/∂Pv_p + Σⱼ ∂/∂v_j = Σᵢ Gᵢ, for each key/value head. Pre: virtual ≥ 1.

    It is T7 (all values moved alike) differentiated. Kills weights that do not sum to one.
    """
    gradients, by_hand, tolerance = _gradients(case)
    total = gradients["past_value"].sum(axis=2) + gradients["value"].sum(axis=2)
    layer.assert_close(total, by_hand["g"].sum(axis=2), (case.virtual + case.query.shape[2]) * tolerance)


# ---------------------------------------------------------------- a whole model


def _inner_gradient(case: ModelCase, parameters: Parameters, config: Any) -> numpy.ndarray:
    """The loss's gradient for each row's copy of the table, summed over the batch, in the table's layout."""
    base, batch = case.base, len(case.input_ids)
    mask = None if case.mask is None else peft_model.masks.extend_attention_mask(case.mask, case.virtual)
    prompt = peft_model.get_prompt(parameters, config, batch)

    def loss(hidden: Any, labels: numpy.ndarray) -> Any:
        return ops.causal_lm_loss(heads.language_model_head(hidden, base.parameters["head.weight"]), labels)

    if case.method == "prompt":
        embeds = numpy.concatenate([numpy.asarray(prompt), case.embeds()], axis=1)
        labels = peft_model.extend_labels(case.labels, case.virtual)

        def of_embeds(p: Parameters) -> Any:
            return loss(stack.forward(base.parameters, base.config, p["embeds"], mask).hidden, labels)

        _, gradients = np.value_and_grad(of_embeds, {"embeds": embeds})
        return numpy.asarray(gradients["embeds"])[:, : case.virtual].sum(axis=0)

    def of_cache(p: Parameters) -> Any:
        past = tuple((p[f"{i}.key"], p[f"{i}.value"]) for i in range(base.config.num_layers))
        return loss(
            stack.forward(base.parameters, base.config, case.embeds(), mask, past).hidden, case.labels
        )

    pairs = [
        (f"{i}.{name}", numpy.array(x))
        for i, kv in enumerate(prompt)
        for name, x in zip(("key", "value"), kv, strict=True)
    ]
    _, gradients = np.value_and_grad(of_cache, dict(pairs))
    summed = {name: numpy.asarray(x).sum(axis=0, keepdims=True) for name, x in gradients.items()}
    return numpy.asarray(
        prefix_encoder.flatten(
            tuple((summed[f"{i}.key"], summed[f"{i}.value"]) for i in range(base.config.num_layers))
        )
    )


def check_t42_sum_over_the_batch(case: ModelCase) -> None:
    """A sum, no mean: ∂L/∂W = Σ_b ∂L/∂(row b's copy of W); and N·∂L/∂W = Σ_b N_b·∂L_b/∂W.

    N_b are the labels that count in row b, L_b is the loss of row b alone, N = Σ N_b.
    Pre: methods without a projection for the first, any for the second; rows with N_b = 0 left out (their
    loss is NaN). Kills a mean over the batch; a loss that is a mean over rows of means.
    """
    adapter = case.model()
    loss, gradients = adapter.value_and_grad(case.input_ids, case.labels, case.mask)
    # the backward pass is a chain twice as long as the forward pass
    if case.method != "projected":
        inner = _inner_gradient(case, adapter.trainable_parameters(), adapter.config)
        assert relative_error(gradients[EMBEDDING], inner) <= 3 * case.tolerance()
    counted = case.labels if case.method == "prompt" else case.labels[:, 1:]
    counts = (counted != -100).sum(axis=1)
    total, summed = 0.0, {name: numpy.zeros(value.shape) for name, value in gradients.items()}
    for b in numpy.flatnonzero(counts):
        mask = None if case.mask is None else case.mask[b : b + 1]
        row_loss, row = adapter.value_and_grad(case.input_ids[b : b + 1], case.labels[b : b + 1], mask)
        total += counts[b] * float(row_loss)
        summed = {name: value + counts[b] * row[name] for name, value in summed.items()}
    assert abs(total - counts.sum() * float(loss)) <= 3 * case.tolerance() * abs(total)
    for name, value in summed.items():
        assert relative_error(counts.sum() * gradients[name], value) <= 3 * case.tolerance()


def _mean_cross_entropy(logits: numpy.ndarray, labels: numpy.ndarray) -> float:
    """By NumPy alone: the mean of −log softmax(logits)[label] over labels ≠ −100, nothing shifted."""
    log_probabilities = logits - log_sum_exp(logits)
    picked = numpy.take_along_axis(log_probabilities, numpy.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return float(-picked[labels != -100].mean())


def check_t46_frozen_base(case: ModelCase) -> None:
    """Gradients exist for the trainable parameters alone, in their shapes and dtype; the base stays as it is.

    prompt: loss = mean CE(logits[:, n−1 : n+m−1], labels): over the text alone, its first token included.
    Pre: virtual ≥ 1. A label counts unless it is −100, whatever the attention mask says. Kills labels padded
    with 0 or a pad id; labels masked by the attention mask.
    """
    before = {name: numpy.array(value) for name, value in case.base.parameters.items()}
    adapter = case.model()
    loss, gradients = adapter.value_and_grad(case.input_ids, case.labels, case.mask)
    parameters = adapter.trainable_parameters()
    assert list(gradients) == list(parameters)
    for name, value in parameters.items():
        assert (gradients[name].shape, gradients[name].dtype) == (value.shape, value.dtype)
        assert numpy.isfinite(gradients[name]).all()
        assert (numpy.asarray(gradients[name]) != 0).any()
    for name, value in before.items():
        numpy.testing.assert_array_equal(case.base.parameters[name], value)
    if case.method == "prompt":
        logits = numpy.asarray(adapter(case.input_ids, case.mask).logits)[:, case.virtual - 1 : -1]
        expected = _mean_cross_entropy(logits, case.labels)
        assert abs(float(loss) - expected) <= case.tolerance() * max(1.0, float(numpy.abs(logits).max()))


def check_t47_first_token_is_predicted(case: ModelCase) -> None:
    """Prompt: m loss terms for each row, the first token predicted by the last virtual token; prefix: m − 1.

    loss_prompt = mean CE(logits[:, n−1 : n+m−1], labels); loss_prefix = mean CE(logits[:, : m−1], labels[:,
    1:]), so that the first label never counts.
    Pre: virtual ≥ 1; m ≥ 2; every label counts, so that the numbers of terms are batch·m and batch·(m − 1).
    Kills labels extended for both methods or for none, a loss that is not shifted or shifted twice.
    """
    vocab, ids = case.base.config.vocab_size, case.input_ids
    other = ids.copy()
    other[:, 0] = (ids[:, 0] + 1) % vocab
    adapter = case.model()
    output = adapter(ids, case.mask, labels=ids)
    changed = adapter(ids, case.mask, labels=other).loss
    logits, n = numpy.asarray(output.logits), case.virtual
    if case.method == "prompt":
        expected = _mean_cross_entropy(logits[:, n - 1 : -1], ids)
        first = [_mean_cross_entropy(logits[:, n - 1], labels[:, 0]) for labels in (other, ids)]
        difference = (first[0] - first[1]) / ids.shape[1]  # one of m terms in each row
    else:
        expected, difference = _mean_cross_entropy(logits[:, :-1], ids[:, 1:]), 0.0
    tolerance = case.tolerance() * max(1.0, float(numpy.abs(logits).max()))
    assert abs(float(output.loss) - expected) <= tolerance
    assert abs(float(changed - output.loss) - difference) <= 2 * tolerance


def check_t48_finite_differences(case: ModelCase) -> None:
    """(L(θ + h·d) − L(θ − h·d)) / 2h = ⟨∂L/∂θ, d⟩ within 1e-6.

    d is a random unit vector over all parameters, h = 1e-4.
    Truncation: h²/6 · L''' ≈ 1e-9; rounding: ε·|L|/h ≈ 1e-11; in relation to the larger of the derivative and
    ‖∂L/∂θ‖/√size, its standard deviation over directions. Pre: smooth activations. Kills every wrong
    gradient.
    """
    adapter = case.model()
    parameters = adapter.trainable_parameters()
    _, gradients = adapter.value_and_grad(case.input_ids, case.labels, case.mask)
    random = case.random()
    direction = {name: random.normal(0.0, 1.0, value.shape) for name, value in parameters.items()}
    norm = float(numpy.sqrt(sum((d * d).sum() for d in direction.values())))
    losses = []
    for step in (1e-4, -1e-4):
        moved = {name: value + step / norm * direction[name] for name, value in parameters.items()}
        adapter.load_trainable_parameters(moved)
        losses.append(float(adapter(case.input_ids, case.mask, labels=case.labels).loss))
    derivative = sum(float((gradients[name] * d).sum()) for name, d in direction.items()) / norm
    size = sum(d.size for d in direction.values())
    deviation = float(numpy.sqrt(sum((g * g).sum() for g in gradients.values()) / size))
    assert abs((losses[0] - losses[1]) / 2e-4 - derivative) <= 1e-6 * max(abs(derivative), deviation)


@pytest.mark.parametrize(
    "check", [check_t39_by_hand, check_t40_keys_sum_to_zero, check_t41_values_sum_to_the_output]
)
@given(case=attention_cases(virtual=1))
def test_gradient_of_attention(check: layer.Check, case: AttentionCase) -> None:
    check(case)


@pytest.mark.parametrize(
    "check",
    [
        check_t42_sum_over_the_batch,
        check_t46_frozen_base,
        check_t47_first_token_is_predicted,
        check_t48_finite_differences,
    ],
)
@given(sizes=model_sizes())
def test_loss_and_gradient_of_the_model(check: model.Check, sizes: dict[str, Any]) -> None:
    check(model_case(**sizes))
