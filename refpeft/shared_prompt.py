"""Virtual tokens before their text; what is equal in all rows of a batch is computed once. Prompts and prefixes alike.

Follows HF peft 0.21.2 `peft_model.py` (`PeftModelForCausalLM.forward`), which repeats the prompt for each row. The virtual tokens
of a causal model see nothing of the text, so that their keys and values are the same in every row: computed once, they are a past
for the text, as a prefix is (T27). The kernels are exact but for rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jaxtyping import Shaped

from refpeft import arrays as np
from refpeft import prefix_encoder, prompt_embedding
from refpeft.arrays import Array, Float, Parameters
from refpeft.config import PrefixTuningConfig, PromptLearningConfig
from refpeft.steps import accelerated, kernel
from refpeft.transformer import stack
from refpeft.transformer.block import KeyValue
from refpeft.transformer.stack import Given, StackOutput
from refpeft.transformer.weights import BaseModel

WORTH = 1 << 14
"""From so many numbers on, of hidden states that need not be computed, a second pass through the layers pays."""


def get_prompt(
    parameters: Parameters, config: PromptLearningConfig, batch_size: int, base: BaseModel | None = None
) -> Array | tuple[KeyValue, ...]:
    """The virtual tokens as the base model gets them. `base`: whose caches may cut a prefix (PX-9).

    Returns:
        Prompt tuning: embeddings (batch, virtual, hidden); of an encoder-decoder (batch, 2 · virtual, hidden), of which only the
        first half is used. Prefix tuning: one (key, value) for each layer, each (batch, kv_heads, virtual, head_dim).

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.get_prompt`.
    """
    if isinstance(config, PrefixTuningConfig):
        windows = base.config.sliding_windows if base is not None and base.config.cuts_prefix else None
        return prefix_encoder.forward(parameters, config, batch_size, windows or ())
    return prompt_embedding.forward(parameters, batch_size)


@accelerated
def prompt_before(
    parameters: Parameters, config: PromptLearningConfig, batch_size: int, base: BaseModel
) -> Array | tuple[KeyValue, ...]:
    """`get_prompt` for a stack of the base model itself: (batch, virtual, hidden), or (batch, kv_heads, virtual, head_dim) each.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.get_prompt`.
    """
    return get_prompt(parameters, config, batch_size, base)


@kernel("shared_prompt.prompt_before")
def _one_for_all(
    parameters: Parameters, config: PromptLearningConfig, batch_size: int, base: BaseModel
) -> Any:
    """One prefix is every row's (`refpeft.attention.attend`): its gradient is added up layer by layer, not kept for each row."""
    return (
        get_prompt(parameters, config, 1, base) if isinstance(config, PrefixTuningConfig) else NotImplemented
    )


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
