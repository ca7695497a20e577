"""The elementary operations of a transformer: affine map, normalisation, softmax, activations, loss.

Follows torch 2.13.0 (`torch.nn.functional`) and transformers 5.23.0 (`activations.py`, `loss/loss_utils.py`); where
this file and those disagree, they win. All are computed in the dtype of their inputs: HF computes some of them in
float32 whatever the model's dtype, which is an accuracy of HF's and no part of the specification (clause JG-4).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import Int

from refpeft import arrays as np
from refpeft.arrays import Array, Float
from refpeft.errors import ConfigError
from refpeft.steps import step

IGNORE_INDEX = -100
"""The label of a position that does not count in the loss (torch's `ignore_index`)."""


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
    y = x @ np.swapaxes(weight, -1, -2)
    return y if bias is None else y + bias


def layer_norm(
    x: Float[Array, "*rows hidden"],
    weight: Float[Array, " hidden"],
    bias: Float[Array, " hidden"],
    epsilon: float,
) -> Float[Array, "*rows hidden"]:
    """`(x − mean) / √(variance + ε) · weight + bias` over the last axis, with the biased variance (divide by n).

    Source: `torch.nn.LayerNorm`.
    How others differ: ε inside the root (here) or added to it; n − 1 in the variance.
    """
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * weight + bias


def softmax(x: Float[Array, "*rows classes"]) -> Float[Array, "*rows classes"]:
    """`exp(xᵢ) / Σⱼ exp(xⱼ)` over the last axis, shifted by the maximum against overflow.

    Source: `torch.nn.functional.softmax`.
    """
    exponentials = np.exp(x - np.constant_max(x, axis=-1))
    return exponentials / np.sum(exponentials, axis=-1, keepdims=True)


def log_sum_exp(x: Float[Array, "*rows classes"]) -> Float[Array, "*rows"]:
    """`log Σⱼ exp(xⱼ)` over the last axis, shifted by the maximum against overflow. Source: `torch.logsumexp`."""
    shift = np.constant_max(x, axis=-1)
    return np.log(np.sum(np.exp(x - shift), axis=-1)) + np.reshape(shift, shift.shape[:-1])


def gelu_new(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`: the tanh approximation of GELU.

    Source: transformers `activations.py`, `NewGELUActivation`; the same function is `gelu_pytorch_tanh`.
    How others differ: the exact GELU uses erf and differs by up to 5e-4, which a tolerance of 1e-3 lets pass.
    """
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))


def relu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`max(x, 0)`, with gradient 0 at 0 as torch. Source: `torch.nn.functional.relu`."""
    return np.where(x > 0, x, 0.0)


def silu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`x · σ(x)`, written with tanh so that nothing overflows. Source: `torch.nn.functional.silu`."""
    return x * (0.5 * (1.0 + np.tanh(0.5 * x)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_new": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "relu": relu,
    "silu": silu,
    "swish": silu,
    "tanh": np.tanh,
}
"""HF's names of the activations that refpeft computes (transformers `activations.py`, `ACT2FN`)."""


def activation(name: str) -> Callable[[Array], Array]:
    """The activation of that name in HF's table.

    Raises:
        ConfigError: the name is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"The base model's activation is {name!r}; refpeft computes {', '.join(sorted(ACTIVATIONS))}. "
            "Use a base model with one of these."
        )
    return ACTIVATIONS[name]


@step("loss", clause="TK-3", axes="", source="transformers loss/loss_utils.py ForCausalLMLoss")
def causal_lm_loss(
    logits: Float[Array, "batch query vocab"], labels: Int[Array, "batch query"]
) -> Float[Array, ""]:
    """Mean cross-entropy of each position's logits against the *next* position's label.

        loss = Σ (logsumexp(logits[b,t]) − logits[b,t, labels[b,t+1]]) / number of labels[b,t+1] ≠ −100

    Source: transformers 5.23.0 `loss/loss_utils.py`, `ForCausalLMLoss`: shifts the labels left, ignores −100.
    How others differ: the mean is over counted labels of the whole batch, not per row and then over rows. If no label
    counts, the answer is NaN and its gradient zero, as torch's.
    """
    nothing = np.full((labels.shape[0], 1), IGNORE_INDEX, labels.dtype, like=labels)
    shifted = np.concatenate(
        [labels[:, 1:], nothing], axis=1
    )  # (batch, query): the last position predicts nothing
    counted = shifted != IGNORE_INDEX
    losses = log_sum_exp(logits) - np.pick(logits, np.where(counted, shifted, 0))
    count = np.sum(np.cast_to(counted, logits.dtype))
    mean = np.sum(np.where(counted, losses, 0.0)) / np.where(count > 0, count, 1.0)
    return np.where(count > 0, mean, math.nan)
