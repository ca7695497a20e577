"""Whether C = 16 for training (clause TR-8) leaves room for honest loops, measured on the golden vectors.

Run with `-s` and REFPEFT_CASES=all, which takes every case, to see the figure that specs/training.md quotes: the worst honest
error in budgets. Which mistakes exceed a budget is in golden/kill_matrix.json (JG-12).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
from support import EVERY_CASE

from refpeft import arrays as np
from refpeft.oracle import budget
from refpeft.oracle.budget import PROFILES, meaningful
from refpeft.oracle.cases import ask_of
from refpeft.oracle.floors import floors
from refpeft.oracle.questions import Arithmetic, answer, is_required
from refpeft.oracle.vectors import Vector, all_vectors
from refpeft.oracle.wrapped import plain
from refpeft.steps import replaced

VECTORS = sorted(
    (vector for vector in all_vectors() if vector.case.question == "training"),
    key=lambda vector: (vector.case.dims["layers"], "everything" not in vector.case.id),
)
"""First the one that shows most mistakes."""
DTYPES = ["float32", "float64"] if EVERY_CASE else ["float32"]
Steps = dict[str, Callable[..., Any]]


# ---------------------------------------------------------------- honest: the same mathematics


def weighted_mean(mean: Any, gradient: Any, beta1: float) -> Any:
    return beta1 * mean + (1 - beta1) * gradient


def square_first(mean: Any, gradient: Any, beta2: float) -> Any:
    return (1 - beta2) * np.square(gradient) + beta2 * mean


def fused(parameter: Any, mean: Any, square: Any, number: int, rate: float, how: Any) -> Any:
    """As torch's fused kernel: the decay subtracted."""
    parameter = parameter - rate * how.weight_decay * parameter
    correction = (1 - how.adam_beta2 ** (number + 1)) ** 0.5
    denominator = np.sqrt(square) / correction + how.adam_epsilon
    return parameter - rate / (1 - how.adam_beta1 ** (number + 1)) * (mean / denominator)


def optax(parameter: Any, mean: Any, square: Any, number: int, rate: float, how: Any) -> Any:
    """As Optax (eps_root = 0): both moments corrected, the decay added to the direction."""
    mean = mean / (1 - how.adam_beta1 ** (number + 1))
    square = square / (1 - how.adam_beta2 ** (number + 1))
    direction = mean / (np.sqrt(square) + how.adam_epsilon) + how.weight_decay * parameter
    return parameter + -rate * direction


def one_norm(gradients: Any) -> Any:
    total: Any = 0.0
    for gradient in gradients.values():
        total = total + np.sum(np.square(gradient))
    return np.sqrt(total)


def added_then_divided(total: Any, part: Any, count: int) -> Any:
    """The sum, divided with the last part: told by a total that is k times as large until then."""
    return part * (1.0 / count) if total is None else part * (1.0 / count) + total


HONEST: dict[str, Steps] = {
    "as it is": {},
    "moments as weighted means": {"training.exp_avg": weighted_mean, "training.exp_avg_sq": square_first},
    "torch's fused form": {"training.exp_avg": weighted_mean, "training.update": fused},
    "Optax's form": {"training.exp_avg": weighted_mean, "training.exp_avg_sq": square_first, "training.update": optax},
    "one sum of squares": {"training.gradient_norm": one_norm},
    "parts added in another order": {"training.gradient": added_then_divided, "training.loss": added_then_divided},
    "all of them": {
        "training.exp_avg": weighted_mean,
        "training.exp_avg_sq": square_first,
        "training.update": optax,
        "training.gradient_norm": one_norm,
        "training.gradient": added_then_divided,
    },
}  # fmt: skip


def spent(vector: Vector, steps: Steps, dtype: str, backwards: bool = False) -> float:
    """The largest error of a required tensor, in budgets, of the specification with some steps replaced."""
    profile, known = PROFILES[dtype], floors(vector, PROFILES[dtype])
    arithmetic = Arithmetic(dtype)
    if backwards:
        budget.register_reversed()
        arithmetic = Arithmetic(dtype, budget._Reversed, plain)
    with replaced(steps):
        given = answer(ask_of(vector), arithmetic).tensors
    worst = 0.0
    for name, floor in known.items():
        if is_required("training", name):
            allowed = budget.budget_of(name, floor, profile)
            norm, largest = budget.errors(numpy.asarray(given[name]), vector.expected[name])
            worst = max(worst, norm / allowed.norm, largest / allowed.largest)
    return worst


def worst_honest(vector: Vector, name: str, dtype: str) -> float:
    return max(spent(vector, HONEST[name], dtype, backwards) for backwards in (False, True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HONEST)
def test_honest_loops_stay_well_within_budget(name: str, dtype: str) -> None:
    worst = max(worst_honest(vector, name, dtype) for vector in (VECTORS if EVERY_CASE else VECTORS[:1]))
    print(f"\n{dtype}: {name}: at most {worst:.2f} budgets")
    assert worst < 0.1


def clipped_exactly(norm: Any, largest: float) -> Any:
    """Without the 1e-6 that torch adds to the norm."""
    return np.where(norm < largest, 1.0, largest / norm)


def test_clipping_without_its_epsilon_shows_in_float64_alone() -> None:
    """AdamW does not feel the size of a gradient: of 1e-6 / norm float32 sees nothing, so that it is no mutant."""
    mistaken: Steps = {"training.clip_coefficient": clipped_exactly}
    assert spent(VECTORS[0], mistaken, "float64") > 1e6
    assert spent(VECTORS[0], mistaken, "float32") < 1


def test_golden_trajectories_mean_something_to_their_end() -> None:
    """By the stored floors: of the losses, and of the parameters after the last step."""
    for vector in VECTORS:
        known = floors(vector, PROFILES["float32"])
        names = [name for name in vector.case.tensors if is_required("training", name)]
        assert len(names) >= 2
        worst = max(known[name].norm for name in names)
        assert worst <= 2.0**-budget.MEANINGFUL_BITS, vector.case.id


def test_the_steps_that_mean_something() -> None:
    assert meaningful([22.0, 15.0, 12.0, 11.9, 13.0]) == 3
    assert meaningful([22.0, 21.0]) == 2
    assert meaningful([3.0]) == 0
