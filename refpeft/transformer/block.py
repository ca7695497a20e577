"""One layer of the frozen base model: attention and a feed-forward network, each with a norm and added back.

Follows transformers 5.23.0 `models/gpt2/modeling_gpt2.py` (`GPT2Block`, `GPT2MLP`); other families differ by the choices
of `ModelConfig`, and each step says whose they are. No dropout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Bool

from refpeft import arrays as np
from refpeft import attention
from refpeft.arrays import Array, Float, Parameters
from refpeft.ops import activation, linear
from refpeft.steps import scope, step
from refpeft.transformer import norms
from refpeft.transformer.config import ModelConfig

_LAYER = "{stack}.layers.{layer}."
_GPT2 = "transformers models/gpt2/modeling_gpt2.py "
_HIDDEN = "batch query hidden"

KeyValue = tuple[Array, Array]
"""Keys and values of one layer, each (batch, kv_heads, key, head_dim)."""


class Surroundings(NamedTuple):
    """What a layer sees beside the hidden states and its own cache."""

    visible: Array
    """(batch, query, key): which keys each query sees."""
    rotation: tuple[Array, Array] | None = None
    """Cosine and sine of the text's positions."""
    bias: Array | None = None
    """(batch or 1, heads, query or 1, key): what is added to the scores."""
    encoded: Array | None = None
    """(batch, encoder_key, hidden): the encoder's last hidden states."""
    cross_visible: Array | None = None
    """(batch, query, encoder_key)."""
    first: int = 0
    """Output is wanted from this position on; those before it are seen, and do not query."""


def around_queries(around: Surroundings, first: int) -> Surroundings:
    """What is around a layer whose output is wanted from position `first` on.

    Source: refpeft's own; HF computes all positions of every layer.
    """
    bias, seen = around.bias, around.cross_visible
    return around._replace(
        visible=around.visible[:, first:],
        bias=bias if bias is None or bias.shape[2] == 1 else _from(bias, first, axis=2),
        cross_visible=seen if seen is None else seen[:, first:],
        first=first,
    )


def _from(x: Array, first: int, *, axis: int) -> Array:
    return np.cut(x, first, x.shape[axis], axis) if first else x


@step(
    "block.after_attention",
    clause="AT-5",
    stage=_LAYER + "after_attention",
    axes=_HIDDEN,
    source=_GPT2 + "GPT2Block.forward",
)
def after_attention(
    hidden: Float[Array, "batch query hidden"], attention_output: Float[Array, "batch query hidden"]
) -> Float[Array, "batch query hidden"]:
    """The residual connection around attention."""
    return attention_output + hidden


@step(
    "block.after_cross_attention",
    clause="AT-8",
    stage=_LAYER + "after_cross_attention",
    axes=_HIDDEN,
    source="transformers models/t5/modeling_t5.py T5LayerCrossAttention.forward",
)
def after_cross_attention(
    hidden: Float[Array, "batch query hidden"], attention_output: Float[Array, "batch query hidden"]
) -> Float[Array, "batch query hidden"]:
    """The residual connection around cross-attention."""
    return hidden + attention_output


@step(
    "mlp.activation",
    clause="AT-5",
    stage=_LAYER + "mlp.activation",
    axes="batch query intermediate",
    source=_GPT2 + "GPT2MLP.forward",
)
def mlp_activation(
    hidden: Float[Array, "batch query hidden"],
    weight: Float[Array, "intermediate hidden"],
    bias: Float[Array, " intermediate"] | None,
    name: str,
) -> Float[Array, "batch query intermediate"]:
    """The first half of the feed-forward network: `activation(up · x + b)`."""
    return activation(name)(linear(hidden, weight, bias))


@step(
    "mlp.gated_activation",
    clause="AT-7",
    stage=_LAYER + "mlp.activation",
    axes="batch query intermediate",
    source="transformers models/llama/modeling_llama.py LlamaMLP.forward",
)
def mlp_gated_activation(
    hidden: Float[Array, "batch query hidden"],
    gate: tuple[Float[Array, "intermediate hidden"], Float[Array, " intermediate"] | None],
    up: tuple[Float[Array, "intermediate hidden"], Float[Array, " intermediate"] | None],
    name: str,
) -> Float[Array, "batch query intermediate"]:
    """`activation(gate · x) ⊙ (up · x)`. How others differ: the activation on the wrong one of the two."""
    gated: Array = activation(name)(linear(hidden, *gate)) * linear(hidden, *up)
    return gated


@step(
    "mlp.output", clause="AT-5", stage=_LAYER + "mlp.output", axes=_HIDDEN, source=_GPT2 + "GPT2MLP.forward"
)
def mlp_output(
    activated: Float[Array, "batch query intermediate"],
    weight: Float[Array, "hidden intermediate"],
    bias: Float[Array, " hidden"] | None,
) -> Float[Array, "batch query hidden"]:
    """The second half of the feed-forward network."""
    return linear(activated, weight, bias)


@step(
    "block.output", clause="AT-5", stage=_LAYER + "output", axes=_HIDDEN, source=_GPT2 + "GPT2Block.forward"
)
def block_output(
    hidden: Float[Array, "batch query hidden"], mlp_output: Float[Array, "batch query hidden"]
) -> Float[Array, "batch query hidden"]:
    """The residual connection around the feed-forward network: the layer's output."""
    return hidden + mlp_output


@step(
    "block.parallel_output",
    clause="AT-7",
    stage=_LAYER + "output",
    axes=_HIDDEN,
    source="transformers models/gpt_neox/modeling_gpt_neox.py GPTNeoXLayer.forward",
)
def parallel_output(
    hidden: Float[Array, "batch query hidden"],
    attention_output: Float[Array, "batch query hidden"],
    mlp_output: Float[Array, "batch query hidden"],
) -> Float[Array, "batch query hidden"]:
    """Attention and network side by side, both added to the layer's input."""
    return mlp_output + attention_output + hidden


@step(
    "block.after_mlp",
    clause="AT-7",
    stage=_LAYER + "after_mlp",
    axes=_HIDDEN,
    source="transformers models/bert/modeling_bert.py BertOutput.forward",
)
def after_mlp(
    hidden: Float[Array, "batch query hidden"], mlp_output: Float[Array, "batch query hidden"]
) -> Float[Array, "batch query hidden"]:
    """The residual connection around the network, before the norm that ends the layer."""
    return mlp_output + hidden


def attention_scale(config: ModelConfig, layer: int) -> float:
    """`1/√head_dim` or the family's own; divided by layer + 1 if the model asks for that.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2Attention.__init__`.
    """
    scale = config.attention_scale
    return scale / float(layer + 1) if config.scale_attention_by_inverse_layer else scale


def _weight_and_bias(parameters: Parameters, name: str) -> tuple[Array, Array | None]:
    """A linear map's weight, outputs × inputs, and its bias, if the family has one there."""
    return parameters[f"{name}.weight"], parameters.get(f"{name}.bias")


def projected(
    parameters: Parameters, config: ModelConfig, kind: str, hidden: Array, other: Array | None = None
) -> tuple[Array, Array, Array]:
    """Queries of `hidden`, keys and values of `other` (the encoder's, or more positions) or of `hidden` itself, split into heads.

    Of `hidden` (batch, query, hidden): (batch, heads, query, head_dim), and keys and values (batch, kv_heads, key,
    head_dim).

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2Attention.forward`.
    """
    source, key_value_heads = hidden if other is None else other, config.num_key_value_heads
    return (
        attention.query(hidden, *_weight_and_bias(parameters, f"{kind}.query"), config.num_attention_heads),
        attention.key(source, *_weight_and_bias(parameters, f"{kind}.key"), key_value_heads),
        attention.value(source, *_weight_and_bias(parameters, f"{kind}.value"), key_value_heads),
    )


def self_attention(
    parameters: Parameters,
    config: ModelConfig,
    layer: int,
    hidden: Float[Array, "batch tokens hidden"],
    past: KeyValue | None,
    around: Surroundings,
) -> tuple[Float[Array, "batch query hidden"], KeyValue]:
    """A layer's attention, from the normed hidden states to its output, with the prefix in front of its own keys.

    `parameters` are those of the layer, without `layers.{layer}.`: `attention.query.weight` and so on.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2Attention.forward`;
    `models/qwen3/modeling_qwen3.py`, `Qwen3Attention.forward`.
    """
    wanted = _from(hidden, around.first, axis=1)
    query, key, value = projected(parameters, config, "attention", wanted, hidden)
    if config.query_key_norm:
        query = norms.apply(norms.query_norm, query, parameters, "attention.query_norm", config)
        key = norms.apply(norms.key_norm, key, parameters, "attention.key_norm", config)
    if around.rotation is not None:
        query = attention.query_rotated(query, *(_from(x, around.first, axis=2) for x in around.rotation))
        key = attention.key_rotated(key, *around.rotation)
    options: dict[str, Any] = {"softcap": config.attention_softcap, "bias": around.bias}
    context, present = attention.attend(
        query, key, value, past, around.visible, attention_scale(config, layer),
        **{name: option for name, option in options.items() if option is not None},
    )  # fmt: skip
    return attention.output(context, *_weight_and_bias(parameters, "attention.output")), present


def cross_attention(
    parameters: Parameters,
    config: ModelConfig,
    hidden: Float[Array, "batch query hidden"],
    encoded: Float[Array, "batch encoder_key hidden"],
    visible: Bool[Array, "batch query encoder_key"],
) -> Float[Array, "batch query hidden"]:
    """A decoder layer's attention over what the encoder made of the text. No prefix, no positions (clause AT-8).

    Source: transformers 5.23.0 `models/t5/modeling_t5.py`, `T5LayerCrossAttention.forward`.
    """
    with scope(attention="cross_attention"):
        query, key, value = projected(parameters, config, "cross_attention", hidden, encoded)
        context = attention.dot_product_attention(query, key, value, visible, config.attention_scale)
        return attention.output(context, *_weight_and_bias(parameters, "cross_attention.output"))


def feed_forward(
    parameters: Parameters, config: ModelConfig, hidden: Float[Array, "batch query hidden"]
) -> Float[Array, "batch query hidden"]:
    """The network, from the normed hidden states to its output.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2MLP.forward`; `models/llama/modeling_llama.py`,
    `LlamaMLP.forward`.
    """
    up = _weight_and_bias(parameters, "mlp.up")
    if config.gated:
        gate = _weight_and_bias(parameters, "mlp.gate")
        activated = mlp_gated_activation(hidden, gate, up, config.activation)
    else:
        activated = mlp_activation(hidden, *up, config.activation)
    fed_forward = mlp_output(activated, *_weight_and_bias(parameters, "mlp.down"))
    if config.norm_order == "around":
        return norms.apply(norms.mlp_output_norm, fed_forward, parameters, "mlp_output_norm", config)
    return fed_forward


def forward(
    parameters: Parameters,
    config: ModelConfig,
    layer: int,
    hidden: Float[Array, "batch tokens hidden"],
    past: KeyValue | None,
    around: Surroundings,
) -> tuple[Float[Array, "batch query hidden"], KeyValue]:
    """One layer: `h + attention(norm(h))`, then `h + mlp(norm(h))`, with the norms where the family has them.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2Block.forward`, and the decoder layer of each
    family.

    Returns:
        The hidden states from `around.first` on, and the layer's key and value states, the prefix's included.
    """
    p, after = parameters, config.norm_order == "after"
    normed = hidden if after else norms.apply(norms.input_norm, hidden, p, "input_norm", config)
    attention_output, present = self_attention(p, config, layer, normed, past, around)
    hidden, normed = _from(hidden, around.first, axis=1), _from(normed, around.first, axis=1)
    if config.norm_order == "around":
        attention_output = norms.apply(
            norms.attention_output_norm, attention_output, p, "attention_output_norm", config
        )
    if config.parallel:
        own = normed if config.shared_norm else norms.apply(
            norms.post_attention_norm, hidden, p, "post_attention_norm", config
        )  # fmt: skip
        return parallel_output(hidden, attention_output, feed_forward(p, config, own)), present
    hidden = after_attention(normed if config.residual_from_norm else hidden, attention_output)
    normed = norms.apply(norms.post_attention_norm, hidden, p, "post_attention_norm", config)
    if around.encoded is not None and around.cross_visible is not None:
        hidden = normed if after else hidden
        crossed = cross_attention(p, config, normed, around.encoded, around.cross_visible)
        hidden = after_cross_attention(hidden, crossed)
        normed = norms.apply(norms.post_cross_attention_norm, hidden, p, "post_cross_attention_norm", config)
    if after:
        hidden = after_mlp(normed, feed_forward(p, config, normed))
        return norms.apply(norms.output_norm, hidden, p, "output_norm", config), present
    return block_output(
        normed if config.residual_from_norm else hidden, feed_forward(p, config, normed)
    ), present
