"""Wrong steps that are no known mistakes of ports: they violate the precondition of an identity, which must fail under them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy
from autograd.extend import defvjp

from refpeft import arrays as np
from refpeft.steps import definition

Steps = Mapping[str, Callable[..., Any]]


def _slots(scores: Any) -> Any:
    """(key,), True for the prefix's keys."""
    return numpy.arange(scores.shape[-1]) < scores.shape[-1] - scores.shape[-2]


def cooler_prefix() -> Steps:
    """The prefix's scores halved, where they are seen."""

    def scores(query: Any, keys: Any, visible: Any, scale: float, **options: Any) -> Any:
        found = definition("attention.scores")(query, keys, visible, scale, **options)
        return np.where(_slots(found) & visible[:, None], 0.5 * found, found)

    return {"attention.scores": scores}


def cooler_text() -> Steps:
    """The text's scores halved beside a prefix, where they are seen."""

    def scores(query: Any, keys: Any, visible: Any, scale: float, **options: Any) -> Any:
        found = definition("attention.scores")(query, keys, visible, scale, **options)
        beside = found.shape[-1] > found.shape[-2]
        return np.where(~_slots(found) & visible[:, None], 0.5 * found, found) if beside else found

    return {"attention.scores": scores}


def shifted_values() -> Steps:
    """A bias on the prefix's values."""

    def states(past: Any, own: Any) -> Any:
        return definition("attention.value_states")(past if past is None else past + 0.5, own)

    return {"attention.value_states": states}


def mixed_rows() -> Steps:
    """Values averaged over the batch, as a norm over the batch would."""

    def states(past: Any, own: Any) -> Any:
        found = definition("attention.value_states")(past, own)
        return np.broadcast_to(np.mean(found, axis=0, keepdims=True), found.shape)

    return {"attention.value_states": states}


@np.primitive
def _mean_gradient(table: Any, shape: tuple[int, ...]) -> Any:
    """Repeats the table for the batch; its gradient divides by the batch."""
    return numpy.broadcast_to(table, shape)


defvjp(_mean_gradient, lambda ans, table, shape: lambda g: g.sum(axis=0) / shape[0])


def averaged_gradient() -> Steps:
    """The gradient of a prompt or a prefix divided by the batch, behind each row's own copy."""

    def rows(flat: Any, config: Any, batch: int) -> Any:
        cut = definition("prefix.rows")(flat, config, 1)  # (rows, 1, kv_heads, virtual, head_dim)
        moved = np.transpose(cut, (1, 0, 2, 3, 4))[0]
        return np.transpose(_mean_gradient(moved, (batch, *moved.shape)), (1, 0, 2, 3, 4))

    def embeddings(parameters: Any, batch: int) -> Any:
        table = definition("prompt.embeddings")(parameters, 1)[0]
        return _mean_gradient(table, (batch, *table.shape))

    return {"prefix.rows": rows, "prompt.embeddings": embeddings}
