"""The base models of the golden vectors: small GPT-2s whose axes all have different sizes, and one tokenizer.

Weights are drawn from fixed seeds and rounded to bfloat16, so that ports in any format start from the same numbers.
They are larger than HF's initial ones (standard deviation 0.02 makes logits nearly flat and hides mistakes): linear
maps 1.5/√inputs, embeddings 0.5, norm weights around 1, biases 0.3. None is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

LICENSE = Path(__file__).resolve().parent.parent / "LICENSE"
"""The text that the tokenizer is trained on: it does not change."""
TOKENS = 280
"""256 bytes, two special tokens, and the merges."""


@dataclass(frozen=True)
class Model:
    """How one base model is made."""

    seed: int
    config: dict[str, Any]
    """Arguments of `GPT2Config`."""
    tokenizer: bool = False
    """Whether the tokenizer stands beside it."""


_SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

MODELS: dict[str, Model] = {
    # An odd number of layers, tied head, an inner width of its own.
    "gpt2-odd": Model(
        20001,
        {"vocab_size": 293, "n_positions": 47, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 34, **_SPECIAL},
        tokenizer=True,
    ),
    # An even number, untied head, inner width 4 · hidden, scores scaled by the layer as well, another epsilon.
    "gpt2-even": Model(
        20002,
        {
            "vocab_size": 53, "n_positions": 41, "n_embd": 12, "n_layer": 6, "n_head": 4, "n_inner": None,
            "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-4,
            **_SPECIAL,
        },
    ),
    # Multiples of 32, for kernels that need alignment.
    "gpt2-aligned": Model(
        20003,
        {"vocab_size": 128, "n_positions": 160, "n_embd": 64, "n_layer": 3, "n_head": 2, "n_inner": 96, **_SPECIAL},
    ),
}  # fmt: skip
"""Every base model by the name of its directory."""


def on_grid(tensor: torch.Tensor) -> torch.Tensor:
    """The nearest bfloat16 values, in float32; none of them zero."""
    rounded = tensor.to(torch.bfloat16).to(torch.float32)
    assert bool((rounded != 0).all()), "a drawn value is zero: take another seed"
    return rounded


def make_model(name: str, directory: Path) -> None:
    """Write the model `name` as a plain HF directory."""
    recipe = MODELS[name]
    model = GPT2LMHeadModel(GPT2Config(**recipe.config))
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(on_grid(_scaled(key, drawn)))
    model.save_pretrained(directory)
    if recipe.tokenizer:
        make_tokenizer(directory)


def _scaled(name: str, drawn: torch.Tensor) -> torch.Tensor:
    module, kind = name.rsplit(".", 1)
    if kind == "bias":
        return drawn * 0.3
    if module.rsplit(".", 1)[-1].startswith("ln_"):
        return 1.0 + drawn * 0.25
    if module.endswith(("wte", "wpe", "lm_head")):
        return drawn * 0.5
    return drawn * (1.5 / math.sqrt(drawn.shape[0]))  # GPT-2's Conv1D: inputs × outputs


def make_tokenizer(directory: Path) -> None:
    """Train a byte-level BPE on the licence, which puts <s> before each text and </s> behind it, and save it."""
    tokenizer = Tokenizer(models.BPE())
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
