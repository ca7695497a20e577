"""The norms: each its own step, all of the model's kind, with the weights that there are."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from support import tiny_model

from refpeft import ops
from refpeft.steps import STEPS, kernels, recording, scope
from refpeft.transformer import norms

X = numpy.random.default_rng(3).normal(size=(2, 3, 15))
P = {"n.weight": numpy.linspace(0.5, 2.0, 15), "n.bias": numpy.linspace(-1.0, 1.0, 15)}
NAMES = {
    "block.input_norm": "{stack}.layers.{layer}.input_norm",
    "block.post_attention_norm": "{stack}.layers.{layer}.post_attention_norm",
    "block.post_cross_attention_norm": "{stack}.layers.{layer}.post_cross_attention_norm",
    "block.attention_output_norm": "{stack}.layers.{layer}.attention_output_norm",
    "block.mlp_output_norm": "{stack}.layers.{layer}.mlp_output_norm",
    "block.output_norm": "{stack}.layers.{layer}.output",
    "attention.query_norm": "{stack}.layers.{layer}.attention.query_norm",
    "attention.key_norm": "{stack}.layers.{layer}.attention.key_norm",
    "decoder.embeddings_norm": "{stack}.embeddings_norm",
    "decoder.final_norm": "{stack}.final_norm",
}


def test_names_and_stages() -> None:
    found = {
        name: STEPS[name].stage for name in STEPS if name.endswith("_norm") and not name.startswith("clip")
    }
    assert {name: stage for name, stage in found.items() if name in NAMES} == NAMES
    assert all(STEPS[name].definition.__doc__ for name in NAMES)


@pytest.mark.parametrize(
    ("family", "kind"), [("gpt2", "layer_norm"), ("llama", "rms_norm"), ("gemma", "rms_norm_plus_one")]
)
def test_a_norm_is_of_the_model_s_kind(family: str, kind: str) -> None:
    config = tiny_model(family).config
    with scope(stack="decoder", layer=1), recording() as stages:
        y = norms.apply(norms.input_norm, X, P, "n", config)
    with kernels():
        expected = ops.NORMS[kind](X, P["n.weight"], P["n.bias"], config.norm_epsilon)
    numpy.testing.assert_array_equal(y, expected)
    numpy.testing.assert_array_equal(stages["decoder.layers.1.input_norm"], expected)


@pytest.mark.parametrize("weights", [{}, {"n.weight": P["n.weight"]}])
def test_a_norm_may_have_no_weights(weights: dict[str, Any]) -> None:
    config = tiny_model("opt").config
    y = norms.apply(norms.final_norm.__wrapped__, X, weights, "n", config)  # type: ignore[attr-defined]
    plain = (X - X.mean(axis=-1, keepdims=True)) / numpy.sqrt(X.var(axis=-1, keepdims=True) + 1e-5)
    numpy.testing.assert_allclose(y, plain * weights.get("n.weight", 1.0), rtol=1e-13)


def test_the_epsilon_is_the_model_s() -> None:
    for epsilon in (1e-5, 0.5):
        config = tiny_model("gpt2", layer_norm_epsilon=epsilon).config
        y = norms.apply(norms.final_norm.__wrapped__, X, {}, "n", config)  # type: ignore[attr-defined]
        numpy.testing.assert_allclose(y.var(axis=-1), X.var(axis=-1) / (X.var(axis=-1) + epsilon), rtol=1e-13)
