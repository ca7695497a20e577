"""The elementary operations of a transformer: affine map, normalisation, softmax, losses; activations are beside it.

Follows torch 2.13.0 (`torch.nn.functional`) and transformers 5.23.0 (`loss/loss_utils.py`); where this file and those
disagree, they win. All are computed in the dtype of their inputs: HF computes some of them in float32 whatever the
model's dtype, which is an accuracy of HF's and no part of the specification (clause JG-4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

from jaxtyping import Int

from refpeft import arrays as np
from refpeft.activations import ACTIVATIONS, activation, bloom_gelu, gelu, gelu_new, relu, silu, softplus
from refpeft.arrays import Array, Float
from refpeft.steps import accelerated, step

IGNORE_INDEX = -100
"""The label of a position that does not count in the loss (torch's `ignore_index`)."""


@accelerated
def linear(
    x: Float[Array, "*rows inputs"],
    weight: Float[Array, "outputs inputs"],
    bias: Float[Array, " outputs"] | None,
) -> Float[Array, "*rows outputs"]:
    """`x · weightᵀ + bias`, the weight stored outputs × inputs.

    Source: `torch.nn.functional.linear`.
    How others differ: GPT-2's Conv1D, Nx, Flax and Keras store inputs × outputs. For a square weight the wrong
    reading passes every test of shapes (clause PX-1).
    """
    y = np.matmul(x, np.swapaxes(weight, -1, -2))
    return y if bias is None else y + bias


def _affine(x: Array, weight: Array | None, bias: Array | None) -> Array:
    """`x · weight + bias`, entry by entry, each only if there is one."""
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


@accelerated
def layer_norm(
    x: Float[Array, "*rows hidden"],
    weight: Float[Array, " hidden"] | None,
    bias: Float[Array, " hidden"] | None,
    epsilon: float,
) -> Float[Array, "*rows hidden"]:
    """`(x − mean) / √(variance + ε) · weight + bias` over the last axis, with the biased variance (divide by n).

    Source: `torch.nn.LayerNorm`.
    How others differ: ε inside the root (here) or added to it; n − 1 in the variance.
    """
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    return _affine(centred / np.sqrt(variance + epsilon), weight, bias)


@accelerated
def rms_norm(
    x: Float[Array, "*rows hidden"],
    weight: Float[Array, " hidden"] | None,
    bias: Float[Array, " hidden"] | None,
    epsilon: float,
) -> Float[Array, "*rows hidden"]:
    """`x / √(mean(x²) + ε) · weight + bias` over the last axis: nothing is subtracted. No family of HF's has a bias.

    Source: transformers `models/llama/modeling_llama.py`, `LlamaRMSNorm`; `T5LayerNorm` is the same function.
    How others differ: the name LayerNorm of T5's; ε added to the root.
    """
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    return _affine(x / np.sqrt(mean_square + epsilon), weight, bias)


def rms_norm_plus_one(
    x: Float[Array, "*rows hidden"],
    weight: Float[Array, " hidden"] | None,
    bias: Float[Array, " hidden"] | None,
    epsilon: float,
) -> Float[Array, "*rows hidden"]:
    """`x / √(mean(x²) + ε) · (1 + weight) + bias`: Gemma stores how far the weight is from one.

    Source: transformers `models/gemma/modeling_gemma.py`, `GemmaRMSNorm`.
    How others differ: GGUF's files hold 1 + weight.
    """
    return rms_norm(x, None if weight is None else 1.0 + weight, bias, epsilon)


class Norm(Protocol):
    """What the norms have in common."""

    def __call__(self, x: Array, weight: Array | None, bias: Array | None, epsilon: float) -> Array:
        """The rows of `x` (…, hidden), normalised; weight and bias (hidden) may be absent.

        Source: `torch.nn.functional.layer_norm` and its likes.
        """
        ...


NORMS: dict[str, Norm] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "rms_norm_plus_one": rms_norm_plus_one,
}
"""The norms of the families, by refpeft's own names."""


def softcap(x: Float[Array, "*any"], cap: float) -> Float[Array, "*any"]:
    """`tanh(x / cap) · cap`: nearly x near 0, never beyond ±cap.

    Source: transformers `models/gemma2/modeling_gemma2.py`, `eager_attention_forward` and `Gemma2ForCausalLM.forward`.
    How others differ: kernels for attention that have no cap leave it out.
    """
    return np.tanh(x / cap) * cap


def softmax(x: Float[Array, "*rows classes"]) -> Float[Array, "*rows classes"]:
    """`exp(xᵢ) / Σⱼ exp(xⱼ)` over the last axis, shifted by the maximum against overflow.

    Source: `torch.nn.functional.softmax`.
    """
    exponentials = np.exp(x - np.constant_max(x, axis=-1))
    return exponentials / np.sum(exponentials, axis=-1, keepdims=True)


def log_softmax(x: Float[Array, "*rows classes"]) -> Float[Array, "*rows classes"]:
    """`xᵢ − log Σⱼ exp(xⱼ)` over the last axis, shifted by the maximum first, so that small differences survive.

    Source: `torch.nn.functional.log_softmax`.
    """
    shifted = x - np.constant_max(x, axis=-1)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


# ---------------------------------------------------------------- losses


@accelerated
def cross_entropy(
    logits: Float[Array, "*rows classes"], labels: Int[Array, "*rows"], ignore_index: int = IGNORE_INDEX
) -> Float[Array, ""]:
    """`−log_softmax(logits[r])[labels[r]]`, the mean over all rows whose label is not `ignore_index`.

    Source: `torch.nn.functional.cross_entropy`. If no label counts, the answer is NaN and its gradient zero, as torch's.
    """
    counted = labels != ignore_index
    losses = -np.pick(log_softmax(logits), np.where(counted, labels, 0))
    count = np.sum(np.cast_to(counted, logits.dtype))
    mean = np.sum(np.where(counted, losses, 0.0)) / np.where(count > 0, count, 1.0)
    return np.where(count > 0, mean, math.nan)


def causal_lm_loss(
    logits: Float[Array, "batch query vocab"], labels: Int[Array, "batch query"]
) -> Float[Array, ""]:
    """Mean cross-entropy of each position's logits against the *next* position's label.

        loss = Σ (logsumexp(logits[b,t]) − logits[b,t, labels[b,t+1]]) / number of labels[b,t+1] ≠ −100

    Source: transformers 5.23.0 `loss/loss_utils.py`, `ForCausalLMLoss`: shifts the labels left, ignores −100.
    How others differ: the mean is over counted labels of the whole batch, not per row and then over rows.
    """
    return cross_entropy(logits, next_labels(labels))


def next_labels(labels: Int[Array, "batch query"]) -> Int[Array, "batch query"]:
    """What each position predicts: the next position's label; the last predicts nothing.

    Source: transformers 5.23.0 `loss/loss_utils.py`, `ForCausalLMLoss`.
    """
    nothing = np.full((labels.shape[0], 1), IGNORE_INDEX, labels.dtype, like=labels)
    return np.concatenate([labels[:, 1:], nothing], axis=1)


def seq2seq_loss(
    logits: Float[Array, "batch query vocab"], labels: Int[Array, "batch query"]
) -> Float[Array, ""]:
    """Mean cross-entropy against the *same* position's label: the decoder's input was shifted instead. Ignores −100.

    Source: transformers `models/t5/modeling_t5.py`, `T5ForConditionalGeneration.forward`; BART's is the same.
    """
    return cross_entropy(logits, labels)


def token_classification_loss(
    logits: Float[Array, "batch query labels"], labels: Int[Array, "batch query"]
) -> Float[Array, ""]:
    """Mean cross-entropy against the same position's label, ignoring −100. Source: `ForTokenClassification`."""
    return cross_entropy(logits, labels)


ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


def sequence_classification_loss(
    logits: Float[Array, "batch labels"], labels: Array, problem_type: ProblemType
) -> Float[Array, ""]:
    """The loss of a classifier of sequences, a mean over the batch and, but for a single label, over all outputs.

        regression:                   (logits − labels)²               labels (batch, labels), or (batch) for one output
        single_label_classification:  cross-entropy, ignoring −100     labels (batch), whole numbers
        multi_label_classification:   −labels · log σ(logits) − (1 − labels) · log σ(−logits)    labels (batch, labels)

    Source: transformers `loss/loss_utils.py`, `ForSequenceClassificationLoss`; `torch.nn.BCEWithLogitsLoss`.
    How others differ: a sum over the outputs; probabilities taken first, whose logarithm overflows.
    """
    if problem_type == "single_label_classification":
        return cross_entropy(logits, np.reshape(labels, (-1,)))
    wanted = np.reshape(np.cast_to(labels, logits.dtype), logits.shape)
    if problem_type == "regression":
        return np.mean(np.square(logits - wanted))
    return np.mean((1.0 - wanted) * logits + softplus(-logits))


def question_answering_loss(
    start_logits: Float[Array, "batch query"],
    end_logits: Float[Array, "batch query"],
    start_positions: Int[Array, "*batch"],
    end_positions: Int[Array, "*batch"],
) -> Float[Array, ""]:
    """Cross-entropies of where the answer begins and where it ends, over the positions of the text; half their sum.

    A position from the length on does not count; one below 0 is 0, −100 too. Positions are (batch) or (batch, 1).

    Source: transformers `loss/loss_utils.py`, `ForQuestionAnsweringLoss`.
    How others differ: −100 ignored. If no start (or no end) counts, the answer is NaN, as HF's.
    """
    length = start_logits.shape[1]

    def one(logits: Array, positions: Array) -> Array:
        positions = np.reshape(positions, (-1,))
        positions = np.where(positions < 0, 0, np.where(positions > length, length, positions))
        return cross_entropy(logits, positions, ignore_index=length)

    return (one(start_logits, start_positions) + one(end_logits, end_positions)) / 2.0


LOSSES: dict[str, Callable[..., Array]] = {
    "causal_lm": causal_lm_loss,
    "seq2seq": seq2seq_loss,
    "token_classification": token_classification_loss,
    "sequence_classification": sequence_classification_loss,
    "question_answering": question_answering_loss,
}
"""The loss of each kind of task."""


@step("loss", clause="TK-3", axes="", source="transformers loss/loss_utils.py ForCausalLMLoss")
def loss(kind: str, *arguments: Any) -> Float[Array, ""]:
    """The loss of one kind of task, one of `LOSSES`: of what the model's head gave, and of the labels."""
    return LOSSES[kind](*arguments)


__all__ = [
    "ACTIVATIONS", "IGNORE_INDEX", "LOSSES", "NORMS", "Norm", "ProblemType", "activation", "bloom_gelu", "causal_lm_loss",
    "cross_entropy", "gelu", "gelu_new", "layer_norm", "linear", "log_softmax", "loss", "next_labels", "question_answering_loss", "relu",
    "rms_norm", "rms_norm_plus_one", "seq2seq_loss", "sequence_classification_loss", "silu", "softcap", "softmax",
    "softplus", "token_classification_loss",
]  # fmt: skip
