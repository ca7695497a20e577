"""Training: AdamW, learning-rate schedules, gradient accumulation and clipping, as one pure loop over steps.

Follows torch 2.13.0 `optim/adam.py` (`_single_tensor_adam`, which `AdamW` runs on a CPU) and `nn/utils/clip_grad.py`
(`clip_grad_norm_`), and transformers 5.23.0 `optimization.py` (`get_scheduler`). Clauses TR-1 to TR-7.

    for each of max_steps steps, k = gradient_accumulation_steps micro-batches:
        g  = Σ gradient of loss / k                    accumulate       TR-4
        g ← g · min(1, max_grad_norm / (‖g‖ + 1e-6))   clip             TR-3
        θ ← AdamW(θ, g, learning_rate(step))           update           TR-1, TR-2

The loop knows no model: it is given a function from parameters and the number of a micro-batch to a loss and its gradient.
`refpeft.train` and the question `training` both drive it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from refpeft import arrays as np
from refpeft.arrays import Array, Float, Parameters
from refpeft.steps import scope, step
from refpeft.training_arguments import SCHEDULES, TrainingArguments

__all__ = [
    "CLIP_EPSILON",
    "SCHEDULES",
    "LossAndGradient",
    "StepRecord",
    "TrainingArguments",
    "TrainingState",
    "accumulate",
    "accumulate_loss",
    "clip_coefficient",
    "first_moment",
    "gradient_norm",
    "initial_state",
    "learning_rate",
    "second_moment",
    "take_step",
    "trajectory",
    "update",
]

_ADAM = "torch optim/adam.py _single_tensor_adam"
_CLIP = "torch nn/utils/clip_grad.py clip_grad_norm_"
_SCHEDULE = "transformers optimization.py get_scheduler"
_LOOP = "torch autograd (loss / gradient_accumulation_steps).backward"

CLIP_EPSILON = 1e-6
"""What torch adds to the norm before it divides by it."""


@dataclass(frozen=True)
class TrainingState:
    """Where training is: everything that the next step depends on."""

    step: int
    """Steps of the optimiser taken."""
    parameters: Parameters
    exp_avg: Parameters
    """First moments, by parameter; the name is torch's."""
    exp_avg_sq: Parameters
    """Second moments, by parameter."""


@dataclass(frozen=True)
class StepRecord:
    """What one step of the optimiser saw."""

    loss: Array
    """Mean of the micro-batches' losses, before the update."""
    learning_rate: float
    gradient_norm: Array
    """Of the accumulated gradient, before clipping."""


LossAndGradient: TypeAlias = Callable[[Parameters, int], tuple[Array, dict[str, Array]]]
"""Parameters and the number of a micro-batch, counted from the first step -> loss, gradient by parameter."""


# ---------------------------------------------------------------- the decisions that a port can get wrong


@step(
    "training.learning_rate", clause="TR-2", stage="training.steps.{step}.learning_rate", axes="",
    source=_SCHEDULE,
)  # fmt: skip
def learning_rate(arguments: TrainingArguments, number: int) -> float:
    """The learning rate of step `number`, counted from 0, with w steps of warm-up and n = max_steps.

        number < w            peak · number / max(1, w)
        constant              peak                           (no warm-up, whatever w)
        constant_with_warmup  peak
        linear                peak · max(0, (n − number) / max(1, n − w))
        cosine                peak · max(0, (1 + cos π · (number − w) / max(1, n − w)) / 2)

    Source: transformers 5.23.0 `optimization.py`; torch's LambdaLR multiplies the peak by the factor.
    How others differ: the first step of a warm-up has learning rate 0; a loop that advances the schedule before the
    optimiser's first step skips it, and every later value with it.
    """
    warmup, total = arguments.num_warmup_steps, arguments.max_steps
    if arguments.lr_scheduler_type == "constant":
        return arguments.learning_rate
    if number < warmup:
        return arguments.learning_rate * (number / max(1, warmup))
    if arguments.lr_scheduler_type == "constant_with_warmup":
        return arguments.learning_rate
    if arguments.lr_scheduler_type == "linear":
        return arguments.learning_rate * max(0.0, (total - number) / max(1, total - warmup))
    progress = (number - warmup) / max(1, total - warmup)
    return arguments.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


@step("training.loss", clause="TR-4", stage="training.steps.{step}.loss", axes="", source=_LOOP)
def accumulate_loss(total: Array | None, loss: Float[Array, ""], micro_batches: int) -> Float[Array, ""]:
    """The loss of a step so far: `total + loss / k`. Each micro-batch counts the same, however many labels it has.

    `total` is a scalar too.
    """
    part = loss / micro_batches
    return part if total is None else total + part


@step(
    "training.gradient", clause="TR-4", stage="training.steps.{step}.gradients.{parameter}", axes="", source=_LOOP
)  # fmt: skip
def accumulate(
    total: Array | None, gradient: Float[Array, "*axes"], micro_batches: int
) -> Float[Array, "*axes"]:
    """The gradient of a step so far: `total + gradient / k`, as `(loss / k).backward()` leaves it in `.grad`.

    `total` has the shape of the gradient.

    How others differ: the sum of the gradients (k times as large: clipping hides it), or one mean over all labels of the
    step (HF's Trainer, which counts the labels beforehand; clause TR-4).
    """
    part = gradient / micro_batches
    return part if total is None else total + part


@step(
    "training.gradient_norm", clause="TR-3", stage="training.steps.{step}.gradient_norm", axes="", source=_CLIP
)  # fmt: skip
def gradient_norm(gradients: Parameters) -> Float[Array, ""]:
    """The root of the sum of squares over all parameters together: the norm of the parameters' norms."""
    squares = [np.square(np.sqrt(np.sum(np.square(gradient)))) for gradient in gradients.values()]
    total = squares[0]
    for square in squares[1:]:
        total = total + square
    return np.sqrt(total)


@step(
    "training.clip_coefficient", clause="TR-3", stage="training.steps.{step}.clip_coefficient", axes="", source=_CLIP
)  # fmt: skip
def clip_coefficient(norm: Float[Array, ""], max_grad_norm: float) -> Float[Array, ""]:
    """What every gradient is multiplied by: `min(1, max_grad_norm / (norm + 1e-6))`; NaN stays NaN.

    How others differ: without the 1e-6 (Optax), which moves a clipped gradient by 1e-6 / norm of itself; a norm for each
    parameter of its own (Keras' `clipnorm`; its `global_clipnorm` is this one).
    """
    coefficient = max_grad_norm / (norm + CLIP_EPSILON)
    return np.where(coefficient > 1.0, 1.0, coefficient)


@step(
    "training.exp_avg",
    clause="TR-1",
    stage="training.steps.{step}.exp_avg.{parameter}",
    axes="",
    source=_ADAM,
)
def first_moment(
    exp_avg: Float[Array, "*axes"], gradient: Float[Array, "*axes"], beta1: float
) -> Float[Array, "*axes"]:
    """`m ← m + (1 − β₁)(g − m)`, which is `β₁ m + (1 − β₁) g`, written as torch's `lerp`."""
    weight = 1 - beta1
    if weight < 0.5:
        return exp_avg + weight * (gradient - exp_avg)
    return gradient - (gradient - exp_avg) * (1 - weight)


@step(
    "training.exp_avg_sq", clause="TR-1", stage="training.steps.{step}.exp_avg_sq.{parameter}", axes="", source=_ADAM
)  # fmt: skip
def second_moment(
    exp_avg_sq: Float[Array, "*axes"], gradient: Float[Array, "*axes"], beta2: float
) -> Float[Array, "*axes"]:
    """`v ← β₂ v + (1 − β₂) g²`."""
    return exp_avg_sq * beta2 + (1 - beta2) * gradient * gradient


@step(
    "training.update", clause="TR-1", stage="training.steps.{step}.parameters.{parameter}", axes="", source=_ADAM
)  # fmt: skip
def update(
    parameter: Float[Array, "*axes"],
    exp_avg: Float[Array, "*axes"],
    exp_avg_sq: Float[Array, "*axes"],
    number: int,
    rate: float,
    arguments: TrainingArguments,
) -> Float[Array, "*axes"]:
    """One parameter after step `number`, counted from 0; t = number + 1.

        θ ← θ (1 − rate · λ)
        θ ← θ − rate / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)

    The decay is of the old parameter, and is not in m or v.
    How others differ: ε inside the root; ε added before the bias is corrected, which divides it by √(1 − β₂ᵗ) (Keras'
    "epsilon hat"); decay added to the gradient (L2, Adam); decay without the learning rate (the paper's
    own form); decay after the update, of the new parameter.
    """
    first = 1 - arguments.adam_beta1 ** (number + 1)
    second = 1 - arguments.adam_beta2 ** (number + 1)
    if arguments.weight_decay != 0:
        parameter = parameter * (1 - rate * arguments.weight_decay)
    denominator = np.sqrt(exp_avg_sq) / second**0.5 + arguments.adam_epsilon
    updated: Array = parameter + -(rate / first) * exp_avg / denominator
    return updated


# ---------------------------------------------------------------- the loop


def initial_state(parameters: Parameters) -> TrainingState:
    """Before the first step: no moments yet.

    Source: torch 2.13.0 `optim/adam.py`, `Adam._init_group`: zeros like the parameter.
    """
    zeros = {name: np.full(value.shape, 0.0, value.dtype, like=value) for name, value in parameters.items()}
    return TrainingState(0, dict(parameters), zeros, dict(zeros))


def take_step(
    state: TrainingState, arguments: TrainingArguments, loss_and_gradient: LossAndGradient
) -> tuple[TrainingState, StepRecord]:
    """One step of the optimiser: k micro-batches, clipping, AdamW. Nothing given is changed.

    Source: torch's `AdamW.step` behind transformers' schedule, in the loop that users of peft write; see the module.
    """
    with scope(step=state.step):
        rate, count = learning_rate(arguments, state.step), arguments.gradient_accumulation_steps
        loss: Array | None = None
        gradients: dict[str, Array] = {}
        for micro_batch in range(state.step * count, (state.step + 1) * count):
            part, found = loss_and_gradient(state.parameters, micro_batch)
            loss = accumulate_loss(loss, part, count)
            for name in state.parameters:
                with scope(parameter=name):
                    gradients[name] = accumulate(gradients.get(name), found[name], count)
        norm = gradient_norm(gradients)
        if arguments.max_grad_norm:
            coefficient = clip_coefficient(norm, arguments.max_grad_norm)
            gradients = {name: gradient * coefficient for name, gradient in gradients.items()}
        following = _adamw(state, gradients, rate, arguments)
    assert loss is not None  # noqa: S101  (there is at least one micro-batch)
    return following, StepRecord(loss, rate, norm)


def _adamw(
    state: TrainingState, gradients: Parameters, rate: float, arguments: TrainingArguments
) -> TrainingState:
    parameters, means, squares = {}, {}, {}
    for name, gradient in gradients.items():
        with scope(parameter=name):
            means[name] = first_moment(state.exp_avg[name], gradient, arguments.adam_beta1)
            squares[name] = second_moment(state.exp_avg_sq[name], gradient, arguments.adam_beta2)
            parameters[name] = update(
                state.parameters[name], means[name], squares[name], state.step, rate, arguments
            )
    return TrainingState(state.step + 1, parameters, means, squares)


def trajectory(
    state: TrainingState, arguments: TrainingArguments, loss_and_gradient: LossAndGradient
) -> Iterator[tuple[TrainingState, StepRecord]]:
    """Each state and record after `state`, up to `max_steps`.

    Source: as `take_step`.
    """
    while state.step < arguments.max_steps:
        state, record = take_step(state, arguments, loss_and_gradient)
        yield state, record
