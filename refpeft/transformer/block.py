"""One layer of the frozen base model: attention and a feed-forward network, each behind a norm and added back.

Follows transformers 5.23.0 `models/gpt2/modeling_gpt2.py` (`GPT2Block`, `GPT2MLP`).
"""

from __future__ import annotations

from jaxtyping import Bool

from refpeft import attention
from refpeft.arrays import Array, Float, Parameters
from refpeft.ops import activation, layer_norm, linear
from refpeft.steps import step
from refpeft.transformer.config import ModelConfig

_LAYER = "{stack}.layers.{layer}."
_GPT2 = "transformers models/gpt2/modeling_gpt2.py "
_HIDDEN = "batch query hidden"

KeyValue = tuple[Array, Array]
"""Keys and values of one layer, each (batch, kv_heads, key, head_dim)."""


@step(
    "block.input_norm",
    clause="AT-1",
    stage=_LAYER + "input_norm",
    axes=_HIDDEN,
    source=_GPT2 + "GPT2Block.forward",
)
def input_norm(
    hidden: Float[Array, "batch query hidden"],
    weight: Float[Array, " hidden"],
    bias: Float[Array, " hidden"],
    epsilon: float,
) -> Float[Array, "batch query hidden"]:
    """The norm before attention. The prefix's keys and values never pass through it."""
    return layer_norm(hidden, weight, bias, epsilon)


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
    "block.post_attention_norm",
    clause="AT-5",
    stage=_LAYER + "post_attention_norm",
    axes=_HIDDEN,
    source=_GPT2 + "GPT2Block.forward",
)
def post_attention_norm(
    hidden: Float[Array, "batch query hidden"],
    weight: Float[Array, " hidden"],
    bias: Float[Array, " hidden"],
    epsilon: float,
) -> Float[Array, "batch query hidden"]:
    """The norm before the feed-forward network."""
    return layer_norm(hidden, weight, bias, epsilon)


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
    bias: Float[Array, " intermediate"],
    name: str,
) -> Float[Array, "batch query intermediate"]:
    """The first half of the feed-forward network: `activation(up · x + b)`."""
    return activation(name)(linear(hidden, weight, bias))


@step(
    "mlp.output", clause="AT-5", stage=_LAYER + "mlp.output", axes=_HIDDEN, source=_GPT2 + "GPT2MLP.forward"
)
def mlp_output(
    activated: Float[Array, "batch query intermediate"],
    weight: Float[Array, "hidden intermediate"],
    bias: Float[Array, " hidden"],
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


def attention_scale(config: ModelConfig, layer: int) -> float:
    """`1/√head_dim`, or 1 if the model does not scale; divided by layer + 1 if the model asks for that.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2Attention.__init__`.
    """
    scale = config.head_dim**-0.5 if config.scale_attention else 1.0
    return scale / float(layer + 1) if config.scale_attention_by_inverse_layer else scale


def self_attention(
    parameters: Parameters,
    config: ModelConfig,
    layer: int,
    hidden: Float[Array, "batch query hidden"],
    past: KeyValue | None,
    visible: Bool[Array, "batch query key"],
) -> tuple[Float[Array, "batch query hidden"], KeyValue]:
    """A layer's attention, from the normed hidden states to its output, with the prefix in front of its own keys.

    `parameters` are those of the layer, without `layers.{layer}.`: `attention.query.weight` and so on.
    """
    query, key, value = (
        step(hidden, parameters[f"attention.{name}.weight"], parameters.get(f"attention.{name}.bias"), heads)
        for name, step, heads in (
            ("query", attention.query, config.num_attention_heads),
            ("key", attention.key, config.num_key_value_heads),
            ("value", attention.value, config.num_key_value_heads),
        )
    )
    context, present = attention.attend(query, key, value, past, visible, attention_scale(config, layer))
    weight, bias = parameters["attention.output.weight"], parameters.get("attention.output.bias")
    return attention.output(context, weight, bias), present


def forward(
    parameters: Parameters,
    config: ModelConfig,
    layer: int,
    hidden: Float[Array, "batch query hidden"],
    past: KeyValue | None,
    visible: Bool[Array, "batch query key"],
) -> tuple[Float[Array, "batch query hidden"], KeyValue]:
    """One layer: `h + attention(norm(h))`, then `h + mlp(norm(h))`. No dropout.

    Returns:
        The hidden states, and the layer's key and value states, the prefix's included.
    """
    p, epsilon = parameters, config.norm_epsilon
    normed = input_norm(hidden, p["input_norm.weight"], p["input_norm.bias"], epsilon)
    attention_output, present = self_attention(parameters, config, layer, normed, past, visible)
    hidden = after_attention(hidden, attention_output)
    normed = post_attention_norm(
        hidden, p["post_attention_norm.weight"], p["post_attention_norm.bias"], epsilon
    )
    activated = mlp_activation(normed, p["mlp.up.weight"], p["mlp.up.bias"], config.activation)
    fed_forward = mlp_output(activated, p["mlp.down.weight"], p["mlp.down.bias"])
    return block_output(hidden, fed_forward), present
