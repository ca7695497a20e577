"""refpeft: an executable specification of Prompt Tuning and Prefix Tuning, and a conformance oracle for their ports.

import refpeft

base = refpeft.load_base_model("path/to/hf_checkpoint")
config = refpeft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
model = refpeft.get_peft_model(base, config, seed=0)
output = model(input_ids=ids, attention_mask=mask, labels=labels)
loss, gradients = model.value_and_grad(input_ids=ids, attention_mask=mask, labels=labels)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.4.0"

if TYPE_CHECKING:
    from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
    from refpeft.errors import CheckpointError, ConfigError, InputError, RefpeftError
    from refpeft.generation import GenerateOutput
    from refpeft.kv_prefix import (
        compose_prefix_adapters,
        initialize_kv_prefix_from_past_key_values,
        initialize_kv_prefix_from_text,
        prompt_embeddings_from_past_key_values,
    )
    from refpeft.peft_model import Output, PeftModel, get_peft_model
    from refpeft.trainer import TrainingResult, train
    from refpeft.training import TrainingArguments
    from refpeft.transformer.config import ModelConfig
    from refpeft.transformer.weights import BaseModel, load_base_model

_HOMES = {
    "BaseModel": "refpeft.transformer.weights",
    "CheckpointError": "refpeft.errors",
    "ConfigError": "refpeft.errors",
    "GenerateOutput": "refpeft.generation",
    "InputError": "refpeft.errors",
    "ModelConfig": "refpeft.transformer.config",
    "Output": "refpeft.peft_model",
    "PeftModel": "refpeft.peft_model",
    "PrefixTuningConfig": "refpeft.config",
    "PromptLearningConfig": "refpeft.config",
    "PromptTuningConfig": "refpeft.config",
    "RefpeftError": "refpeft.errors",
    "TrainingArguments": "refpeft.training",
    "TrainingResult": "refpeft.trainer",
    "compose_prefix_adapters": "refpeft.kv_prefix",
    "get_peft_model": "refpeft.peft_model",
    "initialize_kv_prefix_from_past_key_values": "refpeft.kv_prefix",
    "initialize_kv_prefix_from_text": "refpeft.kv_prefix",
    "load_base_model": "refpeft.transformer.weights",
    "prompt_embeddings_from_past_key_values": "refpeft.kv_prefix",
    "train": "refpeft.trainer",
}


def __getattr__(name: str) -> Any:
    """Public names and modules are imported when they are first used, so that `refpeft --help` need not wait."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    try:
        return import_module(f"refpeft.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"refpeft.{name}":
            raise
        raise AttributeError(f"module 'refpeft' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


__all__ = [
    "BaseModel",
    "CheckpointError",
    "ConfigError",
    "GenerateOutput",
    "InputError",
    "ModelConfig",
    "Output",
    "PeftModel",
    "PrefixTuningConfig",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "RefpeftError",
    "TrainingArguments",
    "TrainingResult",
    "compose_prefix_adapters",
    "get_peft_model",
    "initialize_kv_prefix_from_past_key_values",
    "initialize_kv_prefix_from_text",
    "load_base_model",
    "prompt_embeddings_from_past_key_values",
    "train",
]
