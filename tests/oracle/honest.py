"""Honest ways to compute the same in another order, of different kinds: what budgets must leave room for.

Each is a few steps replaced, for every family. None is a mistake: in exact arithmetic all of them are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy

from refpeft import arrays as np
from refpeft.attention import repeat_kv
from refpeft.ops import softcap as capped
from refpeft.oracle import questions
from refpeft.steps import STEPS, definition
from refpeft.transformer import norms

Steps = Mapping[str, Callable[..., Any]]
assert questions.QUESTIONS  # whose modules enter their steps
NORMS = tuple(name for name, step in STEPS.items() if step.definition.__module__ == norms.__name__)
CHUNK = 3
"""So many keys, or terms, at a time."""


def every_norm(change: Callable[..., Any]) -> Steps:
    """`change(x, weight, bias, epsilon, centred)`, with Gemma's weight made whole."""

    def norm(x: Any, weight: Any, bias: Any, epsilon: float, kind: str = "layer_norm") -> Any:
        weight = 1.0 + weight if weight is not None and kind == "rms_norm_plus_one" else weight
        return change(x, weight, bias, epsilon, kind == "layer_norm")

    return dict.fromkeys(NORMS, norm)


def _affine(x: Any, weight: Any, bias: Any) -> Any:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def one_pass_variance(x: Any, weight: Any, bias: Any, epsilon: float, centred: bool) -> Any:
    """E[x²] − E[x]², and a product with the inverse root."""
    mean = np.mean(x, axis=-1, keepdims=True) if centred else 0.0
    variance = np.mean(np.square(x), axis=-1, keepdims=True) - mean * mean
    return _affine((x - mean) * (1.0 / np.sqrt(variance + epsilon)), weight, bias)


def folded_norm(x: Any, weight: Any, bias: Any, epsilon: float, centred: bool) -> Any:
    """Weight and mean folded into one affine map."""
    mean = np.mean(x, axis=-1, keepdims=True) if centred else 0.0
    scale = 1.0 / np.sqrt(np.mean(np.square(x - mean), axis=-1, keepdims=True) + epsilon)
    scale = scale if weight is None else scale * weight
    shift = -(mean * scale) if bias is None else bias - mean * scale
    return x * scale + shift if centred or bias is not None else x * scale


def softmax_without_shift(scores: Any) -> Any:
    exponentials = np.exp(scores)
    return exponentials / np.sum(exponentials, axis=-1, keepdims=True)


def online_softmax(scores: Any) -> Any:
    """In chunks of keys, the sum so far rescaled whenever the largest grows (Milakov & Gimelshein 2018)."""
    keys = scores.shape[-1]
    chunks = [np.cut(scores, i, min(i + CHUNK, keys), -1) for i in range(0, keys, CHUNK)]
    largest, total = np.constant_max(chunks[0], axis=-1), 0.0
    for chunk in chunks:
        own = np.constant_max(chunk, axis=-1)
        now = np.where(own > largest, own, largest)
        total = total * np.exp(largest - now) + np.sum(np.exp(chunk - now), axis=-1, keepdims=True)
        largest = now
    return np.concatenate([np.exp(chunk - largest) / total for chunk in chunks], axis=-1)


def normalised_last(weights: Any, values: Any) -> Any:
    """softmax(s) · v as (e^s · v) / Σ e^s, which is how fused kernels do it: here from the weights, unnormalised by their largest."""
    wide = repeat_kv(values, weights.shape[1])
    scale = np.constant_max(weights, axis=-1)
    raised = weights / scale
    total = np.sum(raised, axis=-1, keepdims=True)
    batch, heads, queries, dim = (raised @ wide).shape
    mixed = (raised @ wide) / total * np.sum(weights, axis=-1, keepdims=True)
    return np.reshape(np.swapaxes(mixed, 1, 2), (batch, queries, heads * dim))


def masked(mask: Callable[[Any, Any], Any], *, scale_keys: bool = False) -> Steps:
    """Scores with the scale on the queries (or half of it on each side), and a mask of one's own."""

    def scores(
        query: Any, keys: Any, visible: Any, scale: float, *, softcap: Any = None, bias: Any = None
    ) -> Any:
        left, right = (scale**0.5, scale**0.5) if scale_keys else (scale, 1.0)
        logits = (query * left) @ np.swapaxes(repeat_kv(keys, query.shape[1]) * right, -1, -2)
        logits = logits if softcap is None else capped(logits, softcap)
        logits = logits if bias is None else logits + bias
        return mask(logits, visible[:, None, :, :])

    return {"attention.scores": scores}


def in_chunks(x: Any, weight: Any, bias: Any) -> Any:
    """X · Wᵀ + b, a few terms at a time, from the bias on."""
    width = x.shape[-1]
    parts = [
        np.cut(x, i, min(i + CHUNK, width), -1)
        @ np.swapaxes(np.cut(weight, i, min(i + CHUNK, width), -1), -1, -2)
        for i in range(0, width, CHUNK)
    ]
    total = parts[0] if bias is None else bias + parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def in_double(x: Any, weight: Any, bias: Any) -> Any:
    """Products added up more exactly, and rounded once with the bias: what fused multiply-adds come to."""
    if x.dtype != numpy.float32:
        return x @ np.swapaxes(weight, -1, -2) + (0.0 if bias is None else bias)
    wide = np.cast_to(x, "float64") @ np.swapaxes(np.cast_to(weight, "float64"), -1, -2)
    return np.cast_to(wide if bias is None else wide + np.cast_to(bias, "float64"), x.dtype)


def every_product(product: Callable[[Any, Any, Any], Any]) -> Steps:
    """Another product in the feed-forward network, the output projection and the projection of a prefix."""
    names = ("attention.output", "mlp.output", "prefix.projection_hidden", "decoder.output_projection")
    return {name: (lambda x, weight, bias=None: product(x, weight, bias)) for name in names}


def gelu_by_sigmoid(x: Any) -> Any:
    """The tanh approximation of GELU as x · σ(2 …)."""
    return x / (1.0 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _activated(hidden: Any, weight: Any, bias: Any, name: str) -> Any:
    original = definition("mlp.activation")
    if name not in ("gelu_new", "gelu_pytorch_tanh"):
        return original(hidden, weight, bias, name)
    return gelu_by_sigmoid(original(hidden, weight, bias, "linear"))


def turned_in_float32(rotary: Any, position_ids: Any, like: Any) -> Any:
    """Angles whose frequencies are rounded to float32, as HF keeps them."""
    cosine, sine = definition("positions.rotary")(
        rotary, position_ids, np.full((1,), 0.0, "float32", like=like)
    )
    return np.cast_to(cosine, like.dtype), np.cast_to(sine, like.dtype)


HONEST: dict[str, Steps] = {
    "as it is": {},
    "one-pass variance": every_norm(one_pass_variance),
    "folded norm": every_norm(folded_norm),
    "softmax without shift": {"attention.weights": softmax_without_shift},
    "online softmax in chunks": {"attention.weights": online_softmax},
    "normalised after the values": {"attention.context": normalised_last},
    "gelu by a sigmoid": {"mlp.activation": _activated},
    "scaled queries, −1e4 added": masked(lambda s, v: s + np.where(v, 0.0, -1e4)),
    "scaled queries, −3e38 put in place": masked(lambda s, v: np.where(v, s, -3e38)),
    "scaled queries, −∞ put in place": masked(lambda s, v: np.where(v, s, -math.inf)),
    "half the scale on each side": masked(lambda s, v: np.where(v, s, -1e9), scale_keys=True),
    "products in chunks, bias first": every_product(in_chunks),
    "products fused and rounded once": every_product(in_double),
    "all of them": {
        **every_norm(one_pass_variance),
        "attention.weights": online_softmax,
        "mlp.activation": _activated,
        **masked(lambda s, v: s + np.where(v, 0.0, -1e4)),
        **every_product(in_chunks),
    },
}
"""By what is done; each kind is summed forwards and backwards too, where the format allows."""
IN_FLOAT32_ALONE: dict[str, Steps] = {
    "frequencies rounded to float32": {"positions.rotary": turned_in_float32}
}
"""Honest in float32, and narrower: their constants are rounded."""


def is_honest(name: str, profile: str) -> bool:
    """Constants rounded to float32 are no float64; in float16 an exponential without a shift overflows from a score of 11.1 on."""
    return (profile, name) != ("float16", "softmax without shift") and (
        profile != "float64" or name in HONEST
    )
