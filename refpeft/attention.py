"""Attention with a prefix: the layer's own keys and values, preceded by those of the virtual tokens.

Follows transformers 5.23.0 `models/gpt2/modeling_gpt2.py` (`GPT2Attention.forward`, `eager_attention_forward`) and
`cache_utils.py` (`DynamicCache.update`). Every function shows its shapes; the axis names are those of
specs/notation.md: (batch, heads, query, head_dim), with `key` = virtual + tokens.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool

from refpeft import arrays as np
from refpeft.arrays import Array, Float
from refpeft.ops import linear, softmax
from refpeft.ops import softcap as capped
from refpeft.positions import rotate
from refpeft.steps import accelerated, step

_GPT2 = "transformers models/gpt2/modeling_gpt2.py "
_LAYER = "{stack}.layers.{layer}.{attention}."


def split_heads(
    x: Float[Array, "batch tokens width"], heads: int
) -> Float[Array, "batch heads tokens head_dim"]:
    """(batch, tokens, heads · head_dim) -> (batch, heads, tokens, head_dim): heads outermost in the width.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2Attention.forward`: `view(…, -1,
    head_dim).transpose(1, 2)`.
    """
    batch, tokens, width = x.shape
    return np.swapaxes(np.reshape(x, (batch, tokens, heads, width // heads)), 1, 2)


def merge_heads(x: Float[Array, "batch heads tokens head_dim"]) -> Float[Array, "batch tokens width"]:
    """The inverse of `split_heads`.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `eager_attention_forward` and `GPT2Attention.forward`.
    """
    batch, heads, tokens, head_dim = x.shape
    return np.reshape(np.swapaxes(x, 1, 2), (batch, tokens, heads * head_dim))


def repeat_kv(
    x: Float[Array, "batch kv_heads key head_dim"], heads: int
) -> Float[Array, "batch heads key head_dim"]:
    """Each key/value head serves `heads / kv_heads` query heads that stand together: head h reads kv head h // group.

    Source: transformers `repeat_kv` (`torch.repeat_interleave`). How others differ: `tile` gives head h kv head
    h mod kv_heads.
    """
    batch, kv_heads, keys, head_dim = x.shape
    if kv_heads == heads:
        return x
    grouped = np.broadcast_to(
        np.reshape(x, (batch, kv_heads, 1, keys, head_dim)),
        (batch, kv_heads, heads // kv_heads, keys, head_dim),
    )
    return np.reshape(grouped, (batch, heads, keys, head_dim))


@step(
    "attention.query",
    clause="AT-1",
    stage=_LAYER + "query",
    axes="batch heads query head_dim",
    source=_GPT2 + "GPT2Attention.forward",
)
def query(
    hidden: Float[Array, "batch query hidden"],
    weight: Float[Array, "width hidden"],
    bias: Float[Array, " width"] | None,
    heads: int,
) -> Float[Array, "batch heads query head_dim"]:
    """The queries of the real tokens (prompt tuning: and of the virtual ones), split into heads."""
    return split_heads(linear(hidden, weight, bias), heads)


@step(
    "attention.key",
    clause="AT-1",
    stage=_LAYER + "key",
    axes="batch kv_heads query head_dim",
    source=_GPT2 + "GPT2Attention.forward",
)
def key(
    hidden: Float[Array, "batch query hidden"],
    weight: Float[Array, "width hidden"],
    bias: Float[Array, " width"] | None,
    kv_heads: int,
) -> Float[Array, "batch kv_heads query head_dim"]:
    """The layer's own keys, before those of the prefix are put in front."""
    return split_heads(linear(hidden, weight, bias), kv_heads)


@step(
    "attention.value",
    clause="AT-1",
    stage=_LAYER + "value",
    axes="batch kv_heads query head_dim",
    source=_GPT2 + "GPT2Attention.forward",
)
def value(
    hidden: Float[Array, "batch query hidden"],
    weight: Float[Array, "width hidden"],
    bias: Float[Array, " width"] | None,
    kv_heads: int,
) -> Float[Array, "batch kv_heads query head_dim"]:
    """The layer's own values, before those of the prefix are put in front."""
    return split_heads(linear(hidden, weight, bias), kv_heads)


@step(
    "attention.key_states",
    clause="AT-2",
    stage=_LAYER + "key_states",
    axes="batch kv_heads key head_dim",
    source="transformers cache_utils.py DynamicLayer.update",
)
def key_states(
    past: Float[Array, "batch kv_heads virtual head_dim"] | None,
    own: Float[Array, "batch kv_heads query head_dim"],
) -> Float[Array, "batch kv_heads key head_dim"]:
    """The prefix's keys first, then the layer's own. The prefix's keys are used as they are stored: nothing is added."""
    return own if past is None else np.concatenate([past, own], axis=2)


@step(
    "attention.value_states",
    clause="AT-2",
    stage=_LAYER + "value_states",
    axes="batch kv_heads key head_dim",
    source="transformers cache_utils.py DynamicLayer.update",
)
def value_states(
    past: Float[Array, "batch kv_heads virtual head_dim"] | None,
    own: Float[Array, "batch kv_heads query head_dim"],
) -> Float[Array, "batch kv_heads key head_dim"]:
    """The prefix's values first, then the layer's own, in the order of the keys."""
    return own if past is None else np.concatenate([past, own], axis=2)


@step(
    "attention.scores",
    clause="AT-3",
    stage=_LAYER + "scores",
    axes="batch heads query key",
    source=_GPT2 + "eager_attention_forward",
)
def scores(
    query: Float[Array, "batch heads query head_dim"],
    key_states: Float[Array, "batch kv_heads key head_dim"],
    visible: Bool[Array, "batch query key"],
    scale: float,
    *,
    softcap: float | None = None,
    bias: Float[Array, "#batch heads #query key"] | None = None,
) -> Float[Array, "batch heads query key"]:
    """`scale · query · keyᵀ`, plus the dtype's most negative number where the query does not see the key.

    One scale for prefix and text alike. `softcap` c makes c · tanh(s/c) of the scaled products (Gemma-2); `bias` is added
    before the mask (ALiBi, relative positions). How others differ: −1e4, −inf or a boolean mask instead of the most negative
    number are right as well (masked scores are compared by class, clause JG-5), unless a whole row is masked.
    """
    logits = np.matmul(query, np.swapaxes(repeat_kv(key_states, query.shape[1]), -1, -2)) * scale
    logits = logits if softcap is None else capped(logits, softcap)
    logits = logits if bias is None else logits + bias
    hidden = np.full((1,), np.most_negative(logits.dtype), logits.dtype, like=np.value_of(logits))
    return logits + np.where(
        visible[:, None, :, :], 0.0, hidden
    )  # (batch, 1, query, key) is repeated over heads


@step(
    "attention.weights",
    clause="AT-4",
    stage=_LAYER + "weights",
    axes="batch heads query key",
    source=_GPT2 + "eager_attention_forward",
)
def weights(scores: Float[Array, "batch heads query key"]) -> Float[Array, "batch heads query key"]:
    """One softmax over prefix and text together.

    How others differ: LLaMA-Adapter's separate softmax with a gate is another method. Here the prefix takes its share
    λ of each row, and the text keeps 1 − λ (He et al. 2021, section 3.1).
    """
    return softmax(scores)


@step(
    "attention.context",
    clause="AT-4",
    stage=_LAYER + "context",
    axes="batch query width",
    source=_GPT2 + "GPT2Attention.forward",
)
def context(
    weights: Float[Array, "batch heads query key"], value_states: Float[Array, "batch kv_heads key head_dim"]
) -> Float[Array, "batch query width"]:
    """`weights · values`, the heads joined again."""
    return merge_heads(np.matmul(weights, repeat_kv(value_states, weights.shape[1])))


@step(
    "attention.output",
    clause="AT-5",
    stage=_LAYER + "output",
    axes="batch query hidden",
    source=_GPT2 + "GPT2Attention.forward",
)
def output(
    context: Float[Array, "batch query width"],
    weight: Float[Array, "hidden width"],
    bias: Float[Array, " hidden"] | None,
) -> Float[Array, "batch query hidden"]:
    """The output projection."""
    return linear(context, weight, bias)


@step(
    "attention.query_rotated",
    clause="PO-3",
    stage=_LAYER + "query_rotated",
    axes="batch heads query head_dim",
    source="transformers models/llama/modeling_llama.py apply_rotary_pos_emb",
)
def query_rotated(
    query: Float[Array, "batch heads query head_dim"],
    cosine: Float[Array, "#batch 1 query rotary"],
    sine: Float[Array, "#batch 1 query rotary"],
) -> Float[Array, "batch heads query head_dim"]:
    """Queries turned by their positions, which start behind a prefix."""
    return rotate(query, cosine, sine)


@step(
    "attention.key_rotated",
    clause="PO-3",
    stage=_LAYER + "key_rotated",
    axes="batch kv_heads query head_dim",
    source="transformers models/llama/modeling_llama.py apply_rotary_pos_emb",
)
def key_rotated(
    key: Float[Array, "batch kv_heads query head_dim"],
    cosine: Float[Array, "#batch 1 query rotary"],
    sine: Float[Array, "#batch 1 query rotary"],
) -> Float[Array, "batch kv_heads query head_dim"]:
    """The layer's own keys turned by their positions. A prefix's keys are not: they are stored as if they were already.

    How others differ: the prefix turned with the text, which is invisible with one virtual token at position 0.
    """
    return rotate(key, cosine, sine)


@accelerated
def dot_product_attention(
    query: Float[Array, "batch heads query head_dim"],
    key_states: Float[Array, "batch kv_heads key head_dim"],
    value_states: Float[Array, "batch kv_heads key head_dim"],
    visible: Bool[Array, "batch query key"],
    scale: float,
    **options: Any,
) -> Float[Array, "batch query width"]:
    """`softmax(scale · q · kᵀ + mask) · v`, the heads joined. `options` are those of `scores`: a softcap, a bias.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `eager_attention_forward`.
    """
    return context(weights(scores(query, key_states, visible, scale, **options)), value_states)


def attend(
    query: Float[Array, "batch heads query head_dim"],
    key: Float[Array, "batch kv_heads tokens head_dim"],
    value: Float[Array, "batch kv_heads tokens head_dim"],
    past: tuple[
        Float[Array, "#batch kv_heads virtual head_dim"], Float[Array, "#batch kv_heads virtual head_dim"]
    ]
    | None,
    visible: Bool[Array, "batch query key"],
    scale: float,
    **options: Any,
) -> tuple[
    Float[Array, "batch query width"],
    tuple[Float[Array, "batch kv_heads key head_dim"], Float[Array, "batch kv_heads key head_dim"]],
]:
    """Attention of the queries over the past keys and values (the prefix) followed by their own.

        context = softmax(scale · q · [prefix_key ; key]ᵀ + mask) · [prefix_value ; value]

    A past of one row is every row's. `options` are those of `scores`: a softcap, a bias.

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2Attention.forward`; `cache_utils.py`,
    `DynamicLayer.update`.

    Returns:
        The context (batch, query, heads · head_dim), and the key and value states: the cache for the next token.
    """
    all_keys = key_states(_of_every_row(past[0], key) if past else None, key)
    all_values = value_states(_of_every_row(past[1], value) if past else None, value)
    mixed = dot_product_attention(query, all_keys, all_values, visible, scale, **options)
    return mixed, (all_keys, all_values)


def _of_every_row(past: Array, own: Array) -> Array:
    batch = own.shape[0]
    return past if past.shape[0] == batch else np.broadcast_to(past, (batch, *past.shape[1:]))
