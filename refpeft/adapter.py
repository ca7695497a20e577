"""One adapter of a model: drawn, loaded, or none at all.

Follows HF peft 0.21.2 `mapping_func.py` (`get_peft_model`), `peft_model.py` (`add_adapter`, `load_adapter`, `disable_adapter`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refpeft import arrays as np
from refpeft import checkpoint, fitting, language_model, prefix_encoder, prompt_embedding
from refpeft.arrays import Array, Parameters
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.errors import ConfigError, InputError
from refpeft.torch_random import Generator
from refpeft.transformer.weights import TOKENS, BaseModel, word_embeddings


@dataclass(frozen=True)
class Adapter:
    """One adapter: its configuration, filled in from the base, and its parameters under HF's names without the adapter's."""

    config: PromptLearningConfig
    prompt: Parameters
    """The prompt encoder's; HF never freezes them, whatever `inference_mode` says."""
    head: Parameters
    """Its own copy of the head among `modules_to_save`, or nothing."""


def of_parameters(config: PromptLearningConfig, parameters: Parameters) -> Adapter:
    """An adapter of all its parameters, heads and prompt encoder told apart by their names."""
    head = {name: value for name, value in parameters.items() if name.startswith(language_model.TRAINED)}
    return Adapter(config, {name: value for name, value in parameters.items() if name not in head}, head)


def drawn(base: BaseModel, config: PromptLearningConfig, seed: int, *, first: bool = True) -> Adapter:
    """A new adapter, with the initial values that `torch.manual_seed(seed)` gives HF; see `refpeft.get_peft_model`.

    Raises:
        ConfigError: the configuration does not fit the base, or there is no memory for the parameters.
    """
    config = fitting.fitted(base, config, first=first)
    if (
        isinstance(config, PromptTuningConfig)
        and config.prompt_tuning_init == "TEXT"
        and config.tokenizer_kwargs
    ):
        safe = {name: value for name, value in config.tokenizer_kwargs.items() if name != "trust_remote_code"}
        config = replace(config, tokenizer_kwargs=safe)  # HF drops it here too, and saves what is left
    try:
        prompt = _initial_parameters(base, config, Generator(seed))
    except MemoryError as error:
        raise ConfigError(
            f"There is no memory for the parameters of {config.num_virtual_tokens} virtual tokens. Use fewer, or a smaller "
            "encoder_hidden_size."
        ) from error
    return Adapter(config, prompt, fitting.trained_modules(base, config))


def _initial_parameters(
    base: BaseModel, config: PromptLearningConfig, generator: Generator
) -> dict[str, Array]:
    """The method's own; see its `initial_parameters`."""
    like = base.parameters[TOKENS]
    if isinstance(config, PrefixTuningConfig):
        return prefix_encoder.initial_parameters(config, generator, like)
    assert isinstance(config, PromptTuningConfig)  # noqa: S101  (the two classes there are)

    def rows(ids: Array) -> Array:
        return np.entry(word_embeddings(base, base.place(ids[None, :])), 0, 0)

    return prompt_embedding.initial_parameters(config, generator, rows, base.config.vocab_size, like)


def loaded(
    base: BaseModel, config: PromptLearningConfig, directory: str | Path, *, first: bool = True
) -> Adapter:
    """An adapter that HF peft or refpeft wrote; `config`: what `checkpoint.load_config` reads there.

    Raises:
        ConfigError, CheckpointError: see `refpeft.checkpoint.load`; or the adapter does not fit the base.
    """
    tensors = checkpoint.load_tensors(directory, base.dtype)
    config = fitting.fitted(base, config, first=first)
    wanted = {checkpoint.TENSOR: fitting.prompt_shapes(config)[prompt_embedding.EMBEDDING]}
    own = fitting.trained_modules(base, config)
    wanted |= {name: value.shape for name, value in own.items()}
    parameters = checkpoint.parameters_from(tensors, wanted, directory)
    heads = {name: checkpoint.loaded_head(parameters[name], value) for name, value in own.items()}
    return of_parameters(config, {name: base.place(value) for name, value in {**parameters, **heads}.items()})


def reloaded(base: BaseModel, adapter: Adapter, directory: str | Path) -> Adapter:
    """The weights of a directory in an adapter that is there: only they are read, adapter_config.json is not (clause AD-5).

    Raises:
        ConfigError: the adapter trains a projection, and a file holds the flat prefix.
        CheckpointError: see `refpeft.checkpoint.load`; or the shapes are others.
    """
    if isinstance(adapter.config, PrefixTuningConfig) and prefix_encoder.projects(adapter.config):
        raise ConfigError(
            "This adapter trains a projection, and an adapter directory holds the flat prefix, which cannot be taken apart "
            "again. Load it under another name."
        )
    tensors = checkpoint.load_tensors(directory, base.dtype)
    wanted = {checkpoint.TENSOR: adapter.prompt[prompt_embedding.EMBEDDING].shape}
    wanted |= {name: value.shape for name, value in adapter.head.items()}
    found = checkpoint.parameters_from(tensors, wanted, directory)
    return of_parameters(adapter.config, {name: base.place(value) for name, value in found.items()})


# ---------------------------------------------------------------- none


@dataclass(frozen=True)
class NoPrefix(PrefixTuningConfig):
    """A prefix of no virtual tokens: the base model alone, which numbers positions from 0 and extends nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "num_virtual_tokens", 0)


def require_generating(config: PromptLearningConfig) -> None:
    """Refuse to disable the adapter of a model of a task for which HF fails.

    Raises:
        InputError: the task is such.
    """
    if config.task_type not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        raise InputError(
            f"The adapter of a model for {config.task_type} cannot be disabled: HF fails (UnboundLocalError), since only models "
            "that generate have the method that it replaces."
        )


def require_no_prompt_behind_encoder(config: PromptLearningConfig) -> None:
    """Refuse to generate where HF puts the prompt in though the adapter is disabled.

    Raises:
        InputError: it does so here.
    """
    if config.task_type == "SEQ_2_SEQ_LM" and config.peft_type == "PROMPT_TUNING":
        raise InputError(
            "HF's generate puts the prompt before the encoder's text though the adapter is disabled. Generate with a prefix "
            "disabled instead: that is the base model."
        )


def require_no_types(given: Mapping[str, Any]) -> None:
    """Refuse token types, which HF hands to the base while the adapter is disabled.

    Raises:
        InputError: they are given.
    """
    if given.get("token_type_ids") is not None:
        raise InputError(
            "token_type_ids reach the base model while the adapter is disabled, and some of HF's models add them to the "
            "embeddings; with an adapter they are ignored. Leave them out."
        )


def nothing(base: BaseModel, config: PromptLearningConfig) -> Adapter:
    """The adapter that stands for the base model alone, in a model with this configuration. Clause AD-6.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.disable_adapter`, which calls the base model's own `forward`.
    """
    stack, like = base.config.stack("decoder"), base.parameters[TOKENS]
    empty = NoPrefix(
        task_type=config.task_type,
        token_dim=stack.num_key_value_heads * stack.head_dim,
        num_attention_heads=stack.num_key_value_heads,
        num_layers=stack.num_layers,
        num_transformer_submodules=config.num_transformer_submodules,
    )
    table = np.full((0, empty.prefix_embedding_dim), 0, like.dtype, like=like)
    return Adapter(empty, {prefix_encoder.EMBEDDING: table}, {})
