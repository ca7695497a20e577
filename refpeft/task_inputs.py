"""What a caller may pass to a model of each task type: checked once, HF's warnings given, and handed on as `tasks.Batch` has it.

Every function raises `InputError`; specs/stricter.md lists what HF does in its place.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy

from refpeft import arrays as np
from refpeft import inputs
from refpeft.arrays import Array
from refpeft.config import PromptLearningConfig, PromptTuningConfig
from refpeft.errors import InputError
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import family_of

COMMON = ("input_ids", "attention_mask", "position_ids")
ACCEPTED = {
    "CAUSAL_LM": (*COMMON, "labels", "token_type_ids"),
    "SEQ_2_SEQ_LM": ("input_ids", "attention_mask", "labels", "decoder_input_ids", "decoder_attention_mask"),
    "SEQ_CLS": (*COMMON, "labels", "token_type_ids"),
    "TOKEN_CLS": (*COMMON, "labels", "token_type_ids"),
    "QUESTION_ANS": (*COMMON, "token_type_ids", "start_positions", "end_positions"),
    "FEATURE_EXTRACTION": (*COMMON, "token_type_ids"),
}
"""Which inputs a task type has."""
POSITIONS = "Position ids are not supported for parameter efficient tuning. Ignoring position ids."
TYPES = "Token type ids are not supported for parameter efficient tuning. Ignoring token type ids"
"""HF's words, when it drops an input."""


def checked(
    model: ModelConfig, config: PromptLearningConfig, given: dict[str, Any]
) -> dict[str, Array | None]:
    """The inputs of one call, those that HF ignores left out.

    Raises:
        InputError: the task has no such input, or an input has the wrong shape, dtype or range.
    """
    task, virtual = str(config.task_type), config.num_virtual_tokens
    given = {name: value for name, value in given.items() if value is not None}
    strange = sorted(given.keys() - set(ACCEPTED[task]))
    if strange:
        raise InputError(f"{task} has no {', '.join(strange)}; it takes {', '.join(ACCEPTED[task])}.")
    if "input_ids" not in given:
        raise InputError("You have to provide input_ids: integers (batch, tokens).")
    prompt = isinstance(config, PromptTuningConfig)
    encoder_virtual = virtual if prompt or model.kind != "encoder_decoder" else 0
    ids = inputs.checked_ids(given["input_ids"], model, encoder_virtual)
    found: dict[str, Array | None] = {"input_ids": ids}
    if "attention_mask" in given:
        found["attention_mask"] = inputs.checked_mask(given["attention_mask"], ids.shape, encoder_virtual)
    if "position_ids" in given:
        found["position_ids"] = _positions(model, config, given["position_ids"], ids.shape)
    if "token_type_ids" in given:
        found["token_type_ids"] = _types(model, config, given["token_type_ids"], ids.shape)
    if task == "SEQ_2_SEQ_LM":
        found |= _decoder(model, config, given, ids)
    elif task == "QUESTION_ANS":
        found |= _span(given, ids.shape)
    elif "labels" in given:
        found["labels"] = _labels(model, config, given["labels"], ids.shape)
    if task == "SEQ_CLS" and model.kind == "decoder" and model.pad_token_id is None and ids.shape[0] > 1:
        raise InputError(
            "Cannot handle batch sizes > 1 if no padding token is defined. Set pad_token_id in the base model's config.json, or "
            "give one text at a time."
        )
    return found


def _positions(
    model: ModelConfig, config: PromptLearningConfig, value: Any, shape: tuple[int, ...]
) -> Array | None:
    if config.task_type == "QUESTION_ANS":  # HF takes them and looks at them no more
        return None
    if isinstance(config, PromptTuningConfig):
        warnings.warn(POSITIONS, stacklevel=5)
        return None
    if config.task_type in ("SEQ_CLS", "TOKEN_CLS") and family_of(model.family).heads_drop_positions:
        return None
    return inputs.checked_positions(value, shape, config.num_virtual_tokens, model)


def _types(
    model: ModelConfig, config: PromptLearningConfig, value: Any, shape: tuple[int, ...]
) -> Array | None:
    if config.task_type in ("CAUSAL_LM", "FEATURE_EXTRACTION"):
        warnings.warn(TYPES, stacklevel=5)
        return None
    if config.task_type == "QUESTION_ANS":
        return None
    types = inputs.checked_integers(value, shape, "token_type_ids")
    if model.token_types == 0:
        raise InputError(f"A {model.family} base model has no token types. Leave token_type_ids out.")
    if types.min() < 0 or types.max() >= model.token_types:
        raise InputError(
            f"token_type_ids run from {types.min()} to {types.max()}; the base model has types 0 to {model.token_types - 1}."
        )
    return types


def _labels(model: ModelConfig, config: PromptLearningConfig, value: Any, shape: tuple[int, ...]) -> Array:
    if config.task_type == "CAUSAL_LM":
        return inputs.checked_labels(value, shape, model.vocab_size)
    if config.task_type == "TOKEN_CLS":
        virtual = config.num_virtual_tokens if isinstance(config, PromptTuningConfig) else 0
        long = (shape[0], virtual + shape[1])
        if virtual and numpy.shape(value) == shape:
            raise InputError(
                f"labels must have shape {long}, got {shape}: in TOKEN_CLS HF gives logits for the {virtual} virtual tokens too and "
                f"does not extend the labels. Put {virtual} times {-100} before each row."
            )
        return inputs.checked_labels(value, long, model.num_labels)
    return inputs.checked_classes(value, shape[0], model.num_labels, model.problem_type)


def _span(given: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Array | None]:
    """Where answers start and end, counted in the positions of the logits; HF clamps what lies outside."""
    found: dict[str, Array | None] = {}
    for name in ("start_positions", "end_positions"):
        if name in given:
            array = np.to_host(given[name])
            if array.dtype.kind not in "iu" or array.shape not in ((shape[0],), (shape[0], 1)):
                raise InputError(
                    f"{name} must be integers of shape ({shape[0]},), got {array.dtype} {array.shape}."
                )
            found[name] = array.reshape(-1).astype(numpy.int64)
    return found


def _decoder(
    model: ModelConfig, config: PromptLearningConfig, given: dict[str, Any], ids: Array
) -> dict[str, Array | None]:
    """Labels, and what the decoder reads."""
    found: dict[str, Array | None] = {}
    prefix = 0 if isinstance(config, PromptTuningConfig) else config.num_virtual_tokens
    shape: tuple[int, ...] | None = None
    if "decoder_input_ids" in given:
        found["decoder_input_ids"] = inputs.checked_ids(
            given["decoder_input_ids"], model, prefix, "decoder_input_ids"
        )
        shape = found["decoder_input_ids"].shape  # type: ignore[union-attr]
    if "labels" in given:
        wanted = shape if shape is not None else numpy.shape(given["labels"])
        found["labels"] = inputs.checked_labels(
            given["labels"], wanted, model.vocab_size, "decoder_input_ids"
        )
        shape = wanted
    for name, array in found.items():
        if array is not None and array.shape[0] != ids.shape[0]:
            raise InputError(f"{name} has {array.shape[0]} rows, input_ids has {ids.shape[0]}. Give as many.")
    shape = shape or ids.shape
    if model.position_limit is not None and prefix + shape[1] > model.position_limit:
        raise InputError(
            f"{prefix} virtual tokens and {shape[1]} tokens of the decoder need {prefix + shape[1]} positions, but the base model "
            f"has {model.position_limit}."
        )
    if "decoder_attention_mask" in given:
        mask = inputs.checked_mask(
            given["decoder_attention_mask"], shape, prefix, "decoder_attention_mask", "the decoder's tokens"
        )
        found["decoder_attention_mask"] = mask
    return found
