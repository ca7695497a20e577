"""What a caller may pass to the model: checked once, with errors that say what was given and what to do.

HF peft 0.21.2 checks little of this; specs/stricter.md lists what it does instead. Every function here raises `InputError`.
"""

from __future__ import annotations

from typing import Any

import numpy

from refpeft import arrays as np
from refpeft import ops
from refpeft.arrays import Array
from refpeft.errors import InputError
from refpeft.transformer.config import ModelConfig


def _array(value: Any, name: str, kinds: str, wanted: str) -> Array:
    try:
        array = np.to_host(value)
    except ValueError:
        raise InputError(
            f"{name} must be one array, but its rows have different lengths. Pad them."
        ) from None
    if array.dtype.kind not in kinds and array.size:
        raise InputError(f"{name} must be {wanted}, got {array.dtype}.")
    return array


def _integers(value: Any, name: str) -> Array:
    array = _array(value, name, "iu", "integers")
    if array.ndim != 2:
        raise InputError(f"{name} must have shape (batch, tokens), got {array.shape}.")
    return array


def checked_parameter(value: Any, name: str, like: Array) -> Array:
    """A trainable parameter of the shape and dtype of the one that it replaces, and where that lives: real, finite.

    Raises:
        InputError: it is none; the message says what was given and what is expected.
    """
    array = _array(value, f"'{name}'", "iuf", "real numbers")
    if array.shape != like.shape:
        raise InputError(f"'{name}' must have shape {like.shape}, got {array.shape}.")
    with numpy.errstate(over="ignore"):
        converted: Array = array.astype(like.dtype)
    if not numpy.isfinite(array).all():
        raise InputError(f"'{name}' holds NaN or infinite values. Parameters must be finite.")
    if not numpy.isfinite(converted).all():
        largest = numpy.abs(array).max()
        raise InputError(f"'{name}' holds {largest}, which is too large for the base model's {like.dtype}.")
    return np.place(converted, like)


def checked_ids(input_ids: Any, model: ModelConfig, virtual: int, name: str = "input_ids") -> Array:
    """Token ids (batch, tokens), each in the vocabulary, few enough for the position table.

    Raises:
        InputError: they are others; the message says where.
    """
    ids = _integers(input_ids, name)
    vocabulary, positions = model.vocab_size, model.position_limit
    if ids.size == 0:
        raise InputError(f"{name} has shape {ids.shape}; at least one row and one token are needed.")
    if ids.min() < 0 or ids.max() >= vocabulary:
        bad = tuple(int(i) for i in numpy.argwhere((ids < 0) | (ids >= vocabulary))[0])
        raise InputError(
            f"{name}[{bad[0]}, {bad[1]}] is {ids[bad]}, but the base model's vocabulary has ids 0 to {vocabulary - 1}. "
            "Use the base model's own tokenizer."
        )
    if positions is not None and virtual + ids.shape[1] > positions:
        raise InputError(
            f"{virtual} virtual tokens and {ids.shape[1]} tokens need {virtual + ids.shape[1]} positions, but the base "
            f"model has {positions}. Shorten the text to {max(positions - virtual, 0)} tokens or use fewer virtual tokens."
        )
    return ids.astype(numpy.int64)


def _same_shape(
    array: Array, shape: tuple[int, ...], name: str, virtual: int, like: str = "input_ids"
) -> None:
    if tuple(array.shape) == shape:
        return
    hint = "Give one value for each real token."
    if array.shape == (shape[0], virtual + shape[1]):
        hint = f"It already counts the {virtual} virtual tokens; they are added here. Give the part for the text alone."
    raise InputError(f"{name} must have the shape of {like}, {shape}, got {tuple(array.shape)}. {hint}")


def checked_integers(value: Any, shape: tuple[int, ...], name: str) -> Array:
    """Integers of the shape of the ids."""
    array = _integers(value, name)
    _same_shape(array, shape, name, 0)
    return array.astype(numpy.int64)


def checked_mask(
    attention_mask: Any,
    shape: tuple[int, ...],
    virtual: int,
    name: str = "attention_mask",
    like: str = "input_ids",
) -> Array:
    """A mask of 0 and 1 for the text alone, of the shape of the ids.

    Raises:
        InputError: it is another; the message says what was given.
    """
    bfloat16 = str(getattr(attention_mask, "dtype", "")) == "bfloat16"  # no kind of NumPy's own
    mask = attention_mask.astype(numpy.float32) if bfloat16 else attention_mask
    mask = _array(mask, name, "iufb", "numbers or booleans")
    _same_shape(mask, shape, name, virtual, like)
    if not numpy.isin(mask, (0, 1)).all():
        raise InputError(f"{name} must hold only 0 (padding) and 1 (token).")
    return mask


def checked_classes(value: Any, batch: int, num_labels: int, problem_type: str | None) -> Array:
    """SEQ_CLS: a class for each text; or real numbers, one for each text (regression) or for each text and class.

    Raises:
        InputError: they are others; the message says what was given.
    """
    array = _array(value, "labels", "iuf", "numbers")
    if array.dtype.kind == "f":
        single = num_labels == 1 and array.shape == (batch,)
        if (
            not single and array.shape != (batch, num_labels)
        ) or problem_type == "single_label_classification":
            raise InputError(
                f"labels must have shape ({batch}, {num_labels}) where they are real numbers{', or be integers' if num_labels > 1 else ''}; "
                f"got {array.dtype} {array.shape}."
            )
        if not numpy.isfinite(array).all():
            raise InputError("labels hold NaN or infinite values.")
        return array
    if num_labels == 1 or problem_type == "regression":
        return checked_classes(array.astype(numpy.float64), batch, num_labels, problem_type)
    if array.shape not in ((batch,), (batch, 1)):
        raise InputError(f"labels must have shape ({batch},): one class for each text; got {array.shape}.")
    wrong = ((array < 0) | (array >= num_labels)) & (array != ops.IGNORE_INDEX)
    if wrong.any():
        raise InputError(
            f"labels hold {array[wrong][0]}; the base model's classes are 0 to {num_labels - 1}."
        )
    return array.reshape(-1).astype(numpy.int64)


def checked_labels(labels: Any, shape: tuple[int, ...], vocabulary: int, like: str = "input_ids") -> Array:
    """Labels of the shape of the ids: token ids or classes, or −100.

    Raises:
        InputError: they are others; the message says where.
    """
    array = _integers(labels, "labels")
    _same_shape(array, shape, "labels", 0, like)
    wrong = ((array < 0) | (array >= vocabulary)) & (array != ops.IGNORE_INDEX)
    if wrong.any():
        bad = tuple(int(i) for i in numpy.argwhere(wrong)[0])
        raise InputError(
            f"labels[{bad[0]}, {bad[1]}] is {array[bad]}; a label is a token id from 0 to {vocabulary - 1}, or "
            f"{ops.IGNORE_INDEX} for a position that does not count."
        )
    return array.astype(numpy.int64)


def checked_positions(position_ids: Any, shape: tuple[int, ...], virtual: int, model: ModelConfig) -> Array:
    """Positions of the text, counted without the virtual tokens, within the table.

    Raises:
        InputError: they are others; the message says what was given.
    """
    positions = _integers(position_ids, "position_ids")
    _same_shape(positions, shape, "position_ids", 0)
    if model.position_limit is None:
        if positions.min() < 0:
            raise InputError(f"position_ids begin at {positions.min()}; positions are counted from 0.")
        return positions.astype(numpy.int64)
    rows = model.max_position_embeddings if model.position_rule == "tokens" else model.position_limit
    last = (rows or 0) - virtual - 1
    if positions.min() < 0 or positions.max() > last:
        raise InputError(
            f"position_ids run from {positions.min()} to {positions.max()}; with {virtual} virtual tokens before them this "
            f"base model has positions 0 to {last} for the text."
        )
    return positions.astype(numpy.int64)
