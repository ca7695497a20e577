"""The activation functions of HF's table, exactly as HF computes them: constants that HF shortens are short here too.

Follows transformers 5.23.0 (`activations.py`, `ACT2CLS`) and torch 2.13.0; where this file and those disagree, they win.

How others differ: five functions are called GELU. The exact one uses erf (`gelu`); the tanh approximation (`gelu_new`)
differs from it by up to 5e-4, which a tolerance of 1e-3 lets pass; the sigmoid one (`quick_gelu`) by up to 2e-2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from refpeft import arrays as np
from refpeft.arrays import Array, Float
from refpeft.errors import ConfigError
from refpeft.steps import accelerated

Activation: TypeAlias = Callable[[Array], Array]


def sigmoid(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`1 / (1 + exp(−x))`, written with tanh so that nothing overflows. Source: `torch.sigmoid`."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def softplus(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`log(1 + exp(x))`, as `max(x, 0) + log(1 + exp(−|x|))` so that nothing overflows; its gradient is σ(x), at 0 too.

    Source: torch's `mish` and `binary_cross_entropy_with_logits`, which have it inside. (`torch.nn.functional.softplus`
    itself answers x from 20 on, which differs by 2e-9.)
    """
    return np.where(x <= 0, 0.0, x) + np.log1p(np.exp(np.where(x <= 0, x, -x)))


@accelerated
def gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`x/2 · (1 + erf(x / √2))`: the exact GELU. Source: `torch.nn.functional.gelu`."""
    return 0.5 * x * (1.0 + np.erf(x * math.sqrt(0.5)))


@accelerated
def gelu_new(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`: the tanh approximation of GELU.

    Source: transformers `activations.py`, `NewGELUActivation`; four names of HF's table mean this function.
    """
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))


def gelu_fast(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """The tanh approximation of GELU with √(2/π) cut to 0.7978845608. Source: `FastGELUActivation`."""
    return 0.5 * x * (1.0 + np.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def quick_gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`x · σ(1.702 x)`. Source: `QuickGELUActivation`."""
    return x * sigmoid(1.702 * x)


def _bloom_tanh(x: Array) -> Array:
    return np.tanh(0.79788456 * x * (1.0 + 0.044715 * x * x))


@np.primitive
def bloom_gelu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """BLOOM's tanh approximation of GELU, with √(2/π) cut to 0.79788456 and a gradient written by hand.

    Source: transformers `models/bloom/modeling_bloom.py`, `bloom_gelu_forward`, `bloom_gelu_back`.
    How others differ: from `gelu_new` by 1e-9. The gradient has a constant of its own, 0.1070322243, where the forward
    function's derivative has 3 · 0.044715 · 0.79788456 = 0.1070322243012.
    """
    return 0.5 * x * (1.0 + _bloom_tanh(x))


def _bloom_gelu_slope(x: Array) -> Array:
    tanh = _bloom_tanh(x)
    inner = (1.0 - tanh * tanh) * (0.79788456 + 0.1070322243 * x * x)
    return 0.5 * x * inner + 0.5 * (1.0 + tanh)


np.defvjp(bloom_gelu, lambda ans, x: lambda g: _bloom_gelu_slope(x) * g)


def relu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`max(x, 0)`, with gradient 0 at 0 as torch. Source: `torch.nn.functional.relu`."""
    return np.where(x <= 0, 0.0, x)


def relu6(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`min(max(x, 0), 6)`, with gradient 0 at 0 and at 6 as torch. Source: `torch.nn.ReLU6`."""
    return np.where(x >= 6, 6.0, relu(x))


def squared_relu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`max(x, 0)²`. Source: `ReLUSquaredActivation`."""
    return np.square(relu(x))


def leaky_relu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`x` above 0, else `x / 100`; its gradient at 0 is 1/100. Source: `torch.nn.LeakyReLU`."""
    return np.where(x > 0, x, 0.01 * x)


@accelerated
def silu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`x · σ(x)`. Source: `torch.nn.functional.silu`."""
    return x * sigmoid(x)


def mish(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`x · tanh(log(1 + exp(x)))`. Source: `torch.nn.functional.mish`."""
    return x * np.tanh(softplus(x))


def identity(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """`x`. Source: `LinearActivation`."""
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_accurate": gelu_new,
    "gelu_fast": gelu_fast,
    "gelu_new": gelu_new,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "leaky_relu": leaky_relu,
    "linear": identity,
    "mish": mish,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": squared_relu,
    "relu6": relu6,
    "sigmoid": sigmoid,
    "silu": silu,
    "swish": silu,
    "tanh": np.tanh,
}
"""HF's names of the activations that refpeft computes (transformers `activations.py`, `ACT2CLS`)."""

_OF_A_FAMILY: dict[str, Activation] = {"bloom_gelu": bloom_gelu}
"""Activations that a family has whatever its configuration says, under names of refpeft's own."""


def activation(name: str) -> Activation:
    """The activation of that name in HF's table, or BLOOM's own, `bloom_gelu`.

    Source: transformers 5.23.0 `activations.py`, `ACT2CLS`.

    Raises:
        ConfigError: there is none.
    """
    found = ACTIVATIONS.get(name) or _OF_A_FAMILY.get(name)
    if found is None:
        raise ConfigError(
            f"The base model's activation is {name!r}; refpeft computes {', '.join(sorted(ACTIVATIONS))}. "
            "Use a base model with one of these."
        )
    return found
