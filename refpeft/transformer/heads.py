"""What stands on top of the decoder: the language-model head.

Follows transformers 5.23.0 `models/gpt2/modeling_gpt2.py` (`GPT2LMHeadModel.forward`).
"""

from __future__ import annotations

from refpeft.arrays import Array, Float
from refpeft.ops import linear
from refpeft.steps import step


@step(
    "logits",
    clause="TK-2",
    axes="batch query vocab",
    source="transformers models/gpt2/modeling_gpt2.py GPT2LMHeadModel.forward",
)
def language_model_head(
    hidden: Float[Array, "batch query hidden"], weight: Float[Array, "vocab hidden"]
) -> Float[Array, "batch query vocab"]:
    """`hidden · weightᵀ`, without bias; tied to the token embeddings unless the checkpoint says otherwise.

    Prompt tuning: virtual + tokens positions, those of the virtual tokens first. Prefix tuning: tokens positions.
    How others differ: the virtual positions cut off (prompt tuning), which moves every index of the caller.
    """
    return linear(hidden, weight, None)
