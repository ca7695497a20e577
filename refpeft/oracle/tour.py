"""`refpeft tour`: one token followed through a GPT-2 of two layers with a prefix of two, stage by stage."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy

from refpeft import prefix_encoder
from refpeft.config import PrefixTuningConfig
from refpeft.oracle.mutants import MUTANTS
from refpeft.peft_model import PeftModel, get_peft_model
from refpeft.steps import STEPS, Step, recording, replaced
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.shapes import parameter_shapes
from refpeft.transformer.weights import BaseModel

VIRTUAL, LAYERS = 2, 2
TEXT, FOLLOWED = (1, 3, 0), 1
"""The text's token ids, and the place of the one that is followed: one token stands before it, one after."""
BEFORE, AFTER = "what goes in", "what comes out"

FORMULAS = {
    "inputs.token_embeddings": "table[token id]",
    "inputs.attention_mask": "[1 … 1 ; mask]",
    "prefix.flat": "E",
    "prefix.key": "block 2 · layer of the flat row, cut into heads",
    "prefix.value": "block 2 · layer + 1 of the flat row, cut into heads",
    "inputs.position_ids": "virtual + 0, virtual + 1, …",
    "decoder.embeddings": "token embedding + position table[position]",
    "decoder.visible": "key ≤ virtual + query, and mask[key] ≠ 0",
    "block.input_norm": "(x − mean) / √(variance + ε) · weight + bias",
    "attention.query": "x · Wᵀ + b, cut into heads",
    "attention.key": "x · Wᵀ + b, cut into heads",
    "attention.value": "x · Wᵀ + b, cut into heads",
    "attention.key_states": "[prefix keys ; own keys]",
    "attention.value_states": "[prefix values ; own values]",
    "attention.scores": "query · keysᵀ / √head_dim, hidden keys out",
    "attention.weights": "softmax(scores)",
    "attention.context": "weights · values, heads joined",
    "attention.output": "context · Wᵀ + b",
    "block.after_attention": "x + attention's output",
    "block.post_attention_norm": "(x − mean) / √(variance + ε) · weight + bias",
    "mlp.activation": "gelu(x · Wᵀ + b)",
    "mlp.output": "activation · Wᵀ + b",
    "block.output": "x + network's output",
    "decoder.final_norm": "(x − mean) / √(variance + ε) · weight + bias",
    "logits": "x · token tableᵀ",
}
"""What each step of the tour computes, in one line."""


class Stop(msgspec.Struct, frozen=True):
    """A stage of the tour, and what of it belongs to the token that is followed."""

    part: str
    stage: str
    step: str
    clause: str
    kind: str
    axes: list[str]
    shape: list[int]
    """The whole stage's."""
    formula: str
    meaning: str
    shown_axes: list[str]
    """The axes of `values`: without the batch, and without the axis of tokens or queries, where the followed one's are shown."""
    values: Any
    """Nested lists along them; null for the score of a key that is not seen."""
    note: str
    mistakes: list[str]
    """Known mistakes that show in this stage before any other, by id: each was made, and the stages compared."""
    source: str


class Tour(msgspec.Struct, frozen=True):
    """Where the tour leads: the model, the text, the followed token's place in it, and the stops in order."""

    model: dict[str, int]
    virtual: int
    text: list[int]
    followed: int
    stops: list[Stop]


def tour() -> Tour:
    """Run the model and note every stage."""
    model = tiny()
    stages, steps = _stages(model), _steps_by_stage()
    mistakes = _mistakes(model, stages)
    base = model.base.config
    sizes = {"layers": base.num_layers, "hidden": base.hidden_size, "heads": base.num_attention_heads}
    sizes |= {"head_dim": base.head_dim, "vocab": base.vocab_size}
    stops = [_stop(name, steps[name], value, mistakes[name]) for name, value in stages.items()]
    return Tour(sizes, VIRTUAL, list(TEXT), FOLLOWED, stops)


def tiny() -> PeftModel:
    """A GPT-2 of two layers, two heads of two numbers, five tokens; every parameter rounded to one decimal."""
    config = ModelConfig.from_dict(
        {"model_type": "gpt2", "vocab_size": 5, "n_positions": 8, "n_embd": 4, "n_layer": LAYERS, "n_head": 2, "n_inner": 6}
    )  # fmt: skip
    parameters, drawn = {}, 0
    for name, shape in parameter_shapes(config).items():
        if not name.startswith("heads."):
            parameters[name] = _rounded(drawn, shape) + ("norm.weight" in name)
            drawn += int(numpy.prod(shape))
    parameters["head.weight"] = parameters["embeddings.tokens.weight"]
    model = get_peft_model(
        BaseModel(config, parameters),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL),
    )
    table = model.trainable_parameters()[prefix_encoder.EMBEDDING]
    model.load_trainable_parameters({prefix_encoder.EMBEDDING: _rounded(drawn, table.shape)})
    return model


def _rounded(start: int, shape: tuple[int, ...]) -> Any:
    """Numbers between −0.6 and 0.6 that look drawn, the same everywhere."""
    places = numpy.arange(start, start + int(numpy.prod(shape)), dtype=numpy.float64)
    return numpy.round(0.6 * numpy.sin(places * places + 1), 1).reshape(shape)


def _steps_by_stage() -> dict[str, Step]:
    """The tour's steps by the names of their stages in this model, where one name may be several families' (AT-7)."""
    scopes = [
        {"stack": "decoder", "which": "", "attention": "attention", "layer": layer} for layer in range(LAYERS)
    ]
    return {STEPS[name].stage.format_map(scope): STEPS[name] for name in FORMULAS for scope in scopes}


def _stages(model: PeftModel) -> dict[str, Any]:
    ids = numpy.asarray([TEXT])
    with recording() as stages:
        model(ids, attention_mask=numpy.ones_like(ids))
    return {name: numpy.asarray(value) for name, value in stages.items()}


def _mistakes(model: PeftModel, right: dict[str, Any]) -> dict[str, list[str]]:
    """For each stage the known mistakes that show there first; those that do not show in this model are in none."""
    found: dict[str, list[str]] = {name: [] for name in right}
    for mutant in MUTANTS.values():
        with replaced(mutant.make()):
            wrong = _stages(model)
        first = next((name for name in right if not numpy.array_equal(right[name], wrong[name])), None)
        if first:
            found[first].append(mutant.id)
    return found


def _stop(stage: str, step: Step, value: Any, mistakes: list[str]) -> Stop:
    axes, shown = list(step.axes), value
    for axis in ("tokens", "query", "batch"):
        if axis in axes:
            place = axes.index(axis)
            shown = numpy.take(shown, 0 if axis == "batch" else FOLLOWED, axis=place)
            axes.pop(place)
    share = "λ, the prefix's share: {}" if step.name == "attention.weights" else ""
    note = share.format(", ".join(f"{float(head[:VIRTUAL].sum()):.3f}" for head in shown)) if share else ""
    return Stop(
        _part(stage), stage, step.name, step.clause, step.kind, list(step.axes), list(value.shape), FORMULAS[step.name],
        meaning(step), axes, _plain(shown), note, mistakes, step.source,
    )  # fmt: skip


def _part(stage: str) -> str:
    if stage.startswith("decoder.layers."):
        return f"layer {stage.split('.')[2]}"
    return AFTER if stage in ("decoder.final_norm", "logits") else BEFORE


def meaning(step: Step) -> str:
    """The first sentence of a step's docstring."""
    first = " ".join((step.definition.__doc__ or "").split("\n\n")[0].split())
    return first.split(". ")[0].removesuffix(".") + "."


def _plain(value: Any) -> Any:
    """Nested lists of numbers; None where a mask's huge negative number stands."""
    if value.ndim:
        return [_plain(part) for part in value]
    number = value.item()
    return None if isinstance(number, float) and number < -1e300 else number
