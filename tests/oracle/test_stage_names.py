"""The names come from the specification itself."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from support import tiny_base, tiny_config, tiny_model

import refpeft
from refpeft.oracle.stage_names import kind_of, stage_names
from refpeft.steps import recording


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("given", [(), ("attention_mask",), ("labels", "attention_mask", "position_ids")])
def test_names_kinds_and_order_are_those_of_a_real_pass(prefix: bool, given: tuple[str, ...]) -> None:
    kind: Any = refpeft.PrefixTuningConfig if prefix else refpeft.PromptTuningConfig
    model = refpeft.get_peft_model(tiny_base(), kind(task_type="CAUSAL_LM", num_virtual_tokens=2))
    ids = numpy.array([[1, 2, 0]])
    text = {name: numpy.ones_like(ids) for name in given if prefix or name != "position_ids"}
    with recording() as stages:
        model(ids, **text)
    named = stage_names(tiny_config(), frozenset(given), prefix=prefix)
    assert list(named) == list(stages)
    assert named == {name: numpy.asarray(value).dtype.kind == "f" for name, value in stages.items()}


@pytest.mark.parametrize(
    ("family", "embeddings", "inputs"),
    [("gpt2", "elementary", "exact"), ("bert", "composite", "exact"), ("gemma", "composite", "elementary")],
)
def test_embeddings_are_compared_as_what_they_are_made_of(family: str, embeddings: str, inputs: str) -> None:
    """Positions are added to rows of a table; or to a sum with types, or a product, which is rounded already."""
    config = tiny_model(family).config
    assert kind_of("decoder.embeddings", "elementary", config) == embeddings
    assert kind_of("inputs.embeddings", "exact", config) == inputs
