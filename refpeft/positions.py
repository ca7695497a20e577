"""Positions of the real tokens: where they start once virtual tokens stand before them.

Follows transformers 5.23.0 `models/gpt2/modeling_gpt2.py` (`GPT2Model.forward`) and HF peft 0.21.2 `peft_model.py`
(`_adjust_prompt_learning_kwargs`).
"""

from __future__ import annotations

from jaxtyping import Int

from refpeft import arrays as np
from refpeft.arrays import Array, Float
from refpeft.steps import step


@step(
    "inputs.position_ids",
    clause="PO-1",
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
