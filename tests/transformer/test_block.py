"""One layer of every family, its wiring written out, its attention by loops over heads, queries and keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from support import MODELS, tiny_config, tiny_model

from refpeft import ops
from refpeft.steps import recording, scope
from refpeft.transformer import block
from refpeft.transformer.block import Surroundings
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.stack import layer_parameters, stack_parameters

RANDOM = numpy.random.default_rng(12)
BATCH, QUERIES, PAST, ENCODED = 2, 5, 3, 4

Inner = Callable[[Any], Any]
Norm = Callable[[str, Any], Any]


# Each wiring, of the input x: how attention, network, norms (by name) and cross-attention follow one another.


def before(x: Any, attend: Inner, feed: Inner, norm: Norm, cross: Inner) -> Any:
    h = x + attend(norm("input_norm", x))
    return h + feed(norm("post_attention_norm", h))


def after(x: Any, attend: Inner, feed: Inner, norm: Norm, cross: Inner) -> Any:
    h = norm("post_attention_norm", x + attend(x))
    return norm("output_norm", h + feed(h))


def around(x: Any, attend: Inner, feed: Inner, norm: Norm, cross: Inner) -> Any:
    h = x + norm("attention_output_norm", attend(norm("input_norm", x)))
    return h + norm("mlp_output_norm", feed(norm("post_attention_norm", h)))


def side_by_side(x: Any, attend: Inner, feed: Inner, norm: Norm, cross: Inner) -> Any:
    return x + attend(norm("input_norm", x)) + feed(norm("post_attention_norm", x))


def side_by_side_one_norm(x: Any, attend: Inner, feed: Inner, norm: Norm, cross: Inner) -> Any:
    return x + attend(norm("input_norm", x)) + feed(norm("input_norm", x))


def from_the_norm(x: Any, attend: Inner, feed: Inner, norm: Norm, cross: Inner) -> Any:
    n = norm("input_norm", x)
    m = norm("post_attention_norm", n + attend(n))
    return m + feed(m)


def before_crossing(x: Any, attend: Inner, feed: Inner, norm: Norm, cross: Inner) -> Any:
    h = x + attend(norm("input_norm", x))
    h = h + cross(norm("post_attention_norm", h))
    return h + feed(norm("post_cross_attention_norm", h))


def after_crossing(x: Any, attend: Inner, feed: Inner, norm: Norm, cross: Inner) -> Any:
    h = norm("post_attention_norm", x + attend(x))
    h = norm("post_cross_attention_norm", h + cross(h))
    return norm("output_norm", h + feed(h))


WIRINGS: dict[str, Any] = {
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gpt_bigcode, many keys", "opt", "opt, plain", "bloom"), before),
    **dict.fromkeys(
        ("llama", "llama, llama3", "llama, linear", "mistral", "qwen2", "qwen3", "gemma"), before
    ),
    **dict.fromkeys(("gpt_neox, one after the other", "falcon, alibi"), before),
    **dict.fromkeys(("opt, narrow, norms after", "bert", "roberta", "electra"), after),
    **dict.fromkeys(("gemma2", "gemma3_text"), around),
    **dict.fromkeys(("gpt_neox", "falcon, grouped"), side_by_side),
    **dict.fromkeys(
        ("falcon", "falcon, grouped, one norm", "phi", "phi, query and key norm"), side_by_side_one_norm
    ),
    "bloom, from the norm": from_the_norm,
    **dict.fromkeys(("t5", "t5, gated"), before),  # the encoders; the decoders below
    **dict.fromkeys(("bart", "bart, scaled"), after),
}
CROSSING = {
    "t5": before_crossing,
    "t5, gated": before_crossing,
    "bart": after_crossing,
    "bart, scaled": after_crossing,
}
RMS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "t5"), 0.0),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), 1.0),
}
"""Families whose norms divide by the root of the mean square alone, and what is added to their weights."""


def normed(x: Any, p: Any, name: str, config: ModelConfig) -> Any:
    """A norm of each last row."""
    rows = x.reshape(-1, x.shape[-1])
    result = []
    for row in rows:
        if config.family in RMS:
            root = math.sqrt(math.fsum(v * v for v in row) / len(row) + config.norm_epsilon)
            result.append(row / root * (p[f"{name}.weight"] + RMS[config.family]))
            continue
        mean = math.fsum(row) / len(row)
        variance = math.fsum((v - mean) ** 2 for v in row) / len(row)
        row = (row - mean) / math.sqrt(variance + config.norm_epsilon)
        result.append(row * p.get(f"{name}.weight", 1.0) + p.get(f"{name}.bias", 0.0))
    return numpy.array(result).reshape(x.shape)


def affine(x: Any, p: Any, name: str) -> Any:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)


def turned(vector: Any, cosine: Any, sine: Any) -> Any:
    """Pairs (x_i, x_{i + d/2}) of the first d numbers, turned."""
    half = len(cosine) // 2
    result = numpy.array(vector)
    for i in range(half):
        a, b = vector[i], vector[i + half]
        result[i] = a * cosine[i] - b * sine[i]
        result[i + half] = b * cosine[i + half] + a * sine[i + half]
    return result


def attended(
    p: Any, config: ModelConfig, layer: int, kind: str, x: Any, other: Any, past: Any, surroundings: Any
) -> Any:
    """One sequence: x (queries, hidden) -> (queries, hidden); past (kv_heads, past, head_dim) twice, or None."""
    visible, rotation, bias = surroundings
    d, heads, kv_heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    q, k, v = (
        affine(x, p, f"{kind}.query"),
        affine(other, p, f"{kind}.key"),
        affine(other, p, f"{kind}.value"),
    )
    scale = config.attention_scale / (layer + 1 if config.scale_attention_by_inverse_layer else 1)
    joined = numpy.zeros((len(x), heads * d))
    for head in range(heads):
        kv = head // (heads // kv_heads)
        queries = [row[head * d : (head + 1) * d] for row in q]
        keys, values = ([row[kv * d : (kv + 1) * d] for row in rows] for rows in (k, v))
        if config.query_key_norm:
            queries = [normed(row, p, f"{kind}.query_norm", config) for row in queries]
            keys = [normed(row, p, f"{kind}.key_norm", config) for row in keys]
        if rotation is not None:
            queries = [turned(row, rotation[0][t], rotation[1][t]) for t, row in enumerate(queries)]
            keys = [turned(row, rotation[0][t], rotation[1][t]) for t, row in enumerate(keys)]
        if past is not None:
            keys, values = [*past[0][kv], *keys], [*past[1][kv], *values]
        for t, query in enumerate(queries):
            logits = numpy.array([scale * math.fsum(query * key) for key in keys])
            if config.attention_softcap is not None:
                logits = config.attention_softcap * numpy.tanh(logits / config.attention_softcap)
            if bias is not None:
                logits = logits + bias[head, t]
            exponentials = numpy.where(visible[t], numpy.exp(logits - max(logits[visible[t]])), 0.0)
            joined[t, head * d : (head + 1) * d] = (
                exponentials @ numpy.array(values) / math.fsum(exponentials)
            )
    return affine(joined, p, f"{kind}.output")


def network(p: Any, config: ModelConfig, x: Any) -> Any:
    act = ops.activation(config.activation)
    gate = act(affine(x, p, "mlp.gate")) if config.gated else None
    activated = act(affine(x, p, "mlp.up")) if gate is None else gate * affine(x, p, "mlp.up")
    return affine(activated, p, "mlp.down")


def some_visible(*shape: int) -> Any:
    visible = RANDOM.random(shape) < 0.6
    visible[..., 0] = True
    return visible


def some_rotation(config: ModelConfig, layer: int) -> Any:
    """Cosine and sine (batch, 1, query, rotary) of some positions."""
    if config.rotary is None:
        return None
    half = config.rotary[layer].dimensions // 2
    turns = RANDOM.uniform(-3.0, 3.0, (BATCH, 1, QUERIES, half))
    turns = numpy.concatenate([turns, turns], axis=-1)
    return numpy.cos(turns), numpy.sin(turns)


def check(name: str, stack: str, layer: int, past_length: int, wiring: Any) -> None:
    family, changes = MODELS[name]
    base = tiny_model(family, **changes)
    config = base.config.stack(stack)  # type: ignore[arg-type]
    parameters = base.parameters
    if base.config.kind == "encoder_decoder":
        parameters = stack_parameters(parameters, stack)  # type: ignore[arg-type]
    p, crossing = (
        layer_parameters(parameters, layer),
        stack == "decoder" and base.config.kind == "encoder_decoder",
    )
    x, keys = RANDOM.normal(size=(BATCH, QUERIES, config.hidden_size)), past_length + QUERIES
    shape = (BATCH, config.num_key_value_heads, past_length, config.head_dim)
    past = (RANDOM.normal(size=shape), RANDOM.normal(size=shape)) if past_length else None
    visible, rotation = some_visible(BATCH, QUERIES, keys), some_rotation(config, layer)
    bias = None
    if config.positions in ("alibi", "relative"):
        bias = RANDOM.normal(size=(BATCH, config.num_attention_heads, QUERIES, keys))
    encoded = RANDOM.normal(size=(BATCH, ENCODED, config.hidden_size)) if crossing else None
    seen = some_visible(BATCH, QUERIES, ENCODED) if crossing else None
    with scope(stack=stack, layer=layer), recording() as stages:
        surroundings = Surroundings(visible, rotation, bias, encoded, seen)
        output, (key, value) = block.forward(p, config, layer, x, past, surroundings)
    assert key.shape == value.shape == (BATCH, config.num_key_value_heads, keys, config.head_dim)
    for b in range(BATCH):
        own = None if past is None else (past[0][b], past[1][b])
        turns = None if rotation is None else (rotation[0][b, 0], rotation[1][b, 0])
        here = (visible[b], turns, None if bias is None else bias[b])

        def attention(h: Any, own: Any = own, here: Any = here) -> Any:
            return attended(p, config, layer, "attention", h, h, own, here)

        def cross_attention(h: Any, b: int = b) -> Any:
            assert encoded is not None
            assert seen is not None
            return attended(p, config, 0, "cross_attention", h, encoded[b], None, (seen[b], None, None))

        expected = wiring(
            x[b], attention, lambda h: network(p, config, h), lambda name, h: normed(h, p, name, config), cross_attention
        )  # fmt: skip
        numpy.testing.assert_allclose(output[b], expected, rtol=1e-10, atol=1e-11)
        if own is not None:
            numpy.testing.assert_array_equal(key[b, :, :past_length], own[0])
            numpy.testing.assert_array_equal(value[b, :, :past_length], own[1])
    numpy.testing.assert_array_equal(stages[f"{stack}.layers.{layer}.output"], output)


@pytest.mark.parametrize("past", [0, PAST])
@pytest.mark.parametrize("name", MODELS)
def test_a_layer_by_hand(name: str, past: int) -> None:
    kind = tiny_model(MODELS[name][0]).config.kind
    check(name, "decoder" if kind == "decoder" else "encoder", 2, past, WIRINGS[name])


@pytest.mark.parametrize("past", [0, PAST])
@pytest.mark.parametrize("name", CROSSING)
def test_a_decoder_s_layer_behind_an_encoder_by_hand(name: str, past: int) -> None:
    check(name, "decoder", 1, past, CROSSING[name])


def test_every_model_has_a_wiring() -> None:
    assert set(WIRINGS) == set(MODELS)


@pytest.mark.parametrize(
    ("changes", "layer", "expected"),
    [
        ({"n_embd": 20}, 2, 0.5),
        ({"n_embd": 20, "scale_attn_weights": False}, 2, 1.0),
        ({"n_embd": 20, "scale_attn_by_inverse_layer_idx": True}, 0, 0.5),
        ({"n_embd": 20, "scale_attn_by_inverse_layer_idx": True}, 2, 0.5 / 3),
        ({"n_embd": 20, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}, 1, 0.5),
    ],
)
def test_the_scale_of_the_scores(changes: dict[str, Any], layer: int, expected: float) -> None:
    assert block.attention_scale(tiny_config(**changes), layer) == expected


STAGES = {
    "gpt2": ["input_norm", "after_attention", "post_attention_norm", "output"],
    "bert": ["after_attention", "post_attention_norm", "after_mlp", "output"],
    "gemma2": [
        "input_norm", "attention_output_norm", "after_attention", "post_attention_norm", "mlp_output_norm", "output",
    ],
    "gpt_neox": ["input_norm", "post_attention_norm", "output"],
    "phi": ["input_norm", "output"],
    "bloom, from the norm": ["input_norm", "after_attention", "post_attention_norm", "output"],
    "t5": ["input_norm", "after_attention", "post_attention_norm", "after_cross_attention", "post_cross_attention_norm", "output"],
    "bart": [
        "after_attention", "post_attention_norm", "after_cross_attention", "post_cross_attention_norm", "after_mlp", "output",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_which_stages_a_wiring_has(name: str) -> None:
    family, changes = MODELS[name]
    base = tiny_model(family, **changes)
    stack = "encoder" if base.config.kind == "encoder" else "decoder"
    config, parameters = base.config.stack(stack), base.parameters
    if base.config.kind == "encoder_decoder":
        parameters = stack_parameters(parameters, stack)
    hidden = RANDOM.normal(size=(BATCH, QUERIES, config.hidden_size))
    bias = (
        numpy.zeros((1, config.num_attention_heads, QUERIES, QUERIES))
        if config.positions in ("alibi", "relative")
        else None
    )
    crossing = (
        (hidden, some_visible(BATCH, QUERIES, QUERIES))
        if base.config.kind == "encoder_decoder"
        else (None, None)
    )
    around_it = Surroundings(some_visible(BATCH, QUERIES, QUERIES), some_rotation(config, 0), bias, *crossing)
    with scope(stack=stack, layer=0), recording() as stages:
        block.forward(layer_parameters(parameters, 0), config, 0, hidden, None, around_it)
    inner = ("attention.", "cross_attention.", "mlp.")
    names = [stage.removeprefix(f"{stack}.layers.0.") for stage in stages]
    assert [stage for stage in names if not stage.startswith(inner)] == STAGES[name]


def test_rotation_leaves_the_numbers_beyond_alone() -> None:
    """Half of each head is turned in this model; the values are not."""
    base = tiny_model("gpt_neox")
    assert base.config.rotary is not None
    assert (base.config.rotary[0].dimensions, base.config.head_dim) == (4, 8)
    hidden = RANDOM.normal(size=(BATCH, QUERIES, 24))
    around_it = Surroundings(some_visible(BATCH, QUERIES, QUERIES), some_rotation(base.config, 0))
    with scope(stack="decoder", layer=0), recording() as stages:
        block.forward(layer_parameters(base.parameters, 0), base.config, 0, hidden, None, around_it)
    for part in ("query", "key"):
        plain, rotated = (stages[f"decoder.layers.0.attention.{part}{end}"] for end in ("", "_rotated"))
        numpy.testing.assert_array_equal(rotated[..., 4:], plain[..., 4:])
        assert (rotated[..., :4] != plain[..., :4]).any()
    numpy.testing.assert_array_equal(
        stages["decoder.layers.0.attention.value_states"], stages["decoder.layers.0.attention.value"]
    )
