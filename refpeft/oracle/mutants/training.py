"""Mistakes in training: AdamW, its schedule, clipping, accumulation (TR-1 to TR-4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from refpeft import arrays as np
from refpeft.oracle.mutants.mutant import Mutant, Steps, each, mutant
from refpeft.training import CLIP_EPSILON


def _updated(change: Any) -> Steps:
    return each(("training.update",), change)


@mutant(
    "M139",
    "moments not corrected for their start at zero",
    clause="TR-1",
    why="RMSProp's update; the first steps are too small or too large",
)
def not_corrected() -> Steps:
    """`m / (√v + ε)`."""

    def update(
        original: Any, parameter: Any, mean: Any, square: Any, number: int, rate: float, arguments: Any
    ) -> Any:
        decayed = parameter * (1 - rate * arguments.weight_decay)
        return decayed - rate * mean / (np.sqrt(square) + arguments.adam_epsilon)

    return _updated(update)


@mutant(
    "M140",
    "moments corrected for one step fewer",
    clause="TR-1",
    why="t counted from 0 and raised to 1 at least",
)
def corrected_late() -> Steps:
    """`β^max(1, t − 1)`."""

    def update(original: Any, parameter: Any, mean: Any, square: Any, number: int, *rest: Any) -> Any:
        return original(parameter, mean, square, max(0, number - 1), *rest)

    return _updated(update)


@mutant(
    "M141",
    "ε of AdamW inside the root",
    clause="TR-1",
    why="√(v̂ + ε), as norms have it",
    seen="TensorFlow's 'epsilon hat', in a way",
)
def epsilon_inside() -> Steps:
    """√(v̂ + ε)."""

    def update(
        original: Any, parameter: Any, mean: Any, square: Any, number: int, rate: float, arguments: Any
    ) -> Any:
        correction = 1 - arguments.adam_beta2 ** (number + 1)
        inside = square + arguments.adam_epsilon * correction
        return original(parameter, mean, inside, number, rate, replace(arguments, adam_epsilon=0.0))

    return _updated(update)


@mutant(
    "M142",
    "ε of AdamW added before the second moment is corrected",
    clause="TR-1",
    why="the paper's faster form",
    seen="Keras",
)
def epsilon_early() -> Steps:
    """(√v + ε) / √(1 − β₂ᵗ)."""

    def update(
        original: Any, parameter: Any, mean: Any, square: Any, number: int, rate: float, arguments: Any
    ) -> Any:
        correction = float(1 - arguments.adam_beta2 ** (number + 1)) ** 0.5
        larger = replace(arguments, adam_epsilon=arguments.adam_epsilon / correction)
        return original(parameter, mean, square, number, rate, larger)

    return _updated(update)


@mutant(
    "M143", "weight decay without the learning rate", clause="TR-1", why="the paper's own form: θ ← θ (1 − λ)"
)
def decay_without_rate() -> Steps:
    """`θ (1 − λ)`."""

    def update(
        original: Any, parameter: Any, mean: Any, square: Any, number: int, rate: float, arguments: Any
    ) -> Any:
        decayed = parameter * (1 - arguments.weight_decay)
        return original(decayed, mean, square, number, rate, replace(arguments, weight_decay=0.0))

    return _updated(update)


@mutant(
    "M144", "weight decay left out", clause="TR-1", why="Adam taken for AdamW; optimisers whose default is 0"
)
def no_decay() -> Steps:
    """`λ = 0`."""

    def update(
        original: Any, parameter: Any, mean: Any, square: Any, number: int, rate: float, arguments: Any
    ) -> Any:
        return original(parameter, mean, square, number, rate, replace(arguments, weight_decay=0.0))

    return _updated(update)


@mutant("M145", "weight decay of the new parameter", clause="TR-1", why="decay behind the update")
def decay_afterwards() -> Steps:
    """(θ − update) (1 − rate · λ)."""

    def update(
        original: Any, parameter: Any, mean: Any, square: Any, number: int, rate: float, arguments: Any
    ) -> Any:
        moved = original(parameter, mean, square, number, rate, replace(arguments, weight_decay=0.0))
        return moved * (1 - rate * arguments.weight_decay)

    return _updated(update)


@mutant("M146", "β₁ and β₂ exchanged", clause="TR-1", why="two numbers beside each other")
def betas_exchanged() -> Steps:
    """The first moment remembers long, the second short."""
    found: dict[str, float] = {}

    def mean(original: Any, before: Any, gradient: Any, beta1: float) -> Any:
        return original(before, gradient, found.get("beta2", 0.999))

    def square(original: Any, before: Any, gradient: Any, beta2: float) -> Any:
        return original(before, gradient, found.get("beta1", 0.9))

    def rate(original: Any, arguments: Any, number: int) -> Any:
        found.update(beta1=arguments.adam_beta1, beta2=arguments.adam_beta2)
        return original(arguments, number)

    def update(
        original: Any, parameter: Any, m: Any, v: Any, number: int, rate: float, arguments: Any
    ) -> Any:
        exchanged = replace(arguments, adam_beta1=arguments.adam_beta2, adam_beta2=arguments.adam_beta1)
        return original(parameter, m, v, number, rate, exchanged)

    return {
        **each(("training.learning_rate",), rate),
        **each(("training.exp_avg",), mean),
        **each(("training.exp_avg_sq",), square),
        **_updated(update),
    }


@mutant(
    "M147",
    "the schedule one step ahead",
    clause="TR-2",
    why="scheduler.step() before optimizer.step()",
    seen="torch warns about it since 1.1",
)
def schedule_ahead() -> Steps:
    """The rate of the next step."""

    def rate(original: Any, arguments: Any, number: int) -> Any:
        return original(arguments, number + 1)

    return each(("training.learning_rate",), rate)


@mutant("M148", "no warm-up", clause="TR-2", why="num_warmup_steps not read")
def no_warmup() -> Steps:
    """`w = 0`."""

    def rate(original: Any, arguments: Any, number: int) -> Any:
        return original(replace(arguments, warmup_steps=0), number)

    return each(("training.learning_rate",), rate)


@mutant(
    "M149",
    "the learning rate constant",
    clause="TR-2",
    why="lr_scheduler_type not read; HF's default is linear",
)
def constant_rate() -> Steps:
    """The peak."""

    def rate(arguments: Any, number: int) -> Any:
        return arguments.learning_rate

    return {"training.learning_rate": rate}


@mutant("M150", "gradients not clipped", clause="TR-3", why="max_grad_norm not read; HF's default is 1")
def not_clipped() -> Steps:
    """A factor of one."""

    def coefficient(original: Any, norm: Any, largest: float) -> Any:
        return original(norm, largest) * 0.0 + 1.0

    return each(("training.clip_coefficient",), coefficient)


@mutant(
    "M151",
    "gradients scaled to the norm even where they are smaller",
    clause="TR-3",
    why="normalising instead of clipping",
)
def normalised() -> Steps:
    """`max_norm / norm`, above one too."""

    def coefficient(norm: Any, largest: float) -> Any:
        return largest / (norm + CLIP_EPSILON)

    return {"training.clip_coefficient": coefficient}


@mutant(
    "M153",
    "accumulated gradients summed",
    clause="TR-4",
    why="backward() of each micro-batch's loss, not divided",
)
def gradients_summed() -> Steps:
    """Σ g."""

    def gradient(original: Any, total: Any, part: Any, micro_batches: int) -> Any:
        return original(total, part, 1)

    return each(("training.gradient",), gradient)


@mutant(
    "M154",
    "only the last micro-batch's gradient",
    clause="TR-4",
    why="gradients set to zero before each micro-batch",
)
def last_gradient() -> Steps:
    """`g / k` of the last."""

    def gradient(original: Any, total: Any, part: Any, micro_batches: int) -> Any:
        return original(None, part, micro_batches)

    return each(("training.gradient",), gradient)


@mutant(
    "M171",
    "the biases of the projection do not decay",
    clause="TR-1",
    why="parameter groups without decay for biases and norms; HF's Trainer makes them, a plain AdamW does not",
)
def biases_do_not_decay() -> Steps:
    """`λ = 0` for parameters of one axis."""

    def update(
        original: Any, parameter: Any, mean: Any, square: Any, number: int, rate: float, arguments: Any
    ) -> Any:
        spared = replace(arguments, weight_decay=0.0) if parameter.ndim == 1 else arguments
        return original(parameter, mean, square, number, rate, spared)

    return _updated(update)


@mutant(
    "M172",
    "a constant learning rate is warmed up",
    clause="TR-2",
    why="warm-up for every schedule; HF's `constant` has none, whatever warmup_steps says",
)
def constant_warmed_up() -> Steps:
    """As `constant_with_warmup`."""

    def rate(original: Any, arguments: Any, number: int) -> Any:
        constant = arguments.lr_scheduler_type == "constant"
        warmed = replace(arguments, lr_scheduler_type="constant_with_warmup") if constant else arguments
        return original(warmed, number)

    return each(("training.learning_rate",), rate)


@mutant(
    "M173",
    "the warm-up begins with its first share instead of 0",
    clause="TR-2",
    why="steps counted from 1",
)
def warmup_from_one() -> Steps:
    """`peak · (number + 1) / w` within the warm-up."""

    def rate(original: Any, arguments: Any, number: int) -> Any:
        within = arguments.lr_scheduler_type != "constant" and number < arguments.num_warmup_steps
        if within:
            return arguments.learning_rate * (number + 1) / arguments.num_warmup_steps
        return original(arguments, number)

    return each(("training.learning_rate",), rate)


MUTANTS: tuple[Mutant, ...] = (
    not_corrected, corrected_late, epsilon_inside, epsilon_early, decay_without_rate, no_decay, decay_afterwards, betas_exchanged,
    schedule_ahead, no_warmup, constant_rate, not_clipped, normalised, gradients_summed, last_gradient,
    biases_do_not_decay, constant_warmed_up, warmup_from_one,
)  # fmt: skip
