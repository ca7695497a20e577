"""Makes the base models of the golden vectors (`model_table`), and one tokenizer.

Weights are drawn from fixed seeds and rounded to bfloat16, so that ports in any format start from the same numbers.
They are larger than HF's initial ones (standard deviation 0.02 makes logits nearly flat and hides mistakes): linear
maps 1.5/√inputs, embeddings 0.5, norm weights around 1 (Gemma's, which add 1, around 0), biases 0.3. None is zero.
A directory may hold the parameters of several of HF's classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from model_table import LM, MODELS, Model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

LICENSE = Path(__file__).resolve().parent.parent / "LICENSE"
"""The text that the tokenizer is trained on: it does not change."""
TOKENS = 280
"""256 bytes, two special tokens, and the merges."""
_TABLES = (
    "wte", "wpe", "lm_head", "embed_tokens", "embed_positions", "embed_in", "embed_out", "word_embeddings", "shared",
    "position_embeddings", "token_type_embeddings",
)  # fmt: skip
"""Embeddings, and the heads that are tied to them."""


def on_grid(tensor: torch.Tensor) -> torch.Tensor:
    """The nearest bfloat16 values, in float32; none of them zero."""
    rounded = tensor.to(torch.bfloat16).to(torch.float32)
    assert bool((rounded != 0).all()), "a drawn value is zero: take another seed"
    return rounded


def make_model(name: str, directory: Path) -> None:
    """Write the model `name` as a plain HF directory."""
    recipe = MODELS[name]
    if recipe.config["model_type"] == "gpt2" and recipe.classes == (LM,):
        _make_as_saved(recipe, directory)
    else:
        _make_merged(recipe, directory)
    if recipe.tokenizer:
        make_tokenizer(directory)


def _make_as_saved(recipe: Model, directory: Path) -> None:
    """What HF saves of the one class."""
    model = AutoModelForCausalLM.from_config(_config(recipe))
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(_drawn(model.config, key, parameter.shape, generator))
    model.save_pretrained(directory)


def _make_merged(recipe: Model, directory: Path) -> None:
    """The parameters of all classes in one file; what two of them share has one value."""
    config = _config(recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    models = [kind.from_config(_config(recipe)) for kind in recipe.classes]
    shapes = [(key, tensor.shape) for model in models for key, tensor in _stored(model)]
    if _is_t5_1_1(recipe):  # HF makes it with the head tied, but reads another head where a file has one
        shapes.append(("lm_head.weight", models[0].shared.weight.shape))
    merged: dict[str, torch.Tensor] = {}
    for key, shape in shapes:
        if key not in merged:
            merged[key] = _drawn(config, key, shape, generator)
        assert merged[key].shape == shape, f"{key} has two shapes"
    directory.mkdir(parents=True, exist_ok=True)
    stored = torch.bfloat16 if recipe.half else torch.float32
    save_file(
        {key: tensor.to(stored) for key, tensor in merged.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    config.architectures, config.dtype = [type(models[0]).__name__], stored
    config.save_pretrained(directory)
    if _is_t5_1_1(recipe):  # HF writes that it is tied
        path = directory / "config.json"
        written = {**json.loads(path.read_text()), "tie_word_embeddings": False}
        path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def _is_t5_1_1(recipe: Model) -> bool:
    return recipe.config["model_type"] == "t5" and recipe.config.get("tie_word_embeddings") is False


def _config(recipe: Model) -> Any:
    return AutoConfig.for_model(**recipe.config)


def _stored(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers that HF would save, under the names that a class with a head has for them."""
    headless = model.base_model is model and type(model).__name__.endswith("Model")
    prefix = model.base_model_prefix + "." if headless else ""
    stored = model.state_dict()
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if key in stored and tensor.is_floating_point():
            yield prefix + key, tensor


def _drawn(config: Any, name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return on_grid(_scaled(config, name, drawn))


def _scaled(config: Any, name: str, drawn: torch.Tensor) -> torch.Tensor:
    family, (*modules, kind) = config.model_type, name.split(".")
    module = modules[-1] if modules else ""
    if "bias" in kind:
        return drawn * 0.3
    if module.startswith("ln_") or "norm" in module.lower():
        return drawn * 0.25 + (0.0 if family.startswith("gemma") else 1.0)
    if module == "relative_attention_bias":
        return drawn
    if module in _TABLES:
        return drawn * 0.5
    inputs = drawn.shape[0 if family == "gpt2" and "h" in modules else 1]  # GPT-2's Conv1D: inputs × outputs
    if family == "t5" and module == "q":  # T5 does not divide its scores by the root of head_dim
        inputs *= config.d_kv
    return drawn * (1.5 / math.sqrt(inputs))


def make_tokenizer(directory: Path) -> None:
    """Train a byte-level BPE on the licence, which puts <s> before each text and </s> behind it, and save it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([LICENSE.read_text(encoding="utf-8")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")  # noqa: S106
    fast.save_pretrained(directory)
    _check_tokenizer(directory, "Licensed under the Apache License, Version 2.0")


def _check_tokenizer(directory: Path, text: str) -> None:
    """HF's AutoTokenizer and the tokenizers library must agree, special tokens included."""
    hf = AutoTokenizer.from_pretrained(str(directory))(text)["input_ids"]
    plain = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids
    assert hf == plain, f"AutoTokenizer gives {hf}, tokenizers {plain}"
    assert hf[0] == 0, "the first token is not <s>"
    assert hf[-1] == 1, "the last token is not </s>"
