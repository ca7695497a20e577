"""Several adapters on one base model: which there are, which is active, whose head is used, what is trained.

Follows HF peft 0.21.2 `peft_model.py` (`add_adapter`, `set_adapter`, `delete_adapter`, `save_pretrained`) and
`utils/other.py` (`ModulesToSaveWrapper`). A state never changes: each function makes a new one, so that what fails leaves
the model as it was. Every function raises `InputError` or `ConfigError`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refpeft import checkpoint, fitting, language_model, prefix_encoder
from refpeft.adapter import Adapter, nothing
from refpeft.arrays import Array, Float, Parameters
from refpeft.config import PrefixTuningConfig, PromptLearningConfig
from refpeft.errors import ConfigError, InputError
from refpeft.inputs import checked_parameter
from refpeft.transformer.weights import BaseModel

DEFAULT = "default"
"""The name of an adapter that nobody names."""


@dataclass(frozen=True)
class Adapters:
    """All adapters of a model, the first one first, and what HF keeps beside them.

    HF puts one wrapper around the head when the first adapter with a copy of it is added. The wrapper has an active adapter
    of its own, which is not always the model's (clause AD-3).
    """

    every: Mapping[str, Adapter]
    active: str
    """Whose virtual tokens are used."""
    wrapped: bool = False
    """Whether some adapter has, or had, a copy of the head."""
    head: str | None = None
    """Whose copy of the head is used; None: the base model's own."""
    head_trains: bool = False
    """Whether that copy is trained."""

    @property
    def config(self) -> PromptLearningConfig:
        """The active adapter's."""
        return self.every[self.active].config

    def of(self, name: str) -> Adapter:
        """The adapter of a name.

        Raises:
            InputError: there is none (HF: KeyError).
        """
        _require_string(name)
        if name not in self.every:
            raise InputError(f"There is no adapter '{name}'; there are {', '.join(self.every)}.")
        return self.every[name]

    def used(self) -> dict[str, Array]:
        """What the active model computes with beside the base, in HF's order: the head, then the prompt encoder."""
        head = {} if self.head is None else self.every[self.head].head
        return {**head, **self.every[self.active].prompt}

    def trained(self) -> dict[str, Array]:
        """What a loss of the active model has gradients for, in HF's order."""
        used = self.used()
        return used if self.head_trains else {name: used[name] for name in self.every[self.active].prompt}

    def trainable_names(self) -> list[str]:
        """HF's names of all parameters with `requires_grad`, with the adapters' names, in HF's order (clause AD-7).

        Those of inactive adapters' prompt encoders are among them: they get no gradient, and an optimiser leaves them.
        """
        named: list[str] = []
        if self.head is not None and self.head_trains:
            for name in self.every[self.head].head:
                module, rest = name.removeprefix(language_model.TRAINED).split(".", 1)
                named.append(f"{language_model.TRAINED}{module}.modules_to_save.{self.head}.{rest}")
        for adapter, own in self.every.items():
            named += [name.replace("prompt_encoder.", f"prompt_encoder.{adapter}.", 1) for name in own.prompt]
        return named


def alone(name: str, adapter: Adapter) -> Adapters:
    """The first adapter, which is active. Its head is trained, unless it is for inference.

    Raises:
        InputError: the name is none.
    """
    _require_name(name)
    _warn_of_name(name, adapter.config)
    modules = (
        adapter.config.modules_to_save or () if adapter.config.task_type in fitting.HEADS_OF_TASKS else ()
    )
    if any(name.endswith(module) for module in modules):
        raise InputError(
            f"An adapter of this task cannot be called '{name}': HF takes every module whose name ends with one of "
            f"{', '.join(dict.fromkeys(modules))} for the head, and copies the prompt encoder. Choose another name."
        )
    return added(Adapters({}, name), name, adapter)


def require_new(adapters: Adapters, name: str, config: PromptLearningConfig) -> None:
    """Refuse an adapter that cannot stand beside the others, in HF's order and words. Clause AD-1.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.add_adapter`.

    Raises:
        InputError: the name is none, or taken.
        ConfigError: the method or the task is another.
    """
    _require_name(name)
    if name in adapters.every:
        raise InputError(f"Adapter with name '{name}' already exists.")
    _warn_of_name(name, config)
    peft_type, task = adapters.config.peft_type, adapters.config.task_type
    if config.peft_type != peft_type:
        raise ConfigError(
            "Cannot combine adapters with different peft types. "
            f"Found PeftType.{peft_type} and PeftType.{config.peft_type}."
        )
    if config.task_type != task:
        raise ConfigError(
            f"task_type is {config.task_type!r}, but the model is one for {task}: HF takes the adapter and computes {task} with it. "
            f"Give task_type={task!r}."
        )


def added(adapters: Adapters, name: str, adapter: Adapter) -> Adapters:
    """One adapter more, which is not active. Clauses AD-1 and AD-3.

    HF freezes the whole base first, all copies of the head included. If the new adapter has a copy, the *used* one is
    trained again, unless the new adapter is for inference; if it is the first with a copy, its copy is used at once.

    Source: HF peft 0.21.2 `peft_model.py` `_setup_prompt_encoder`; `utils/other.py` `_set_trainable`, `ModulesToSaveWrapper`.
    """
    head, trains = adapters.head, False
    if adapter.head:
        head = head if adapters.wrapped else name
        trains = head is not None and not adapter.config.inference_mode
    wrapped = adapters.wrapped or bool(adapter.head)
    return Adapters({**adapters.every, name: adapter}, adapters.active, wrapped, head, trains)


def activated(adapters: Adapters, name: str, *, inference_mode: bool = False) -> Adapters:
    """Another adapter is active: its virtual tokens, and its copy of the head or the base model's own. Clause AD-2.

    The copy is then trained, unless `inference_mode`, whatever the adapter's configuration says.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.set_adapter`; `utils/other.py`, `_set_adapter`.

    Raises:
        InputError: there is no such adapter.
    """
    _require_string(name)
    if name not in adapters.every:
        raise InputError(f"Adapter {name} not found.")
    head = name if adapters.every[name].head else None
    return replace(adapters, active=name, head=head, head_trains=head is not None and not inference_mode)


def deleted(adapters: Adapters, name: str) -> Adapters:
    """One adapter less; if it was active, the first of the others is. Clause AD-4.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.delete_adapter`; `utils/other.py`, `ModulesToSaveWrapper.delete_adapter`.

    Raises:
        InputError: there is no such adapter; or it is the only one; or HF fails.
    """
    _require_string(name)
    if name not in adapters.every:
        raise InputError(f"Adapter {name} does not exist")
    others = {other: value for other, value in adapters.every.items() if other != name}
    if not others:
        raise InputError(
            f"Adapter {name} is the only one: HF deletes it and leaves a model that cannot be called. Add and activate another "
            "adapter first, or use the base model."
        )
    head, trains = _head_without(adapters, name, others)
    active = adapters.active
    if active == name:
        active = next(iter(others))
        warnings.warn(
            f"Adapter {name} was active which is now deleted. Setting active adapter to {active}.",
            stacklevel=3,
        )
    return Adapters(others, active, adapters.wrapped, head, trains)


def _head_without(adapters: Adapters, name: str, others: Mapping[str, Adapter]) -> tuple[str | None, bool]:
    """Whose copy of the head is used then, and whether it is trained."""
    if not adapters.every[name].head:
        return adapters.head, adapters.head_trains
    if len(others) > 1:
        raise InputError(
            f"Attempted to set multiple ({list(others)}) adapters at once for ModulesToSaveWrapper, which is not allowed. HF "
            f"cannot delete '{name}', which has a copy of the head, while more than one other adapter is there. Nothing was "
            "deleted: save those that shall stay, and load them into a new model."
        )
    (left,) = others
    if not others[left].head:
        return None, False
    if adapters.head is None:
        raise InputError(
            f"HF cannot delete '{name}' while no copy of the head is used (IndexError). Nothing was deleted: activate "
            f"'{left}' with set_adapter first."
        )
    return left, adapters.head_trains if adapters.head == left else True


def replaced(adapters: Adapters, name: str, adapter: Adapter) -> Adapters:
    """Other parameters in an adapter that is there."""
    return replace(adapters, every={**adapters.every, name: adapter})


def disabled(base: BaseModel, adapters: Adapters) -> Adapters:
    """Without the active adapter's virtual tokens. The used copy of the head stays, as in HF. Clause AD-6."""
    own = adapters.every[adapters.active]
    return replaced(adapters, adapters.active, replace(nothing(base, own.config), head=own.head))


def with_prefix(adapters: Adapters, name: str | None, prompt_embeddings: Float[Array, ...]) -> Adapters:
    """A flat prefix in the adapter of that name, or the active one. Clause PX-7.

    Raises:
        ConfigError: the adapter is no prefix, or has a projection.
        InputError: there is no such adapter; or the shape is not the adapter's.
    """
    name = adapters.active if name is None else name
    own = adapters.of(name)
    if not isinstance(own.config, PrefixTuningConfig):
        raise ConfigError(f"Adapter '{name}' is no prefix: its peft_type is {own.config.peft_type}.")
    prompt = prefix_encoder.load_prompt_embeddings(own.prompt, own.config, prompt_embeddings)
    checked = {key: checked_parameter(value, key, own.prompt[key]) for key, value in prompt.items()}
    return replaced(adapters, name, replace(own, prompt=checked))


def with_parameters(adapters: Adapters, parameters: Parameters) -> Adapters:
    """The used head's and the active adapter's parameters replaced by those among `parameters`."""
    every = dict(adapters.every)
    for name in (adapters.head, adapters.active):
        if name is not None:
            own = every[name]
            prompt = own.prompt
            if name == adapters.active:
                prompt = {key: parameters.get(key, value) for key, value in prompt.items()}
            head = own.head
            if name == adapters.head:
                head = {key: parameters.get(key, value) for key, value in head.items()}
            every[name] = Adapter(own.config, prompt, head)
    return replace(adapters, every=every)


def _require_string(name: Any) -> None:
    if not isinstance(name, str):
        raise InputError(f"An adapter's name is a string, not {name!r}. One adapter is active at a time.")


def _require_name(name: Any) -> None:
    _require_string(name)
    if not name or any(sign in name for sign in "./\\") or not name.isprintable():
        raise InputError(
            f"{name!r} cannot be the name of an adapter: it becomes part of parameters' names and the name of a directory. "
            "Use one without '.', '/' and '\\'."
        )


def _warn_of_name(name: str, config: PromptLearningConfig) -> None:
    prefix = f"{str(config.peft_type).lower()}_"
    if name in prefix:
        warnings.warn(
            f"Adapter name '{name}' should not be contained in the prefix '{prefix}'. "
            "This may lead to reinitialization of the adapter weights during loading.",
            stacklevel=4,
        )


def save(
    base: BaseModel, adapters: Adapters, directory: str | Path, selected: Sequence[str] | None = None
) -> None:
    """Each adapter, or each selected one, into a directory of its own; see `refpeft.PeftModel.save_pretrained`. Clause AD-5.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.save_pretrained`.

    Raises:
        InputError: a selected adapter is not there.
        CheckpointError: see `refpeft.checkpoint.save`.
    """
    names = list(adapters.every)
    if any(name not in names for name in selected or ()):
        raise InputError(
            "You passed an invalid `selected_adapters` arguments, current supported adapter names are"
            f" {names} - got {selected}."
        )
    for name in names if selected is None else selected:
        own = adapters.every[name]
        path = Path(directory) if name == DEFAULT else Path(directory) / name
        named = own.config.base_model_name_or_path or base.config.name_or_path or None
        checkpoint.save(path, replace(own.config, base_model_name_or_path=named), {**own.head, **own.prompt})
