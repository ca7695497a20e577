"""Mistakes in rotary positions and ALiBi (PO-3, PO-5)."""

from __future__ import annotations

import dataclasses
from typing import Any

from refpeft import arrays as np
from refpeft import positions
from refpeft.oracle.mutants.mutant import Mutant, Steps, each, mutant, noting
from refpeft.steps import definition

_ROTATED = ("attention.query_rotated", "attention.key_rotated")


@mutant(
    "M36",
    "the prefix's keys turned by positions 0 … n − 1",
    clause="PO-3",
    why="rotary positions applied behind the cache, to all keys",
    seen="ports that cache keys before rotation",
)
def prefix_turned() -> Steps:
    """As if virtual tokens were text."""
    turned, noted = noting("positions.rotary", lambda result, rotary, ids, like: rotary)

    def states(original: Any, past: Any, own: Any) -> Any:
        if past is not None and turned:
            ids = np.arange(past.shape[2], like=own)[None]
            past = positions.rotate(past, *definition("positions.rotary")(turned[-1], ids, own))
        return original(past, own)

    return {**noted, **each(("attention.key_states",), states)}


@mutant(
    "M84",
    "rotary positions turn neighbours, not halves",
    clause="PO-3",
    why="GPT-J's and the paper's order",
    seen="GGUF's LLaMA weights are permuted for it",
)
def neighbours_turned() -> Steps:
    """(x₀, x₁), (x₂, x₃), … instead of (xᵢ, xᵢ₊d/2)."""

    def turned(original: Any, x: Any, cosine: Any, sine: Any) -> Any:
        d = cosine.shape[-1]
        order = [
            i // 2 + (i % 2) * (d // 2) for i in range(d)
        ]  # of the halves' order, where a neighbour comes from
        back = [order.index(i) for i in range(d)]
        return _taken(original(_taken(x, back), cosine, sine), order)

    return each(_ROTATED, turned)


def _taken(x: Any, order: list[int]) -> Any:
    """The last axis in another order; what is beyond stays."""
    parts = [np.cut(x, i, i + 1, -1) for i in (*order, *range(len(order), x.shape[-1]))]
    return np.concatenate(parts, axis=-1)


@mutant(
    "M85",
    "rope scaling left out",
    clause="PO-3",
    why="rope_scaling not read",
    seen="LLaMA-3.1 in runtimes that know LLaMA-3",
)
def not_slowed() -> Steps:
    """The default frequencies."""

    def angles(original: Any, rotary: Any, ids: Any, like: Any) -> Any:
        return original(dataclasses.replace(rotary, kind="default"), ids, like)

    return each(("positions.rotary",), angles)


@mutant(
    "M86", "rope_theta 10000 whatever the model says", clause="PO-3", why="the paper's base as a constant"
)
def papers_base() -> Steps:
    """`θ = 10000`."""

    def angles(original: Any, rotary: Any, ids: Any, like: Any) -> Any:
        return original(dataclasses.replace(rotary, theta=10000.0), ids, like)

    return each(("positions.rotary",), angles)


@mutant(
    "M88",
    "one rotary base for all layers",
    clause="PO-3",
    why="rope_local_base_freq not read; Gemma-3's windows have a base of their own",
)
def one_base() -> Steps:
    """The first layer's."""
    first: list[Any] = []

    def angles(original: Any, rotary: Any, ids: Any, like: Any) -> Any:
        first.append(rotary)
        return original(first[0], ids, like)

    return each(("positions.rotary",), angles)


@mutant(
    "M122",
    "ALiBi's slopes as one geometric series for any number of heads",
    clause="PO-5",
    why="the paper's formula for powers of two",
)
def plain_slopes() -> Steps:
    """2^(−8i/heads)."""

    def alibi(
        original: Any, mask: Any, batch: int, keys: int, slopes: list[float], like: Any, **options: Any
    ) -> Any:
        return original(
            mask,
            batch,
            keys,
            [2.0 ** (-8.0 * (i + 1) / len(slopes)) for i in range(len(slopes))],
            like,
            **options,
        )

    return each(("decoder.alibi",), alibi)


@mutant(
    "M124",
    "ALiBi's positions counted over the padding",
    clause="PO-5",
    why="arange instead of the cumsum of the mask",
)
def alibi_over_padding() -> Steps:
    """0, 1, … whatever the mask."""

    def alibi(original: Any, mask: Any, *args: Any, **options: Any) -> Any:
        return original(None, *args, **options)

    return each(("decoder.alibi",), alibi)


MUTANTS: tuple[Mutant, ...] = (
    prefix_turned,
    neighbours_turned,
    not_slowed,
    papers_base,
    one_base,
    plain_slopes,
    alibi_over_padding,
)
