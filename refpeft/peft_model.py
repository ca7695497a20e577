"""A frozen base model with a trainable prompt or prefix, as HF's PeftModel: make, run, train, generate, save, load.

Follows HF peft 0.21.2 `peft_model.py` and `mapping_func.py`. What a forward pass computes stands in `refpeft.tasks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from refpeft import adapter, adapters, checkpoint, counts, generation, inputs, masks, task_inputs
from refpeft import arrays as np
from refpeft.arrays import Array, Float, Parameters
from refpeft.config import PromptLearningConfig
from refpeft.errors import InputError
from refpeft.generation import GenerateOutput
from refpeft.generation_config import as_generation_config
from refpeft.shared_prompt import get_prompt
from refpeft.tasks import Output, extend_labels, forward
from refpeft.transformer.block import KeyValue
from refpeft.transformer.weights import BaseModel

__all__ = ["Output", "PeftModel", "extend_labels", "forward", "get_peft_model", "get_prompt"]


class PeftModel:
    """A frozen base model with a trainable prompt or prefix. Made by `get_peft_model` or `from_pretrained`.

    It can have several adapters, of which one is active (specs/adapters.md).

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel` and the classes of the task types; methods do what HF's of the
    same name do. refpeft's own are `config`, `value_and_grad`, `parameters`, `num_trainable_parameters`,
    `trainable_parameters`, `trainable_parameter_names` and `load_trainable_parameters`: torch has them in
    `requires_grad`, `grad` and `state_dict`.

    Attributes:
        base: The frozen base.
    """

    def __init__(
        self,
        base: BaseModel,
        config: PromptLearningConfig,
        parameters: Parameters,
        adapter_name: str = adapters.DEFAULT,
    ) -> None:
        self.base = base
        self._adapters = adapters.alone(adapter_name, adapter.of_parameters(config, parameters))
        self._disabled = False

    @property
    def config(self) -> PromptLearningConfig:
        """The active adapter's configuration, filled in from the base: HF's `active_peft_config`."""
        return self._adapters.config

    @property
    def peft_config(self) -> dict[str, PromptLearningConfig]:
        """Every adapter's configuration, by name, in the order in which they came."""
        return {name: own.config for name, own in self._adapters.every.items()}

    @property
    def active_adapter(self) -> str:
        """The name of the adapter whose virtual tokens are used."""
        return self._adapters.active

    @property
    def active_adapters(self) -> list[str]:
        """The same as a list of one, as HF has it."""
        return [self._adapters.active]

    def __call__(self, input_ids: Any, attention_mask: Any = None, **inputs: Any) -> Output:
        """Run the adapted model.

        Args:
            input_ids: Integers (batch, tokens), each below the vocabulary's size.
            attention_mask: (batch, tokens) of 0 and 1, for the text alone; the virtual tokens are added here.
            inputs: What the task has beside (`refpeft.task_inputs.ACCEPTED`), under HF's names:
                labels: CAUSAL_LM: integers (batch, tokens), −100 where no loss is wanted, not shifted. SEQ_2_SEQ_LM: of the
                    decoder's length. SEQ_CLS: a class for each text, or real numbers. TOKEN_CLS: a class for each position,
                    virtual ones of a prompt included.
                position_ids: (batch, tokens), counted without the virtual tokens. Prompt tuning ignores them with a
                    UserWarning, as HF does; QUESTION_ANS without one.
                token_type_ids: (batch, tokens); used in SEQ_CLS and TOKEN_CLS alone, as in HF.
                decoder_input_ids, decoder_attention_mask: (batch, decoder_tokens); labels are shifted for the former.
                start_positions, end_positions: (batch), counted as the logits are: virtual tokens of a prompt included.

        Raises:
            InputError: an input is not one of the task's, or has the wrong shape, dtype or range.
        """
        state = self._state()
        checked = self._checked(state.config, input_ids=input_ids, attention_mask=attention_mask, **inputs)
        return forward(state.used(), self.base, state.config, **self._placed(checked))

    def value_and_grad(
        self, input_ids: Any, labels: Any = None, attention_mask: Any = None, **inputs: Any
    ) -> tuple[Array, dict[str, Array]]:
        """The loss, a scalar, and its gradient for each trainable parameter, of the parameter's shape, under HF's name. The base gets none.

        Raises:
            InputError: as `__call__`; or there is nothing to take a loss of, or nothing that is trained.
        """
        state = self._state()
        config, used = state.config, state.used()
        given = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask, **inputs}
        checked = self._placed(self._checked(config, **given))
        span = "start_positions" in checked and "end_positions" in checked
        if self.config.task_type == "FEATURE_EXTRACTION":
            raise InputError("FEATURE_EXTRACTION has no loss to differentiate.")
        if "labels" not in checked and not span:
            wanted = (
                "start_positions and end_positions" if self.config.task_type == "QUESTION_ANS" else "labels"
            )
            raise InputError(
                f"value_and_grad needs {wanted}: without them there is no loss to differentiate."
            )
        trained = {name: value for name, value in state.trained().items() if len(value)}
        if not trained:
            raise InputError("The adapter is disabled, and nothing else is trained: there is no gradient.")

        def loss(parameters: Parameters) -> Array:
            value = forward({**used, **parameters}, self.base, config, **checked, loss_alone=True).loss
            assert value is not None  # noqa: S101  (there are labels)
            return value

        return np.value_and_grad(loss, trained)

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        return_dict_in_generate: bool = False,
        **options: Any,
    ) -> Array | GenerateOutput:
        """Continue each row, greedily or with beams; see `refpeft.generation`.

        Args:
            input_ids: As `__call__`. Pad on the left, unless an encoder reads it.
            attention_mask: As `__call__`; inferred from pad_token_id if there is none (GN-1), but not for an encoder (GN-9).
            return_dict_in_generate: Return logits or scores too.
            options: The fields of `refpeft.generation_config.GenerationConfig`; tokens that end, fill, begin or are forced are the
                base model's own (config.json) unless they are given, None included.

        Returns:
            Token ids (batch · num_return_sequences, length), the text's and the new ones; behind an encoder the start token and
            the new ones.

        Raises:
            InputError: as `__call__`; the adapter's task is another than to write; an option is unknown or wrong; there are too
                few positions.
        """
        generation.require_task(self.config)
        for name in ("eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id"):
            options.setdefault(name, self.base.config.hf.get(name))
        chosen = as_generation_config(options)
        state = self._state()
        if self._disabled:
            adapter.require_no_prompt_behind_encoder(self.config)
        checked = self._checked(state.config, input_ids=input_ids, attention_mask=attention_mask)
        output = generation.generate(state.used(), self.base, state.config, **checked, options=chosen)  # type: ignore[arg-type]
        return output if return_dict_in_generate else output.sequences

    def get_prompt(self, batch_size: int) -> Array | tuple[KeyValue, ...]:
        """The virtual tokens as the base model gets them; see `refpeft.shared_prompt.get_prompt`.

        Prompt tuning: (batch, virtual, hidden). Prefix tuning: a (key, value) for each layer, each (batch, kv_heads,
        virtual, head_dim).
        """
        return get_prompt(self._adapters.used(), self.config, batch_size, self.base)

    def prepare_attention_mask(
        self, batch_size: int, attention_mask: Any = None
    ) -> Float[Array, "batch key"]:
        """The mask over virtual and real tokens; see `refpeft.masks.prepare_attention_mask`."""
        mask = None if attention_mask is None else np.to_host(attention_mask)
        prepared = masks.prepare_attention_mask(batch_size, mask, self.config.num_virtual_tokens)
        return self.base.place(prepared)  # type: ignore[no-any-return]

    def parameters(self) -> dict[str, Array]:
        """All that the active adapter computes with: what is trained, and the heads of a loaded adapter, which HF freezes.

        Each has the shape that the method's `parameter_shapes` says; a head's is (labels, hidden) or (labels).
        """
        return self._adapters.used()

    def trainable_parameters(self) -> dict[str, Array]:
        """What a loss has gradients for, under HF's names (without the adapter's name), in HF's order.

        Each has the shape that the method's `parameter_shapes` says; a head's is (labels, hidden) or (labels).
        """
        return self._adapters.trained()

    def trainable_parameter_names(self) -> list[str]:
        """HF's names of everything with `requires_grad`, all adapters' prompt encoders included (clause AD-7)."""
        return self._adapters.trainable_names()

    def load_trainable_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Replace all trainable parameters, in the base model's dtype.

        Raises:
            InputError: a name is missing or unknown, a shape is wrong, or a value is not finite.
        """
        expected = self._adapters.trained()
        if set(parameters) != set(expected):
            raise InputError(
                f"The trainable parameters are {', '.join(expected)}; got {', '.join(sorted(parameters)) or 'none'}. "
                "Give exactly these, each an array."
            )
        new = {
            name: inputs.checked_parameter(parameters[name], name, like) for name, like in expected.items()
        }
        self._adapters = adapters.with_parameters(self._adapters, new)

    def load_prompt_embeddings(
        self, prompt_embeddings: Float[Array, "virtual width"], adapter_name: str | None = None
    ) -> None:
        """Give a prefix adapter, the active one if none is named, this flat prefix. Clause PX-7.

        Source: HF peft 0.21.2 `tuners/prefix_tuning/model.py`, `PrefixEncoder.load_prompt_embeddings`.

        Raises:
            ConfigError: the adapter is no prefix, or has a projection.
            InputError: there is no such adapter; or the shape is not the adapter's.
        """
        self._adapters = adapters.with_prefix(self._adapters, adapter_name, prompt_embeddings)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """How many numbers are trained, and how many there are: HF's counts (clauses AD-7 and AD-8)."""
        return counts.trainable_and_all(self.base, self._adapters)

    def print_trainable_parameters(self) -> None:
        """Print both, as HF does."""
        print(counts.sentence(*self.get_nb_trainable_parameters()))

    def num_trainable_parameters(self) -> int:
        """How many numbers are trained: the first of `get_nb_trainable_parameters`."""
        return self.get_nb_trainable_parameters()[0]

    def add_adapter(self, adapter_name: str, peft_config: PromptLearningConfig, seed: int = 0) -> None:
        """Add a new adapter of the same method and task, with the values that `torch.manual_seed(seed)` gives HF. Clause AD-1.

        It is not active: `set_adapter` makes it so.

        Raises:
            InputError: the name is taken, or is none.
            ConfigError: another method or task; or as `get_peft_model`.
        """
        adapters.require_new(self._adapters, adapter_name, peft_config)
        new = adapter.drawn(self.base, peft_config, seed, first=False)
        self._adapters = adapters.added(self._adapters, adapter_name, new)

    def load_adapter(self, directory: str | Path, adapter_name: str) -> None:
        """Add an adapter that HF peft or refpeft wrote, for inference; or give one that is there its weights. Clause AD-5.

        It is not active: `set_adapter` makes it so.

        Raises:
            InputError, ConfigError: as `add_adapter`.
            CheckpointError: see `refpeft.checkpoint.load`; or the adapter does not fit.
        """
        if adapter_name in self._adapters.every:
            again = adapter.reloaded(self.base, self._adapters.of(adapter_name), directory)
            self._adapters = adapters.replaced(self._adapters, adapter_name, again)
            return
        config = checkpoint.load_config(directory)
        adapters.require_new(self._adapters, adapter_name, config)
        new = adapter.loaded(self.base, config, directory, first=False)
        self._adapters = adapters.added(self._adapters, adapter_name, new)

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make an adapter the active one; its copy of the head is trained unless `inference_mode`. Clauses AD-2 and AD-3.

        Raises:
            InputError: there is no such adapter.
        """
        self._adapters = adapters.activated(self._adapters, adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if it is the active one, the first of the others becomes active, with a warning. Clause AD-4.

        Raises:
            InputError: there is no such adapter; or it is the only one, or HF fails.
        """
        self._adapters = adapters.deleted(self._adapters, adapter_name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within it, the model computes and generates without virtual tokens: `with model.disable_adapter(): …`. Clause AD-6.

        Raises:
            InputError: the task is one for which HF fails.
        """
        adapter.require_generating(self.config)
        before, self._disabled = self._disabled, True
        try:
            yield
        finally:
            self._disabled = before

    def save_pretrained(self, directory: str | Path, selected_adapters: Sequence[str] | None = None) -> None:
        """Write adapters that HF peft loads: `default` into `directory`, others into directories below it. Clause AD-5.

        Raises:
            InputError: a selected adapter is not there.
            CheckpointError: see `refpeft.checkpoint.save`.
        """
        adapters.save(self.base, self._adapters, directory, selected_adapters)

    @classmethod
    def from_pretrained(
        cls, base: BaseModel, directory: str | Path, adapter_name: str = adapters.DEFAULT
    ) -> PeftModel:
        """Load an adapter that HF peft or refpeft wrote, in inference mode.

        As in HF, a loaded adapter can be evaluated and differentiated, but a projection comes back as the flat prefix it
        was folded into.

        Raises:
            ConfigError, CheckpointError: see `refpeft.checkpoint.load`; or the adapter does not fit the base.
            InputError: the name is none.
        """
        own = adapter.loaded(base, checkpoint.load_config(directory), directory)
        return cls(base, own.config, {**own.head, **own.prompt}, adapter_name)

    def _state(self) -> adapters.Adapters:
        """What a call computes with: the adapters, or none while they are disabled."""
        return adapters.disabled(self.base, self._adapters) if self._disabled else self._adapters

    def _checked(self, config: PromptLearningConfig, **given: Any) -> dict[str, Array | None]:
        if self._disabled:
            adapter.require_no_types(given)
        return task_inputs.checked(self.base.config, config, given)

    def _placed(self, checked: Mapping[str, Array | None]) -> dict[str, Any]:
        return {name: self.base.place(value) for name, value in checked.items()}


def get_peft_model(
    base: BaseModel, config: PromptLearningConfig, seed: int = 0, adapter_name: str = adapters.DEFAULT
) -> PeftModel:
    """Put a new prompt or prefix on a base model, with the initial values that `torch.manual_seed(seed)` gives HF.

    The caller's configuration is left as it is; the model's is filled in from the base (clause CF-3). Values are drawn
    in float32, as HF's, and kept in the base model's dtype. Heads that are trained too start as the base model's.

    Source: HF peft 0.21.2 `mapping_func.py`, `get_peft_model`; `peft_model.py`, `PeftModel.__init__`.

    Raises:
        ConfigError: the configuration does not fit the base, or has no task type.
    """
    named = replace(config, base_model_name_or_path=base.config.name_or_path or None)
    own = adapter.drawn(base, named, seed)
    return PeftModel(base, own.config, {**own.head, **own.prompt}, adapter_name)
