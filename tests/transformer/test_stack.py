"""One layer and the stack, against GPT-2 written out one token at a time; and an earlier call's cache."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
from support import tiny_base

from refpeft.transformer import stack
from refpeft.transformer.weights import BaseModel

RANDOM = numpy.random.default_rng(8)
PAST = 4


def norm(x: Any, p: Any, name: str, epsilon: float) -> Any:
    mean = math.fsum(x) / len(x)
    variance = math.fsum((value - mean) ** 2 for value in x) / len(x)
    return (x - mean) / math.sqrt(variance + epsilon) * p[f"{name}.weight"] + p[f"{name}.bias"]


def affine(x: Any, p: Any, name: str) -> Any:
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def gelu(x: Any) -> Any:
    return numpy.array([v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x])


def gpt2(base: BaseModel, embeds: Any, seen: Any, past: Any = None, positions: Any = None) -> Any:
    """Final hidden states of one sequence: (tokens, hidden) -> (tokens, hidden). `seen[k]`: key k is no padding."""
    p, c = base.parameters, base.config
    before = 0 if past is None else past[0][0].shape[1]
    positions = range(before, before + len(embeds)) if positions is None else positions
    stream = [x + p["embeddings.positions.weight"][at] for x, at in zip(embeds, positions, strict=True)]
    for layer in range(c.num_layers):
        own = {n.split(".", 2)[2]: v for n, v in p.items() if n.startswith(f"layers.{layer}.")}
        normed = [norm(x, own, "input_norm", c.norm_epsilon) for x in stream]
        q, k, v = ([affine(x, own, f"attention.{n}") for x in normed] for n in ("query", "key", "value"))
        scale = c.attention_scale / (layer + 1 if c.scale_attention_by_inverse_layer else 1)
        for t, x in enumerate(stream):
            joined = []
            for head in range(c.num_attention_heads):
                cut = slice(head * c.head_dim, (head + 1) * c.head_dim)
                keys, values = [key[cut] for key in k], [value[cut] for value in v]
                if past is not None:
                    keys, values = [*past[layer][0][head], *keys], [*past[layer][1][head], *values]
                weights = [
                    math.exp(scale * math.fsum(q[t][cut] * keys[j])) if seen[j] else 0.0
                    for j in range(before + t + 1)
                ]
                joined.extend(sum(w * values[j] for j, w in enumerate(weights)) / math.fsum(weights))
            middle = x + affine(numpy.array(joined), own, "attention.output")
            fed = gelu(affine(norm(middle, own, "post_attention_norm", c.norm_epsilon), own, "mlp.up"))
            stream[t] = middle + affine(fed, own, "mlp.down")
    return numpy.array([norm(x, p, "final_norm", c.norm_epsilon) for x in stream])


def some_past(batch: int) -> Any:
    return tuple(tuple(RANDOM.normal(size=(batch, 5, PAST, 3)) for _ in range(2)) for _ in range(3))


MASK = numpy.array(
    [[1, 1, 1, 1, 0, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1, 1, 1, 0, 0]], dtype=float
)  # 4 past, 6 own


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale_attn_weights": False, "layer_norm_epsilon": 0.5},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
    ids=["usual", "unscaled, another epsilon", "scaled by layer"],
)
def test_the_stack_is_gpt2(changes: dict[str, Any]) -> None:
    base, embeds, past = tiny_base(**changes), RANDOM.normal(size=(2, 6, 15)), some_past(2)
    plain = stack.forward(base.parameters, base.config, embeds)
    prefixed = stack.forward(base.parameters, base.config, embeds, MASK, past)
    for b in range(2):
        expected = gpt2(base, embeds[b], [1] * 6)
        numpy.testing.assert_allclose(plain.hidden[b], expected, rtol=1e-10, atol=1e-11)
        own = [(key[b], value[b]) for key, value in past]
        expected = gpt2(base, embeds[b], MASK[b], own)
        numpy.testing.assert_allclose(prefixed.hidden[b], expected, rtol=1e-10, atol=1e-11)


def test_given_positions_are_added_to_the_past() -> None:
    base, embeds, past = tiny_base(), RANDOM.normal(size=(1, 3, 15)), some_past(1)
    given = numpy.array([[2, 0, 5]])
    output = stack.forward(base.parameters, base.config, embeds, None, past, stack.Given(given))
    own = [(key[0], value[0]) for key, value in past]
    expected = gpt2(base, embeds[0], [1] * 7, own, positions=[PAST + 2, PAST, PAST + 5])
    numpy.testing.assert_allclose(output.hidden[0], expected, rtol=1e-10, atol=1e-11)


def test_the_cache_holds_the_past_then_the_own_states() -> None:
    base, past = tiny_base(), some_past(2)
    output = stack.forward(base.parameters, base.config, RANDOM.normal(size=(2, 6, 15)), MASK, past)
    assert len(output.past_key_values) == 3
    for given, before in zip(output.past_key_values, past, strict=True):
        for states, first in zip(given, before, strict=True):
            assert states.shape == (2, 5, PAST + 6, 3)
            numpy.testing.assert_array_equal(states[:, :, :PAST], first)


def test_two_calls_with_the_cache_equal_one() -> None:
    base, embeds, mask = tiny_base(), RANDOM.normal(size=(2, 6, 15)), MASK[:, 3:9]
    whole = stack.forward(base.parameters, base.config, embeds, mask)
    first = stack.forward(base.parameters, base.config, embeds[:, :4], mask[:, :4])
    second = stack.forward(base.parameters, base.config, embeds[:, 4:], mask, first.past_key_values)
    numpy.testing.assert_allclose(first.hidden, whole.hidden[:, :4], rtol=1e-12, atol=1e-13)
    numpy.testing.assert_allclose(second.hidden, whole.hidden[:, 4:], rtol=1e-12, atol=1e-13)
    for given, expected in zip(second.past_key_values, whole.past_key_values, strict=True):
        numpy.testing.assert_allclose(given, expected, rtol=1e-12, atol=1e-13)


def test_the_parameters_of_a_layer_are_its_own_alone() -> None:
    parameters = {f"layers.{layer}.x.weight": numpy.array([float(layer)]) for layer in range(12)}
    chosen = stack.layer_parameters({**parameters, "final_norm.weight": numpy.zeros(1)}, 1)
    assert {name: value.tolist() for name, value in chosen.items()} == {"x.weight": [1.0]}


def test_the_activation_is_the_configurations() -> None:
    base, embeds = tiny_base(), RANDOM.normal(size=(1, 2, 15))
    relu = tiny_base(activation_function="relu")
    assert (relu.parameters["head.weight"] == base.parameters["head.weight"]).all()
    outputs = [stack.forward(model.parameters, model.config, embeds).hidden for model in (base, relu)]
    assert numpy.abs(outputs[0] - outputs[1]).max() > 1e-3
