"""Rotary positions: by which angles each pair of a head's numbers is turned.

Follows transformers 5.23.0 `modeling_rope_utils.py` (`_compute_linear_scaling_rope_parameters`,
`_compute_llama3_parameters`) and `models/llama/modeling_llama.py` (`LlamaRotaryEmbedding`). HF keeps the inverse
frequencies rounded to float32; here they are computed in the working precision (clause PO-3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int

from refpeft import arrays as np
from refpeft.arrays import Array, Float
from refpeft.errors import ConfigError
from refpeft.rules import DICTIONARY
from refpeft.steps import step
from refpeft.transformer.columns import POSITIVE


@dataclass(frozen=True)
class Rotary:
    """The rotary positions of a layer: HF's `rope_parameters`."""

    theta: float
    """The base of the wavelengths (`rope_theta`)."""
    dimensions: int
    """How many of a head's numbers are turned, from the first; the others pass."""
    kind: str = "default"
    """`default`, `linear`, or `llama3`."""
    factor: float = 1.0
    """By how much low frequencies are slowed (`linear`: all)."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths beyond `original / low_freq_factor` are slowed by the whole factor."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below `original / high_freq_factor` are left alone; between the two is interpolated."""
    original: float = 8192.0
    """llama3: the context that the model was pretrained with (`original_max_position_embeddings`)."""


def read_rotary(parameters: Mapping[str, Any], head_dim: int, positions: int) -> Rotary:
    """HF's `rope_parameters` of one kind of layer, `rope_theta` and `partial_rotary_factor` included.

    Source: transformers 5.23.0 `modeling_rope_utils.py`, `ROPE_INIT_FUNCTIONS`.

    Raises:
        ConfigError: a value is missing or no number; a kind of scaling that refpeft does not compute; an odd number of
            turned dimensions.
    """
    DICTIONARY.check("rope_parameters of the base model", parameters)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ConfigError(
            f"The base model's rope_type is {kind!r}; refpeft computes default, linear and llama3. Use a base model with "
            "one of these."
        )
    needed = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    }[kind]
    values = {name: _positive(parameters, name) for name in ("rope_theta", *needed)}
    dimensions = int(head_dim * min(_positive(parameters, "partial_rotary_factor", 1.0), 2.0))
    if dimensions % 2 or dimensions < 2 or dimensions > head_dim:
        raise ConfigError(
            f"The base model turns {dimensions} of the {head_dim} numbers of a head by their positions; it must be an even "
            "number from 2. Check head_dim and partial_rotary_factor."
        )
    if kind == "llama3":
        values["original"] = _positive(parameters, "original_max_position_embeddings", positions)
    return Rotary(values.pop("rope_theta"), dimensions, kind, **values)


def _positive(parameters: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = parameters.get(name, default)
    POSITIVE.check(f"rope_parameters[{name!r}] of the base model", value)
    return float(value)


def inverse_frequencies(rotary: Rotary, like: Array) -> Float[Array, " half"]:
    """`θ^(−2i/d)` for i = 0 … d/2 − 1, slowed as the kind of scaling says; in the dtype of `like`.

    linear: divided by the factor. llama3, with wavelengths λ = 2π/f and original context c: f/factor where
    λ > c/low; f where λ < c/high; between, `(1 − s)·f/factor + s·f` with s = (c/λ − low)/(high − low).

    Source: transformers 5.23.0 `modeling_rope_utils.py`, `_compute_linear_scaling_rope_parameters`,
    `_compute_llama3_parameters`; `models/llama/modeling_llama.py`, `LlamaRotaryEmbedding`.
    """
    steps = np.cast_to(np.arange(rotary.dimensions // 2, like=like) * 2, like.dtype)
    frequencies = 1.0 / rotary.theta ** (steps / rotary.dimensions)
    if rotary.kind == "linear":
        return frequencies / rotary.factor
    if rotary.kind == "llama3":
        slow, low, high = frequencies / rotary.factor, rotary.low_freq_factor, rotary.high_freq_factor
        wavelengths = 2 * math.pi / frequencies
        smooth = (rotary.original / wavelengths - low) / (high - low)
        between = (1 - smooth) * slow + smooth * frequencies
        scaled = np.where(wavelengths > rotary.original / low, slow, frequencies)
        medium = ~(wavelengths < rotary.original / high) & ~(wavelengths > rotary.original / low)
        return np.where(medium, between, scaled)
    return frequencies


@step("positions.rotary", clause="PO-3", stage="", axes="", source="transformers models/llama/modeling_llama.py LlamaRotaryEmbedding.forward")  # fmt: skip
def angles(
    rotary: Rotary, position_ids: Int[Array, "batch query"], like: Array
) -> tuple[Float[Array, "batch 1 query rotary"], Float[Array, "batch 1 query rotary"]]:
    """Cosine and sine of `position · frequency`, each frequency twice: for each half of the turned numbers."""
    turns = np.cast_to(position_ids, like.dtype)[:, None, :, None] * inverse_frequencies(rotary, like)
    turns = np.concatenate([turns, turns], axis=-1)  # (batch, 1, query, rotary)
    return np.cos(turns), np.sin(turns)
