"""Every family, wiring, task and method: on arrays that never pass the host, in float32, and against central differences."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from foreign import Foreign, fetch
from support import (
    ASKED,
    MODELS,
    VIRTUAL,
    outputs_of,
    relative_error,
    tasks_of,
    tiny_adapter,
    tiny_model,
    tiny_question,
)

from refpeft import arrays, steps, task_inputs, tasks
from refpeft.arrays import Parameters
from refpeft.config import PromptLearningConfig
from refpeft.peft_model import PeftModel
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.weights import BaseModel

EVERY = pytest.mark.parametrize(("name", "task"), ASKED, ids=[f"{name}: {task}" for name, task in ASKED])
BOTH = pytest.mark.parametrize("method", ["prompt", "projected"])
"""Without a projection a prefix takes the same steps but three."""
ROUNDING = 1e-12
"""Gradients below it are sums of rounding: of a bias of both ends of an answer, which their softmax does not see."""


def made(name: str, method: str, task: str) -> PeftModel:
    family, changes = MODELS[name]
    return tiny_adapter(tiny_model(family, **changes), method, task)


def asked(model: PeftModel, *, masked: bool) -> dict[str, Any]:
    return task_inputs.checked(model.base.config, model.config, tiny_question(model, masked=masked))


def scalar(
    base: BaseModel, config: PromptLearningConfig, parameters: Parameters, inputs: dict[str, Any]
) -> Any:
    """The loss; of features, the sum of their cubes: that of squares is constant behind a norm without weights."""
    output = tasks.forward(parameters, base, config, **inputs)
    if output.last_hidden_state is None:
        return output.loss
    features = [x for x in (output.last_hidden_state, output.pooler_output) if x is not None]
    cubes = [arrays.sum(x * x * x) for x in features]
    return cubes[0] if len(cubes) == 1 else cubes[0] + cubes[1]


def run(base: BaseModel, config: PromptLearningConfig, parameters: Parameters, inputs: dict[str, Any]) -> Any:
    """Outputs, stages, the scalar, its gradients."""
    with steps.recording() as stages:
        output = tasks.forward(parameters, base, config, **inputs)
    value, gradients = arrays.value_and_grad(lambda p: scalar(base, config, p, inputs), parameters)
    return output, stages, value, gradients


def seen(stage: Any, like: Any) -> Any:
    """A stage without its masked scores, which are the most negative number plus something."""
    return (
        numpy.where(numpy.asarray(like) < -1e30, 0, stage) if numpy.asarray(like).dtype.kind == "f" else stage
    )


@BOTH
@EVERY
def test_on_foreign_arrays(name: str, task: str, method: str) -> None:
    model = made(name, method, task)
    parameters = model.trainable_parameters()
    for masked in (True, False) if task == tasks_of(model.base.config.family)[0] else (True,):
        inputs = asked(model, masked=masked)
        with steps.kernels():
            expected = run(model.base, model.config, parameters, inputs)
        foreign = run(
            model.base.map(Foreign),
            model.config,
            {key: Foreign(value) for key, value in parameters.items()},
            {key: Foreign(value) for key, value in inputs.items()},
        )
        given_outputs, outputs = outputs_of(foreign[0]), outputs_of(expected[0])
        assert list(given_outputs) == list(outputs)
        for key, output in outputs.items():
            assert relative_error(fetch(given_outputs[key]), output) < 1e-15, key
        for pair, other in zip(fetch(foreign[0].past_key_values), expected[0].past_key_values, strict=True):
            assert all(relative_error(*states) < 1e-15 for states in zip(pair, other, strict=True))
        assert list(foreign[1]) == list(expected[1])
        for key, stage in fetch(foreign[1]).items():
            assert (
                relative_error(seen(stage, expected[1][key]), seen(expected[1][key], expected[1][key]))
                < 1e-14
            ), key
        assert relative_error(fetch(foreign[2]), expected[2]) < 1e-14
        for key, gradient in fetch(foreign[3]).items():
            if numpy.abs(expected[3][key]).max() > ROUNDING:
                assert relative_error(gradient, expected[3][key]) < 1e-13, key


NO_FLOATS = {
    "position_ids": "int64", "labels": "int64", "token_type_ids": "int64", "decoder_input_ids": "int64", "visible": "bool",
    "attention_mask": "float32",
}  # fmt: skip
"""What stages are in, by the end of their names, whatever the model is in."""


def float32_tolerance(config: ModelConfig) -> float:
    """As `identities.model_cases.ModelCase.tolerance`, with float32's distance between numbers; both stacks, if there are two."""
    width = config.num_attention_heads * config.head_dim
    length = 6 * config.hidden_size + width + config.intermediate_size + config.head_dim + VIRTUAL + 7
    stacks = 2 if config.kind == "encoder_decoder" else 1
    return float(numpy.finfo("float32").eps) * config.num_layers * stacks * length


@BOTH
@EVERY
def test_float32_stays(name: str, task: str, method: str) -> None:
    model = made(name, method, task)
    base = model.base.map(lambda x: x.astype("float32"))
    parameters = {key: value.astype("float32") for key, value in model.trainable_parameters().items()}
    inputs, tolerance = asked(model, masked=True), float32_tolerance(base.config)
    wide = run(
        base.map(lambda x: x.astype("float64")),
        model.config,
        {key: value.astype("float64") for key, value in parameters.items()},
        inputs,
    )
    output, stages, value, gradients = run(base, model.config, parameters, inputs)
    untouched = None  # the mask of the stack that gets no virtual tokens is the caller's
    if base.config.kind == "encoder_decoder":
        untouched = f"inputs.{'decoder_' if method == 'prompt' else ''}attention_mask"
    for key, stage in stages.items():
        dtype = next((dtype for end, dtype in NO_FLOATS.items() if key.endswith(end)), "float32")
        dtype = "int64" if key == untouched else dtype
        assert stage.dtype == numpy.dtype(dtype), key
    for key, own in outputs_of(output).items():
        assert own.dtype == numpy.float32
        assert relative_error(own, outputs_of(wide[0])[key]) < tolerance, key
    assert value.dtype == numpy.float32
    assert {states.dtype for pair in output.past_key_values for states in pair} == {numpy.dtype("float32")}
    assert {gradient.dtype for gradient in gradients.values()} == {numpy.dtype("float32")}
    together = [
        numpy.concatenate([gradient.ravel() for gradient in of.values()]) for of in (gradients, wide[3])
    ]
    assert relative_error(*together) < 3 * tolerance  # some are differences of what nearly cancels


@BOTH
@EVERY
def test_gradients_are_central_differences(name: str, task: str, method: str) -> None:
    """In one direction through all parameters of a kind; ReLU's corners are nowhere near."""
    model, random, step = made(name, method, task), numpy.random.default_rng(3), 1e-5
    parameters, inputs = model.trainable_parameters(), asked(model, masked=True)
    _, gradients = arrays.value_and_grad(lambda p: scalar(model.base, model.config, p, inputs), parameters)
    assert list(gradients) == list(parameters)
    size = numpy.sqrt(sum(float((gradient * gradient).sum()) for gradient in gradients.values()))
    for key, value in parameters.items():
        direction = random.normal(size=value.shape)
        direction /= numpy.linalg.norm(direction)
        sides = [
            float(
                scalar(model.base, model.config, {**parameters, key: value + sign * step * direction}, inputs)
            )
            for sign in (1, -1)
        ]
        difference = (sides[0] - sides[1]) / (2 * step)
        assert abs(float((gradients[key] * direction).sum()) - difference) <= 1e-6 * max(
            size, abs(difference)
        ), key
