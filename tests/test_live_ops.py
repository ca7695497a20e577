"""Every activation, norm and loss against torch's and transformers' own, values and gradients. Needs the extra `golden`."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import need

from refpeft import arrays, ops

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = need("torch")
need("transformers")

import hf  # noqa: E402  (golden/hf.py; needs torch)
from transformers import activations as hf_activations  # noqa: E402
from transformers.loss import loss_utils  # noqa: E402
from transformers.models.bloom.modeling_bloom import BloomGelu  # noqa: E402
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402
from transformers.models.t5.modeling_t5 import T5LayerNorm  # noqa: E402

TOLERANCE = 1e-14
"""Normwise, of numbers below one absolutely: the rounding of some ten operations in float64."""
POINTS = numpy.concatenate(
    [numpy.linspace(-12, 12, 997), numpy.linspace(-1e-3, 1e-3, 11), [0.0, 6.0, -40.0, 40.0, -1e4, 1e4]]
)
RANDOM = numpy.random.default_rng(23)


def theirs(function: Callable[..., Any], *differentiated: Any) -> list[Any]:
    """HF's value and, for each array, the gradient of the value's sum weighted entry by entry."""
    tensors = [torch.tensor(array, requires_grad=True) for array in differentiated]
    with hf.True64():
        value = function(*tensors)
    gradients = torch.autograd.grad((value * weights(value)).sum(), tensors)
    return [value.detach().numpy(), *(gradient.numpy() for gradient in gradients)]


def ours(function: Callable[..., Any], *differentiated: Any) -> list[Any]:
    """The same of refpeft's."""
    names = [str(i) for i in range(len(differentiated))]

    def scalar(p: Any) -> Any:
        value = function(*(p[name] for name in names))
        return arrays.sum(value * weights(value).numpy())

    _, gradients = arrays.value_and_grad(scalar, dict(zip(names, differentiated, strict=True)))
    return [function(*differentiated), *gradients.values()]


def weights(value: Any) -> Any:
    return torch.cos(torch.arange(numpy.prod(value.shape, dtype=int), dtype=torch.float64)).reshape(
        tuple(value.shape)
    )


def assert_same(function: Callable[..., Any], hf_function: Callable[..., Any], *differentiated: Any) -> None:
    """Values and gradients alike; NaN where HF has NaN."""
    found, expected = ours(function, *differentiated), theirs(hf_function, *differentiated)
    for given_array, wanted in zip(found, expected, strict=True):
        assert numpy.shape(given_array) == wanted.shape
        numpy.testing.assert_array_equal(numpy.isnan(given_array), numpy.isnan(wanted))
        error = numpy.linalg.norm(numpy.nan_to_num(given_array - wanted))
        assert error <= TOLERANCE * max(1.0, float(numpy.linalg.norm(numpy.nan_to_num(wanted))))


@pytest.mark.parametrize("name", [*ops.ACTIVATIONS, "bloom_gelu"])
def test_activations(name: str) -> None:
    """Entry by entry, for large numbers relatively."""
    function = ops.activation(name)
    hf_function = BloomGelu() if name == "bloom_gelu" else hf_activations.ACT2FN[name]
    found, expected = ours(function, POINTS), theirs(hf_function, POINTS)
    for given_array, wanted in zip(found, expected, strict=True):
        assert (numpy.abs(given_array - wanted) / numpy.maximum(numpy.abs(POINTS), 1.0) ** 2).max() < 1e-15
    assert_same(function, hf_function, POINTS[:997])
    assert_same(function, hf_function, numpy.array([numpy.nan, 1.0]))


@pytest.mark.parametrize(
    "name", ["layer_norm", "no affine", "no bias", "rms_norm", "T5", "rms_norm_plus_one"]
)
def test_norms(name: str) -> None:
    x, weight, bias = RANDOM.normal(size=(2, 3, 7)) * 4 + 1, RANDOM.normal(size=7), RANDOM.normal(size=7)
    functional = torch.nn.functional.layer_norm
    if name == "layer_norm":
        assert_same(
            lambda *a: ops.layer_norm(*a, 1e-5),
            lambda x, w, b: functional(x, (7,), w, b, 1e-5),
            x,
            weight,
            bias,
        )
    elif name == "no bias":
        hf_function = lambda x, w: functional(x, (7,), w, None, 1e-5)  # noqa: E731
        assert_same(lambda x, w: ops.layer_norm(x, w, None, 1e-5), hf_function, x, weight)
    elif name == "no affine":
        module = torch.nn.LayerNorm(7, elementwise_affine=False)
        assert_same(lambda x: ops.layer_norm(x, None, None, 1e-5), module, x)
    else:
        module = {"rms_norm": LlamaRMSNorm, "T5": T5LayerNorm, "rms_norm_plus_one": GemmaRMSNorm}[name](
            7, eps=1e-2
        )
        norm = ops.NORMS["rms_norm" if name == "T5" else name]

        def hf_norm(x: Any, weight: Any) -> Any:
            return torch.func.functional_call(module, {"weight": weight}, (x,))

        assert_same(lambda x, w: norm(x, w, None, 1e-2), hf_norm, x, weight)


def test_softcap() -> None:
    x = RANDOM.normal(size=(3, 5)) * 40
    assert_same(lambda x: ops.softcap(x, 30.0), lambda x: torch.tanh(x / 30.0) * 30.0, x)


@given(st.data())
def test_losses(data: st.DataObject) -> None:
    """Of HF's own functions; labels that do not count, none that counts, positions outside the text."""
    batch, tokens, classes = (
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(1, 5)),
        data.draw(st.integers(1, 4)),
    )
    random = numpy.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lowest = data.draw(st.sampled_from([0, -1]))
    labels = random.integers(lowest * classes, classes, (batch, tokens))
    labels[labels < 0] = -100
    logits, pooled = (
        random.normal(size=(batch, tokens, classes)) * 5,
        random.normal(size=(batch, classes)) * 5,
    )
    rows, kept = torch.tensor(labels), torch.tensor(labels[:, 0])
    soft = random.uniform(size=(batch, classes))
    positions = random.integers(-3, tokens + 3, (2, batch))
    config = SimpleNamespace(num_labels=classes, problem_type=None)

    def classified(kind: str, labels: Any) -> Callable[..., Any]:
        config.problem_type = kind
        return lambda x: loss_utils.ForSequenceClassificationLoss(labels, x, config)

    assert_same(
        lambda x: ops.loss("causal_lm", x, labels),
        lambda x: loss_utils.ForCausalLMLoss(x, rows, classes),
        logits,
    )
    for kind in ("seq2seq", "token_classification"):
        assert_same(
            lambda x, kind=kind: ops.loss(kind, x, labels),
            lambda x: loss_utils.ForTokenClassification(x, rows, config),
            logits,
        )
    for kind, ours_labels, hf_labels in (
        ("single_label_classification", labels[:, 0], kept),
        ("multi_label_classification", soft, torch.tensor(soft)),
        ("regression", soft, torch.tensor(soft)),
    ):
        assert_same(
            lambda x, labels=ours_labels, kind=kind: ops.loss("sequence_classification", x, labels, kind),
            classified(kind, hf_labels),
            pooled,
        )
    starts, ends = torch.tensor(positions)
    assert_same(
        lambda a, b: ops.loss("question_answering", a, b, *positions),
        lambda a, b: loss_utils.ForQuestionAnsweringLoss(a, b, starts, ends),
        logits[..., 0], logits[..., -1].copy(),
    )  # fmt: skip
