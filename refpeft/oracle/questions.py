"""The table of everything a port can be asked, and refpeft's own answers to it.

A question has a name, a level, the methods it is for, and the answers without which it is not answered. `answer` runs
the specification; there is no other copy of the maths. The port protocol (specs/protocol.md) says in words what each
question gives and wants.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from refpeft import (
    arrays,
    checkpoint,
    generation,
    masks,
    peft_model,
    prefix_encoder,
    prompt_embedding,
)
from refpeft.arrays import Array
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.decoding import as_generation_config
from refpeft.errors import ConfigError, InputError
from refpeft.fill_in import fill_in
from refpeft.oracle import trajectory
from refpeft.steps import recording, scope
from refpeft.torch_random import Generator, embedding, linear
from refpeft.transformer import block, rotary, stack
from refpeft.transformer.weights import WEIGHTS_FILE, BaseModel, load_base_model, word_embeddings

LEVELS = ("config", "components", "model", "gradients", "training", "generation", "checkpoint")
"""From the least that a port can do to the most."""
PROMPT, PREFIX, COMMON = "prompt_tuning", "prefix_tuning", "common"
METHODS = (PROMPT, PREFIX)

INPUTS = (
    "input_ids", "attention_mask", "labels", "position_ids", "token_type_ids", "decoder_input_ids",
    "decoder_attention_mask", "start_positions", "end_positions",
)  # fmt: skip
"""What a caller may give a model, over all task types."""
_BEFORE_LAYERS = (
    r"(embeddings|typed_embeddings|embeddings_\w+|visible|sliding_visible|cross_visible|alibi|relative_bias)"
)
_INPUT_STAGE = re.compile(rf"(inputs|prompt)\..*|(encoder|decoder)\.{_BEFORE_LAYERS}")
PARAMETERS, GRADIENTS = "parameters.", "gradients."
"""What stands before HF's parameter names in inputs and answers."""
OUTPUTS = r"logits|pooled_logits|token_logits|start_logits|end_logits|last_hidden_state|pooler_output"
"""What comes out of the head, by task type."""
TOKENS = "sequences"
"""The tensor of generated tokens."""


@dataclass(frozen=True)
class Arithmetic:
    """In which numbers refpeft answers."""

    dtype: str = "float64"
    """NumPy's name of the format."""
    wrap: Callable[[Any], Any] = lambda array: array
    """Puts each floating-point input into another kind of array (one that rounds, say)."""
    unwrap: Callable[[Any], Any] = lambda array: array
    """Takes answers out of it."""
    lazy: bool = False
    """The base model's matrices stay in their file, as those of a large one always do."""
    into: Callable[[str, Any], None] | None = None
    """Is handed each stage as it is computed (`steps.recording`); else stages are kept and answered together."""

    def take(self, array: Any) -> Array:
        """A floating-point input in this arithmetic; integers and booleans unchanged."""
        return self.wrap(array.astype(self.dtype)) if array.dtype.kind not in "iub" else array  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Ask:
    """One question, as a port gets it."""

    question: str
    method: str
    config: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    model: Path | None = None
    adapter: Path | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Answer:
    """What came back: tensors by name, a JSON document, a directory with an adapter."""

    tensors: Mapping[str, Any] = field(default_factory=dict)
    document: Any = None
    adapter: Path | None = None


LARGE = 2**27
"""Bytes of a base model's file from which its matrices stay in it."""


@functools.lru_cache(maxsize=8)
def loaded_base(directory: Path, lazy: bool = False) -> BaseModel:
    """A base model, read once however often it is asked about; see `load_base_model`."""
    return load_base_model(directory, lazy=lazy)


def _base(directory: Path, arithmetic: Arithmetic) -> BaseModel:
    weights = directory / WEIGHTS_FILE
    return loaded_base(directory, arithmetic.lazy or (weights.is_file() and weights.stat().st_size > LARGE))


def _model(ask: Ask, arithmetic: Arithmetic) -> BaseModel:
    if ask.model is None:
        raise InputError(f"The question {ask.question!r} needs a base model.")
    return _base(ask.model, arithmetic).map(arithmetic.take)


def _config(ask: Ask) -> PromptLearningConfig:
    if ask.config is None:
        raise InputError(f"The question {ask.question!r} needs an adapter configuration.")
    return PromptLearningConfig.from_dict(dict(ask.config))


def _parameters(ask: Ask, arithmetic: Arithmetic) -> dict[str, Array]:
    return {
        name.removeprefix(PARAMETERS): arithmetic.take(value)
        for name, value in ask.inputs.items()
        if name.startswith(PARAMETERS)
    }


def is_input_stage(name: str) -> bool:
    """Whether a stage shows what the base model is given, before the first layer."""
    return _INPUT_STAGE.fullmatch(name) is not None


def _text(ask: Ask) -> dict[str, Array | None]:
    return {name: ask.inputs[name] for name in INPUTS if name in ask.inputs}


def _forward(ask: Ask, arithmetic: Arithmetic) -> Answer:
    with recording(arithmetic.into) as stages:
        peft_model.forward(_parameters(ask, arithmetic), _model(ask, arithmetic), _config(ask), **_text(ask))  # type: ignore[arg-type]
    return Answer(stages)


def _inputs(ask: Ask, arithmetic: Arithmetic) -> Answer:
    stages = _forward(ask, arithmetic).tensors
    return Answer({name: value for name, value in stages.items() if is_input_stage(name)})


def _gradients(ask: Ask, arithmetic: Arithmetic) -> Answer:
    base, config, text = _model(ask, arithmetic), _config(ask), _text(ask)

    def loss(parameters: Mapping[str, Array]) -> Array:
        value = peft_model.forward(parameters, base, config, **text).loss  # type: ignore[arg-type]
        if value is None:
            raise InputError("The question 'gradients' needs labels, or start_positions and end_positions.")
        return value

    with recording(arithmetic.into) as stages:
        _, gradients = arrays.value_and_grad(loss, _parameters(ask, arithmetic))
    return Answer({**stages, **{GRADIENTS + name: value for name, value in gradients.items()}})


def _training(ask: Ask, arithmetic: Arithmetic) -> Answer:
    base, config = _model(ask, arithmetic), _config(ask)
    return Answer(trajectory.train(_parameters(ask, arithmetic), base, config, ask.inputs, ask.arguments))


def _generate(ask: Ask, arithmetic: Arithmetic) -> Answer:
    text = {name: value for name, value in _text(ask).items() if name in ("input_ids", "attention_mask")}
    given = _parameters(ask, arithmetic), _model(ask, arithmetic), _config(ask)
    with recording() as stages, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # right padding may be what the question is about
        generation.generate(*given, **text, options=as_generation_config(dict(ask.arguments)))  # type: ignore[arg-type]
    return Answer(stages)


def _prefix_encode(ask: Ask, arithmetic: Arithmetic) -> Answer:
    config = _config(ask)
    if not isinstance(config, PrefixTuningConfig):
        raise InputError("The question 'prefix.encode' is about prefix tuning.")
    with recording(arithmetic.into) as stages:
        windows = ask.arguments.get("sliding_windows", ())
        prefix_encoder.forward(_parameters(ask, arithmetic), config, ask.arguments["batch_size"], windows)
    return Answer(stages)


def _attention(ask: Ask, arithmetic: Arithmetic) -> Answer:
    """One layer's self-attention: positions go on from those of the prefix, for those that turn by them."""
    base, layer = _model(ask, arithmetic), int(ask.arguments["layer"])
    name = ask.arguments.get("stack", "encoder" if base.config.kind == "encoder" else "decoder")
    config, parameters = base.config.stack(name), base.parameters
    if config.kind == "encoder_decoder":
        parameters = stack.stack_parameters(parameters, name)
    given = {key: arithmetic.take(value) for key, value in ask.inputs.items()}
    past = (given["past.key"], given["past.value"]) if "past.key" in given else None
    rotation = None
    if config.rotary:
        before = 0 if past is None else past[0].shape[2]
        ids = arrays.arange(given["hidden"].shape[1], like=given["hidden"])[None] + before
        rotation = rotary.angles(config.rotary[layer], ids, given["hidden"])
    around = block.Surroundings(ask.inputs["visible"], rotation)
    with recording(arithmetic.into) as stages, scope(stack=name, layer=layer):
        own = stack.layer_parameters(parameters, layer)
        block.self_attention(own, config, layer, given["hidden"], past, around)
    return Answer(stages)


def _mask(ask: Ask, arithmetic: Arithmetic) -> Answer:
    mask, arguments = ask.inputs.get("attention_mask"), ask.arguments
    prepared = masks.prepare_attention_mask(arguments["batch_size"], mask, arguments["num_virtual_tokens"])
    return Answer({"inputs.attention_mask": prepared})


def _init(ask: Ask, arithmetic: Arithmetic) -> Answer:
    config, generator, like = _config(ask), Generator(ask.arguments["seed"]), numpy.zeros(0, arithmetic.dtype)
    if isinstance(config, PrefixTuningConfig):
        parameters = prefix_encoder.initial_parameters(config, generator, like)
    else:
        assert isinstance(config, PromptTuningConfig)  # noqa: S101  (the two classes there are)
        base = _model(ask, Arithmetic(arithmetic.dtype))
        tokenizer = ask.arguments.get("tokenizer")
        if tokenizer:
            from dataclasses import replace

            config = replace(config, tokenizer_name_or_path=str(tokenizer))
        parameters = prompt_embedding.initial_parameters(
            config,
            generator,
            lambda ids: word_embeddings(base, ids[None, :])[0],
            base.config.vocab_size,
            like,
        )
    return Answer({PARAMETERS + name: value for name, value in parameters.items()})


def _random(ask: Ask, arithmetic: Arithmetic) -> Answer:
    generator, drawn = Generator(ask.arguments["seed"]), {}
    for i, draw in enumerate(ask.arguments["draws"]):
        match draw:
            case {"kind": "normal", "shape": shape}:
                drawn[f"draws.{i}"] = generator.normal(tuple(shape))
            case {"kind": "uniform", "shape": shape}:
                drawn[f"draws.{i}"] = generator.uniform(tuple(shape))
            case {"kind": "randint", "low": low, "high": high, "shape": shape}:
                drawn[f"draws.{i}"] = generator.randint(low, high, tuple(shape))
            case {"kind": "embedding", "rows": rows, "columns": columns}:
                drawn[f"draws.{i}.weight"] = embedding(generator, rows, columns)
            case {"kind": "linear", "inputs": inputs, "outputs": outputs}:
                weight, bias = linear(generator, inputs, outputs)
                drawn[f"draws.{i}.weight"], drawn[f"draws.{i}.bias"] = weight, bias
            case _:
                raise InputError(f"Unknown draw {draw}.")
    return Answer(drawn)


def _resolve(ask: Ask, arithmetic: Arithmetic) -> Answer:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown keys are part of the question
            config = PromptLearningConfig.from_dict(dict(ask.arguments["config"]))
        if ask.arguments.get("base_config") is not None:
            config = fill_in(config, ask.arguments["base_config"])
    except ConfigError as error:
        return Answer(document={"rejected": True, "message": str(error)})
    return Answer(document={"config": config.to_dict()})


def _load(ask: Ask, arithmetic: Arithmetic) -> Answer:
    if ask.adapter is None:
        raise InputError("The question 'checkpoint.load' needs an adapter directory.")
    if ask.model is None:
        raise InputError("The question 'checkpoint.load' needs a base model.")
    base = _base(ask.model, arithmetic)
    model = peft_model.PeftModel.from_pretrained(base, ask.adapter)
    parameters = {name: arithmetic.take(value) for name, value in model.parameters().items()}
    with recording(arithmetic.into) as stages:
        peft_model.forward(parameters, base.map(arithmetic.take), model.config, **_text(ask))  # type: ignore[arg-type]
    return Answer(stages)


def _save(ask: Ask, arithmetic: Arithmetic) -> Answer:
    parameters, config = _parameters(ask, arithmetic), _config(ask)
    if ask.output is not None:
        checkpoint.save(ask.output / "adapter", config, parameters)
        return Answer(adapter=ask.output / "adapter")
    heads = {name: value for name, value in parameters.items() if name.startswith(checkpoint.HEAD)}
    return Answer({**heads, checkpoint.TENSOR: checkpoint.prompt_embeddings(parameters, config)})


@dataclass(frozen=True)
class Question:
    """One row of the table."""

    name: str
    level: str
    methods: tuple[str, ...]
    required: tuple[str, ...]
    """Patterns of the expected tensors that an answer must have; others are welcome for localisation."""
    definition: Callable[[Ask, Arithmetic], Answer]
    title: str


QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        Question("config.resolve", "config", METHODS, (), _resolve, "fill an adapter_config.json in, or reject it"),
        Question("random", "components", (COMMON,), (r"draws\..*",), _random, "torch's CPU random streams"),
        Question("init", "components", METHODS, (r"parameters\..*",), _init, "initial values from a seed or a text"),
        Question("mask", "components", (COMMON,), (r"inputs\..*",), _mask, "the mask over virtual and real tokens"),
        Question(
            "prefix.encode", "components", (PREFIX,), (r"prefix\.layers\..*",), _prefix_encode,
            "virtual tokens to each layer's keys and values",
        ),
        Question(
            "inputs", "components", METHODS,
            (r"inputs\.(decoder_)?(attention_mask|labels|position_ids|embeddings|token_type_ids|input_ids)",), _inputs,
            "what the base model is given: embeddings, mask, labels, positions",
        ),
        Question(
            "attention", "components", (COMMON,), (r".*\.attention\.output",), _attention,
            "one attention layer with a prefix",
        ),
        Question("forward", "model", METHODS, (OUTPUTS, "loss"), _forward, "logits, or what the task gives, and loss"),
        Question(
            "gradients", "gradients", METHODS, ("loss", r"gradients\..*"), _gradients,
            "the loss and its gradient for each trainable parameter",
        ),
        Question(
            "training", "training", METHODS, (r"training\.losses", r"trained\..*"), _training,
            "steps of AdamW: losses, and the parameters after the last",
        ),
        Question("generate", "generation", METHODS, (TOKENS,), _generate, "tokens, chosen greedily or with beams"),
        Question("checkpoint.load", "checkpoint", METHODS, (OUTPUTS,), _load, "read an adapter that HF peft wrote"),
        Question("checkpoint.save", "checkpoint", METHODS, ("prompt_embeddings", r"base_model\..*"), _save, "write one that HF peft reads"),
    )
}  # fmt: skip
"""Every question by name, from the least to the most."""


def answer(ask: Ask, arithmetic: Arithmetic | None = None) -> Answer:
    """Refpeft's own answer, every stage included, in the order of computation."""
    arithmetic = arithmetic or Arithmetic()
    given = QUESTIONS[ask.question].definition(ask, arithmetic)
    return Answer(
        {name: arithmetic.unwrap(t) for name, t in given.tensors.items()}, given.document, given.adapter
    )


def is_required(question: str, tensor: str) -> bool:
    """Whether an answer without that tensor is incomplete."""
    return any(re.fullmatch(pattern, tensor) for pattern in QUESTIONS[question].required)
