"""Mistakes about labels, losses and gradients (TK-1, TK-3, TK-8, TK-10, PT-2)."""

from __future__ import annotations

from typing import Any

import numpy

from refpeft import arrays as np
from refpeft import ops
from refpeft.oracle.mutants.mutant import Mutant, Steps, each, mutant, noting_virtual

_IGNORED = ops.IGNORE_INDEX


def _loss(kinds: tuple[str, ...], change: Any) -> Steps:
    """`change(kind, *arguments)` for the losses of these kinds."""

    def loss(original: Any, kind: str, *arguments: Any) -> Any:
        return change(kind, *arguments) if kind in kinds else original(kind, *arguments)

    return each(("loss",), loss)


_OF_TOKENS = ("causal_lm", "seq2seq", "token_classification")


@mutant(
    "M54",
    "labels padded with 0 for the virtual tokens",
    clause="TK-1",
    why="zeros are how tensors are padded",
)
def labels_padded_with_zero() -> Steps:
    """[0 … ; labels]."""

    def extended(labels: Any, n: int) -> Any:
        return numpy.pad(labels, ((0, 0), (n, 0)))

    return {"inputs.labels": extended}


@mutant("M55", "labels extended on the wrong side", clause="TK-1", why="padding on the right, as for texts")
def labels_extended_behind() -> Steps:
    """[labels ; −100 …]."""

    def extended(labels: Any, n: int) -> Any:
        return numpy.pad(labels, ((0, 0), (0, n)), constant_values=_IGNORED)

    return {"inputs.labels": extended}


@mutant(
    "M130", "the text's first token not predicted behind a prompt", clause="TK-1",
    why="the loss taken over the text's own logits: m − 1 terms for each row, as without a prompt",
)  # fmt: skip
def first_token_not_predicted() -> Steps:
    """−100 for the first label too."""

    def extended(original: Any, labels: Any, n: int) -> Any:
        result = original(labels, n).copy()
        result[:, n] = _IGNORED
        return result

    return each(("inputs.labels",), extended)


@mutant("M76", "the loss of a language model not shifted", clause="TK-3", why="labels taken for targets")
def not_shifted() -> Steps:
    """Each position against its own label."""
    return _loss(("causal_lm",), lambda kind, logits, labels: ops.cross_entropy(logits, labels))


@mutant(
    "M134",
    "the loss behind an encoder shifted once more",
    clause="TK-3",
    why="a decoder's loss, though its input was shifted already",
)
def shifted_twice() -> Steps:
    """Each position against the next label."""
    return _loss(("seq2seq",), lambda kind, logits, labels: ops.causal_lm_loss(logits, labels))


def _targets(kind: str, labels: Any) -> Any:
    """The label that each position is compared with."""
    if kind != "causal_lm":
        return labels
    nothing = np.full((labels.shape[0], 1), _IGNORED, labels.dtype, like=labels)
    return np.concatenate([labels[:, 1:], nothing], axis=1)


@mutant("M129", "the loss a mean of the rows' means", clause="TK-3", why="vmap over rows")
def mean_of_means() -> Steps:
    """Each row counts the same, however many labels it has."""

    def loss(kind: str, logits: Any, labels: Any) -> Any:
        targets = _targets(kind, labels)
        rows = [
            ops.cross_entropy(np.cut(logits, i, i + 1, 0), targets[i : i + 1]) for i in range(len(labels))
        ]
        return sum(rows[1:], rows[0]) / len(rows)

    return _loss(_OF_TOKENS, loss)


@mutant(
    "M131",
    "the loss a mean over all positions, those of −100 too",
    clause="TK-3",
    why="masked losses summed, then divided by their number",
)
def mean_over_all() -> Steps:
    """Σ / (rows · positions)."""

    def loss(kind: str, logits: Any, labels: Any) -> Any:
        targets = _targets(kind, labels)
        return ops.cross_entropy(logits, targets) * (float((targets != _IGNORED).sum()) / targets.size)

    return _loss(_OF_TOKENS, loss)


@mutant("M132", "the loss a sum", clause="TK-3", why="reduction='sum'")
def summed() -> Steps:
    """Σ."""

    def loss(kind: str, logits: Any, labels: Any) -> Any:
        targets = _targets(kind, labels)
        return ops.cross_entropy(logits, targets) * float((targets != _IGNORED).sum())

    return _loss(_OF_TOKENS, loss)


@mutant(
    "M133",
    "labels of −100 counted as class 0",
    clause="TK-3",
    why="ignore_index not known; negative labels clipped",
)
def nothing_ignored() -> Steps:
    """`max(label, 0)`."""

    def loss(kind: str, logits: Any, labels: Any) -> Any:
        labels = numpy.maximum(labels, 0)
        if kind == "causal_lm":
            return ops.causal_lm_loss(logits, labels)
        return ops.cross_entropy(logits, labels)

    return _loss(_OF_TOKENS, loss)


@mutant(
    "M128",
    "the answer's positions moved on by the prompt",
    clause="TK-8",
    why="the text stands n further; HF does not move them",
)
def answers_moved() -> Steps:
    """`positions + n`."""
    virtual, noted = noting_virtual()

    def loss(kind: str, starts: Any, ends: Any, *places: Any) -> Any:
        return ops.question_answering_loss(
            starts, ends, *(place + (virtual[-1] if virtual else 0) for place in places)
        )

    return {**noted, **_loss(("question_answering",), loss)}


@mutant("M135", "the losses of start and end added, not halved", clause="TK-8", why="a sum is a loss too")
def answers_added() -> Steps:
    """Twice HF's."""
    return _loss(
        ("question_answering",), lambda kind, *arguments: 2.0 * ops.question_answering_loss(*arguments)
    )


@mutant(
    "M136",
    "the loss of several outputs summed over them",
    clause="TK-3",
    why="mean over the batch alone, for regression and several labels",
)
def summed_over_outputs() -> Steps:
    """HF's times the number of outputs."""

    def loss(kind: str, logits: Any, labels: Any, problem: str) -> Any:
        factor = 1.0 if problem == "single_label_classification" else float(logits.shape[-1])
        return ops.sequence_classification_loss(logits, labels, problem) * factor  # type: ignore[arg-type]

    return _loss(("sequence_classification",), loss)


@mutant(
    "M137",
    "the decoder reads its labels without a shift",
    clause="TK-10",
    why="labels taken for decoder_input_ids",
)
def not_shifted_right() -> Steps:
    """The labels, −100 as padding."""

    def shifted(labels: Any, start: int, pad: int) -> Any:
        return numpy.where(labels == _IGNORED, pad, labels)

    return {"inputs.decoder_input_ids": shifted}


# ---------------------------------------------------------------- gradients, files


@np.primitive
def _averaged(table: Any, shape: tuple[int, ...]) -> Any:
    """Repeats the table for the batch; its gradient divides by the batch."""
    return numpy.broadcast_to(table, shape)


np.defvjp(_averaged, lambda ans, table, shape: lambda g: np.sum(g, axis=0) / shape[0])


@mutant(
    "M58",
    "the prompt's gradient a mean over the batch",
    clause="PT-2",
    why="one table handed to a vmap over rows, whose gradients are averaged",
)
def gradient_averaged() -> Steps:
    """Divided by the number of rows."""

    def embeddings(original: Any, parameters: Any, batch_size: int) -> Any:
        table = original(parameters, 1)[0]
        return _averaged(table, (batch_size, *table.shape))

    return each(("prompt.embeddings",), embeddings)


@mutant(
    "M138", "no gradient through the prefix's values", clause="PX-4", why="stop_gradient on half of the cache"
)
def values_detached() -> Steps:
    """Values are constants."""

    def value(original: Any, block: Any) -> Any:
        return original(np.value_of(block))

    return each(("prefix.value",), value)


@mutant(
    "M60",
    "virtual tokens rounded to half precision",
    clause="PT-3",
    why=".half() whatever the model's format",
    seen="vLLM's first prompt adapters",
)
def halved() -> Steps:
    """What a float16 holds of them."""

    def embeddings(original: Any, *args: Any) -> Any:
        return np.round_to(original(*args), "float16")

    return each(("prompt.embeddings", "prefix.flat"), embeddings)


MUTANTS: tuple[Mutant, ...] = (
    labels_padded_with_zero,
    labels_extended_behind,
    first_token_not_predicted,
    not_shifted,
    shifted_twice,
    mean_of_means,
    mean_over_all,
    summed,
    nothing_ignored,
    answers_moved,
    answers_added,
    summed_over_outputs,
    not_shifted_right,
    gradient_averaged,
    values_detached,
    halved,
)
