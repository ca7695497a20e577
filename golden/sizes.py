"""What HF's configurations say of the sizes of base models, and how fused projections are split into heads."""

from __future__ import annotations

from typing import Any

import torch

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values, each (batch, heads, query, head_dim)."""
LEARNED_POSITIONS = ("gpt2", "gpt_bigcode", "opt", "bert", "roberta", "electra", "bart")
"""The architectures that have a table of positions."""


def is_sliding(config: Any, layer: int) -> bool:
    """Whether a layer sees only a window of the keys."""
    types = getattr(config, "layer_types", None)
    if types:
        return bool(types[layer] == "sliding_attention")
    return getattr(config, "sliding_window", None) is not None


def axis_sizes(config: Any) -> dict[str, int]:
    """The sizes that a base model's configuration gives, by the names of the axes (specs/notation.md)."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "d_kv", None) or getattr(config, "head_dim", None) or hidden // heads
    sizes = {
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": _kv_heads(config, heads),
        "head_dim": head_dim,
        "hidden": hidden,
        "width": heads * head_dim,
        "vocab": config.vocab_size,
        "intermediate": _intermediate(config),
    }
    width = getattr(config, "word_embed_proj_dim", None) or getattr(config, "embedding_size", None) or hidden
    if width != hidden:
        sizes["embedding"] = width
    if config.model_type in LEARNED_POSITIONS:
        sizes["positions"] = config.max_position_embeddings
    sizes["labels"] = config.num_labels
    return sizes


def _kv_heads(config: Any, heads: int) -> int:
    """Heads of the keys that the cache holds: new Falcon repeats each group's before it stores them."""
    if config.model_type == "falcon":
        return 1 if config.multi_query and not config.new_decoder_architecture else heads
    return getattr(config, "num_key_value_heads", None) or heads


def _intermediate(config: Any) -> int:
    if config.model_type == "bloom":
        return int(4 * config.hidden_size)
    names = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "d_ff", "encoder_ffn_dim", "n_inner")
    given = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    return int(given or 4 * config.hidden_size)


# How a projection's output (batch, query, outputs) is split into heads: views and transpositions, no arithmetic.


def separate(projected: tuple[torch.Tensor, ...], config: Any) -> Heads:
    """Three maps, each of heads of head_dim."""
    query, key, value = (
        _heads_first(_by_head(tensor, axis_sizes(config)["head_dim"])) for tensor in projected
    )
    return query, key, value


def in_blocks(projected: tuple[torch.Tensor, ...], config: Any) -> Heads:
    """GPT-2: all queries, all keys, all values."""
    return separate(projected[0].chunk(3, dim=-1), config)


def by_head(projected: tuple[torch.Tensor, ...], config: Any) -> Heads:
    """GPT-NeoX, BLOOM, old Falcon: query, key and value of the first head, then of the second."""
    sizes = axis_sizes(config)
    split = projected[0].unflatten(-1, (sizes["heads"], 3, sizes["head_dim"]))
    query, key, value = (_heads_first(split[..., i, :]) for i in range(3))
    return query, key, value


def queries_then_one(projected: tuple[torch.Tensor, ...], config: Any) -> Heads:
    """Multi-query attention: all queries, the one key, the one value."""
    split = _by_head(projected[0], axis_sizes(config)["head_dim"])
    return _heads_first(split[:, :, :-2]), _heads_first(split[:, :, -2:-1]), _heads_first(split[:, :, -1:])


def by_group(projected: tuple[torch.Tensor, ...], config: Any) -> Heads:
    """New Falcon: the queries of a group, its key, its value; HF repeats the last two for each query of the group."""
    sizes = axis_sizes(config)
    repeated = sizes["heads"] // config.num_kv_heads
    split = projected[0].unflatten(-1, (config.num_kv_heads, repeated + 2, sizes["head_dim"]))
    query, key, value = split[:, :, :, :-2], split[:, :, :, [-2]], split[:, :, :, [-1]]
    parts = (query, key.expand_as(query), value.expand_as(query))
    query, key, value = (_heads_first(part.flatten(2, 3)) for part in parts)
    return query, key, value


def _by_head(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    return tensor.unflatten(-1, (-1, head_dim))


def _heads_first(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(1, 2)
