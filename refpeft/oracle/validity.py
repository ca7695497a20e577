"""Which elements of a tensor count, and what an index means in words (clause JG-1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from refpeft.decoding import as_generation_config, begin
from refpeft.ops import IGNORE_INDEX
from refpeft.oracle import names
from refpeft.oracle.questions import PREFIX, Ask


@dataclass(frozen=True)
class Validity:
    """Which positions are compared: tokens, virtual tokens, and padding that predicts a label (clause JG-1)."""

    mask: NDArray[Any] | None
    """(batch, tokens), True for tokens; None if the case has no mask."""
    virtual: int
    prompts: bool
    """Whether virtual tokens are among the queries (prompt tuning)."""
    predicting: NDArray[Any] | None = None
    """(batch, tokens), True where the next token's label counts: behind left padding, that is the last padding."""
    new_tokens: NDArray[Any] | None = None
    """(batch, new_tokens), True where what led to a generated token is decided (JG-9); None if nothing was generated."""
    sequences: NDArray[Any] | None = None
    """(sequences), likewise for whole sequences of a beam search."""
    encoder: NDArray[Any] | None = None
    """(batch, encoder_key), True for what an encoder before the decoder was given that is no padding."""

    @classmethod
    def of(cls, ask: Ask) -> Validity:
        """From the question's mask, configuration and method."""
        mask = _expanded_mask(ask) if ask.question == "generate" else ask.inputs.get("attention_mask")
        config = ask.config or {}
        prompts = config.get("peft_type") == "PROMPT_TUNING" and ask.method != PREFIX
        given = ask.arguments if ask.question == "mask" else config  # that question has no configuration
        virtual = int(given.get("num_virtual_tokens") or 0)
        if ask.question == "attention" and "past.key" in ask.inputs:
            virtual = numpy.shape(ask.inputs["past.key"])[2]
        if config.get("task_type") == "SEQ_2_SEQ_LM" and ask.question != "generate":
            return cls._behind_encoder(ask, virtual, prompts=prompts)
        if mask is None or ask.question in ("mask", "training"):
            return cls(None, virtual, prompts)
        seen = numpy.asarray(mask) != 0
        return cls(seen, virtual, prompts, _predicting(ask, seen, virtual if prompts else 0))

    @classmethod
    def _behind_encoder(cls, ask: Ask, virtual: int, *, prompts: bool) -> Validity:
        """SEQ_2_SEQ_LM: queries and keys are the decoder's, with a mask of its own; a prompt is before the encoder's text."""
        masks = {name: ask.inputs.get(name) for name in ("attention_mask", "decoder_attention_mask")}
        seen = {name: None if mask is None else numpy.asarray(mask) != 0 for name, mask in masks.items()}
        encoder, decoder, labels = (
            seen["attention_mask"],
            seen["decoder_attention_mask"],
            ask.inputs.get("labels"),
        )
        if encoder is not None and prompts:
            encoder = numpy.concatenate([numpy.ones((len(encoder), virtual), bool), encoder], axis=1)
        predicting = None if decoder is None or labels is None else numpy.asarray(labels) != IGNORE_INDEX
        return cls(decoder, 0 if prompts else virtual, False, predicting, encoder=encoder)

    def of_tensor(self, axes: Sequence[str], shape: tuple[int, ...]) -> NDArray[Any]:
        """True where an element of a tensor with these axes counts."""
        counted = numpy.ones(shape, dtype=bool)
        if self.new_tokens is not None and "new_tokens" in axes:
            return numpy.asarray(counted & self.new_tokens[:, :, None])
        if self.sequences is not None and tuple(axes) == ("sequences",):
            return numpy.asarray(counted & self.sequences)
        if self.encoder is not None and "batch" in axes and "query" not in axes:
            counted = _narrowed(counted, self.encoder, axes, "encoder_key")
        if self.mask is None or "batch" not in axes:
            return counted
        rows = self.mask.shape[0]
        ahead = numpy.ones((rows, self.virtual), dtype=bool)
        computed = self.mask if self.predicting is None else self.mask | self.predicting
        queries = numpy.concatenate([ahead, computed], axis=1) if self.prompts else computed
        along = {"tokens": computed, "query": queries}
        if "query" not in axes:
            along["key"] = numpy.concatenate(
                [ahead, self.mask], axis=1
            )  # key and value states; scores and weights keep their masked keys
        for axis, valid in along.items():
            counted = _narrowed(counted, valid, axes, axis)
        return counted

    def words(self, axes: Sequence[str], index: tuple[int, ...]) -> str:
        """An index, said in words: "row 1, token 3 (the first after the padding), vocab 17"."""
        if len(axes) != len(index):
            return f"index {index}" if index else ""
        row = index[axes.index("batch")] if "batch" in axes else None
        said = []
        for axis, i in zip(axes, index, strict=True):
            if axis in ("tokens", "query", "key"):
                said.append(self._position(axis, i, row))
            else:
                name = {
                    "batch": "row",
                    "head_dim": "dimension",
                    "virtual": "virtual token",
                    "kv_heads": "head",
                    "heads": "head",
                    "steps": "step",
                    "new_tokens": "new token",
                    "sequences": "row",
                }
                where = f"{name.get(axis, axis)} {i}"
                said.append(
                    f"{where} ({'the first' if i == 0 else 'counted from 0'})" if axis == "steps" else where
                )
        return ", ".join(said)

    def _position(self, axis: str, i: int, row: int | None) -> str:
        ahead = self.virtual if axis == "key" or (axis == "query" and self.prompts) else 0
        start = "key: " if axis == "key" else ""
        if i < ahead:
            return f"{start}virtual token {i}"
        token = i - ahead
        if self.mask is not None and row is not None and token < self.mask.shape[1]:
            if not self.mask[row, token]:
                return f"{start}token {token} (padding)"
            if token > 0 and not self.mask[row, token - 1]:
                return f"{start}token {token} (the first after the padding)"
        return f"{start}token {token}{' (the first)' if token == 0 else ''}"


def _narrowed(counted: NDArray[Any], valid: NDArray[Any], axes: Sequence[str], axis: str) -> NDArray[Any]:
    """What counts of a tensor, where `valid` (batch, axis) says so; unchanged if it has no such axis."""
    shape = counted.shape
    if axis not in axes or valid.shape != (shape[axes.index("batch")], shape[axes.index(axis)]):
        return counted
    view = [1] * len(shape)
    view[axes.index("batch")], view[axes.index(axis)] = valid.shape
    return numpy.asarray(counted & valid.reshape(view))


def _predicting(ask: Ask, mask: NDArray[Any], ahead: int) -> NDArray[Any] | None:
    """Which positions, padding too, something is taken from: the loss, the pooled position, the ends of an answer.

    `ahead`: so many virtual tokens stand among the labels of TOKEN_CLS.
    """
    task, labels = (ask.config or {}).get("task_type"), ask.inputs.get("labels")
    if task == "QUESTION_ANS":
        return numpy.ones_like(mask)  # the softmax is over all of them
    if task == "SEQ_CLS":
        last = numpy.zeros_like(mask)
        last[:, -1] = ahead > 0  # a decoder pools it whatever it is
        return last
    if labels is None:
        return None
    counted = numpy.asarray(labels) != IGNORE_INDEX
    if task == "TOKEN_CLS":
        return numpy.asarray(counted[:, ahead:])
    return numpy.concatenate([counted[:, 1:], numpy.zeros_like(counted[:, :1])], axis=1)


def _expanded_mask(ask: Ask) -> NDArray[Any] | None:
    """The mask that `generate` begins with, inferred if none is given, each row once for each beam; None if all ones."""
    if (ask.config or {}).get("task_type") == "SEQ_2_SEQ_LM":
        return None  # what is added stands behind a start token, unmasked
    options = as_generation_config(dict(ask.arguments))
    return begin(ask.inputs["input_ids"], ask.inputs.get("attention_mask"), options)[1].attention_mask


def blind_positions(ask: Ask, computed: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, int, int]]:
    """Stage, row and query of each position that is compared, or that a token is chosen from, and sees no key at all.

    What HF computes there is an artefact of the constant behind its masks (JG-1).
    """
    valid = Validity.of(ask)
    for name, visible in computed.items():
        step = names.step_of(name)
        if step is None or not name.endswith("visible") or visible.dtype != bool:
            continue
        counted = numpy.asarray(valid.of_tensor(step.axes, visible.shape).any(axis=-1))
        if ask.question == "generate":
            counted[:, -1] = True
        for row, query in numpy.argwhere(counted & ~visible.any(axis=-1)):
            yield name, int(row), int(query)
