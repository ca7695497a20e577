"""The rows of a batch through a stack in threads of their own (`refpeft.threads`): a kernel of `stack.forward`.

Rows meet neither in a layer nor in a norm, so that each thread takes some of them through all layers, and keeps what their
gradients need. Of matrix products alone NumPy's own threads are as fast; activations, norms and softmax it runs in one.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from refpeft import arrays as np
from refpeft import threads
from refpeft.arrays import Array, Parameters
from refpeft.steps import kernel
from refpeft.transformer import stack
from refpeft.transformer.block import KeyValue
from refpeft.transformer.config import ModelConfig, Stack
from refpeft.transformer.stack import Given, StackOutput

_BY_ROW = ("position_ids", "token_type_ids", "input_ids", "encoder_mask")
Rows = Callable[..., StackOutput]
"""The stack on some rows: a function of their embeddings, of their encoder's states or None, and of each key and value before them."""


@kernel("transformer.stack.forward")
def _rows_in_threads(
    parameters: Parameters,
    config: ModelConfig,
    inputs_embeds: Array,
    attention_mask: Array | None = None,
    past_key_values: tuple[KeyValue, ...] | None = None,
    given: Given | None = None,
    name: Stack | None = None,
) -> Any:
    """Hidden states are differentiated; keys and values are not, where they are returned."""
    given, batch = given or Given(), len(inputs_embeds)
    inputs: list[Any] = [
        inputs_embeds,
        given.encoded,
        *(half for pair in past_key_values or () for half in pair),
    ]
    traced = [number for number, x in enumerate(inputs) if np.is_traced(x)]
    parts = threads.parts(batch, math.prod(inputs_embeds.shape))
    if (
        len(parts) == 1
        or (traced and given.use_cache)
        or not np.is_plain(*inputs, *parameters.values())
        or any(map(np.is_traced, parameters.values()))
    ):
        return NotImplemented

    def of(rows: slice) -> Rows:
        own = {field: _cut(getattr(given, field), rows) for field in _BY_ROW}
        mask = _cut(attention_mask, rows)

        def run(embeds: Array, encoded: Array | None, *past: Array) -> StackOutput:
            pairs = tuple(zip(past[::2], past[1::2], strict=True))
            around = replace(given, encoded=encoded, **own)
            return stack.forward(parameters, config, embeds, mask, pairs, around, name)

        return run

    cuts = [[_cut(np.value_of(x), rows) for x in inputs] for rows in parts]
    work = list(zip(map(of, parts), cuts, strict=True))
    if not traced:
        return _together(threads.each(lambda one: one[0](*one[1]), work))
    with np.level() as level:
        begun = threads.each(lambda one: _begun(*one, traced, level), work)

    def back(g: Array) -> list[Array]:
        found = threads.each(
            lambda one: one[1](g[one[0]]), [(rows, b) for rows, (_, b) in zip(parts, begun, strict=True)]
        )
        every = [np.value_of(inputs[number]).shape[0] == 1 for number in traced]
        return [_added(of, shared=one) for of, one in zip(zip(*found, strict=True), every, strict=True)]

    hidden = np.concatenate([value for value, _ in begun], axis=0)
    return StackOutput(np.with_gradient(hidden, back, *(inputs[number] for number in traced)), ())


def _cut(x: Any, rows: slice) -> Any:
    """What these rows have of an input; what is of one row is every row's."""
    return x if x is None or len(x) == 1 else x[rows]


def _added(parts: Sequence[Array], *, shared: bool) -> Array:
    """The gradient of an input from those of each part of the rows."""
    return functools.reduce(operator.add, parts) if shared else np.concatenate(parts, axis=0)


def _begun(run: Rows, values: Sequence[Any], traced: Sequence[int], level: int) -> Any:
    """The hidden states of some rows, and what turns their gradient into those of the traced inputs."""

    def hidden(*boxes: Array) -> Array:
        at = dict(zip(traced, boxes, strict=True))
        return run(*(at.get(number, value) for number, value in enumerate(values))).hidden

    return np.vjp(hidden, [values[number] for number in traced], level)


def _together(outputs: Sequence[StackOutput]) -> StackOutput:
    presents = (
        tuple(np.concatenate(halves, axis=0) for halves in zip(*pairs, strict=True))
        for pairs in zip(*(one.past_key_values for one in outputs), strict=True)
    )
    return StackOutput(np.concatenate([one.hidden for one in outputs], axis=0), tuple(presents))  # type: ignore[arg-type]
