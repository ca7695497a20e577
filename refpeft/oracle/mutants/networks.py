"""Mistakes in norms, networks and activations: a family taken for another (AT-1, AT-5, AT-7)."""

from __future__ import annotations

from typing import Any

from refpeft import arrays as np
from refpeft import ops
from refpeft.oracle.mutants.mutant import Mutant, Steps, each, mutant
from refpeft.steps import STEPS
from refpeft.transformer import norms

_NORMS = tuple(name for name, step in STEPS.items() if step.definition.__module__ == norms.__name__)
_ACTIVATIONS = ("mlp.activation", "mlp.gated_activation")


@mutant("M102", "ε of the norms a tenth", clause="AT-1", why="1e-6 for 1e-5: another family's default")
def smaller_epsilon() -> Steps:
    """`ε / 10`."""

    def norm(original: Any, x: Any, weight: Any, bias: Any, epsilon: float, **kind: str) -> Any:
        return original(x, weight, bias, epsilon / 10, **kind)

    return each(_NORMS, norm)


@mutant("M103", "ε of the norms outside the root", clause="AT-1", why="x / (σ + ε), as older papers write it")
def epsilon_outside() -> Steps:
    """`σ + ε`."""

    def norm(original: Any, x: Any, weight: Any, bias: Any, epsilon: float, kind: str = "layer_norm") -> Any:
        centred = x - np.mean(x, axis=-1, keepdims=True) if kind == "layer_norm" else x
        root = np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True))
        return _affine(centred / (root + epsilon), weight, bias, kind)

    return each(_NORMS, norm)


def _affine(x: Any, weight: Any, bias: Any, kind: str) -> Any:
    if weight is not None:
        x = x * (1.0 + weight if kind == "rms_norm_plus_one" else weight)
    return x if bias is None else x + bias


@mutant(
    "M106",
    "the variance of the norms divided by n − 1",
    clause="AT-1",
    why="torch's and R's var are unbiased by default",
)
def unbiased() -> Steps:
    """Σ(x − μ)² / (n − 1)."""

    def norm(original: Any, x: Any, weight: Any, bias: Any, epsilon: float, kind: str = "layer_norm") -> Any:
        if kind != "layer_norm":
            return original(x, weight, bias, epsilon, kind)
        n = x.shape[-1]
        centred = x - np.mean(x, axis=-1, keepdims=True)
        variance = np.sum(np.square(centred), axis=-1, keepdims=True) / (n - 1)
        return _affine(centred / np.sqrt(variance + epsilon), weight, bias, kind)

    return each(_NORMS, norm)


@mutant(
    "M104",
    "an RMS norm in the place of a layer norm, or the other way round",
    clause="AT-1",
    why="the other kind of norm; T5 calls its RMS norm LayerNorm",
)
def other_norm() -> Steps:
    """The mean is subtracted where it should not be, or not where it should."""

    def norm(original: Any, x: Any, weight: Any, bias: Any, epsilon: float, kind: str = "layer_norm") -> Any:
        if kind == "layer_norm":
            return ops.rms_norm(x, weight, bias, epsilon)
        return ops.layer_norm(x, 1.0 + weight if kind == "rms_norm_plus_one" else weight, bias, epsilon)

    return each(_NORMS, norm)


@mutant(
    "M105",
    "Gemma's norms multiply by the weight, not by one more",
    clause="AT-7",
    why="as LLaMA's do; GGUF's files hold 1 + weight",
)
def weight_alone() -> Steps:
    """`x · w` instead of `x · (1 + w)`."""

    def norm(original: Any, x: Any, weight: Any, bias: Any, epsilon: float, kind: str = "layer_norm") -> Any:
        return original(x, weight, bias, epsilon, "rms_norm" if kind == "rms_norm_plus_one" else kind)

    return each(_NORMS, norm)


@mutant("M107", "the biases of the norms left out", clause="AT-1", why="LLaMA's norms have none")
def no_norm_bias() -> Steps:
    """`x · w`."""

    def norm(original: Any, x: Any, weight: Any, bias: Any, epsilon: float, **kind: str) -> Any:
        return original(x, weight, None, epsilon, **kind)

    return each(_NORMS, norm)


def _left_out(x: Any, *args: Any, **kind: Any) -> Any:
    return x


@mutant("M114", "queries and keys not normed", clause="AT-7", why="Qwen3's code taken from Qwen2's")
def no_query_key_norm() -> Steps:
    """Queries and keys as they are projected."""
    return {"attention.query_norm": _left_out, "attention.key_norm": _left_out}


@mutant("M116", "the last norm left out", clause="AT-5", why="the stack's output handed to the head as it is")
def no_final_norm() -> Steps:
    """The last layer's output."""
    return {"decoder.final_norm": _left_out}


@mutant(
    "M117",
    "the norm of the embeddings left out",
    clause="PO-2",
    why="GPT-2 has none; BLOOM, BERT and BART have",
)
def no_embeddings_norm() -> Steps:
    """The embeddings as they are."""
    return {"decoder.embeddings_norm": _left_out}


@mutant(
    "M123",
    "Gemma's norms behind attention and network left out",
    clause="AT-7",
    why="LLaMA's layer has two norms, Gemma-2's four",
)
def no_output_norms() -> Steps:
    """Attention's and the network's output as they are."""
    return {"block.attention_output_norm": _left_out, "block.mlp_output_norm": _left_out}


_OTHER_GELU = {
    "gelu": "gelu_new", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "bloom_gelu": "gelu",
    "gelu_python": "gelu_new", "gelu_accurate": "gelu", "gelu_python_tanh": "gelu",
}  # fmt: skip


def _with_activation(choose: Any) -> Steps:
    def activated(original: Any, *args: Any) -> Any:
        return original(*args[:-1], choose(args[-1]))

    return each(_ACTIVATIONS, activated)


@mutant(
    "M101",
    "the other gelu: erf for tanh, or tanh for erf",
    clause="AT-5",
    why="five functions are called GELU",
    seen="frameworks whose default is the other one",
)
def other_gelu() -> Steps:
    """The exact one where HF has the approximation, and the other way round."""
    return _with_activation(lambda name: _OTHER_GELU.get(name, name))


@mutant("M113", "relu in the place of the network's activation", clause="AT-5", why="hidden_act not read")
def relu_in_the_network() -> Steps:
    """`max(x, 0)`."""
    return _with_activation(lambda name: "relu")


@mutant(
    "M110", "silu in the place of the network's gelu", clause="AT-7", why="Gemma's code taken from LLaMA's"
)
def silu_in_the_network() -> Steps:
    """`x · σ(x)` where HF has a gelu."""
    return _with_activation(lambda name: "silu" if name in _OTHER_GELU else name)


@mutant(
    "M109",
    "the activation on the wrong one of the gated network's two maps",
    clause="AT-7",
    why="gate and up exchanged",
)
def gate_exchanged() -> Steps:
    """`gate ⊙ activation(up)`."""

    def activated(original: Any, hidden: Any, gate: Any, up: Any, name: str) -> Any:
        return original(hidden, up, gate, name)

    return each(_ACTIVATIONS[1:], activated)


@mutant("M115", "the biases of the network left out", clause="AT-5", why="LLaMA's network has none")
def no_network_bias() -> Steps:
    """Products alone."""

    def up(original: Any, hidden: Any, weight: Any, bias: Any, name: str) -> Any:
        return original(hidden, weight, None, name)

    def down(original: Any, activated: Any, weight: Any, bias: Any) -> Any:
        return original(activated, weight, None)

    return {**each(_ACTIVATIONS[:1], up), **each(("mlp.output",), down)}


@mutant(
    "M118",
    "no token types",
    clause="PO-2",
    why="types are all 0 and look as if they added nothing; row 0 of their table does",
)
def no_token_types() -> Steps:
    """Embeddings and positions alone."""

    def typed(original: Any, embeds: Any, types: Any, ids: Any, table: Any, position_ids: Any) -> Any:
        return original(embeds, 0.0 * types, ids, table, position_ids)

    return each(("encoder.typed_embeddings",), typed)


MUTANTS: tuple[Mutant, ...] = (
    smaller_epsilon,
    epsilon_outside,
    unbiased,
    other_norm,
    weight_alone,
    no_norm_bias,
    no_query_key_norm,
    no_final_norm,
    no_embeddings_norm,
    no_output_norms,
    other_gelu,
    relu_in_the_network,
    silu_in_the_network,
    gate_exchanged,
    no_network_bias,
    no_token_types,
)
