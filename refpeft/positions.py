"""Positions of the real tokens: where they start once virtual tokens stand before them, and how they enter.

Follows transformers 5.23.0 `models/gpt2/modeling_gpt2.py` (`GPT2Model.forward`), of other families as each function says,
and HF peft 0.21.2 `peft_model.py` (`_adjust_prompt_learning_kwargs`).
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy
from jaxtyping import Int, Shaped

from refpeft import arrays as np
from refpeft.arrays import Array, Float
from refpeft.steps import step


@step(
    "inputs.position_ids",
    clause="PO-1",
    stage="inputs.{which}position_ids",
    axes="batch query",
    kind="exact",
    source="transformers models/gpt2/modeling_gpt2.py GPT2Model.forward",
)
def position_ids(
    batch_size: int, queries: int, past: int, given: Int[Array, "batch tokens"] | None, like: Array
) -> Int[Array, "batch query"]:
    """`past, past + 1, …` for each row, whatever the padding; `given + past` where the caller gave positions.

    Prompt tuning: the virtual tokens are among the queries, past = 0, and positions run from 0 to virtual + tokens − 1.
    Prefix tuning: the virtual tokens are in the cache, past = virtual, and the text starts at position `virtual`.
    How others differ: positions that start at 0 beside a prefix (several ports), or that skip the padding (`cumsum` of
    the mask: what HF does in `generate`, not in `forward`).
    """
    if given is not None:
        return given + past
    return np.broadcast_to(np.arange(queries, like=like) + past, (batch_size, queries))


@step(
    "decoder.embeddings",
    clause="PO-2",
    stage="{stack}.embeddings",
    axes="batch query hidden",
    kind="elementary",
    source="transformers models/gpt2/modeling_gpt2.py GPT2Model.forward",
)
def add_learned_positions(
    inputs_embeds: Float[Array, "batch query hidden"],
    table: Float[Array, "positions hidden"],
    positions: Int[Array, "batch query"],
) -> Float[Array, "batch query hidden"]:
    """`inputs_embeds + table[positions]`: virtual tokens of prompt tuning receive positions like any token."""
    return inputs_embeds + np.take_rows(table, positions)


@step(
    "inputs.position_ids_of_mask",
    clause="PO-4",
    stage="inputs.{which}position_ids",
    axes="batch query",
    kind="exact",
    source="transformers models/opt/modeling_opt.py OPTDecoder.forward",
)
def position_ids_of_mask(
    attention_mask: Shaped[Array, "batch key"], past: int, given: Int[Array, "batch tokens"] | None
) -> Int[Array, "batch query"]:
    """OPT: how many tokens of the extended mask stand before each, −1 where it is 0; without the part for the past.

    A text that is padded on the left has the positions that it has alone. The table's row is two further (position_offset).
    """
    if given is not None:
        return given + past
    mask = attention_mask
    counted = np.cast_to(np.cumsum(mask) * mask - 1, numpy.int64)
    return counted[:, past:]


@step(
    "inputs.position_ids_of_tokens",
    clause="PO-4",
    stage="inputs.{which}position_ids",
    axes="batch query",
    kind="exact",
    source="transformers models/roberta/modeling_roberta.py RobertaEmbeddings.create_position_ids_from_input_ids",
)
def position_ids_of_tokens(
    input_ids: Int[Array, "batch tokens"] | None,
    queries: Int[Array, "batch query"],
    past: int,
    pad_token_id: int,
    given: Int[Array, "batch tokens"] | None,
) -> Int[Array, "batch query"]:
    """RoBERTa: pad_token_id + 1, + 2, … over the tokens that are not pad_token_id, which keep pad_token_id itself.

    A prefix moves the counted ones on. Prompt tuning hands embeddings over, without ids: every position is counted, padding
    too. Positions that the caller gives are rows of the table as they are, moved on by a prefix.
    """
    if given is not None:
        return given + past
    if input_ids is None:
        return queries + (pad_token_id + 1)
    tokens = np.cast_to(input_ids != pad_token_id, numpy.int64)
    return (np.cumsum(tokens) + past) * tokens + pad_token_id


def alibi_slopes(heads: int) -> list[float]:
    """2^(−8i/c) for i = 1 … c, with c the largest power of two up to `heads`; then every other one of the sequence for 2c.

    Source: transformers 5.23.0 `models/bloom/modeling_bloom.py`, `_get_alibi_slopes`.
    """
    closest = 2 ** math.floor(math.log2(heads))
    base, extra = (2.0 ** -(2.0 ** -(math.log2(count) - 3)) for count in (closest, 2 * closest))
    slopes = [base**power for power in range(1, closest + 1)]
    return slopes + [extra**power for power in range(1, 2 * (heads - closest) + 1, 2)]


@step(
    "decoder.alibi",
    clause="PO-5",
    stage="{stack}.alibi",
    axes="batch heads key",
    source="transformers models/bloom/modeling_bloom.py build_alibi_tensor",
)
def alibi(
    attention_mask: Shaped[Array, "batch key"] | None,
    batch_size: int,
    keys: int,
    slopes: list[float],
    like: Array,
    *,
    times: float = 1.0,
    rounded: bool = False,
) -> Float[Array, "batch heads key"]:
    """`slope · position` of each key, added to its scores: the softmax sees only the distances.

    Positions are counted along the extended mask, virtual tokens first; masked keys have 0. `rounded`: Falcon keeps the
    slopes in bfloat16, and without a mask the products too. `times`: Falcon's eager attention adds the bias twice, before
    and after it scales the scores by 1/√head_dim: 2/√head_dim altogether. Its other attention adds it once.
    """
    if rounded:
        slopes = [float(ml_dtypes.bfloat16(slope)) for slope in slopes]
    column = np.concatenate(
        [np.full((1, 1), slope, like.dtype, like) for slope in slopes], axis=0
    )  # (heads, 1)
    if attention_mask is not None:
        mask = np.cast_to(attention_mask, like.dtype)
        counted: Array = ((np.cumsum(mask) - 1) * mask)[:, None, :]
        return column * counted * times
    positions = np.cast_to(np.arange(keys, like=like), like.dtype)
    products = column * positions  # (heads, key)
    if rounded:
        products = np.round_to(products, ml_dtypes.bfloat16)
    return np.broadcast_to(products[None], (batch_size, *products.shape)) * times


def relative_buckets(
    queries: int, keys: int, past: int, buckets: int, distance: int, *, both_directions: bool
) -> Int[numpy.ndarray, "query key"]:
    """T5's bucket of each distance key − query: one for each small distance, then ever wider ones up to `distance`.

    In both directions (encoder) half of the buckets are for keys to the right. HF takes the logarithm in float32 whatever the
    model's format; so does this.
    Source: transformers 5.23.0 `models/t5/modeling_t5.py`, `T5Attention._relative_position_bucket`.
    """
    relative = numpy.arange(keys)[None, :] - (numpy.arange(queries)[:, None] + past)
    start = numpy.zeros_like(relative)
    if both_directions:
        buckets //= 2
        start += (relative > 0) * buckets
        relative = numpy.abs(relative)
    else:
        relative = -numpy.minimum(relative, 0)
    exact = buckets // 2
    ratio = numpy.maximum(relative, 1).astype(numpy.float32) / numpy.float32(exact)
    logarithm = numpy.log(ratio) / numpy.float32(math.log(distance / exact)) * numpy.float32(buckets - exact)
    large = numpy.minimum(exact + logarithm.astype(numpy.int64), buckets - 1)
    found: Array = start + numpy.where(relative < exact, relative, large)
    return found


@step(
    "decoder.relative_bias",
    clause="PO-6",
    stage="{stack}.relative_bias",
    axes="heads query key",
    kind="exact",
    source="transformers models/t5/modeling_t5.py T5Attention.compute_bias",
)
def relative_bias(
    table: Float[Array, "buckets heads"], buckets: Int[Array, "query key"]
) -> Float[Array, "heads query key"]:
    """What T5 adds to self-attention's scores: a learned number for each head and bucket of distances, one table a stack.

    A prefix stands at positions 0 … n − 1 and the text behind it, so that distances to virtual tokens count too.
    """
    return np.transpose(np.take_rows(table, buckets), (2, 0, 1))


def rotate(
    x: Float[Array, "batch heads query head_dim"],
    cosine: Float[Array, "batch 1 query rotary"],
    sine: Float[Array, "batch 1 query rotary"],
) -> Float[Array, "batch heads query head_dim"]:
    """`x · cos + rotate_half(x) · sin`, with `rotate_half(a, b) = (−b, a)` of the two halves; numbers beyond pass.

    Source: transformers 5.23.0 `models/llama/modeling_llama.py`, `apply_rotary_pos_emb`, `rotate_half`.

    How others differ: GPT-J and the original RoPE turn neighbours (x₀, x₁), (x₂, x₃), …; HF's families turn x_i with
    x_{i + d/2}.
    """
    dimensions = cosine.shape[-1]
    first, second = np.cut(x, 0, dimensions // 2, -1), np.cut(x, dimensions // 2, dimensions, -1)
    half_turned = np.concatenate([-second, first], axis=-1)
    turned: Array = np.concatenate([first, second], axis=-1) * cosine + half_turned * sine
    if dimensions == x.shape[-1]:
        return turned
    return np.concatenate([turned, np.cut(x, dimensions, x.shape[-1], -1)], axis=-1)
