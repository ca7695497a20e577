"""The language-model head on a stack's hidden states, and its loss.

Follows transformers 5.23.0 `models/gpt2/modeling_gpt2.py` (`GPT2LMHeadModel.forward`). The kernel of the loss makes logits only
where a label counts, some rows at a time, and forgets them: the array (batch, tokens, vocab), by far the largest of a
training step, never exists.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy
from jaxtyping import Bool, Int

from refpeft import arrays as np
from refpeft import ops
from refpeft.arrays import Array, Float, Parameters
from refpeft.errors import InputError
from refpeft.kernels import cross_entropies
from refpeft.steps import accelerated, kernel
from refpeft.transformer import heads
from refpeft.transformer.weights import HEAD, BaseModel

TRAINED = "base_model."
"""What stands before HF's name of a head that is trained with the virtual tokens."""
AT_ONCE = 1 << 23
"""So many logits exist at a time while the kernel computes a loss."""


def logits(
    parameters: Parameters, base: BaseModel, hidden: Float[Array, "batch query hidden"]
) -> Float[Array, "batch query vocab"]:
    """The language-model head: the trained copy, if it is among `modules_to_save`, or the frozen one.

    (batch, query, hidden) -> (batch, query, vocab).

    Source: transformers 5.23.0 `models/gpt2/modeling_gpt2.py`, `GPT2LMHeadModel.forward`.

    Raises:
        InputError: the base model's checkpoint has no such head.
    """
    model = base.config
    weight = parameters.get(TRAINED + "lm_head.weight", base.parameters.get(HEAD))
    if weight is None:
        raise InputError("The base model's checkpoint has no language-model head. Load one that has.")
    bias = base.parameters.get("head.bias")
    options: dict[str, Any] = {} if bias is None else {"bias": parameters.get(TRAINED + "lm_head.bias", bias)}
    options |= {} if model.logits_scale == 1.0 else {"scale": model.logits_scale}
    options |= {} if model.logits_softcap is None else {"cap": model.logits_softcap}
    return heads.language_model_head(hidden, weight, **options)


@accelerated
def first_made(wanted: Bool[Array, "#batch query"]) -> int:
    """From which position on the last hidden states are made, if some are wanted and others are not: from 0, so that all are.

    Source: refpeft's own; HF makes all.
    """
    return 0


@kernel("language_model.first_made")
def _first_wanted(wanted: Bool[Array, "#batch query"]) -> Any:
    """From the first that a row wants: for those before it the last layer makes keys and values alone (`Given.first`)."""
    return int(wanted.any(axis=0).argmax()) if isinstance(wanted, numpy.ndarray) else NotImplemented


@accelerated
def loss(
    parameters: Parameters,
    base: BaseModel,
    kind: Literal["causal_lm", "seq2seq"],
    hidden: Float[Array, "batch query hidden"],
    labels: Int[Array, "batch query"],
) -> Float[Array, ""]:
    """The loss of the head's logits where nobody asks for the logits themselves.

    Source: transformers 5.23.0 `loss/loss_utils.py`, `ForCausalLMLoss`.
    """
    value: Array = ops.loss(kind, logits(parameters, base, hidden), labels)
    return value


@kernel("language_model.loss")
def _loss_where_labels_count(
    parameters: Parameters, base: BaseModel, kind: str, hidden: Array, labels: Array
) -> Any:
    """The gradient of each piece is taken with the piece, in the place of its logits; back through the head by the head's definition."""
    heads_trained = any(np.is_traced(value) for name, value in parameters.items() if name.startswith(TRAINED))
    wanted = ops.next_labels(labels) if kind == "causal_lm" else labels
    rows = numpy.flatnonzero(wanted != ops.IGNORE_INDEX) if isinstance(wanted, numpy.ndarray) else ()
    if heads_trained or not np.is_plain(hidden) or not len(rows):
        return NotImplemented
    value, targets = np.value_of(hidden), wanted.reshape(-1)
    flat, total = value.reshape(-1, value.shape[-1]), numpy.zeros((), value.dtype)
    gradient = numpy.zeros_like(flat) if np.is_traced(hidden) else None
    head = functools.partial(logits, parameters, base)
    pieces = min(len(rows), -(-len(rows) * base.config.vocab_size // AT_ONCE))
    for chosen in numpy.array_split(rows, pieces):
        with np.level() as level:
            found, back = np.vjp(head, [flat[None, chosen]], level)
        losses, slope = cross_entropies(found[0], targets[chosen], len(rows))
        total = total + losses.sum()
        if gradient is not None:
            gradient[chosen] = back(slope[None])[0][0]
    total = numpy.asarray(total / value.dtype.type(len(rows)))
    if gradient is None:
        return total
    own = gradient.reshape(value.shape)
    return np.with_gradient(total, lambda g: (own * g,), hidden)
