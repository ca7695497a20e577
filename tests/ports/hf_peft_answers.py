"""What HF's models are given and what is taken from their outputs, under the questions' names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

MASKS = ("attention_mask", "decoder_attention_mask")
TEXT = (
    "input_ids",
    *MASKS,
    "labels",
    "position_ids",
    "token_type_ids",
    "decoder_input_ids",
    "start_positions",
    "end_positions",
)
"""The inputs that are no parameters."""
LOGITS = {"SEQ_CLS": "pooled_logits", "TOKEN_CLS": "token_logits"}
"""What the output `logits` is called where it is not over the vocabulary."""
OUTPUTS = ("start_logits", "end_logits", "last_hidden_state", "pooler_output", "loss")
"""Outputs that have HF's names."""


def text(inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the caller gives besides parameters; labels of a regression in the profile's numbers."""
    given = {name: inputs[name] for name in TEXT if name in inputs}
    return {k: v.to(dtype) if v.is_floating_point() and k not in MASKS else v for k, v in given.items()}


def cache_tensors(cache: Any) -> dict[str, torch.Tensor]:
    """A prefix's cache as stages; of an encoder-decoder's only self-attention has one."""
    answer = {}
    for i, layer in enumerate(getattr(cache, "self_attention_cache", cache).layers):
        answer[f"prefix.layers.{i}.key"], answer[f"prefix.layers.{i}.value"] = layer.keys, layer.values
    return answer


@contextmanager
def within_heads(model: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Within it, what passes through the parts of a classifier is kept under the stages' names."""
    kept: dict[str, torch.Tensor] = {}

    def keep_output(name: str) -> Any:
        return lambda module, given, output: kept.__setitem__(name, output)

    def keep_input(name: str) -> Any:
        return lambda module, given: kept.__setitem__(name, given[0])

    with ExitStack() as hooks:
        for path, module in model.base_model.named_modules():
            hook = None
            if path == "score":
                hook = module.register_forward_hook(keep_output("score_logits"))
            elif path.endswith(".pooler"):
                hook = module.register_forward_hook(keep_output("pooler_output"))
            elif path == "classifier.modules_to_save.default.out_proj":
                hook = module.register_forward_pre_hook(keep_input("head.hidden"))
            if hook:
                hooks.callback(hook.remove)
        yield kept


def forward(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A forward pass: the virtual tokens, what the heads compute, and the loss."""
    config = model.active_peft_config
    with within_heads(model) as parts:
        output = model(**text(inputs, model.dtype))
    prompt = model.get_prompt(inputs["input_ids"].shape[0])
    prefix = config.peft_type == "PREFIX_TUNING"
    answer = cache_tensors(prompt) if prefix else {"prompt.embeddings": prompt}
    if config.task_type == "SEQ_CLS":
        answer |= parts
    if "logits" in output:
        answer[LOGITS.get(config.task_type, "logits")] = output["logits"]
    return answer | {name: output[name] for name in OUTPUTS if name in output and output[name] is not None}
