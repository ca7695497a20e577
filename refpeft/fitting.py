"""Whether an adapter's configuration fits a base model, and what is trained then: checked where HF fails only later, or never.

Follows HF peft 0.21.2 `mapping_func.py` (`get_peft_model`) and `peft_model.py` (`PeftModelFor….__init__`, `add_adapter`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy

from refpeft import language_model, prefix_encoder, prompt_embedding, tasks
from refpeft.arrays import Array
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.errors import ConfigError
from refpeft.fill_in import fill_in
from refpeft.stored import Stored
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.weights import HEAD, BaseModel

LANGUAGE_HEAD = "lm_head"
TASKS = {
    "decoder": ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"),
    "encoder": ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"),
    "encoder_decoder": ("SEQ_2_SEQ_LM",),
}
"""Which task types a model with such stacks can have."""
HEADS_OF_TASKS = {
    "SEQ_CLS": ["classifier", "score"],
    "TOKEN_CLS": ["classifier", "score"],
    "QUESTION_ANS": ["qa_outputs"],
}
"""What HF adds to `modules_to_save`: when a model is made, and again when its adapter is added."""
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
"""HF's classes that have the head of a task."""


def fitted(base: BaseModel, config: PromptLearningConfig, *, first: bool = True) -> PromptLearningConfig:
    """The configuration filled in from the base (CF-3), with HF's `modules_to_save` for its task (CF-9).

    `first`: whether a model is made with it; an adapter that is added to a model gets them once.

    Raises:
        ConfigError: the task is not one of this base model's, or the base has no head for it; a module is to be saved that
            refpeft does not train; a size that the base model's keys and values, or its embeddings, do not have.
    """
    _require_task(base, config)
    filled = fill_in(_with_modules(config, 2 if first else 1), base.config.hf)
    _require_sizes(base.config, config, filled)
    return filled


def trained_modules(base: BaseModel, config: PromptLearningConfig) -> dict[str, Array]:
    """The head's tensors under the names that an adapter file has: copies that are trained with the virtual tokens.

    None where no head is among `modules_to_save`. What is trained is in memory, also where the base stays in its file.
    """
    named, head = set(config.modules_to_save or ()), tasks.head_of(base, config.task_type)
    found: dict[str, Array] = {}
    if head is not None and head.module in named:
        found = tasks.head_parameters(base, head)
    elif LANGUAGE_HEAD in named and config.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        found = {"lm_head.weight": base.parameters[HEAD]}
        if "head.bias" in base.parameters and base.config.kind == "decoder":
            found["lm_head.bias"] = base.parameters["head.bias"]
    return {language_model.TRAINED + name: _in_memory(value) for name, value in found.items()}


def _in_memory(value: Any) -> Array:
    return numpy.asarray(value) if isinstance(value, Stored) else value


def prompt_shapes(config: PromptLearningConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the prompt encoder's parameters."""
    if isinstance(config, PrefixTuningConfig):
        return prefix_encoder.parameter_shapes(config)
    assert isinstance(config, PromptTuningConfig)  # noqa: S101  (the two classes there are)
    return prompt_embedding.parameter_shapes(config)


def _require_task(base: BaseModel, config: PromptLearningConfig) -> None:
    model, task = base.config, config.task_type
    if task is None:
        raise ConfigError(
            "task_type is None: HF's get_peft_model then raises KeyError, and its PeftModel runs the base model without the "
            f"prompt. Give one of {', '.join(TASKS[model.kind])}."
        )
    if task not in TASKS[model.kind]:
        raise ConfigError(
            f"task_type is {task!r}; a {model.family} base model ({model.kind.replace('_', '-')}) can have "
            f"{', '.join(TASKS[model.kind])}.{_why_not(model, task)}"
        )
    head = tasks.head_of(base, task)
    if task in HEADS_OF_TASKS and head is None:
        raise ConfigError(
            f"HF has no {model.family} model for {task}, so there is no head to train or to compare with."
        )
    if head is not None and len(tasks.head_parameters(base, head)) != len(tasks.head_tensors(head)):
        raise ConfigError(
            f"The base model's checkpoint has no complete head '{head.module}' for {task}. Load the model with transformers' "
            f"{_CLASSES[task]} and save it again with save_pretrained(directory)."
        )
    if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and HEAD not in base.parameters:
        raise ConfigError(
            f"The base model's checkpoint has no language-model head. Load the model with transformers' {_CLASSES[task]} and "
            "save it again with save_pretrained(directory)."
        )
    allowed = {*HEADS_OF_TASKS.get(task, [LANGUAGE_HEAD] if task in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else [])}
    strange = [name for name in config.modules_to_save or () if name not in allowed]
    if strange:
        raise ConfigError(
            f"modules_to_save is {config.modules_to_save}; beside the virtual tokens refpeft trains and loads "
            f"{', '.join(sorted(allowed)) or 'nothing'} for {task}, and without the others its answers would not be HF's. Leave "
            f"{', '.join(map(repr, strange))} out."
        )


def _why_not(model: ModelConfig, task: str) -> str:
    if model.kind == "encoder_decoder" and task in ("FEATURE_EXTRACTION", "TOKEN_CLS"):
        return " On the encoder alone HF drops a prefix without a word, and the whole model fails without a decoder's input."
    if model.kind == "encoder_decoder":
        return " HF's classifiers of this kind need ids, or have no head under a name that HF peft looks for, and fail."
    return ""


def _with_modules(config: PromptLearningConfig, times: int) -> PromptLearningConfig:
    added = HEADS_OF_TASKS.get(str(config.task_type), []) * times
    return replace(config, modules_to_save=[*(config.modules_to_save or ()), *added]) if added else config


def _require_sizes(model: ModelConfig, given: PromptLearningConfig, filled: PromptLearningConfig) -> None:
    prefix, own = isinstance(filled, PrefixTuningConfig), model.stack("decoder")
    submodules = 2 if model.kind == "encoder_decoder" else 1
    if filled.num_transformer_submodules != submodules:
        raise ConfigError(
            f"num_transformer_submodules is {filled.num_transformer_submodules}; a {model.family} model has {submodules}. "
            "Leave it out."
        )
    heads, layers = own.num_key_value_heads, own.num_layers
    width = heads * own.head_dim if prefix else model.embedding_width
    if given.token_dim is None and filled.token_dim != width:
        also = f" and num_attention_heads={heads}" if prefix else ""
        raise ConfigError(
            f"HF's rule (CF-3) fills in token_dim={filled.token_dim}, which this {model.family} base model cannot take: HF fails "
            f"when it runs. Give token_dim={width}{also} yourself."
        )
    if filled.token_dim != width:
        raise ConfigError(
            f"token_dim is {filled.token_dim}, but this base model needs {width}. Leave it out, or was the adapter made for "
            "another base model?"
        )
    if prefix and model.cuts_prefix and 1 in (model.sliding_windows or ()):
        raise ConfigError(
            "sliding_window of the base model is 1: HF's cache then keeps a prefix that its mask has no place for, and fails when "
            "it runs. Use prompt tuning."
        )
    enough = (
        (filled.num_layers or 0) >= layers if model.kind == "encoder_decoder" else filled.num_layers == layers
    )
    if prefix and (not enough or filled.num_attention_heads != heads):
        raise ConfigError(
            f"num_layers and num_attention_heads are {filled.num_layers} and {filled.num_attention_heads}, but this base "
            f"model has {layers} layers and {heads} key/value heads. Leave them out, or was "
            "the adapter made for another base model?"
        )
