"""Faster equals of definitions, with gradients derived by hand: the same numbers but for rounding, in less time and memory.

A kernel serves NumPy's own arrays in float32 and float64, and leaves the rest to the definition (`NotImplemented`): foreign
arrays, parameters that are trained, options that few families have (so that its own answer is annotated `Any`). It never runs while a stage is recorded or a step replaced
(`refpeft.steps.accelerated`), and `with steps.kernels():` switches all of them off. What is gained is that of fewer passes
over memory: results are written in place, a slope is kept instead of everything that it is made of, one large matrix product
is made of many small ones.

Each is held to its definition, and to finite differences, in tests/test_kernels.py; `python tests/benchmarks/kernels.py` prints
what each gains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from refpeft import arrays as np
from refpeft import threads
from refpeft.arrays import Array, Float
from refpeft.steps import kernel

Numbers = NDArray[Any]
FEW = 64
"""Up to so many rows, how a matrix lies in memory decides how fast it is multiplied."""
BLOCK = 1 << 16
"""So many numbers are taken through a chain of elementwise operations at once: few enough for a core's cache."""


def _serves(x: Array, weight: Array | None, bias: Array | None) -> bool:
    """Whether x, and frozen parameters, are arrays of NumPy's own."""
    return np.is_plain(x, weight, bias) and not (np.is_traced(weight) or np.is_traced(bias))


# ---------------------------------------------------------------- affine maps


@kernel("ops.linear")
def linear(
    x: Float[Array, "*rows inputs"],
    weight: Float[Array, "outputs inputs"],
    bias: Float[Array, " outputs"] | None,
) -> Any:
    """One matrix product of all rows, the bias added in place. The weight is frozen: ∂/∂x = g · weight."""
    if not _serves(x, weight, bias):
        return NotImplemented
    value = np.value_of(x)
    shape = value.shape
    y = _product(value.reshape(-1, shape[-1]), weight.T)
    if bias is not None:
        y += bias
    y = y.reshape(*shape[:-1], weight.shape[0])
    if not np.is_traced(x):
        return y

    def back(g: Numbers) -> tuple[Numbers]:
        return (_product(g.reshape(-1, g.shape[-1]), weight).reshape(shape),)

    return np.with_gradient(y, back, x)


def _product(rows: Numbers, matrix: Numbers) -> Numbers:
    """`rows @ matrix`; of few rows the other way round if the matrix is a transposed one, which it then reads in order."""
    if len(rows) > FEW or not matrix.flags.f_contiguous:
        return rows @ matrix
    return numpy.ascontiguousarray((matrix.T @ rows.T).T)


# ---------------------------------------------------------------- norms


@kernel("ops.layer_norm")
def layer_norm(x: Array, weight: Array | None, bias: Array | None, epsilon: float) -> Any:
    """With x̂ the normed rows and h = g ⊙ weight: ∂/∂x = (h − mean h − x̂ · mean(h ⊙ x̂)) / √(variance + ε)."""
    if not _serves(x, weight, bias):
        return NotImplemented
    value = np.value_of(x)
    normed = value - value.mean(axis=-1, keepdims=True)
    return _normed(x, normed, weight, bias, epsilon, centred=True)


@kernel("ops.rms_norm")
def rms_norm(x: Array, weight: Array | None, bias: Array | None, epsilon: float) -> Any:
    """With x̂ the normed rows and h = g ⊙ weight: ∂/∂x = (h − x̂ · mean(h ⊙ x̂)) / √(mean x² + ε)."""
    if not _serves(x, weight, bias):
        return NotImplemented
    return _normed(x, np.value_of(x).copy(), weight, bias, epsilon, centred=False)


def _normed(
    x: Array, rows: Numbers, weight: Array | None, bias: Array | None, epsilon: float, *, centred: bool
) -> Array:
    """`rows`, which may be written to, divided by their root mean square, then weight and bias."""
    hidden = rows.shape[-1]
    scale = numpy.square(rows).mean(axis=-1, keepdims=True)  # in pairs, as exactly as the definition
    scale += epsilon
    numpy.sqrt(scale, out=scale)
    rows /= scale
    y = rows if weight is None else rows * weight
    if bias is not None:
        y = y + bias if y is rows else numpy.add(y, bias, out=y)
    if not np.is_traced(x):
        return y

    def back(g: Numbers) -> tuple[Numbers]:
        given = g.copy() if weight is None else g * weight
        along = numpy.einsum("...i,...i->...", given, rows)[..., None]
        along /= hidden
        if centred:
            given -= given.mean(axis=-1, keepdims=True)
        given -= rows * along
        given /= scale
        return (given,)

    return np.with_gradient(y, back, x)


# ---------------------------------------------------------------- activations

Elementwise = Callable[[Numbers, Numbers, Numbers | None], None]
"""(x, where to write the function's values, where to write its slopes if they are wanted)."""


def _elementwise(x: Array, function: Elementwise) -> Any:
    """A function of each number, block by block; of what it is made of, the slope alone is kept."""
    if not np.is_plain(x):
        return NotImplemented
    value = np.value_of(x)
    flat = numpy.ascontiguousarray(value).reshape(-1)
    y, slope = numpy.empty_like(flat), numpy.empty_like(flat) if np.is_traced(x) else None
    for start in range(0, flat.size, BLOCK):
        block = slice(start, start + BLOCK)
        function(flat[block], y[block], None if slope is None else slope[block])
    y = y.reshape(value.shape)
    if slope is None:
        return y
    slopes = slope.reshape(value.shape)
    return np.with_gradient(y, lambda g: (g * slopes,), x)


@kernel("activations.gelu_new")
def gelu_new(x: Array) -> Any:
    """With t = tanh(√(2/π)·(x + 0.044715 x³)): the slope is (1 + t)/2 + x/2 · (1 − t²) · √(2/π) · (1 + 3 · 0.044715 x²)."""
    factor = math.sqrt(2.0 / math.pi)

    def function(x: Numbers, y: Numbers, slope: Numbers | None) -> None:
        square = x * x
        t = square * (factor * 0.044715)
        t += factor
        t *= x
        numpy.tanh(t, out=t)
        numpy.add(t, 1.0, out=y)
        y *= 0.5  # (1 + t) / 2
        if slope is not None:
            numpy.multiply(t, t, out=t)
            numpy.subtract(1.0, t, out=t)
            t *= x
            square *= 3.0 * 0.044715 * 0.5 * factor
            square += 0.5 * factor
            t *= square
            numpy.add(y, t, out=slope)
        y *= x

    return _elementwise(x, function)


@kernel("activations.silu")
def silu(x: Array) -> Any:
    """With s = σ(x): the slope is s · (1 + x · (1 − s))."""

    def function(x: Numbers, y: Numbers, slope: Numbers | None) -> None:
        s = x * 0.5
        numpy.tanh(s, out=s)
        s += 1.0
        s *= 0.5
        numpy.multiply(s, x, out=y)
        if slope is not None:
            numpy.subtract(1.0, s, out=slope)
            slope *= x
            slope += 1.0
            slope *= s

    return _elementwise(x, function)


@kernel("activations.gelu")
def gelu(x: Array) -> Any:
    """With Φ(x) = (1 + erf(x/√2))/2: the slope is Φ(x) + x · exp(−x²/2)/√(2π)."""
    root, density = math.sqrt(0.5), 1.0 / math.sqrt(2.0 * math.pi)

    def function(x: Numbers, y: Numbers, slope: Numbers | None) -> None:
        phi = np.erf(x * root)
        phi += 1.0
        phi *= 0.5
        numpy.multiply(phi, x, out=y)
        if slope is not None:
            numpy.multiply(x, x, out=slope)
            slope *= -0.5
            numpy.exp(slope, out=slope)
            slope *= density
            slope *= x
            slope += phi

    return _elementwise(x, function)


# ---------------------------------------------------------------- attention


@kernel("attention.dot_product_attention")
def dot_product_attention(
    query: Float[Array, "batch heads query head_dim"],
    key_states: Float[Array, "batch kv_heads key head_dim"],
    value_states: Float[Array, "batch kv_heads key head_dim"],
    visible: Bool[Array, "batch query key"],
    scale: float,
    *,
    softcap: float | None = None,
    bias: Float[Array, "#batch heads #query key"] | None = None,
) -> Any:
    """Scores, softmax and their products in one buffer; the heads that share a key/value head are multiplied together.

    With A the weights, G = ∂/∂o for each head, dl = scale · A ⊙ (G·vᵀ − Σ A ⊙ G·vᵀ): ∂/∂q = dl·k, ∂/∂k = dlᵀ·q, ∂/∂v = Aᵀ·G.
    """
    inputs = (query, key_states, value_states)
    if softcap is not None or np.is_traced(bias) or not np.is_plain(*inputs, bias):
        return NotImplemented
    q, k, v = map(np.value_of, inputs)
    batch, heads, queries, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    rows = heads // kv_heads * queries
    q = q.reshape(batch, kv_heads, rows, head_dim)
    weights = q @ k.swapaxes(-1, -2)
    weights *= scale
    _softmax(weights.reshape(batch, heads, queries, keys), visible, bias)
    mixed = (weights @ v).reshape(batch, heads, queries, head_dim)
    answer = mixed.swapaxes(1, 2).reshape(batch, queries, heads * head_dim)
    wanted = [np.is_traced(x) for x in inputs]
    if not any(wanted):
        return answer

    def back(g: Numbers) -> tuple[Numbers | None, ...]:
        g = g.reshape(batch, queries, heads, head_dim).swapaxes(1, 2).reshape(batch, kv_heads, rows, head_dim)
        d_value = weights.swapaxes(-1, -2) @ g if wanted[2] else None
        if not (wanted[0] or wanted[1]):
            return None, None, d_value
        d_logits = g @ v.swapaxes(-1, -2)
        d_logits -= numpy.einsum("...i,...i->...", d_logits, weights)[..., None]
        d_logits *= weights
        d_logits *= scale
        d_query = (d_logits @ k).reshape(batch, heads, queries, head_dim) if wanted[0] else None
        d_key = d_logits.swapaxes(-1, -2) @ q if wanted[1] else None
        return d_query, d_key, d_value

    return np.with_gradient(answer, back, *inputs)


def _softmax(logits: Numbers, visible: Array, bias: Array | None) -> None:
    """In place: bias and mask added as the definition adds them, then the softmax over the last axis."""
    if bias is not None:
        logits += bias
    if not visible.all():
        hidden = logits.dtype.type(np.most_negative(logits.dtype))
        with numpy.errstate(over="ignore"):  # a negative score less the most negative number, as HF's mask
            logits += numpy.where(visible[:, None], logits.dtype.type(0), hidden)
    logits -= logits.max(axis=-1, keepdims=True)
    numpy.exp(logits, out=logits)
    logits /= logits.sum(axis=-1, keepdims=True)


# ---------------------------------------------------------------- loss


@kernel("ops.cross_entropy")
def cross_entropy(
    logits: Float[Array, "*rows classes"], labels: Int[Array, "*rows"], ignore_index: int = -100
) -> Any:
    """One buffer for exponentials, probabilities and the gradient, (softmax − one-hot) / count in rows that count."""
    if not np.is_plain(logits) or not isinstance(labels, numpy.ndarray):
        return NotImplemented
    value, counted = np.value_of(logits), labels != ignore_index
    count = int(counted.sum())
    if not count:
        return NotImplemented  # NaN, with a gradient of zero
    x = value.reshape(-1, value.shape[-1])
    losses, gradient = cross_entropies(x.copy(), numpy.where(counted, labels, -1).reshape(-1), count)
    loss = numpy.asarray(losses.sum() / x.dtype.type(count))
    if not np.is_traced(logits):
        return loss
    gradient = gradient.reshape(value.shape)
    return np.with_gradient(loss, lambda g: (gradient * g if g != 1 else gradient,), logits)


def cross_entropies(
    x: Float[Array, "rows classes"], labels: Int[Array, " rows"], count: int
) -> tuple[Float[Array, " rows"], Float[Array, "rows classes"]]:
    """The cross entropy of each row, and the gradient of their sum / count, in the place of the logits. A label of −1 does not count."""

    def some(rows: slice) -> Numbers:
        own, wanted = x[rows], labels[rows]
        number, counts = numpy.arange(len(wanted)), wanted >= 0
        own -= own.max(axis=-1, keepdims=True)
        shifted = own[number, wanted]
        numpy.exp(own, out=own)
        sums = own.sum(axis=-1)
        own *= (counts / (sums * count)).astype(x.dtype)[:, None]
        own[number, wanted] -= (counts / x.dtype.type(count)).astype(x.dtype)
        losses: Numbers = numpy.where(counts, numpy.log(sums) - shifted, x.dtype.type(0))
        return losses

    return numpy.concatenate(threads.each(some, threads.parts(len(x), x.size))), x


# ---------------------------------------------------------------- generation


@kernel("token_scores.largest")
def largest(scores: Float[Array, "rows options"], count: int) -> Any:
    """The few that are as large as the last one chosen are sorted, not the whole vocabulary."""
    if not np.is_plain(scores) or not 0 < count < scores.shape[1] or numpy.isnan(scores).any():
        return NotImplemented
    if count == 1:
        return scores.argmax(axis=-1)[:, None]
    least = numpy.partition(scores, -count, axis=-1)[:, -count, None]
    chosen = numpy.empty((len(scores), count), numpy.int64)
    for row, places in enumerate(map(numpy.flatnonzero, scores >= least)):
        chosen[row] = places[numpy.argsort(-scores[row, places], kind="stable")[:count]]
    return chosen
