"""A prompt before its text, through one stack; in a causal model the prompt alone first, once for the whole batch.

Follows HF peft 0.21.2 `peft_model.py` (`PeftModelForCausalLM.forward`), which repeats the prompt for each row. The virtual tokens
of a causal model see nothing of the text, so that their keys and values are the same in every row: computed once, they are a past
for the text, as a prefix is (T27). The kernel is exact but for rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jaxtyping import Shaped

from refpeft import arrays as np
from refpeft.arrays import Array, Float
from refpeft.steps import accelerated, kernel
from refpeft.transformer import stack
from refpeft.transformer.stack import Given, StackOutput
from refpeft.transformer.weights import BaseModel

WORTH = 1 << 14
"""From so many numbers on, of hidden states that need not be computed, a second pass through the layers pays."""


@accelerated
def forward(
    base: BaseModel,
    together: Float[Array, "batch query hidden"],
    prompt: Float[Array, "batch virtual hidden"],
    embeds: Float[Array, "batch tokens hidden"],
    attention_mask: Shaped[Array, "batch key"] | None,
    given: Given,
) -> StackOutput:
    """The last hidden states of virtual and real tokens.

    `together` is the prompt before the text's embeddings, which the kernel takes apart from each other. `attention_mask`: virtual
    tokens included.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModelForCausalLM.forward`.
    """
    return stack.forward(base.parameters, base.config, together, attention_mask, None, given)


@kernel("shared_prompt.forward")
def _prompt_once(
    base: BaseModel,
    together: Float[Array, "batch query hidden"],
    prompt: Float[Array, "batch virtual hidden"],
    embeds: Float[Array, "batch tokens hidden"],
    attention_mask: Shaped[Array, "batch key"] | None,
    given: Given,
) -> Any:
    """Not for encoders, whose virtual tokens see the text."""
    batch, virtual, hidden = prompt.shape
    if base.config.kind != "decoder" or (batch - 1) * virtual * hidden < WORTH:
        return NotImplemented
    # its mask is of ones; but Falcon tells that from none
    mask = None if attention_mask is None else attention_mask[:1, :virtual]
    of_prompt, of_text = Given(first=min(given.first, virtual)), max(given.first - virtual, 0)
    alone = stack.forward(base.parameters, base.config, np.cut(prompt, 0, 1, 0), mask, None, of_prompt)
    own = replace(given, past=virtual, first=of_text)
    behind = stack.forward(base.parameters, base.config, embeds, attention_mask, alone.past_key_values, own)
    first = np.broadcast_to(alone.hidden, (batch, *alone.hidden.shape[1:]))
    return StackOutput(np.concatenate([first, behind.hidden], axis=1), behind.past_key_values)


@accelerated
def prefix_copies(batch_size: int) -> int:
    """How many equal copies of a prefix stand before a batch: one for each row.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.get_prompt`.
    """
    return batch_size


@kernel("shared_prompt.prefix_copies")
def _one_for_all(batch_size: int) -> Any:
    """One, which is every row's (`refpeft.attention.attend`): its gradient is added up layer by layer, not for each row."""
    return 1
