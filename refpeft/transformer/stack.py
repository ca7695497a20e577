"""A stack of layers: positions, mask, all layers, the final norm. A decoder, an encoder, or a decoder behind an encoder.

Follows transformers 5.23.0 `models/gpt2/modeling_gpt2.py` (`GPT2Model.forward`); other families differ by the choices of
`ModelConfig`, and each step says whose they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Int, Shaped

from refpeft import arrays as np
from refpeft import masks, positions
from refpeft.arrays import Array, Float, Parameters
from refpeft.ops import linear
from refpeft.steps import accelerated, scope, step
from refpeft.transformer import block, norms, rotary
from refpeft.transformer.block import KeyValue, Surroundings
from refpeft.transformer.config import ModelConfig, Stack


class StackOutput(NamedTuple):
    """What a stack returns."""

    hidden: Array
    """Final hidden states after the last norm (batch, query, hidden)."""
    past_key_values: tuple[KeyValue, ...]
    """Key and value states of each layer, those of the prefix included: each (batch, kv_heads, key, head_dim); none without
    `Given.use_cache`."""


@dataclass(frozen=True)
class Given:
    """What a stack may be given beside embeddings, mask and cache."""

    position_ids: Array | None = None
    """The caller's positions of the text, counted without the past."""
    token_type_ids: Array | None = None
    """(batch, query)."""
    input_ids: Array | None = None
    """(batch, query), where the embeddings are those of ids: RoBERTa counts positions by them."""
    past: int | None = None
    """How many positions are in the cache, where the first layer's keys do not tell (a cut prefix)."""
    encoded: Array | None = None
    """The encoder's last hidden states (batch, encoder_key, hidden)."""
    encoder_mask: Array | None = None
    """The mask over them."""
    use_cache: bool = True
    """Whether keys and values are returned."""
    first: int = 0
    """From which position on final hidden states are returned: of those before it, the last layer makes keys and values alone."""


def stack_parameters(parameters: Parameters, name: Stack) -> Parameters:
    """The parameters of one stack of an encoder-decoder, under the names they have in a model of one stack.

    Source: transformers 5.23.0 `models/t5/modeling_t5.py`: `encoder` and `decoder` are modules of one class.
    """
    start = f"{name}."
    return {key[len(start) :]: value for key, value in parameters.items() if key.startswith(start)}


def layer_parameters(parameters: Parameters, layer: int) -> Parameters:
    """The parameters of one layer, under the names they have in every layer.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2Model`: the modules of `h`.
    """
    start = f"layers.{layer}."
    return {name[len(start) :]: value for name, value in parameters.items() if name.startswith(start)}


@step(
    "decoder.embeddings_projection",
    clause="PO-2",
    stage="{stack}.embeddings_projection",
    axes="batch query hidden",
    source="transformers models/opt/modeling_opt.py OPTDecoder.forward",
)
def project_in(
    embeddings: Float[Array, "batch query embedding"], weight: Float[Array, "hidden embedding"]
) -> Float[Array, "batch query hidden"]:
    """OPT-350m: from the narrow token table to the hidden width, before positions; virtual tokens of a prompt too."""
    return linear(embeddings, weight, None)


@step(
    "encoder.embeddings_out_projection",
    clause="PO-2",
    stage="{stack}.embeddings_out_projection",
    axes="batch query hidden",
    source="transformers models/electra/modeling_electra.py ElectraModel.forward",
)
def project_embeddings(
    embeddings: Float[Array, "batch query embedding"],
    weight: Float[Array, "hidden embedding"],
    bias: Float[Array, " hidden"],
) -> Float[Array, "batch query hidden"]:
    """ELECTRA: from the narrow embeddings to the hidden width, behind their norm."""
    return linear(embeddings, weight, bias)


@step(
    "encoder.typed_embeddings",
    clause="PO-2",
    stage="{stack}.typed_embeddings",
    axes="batch query embedding",
    source="transformers models/bert/modeling_bert.py BertEmbeddings.forward",
)
def add_types_and_positions(
    inputs_embeds: Float[Array, "batch query embedding"],
    types: Float[Array, "types embedding"],
    token_type_ids: Int[Array, "batch query"],
    table: Float[Array, "positions embedding"],
    position_ids: Int[Array, "batch query"],
) -> Float[Array, "batch query embedding"]:
    """`inputs_embeds + types[token_type_ids] + table[position_ids]`: virtual tokens of a prompt are of type 0."""
    return inputs_embeds + np.take_rows(types, token_type_ids) + np.take_rows(table, position_ids)


@step(
    "decoder.output_projection",
    clause="TK-2",
    stage="{stack}.output_projection",
    axes="batch query embedding",
    source="transformers models/opt/modeling_opt.py OPTDecoder.forward",
)
def project_out(
    hidden: Float[Array, "batch query hidden"], weight: Float[Array, "embedding hidden"]
) -> Float[Array, "batch query embedding"]:
    """OPT-350m: back to the width of the token table, for the head."""
    return linear(hidden, weight, None)


def position_ids(
    config: ModelConfig, shape: tuple[int, int], mask: Array | None, past: int, given: Given, like: Array
) -> Int[Array, "batch query"] | None:
    """The text's positions by the family's rule; None where no position is looked up (ALiBi, relative positions).

    Source: see `refpeft.positions`, whose functions it chooses from.

    `mask` is (batch, key).
    """
    if config.positions not in ("learned", "rotary"):
        return None
    if config.position_rule == "mask" and mask is not None:
        return positions.position_ids_of_mask(mask, past, given.position_ids)
    if config.position_rule == "tokens":
        queries = np.broadcast_to(np.arange(shape[1], like=like), shape)
        return positions.position_ids_of_tokens(
            given.input_ids, queries, past, config.pad_token_id or 0, given.position_ids
        )
    return positions.position_ids(*shape, past, given.position_ids, like)


def embed(
    parameters: Parameters, config: ModelConfig, inputs_embeds: Array, ids: Array | None, given: Given
) -> Float[Array, "batch query hidden"]:
    """What enters the first layer: positions and types added, projected and normed as the family does.

    `inputs_embeds` is (batch, query, embedding), `ids` (batch, query): the positions.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2Model.forward`; `models/bert/modeling_bert.py`,
    `BertEmbeddings.forward`.
    """
    p, hidden = parameters, inputs_embeds
    projection = p.get("embeddings.projection.weight")
    if projection is not None and not config.token_types:
        hidden = project_in(hidden, projection)
    if config.token_types:
        types = given.token_type_ids
        if types is None:
            types = np.full(hidden.shape[:2], 0, "int64", like=hidden)
        assert ids is not None  # noqa: S101  (families with token types have a table of positions)
        table, types_table = p["embeddings.positions.weight"], p["embeddings.token_types.weight"]
        hidden = add_types_and_positions(hidden, types_table, types, table, ids)
    elif config.positions == "learned":
        assert ids is not None  # noqa: S101  (see position_ids)
        hidden = positions.add_learned_positions(
            hidden, p["embeddings.positions.weight"], ids + config.position_offset
        )
    if config.embedding_norm:
        hidden = norms.apply(norms.embeddings_norm, hidden, p, "embeddings.norm", config)
    if projection is not None and config.token_types:
        hidden = project_embeddings(hidden, projection, p["embeddings.projection.bias"])
    return hidden


def visibility(
    config: ModelConfig,
    mask: Array | None,
    shape: tuple[int, int],
    past: int,
    stored: Sequence[int],
    like: Array,
    *,
    causal: bool,
) -> list[Bool[Array, "batch query key"]]:
    """For each layer, which keys the queries see; layers alike share it. `stored`: of the past, how much each layer's cache holds.

    `mask` is (batch, key).

    Source: transformers 5.23.0 `masking_utils.py`, `create_causal_mask`, `create_sliding_window_causal_mask`,
    `create_bidirectional_mask`.
    """
    kinds = [(config.window(layer), past - held) for layer, held in enumerate(stored)]
    keys, seen = past + shape[1], {}
    for window, cut in sorted(dict.fromkeys(kinds), key=lambda kind: kind[0] is not None):
        if not causal:
            visible = masks.bidirectional_visibility(mask, *shape, keys, like)
        elif window is None:
            visible = masks.causal_visibility(mask, *shape, keys, like)
        else:
            visible = masks.sliding_visibility(mask, *shape, keys, window, cut, like)
        seen[window, cut] = visible
    return [seen[kind] for kind in kinds]


def score_bias(
    parameters: Parameters,
    config: ModelConfig,
    mask: Array | None,
    shape: tuple[int, int],
    past: int,
    like: Array,
    *,
    causal: bool,
) -> Float[Array, "#batch heads #query key"] | None:
    """What is added to every layer's scores: ALiBi's slopes, T5's relative bias, or nothing.

    `mask` is (batch, key).

    Source: transformers 5.23.0 `models/bloom/modeling_bloom.py`, `build_alibi_tensor`; `models/t5/modeling_t5.py`,
    `T5Attention.compute_bias`.
    """  # fmt: skip
    keys = past + shape[1]
    if config.positions == "alibi":
        slopes = positions.alibi_slopes(config.num_attention_heads)
        options = {"times": config.alibi_times, "rounded": config.alibi_bfloat16}
        return positions.alibi(mask, shape[0], keys, slopes, like, **options)[:, :, None, :]  # type: ignore[arg-type]
    if config.positions == "relative":
        buckets = positions.relative_buckets(
            shape[1],
            keys,
            past,
            config.relative_buckets,
            config.relative_distance,
            both_directions=not causal,
        )
        table = parameters["relative_bias.weight"]
        return positions.relative_bias(table, np.place(buckets, like=like))[None]
    return None


@accelerated
def forward(
    parameters: Parameters,
    config: ModelConfig,
    inputs_embeds: Float[Array, "batch query embedding"],
    attention_mask: Shaped[Array, "batch key"] | None = None,
    past_key_values: tuple[KeyValue, ...] | None = None,
    given: Given | None = None,
    name: Stack | None = None,
) -> StackOutput:
    """Input embeddings -> final hidden states, each layer's own keys and values preceded by the past ones.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2Model.forward`, and the model of each family.

    Args:
        parameters: Of the stack, under refpeft's canonical names.
        config: Of the stack (`ModelConfig.stack`).
        inputs_embeds: Without positions, virtual tokens of prompt tuning included.
        attention_mask: Over past and present keys together, in any format if nothing was put before it; or None for all ones.
        past_key_values: The prefix, or an earlier call's `past_key_values`.
        given: What else there may be.
        name: Which stack it is, if the model has two.
    """
    given, shape = given or Given(), (inputs_embeds.shape[0], inputs_embeds.shape[1])
    name = name or ("encoder" if config.kind == "encoder" else "decoder")
    causal, like = name == "decoder", inputs_embeds
    past = given.past if given.past is not None else past_key_values[0][0].shape[2] if past_key_values else 0
    which = "decoder_" if config.kind == "encoder_decoder" and causal else ""
    presents: list[KeyValue] = []
    with scope(stack=name, which=which):
        ids = position_ids(config, shape, attention_mask, past, given, like)
        hidden = embed(parameters, config, inputs_embeds, ids, given)
        stored = [entry[0].shape[2] for entry in past_key_values or ()] or [0] * config.num_layers
        visible = visibility(
            config, attention_mask, shape, past, stored[: config.num_layers], like, causal=causal
        )
        crossing = None
        if given.encoded is not None:
            crossing = masks.cross_visibility(given.encoder_mask, *shape, given.encoded.shape[1], like)
        bias = score_bias(parameters, config, attention_mask, shape, past, like, causal=causal)
        turned = {}
        if config.rotary is not None and ids is not None:
            turned = {kind: rotary.angles(kind, ids, like) for kind in dict.fromkeys(config.rotary)}
        for layer in range(config.num_layers):
            past_of_layer = past_key_values[layer] if past_key_values else None
            rotation = turned[config.rotary[layer]] if config.rotary else None
            around = Surroundings(visible[layer], rotation, bias, given.encoded, crossing)
            if given.first and layer == config.num_layers - 1:
                around = block.around_queries(around, given.first)
            with scope(layer=layer):
                own = layer_parameters(parameters, layer)
                hidden, present = block.forward(own, config, layer, hidden, past_of_layer, around)
            if given.use_cache:
                presents.append(present)
        if config.final_norm:
            hidden = norms.apply(norms.final_norm, hidden, parameters, "final_norm", config)
        if config.projects_output:
            hidden = project_out(hidden, parameters["output_projection.weight"])
    return StackOutput(hidden, tuple(presents))
