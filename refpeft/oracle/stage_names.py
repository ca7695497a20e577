"""Which stages a model of some depth has, in order: found by running the specification on one whose sizes are one or two."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy

from refpeft import fitting, peft_model
from refpeft.config import PrefixTuningConfig, PromptTuningConfig
from refpeft.oracle.vectors import Kind
from refpeft.steps import recording
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.shapes import parameter_shapes
from refpeft.transformer.weights import BaseModel

TOKENS, VIRTUAL = 2, 1


def shrunk(config: ModelConfig) -> ModelConfig:
    """The same choices and layers with the least sizes: one head of two numbers, two tokens in the vocabulary."""
    rotary = config.rotary and tuple(replace(kind, dimensions=2) for kind in config.rotary)
    narrow = config.embedding_size is not None and config.embedding_size != config.hidden_size
    return replace(
        config, vocab_size=2, hidden_size=2, num_attention_heads=1, num_key_value_heads=1, head_dim=2, intermediate_size=1,
        max_position_embeddings=8, rotary=rotary, embedding_size=1 if narrow else None, stored_key_value_heads=None,
        relative_buckets=4, relative_distance=5, decoder_attention_heads=None, decoder_intermediate_size=None,
        pad_token_id=None if config.pad_token_id is None else 1, decoder_start_token_id=0, num_labels=1, hf={},
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def stage_names(
    config: ModelConfig, given: frozenset[str], *, prefix: bool, task_type: str = "CAUSAL_LM"
) -> dict[str, bool]:
    """The stages of a forward pass, and whether each holds real numbers.

    Args:
        config: Of the base model; its choices and its number of layers count.
        given: Which inputs there are beside the ids.
        prefix: Prefix tuning with a flat prefix, or else prompt tuning.
        task_type: Of the adapter.
    """
    small = shrunk(config)
    base = BaseModel(small, {name: numpy.zeros(shape) for name, shape in parameter_shapes(small).items()})
    submodules = 2 if small.kind == "encoder_decoder" else 1
    options: dict[str, Any] = {"task_type": task_type, "num_transformer_submodules": submodules}
    if prefix:
        adapter: Any = PrefixTuningConfig(
            num_virtual_tokens=VIRTUAL,
            token_dim=2,
            num_attention_heads=1,
            num_layers=small.num_layers,
            **options,
        )
    else:
        adapter = PromptTuningConfig(num_virtual_tokens=VIRTUAL, token_dim=small.embedding_width, **options)
    shapes = fitting.prompt_shapes(adapter)
    text = {name: _input(name, task_type, prefix=prefix) for name in {"input_ids", *given}}
    with recording() as stages:
        peft_model.forward(
            {name: numpy.zeros(shape) for name, shape in shapes.items()}, base, adapter, **text
        )
    return {name: numpy.asarray(value).dtype.kind == "f" for name, value in stages.items()}


def _input(name: str, task_type: str, *, prefix: bool) -> Any:
    """An input of one row and two tokens."""
    if name in ("start_positions", "end_positions"):
        return numpy.zeros(1, numpy.int64)
    if name == "labels" and task_type == "SEQ_CLS":
        return numpy.zeros((1, 1))
    long = name == "labels" and task_type == "TOKEN_CLS" and not prefix
    return numpy.zeros((1, TOKENS + (VIRTUAL if long else 0)), numpy.int64)


def kind_of(name: str, kind: Kind, config: ModelConfig) -> Kind:
    """How a stage is compared (JG-2): as its step says, but for embeddings that no port has without rounding.

    Where rows of the token table are multiplied, they are no copies any more; and where they are multiplied, projected, or summed with
    types, what positions are added to is rounded already, and may nearly cancel them.
    """
    if name == "inputs.embeddings":
        return kind if config.embedding_scale == 1.0 else "elementary"
    plain = (
        config.embedding_scale == 1.0
        and config.embedding_width == config.hidden_size
        and not config.token_types
    )
    return "composite" if name in ("encoder.embeddings", "decoder.embeddings") and not plain else kind
