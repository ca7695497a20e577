"""Kernels are their definitions, faster: values and gradients, in both formats, alone, in every family, and on HF's vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import (
    ASKED,
    MODELS,
    outputs_of,
    relative_error,
    tiny_adapter,
    tiny_model,
    tiny_question,
)
from threadpoolctl import threadpool_limits

from refpeft import (
    activations,
    arrays,
    attention,
    generation,
    kernels,
    language_model,
    ops,
    shared_prompt,
    steps,
    task_inputs,
    tasks,
    threads,
    token_scores,
)
from refpeft.arrays import Parameters
from refpeft.config import PromptLearningConfig
from refpeft.generation_config import as_generation_config
from refpeft.oracle import questions
from refpeft.oracle.cases import ask_of
from refpeft.oracle.questions import GRADIENTS, Arithmetic, Ask
from refpeft.oracle.vectors import Vector, all_vectors
from refpeft.peft_model import get_peft_model
from refpeft.transformer import block, heads

Numbers = Any
EXACT = {"float64": 1e-13, "float32": 3e-5}
"""Relative: some hundred roundings."""
SEEDS = st.integers(0, 2**32 - 1)
FORMATS = st.sampled_from(["float64", "float32"])


@pytest.fixture(autouse=True)
def _whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiny models take the ways of large ones: prompts shared, losses in pieces, rows in two threads."""
    monkeypatch.setattr(shared_prompt, "WORTH", 0)
    monkeypatch.setattr(threads, "WORTH", 0)
    monkeypatch.setattr(language_model, "AT_ONCE", 100)
    monkeypatch.setattr(kernels, "BLOCK", 5)
    with threadpool_limits(2):
        yield


def counted(name: str) -> tuple[list[str], Callable[..., Any]]:
    """A kernel that keeps a list of its calls; one that does not serve its arguments is not called, so to speak."""
    calls: list[str] = []
    own = steps.KERNELS[name]

    def run(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        if result is not NotImplemented:
            calls.append(name)
        return result

    return calls, run


# ---------------------------------------------------------------- one by one


def agrees(function: Callable[..., Any], name: str, inputs: dict[str, Numbers], **options: Any) -> None:
    """Value and gradients of Σ g ⊙ f against the definition's, and the formats of both; the kernel was called."""
    calls, run = counted(name)
    random = numpy.random.default_rng(7)

    def scalar(traced: Parameters) -> Any:
        y = function(**traced, **options)
        return arrays.sum(y * random.normal(0.0, 1.0, y.shape).astype(y.dtype))

    def result() -> tuple[Any, ...]:
        nonlocal random
        random = numpy.random.default_rng(7)
        return function(**inputs, **options), *arrays.value_and_grad(scalar, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(steps.KERNELS, name, run)
        value, loss, gradients = result()
        assert calls == [name, name]
    with steps.kernels():
        expected, expected_loss, expected_gradients = result()
    dtype = next(iter(inputs.values())).dtype
    assert value.dtype == expected.dtype == dtype
    assert value.shape == expected.shape
    assert relative_error(value, expected) <= EXACT[dtype.name]
    assert abs(loss - expected_loss) <= EXACT[dtype.name] * max(1.0, float(numpy.abs(expected).sum()))
    for key, gradient in gradients.items():
        assert gradient.dtype == dtype
        assert gradient.shape == inputs[key].shape
        assert relative_error(gradient, expected_gradients[key]) <= EXACT[dtype.name]


@given(SEEDS, FORMATS, st.integers(1, 3), st.sampled_from([1, 4, 70]), st.booleans(), st.booleans())
def test_linear(seed: int, dtype: str, batch: int, rows: int, biased: bool, transposed: bool) -> None:
    random = numpy.random.default_rng(seed)
    weight = random.normal(0.0, 1.0, (5, 3)).astype(dtype)
    weight = numpy.asfortranarray(weight) if transposed else weight
    bias = random.normal(0.0, 1.0, 5).astype(dtype) if biased else None
    agrees(
        ops.linear,
        "ops.linear",
        {"x": random.normal(0.0, 1.0, (batch, rows, 3)).astype(dtype)},
        weight=weight,
        bias=bias,
    )


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
@given(SEEDS, FORMATS, st.booleans(), st.booleans())
def test_norms(name: str, seed: int, dtype: str, weighted: bool, biased: bool) -> None:
    random = numpy.random.default_rng(seed)
    weight, bias = (random.normal(0.0, 1.0, 6).astype(dtype) for _ in range(2))
    agrees(
        getattr(ops, name),
        f"ops.{name}",
        {"x": random.normal(1.0, 2.0, (2, 3, 6)).astype(dtype)},
        weight=weight if weighted else None,
        bias=bias if biased else None,
        epsilon=1e-5,
    )


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "silu"])
@given(SEEDS, FORMATS, st.floats(0.01, 30.0))
def test_activations(name: str, seed: int, dtype: str, spread: float) -> None:
    x = numpy.random.default_rng(seed).normal(0.0, spread, (3, 7)).astype(dtype)
    agrees(getattr(activations, name), f"activations.{name}", {"x": x})


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "silu"])
def test_a_single_number_keeps_its_shape(name: str) -> None:
    function = getattr(activations, name)
    value, gradients = arrays.value_and_grad(lambda p: function(p["x"]), {"x": numpy.array(1.0)})
    assert numpy.shape(value) == gradients["x"].shape == ()


@given(
    SEEDS, FORMATS, st.integers(1, 3), st.integers(1, 3), st.integers(0, 4), st.integers(1, 5), st.booleans()
)
def test_dot_product_attention(
    seed: int, dtype: str, kv_heads: int, group: int, virtual: int, tokens: int, biased: bool
) -> None:
    random = numpy.random.default_rng(seed)
    batch, head_dim, keys = 2, 3, virtual + tokens

    def draw(*shape: int) -> Numbers:
        return random.normal(0.0, 1.0, shape).astype(dtype)

    visible = random.random((batch, tokens, keys)) < 0.7
    visible[0, 0] = False  # a row that sees nothing
    options = {"bias": draw(1, kv_heads * group, 1, keys)} if biased else {}
    agrees(
        attention.dot_product_attention,
        "attention.dot_product_attention",
        {
            "query": draw(batch, kv_heads * group, tokens, head_dim),
            "key_states": draw(batch, kv_heads, keys, head_dim),
            "value_states": draw(batch, kv_heads, keys, head_dim),
        },
        visible=visible,
        scale=0.37,
        **options,
    )


@given(SEEDS, FORMATS)
def test_cross_entropy(seed: int, dtype: str) -> None:
    random = numpy.random.default_rng(seed)
    labels = numpy.where(random.random((2, 4)) < 0.5, -100, random.integers(0, 9, (2, 4)))
    labels[0, 0] = 3
    agrees(
        ops.cross_entropy,
        "ops.cross_entropy",
        {"logits": random.normal(0.0, 3.0, (2, 4, 9)).astype(dtype)},
        labels=labels,
    )


def test_where_no_label_counts_the_definition_answers() -> None:
    labels = numpy.full((2, 4), -100)
    value, gradients = arrays.value_and_grad(
        lambda p: ops.cross_entropy(p["logits"], labels), {"logits": numpy.ones((2, 4, 9))}
    )
    assert math.isnan(value)
    assert (gradients["logits"] == 0).all()


@given(SEEDS, st.integers(1, 6), st.integers(1, 4))
def test_largest(seed: int, count: int, different: int) -> None:
    """Ties included: of equal scores the first."""
    scores = numpy.random.default_rng(seed).integers(0, different, (3, 6)).astype("float64")
    with steps.kernels():
        expected = token_scores.largest(scores, count)
    numpy.testing.assert_array_equal(token_scores.largest(scores, count), expected)
    assert token_scores.largest(scores, count).dtype == numpy.int64


def test_a_trained_weight_is_left_to_the_definition() -> None:
    x, weight = numpy.ones((2, 3)), numpy.arange(6.0).reshape(2, 3)
    _, gradients = arrays.value_and_grad(
        lambda p: arrays.sum(ops.linear(x, p["weight"], None)), {"weight": weight}
    )
    numpy.testing.assert_array_equal(gradients["weight"], numpy.full((2, 3), 2.0))
    norm = {"weight": numpy.arange(3.0), "bias": numpy.ones(3)}
    _, gradients = arrays.value_and_grad(
        lambda p: arrays.sum(ops.layer_norm(x, p["weight"], p["bias"], 1e-5)), norm
    )
    numpy.testing.assert_array_equal(gradients["bias"], numpy.full(3, 2.0))


# ---------------------------------------------------------------- in every family


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize(("name", "task"), ASKED, ids=[f"{name}: {task}" for name, task in ASKED])
def test_a_model_is_the_same_with_and_without_kernels(name: str, task: str, method: str) -> None:
    """Outputs, and the loss's gradients, which the user's `value_and_grad` takes without logits."""
    family, changes = MODELS[name]
    model = tiny_adapter(tiny_model(family, **changes), method, task)
    inputs = tiny_question(model, masked=True)
    found = []
    for names in (tuple(steps.KERNELS), ()):
        with steps.kernels(*names):
            outputs = outputs_of(model(**inputs))
            gradients = model.value_and_grad(**inputs)[1] if task != "FEATURE_EXTRACTION" else {}
            found.append({**outputs, **{f"gradient of {key}": value for key, value in gradients.items()}})
    given, expected = found
    assert list(given) == list(expected)
    for key, value in expected.items():
        scale = max(
            1.0, float(numpy.abs(value).max())
        )  # gradients that are sums of rounding are about nothing
        assert numpy.abs(given[key] - value).max() <= 1e-12 * scale, key


def test_large_logits_do_not_overflow() -> None:
    logits = numpy.array([[1000.0, 990.0, -1000.0], [-1000.0, -1000.0, -1000.0]], "float32")
    value, gradients = arrays.value_and_grad(
        lambda p: ops.cross_entropy(p["logits"], numpy.array([1, 0])), {"logits": logits}
    )
    least = numpy.exp(-10.0)
    assert abs(value - (10 + numpy.log1p(least) + numpy.log(3)) / 2) < 1e-6
    expected = [[1 / (1 + least), least / (1 + least) - 1, 0], [1 / 3 - 1, 1 / 3, 1 / 3]]
    assert numpy.abs(gradients["logits"] - numpy.array(expected) / 2).max() < 1e-7


def test_a_trained_language_model_head_has_its_gradient() -> None:
    """It is no part of what the loss's kernel differentiates."""
    base = tiny_model("gpt2", tie_word_embeddings=False)
    model = get_peft_model(
        base,
        PromptLearningConfig.from_dict(
            {
                "peft_type": "PROMPT_TUNING",
                "task_type": "CAUSAL_LM",
                "num_virtual_tokens": 3,
                "modules_to_save": ["lm_head"],
            }
        ),
    )
    inputs = tiny_question(model, masked=True)
    loss, gradients = model.value_and_grad(**inputs)
    with steps.kernels():
        expected_loss, expected = model.value_and_grad(**inputs)
    assert abs(loss - expected_loss) <= 1e-14 * abs(expected_loss)
    assert {name: relative_error(gradients[name], value) <= 1e-13 for name, value in expected.items()} == {
        "base_model.lm_head.weight": True,
        "prompt_encoder.embedding.weight": True,
    }


@pytest.mark.parametrize(
    ("family", "method", "stacks"),
    [
        ("gpt2", "prompt", 1),
        ("gpt2", "prefix", 1),
        ("bert", "prompt", 1),
        ("t5", "prompt", 2),
        ("t5", "prefix", 2),
    ],
)
def test_a_training_step_takes_every_stack_in_threads(family: str, method: str, stacks: int) -> None:
    """None is asked for its cache, which would have to be differentiated too; a prompt alone is one row."""
    model = tiny_adapter(tiny_model(family), method)
    calls, run = counted("transformer.stack.forward")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(steps.KERNELS, "transformer.stack.forward", run)
        model.value_and_grad(**tiny_question(model, masked=True))
    assert len(calls) == stacks


def test_only_logits_that_count_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_adapter(tiny_model("gpt2"), "prompt", "CAUSAL_LM")
    ids = numpy.arange(14).reshape(2, 7) % model.base.config.vocab_size
    labels = numpy.where(numpy.arange(7) < 5, -100, ids)
    made: list[int] = []
    own = heads.language_model_head

    def head(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(hidden.shape[0] * hidden.shape[1])
        return own(hidden, *args, **kwargs)

    monkeypatch.setattr(heads, "language_model_head", head)
    model.value_and_grad(ids, labels)
    assert sum(made) == 4
    assert max(made) == 2  # 100 logits at once, 43 for each position


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions went through the feed-forward network of each layer, one call after the other."""
    found: list[int] = []
    own = block.feed_forward

    def feed_forward(parameters: Any, config: Any, hidden: Any) -> Any:
        found.append(hidden.shape[1])
        return own(parameters, config, hidden)

    monkeypatch.setattr(block, "feed_forward", feed_forward)
    monkeypatch.setattr(threads, "WORTH", 10**9)
    return found


@pytest.mark.parametrize(
    ("method", "ignored", "expected"),
    [
        ("prefix", 0, [7, 7, 7]),  # the first position predicts the second
        ("prefix", 5, [7, 7, 3]),  # the last two tokens, and the position that predicts the first of them
        ("prompt", 5, [4, 4, 0, 7, 7, 3]),
        ("prompt", 0, [4, 4, 1, 7, 7, 7]),  # the last virtual token predicts the first of the text
        ("prompt", 8, [4, 4, 4, 7, 7, 7]),  # none counts: NaN, as of HF
    ],
)
def test_the_last_layer_queries_where_a_label_counts(
    fed: list[int], method: str, ignored: int, expected: list[int]
) -> None:
    model = tiny_adapter(tiny_model("gpt2"), method, "CAUSAL_LM")
    ids = numpy.arange(14).reshape(2, 7) % model.base.config.vocab_size
    labels = numpy.where(numpy.arange(7) < ignored, -100, ids)
    labels[1, :6] = -100 if ignored else labels[1, :6]  # the first of any row
    given, gradients = model.value_and_grad(ids, labels)
    assert fed == expected
    with steps.kernels():
        whole, as_read = model.value_and_grad(ids, labels)
    numpy.testing.assert_allclose(given, whole, rtol=1e-13)
    for name, value in as_read.items():
        assert relative_error(gradients[name], value) <= 1e-12


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_2_SEQ_LM"])
def test_a_prefix_is_one_for_all_rows(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    """In a call, a step and in generation; whoever asks for it gets one for each row, and so does who looks inside."""
    family = {"CAUSAL_LM": "gpt2", "SEQ_2_SEQ_LM": "t5"}[task]
    model = tiny_adapter(tiny_model(family), "prefix", task)
    inputs, copies = tiny_question(model, masked=True), []
    own = shared_prompt.get_prompt

    def get_prompt(*args: Any) -> Any:
        prompt = own(*args)
        copies.append(prompt[0][0].shape[0])
        return prompt

    monkeypatch.setattr(shared_prompt, "get_prompt", get_prompt)
    output = model(**inputs)
    model.value_and_grad(**inputs)
    model.generate(ids := inputs["input_ids"], numpy.ones_like(ids), max_new_tokens=1, pad_token_id=0)
    assert copies == [1, 1, 1]
    assert {half.shape[0] for pair in output.past_key_values for half in pair} == {2}
    assert model.get_prompt(2)[0][0].shape[0] == 2
    with steps.recording() as stages:
        model(**inputs)
    assert copies == [1, 1, 1, 2]
    assert stages["prefix.layers.0.key"].shape[0] == 2


def test_the_last_layer_queries_for_the_next_token_alone(fed: list[int]) -> None:
    """And only its logits are made; with the stages that are recorded, all are."""
    model = tiny_adapter(tiny_model("gpt2"), "prefix", "CAUSAL_LM")
    ids = numpy.arange(14).reshape(2, 7) % model.base.config.vocab_size
    options = {"max_new_tokens": 2, "min_new_tokens": 2, "pad_token_id": 0}
    given = model.generate(ids, **options)
    assert fed == [7, 7, 1, 1, 1, 1]
    with steps.recording() as stages:
        numpy.testing.assert_array_equal(model.generate(ids, **options), given)
    assert fed[6:] == [7, 7, 7, 1, 1, 1]
    assert stages["logits"].shape == (2, 7, model.base.config.vocab_size)


def test_a_prompt_goes_through_the_layers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_adapter(tiny_model("gpt2"), "prompt", "CAUSAL_LM")
    ids, widths = numpy.arange(21).reshape(3, 7), []
    own = shared_prompt.stack.forward

    def forward(parameters: Any, config: Any, embeds: Any, *args: Any, **kwargs: Any) -> Any:
        widths.append(embeds.shape[:2])
        return own(parameters, config, embeds, *args, **kwargs)

    monkeypatch.setattr(shared_prompt.stack, "forward", forward)
    monkeypatch.setattr(threads, "WORTH", 10**9)
    model(ids)
    monkeypatch.setattr(shared_prompt, "WORTH", 10**9)  # too little to be gained
    model(ids)
    assert widths == [(1, 4), (3, 7), (3, 11)]


# ---------------------------------------------------------------- nobody who looks sees them


def test_stages_and_mutants_are_those_of_the_definitions() -> None:
    model = tiny_adapter(tiny_model("llama"), "prompt", "CAUSAL_LM")
    inputs = task_inputs.checked(model.base.config, model.config, tiny_question(model, masked=True))
    arguments = model.trainable_parameters(), model.base, model.config

    def stages() -> dict[str, Any]:
        with steps.recording() as found:
            tasks.forward(*arguments, **inputs)
        return found

    with_kernels = stages()
    with steps.kernels():
        without = stages()
    assert list(with_kernels) == list(without)
    for name, value in without.items():
        numpy.testing.assert_array_equal(with_kernels[name], value)
    with steps.replaced({"attention.weights": lambda scores: 0 * scores}):
        broken = tasks.forward(*arguments, **inputs).logits
    assert relative_error(broken, without["logits"]) > 0.01


def test_what_is_not_recorded_within_a_recording_runs_as_the_rest_of_it() -> None:
    """So that a replay does not change its arithmetic from the second token on."""
    calls, run = counted("ops.linear")
    x = numpy.ones((2, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(steps.KERNELS, "ops.linear", run)
        with steps.scope(stack="decoder", layer=0), steps.recording() as stages, steps.unrecorded():
            attention.output(x[None], x, None)
        assert (calls, stages) == ([], {})
        with steps.unrecorded():
            attention.output(x[None], x, None)
        assert calls == ["ops.linear"]


def test_kernels_are_named_or_refused() -> None:
    assert sorted(steps.KERNELS) == [
        "activations.gelu",
        "activations.gelu_new",
        "activations.silu",
        "attention.dot_product_attention",
        "language_model.first_made",
        "language_model.loss",
        "ops.cross_entropy",
        "ops.layer_norm",
        "ops.linear",
        "ops.rms_norm",
        "shared_prompt.forward",
        "shared_prompt.prompt_before",
        "token_scores.largest",
        "transformer.stack.forward",
    ]
    with pytest.raises(KeyError) as caught, steps.kernels("ops.linaer"):
        pass
    assert caught.value.args[0].startswith("no kernel is named ops.linaer; there are: activations.gelu, ")


def test_kernels_can_be_chosen() -> None:
    x, calls = numpy.ones((2, 3)), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(steps.KERNELS, "ops.linear", lambda *args: calls.append("linear") or NotImplemented)
        patch.setitem(steps.KERNELS, "activations.silu", lambda *args: calls.append("silu") or NotImplemented)
        with steps.kernels("activations.silu"):
            ops.linear(x, x, None)
            activations.silu(x)
    assert calls == ["silu"]


# ---------------------------------------------------------------- HF's own numbers

USED = [v for v in all_vectors() if v.case.question in ("forward", "gradients", "generate")]


def unrecorded(ask: Ask) -> dict[str, Any]:
    """What a user's call answers, kernels included: no stage is looked at."""
    arithmetic = Arithmetic()
    parameters, base = questions._parameters(ask, arithmetic), questions._model(ask, arithmetic)
    config, text = questions._config(ask), questions._text(ask)
    if ask.question == "generate":
        options = as_generation_config(dict(ask.arguments))
        text = {key: value for key, value in text.items() if key in ("input_ids", "attention_mask")}
        made = generation.generate(parameters, base, config, **text, options=options)
        named = {
            "sequences": made.sequences,
            "generation.logits": made.logits,
            "sequences_scores": made.sequences_scores,
        }
        return {name: value for name, value in named.items() if value is not None}
    if ask.question == "forward":
        outputs = outputs_of(tasks.forward(parameters, base, config, **text))
        stage = {"SEQ_CLS": "pooled_logits", "TOKEN_CLS": "token_logits"}.get(str(config.task_type), "logits")
        return {stage if name == "logits" else name: value for name, value in outputs.items()}

    def loss(traced: Parameters) -> Any:
        return tasks.forward(traced, base, config, **text, loss_alone=True).loss

    value, gradients = arrays.value_and_grad(loss, parameters)
    return {"loss": value, **{GRADIENTS + name: gradient for name, gradient in gradients.items()}}


@pytest.mark.filterwarnings("ignore:A decoder-only architecture")
@pytest.mark.parametrize("vector", USED, ids=lambda v: v.case.id.split("/", 1)[1])
def test_with_kernels_refpeft_computes_as_hf(vector: Vector) -> None:
    given = unrecorded(ask_of(vector))
    compared = 0
    for name, expected in vector.expected.items():
        if name not in given:
            continue
        compared += 1
        got = numpy.asarray(given[name])
        assert got.shape == expected.shape
        if vector.case.tensors[name].kind == "tokens":
            numpy.testing.assert_array_equal(got, expected)
        else:
            assert relative_error(got, expected) <= 1e-12, name
    assert compared
