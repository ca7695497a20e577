"""The decoder: positions, mask, all layers, the final norm.

Follows transformers 5.23.0 `models/gpt2/modeling_gpt2.py` (`GPT2Model.forward`).
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Int

from refpeft.arrays import Array, Float, Parameters
from refpeft.masks import causal_visibility
from refpeft.ops import layer_norm
from refpeft.positions import add_learned_positions, position_ids
from refpeft.steps import scope, step
from refpeft.transformer import block
from refpeft.transformer.block import KeyValue
from refpeft.transformer.config import ModelConfig


class StackOutput(NamedTuple):
    """What the decoder returns."""

    hidden: Array
    """Final hidden states after the last norm (batch, query, hidden)."""
    past_key_values: tuple[KeyValue, ...]
    """Key and value states of each layer, those of the prefix included: each (batch, kv_heads, key, head_dim)."""


def layer_parameters(parameters: Parameters, layer: int) -> Parameters:
    """The parameters of one layer, under the names they have in every layer."""
    start = f"layers.{layer}."
    return {name[len(start) :]: value for name, value in parameters.items() if name.startswith(start)}


@step(
    "decoder.final_norm",
    clause="AT-5",
    axes="batch query hidden",
    source="transformers models/gpt2/modeling_gpt2.py GPT2Model.forward",
)
def final_norm(
    hidden: Float[Array, "batch query hidden"],
    weight: Float[Array, " hidden"],
    bias: Float[Array, " hidden"],
    epsilon: float,
) -> Float[Array, "batch query hidden"]:
    """The norm after the last layer."""
    return layer_norm(hidden, weight, bias, epsilon)


def forward(
    parameters: Parameters,
    config: ModelConfig,
    inputs_embeds: Float[Array, "batch query hidden"],
    attention_mask: Float[Array, "batch key"] | None = None,
    past_key_values: tuple[KeyValue, ...] | None = None,
    given_position_ids: Int[Array, "batch query"] | None = None,
) -> StackOutput:
    """Input embeddings -> final hidden states, each layer's own keys and values preceded by the past ones.

    Args:
        parameters: The frozen base, under refpeft's canonical names.
        config: Of the base model.
        inputs_embeds: Without positions, virtual tokens of prompt tuning included.
        attention_mask: Over past and present keys together, or None for all ones.
        past_key_values: The prefix, or an earlier call's `past_key_values`.
        given_position_ids: The caller's positions of the text, counted without the past.
    """
    batch_size, queries = inputs_embeds.shape[:2]
    past = past_key_values[0][0].shape[2] if past_key_values else 0
    positions = position_ids(batch_size, queries, past, given_position_ids, inputs_embeds)
    hidden = add_learned_positions(inputs_embeds, parameters["embeddings.positions.weight"], positions)
    presents: list[KeyValue] = []
    with scope(stack="decoder"):
        visible = causal_visibility(attention_mask, batch_size, queries, past + queries, inputs_embeds)
        for layer in range(config.num_layers):
            past_of_layer = past_key_values[layer] if past_key_values else None
            with scope(layer=layer):
                hidden, present = block.forward(
                    layer_parameters(parameters, layer), config, layer, hidden, past_of_layer, visible
                )
            presents.append(present)
    normed = final_norm(
        hidden, parameters["final_norm.weight"], parameters["final_norm.bias"], config.norm_epsilon
    )
    return StackOutput(normed, tuple(presents))
