"""What is drawn: every family, method, task type, question, kind of padding and size occurs, and nothing beyond what is asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from oracle.fake_ports import START

from refpeft.oracle.drawn import CLAUSES, Drawn
from refpeft.oracle.protocol import Implementation, StartAnswer
from refpeft.testing import adapters, cases, inputs, models
from refpeft.testing.strategies import combinations, tasks_of
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import FAMILIES

QUICK: dict[str, Any] = {
    "database": None,
    "deadline": None,
    "phases": (Phase.generate,),
    "suppress_health_check": list(HealthCheck),
}


def draws(strategy: Any, count: int, seed: int = 0) -> list[Any]:
    """So many values of a strategy, always the same."""
    found: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, **QUICK)
    @hypothesis.given(strategy)
    def take(value: Any) -> None:
        found.append(value)

    take()
    return found


def abilities(**changes: Any) -> StartAnswer:
    """What a port says that it can do."""
    said = {**START, "implementation": Implementation("fake", "python", "0"), **changes}
    return StartAnswer(**said)


@pytest.fixture(scope="module")
def drawn() -> list[Drawn]:
    """Enough for everything to occur."""
    return draws(cases(), 800)


def test_every_family_question_and_task_type_occurs(drawn: list[Drawn]) -> None:
    assert {d.family for d in drawn} == set(FAMILIES)
    assert {d.question for d in drawn} == set(CLAUSES)
    assert {d.method for d in drawn} == {"prompt_tuning", "prefix_tuning"}
    assert {d.task_type for d in drawn} == {task for family in FAMILIES for task in tasks_of(family)}
    assert {d.profile for d in drawn} == {"float32", "float64"}
    assert {d.half for d in drawn} == {False, True}


def test_sizes_differ(drawn: list[Drawn]) -> None:
    bases = [ModelConfig.from_dict(dict(d.model)) for d in drawn]
    assert {base.num_layers for base in bases} >= {1, 2, 3}
    assert {base.num_attention_heads for base in bases} >= {1, 2, 3, 4}
    groups = {base.num_attention_heads // base.num_key_value_heads for base in bases}
    assert groups >= {1, 2, 3, 4}
    assert len({base.head_dim for base in bases}) >= 6
    windows = {window for base in bases for window in base.sliding_windows or () if window is not None}
    assert windows >= {2, 3, 4}
    assert {base.positions for base in bases} == {"learned", "rotary", "alibi", "relative"}
    assert {base.tie_word_embeddings for base in bases} == {False, True}
    assert {d.virtual for d in drawn} == {1, 2, 3, 4}
    assert {d.batch for d in drawn} == {1, 2, 3}
    assert {d.tokens for d in drawn} == {1, 2, 3, 4, 5, 6}
    assert {d.decoder_tokens for d in drawn if d.task_type == "SEQ_2_SEQ_LM"} == {1, 2, 3, 4, 5}


def test_every_kind_of_input_occurs(drawn: list[Drawn]) -> None:
    counts = Counter(d.inputs.get("mask") for d in drawn)
    assert set(counts) == {None, "full", "left", "right"}
    assert min(counts.values()) > 40
    found = {name for d in drawn for name in d.inputs}
    assert found == {
        "mask", "padded_with_pads", "labels", "positions", "token_types", "problem", "decoder", "decoder_mask", "past",
    }  # fmt: skip
    assert {d.inputs["decoder"] for d in drawn if "decoder" in d.inputs} == {
        "labels",
        "decoder_input_ids",
        "both",
    }
    assert {bool(d.adapter.get("prefix_projection")) for d in drawn} == {False, True}
    assert {d.arguments.get("num_beams", 1) for d in drawn if d.question == "generate"} == {1, 2, 3}


def test_losses_are_asked_for_where_there_is_one(drawn: list[Drawn]) -> None:
    asked = [d for d in drawn if d.question in ("gradients", "training")]
    assert asked
    for d in asked:
        assert d.inputs.get("labels") or d.inputs["decoder"] in ("labels", "both")


def test_nothing_is_drawn_that_a_port_cannot_do() -> None:
    able = abilities(
        families=["llama"],
        methods=["prefix_tuning"],
        questions=["forward", "attention", "init"],
        tasks=["TOKEN_CLS"],
    )
    for d in draws(cases(able), 60):
        assert (d.family, d.method, d.task_type, d.profile) == (
            "llama",
            "prefix_tuning",
            "TOKEN_CLS",
            "float32",
        )
        assert d.question in ("forward", "attention")


def test_what_is_chosen_is_drawn() -> None:
    found = draws(
        cases(families=["t5", "opt"], methods=["prompt_tuning"], questions=["forward"], profiles=["float64"]),
        60,
    )
    assert {(d.family, d.method, d.question, d.profile) for d in found} == {
        ("t5", "prompt_tuning", "forward", "float64"),
        ("opt", "prompt_tuning", "forward", "float64"),
    }


def test_nothing_left_to_draw_is_said() -> None:
    with pytest.raises(LookupError) as caught:
        combinations(abilities(questions=["init"]))
    assert str(caught.value.args[0]) == (
        "Nothing can be drawn: no question among mask, prefix.encode, inputs, attention, forward, gradients, training, generate, "
        "checkpoint.load, checkpoint.save about a family that the port says it can answer."
    )


def test_the_first_is_the_smallest() -> None:
    (simplest,) = draws(cases(questions=["forward"]), 1)
    base = ModelConfig.from_dict(dict(simplest.model))
    assert (simplest.family, base.num_layers, base.num_attention_heads) == ("gpt2", 1, 1)
    assert (simplest.virtual, simplest.batch, simplest.tokens, simplest.seed) == (1, 1, 1, 0)
    assert simplest.inputs == {}


def test_the_same_seed_draws_the_same() -> None:
    first, second, other = (draws(cases(), 20, seed) for seed in (5, 5, 6))
    assert first == second != other


def test_parts_can_be_drawn_alone() -> None:
    assert {config["model_type"] for config in draws(models("gemma2", 9), 10)} == {"gemma2"}
    assert all(config["n_positions"] >= 9 for config in draws(models("gpt2", 9), 30))
    assert {name for adapter in draws(adapters("prompt_tuning", 2), 30) for name in adapter} == {
        "num_virtual_tokens"
    }
    assert any("prefix_projection" in adapter for adapter in draws(adapters("prefix_tuning"), 30))
    kinds = draws(inputs("bert", "SEQ_CLS", "prompt_tuning"), 60)
    assert {name for kind in kinds for name in kind} == {
        "mask",
        "padded_with_pads",
        "labels",
        "positions",
        "token_types",
    }
