"""Training as HF's users write it: peft, torch's AdamW and clipping, transformers' schedules, in a plain loop.

Recipes of the question `training`, and the loop that answers them. transformers' own Trainer does some things otherwise; the
clauses TR-1 and TR-4 say what.
"""

from __future__ import annotations

from typing import Any

import torch
from draws import draw_text
from hf import Tensors, arithmetic, without_adapter
from peft import PeftModel
from recipes import ZERO, Recipe, Text
from transformers import get_scheduler

from refpeft.oracle.questions import PREFIX, PROMPT

STEPS = 10


def draw_batches(text: Text, count: int, vocabulary: int, generator: torch.Generator) -> Tensors:
    """Micro-batches, stacked: each has its padding in other rows, and another number of labels."""
    drawn = []
    for i in range(count):
        batch = {name: tensor.roll(i, 0) for name, tensor in draw_text(text, vocabulary, generator).items()}
        batch["labels"][0, : 2 * (i % 3)] = -100
        drawn.append(batch)
    return {name: torch.stack([batch[name] for batch in drawn]) for name in drawn[0]}


def train(model: PeftModel, inputs: Tensors, arguments: dict[str, Any], dtype: torch.dtype) -> Tensors:
    """What the loop sees at each step, and the parameters after the last."""
    trained = {without_adapter(n): p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(),
        lr=arguments["learning_rate"],
        betas=(arguments["adam_beta1"], arguments["adam_beta2"]),
        eps=arguments["adam_epsilon"],
        weight_decay=arguments["weight_decay"],
    )
    scheduler = get_scheduler(
        arguments["lr_scheduler_type"], optimizer, arguments["warmup_steps"], arguments["max_steps"]
    )
    text = {n: t for n, t in inputs.items() if not n.startswith("parameters.")}
    micro_batches, number = arguments["gradient_accumulation_steps"], 0
    losses, rates, norms = [], [], []
    for _ in range(arguments["max_steps"]):
        optimizer.zero_grad()
        total = torch.zeros((), dtype=dtype)
        for _ in range(micro_batches):
            batch = {name: tensor[number % len(tensor)] for name, tensor in text.items()}
            with arithmetic(dtype):
                loss = model(**batch).loss / micro_batches
                loss.backward()
            total, number = total + loss.detach(), number + 1
        largest = arguments["max_grad_norm"]
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), float("inf") if largest is None else largest)
        losses.append(total)
        rates.append(optimizer.param_groups[0]["lr"])
        norms.append(norm)
        optimizer.step()
        scheduler.step()
    assert largest is None or min(norms) < largest < max(norms), (
        "clipping is for some steps and not for others"
    )
    assert arguments["lr_scheduler_type"] != "constant" or set(rates) == {arguments["learning_rate"]}
    return {
        "training.learning_rates": torch.tensor(rates, dtype=torch.float64),
        "training.losses": torch.stack(losses),
        "training.gradient_norms": torch.stack(norms),
        **{"trained." + name: parameter.detach() for name, parameter in trained.items()},
    }


def _train(
    method: str, name: str, title: str, clauses: str, model: str, text: Text, n: int, micro_batches: int,
    arguments: dict[str, Any], **config: Any,
) -> Recipe:  # fmt: skip
    given: dict[str, Any] = {
        "max_steps": STEPS, "learning_rate": 0.03, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": None,
        "gradient_accumulation_steps": 1, "micro_batches": micro_batches,
    }  # fmt: skip
    assert arguments.keys() <= given.keys()
    return Recipe(
        method, "training", name, title, clauses, f"gpt2-{model}", {"num_virtual_tokens": n, **config},
        {**given, **arguments}, text,
    )  # fmt: skip


_WIDE: dict[str, Any] = {"prefix_projection": True, "encoder_hidden_size": 9}

RECIPES = (
    _train(PROMPT, "constant", "AdamW at a constant learning rate, one batch again and again", "TR-1 TR-6 TK-3", "odd",
           Text(2, 7, "right", "all"), 5, 1, {}),
    _train(PROMPT, "linear-warmup-weight-decay", "a warm-up from 0, then down to 0; decoupled decay", "TR-1 TR-2", "odd",
           Text(2, 8, "left", "all"), 5, 7,
           {"lr_scheduler_type": "linear", "warmup_steps": 3, "weight_decay": 0.2, "learning_rate": 0.1}),
    _train(PROMPT, "accumulation-cosine", "three micro-batches a step with unlike numbers of labels", "TR-2 TR-4 TR-5",
           "even", Text(2, 8, "right", "some"), 5, 15,
           {"lr_scheduler_type": "cosine", "gradient_accumulation_steps": 3, "learning_rate": 0.07}),
    _train(PREFIX, "constant-warmup-epsilon", "an epsilon and betas of one's own; no mask", "TR-1 TR-2", "even",
           Text(2, 8, "", "all"), 5, 11,
           {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4, "adam_epsilon": 1e-3, "adam_beta1": 0.4,
            "adam_beta2": 0.97}),
    _train(PREFIX, "clipping", "gradients that are clipped in some steps and not in others", "TR-3", "odd",
           Text(2, 7, "left", "all"), 5, 9, {"max_grad_norm": 1.0, "lr_scheduler_type": "linear"}),
    _train(PREFIX, "zero-init", "from a prefix of zeros; the first step of a warm-up moves nothing", "TR-2 PX-6",
           "even", Text(5, 7, "full", "some"), 2, 1, {"lr_scheduler_type": "cosine", "warmup_steps": 1}, **ZERO),
    _train(PREFIX, "projected-everything", "all parameters of a projection, with decay, clipping, accumulation and warm-up",
           "TR-1 TR-2 TR-3 TR-4 TR-6", "odd", Text(2, 8, "right", "some"), 5, 7,
           {"lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 1.7,
            "gradient_accumulation_steps": 2}, **_WIDE),
    _train(PREFIX, "projected-constant-warmup", "through a projection, one norm for all its parameters", "TR-1 TR-2 TR-3",
           "odd", Text(2, 7, "left", "all"), 5, 1,
           {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "max_grad_norm": 2.0}, **_WIDE),
    _train(PROMPT, "accumulation-clipping", "the mean of two micro-batches' gradients is what is clipped", "TR-3 TR-4", "odd",
           Text(2, 8, "right", "all"), 5, 7, {"gradient_accumulation_steps": 2, "max_grad_norm": 1.0}),
    _train(PROMPT, "constant-ignores-warmup", "a constant learning rate, whatever warm-up is asked for", "TR-2", "odd",
           Text(2, 7, "right", "all"), 5, 1, {"warmup_steps": 3}),
    _train(PREFIX, "projected-decay", "everything decays, biases too", "TR-1", "even", Text(2, 8, "left", "all"), 5, 1,
           {"weight_decay": 0.3, "learning_rate": 0.1}, **_WIDE),
    _train(PREFIX, "constant-ignores-warmup", "a constant learning rate, whatever warm-up is asked for", "TR-2", "even",
           Text(2, 8, "left", "all"), 5, 1, {"warmup_steps": 4}),
)  # fmt: skip
"""Axes of different sizes; micro-batches that do not come out even with the steps."""
