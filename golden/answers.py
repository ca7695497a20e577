"""Asks HF each question: inputs drawn from the recipe's seed, answers in true float64, and again in plain float32."""

from __future__ import annotations

import inspect
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from draws import draw, draw_inputs, draw_parameters, draw_text, padding_mask
from hf import (
    Tensors,
    arithmetic,
    keep_prefix,
    load_base,
    results,
    set_parameters,
    trainable,
    watched,
    without_adapter,
)
from peft import (
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.utils.other import _prepare_prompt_learning_config
from recipes import Recipe
from sizes import axis_sizes
from stages import ordered
from training import draw_batches, train
from transformers import AutoConfig, AutoTokenizer, DynamicCache
from watch import Watch
from watch_base import watched_attention

from refpeft.oracle.questions import INPUTS, PREFIX, PROMPT, is_input_stage

CONFIGS = {PROMPT: PromptTuningConfig, PREFIX: PrefixTuningConfig}
EMBEDDING = "prompt_encoder.embedding.weight"


@dataclass
class Answer:
    """What HF answers to a recipe, and what it was asked."""

    inputs: Tensors = field(default_factory=dict)
    double: Tensors = field(default_factory=dict)
    """In true float64, in the order of computation."""
    single: Tensors = field(default_factory=dict)
    """The same in plain float32."""
    config: dict[str, Any] | None = None
    """The adapter's configuration as HF fills it in and writes it."""
    model: Any = None
    """HF's configuration of the base model."""
    document: dict[str, Any] | None = None
    arguments: dict[str, Any] | None = None
    """The port's arguments, where they are not the recipe's."""
    adapter: dict[str, bytes] = field(default_factory=dict)


def answer(recipe: Recipe) -> Answer:
    """HF's answer. The current directory must be that of the base models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # dropped positions, unknown keys: part of what is asked
        return _QUESTIONS[recipe.question](recipe)


def _adapted(recipe: Recipe, dtype: torch.dtype = torch.float32) -> PeftModel:
    config = CONFIGS[recipe.method](task_type=recipe.task_type, **(recipe.config or {}))
    return get_peft_model(load_base(str(recipe.model), dtype, recipe.task_type), config).to(dtype).eval()


def _written(config: PeftConfig) -> dict[str, Any]:
    """The adapter_config.json that HF writes."""
    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        values: dict[str, Any] = json.loads(Path(directory, "adapter_config.json").read_text())
        return values


def _described(recipe: Recipe, model: PeftModel) -> Answer:
    return Answer(config=_written(model.peft_config["default"]), model=model.get_base_model().config)


def _text_of(inputs: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Tensors:
    text = {name: inputs[name] for name in INPUTS if name in inputs}
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in text.items()}


def _run(model: PeftModel, inputs: Tensors, dtype: torch.dtype, gradients: bool) -> Tensors:
    """One forward pass of an adapted model, every stage kept; and one back, if gradients are wanted."""
    with arithmetic(dtype), watched(model, inputs["input_ids"].shape[0]) as seen:
        output = model(**_text_of(inputs, dtype))
        seen |= results(output, model.active_peft_config.task_type)
        if gradients:
            output.loss.backward()
    if gradients:
        for name, parameter in trainable(model).items():
            seen["gradients." + name] = _gradient(name, parameter.grad.detach())
    return ordered(seen)


def _gradient(name: str, gradient: torch.Tensor) -> torch.Tensor:
    """HF's gradient; nothing but zeros where it is nothing but rounding.

    The bias of the head that marks answers moves the logits of all positions alike, and softmax does not see that.
    """
    if not name.endswith("qa_outputs.bias"):
        return gradient
    assert gradient.abs().max() < 16 * torch.finfo(gradient.dtype).eps, (
        f"the gradient of {name} is no rounding"
    )
    return torch.zeros_like(gradient)


def _forward(recipe: Recipe) -> Answer:
    """`inputs`, `forward` and `gradients`: one pass through the adapted model."""
    assert recipe.text
    generator = torch.Generator().manual_seed(recipe.seed)
    model = _adapted(recipe)
    result = _described(recipe, model)
    parameters = draw_parameters(recipe, model, generator)
    text = draw_inputs(recipe, model.get_base_model().config, generator)
    result.inputs = {**{"parameters." + name: value for name, value in parameters.items()}, **text}
    for dtype in (torch.float64, torch.float32):
        model = _adapted(recipe, dtype)
        set_parameters(model, parameters)
        stages = _run(model, result.inputs, dtype, recipe.question == "gradients")
        if recipe.question == "inputs":
            stages = {name: tensor for name, tensor in stages.items() if is_input_stage(name)}
        _store(result, dtype, stages)
    return result


def _store(result: Answer, dtype: torch.dtype, tensors: Tensors) -> None:
    if dtype is torch.float64:
        result.double = tensors
    else:
        result.single = tensors


def _prefix_encode(recipe: Recipe) -> Answer:
    generator = torch.Generator().manual_seed(recipe.seed)
    model = _adapted(recipe)
    result = _described(recipe, model)
    parameters = draw_parameters(recipe, model, generator)
    result.inputs = {"parameters." + name: value for name, value in parameters.items()}
    batch_size = recipe.arguments["batch_size"]
    for dtype in (torch.float64, torch.float32):
        model = _adapted(recipe, dtype)
        set_parameters(model, parameters)
        with arithmetic(dtype), watched(model, batch_size) as seen:
            keep_prefix(model.get_prompt(batch_size), batch_size, seen.__setitem__)
        detached = {name: tensor.detach() for name, tensor in seen.items()}
        _store(result, dtype, ordered(detached))
    return result


def _attention(recipe: Recipe) -> Answer:
    """One decoder layer's attention, given normed hidden states, a cache that holds the prefix, and HF's additive mask.

    Rotary positions go on from those of the prefix. Biases of positions (ALiBi, T5) are not asked about.
    """
    assert recipe.text
    assert recipe.config
    text, virtual = recipe.text, recipe.config["num_virtual_tokens"]
    generator = torch.Generator().manual_seed(recipe.seed)
    config = load_base(str(recipe.model), torch.float32).config
    sizes = axis_sizes(config)
    inputs = {"hidden": draw(generator, 1.0, text.batch, text.tokens, sizes["hidden"])}
    for half in ("key", "value") if virtual else ():
        inputs[f"past.{half}"] = draw(
            generator, 1.0, text.batch, sizes["kv_heads"], virtual, sizes["head_dim"]
        )
    causal = torch.ones(text.tokens, virtual + text.tokens, dtype=torch.bool).tril(virtual)
    keys = torch.cat([torch.ones(text.batch, virtual, dtype=torch.int64), padding_mask(text)], dim=1)
    inputs["visible"] = causal[None] & (keys != 0)[:, None, :]
    result = Answer(inputs=inputs, model=config)
    for dtype in (torch.float64, torch.float32):
        _store(result, dtype, _attend(recipe, inputs, dtype))
    return result


def _attend(recipe: Recipe, inputs: Tensors, dtype: torch.dtype) -> Tensors:
    layer, hidden = recipe.arguments["layer"], inputs["hidden"].to(dtype)
    base, cache, past = load_base(str(recipe.model), dtype), DynamicCache(), 0
    if "past.key" in inputs:
        past = inputs["past.key"].shape[2]
        cache.update(inputs["past.key"].to(dtype), inputs["past.value"].to(dtype), layer)
    minimum = torch.finfo(dtype).min
    mask = torch.zeros(inputs["visible"].shape, dtype=dtype).masked_fill(~inputs["visible"], minimum)
    watch = Watch(base, hidden.shape[0])
    with arithmetic(dtype), watched_attention(watch, layer) as attention:
        accepted = inspect.signature(attention.forward).parameters
        assert "alibi" not in accepted, f"{recipe.model}: what is added for ALiBi is not given"
        given: dict[str, Any] = {"past_key_values": cache, "layer_past": cache}
        if hasattr(base.base_model, "rotary_emb"):
            positions = torch.arange(past, past + hidden.shape[1])[None]
            types = (
                getattr(base.config, "layer_types", None) if base.config.model_type == "gemma3_text" else None
            )
            given["position_embeddings"] = base.base_model.rotary_emb(
                hidden, positions, *([types[layer]] if types else [])
            )
        given = {name: value for name, value in given.items() if name in accepted}
        attention(hidden, attention_mask=mask[:, None], **given)
    kept = {name: tensor for name, tensor in watch.seen.items() if ".attention." in name}
    return ordered(kept)


def _mask(recipe: Recipe) -> Answer:
    """The mask that PEFT hands the base model; any model and method that has as many virtual tokens would do."""
    assert recipe.text
    generator = torch.Generator().manual_seed(recipe.seed)
    text = draw_text(recipe.text, 53, generator)
    asked = Recipe(
        PREFIX, "", "", "", "", "gpt2-even", {"num_virtual_tokens": recipe.arguments["num_virtual_tokens"]}
    )
    stages = _run(_adapted(asked, torch.float64), text, torch.float64, gradients=False)
    name = "inputs.attention_mask"
    return Answer({"attention_mask": text["attention_mask"]}, {name: stages[name]}, {name: stages[name]})


def _init(recipe: Recipe) -> Answer:
    config = CONFIGS[recipe.method](task_type=recipe.task_type, **(recipe.config or {}))
    base = load_base(
        str(recipe.model), torch.float64, recipe.task_type
    )  # PEFT keeps rows in float32 all the same
    torch.manual_seed(recipe.arguments["seed"])
    model = get_peft_model(base, config)
    result = _described(recipe, model)
    for name, parameter in model.named_parameters():
        if name.startswith("prompt_encoder."):
            result.double["parameters." + without_adapter(name)] = parameter.detach().double()
    result.single = result.double
    if "tokenizer" in recipe.arguments:
        ids = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path)(config.prompt_tuning_init_text)
        result.inputs["text_token_ids"] = torch.tensor(ids["input_ids"])
    return result


def _random(recipe: Recipe) -> Answer:
    result = Answer()
    torch.manual_seed(recipe.arguments["seed"])
    for i, asked in enumerate(recipe.arguments["draws"]):
        match asked["kind"]:
            case "normal":
                result.double[f"draws.{i}"] = torch.empty(asked["shape"]).normal_()
            case "uniform":
                result.double[f"draws.{i}"] = torch.empty(asked["shape"]).uniform_()
            case "randint":
                result.double[f"draws.{i}"] = torch.randint(asked["low"], asked["high"], asked["shape"])
            case "embedding":
                result.double[f"draws.{i}.weight"] = torch.nn.Embedding(
                    asked["rows"], asked["columns"]
                ).weight.detach()
            case "linear":
                layer = torch.nn.Linear(asked["inputs"], asked["outputs"])
                result.double[f"draws.{i}.weight"] = layer.weight.detach()
                result.double[f"draws.{i}.bias"] = layer.bias.detach()
    result.double = {n: t.double() if t.is_floating_point() else t for n, t in result.double.items()}
    result.single = result.double
    return result


def _resolve(recipe: Recipe) -> Answer:
    """HF's own reading of an adapter_config.json, its rule for the base model's sizes, and the rule of submodules.

    The base is a configuration of HF's own class; the port gets the config.json that HF saves of it. The rule of
    submodules is one line of `PeftModel._setup_prompt_encoder`, which only runs on a whole model.
    """
    given, base = recipe.arguments["base_config"], None
    arguments = dict(recipe.arguments)
    with tempfile.TemporaryDirectory() as directory:
        if given is not None:
            base = AutoConfig.for_model(**given)
            base.save_pretrained(directory)
            arguments["base_config"] = json.loads(Path(directory, "config.json").read_text())
        Path(directory, "adapter_config.json").write_text(json.dumps(recipe.arguments["config"]))
        try:
            config = PeftConfig.from_pretrained(directory)
            config = config if base is None else _prepare_prompt_learning_config(config, base)
        except (ValueError, TypeError, KeyError):
            return Answer(document={"rejected": True}, arguments=arguments)
    if base is not None and config.num_transformer_submodules is None:
        config.num_transformer_submodules = 2 if config.task_type == "SEQ_2_SEQ_LM" else 1
    return Answer(document={"config": _written(config)}, arguments=arguments)


def _load(recipe: Recipe) -> Answer:
    """An adapter that HF trains in float32 and saves; then HF loads it into a float64 base.

    The last bits of what is saved depend on the CPU. A recipe that has a stored adapter loads that one instead.
    """
    assert recipe.text
    generator = torch.Generator().manual_seed(recipe.seed)
    model = _adapted(recipe)
    set_parameters(model, draw_parameters(recipe, model, generator))
    result = _described(recipe, model)
    result.config = None  # the port reads it in the adapter
    result.inputs = draw_inputs(recipe, model.get_base_model().config, generator)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            result.adapter[name] = Path(directory, name).read_bytes()
        for dtype in (torch.float64, torch.float32):
            base = load_base(str(recipe.model), dtype, recipe.task_type)
            loaded = PeftModel.from_pretrained(base, recipe.adapter or directory).to(dtype).eval()
            _store(result, dtype, _run(loaded, result.inputs, dtype, gradients=False))
    return result


def _save(recipe: Recipe) -> Answer:
    generator = torch.Generator().manual_seed(recipe.seed)
    model = _adapted(recipe)
    result = _described(recipe, model)
    parameters = draw_parameters(recipe, model, generator)
    result.inputs = {"parameters." + name: value for name, value in parameters.items()}
    for dtype in (torch.float64, torch.float32):
        model = _adapted(recipe, dtype)
        set_parameters(model, parameters)
        with arithmetic(dtype):
            _store(result, dtype, dict(get_peft_model_state_dict(model)))
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        result.document = {"config": json.loads(Path(directory, "adapter_config.json").read_text())}
    return result


def _training(recipe: Recipe) -> Answer:
    assert recipe.text
    generator = torch.Generator().manual_seed(recipe.seed)
    model = _adapted(recipe)
    result = _described(recipe, model)
    parameters = draw_parameters(recipe, model, generator)
    result.arguments = dict(recipe.arguments)
    count = result.arguments.pop("micro_batches")
    text = draw_batches(recipe.text, count, model.get_base_model().config.vocab_size, generator)
    result.inputs = {**{"parameters." + name: value for name, value in parameters.items()}, **text}
    for dtype in (torch.float64, torch.float32):
        model = _adapted(recipe, dtype)
        set_parameters(model, {name: value.clone() for name, value in parameters.items()})
        _store(result, dtype, train(model, result.inputs, result.arguments, dtype))
    return result


def _generate(recipe: Recipe) -> Answer:
    from generation import answer_generate  # which needs this module

    return answer_generate(recipe)


_QUESTIONS: dict[str, Callable[[Recipe], Answer]] = {
    "config.resolve": _resolve,
    "random": _random,
    "init": _init,
    "mask": _mask,
    "prefix.encode": _prefix_encode,
    "inputs": _forward,
    "attention": _attention,
    "forward": _forward,
    "gradients": _forward,
    "training": _training,
    "generate": _generate,
    "checkpoint.load": _load,
    "checkpoint.save": _save,
}
