"""Mistakes in masks: which key each query sees (MK-1 to MK-5)."""

from __future__ import annotations

from typing import Any

import numpy

from refpeft.oracle.mutants.mutant import Mutant, Steps, each, mutant, noting


@mutant(
    "M41",
    "zeros for the virtual tokens in the mask",
    clause="MK-1",
    why="virtual tokens taken for padding",
    seen="sentence-transformers #3000",
)
def virtual_hidden() -> Steps:
    """The virtual tokens are not seen."""

    def extended(original: Any, mask: Any, n: int) -> Any:
        return _with_zeros(original(mask, n), n)

    return each(("inputs.attention_mask",), extended)


def _with_zeros(mask: Any, n: int) -> Any:
    return mask if not n else numpy.concatenate([numpy.zeros_like(mask[:, :n]), mask[:, n:]], axis=1)


@mutant(
    "M43",
    "ones for the virtual tokens behind the text's mask",
    clause="MK-1",
    why="the mask padded on the side where texts are padded",
)
def ones_behind() -> Steps:
    """[mask ; 1 …]."""

    def extended(original: Any, mask: Any, n: int) -> Any:
        return numpy.concatenate(
            [original(mask, n)[:, n:], numpy.ones_like(original(mask, n)[:, :n])], axis=1
        )

    return each(("inputs.attention_mask",), extended)


_VISIBLE = ("decoder.visible", "encoder.visible", "decoder.sliding_visible", "decoder.cross_visible")


@mutant(
    "M42",
    "the mask's meaning inverted",
    clause="MK-3",
    why="True for what is hidden in other frameworks",
    seen="ChatGLM, NeMo",
)
def inverted() -> Steps:
    """Padding is seen, the text is not."""

    def visible(original: Any, mask: Any, *args: Any) -> Any:
        return original(None if mask is None else 1 - (mask != 0), *args)

    return each(_VISIBLE, visible)


@mutant(
    "M74", "padding is seen", clause="MK-3", why="the mask not handed on once a cache or embeddings are given"
)
def padding_seen() -> Steps:
    """No mask."""

    def visible(original: Any, mask: Any, *args: Any) -> Any:
        return original(None, *args)

    return each(_VISIBLE, visible)


@mutant(
    "M49", "the mask taken from the ids: token 0 is hidden", clause="MK-1",
    why="a mask is inferred where HF infers none", seen="OpenDelta (soft_prompt.py)",
)  # fmt: skip
def mask_of_ids() -> Steps:
    """Every token 0 is hidden, and nothing else."""
    ids, noted = noting("inputs.token_embeddings", lambda result, table, input_ids: input_ids)

    def visible(original: Any, mask: Any, batch: int, queries: int, keys: int, *args: Any) -> Any:
        if ids and ids[-1].shape[1] <= keys:
            text = (ids[-1] != 0).astype(numpy.float32)
            ahead = numpy.ones((batch, keys - text.shape[1]), numpy.float32)
            mask = numpy.concatenate([ahead, text], axis=1) if len(text) == batch else mask
        return original(mask, batch, queries, keys, *args)

    return {
        **noted,
        **each(("decoder.visible", "encoder.visible"), visible),
    }


@mutant(
    "M45", "the causal triangle aligned to the top left", clause="MK-3",
    why="tril of queries × keys; torch's is_causal does so too",
)  # fmt: skip
def top_left() -> Steps:
    """Query i sees keys 0 … i: not the last virtual tokens."""

    def visible(original: Any, mask: Any, batch: int, queries: int, keys: int, like: Any) -> Any:
        triangle = numpy.tril(numpy.ones((queries, keys), bool))
        return triangle[None] & _seen(mask, batch, keys)

    return each(("decoder.visible",), visible)


def _seen(mask: Any, batch: int, keys: int) -> Any:
    """(batch, 1, keys)."""
    return numpy.ones((batch, 1, keys), bool) if mask is None else (mask != 0)[:, None, :]


@mutant(
    "M46",
    "the prefix causal among the queries",
    clause="MK-3",
    why="one triangle over prefix and text, cut in two",
)
def causal_prefix() -> Steps:
    """Query i sees virtual tokens 0 … i alone."""

    def visible(original: Any, mask: Any, batch: int, queries: int, keys: int, like: Any) -> Any:
        query, key = numpy.arange(queries)[:, None], numpy.arange(keys)[None, :]
        allowed = (key >= keys - queries) | (key <= query)
        return original(mask, batch, queries, keys, like) & allowed

    return each(("decoder.visible",), visible)


@mutant(
    "M75",
    "a decoder that sees what comes after",
    clause="MK-3",
    why="no triangle once a mask is given",
    seen="encoders' code used for decoders",
)
def bidirectional() -> Steps:
    """Every key that is not masked."""

    def visible(original: Any, mask: Any, batch: int, queries: int, keys: int, like: Any) -> Any:
        return numpy.broadcast_to(_seen(mask, batch, keys), (batch, queries, keys))

    return each(("decoder.visible",), visible)


@mutant(
    "M91",
    "an encoder that sees only what came before",
    clause="MK-5",
    why="past_key_values are taken for a sign of a decoder",
)
def causal_encoder() -> Steps:
    """The causal triangle, behind a prefix."""

    def visible(original: Any, mask: Any, batch: int, queries: int, keys: int, like: Any) -> Any:
        key = numpy.arange(keys)[None, :]
        return original(mask, batch, queries, keys, like) & (
            key <= numpy.arange(queries)[:, None] + keys - queries
        )

    return each(("encoder.visible",), visible)


@mutant(
    "M52", "a prefix that never falls out of a sliding window", clause="MK-4",
    why="the paper's prefix is always seen; HF counts virtual tokens as old positions",
)  # fmt: skip
def prefix_always_seen() -> Steps:
    """The window for the text alone."""

    def visible(
        original: Any, mask: Any, batch: int, queries: int, keys: int, window: int, cut: int, like: Any
    ) -> Any:
        seen = original(mask, batch, queries, keys, window, cut, like)
        prefix = numpy.arange(keys)[cut:] < keys - queries
        return seen | (prefix[None, None, :] & _seen(mask, batch, keys)[:, :, cut:])

    return each(("decoder.sliding_visible",), visible)


@mutant(
    "M89",
    "a sliding window one key too wide",
    clause="MK-4",
    why="≤ for <: HF's window counts the query itself",
)
def wider_window() -> Steps:
    """A window of `window + 1` keys."""

    def visible(
        original: Any, mask: Any, batch: int, queries: int, keys: int, window: int, cut: int, like: Any
    ) -> Any:
        return original(mask, batch, queries, keys, window + 1, cut, like)

    return each(("decoder.sliding_visible",), visible)


@mutant("M90", "no sliding window", clause="MK-4", why="sliding_window not read, or layer_types not")
def no_window() -> Steps:
    """Every key before the query."""

    def visible(
        original: Any, mask: Any, batch: int, queries: int, keys: int, window: int, cut: int, like: Any
    ) -> Any:
        return original(mask, batch, queries, keys, keys + queries, cut, like)

    return each(("decoder.sliding_visible",), visible)


MUTANTS: tuple[Mutant, ...] = (
    virtual_hidden,
    ones_behind,
    inverted,
    padding_seen,
    mask_of_ids,
    top_left,
    causal_prefix,
    bidirectional,
    causal_encoder,
    prefix_always_seen,
    wider_window,
    no_window,
)
