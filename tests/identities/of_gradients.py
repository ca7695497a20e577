"""Identities of losses and gradients, T39 to T49. What they say stands in `table.py`.

Notation as in `of_attention.py` and `of_models.py`; G = ∂loss/∂o; dA = G·vᵀ; dl = A ⊙ (dA − Σⱼ A_ij·dA_ij), s the scale. A
key/value head's gradient is the sum over the query heads that read it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
from identities.attention_cases import EPSILON, AttentionCase, assert_close, log_sum_exp
from identities.model_cases import ModelCase, as_it_runs, with_rows

from refpeft import arrays as np
from refpeft import attention, peft_model, prefix_encoder, prompt_embedding
from refpeft.arrays import Parameters
from refpeft.prefix_encoder import EMBEDDING, FIRST_BIAS, FIRST_WEIGHT, SECOND_BIAS, SECOND_WEIGHT
from refpeft.steps import replaced

Numbers = Any
Gradients = dict[str, Numbers]
HALF = 1e-4
"""The step of finite differences, in standard deviations of the parameters."""

# ---------------------------------------------------------------- one attention layer


def _gradients(case: AttentionCase) -> tuple[Gradients, Numbers, float]:
    """Gradients by refpeft of Σ G ⊙ o, G, and the tolerance. Rows that see no key of the text have no part in it.

    A sum of `count` products G·A for values, s·q·dl for keys, |dl| ≤ 2·Σ|G||v|; each factor within the layer's unit, the sums
    within count·u: at most 4 units (of keys + head_dim + count) times the sum of absolute terms.
    """
    _, query_heads, tokens, head_dim = case.query.shape
    g = case.draw(*case.query.shape) * case.rows()[:, None, :, None]
    visible = case.visible()
    options: dict[str, Any] = {} if case.softcap is None else {"softcap": case.softcap}
    options |= {} if case.bias is None else {"bias": case.bias}

    def function(p: Parameters) -> Any:
        past = (p["past_key"], p["past_value"])
        context, _ = attention.attend(case.query, p["key"], p["value"], past, visible, case.scale, **options)
        return np.sum(attention.split_heads(context, query_heads) * g)

    names = ("key", "value", "past_key", "past_value")
    with numpy.errstate(over="ignore"):
        _, given = np.value_and_grad(function, {name: getattr(case, name) for name in names})
    count = tokens * case.group
    products = 2 * head_dim * case.scale * numpy.abs(case.all_values).max() * numpy.abs(case.query).max()
    terms = count * numpy.abs(g).max() * max(1.0, products)
    return dict(given), g, 4 * (case.unit() + case.slack * count * EPSILON) * float(terms)


def _to_kv_heads(case: AttentionCase, x: Numbers) -> Numbers:
    return x.reshape(len(x), -1, case.group, *x.shape[2:]).sum(axis=2)


def by_hand(case: AttentionCase) -> None:
    """T39."""
    given, g, tolerance = _gradients(case)
    logits, values = case.logits(), numpy.repeat(case.all_values, case.group, axis=1)
    total = log_sum_exp(logits)
    weights = numpy.exp(logits - numpy.where(numpy.isfinite(total), total, 0.0))
    d_weights = g @ numpy.swapaxes(values, -1, -2)
    d_logits = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
    d_keys = _to_kv_heads(case, case.scale * numpy.swapaxes(d_logits, -1, -2) @ case.query)
    d_values = _to_kv_heads(case, numpy.swapaxes(weights, -1, -2) @ g)
    assert_close(given["past_value"], d_values[:, :, : case.virtual], tolerance)
    assert_close(given["past_key"], d_keys[:, :, : case.virtual], tolerance)


def keys_sum_to_zero(case: AttentionCase) -> None:
    """T40."""
    given, _, tolerance = _gradients(case)
    total = given["past_key"].sum(axis=2) + given["key"].sum(axis=2)
    assert_close(total, 0 * total, (case.virtual + case.tokens) * tolerance)


def values_sum_to_the_output(case: AttentionCase) -> None:
    """T41."""
    given, g, tolerance = _gradients(case)
    total = given["past_value"].sum(axis=2) + given["value"].sum(axis=2)
    assert_close(total, _to_kv_heads(case, g).sum(axis=2), (case.virtual + case.tokens) * tolerance)


def euler(case: AttentionCase) -> None:
    """T49."""
    given, g, tolerance = _gradients(case)
    parts = ((case.past_value, given["past_value"]), (case.value, given["value"]))
    products = sum((x * d).sum(axis=(2, 3)) for x, d in parts)
    expected = _to_kv_heads(case, (case.attend() * g).sum(axis=(2, 3)))
    count = (case.virtual + case.tokens) * case.query.shape[3]
    largest = max(1.0, float(numpy.abs(case.all_values).max()))
    assert_close(numpy.asarray(products), expected, count * largest * tolerance)


# ---------------------------------------------------------------- a whole model: the batch, the loss


def sum_over_rows(case: ModelCase) -> None:
    """T42: the table's gradient is the sum of those of each row's own copy of it."""
    model = case.with_loss()
    question = case.question(model)
    _, gradients = model.value_and_grad(**question)
    prompt, shape = case.method == "prompt", list[tuple[int, ...]]()
    name = "prompt.embeddings" if prompt else "prefix.rows"
    own = as_it_runs(prompt_embedding.forward if prompt else prefix_encoder.rows)

    def loss(p: Parameters) -> Any:
        def copied(*args: Any) -> Any:
            rows = own(*args)
            shape.append(rows.shape)
            return rows + p.get("offset", 0.0)

        with replaced({name: copied}):
            used, config = model.parameters(), model.config
            return peft_model.forward(used, case.base, config, **question).loss

    loss({})
    _, found = np.value_and_grad(loss, {"offset": numpy.zeros(shape[-1])})
    copies = numpy.asarray(
        found["offset"]
    )  # (batch, virtual, hidden) or (rows, batch, kv_heads, virtual, head_dim)
    summed = (
        copies.sum(axis=0) if prompt else copies.sum(axis=1).transpose(2, 0, 1, 3).reshape(case.virtual, -1)
    )
    case.assert_near(gradients[EMBEDDING], summed, times=3)


def losses_weighed_by_labels(case: ModelCase) -> None:
    """T42: N·∂L/∂W = Σ_b N_b·∂L_b/∂W, and the losses likewise; N_b labels count in row b, whose loss alone is L_b."""
    model = case.with_loss()
    question = case.question(model)
    loss, gradients = model.value_and_grad(**question)
    counted = question["labels"]
    counted = counted[:, 1:] if case.kind == "decoder" and case.method != "prompt" else counted
    counts = (counted != -100).sum(axis=1)
    total, summed = 0.0, {name: numpy.zeros(value.shape) for name, value in gradients.items()}
    for b in range(case.batch):
        row = {name: None if x is None else x[b : b + 1] for name, x in question.items()}
        row_loss, own = model.value_and_grad(**row)
        total += counts[b] * float(row_loss)
        summed = {name: value + counts[b] * own[name] for name, value in summed.items()}
    assert abs(total - counts.sum() * float(loss)) <= 3 * case.tolerance() * abs(total)
    for name, value in summed.items():
        case.assert_near(counts.sum() * gradients[name], value, times=3)


def _mean_cross_entropy(logits: Numbers, labels: Numbers) -> float:
    """By NumPy alone: the mean of −log softmax(logits)[label] over labels ≠ −100, nothing shifted."""
    log_probabilities = logits - log_sum_exp(logits)
    picked = numpy.take_along_axis(log_probabilities, numpy.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return float(-picked[labels != -100].mean())


def _expected_loss(case: ModelCase, logits: Numbers, labels: Numbers) -> float:
    """Language models predict the next token; behind a prompt the last virtual token predicts the text's first."""
    if case.kind != "decoder":
        return _mean_cross_entropy(logits, labels)
    if case.method == "prompt":
        return _mean_cross_entropy(logits[:, case.virtual - 1 : -1], labels)
    return _mean_cross_entropy(logits[:, :-1], labels[:, 1:])


def frozen_base(case: ModelCase) -> None:
    """T46: gradients for what is trained alone, in its shapes; the base as it was; a loss of the labels ≠ −100 alone."""
    before = {name: numpy.array(value) for name, value in case.base.parameters.items()}
    model = case.with_loss()
    question = case.question(model)
    loss, gradients = model.value_and_grad(**question)
    parameters = model.trainable_parameters()
    assert list(gradients) == list(parameters)
    for name, value in parameters.items():
        assert (gradients[name].shape, gradients[name].dtype) == (value.shape, value.dtype)
        assert numpy.isfinite(gradients[name]).all()
        assert (numpy.asarray(gradients[name]) != 0).any()
    for name, value in before.items():
        numpy.testing.assert_array_equal(case.base.parameters[name], value)
    logits = numpy.asarray(model(**question).logits)
    _assert_loss(case, float(loss), _expected_loss(case, logits, question["labels"]), logits)


def _assert_loss(case: ModelCase, given: float, expected: float, logits: Numbers, losses: int = 1) -> None:
    """`losses`: how many of them `given` is made of."""
    assert abs(given - expected) <= losses * case.tolerance() * max(1.0, float(numpy.abs(logits).max()))


def first_token_is_predicted(case: ModelCase) -> None:
    """T47: another first label changes a prompt's loss by one of m terms for each row, and a prefix's not at all."""
    ids = case.text
    other = ids.copy()
    other[:, 0] = (ids[:, 0] + 1) % case.config.vocab_size
    model = case.model()
    output = model(ids, case.mask, labels=ids)
    changed = model(ids, case.mask, labels=other).loss
    logits, difference = numpy.asarray(output.logits), 0.0
    if case.method == "prompt":
        predicted = logits[:, case.virtual - 1]
        first = [_mean_cross_entropy(predicted, labels[:, 0]) for labels in (other, ids)]
        difference = (first[0] - first[1]) / ids.shape[1]
    _assert_loss(case, float(output.loss), _expected_loss(case, logits, ids), logits)
    _assert_loss(case, float(changed - output.loss), difference, logits, losses=2)


# ---------------------------------------------------------------- a whole model: what slots have in common


def zeros_learn_alike(case: ModelCase, *, zero: bool = True) -> None:
    """T43: with W = 0 all slots have the same gradient, and none of keys or values that are read is zero."""
    case = replace(case, mask=None)  # a query that sees slots alone has no gradient for their keys
    model = case.with_loss("prefix")
    rows = model.trainable_parameters()[EMBEDDING]
    model = with_rows(model, 0 * rows if zero else rows)
    _, gradients = model.value_and_grad(**case.question(model))
    gradient = gradients[EMBEDDING]
    case.assert_near(gradient, numpy.broadcast_to(gradient[:1], gradient.shape), times=3)
    layers = model.config.num_layers or 1
    blocks = numpy.abs(gradient.reshape(case.virtual, 2 * layers, -1)).max(axis=(0, 2))
    read = {block for layer in range(case.layers) for block in case.blocks(layer, layers)}
    assert set(numpy.flatnonzero(blocks)) == read


def equal_slots_stay_equal(case: ModelCase, *, equal: bool = True) -> None:
    """T44: the first and the last row, equal (or not), among others."""
    model = case.with_loss("prefix")
    rows = numpy.array(model.trainable_parameters()[EMBEDDING])
    rows[-1] = rows[0] if equal else rows[-1]
    model = with_rows(model, rows)
    _, gradients = model.value_and_grad(**case.question(model))
    assert numpy.abs(gradients[EMBEDDING]).max() > 0
    case.assert_near(gradients[EMBEDDING][-1], gradients[EMBEDDING][0], times=3)


def last_map_learns_first(case: ModelCase, *, weights: str | None = "zero") -> None:
    """T45: with a last map of zeros the table, W₀ and b₀ have a gradient of zero, W₂ and b₂ have one."""
    model = case.with_loss("projected", init_weights=weights)
    _, gradients = model.value_and_grad(**case.question(model))
    for name in (EMBEDDING, FIRST_WEIGHT, FIRST_BIAS):
        assert (gradients[name] == 0).all()
    for name in (SECOND_WEIGHT, SECOND_BIAS):
        assert (gradients[name] != 0).any()


def finite_differences(case: ModelCase, *, kink: bool = False) -> None:
    """T48: along a random unit vector over all parameters. `kink`: at which the projection's hidden units all are 0.

    Truncation: h²/6 · L''' ≈ 1e-9; rounding: ε·|L|/h ≈ 1e-11; in relation to the larger of the derivative and ‖∂L/∂θ‖/√size, its
    standard deviation over directions.
    """
    model = case.with_loss()
    parameters = model.trainable_parameters()
    if kink:
        parameters |= {name: 0 * parameters[name] for name in (FIRST_WEIGHT, FIRST_BIAS)}
        model.load_trainable_parameters(parameters)
    question, random = case.question(model), case.random()
    _, gradients = model.value_and_grad(**question)
    direction = {name: random.normal(0.0, 1.0, value.shape) for name, value in parameters.items()}
    norm = float(numpy.sqrt(sum((d * d).sum() for d in direction.values())))
    size = sum(d.size for d in direction.values())
    half = HALF * float(numpy.sqrt(sum((x * x).sum() for x in parameters.values()) / size))
    losses = []
    for step in (half, -half):
        moved = {name: value + step / norm * direction[name] for name, value in parameters.items()}
        model.load_trainable_parameters(moved)
        losses.append(float(model(**question).loss))
    derivative = sum(float((gradients[name] * d).sum()) for name, d in direction.items()) / norm
    deviation = float(numpy.sqrt(sum((g * g).sum() for g in gradients.values()) / size))
    error = abs((losses[0] - losses[1]) / (2 * half) - derivative)
    assert error <= 1e-6 * (1000.0 if case.slack > 1.0 else 1.0) * max(abs(derivative), deviation)
