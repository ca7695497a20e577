"""One row per HF architecture: where its weights are, and which steps it is made of.

A family is a row in this table, not another forward pass. The frozen base uses one set of names for all families
(`refpeft.transformer.weights` lists them); each row says where HF's checkpoint keeps each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from refpeft.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """Where a canonical parameter stands in an HF checkpoint."""

    name: str
    """HF's name, with `{layer}`, without the prefix that the model class puts before it."""
    transposed: bool = False
    """Stored inputs × outputs (GPT-2's Conv1D)."""
    section: tuple[int, int] | None = None
    """(i, k): the i-th of k equal sections along the outputs (queries, keys and values fused in one tensor)."""


@dataclass(frozen=True)
class Family:
    """The choices that make an architecture."""

    model_type: str
    """HF's `model_type` in config.json."""
    prefix: str
    """What the language-model class puts before the backbone's parameter names."""
    ignored: tuple[str, ...]
    """Endings of tensors in old checkpoints that are buffers, not weights."""
    head: str
    """HF's name of the language-model head."""
    positions: Literal["learned"]
    """How positions enter: `learned` adds rows of a table to the input embeddings."""
    norm: Literal["layer_norm"]
    """The normalisation before attention and before the feed-forward network, and after the last layer."""
    whole: dict[str, Source]
    """Canonical parameters that exist once."""
    per_layer: dict[str, Source]
    """Canonical parameters of each layer, below `layers.{layer}.`."""


def _conv1d(canonical: str, name: str, section: tuple[int, int] | None = None) -> dict[str, Source]:
    """The weight and bias of a GPT-2 Conv1D, whose weight is stored inputs × outputs."""
    return {
        f"{canonical}.weight": Source(f"h.{{layer}}.{name}.weight", transposed=True, section=section),
        f"{canonical}.bias": Source(f"h.{{layer}}.{name}.bias", section=section),
    }


GPT2 = Family(
    model_type="gpt2",
    prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias"),
    head="lm_head.weight",
    positions="learned",
    norm="layer_norm",
    whole={
        "embeddings.tokens.weight": Source("wte.weight"),
        "embeddings.positions.weight": Source("wpe.weight"),
        "final_norm.weight": Source("ln_f.weight"),
        "final_norm.bias": Source("ln_f.bias"),
    },
    per_layer={
        "input_norm.weight": Source("h.{layer}.ln_1.weight"),
        "input_norm.bias": Source("h.{layer}.ln_1.bias"),
        **_conv1d("attention.query", "attn.c_attn", (0, 3)),
        **_conv1d("attention.key", "attn.c_attn", (1, 3)),
        **_conv1d("attention.value", "attn.c_attn", (2, 3)),
        **_conv1d("attention.output", "attn.c_proj"),
        "post_attention_norm.weight": Source("h.{layer}.ln_2.weight"),
        "post_attention_norm.bias": Source("h.{layer}.ln_2.bias"),
        **_conv1d("mlp.up", "mlp.c_fc"),
        **_conv1d("mlp.down", "mlp.c_proj"),
    },
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2,)}
"""Every family by HF's `model_type`."""


def family_of(model_type: str) -> Family:
    """The row of an architecture.

    Raises:
        ConfigError: refpeft does not know the architecture.
    """
    if model_type not in FAMILIES:
        raise ConfigError(
            f"The base model's model_type is {model_type!r}; refpeft knows {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]
