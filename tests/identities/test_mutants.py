"""The identities can fail: known mistakes and other wrong versions of steps, each with the identities that must notice it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy
import pytest
from autograd.extend import defvjp
from identities import test_attention as layer
from identities import test_gradients as gradients
from identities import test_model as model
from identities.strategies import AttentionCase, ModelCase, attention_case, model_case

from refpeft import arrays as np
from refpeft.oracle.mutants import MUTANTS
from refpeft.steps import STEPS, definition, replaced

VIRTUAL = 4
Mutant = Mapping[str, Callable[..., Any]]


def attention_only() -> AttentionCase:
    return attention_case(
        batch=2, kv_heads=3, group=2, head_dim=5, virtual=VIRTUAL, tokens=6, kind="right", seed=5
    )


def whole(method: str = "prefix", kind: str = "right") -> ModelCase:
    sizes = {
        "batch": 2,
        "kv_heads": 3,
        "group": 2,
        "head_dim": 2,
        "layers": 3,
        "inner": 5,
        "vocab": 13,
        "tokens": 5,
    }
    return model_case(**sizes, virtual=VIRTUAL, kind=kind, method=method, seed=5)


@np.primitive
def _mean_gradient(table: Any, shape: tuple[int, ...]) -> Any:
    """Repeats the table for the batch; its gradient divides by the batch."""
    return numpy.broadcast_to(table, shape)


defvjp(_mean_gradient, lambda ans, table, shape: lambda g: g.sum(axis=0) / shape[0])


def _one_in_the_denominator(scores: Any) -> Any:
    exponentials = np.exp(scores)
    return exponentials / (1 + np.sum(exponentials, axis=-1, keepdims=True))


def _slots(keys: int, queries: int) -> Any:
    """True for the prefix's keys."""
    return numpy.arange(keys) < keys - queries


def _prefix_logits_averaged(query: Any, keys: Any, visible: Any, scale: float) -> Any:
    scores = definition("attention.scores")(query, keys, visible, scale)
    mean = np.mean(scores[..., :VIRTUAL], axis=-1, keepdims=True)
    return np.where(_slots(scores.shape[-1], scores.shape[-2]), mean, scores)


def _text_cooler_beside_a_prefix(query: Any, keys: Any, visible: Any, scale: float) -> Any:
    scores = definition("attention.scores")(query, keys, visible, scale)
    beside = scores.shape[-1] > scores.shape[-2]
    return np.where(_slots(scores.shape[-1], scores.shape[-2]), scores, 0.5 * scores) if beside else scores


def _zero_keys_hidden(query: Any, keys: Any, visible: Any, scale: float) -> Any:
    present = (np.value_of(keys) != 0).any(axis=(1, 3))  # (batch, key)
    return definition("attention.scores")(query, keys, visible & present[:, None, :], scale)


def _slots_have_positions(past: Any, own: Any) -> Any:
    states = definition("attention.key_states")(past, own)
    return states + 0.3 * numpy.arange(states.shape[2])[:, None]


def _detached(name: str) -> Mutant:
    def mutant(past: Any, own: Any) -> Any:
        return definition(name)(None if past is None else np.value_of(past), own)

    return {name: mutant}


def _four_slots_at_most(mask: Any, batch: int, queries: int, keys: int, like: Any) -> Any:
    cut = _slots(keys, queries) & (numpy.arange(keys) >= VIRTUAL)
    return definition("decoder.visible")(mask, batch, queries, keys, like) & ~cut


def _last_key_hidden(mask: Any, batch: int, queries: int, keys: int, like: Any) -> Any:
    hidden = (
        numpy.broadcast_to((numpy.arange(keys) < keys - 1) * 1.0, (batch, keys)) if mask is None else mask
    )
    return definition("decoder.visible")(hidden, batch, queries, keys, like)


def _mask_of_the_first_row(mask: Any, batch: int, queries: int, keys: int, like: Any) -> Any:
    same = None if mask is None else numpy.broadcast_to(mask[-1:] if batch == 1 else mask[:1], mask.shape)
    return definition("decoder.visible")(same, batch, queries, keys, like)


def _cut_with_mean_gradient(flat: Any, config: Any, batch: int) -> Any:
    n, layers, kv_heads, head_dim = (
        flat.shape[0],
        config.num_layers,
        config.num_attention_heads,
        config.head_dim,
    )
    cut = np.reshape(flat, (n, 2 * layers, kv_heads, head_dim))
    return np.transpose(_mean_gradient(cut, (batch, *cut.shape)), (2, 0, 3, 1, 4))


def _separated(prompts: Any, embeds: Any) -> Any:
    """A vector of zeros between prompt and text."""
    zeros = numpy.zeros((embeds.shape[0], 1, embeds.shape[2]))
    return np.concatenate([prompts, zeros, embeds], axis=1)


OWN: dict[str, Mutant] = {
    "one more in the denominator": {"attention.weights": _one_in_the_denominator},
    "prefix logits averaged": {"attention.scores": _prefix_logits_averaged},
    "text cooler beside a prefix": {"attention.scores": _text_cooler_beside_a_prefix},
    "zero keys hidden": {"attention.scores": _zero_keys_hidden},
    "slots have positions": {"attention.key_states": _slots_have_positions},
    "text keys longer beside a cache": {
        "attention.key_states": lambda past, own: definition("attention.key_states")(
            past, own if past is None else 1.1 * own
        )
    },
    "prefix values shifted": {
        "attention.value_states": lambda past, own: definition("attention.value_states")(
            past if past is None else past + 0.5, own
        )
    },
    "prefix keys detached": _detached("attention.key_states"),
    "prefix values detached": _detached("attention.value_states"),
    "four slots at most": {"decoder.visible": _four_slots_at_most},
    "mask of the first row": {"decoder.visible": _mask_of_the_first_row},
    "no mask hides the last key": {"decoder.visible": _last_key_hidden},
    "a separator": {"inputs.embeddings": _separated},
    "prefix gradient a mean": {"prefix.rows": _cut_with_mean_gradient},
}
"""Wrong versions that are no known mistakes; the others are those of `refpeft.oracle.mutants`, by their ids."""

KILLS: tuple[tuple[str, Callable[[Any], None], Callable[[], Any]], ...] = (
    ("M47", layer.check_t01_gating, attention_only),
    ("M47", layer.check_t16_convex_hull, attention_only),
    ("M47", gradients.check_t41_values_sum_to_the_output, attention_only),
    ("one more in the denominator", layer.check_t15_blocks_merge, attention_only),
    ("M48", layer.check_t02_share_is_a_sigmoid, attention_only),
    ("prefix logits averaged", layer.check_t06_keys_alone_may_not, attention_only),
    ("text cooler beside a prefix", layer.check_t03_text_is_rescaled, attention_only),
    ("text cooler beside a prefix", layer.check_t12_limits_without_effect, attention_only),
    ("zero keys hidden", layer.check_t11_zeros_shrink, attention_only),
    ("M09", layer.check_t20_grouped_heads, attention_only),
    ("slots have positions", layer.check_t05_slots_may_be_permuted, attention_only),
    ("slots have positions", model.check_t05_slots_may_be_permuted, whole),
    ("text keys longer beside a cache", layer.check_t31_no_slots, attention_only),
    ("prefix values shifted", layer.check_t04_bias_lies_in_the_cone, attention_only),
    ("prefix keys detached", gradients.check_t39_by_hand, attention_only),
    ("prefix keys detached", gradients.check_t40_keys_sum_to_zero, attention_only),
    ("prefix keys detached", gradients.check_t48_finite_differences, whole),
    ("prefix values detached", gradients.check_t41_values_sum_to_the_output, attention_only),
    ("M45", layer.check_t18_first_token, attention_only),
    ("M45", model.check_t26_prefix_of_real_tokens, whole),
    ("M75", model.check_t19_causality, lambda: whole("prefix", "full")),
    ("M75", model.check_t27_compilation, whole),
    ("four slots at most", layer.check_t17_share_grows, attention_only),
    ("mask of the first row", model.check_t21_rows_of_a_batch, whole),
    ("no mask hides the last key", model.check_t24_masks_that_mean_the_same, whole),
    ("M01", model.check_t26_prefix_of_real_tokens, whole),
    ("M02", model.check_t27_compilation, whole),
    ("M03", model.check_t26_prefix_of_real_tokens, whole),
    ("M16", model.check_t28_fold, whole),
    ("M34", model.check_t26_prefix_of_real_tokens, whole),
    ("M34", model.check_t32_incremental, lambda: whole("prompt")),
    ("M81", model.check_t23_left_padding, whole),
    ("M43", model.check_t22_right_padding, whole),
    ("M24", model.check_t25_prompt_of_real_tokens, lambda: whole("prompt")),
    ("a separator", model.check_t31_no_virtual_tokens, lambda: whole("prompt", "none")),
    ("M54", gradients.check_t46_frozen_base, lambda: whole("prompt")),
    ("M55", gradients.check_t47_first_token_is_predicted, lambda: whole("prompt")),
    ("M76", gradients.check_t47_first_token_is_predicted, whole),
    ("M58", gradients.check_t42_sum_over_the_batch, lambda: whole("prompt")),
    ("M58", gradients.check_t48_finite_differences, lambda: whole("prompt")),
    ("prefix gradient a mean", gradients.check_t42_sum_over_the_batch, whole),
    ("prefix gradient a mean", gradients.check_t48_finite_differences, lambda: whole("projected")),
)
"""(mutant, identity that it violates, inputs)."""
BEHIND_AN_ENCODER = {"prefix.decoder_key_row", "prefix.decoder_value_row", "inputs.position_ids_of_tokens"}
"""Steps that a decoder alone does not call."""


def _count(calls: dict[str, int], name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    calls[name] = calls.get(name, 0) + 1
    return function(*args, **kwargs)


def _counted(mutant: Mutant, calls: dict[str, int]) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, function in mutant.items():
        yield name, functools.partial(_count, calls, name, function)


@pytest.mark.parametrize(
    ("name", "check", "case"), KILLS, ids=[f"{check.__name__[6:]}: {name}" for name, check, _ in KILLS]
)
def test_identity_notices_the_mutant(
    name: str, check: Callable[[Any], None], case: Callable[[], Any]
) -> None:
    inputs, calls = case(), dict[str, int]()
    check(inputs)
    mutant = OWN.get(name) or MUTANTS[name].make()
    with replaced(dict(_counted(mutant, calls))), pytest.raises(AssertionError):
        check(inputs)
    assert set(calls) == set(mutant) & set(STEPS) - BEHIND_AN_ENCODER
