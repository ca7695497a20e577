"""Inputs of the golden vectors: drawn from a recipe's seed in float64, then put on the bfloat16 grid.

The parameters of a few cases leave the grid again: they find ports that round to half precision.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from hf import Tensors, trainable
from models import on_grid
from peft import PeftModel
from recipes import Recipe, Text

from refpeft.oracle.questions import PROMPT

PADDING = (0, 3, 1, 4, 2)
"""How many positions of each row are padding; a single row has 2."""


def draw(generator: torch.Generator, scale: float, *shape: int) -> torch.Tensor:
    """Normals of standard deviation `scale`, on the grid."""
    return on_grid(torch.randn(shape, generator=generator, dtype=torch.float64) * scale)


def draw_parameters(recipe: Recipe, model: PeftModel, generator: torch.Generator) -> Tensors:
    """Trainable values under HF's names: large enough to show mistakes, zero only where the recipe says so."""
    zeroed = recipe.config is not None and recipe.config.get("init_weights") == "zero"
    names = trainable(model)
    projected = any("transform" in name for name in names)
    drawn: Tensors = {}
    for name, parameter in names.items():
        scale = 0.7 if recipe.method == PROMPT else 1.0
        if "transform" in name or not name.startswith("prompt_encoder."):
            scale = 0.3 if name.endswith("bias") else 1.4 / math.sqrt(parameter.shape[1])
        tensor = draw(generator, scale, *parameter.shape)
        if not recipe.on_grid:
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor = (tensor.double() * (1 + 2**-8 * noise)).float()
        if zeroed and name.startswith("prompt_encoder.") and ("transform.2" in name or not projected):
            tensor = torch.zeros_like(tensor)
        drawn[name] = tensor
    return drawn


def padding_mask(text: Text) -> torch.Tensor:
    """1 for tokens and 0 for padding, on the side that the recipe says."""
    return _mask(text.batch, text.tokens, text.padding, text.most_padding)


def _mask(batch: int, tokens: int, padding: str, most: int = max(PADDING)) -> torch.Tensor:
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    for row, count in enumerate(min(count, most) for count in (PADDING[:batch] if batch > 1 else (2,))):
        if padding == "left":
            mask[row, :count] = 0
        elif padding == "right" and count:
            mask[row, -count:] = 0
    return mask


def draw_text(text: Text, vocabulary: int, generator: torch.Generator) -> Tensors:
    """Token ids, and the mask, labels and positions that the recipe gives. Padding never counts in the loss."""
    mask = padding_mask(text)
    ids = torch.randint(0, vocabulary, (text.batch, text.tokens), generator=generator)
    if text.pad is not None:
        ids = ids.masked_fill(ids == text.pad, text.pad + 1).masked_fill(mask == 0, text.pad)
        return {"input_ids": ids}
    drawn = {"input_ids": ids}
    if text.padding:
        drawn["attention_mask"] = mask.to(torch.bool) if text.boolean else mask
    if text.labels in ("all", "some"):
        drawn["labels"] = _without_padding(ids, mask, text.labels)
    if text.positions == "cumsum":
        drawn["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    elif text.positions == "given":
        steps = torch.arange(text.tokens).flip(0)
        drawn["position_ids"] = torch.stack([steps + 2 * row for row in range(text.batch)])
    return drawn


def _without_padding(labels: torch.Tensor, mask: torch.Tensor, which: str) -> torch.Tensor:
    """Labels of all tokens that are no padding, or of some of them."""
    labels = labels.masked_fill(mask == 0, -100)
    if which == "some":
        labels[:, :3] = -100
        labels[0, labels.shape[1] - 2] = -100
    return labels


def draw_inputs(recipe: Recipe, config: Any, generator: torch.Generator) -> Tensors:
    """What a forward pass of the recipe's task is given, for a base model of HF's configuration `config`."""
    assert recipe.text
    text, task_type = recipe.text, recipe.task_type
    drawn = draw_text(text, config.vocab_size, generator)
    mask = padding_mask(text)
    if text.pads:
        pad = config.pad_token_id
        ids = drawn["input_ids"]
        drawn["input_ids"] = ids.masked_fill(ids == pad, pad + 1).masked_fill(mask == 0, pad)
        if "labels" in drawn:
            drawn["labels"] = torch.where(drawn["labels"] < 0, drawn["labels"], drawn["input_ids"])
    if text.token_types:
        first = torch.arange(text.batch)[:, None] + 2
        drawn["token_type_ids"] = (torch.arange(text.tokens)[None] >= first).long()
    if task_type == "SEQ_2_SEQ_LM":
        drawn |= _draw_decoder(text, config.vocab_size, generator)
    elif task_type != "CAUSAL_LM" and text.labels:
        drawn |= _draw_labels(recipe, config.num_labels, generator)
    return drawn


def _draw_decoder(text: Text, vocabulary: int, generator: torch.Generator) -> Tensors:
    """What the decoder is given: labels that it makes its tokens of, or tokens."""
    shape = (text.batch, text.decoder_tokens)
    mask = _mask(*shape, text.decoder_padding)
    drawn: Tensors = {}
    if text.labels:
        labels = torch.randint(0, vocabulary, shape, generator=generator)
        drawn["labels"] = _without_padding(labels, mask, text.labels)
    if text.decoder_ids:
        drawn["decoder_input_ids"] = torch.randint(0, vocabulary, shape, generator=generator)
    if text.decoder_padding:
        drawn["decoder_attention_mask"] = mask
    return drawn


def _draw_labels(recipe: Recipe, classes: int, generator: torch.Generator) -> Tensors:
    """Labels of the tasks that are no language modelling."""
    assert recipe.text
    text, virtual = recipe.text, (recipe.config or {}).get("num_virtual_tokens", 0)
    match text.labels:
        case "all" | "some":
            labels = torch.randint(0, classes, (text.batch, text.tokens), generator=generator)
            labels = _without_padding(labels, padding_mask(text), text.labels)
            if recipe.method == PROMPT:  # HF wants labels of the virtual tokens as well
                labels = torch.cat([torch.full((text.batch, virtual), -100), labels], dim=1)
            return {"labels": labels}
        case "classes":
            return {"labels": torch.randint(0, classes, (text.batch,), generator=generator)}
        case "numbers":
            return {
                "labels": draw(generator, 1.0, *((text.batch,) if classes == 1 else (text.batch, classes)))
            }
        case "shares":
            shares = torch.rand((text.batch, classes), generator=generator, dtype=torch.float64)
            return {"labels": on_grid(0.05 + 0.9 * shares)}
    first = torch.randint(0, text.tokens - 2, (text.batch,), generator=generator)
    last = first + torch.randint(0, 3, (text.batch,), generator=generator)
    if text.labels == "spans-outside":
        last[-1] = text.tokens + 3
    return {"start_positions": first, "end_positions": last}
