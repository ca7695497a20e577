"""Mistakes in attention: with a prefix, and in the families' own ways (AT-1 to AT-7)."""

from __future__ import annotations

from typing import Any

import numpy

from refpeft import arrays as np
from refpeft.oracle.mutants.mutant import Mutant, Steps, each, mutant


def _slots(scores: Any) -> Any:
    """(key,), True for what stands before the queries' own keys: the prefix, in a forward pass."""
    return numpy.arange(scores.shape[-1]) < scores.shape[-1] - scores.shape[-2]


# ---------------------------------------------------------------- attention with a prefix


@mutant(
    "M47", "a softmax of its own for the prefix", clause="AT-4",
    why="LLaMA-Adapter's separate attention, without its gate, taken for prefix tuning", seen="pefty_llama",
)  # fmt: skip
def separate_softmax() -> Steps:
    """The prefix's weights sum to one, and so do the text's."""

    def weights(original: Any, scores: Any) -> Any:
        ahead = scores.shape[-1] - scores.shape[-2]
        if ahead <= 0:
            return original(scores)
        parts = np.cut(scores, 0, ahead, -1), np.cut(scores, ahead, scores.shape[-1], -1)
        return np.concatenate([original(part) for part in parts], axis=-1)

    return each(("attention.weights",), weights)


@mutant(
    "M48", "the prefix's scores not scaled", clause="AT-3", why="scale applied to the text's products alone"
)
def prefix_not_scaled() -> Steps:
    """`query · key` without the factor, where the key is the prefix's."""

    def scores(original: Any, query: Any, keys: Any, visible: Any, scale: float, **options: Any) -> Any:
        scaled = original(query, keys, visible, scale, **options)
        return np.where(_slots(scaled), original(query, keys, visible, 1.0, **options), scaled)

    return each(("attention.scores",), scores)


@mutant("M94", "scores not scaled", clause="AT-3", why="the factor forgotten")
def not_scaled() -> Steps:
    """`query · key`."""

    def scores(original: Any, query: Any, keys: Any, visible: Any, scale: float, **options: Any) -> Any:
        return original(query, keys, visible, 1.0, **options)

    return each(("attention.scores",), scores)


@mutant(
    "M08", "scores scaled by 1/√head_dim whatever the model says", clause="AT-7",
    why="T5 does not scale, Gemma-2 scales by query_pre_attn_scalar, GPT-2 may scale by the layer too",
)  # fmt: skip
def always_root_of_head_dim() -> Steps:
    """The factor of most families."""

    def scores(original: Any, query: Any, keys: Any, visible: Any, scale: float, **options: Any) -> Any:
        return original(query, keys, visible, query.shape[-1] ** -0.5, **options)

    return each(("attention.scores",), scores)


@mutant(
    "M09", "key/value heads tiled over the query heads, not repeated", clause="AT-7",
    why="tile gives head h key/value head h mod kv_heads; HF's is h // group", seen="NumPy's tile, JAX's tile",
)  # fmt: skip
def tiled() -> Steps:
    """Heads 0 1 2 0 1 2, not 0 0 1 1 2 2."""

    def wide(states: Any, heads: int) -> Any:
        return np.concatenate([states] * (heads // states.shape[1]), axis=1)

    def scores(original: Any, query: Any, keys: Any, *args: Any, **options: Any) -> Any:
        return original(query, wide(keys, query.shape[1]), *args, **options)

    def context(original: Any, weights: Any, values: Any) -> Any:
        return original(weights, wide(values, weights.shape[1]))

    return {**each(("attention.scores",), scores), **each(("attention.context",), context)}


@mutant(
    "M96",
    "the prefix behind the layer's own keys and values",
    clause="AT-2",
    why="concatenated in the other order",
)
def prefix_behind() -> Steps:
    """[own ; prefix], with the mask for [prefix ; own]."""

    def behind(original: Any, past: Any, own: Any) -> Any:
        return own if past is None else np.concatenate([own, past], axis=2)

    return each(("attention.key_states", "attention.value_states"), behind)


@mutant("M99", "a mask of −10", clause="AT-3", why="a constant that hides most of it")
def weak_mask() -> Steps:
    """Hidden keys keep e⁻¹⁰ of their weight."""

    def scores(original: Any, query: Any, keys: Any, visible: Any, *args: Any, **options: Any) -> Any:
        seen = original(query, keys, visible | True, *args, **options)
        return seen + np.where(visible[:, None, :, :], 0.0, -10.0)

    return each(("attention.scores",), scores)


@mutant(
    "M95",
    "attention's soft-capping left out",
    clause="AT-7",
    why="fused kernels of attention have no cap",
    seen="Gemma-2 in several runtimes",
)
def not_capped() -> Steps:
    """The scaled products as they are."""

    def scores(original: Any, *args: Any, softcap: Any = None, **options: Any) -> Any:
        return original(*args, **options)

    return each(("attention.scores",), scores)


@mutant(
    "M97",
    "no ALiBi, no relative bias",
    clause="PO-5",
    why="a bias that the attention kernel has no argument for",
)
def no_bias() -> Steps:
    """Nothing is added to the scores."""

    def scores(original: Any, *args: Any, bias: Any = None, **options: Any) -> Any:
        return original(*args, **options)

    return each(("attention.scores",), scores)


@mutant(
    "M39", "ALiBi or the relative bias for the text alone: nothing is added for the prefix", clause="PO-6",
    why="a bias as long as the text, padded with zeros in front", seen="adapters' T5, the other way round",
)  # fmt: skip
def no_bias_for_prefix() -> Steps:
    """The columns of the prefix are 0."""

    def scores(
        original: Any, query: Any, keys: Any, visible: Any, *args: Any, bias: Any = None, **options: Any
    ) -> Any:
        if bias is None:
            return original(query, keys, visible, *args, **options)
        own = np.arange(keys.shape[2], like=keys) >= keys.shape[2] - query.shape[2]
        return original(query, keys, visible, *args, bias=np.where(own, bias, 0.0), **options)

    return each(("attention.scores",), scores)


@mutant(
    "M111", "the biases of queries, keys and values left out", clause="AT-1", why="LLaMA has none, Qwen2 has"
)
def no_projection_bias() -> Steps:
    """Products alone."""

    def projected(original: Any, hidden: Any, weight: Any, bias: Any, heads: int) -> Any:
        return original(hidden, weight, None, heads)

    return each(("attention.query", "attention.key", "attention.value"), projected)


@mutant(
    "M112",
    "attention's square output weight transposed",
    clause="AT-5",
    why="GPT-2's Conv1D stores inputs × outputs; the square one fits both ways",
)
def output_not_transposed() -> Steps:
    """`context · W` where HF has `context · Wᵀ`, if W is square."""

    def output(original: Any, context: Any, weight: Any, bias: Any) -> Any:
        square = weight.shape[0] == weight.shape[1]
        return original(context, np.swapaxes(weight, 0, 1) if square else weight, bias)

    return each(("attention.output",), output)


MUTANTS: tuple[Mutant, ...] = (
    separate_softmax,
    prefix_not_scaled,
    not_scaled,
    always_root_of_head_dim,
    tiled,
    prefix_behind,
    weak_mask,
    not_capped,
    no_bias,
    no_bias_for_prefix,
    no_projection_bias,
    output_not_transposed,
)
