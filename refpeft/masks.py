"""Attention masks: how the caller's 2-D mask is extended, and which key each query sees.

Follows HF peft 0.21.2 `peft_model.py` (`PeftModelForCausalLM.forward`) and transformers 5.23.0 `masking_utils.py`
(`create_causal_mask`, `eager_mask`).
"""

from __future__ import annotations

import numpy
from jaxtyping import Bool, Shaped

from refpeft import arrays as np
from refpeft.arrays import Array, Float
from refpeft.steps import step


def prepare_attention_mask(
    batch_size: int, attention_mask: Shaped[Array, "batch tokens"] | None, num_virtual_tokens: int
) -> Float[Array, "batch key"]:
    """The mask over virtual and real tokens together; without a mask, ones over the virtual tokens alone.

    Forward keeps a None mask None (clause MK-2); this function, for callers who build the cache themselves, answers
    None with what is known without the text: ones of shape (batch, virtual).

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModelForCausalLM.forward`.
    """
    if attention_mask is None:
        return numpy.ones((batch_size, num_virtual_tokens), dtype=numpy.float32)
    return extend_attention_mask(attention_mask, num_virtual_tokens)


@step(
    "inputs.attention_mask",
    clause="MK-1",
    stage="inputs.{which}attention_mask",
    axes="batch key",
    kind="exact",
    source="peft peft_model.py PeftModelForCausalLM.forward",
)
def extend_attention_mask(
    attention_mask: Shaped[Array, "batch tokens"], num_virtual_tokens: int
) -> Shaped[Array, "batch key"]:
    """Ones for the virtual tokens, then the caller's mask: shape (batch, virtual + tokens). Without virtual tokens, the caller's.

    Dtype: float32 (torch's promotion of `torch.ones` with an integer, boolean or half mask), float64 if the mask was.
    How others differ: with left padding the virtual tokens stay at the far left, before the padding. Not extending the
    mask hides the last tokens; extending it twice, or at each decoding step, shifts it.
    """
    if not num_virtual_tokens:
        return attention_mask
    dtype = numpy.float64 if attention_mask.dtype == numpy.float64 else numpy.float32
    ones = np.full((attention_mask.shape[0], num_virtual_tokens), 1, dtype, like=attention_mask)
    return np.concatenate([ones, attention_mask.astype(dtype)], axis=1)


@step(
    "decoder.visible",
    clause="MK-3",
    stage="{stack}.visible",
    axes="batch query key",
    kind="exact",
    source="transformers masking_utils.py create_causal_mask",
)
def causal_visibility(
    attention_mask: Shaped[Array, "batch key"] | None, batch_size: int, queries: int, keys: int, like: Array
) -> Bool[Array, "batch query key"]:
    """Which keys each query sees: those not after it, and not masked.

    Query i stands at key position `keys − queries + i`, so every prefix slot is visible to every query, and the causal
    triangle is aligned to the bottom right. A masked *query* still attends; only masked *keys* are hidden.
    How others differ: a triangle aligned to the top left (`tril` of queries × keys) hides the prefix's last slots
    from the first queries.
    """
    position = np.arange(queries, like=like)[:, None] + (keys - queries)  # (query, 1)
    causal = np.arange(keys, like=like)[None, :] <= position  # (query, key)
    if attention_mask is None:
        return np.broadcast_to(causal, (batch_size, queries, keys))
    return np.where((attention_mask != 0)[:, None, :], causal, False)


@step(
    "decoder.sliding_visible",
    clause="MK-4",
    stage="{stack}.sliding_visible",
    axes="batch query key",
    kind="exact",
    source="transformers masking_utils.py create_sliding_window_causal_mask",
)
def sliding_visibility(
    attention_mask: Shaped[Array, "batch key"] | None,
    batch_size: int,
    queries: int,
    keys: int,
    window: int,
    cut: int,
    like: Array,
) -> Bool[Array, "batch query window_key"]:
    """As causal visibility, but the last `window` keys alone, virtual tokens counted: a prefix falls out of the window.

    `cut`: so many of the first keys are not in the layer's cache any more (Gemma-2, Gemma-3), and have no column.
    How others differ: windows counted without the prefix, so that it is always seen.
    """
    position = np.arange(queries, like=like)[:, None] + (keys - queries)
    column = np.arange(keys, like=like)[None, :]
    seen = (column <= position) & (column > position - window)
    visible = np.broadcast_to(seen, (batch_size, queries, keys))
    if attention_mask is not None:
        visible = np.where((attention_mask != 0)[:, None, :], seen, False)
    return visible[:, :, cut:]


@step(
    "encoder.visible",
    clause="MK-5",
    stage="{stack}.visible",
    axes="batch query key",
    kind="exact",
    source="transformers masking_utils.py create_bidirectional_mask",
)
def bidirectional_visibility(
    attention_mask: Shaped[Array, "batch key"] | None, batch_size: int, queries: int, keys: int, like: Array
) -> Bool[Array, "batch query key"]:
    """Every key that is not masked, for every query: an encoder looks in both directions, at a prefix too.

    How others differ: a prefix that makes an encoder causal, or a mask as wide as the text alone.
    """
    if attention_mask is None:
        return np.broadcast_to(np.arange(keys, like=like) >= 0, (batch_size, queries, keys))
    return np.broadcast_to((attention_mask != 0)[:, None, :], (batch_size, queries, keys))


@step(
    "decoder.cross_visible",
    clause="MK-5",
    axes="batch query encoder_key",
    kind="exact",
    source="transformers masking_utils.py create_bidirectional_mask",
)
def cross_visibility(
    attention_mask: Shaped[Array, "batch key"] | None, batch_size: int, queries: int, keys: int, like: Array
) -> Bool[Array, "batch query encoder_key"]:
    """Which of the encoder's positions the decoder sees: those that the encoder's own mask shows, virtual tokens included."""
    if attention_mask is None:
        return np.broadcast_to(np.arange(keys, like=like) >= 0, (batch_size, queries, keys))
    return np.broadcast_to((attention_mask != 0)[:, None, :], (batch_size, queries, keys))
