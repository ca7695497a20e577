"""The inputs of a drawn question: texts, masks, labels, and what one attention layer is given; see `refpeft.oracle.drawn`.

`Drawn.inputs` says which there are: `mask` (full, left, right), `padded_with_pads`, `positions`, `token_types`, `labels`, for
SEQ_CLS `problem`, behind an encoder `decoder` (labels, decoder_input_ids, both) and `decoder_mask`; of attention `past` and
`stack`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy
from numpy.typing import NDArray

from refpeft.config import PromptLearningConfig
from refpeft.ops import IGNORE_INDEX
from refpeft.oracle.questions import PROMPT
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.weights import BaseModel

if TYPE_CHECKING:
    from refpeft.oracle.drawn import Drawn

Inputs = dict[str, NDArray[Any]]
Random = numpy.random.Generator
PROBLEMS = ("single_label_classification", "regression", "multi_label_classification")
"""The losses of SEQ_CLS."""
DECODER_READS = ("labels", "decoder_input_ids", "both")
"""What a decoder behind an encoder is given."""
IGNORED = 0.3
"""The part of labels that are to be ignored."""


def make(
    drawn: Drawn, base: BaseModel, config: PromptLearningConfig, random: Random
) -> tuple[Inputs, dict[str, Any]]:
    """The input tensors without parameters, and the arguments."""
    arguments = dict(drawn.arguments)
    if drawn.question == "prefix.encode":
        arguments["batch_size"] = drawn.batch
        if base.config.cuts_prefix and base.config.sliding_windows:
            arguments["sliding_windows"] = list(base.config.sliding_windows)
        return {}, arguments
    if drawn.question == "checkpoint.save":
        return {}, arguments
    if drawn.question == "mask":
        mask = make_mask(random, (drawn.batch, drawn.tokens), drawn.inputs.get("mask"))
        given = {} if mask is None else {"attention_mask": mask}
        return given, {**arguments, "batch_size": drawn.batch, "num_virtual_tokens": drawn.virtual}
    if drawn.question == "attention":
        return _attention(drawn, base.config, random), arguments
    if drawn.question != "training":
        return _text(drawn, base.config, random), arguments
    batches = [_text(drawn, base.config, random) for _ in range(int(arguments.pop("micro_batches")))]
    return {name: numpy.stack([batch[name] for batch in batches]) for name in batches[0]}, arguments


def make_mask(random: Random, shape: tuple[int, int], kind: str | None) -> NDArray[Any] | None:
    """None; ones; or padding on one side, in some rows, of all tokens but one at most."""
    if kind is None:
        return None
    mask = numpy.ones(shape, dtype=numpy.int64)
    for row in mask:
        padded = int(random.integers(0, shape[1]))
        if kind == "left":
            row[:padded] = 0
        elif kind == "right":
            row[shape[1] - padded :] = 0
    return mask


def _text(drawn: Drawn, base: ModelConfig, random: Random) -> Inputs:
    """What the model is given beside its parameters."""
    kinds, shape = drawn.inputs, (drawn.batch, drawn.tokens)
    ids = random.integers(0, base.vocab_size, shape)
    inputs: Inputs = {"input_ids": ids}
    mask = make_mask(random, shape, kinds.get("mask"))
    if mask is not None:
        inputs["attention_mask"] = mask
        if "padded_with_pads" in kinds and base.pad_token_id is not None:
            inputs["input_ids"] = ids = numpy.where(mask == 1, ids, base.pad_token_id)
    if "positions" in kinds:
        inputs["position_ids"] = random.integers(0, drawn.tokens, shape)
    if "token_types" in kinds:
        inputs["token_type_ids"] = random.integers(0, base.token_types or 2, shape)
    if drawn.task_type == "SEQ_2_SEQ_LM":
        return {**inputs, **_decoder_inputs(drawn, base, random)}
    return {**inputs, **(_labels(drawn, base, random, ids) if kinds.get("labels") else {})}


def some(random: Random, labels: NDArray[Any]) -> NDArray[Any]:
    """Labels of which some are ignored, the last of the first row never."""
    ignored = random.random(labels.shape) < IGNORED
    ignored[(0, *(-1,) * (labels.ndim - 1))] = False
    return numpy.where(ignored, IGNORE_INDEX, labels)


def _labels(drawn: Drawn, base: ModelConfig, random: Random, ids: NDArray[Any]) -> Inputs:
    """What the task takes a loss of, some of it to be ignored."""
    task, ahead = drawn.task_type, drawn.virtual if drawn.method == PROMPT else 0
    if task == "CAUSAL_LM":
        return {"labels": some(random, ids)}
    if task == "QUESTION_ANS":  # beyond the text HF ignores, or cuts
        positions = {
            name: random.integers(0, drawn.tokens + ahead + 3, drawn.batch)
            for name in ("start_positions", "end_positions")
        }
        for value in positions.values():
            value[0] %= drawn.tokens
        return positions
    if task == "TOKEN_CLS":
        shape = (drawn.batch, drawn.tokens + ahead)
        return {"labels": some(random, random.integers(0, base.num_labels, shape))}
    if task != "SEQ_CLS":
        return {}
    kind = drawn.inputs.get("problem", PROBLEMS[0])
    if kind == PROBLEMS[0]:
        return {"labels": random.integers(0, base.num_labels, drawn.batch)}
    shape = (drawn.batch, base.num_labels)
    if kind == PROBLEMS[2]:
        return {"labels": random.integers(0, 2, shape).astype(numpy.float32)}
    return {"labels": random.normal(0, 1, shape[: 1 + (base.num_labels > 1)]).astype(numpy.float32)}


def _decoder_inputs(drawn: Drawn, base: ModelConfig, random: Random) -> Inputs:
    """What the decoder behind an encoder reads; nothing where it begins by itself, to generate."""
    if drawn.question == "generate":
        return {}
    way, shape, found = (
        drawn.inputs.get("decoder", DECODER_READS[0]),
        (drawn.batch, drawn.decoder_tokens),
        Inputs(),
    )
    if way in ("labels", "both"):
        found["labels"] = some(random, random.integers(0, base.vocab_size, shape))
    if way in ("decoder_input_ids", "both"):
        found["decoder_input_ids"] = random.integers(0, base.vocab_size, shape)
    mask = make_mask(random, shape, drawn.inputs.get("decoder_mask"))
    if mask is not None:
        found["decoder_attention_mask"] = mask
    return found


def _attention(drawn: Drawn, base: ModelConfig, random: Random) -> Inputs:
    """Hidden states that are normed already, a past, and which keys are seen: each query's own, and some of those before it."""
    own = base.stack("encoder" if drawn.arguments.get("stack") == "encoder" else "decoder")
    batch, tokens, virtual = drawn.batch, drawn.tokens, drawn.virtual if "past" in drawn.inputs else 0

    def draw(*shape: int) -> NDArray[Any]:
        values: NDArray[Any] = random.normal(0.0, 1.0, shape).astype(ml_dtypes.bfloat16).astype(numpy.float32)
        return values

    inputs = {"hidden": draw(batch, tokens, own.hidden_size)}
    if virtual:
        shape = (batch, own.num_key_value_heads, virtual, own.head_dim)
        inputs |= {"past.key": draw(*shape), "past.value": draw(*shape)}
    key, query = numpy.arange(virtual + tokens), numpy.arange(virtual, virtual + tokens)[:, None]
    visible = numpy.broadcast_to(key <= query, (batch, tokens, virtual + tokens))
    mask = make_mask(random, (batch, tokens), drawn.inputs.get("mask"))
    if mask is not None:
        seen = numpy.concatenate([numpy.ones((batch, virtual), bool), mask == 1], axis=1)
        visible = visible & (seen[:, None, :] | (key == query))
    inputs["visible"] = numpy.ascontiguousarray(visible)
    return inputs
