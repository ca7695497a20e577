"""Identities of a whole model with a prompt or a prefix: T5, T6, T19, T21–T28, T31 and T32.

Notation: c real tokens, x the text behind them, n virtual tokens, m tokens; base(·) the logits of the frozen
base; W the flat prefix, (n, 2 · layers · kv_heads · head_dim). Preconditions common to all: a causal decoder
with learned positions, no dropout, no sliding window. T25 to T27 need no other implementation: each compares
refpeft with itself on inputs that must mean the same. `test_mutants.py` shows that wrong versions of refpeft
fail these checks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy
import pytest
from hypothesis import given
from identities.strategies import ModelCase, model_case, model_sizes, without_virtual_tokens
from support import relative_error

from refpeft import checkpoint, masks, prefix_encoder
from refpeft.config import PrefixTuningConfig
from refpeft.peft_model import PeftModel
from refpeft.prefix_encoder import EMBEDDING, FIRST_BIAS, FIRST_WEIGHT, SECOND_BIAS, SECOND_WEIGHT

NOTICEABLE = 1e-6
"""What is said to differ, differs by more than this, relatively: ten digits above rounding."""


def _behind(case: ModelCase) -> tuple[numpy.ndarray, numpy.ndarray | None]:
    """The real tokens c in front of every row of x, and the mask over both."""
    front = numpy.broadcast_to(case.prompt_ids, (len(case.input_ids), case.virtual))
    mask = None if case.mask is None else numpy.concatenate([numpy.ones_like(front), case.mask], axis=1)
    return numpy.concatenate([front, case.input_ids], axis=1), None if mask is None else mask.astype(
        "float32"
    )


def check_t05_slots_may_be_permuted(case: ModelCase) -> None:
    """Prefix: logits(W[π]) = logits(W). Prompt (T6, negative): logits(E[π]) ≠ logits(E).

    The rows of a prompt have positions, the slots of a prefix have none.
    Pre: virtual ≥ 2; learned positions, added to the text alone. Kills positions that are added to prefix
    slots.
    """
    first, turned = case.model(), case.model()
    parameters = turned.trainable_parameters()
    turned.load_trainable_parameters({**parameters, EMBEDDING: numpy.roll(parameters[EMBEDDING], 1, axis=0)})
    logits, expected = (adapter(case.input_ids, case.mask).logits[:, -1] for adapter in (turned, first))
    error = relative_error(logits, expected)
    assert error > NOTICEABLE if case.method == "prompt" else error <= case.tolerance()


def check_t19_causality(case: ModelCase) -> None:
    """Changing token j leaves all logits before j as they are, to the bit, and the prefix's keys and values.

    Changing token j changes the logits at j; changing a virtual token changes the logits of every token.
    Kills a mask that is not causal or hides slots from early queries, and keys of a prefix that depend on the
    text.
    """
    model, random, tokens = case.model(), case.random(), case.input_ids.shape[1]
    changed_ids, j = case.input_ids.copy(), int(random.integers(1, tokens))
    changed_ids[:, j] = (changed_ids[:, j] + 1) % case.base.config.vocab_size
    first, second = model(case.input_ids, case.mask), model(changed_ids, case.mask)
    before = first.logits.shape[1] - tokens + j
    numpy.testing.assert_array_equal(second.logits[:, :before], first.logits[:, :before])
    assert (numpy.abs(second.logits - first.logits)[:, before].max(axis=-1) > 0).all()  # the token itself
    for states, others in zip(first.past_key_values, second.past_key_values, strict=True):
        for state, other in zip(states, others, strict=True):
            numpy.testing.assert_array_equal(state[:, :, : case.virtual], other[:, :, : case.virtual])
    parameters = model.trainable_parameters()
    rows = numpy.array(parameters[EMBEDDING])
    rows[random.integers(case.virtual)] += 1.0 + random.random(rows.shape[1])
    model.load_trainable_parameters({**parameters, EMBEDDING: rows})
    moved = model(case.input_ids, case.mask).logits
    assert (numpy.abs(moved - first.logits)[:, -tokens:].max(axis=-1) > 0).all()


def check_t21_rows_of_a_batch(case: ModelCase) -> None:
    """f(x)[b] = f(x[b : b+1]): the virtual tokens are shared, all else is apart. Kills mixing of rows."""
    model = case.model()
    logits = model(case.input_ids, case.mask).logits
    for b, ids in enumerate(case.input_ids):
        mask = None if case.mask is None else case.mask[b : b + 1]
        assert relative_error(model(ids[None], mask).logits[0], logits[b]) <= case.tolerance()


def _padded(case: ModelCase, side: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Unmasked text with two more tokens on one side, and the mask that hides them."""
    filler = case.random().integers(0, case.base.config.vocab_size, (len(case.input_ids), 2))
    parts = [(filler, numpy.zeros_like(filler)), (case.input_ids, numpy.ones_like(case.input_ids))]
    ids, mask = zip(*(parts if side == "left" else parts[::-1]), strict=True)
    return numpy.concatenate(ids, axis=1), numpy.concatenate(mask, axis=1)


def check_t22_right_padding(case: ModelCase) -> None:
    """logits(x ∥ padding, mask)[: n+m] = logits(x). Kills a mask extended behind, or not at all."""
    model, (ids, mask) = case.model(), _padded(case, "right")
    expected = model(case.input_ids).logits
    logits = model(ids, mask).logits[:, : expected.shape[1]]
    assert relative_error(logits, expected) <= case.tolerance()


def check_t23_left_padding(case: ModelCase) -> None:
    """logits(padding ∥ x, mask) ≠ logits(x): HF's positions in `forward` count the padding.

    prefix: given position_ids = cumsum(mask) − 1, they are equal. prompt: given position_ids are dropped,
    with a warning. Pre: learned positions (T23 is an equality where positions come from the mask, as in
    BLOOM). A difference from what ports expect of padding. Kills positions from the mask's cumsum; given
    positions not counted from n.
    """
    model, tokens, (ids, mask) = case.model(), case.input_ids.shape[1], _padded(case, "left")
    positions = numpy.maximum(numpy.cumsum(mask, axis=1) - 1, 0)
    expected = model(case.input_ids).logits[:, -tokens:]
    padded = model(ids, mask).logits[:, -tokens:]
    assert relative_error(padded, expected) > NOTICEABLE
    if case.method == "prompt":
        with pytest.warns(UserWarning, match="Position ids are not supported"):
            given_positions = model(ids, mask, position_ids=positions)
        numpy.testing.assert_array_equal(given_positions.logits[:, -tokens:], padded)
    else:
        counted = model(ids, mask, position_ids=positions).logits[:, -tokens:]
        assert relative_error(counted, expected) <= case.tolerance()


def check_t24_masks_that_mean_the_same(case: ModelCase) -> None:
    """No mask = ones(batch, m) = ones(batch, n+m) inside, to the bit; a 0 for token j = x without j.

    Pre: for the second and third, methods with a cache, where the other tokens can keep their positions.
    Kills a None mask read as zeros, and a mask that also moves positions or hides queries.
    """
    model, (batch, tokens) = case.model(), case.input_ids.shape
    ones = numpy.ones((batch, tokens), bool)
    expected = model(case.input_ids).logits
    numpy.testing.assert_array_equal(model(case.input_ids, ones).logits, expected)
    if case.method == "prompt":
        return
    extended = masks.prepare_attention_mask(batch, ones, case.virtual)
    inside, _ = case.decode(case.embeds(), extended, model.get_prompt(batch))
    numpy.testing.assert_array_equal(inside, expected)
    j = int(case.random().integers(tokens))
    kept, hidden = numpy.delete(numpy.arange(tokens), j), ones.copy()
    hidden[:, j] = False
    deleted = model(case.input_ids[:, kept], position_ids=numpy.broadcast_to(kept, (batch, tokens - 1)))
    error = relative_error(model(case.input_ids, hidden).logits[:, kept], deleted.logits)
    assert error <= case.tolerance()


def check_t25_prompt_of_real_tokens(case: ModelCase) -> None:
    """logits(x | prompt = embed(c)) = base(c ∥ x), all n + m rows.

    Pre: embeddings before positions, through the module.
    Kills virtual tokens without positions or in another place, masks and positions off by n, logits cut off.
    """
    ids, mask = _behind(case)
    model = case.with_rows("prompt", case.embedded_prompt())
    assert (
        relative_error(model(case.input_ids, case.mask).logits, case.base_logits(ids, mask))
        <= case.tolerance()
    )


def check_t26_prefix_of_real_tokens(case: ModelCase) -> None:
    """logits(x | prefix = cache of c) = base(c ∥ x)[n:]. Pre: a full cache, keys as they are attended to.

    Kills every other layout of a flat row (keys before values, values first, heads and head_dim exchanged),
    positions that start at 0, a triangle on the wrong side, the prefix behind the text.
    """
    ids, mask = _behind(case)
    flat = prefix_encoder.flatten(case.cache_of(case.embedded_prompt()[None]))
    logits = case.with_rows("prefix", flat)(case.input_ids, case.mask).logits
    assert relative_error(logits, case.base_logits(ids, mask)[:, case.virtual :]) <= case.tolerance()


def check_t27_compilation(case: ModelCase) -> None:
    """PrefixTuning(x | flatten(cache of E)) = PromptTuning(x | E)[n:] for any soft prompt E.

    Pre: causal, so that the prompt does not see the text. The converse is false: a prefix has 2 · layers ·
    kv_heads · head_dim numbers for each token, a prompt only `hidden`. Kills a prompt that sees the text, and
    all that T26 kills.
    """
    prompt = case.model("prompt")
    flat = prefix_encoder.flatten(case.cache_of(numpy.asarray(prompt.get_prompt(1))))
    compiled = case.with_rows("prefix", flat)(case.input_ids, case.mask).logits
    expected = prompt(case.input_ids, case.mask).logits[:, case.virtual :]
    assert relative_error(compiled, expected) <= case.tolerance()


def check_t28_fold(case: ModelCase) -> None:
    """projected(E, W₀, b₀, W₂, b₂) = unprojected(tanh(E·W₀ᵀ + b₀)·W₂ᵀ + b₂).

    The argument is what an adapter file holds; saving and loading keeps every bit of it, and of the logits.
    Kills another activation, a weight read as inputs × outputs, a table saved in place of the folded prefix.
    """
    model = case.model("projected")
    p = model.trainable_parameters()
    folded = (
        numpy.tanh(p[EMBEDDING] @ p[FIRST_WEIGHT].T + p[FIRST_BIAS]) @ p[SECOND_WEIGHT].T + p[SECOND_BIAS]
    )
    saved = checkpoint.prompt_embeddings(p, model.config)
    assert relative_error(saved, folded) <= case.tolerance()
    expected = model(case.input_ids, case.mask).logits
    logits = case.with_rows("prefix", folded)(case.input_ids, case.mask).logits
    assert relative_error(logits, expected) <= case.tolerance()
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        loaded = PeftModel.from_pretrained(case.base, directory)
    assert isinstance(loaded.config, PrefixTuningConfig)
    assert loaded.config.inference_mode
    numpy.testing.assert_array_equal(loaded.trainable_parameters()[EMBEDDING], saved)
    numpy.testing.assert_array_equal(loaded(case.input_ids, case.mask).logits, expected)


def check_t31_no_virtual_tokens(case: ModelCase) -> None:
    """Without virtual tokens, n = 0, both methods give the base model's logits, to the bit.

    Pre: none; a configuration refuses n = 0, the functions do not. Kills a virtual token, position or column
    of the mask that is always there.
    """
    mask = None if case.mask is None else case.mask.astype(numpy.float32)
    expected = case.base_logits(case.input_ids, mask)
    numpy.testing.assert_array_equal(without_virtual_tokens(case).logits, expected)


def check_t32_incremental(case: ModelCase) -> None:
    """Feeding the cache back, a piece of the text at a time, gives the logits and the cache of the whole.

    A second forward gives the same bits, and the caller's cache is left as it was.
    Pre: the mask handed on covers past and present keys. Kills positions or masks that forget the cache, a
    prefix put in front at every step, a cache changed in place.
    """
    model, random, (batch, tokens) = case.model(), case.random(), case.input_ids.shape
    mask = None if case.mask is None else masks.extend_attention_mask(case.mask, case.virtual)
    whole = model(case.input_ids, case.mask)
    numpy.testing.assert_array_equal(model(case.input_ids, case.mask).logits, whole.logits)
    cache, pieces = model.get_prompt(batch), []
    if case.method == "prompt":
        logits, cache = case.decode(cache, None if mask is None else mask[:, : case.virtual], None)
        pieces.append(logits)
    given_cache, kept = cache, [numpy.array(state) for pair in cache for state in pair]
    cuts = [0, *sorted(random.choice(tokens - 1, random.integers(1, tokens), replace=False) + 1), tokens]
    for start, stop in pairwise(cuts):
        seen = None if mask is None else mask[:, : case.virtual + stop]
        logits, cache = case.decode(case.embeds()[:, start:stop], seen, cache)
        pieces.append(logits)
    assert relative_error(numpy.concatenate(pieces, axis=1), whole.logits) <= case.tolerance()
    for state, copy in zip((state for pair in given_cache for state in pair), kept, strict=True):
        numpy.testing.assert_array_equal(state, copy)
    for pair, expected in zip(cache, whole.past_key_values, strict=True):
        for state, other in zip(pair, expected, strict=True):
            assert relative_error(state, other) <= case.tolerance()


Check = Callable[[ModelCase], None]


@pytest.mark.parametrize(
    "check",
    [
        check_t19_causality,
        check_t21_rows_of_a_batch,
        check_t22_right_padding,
        check_t23_left_padding,
        check_t24_masks_that_mean_the_same,
        check_t25_prompt_of_real_tokens,
        check_t26_prefix_of_real_tokens,
        check_t27_compilation,
        check_t28_fold,
        check_t31_no_virtual_tokens,
        check_t32_incremental,
    ],
)
@given(sizes=model_sizes())
def test_identity_of_the_model(check: Check, sizes: dict[str, Any]) -> None:
    check(model_case(**sizes))


@given(sizes=model_sizes(virtual=2))
def test_slots_of_a_prefix_have_no_order(sizes: dict[str, Any]) -> None:
    check_t05_slots_may_be_permuted(model_case(**sizes))
