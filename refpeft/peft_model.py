"""A frozen base model with a trainable prompt or prefix, as HF's PeftModel: make, run, train, generate, save, load.

Follows HF peft 0.21.2 `peft_model.py` and `mapping_func.py`. What a forward pass computes stands in `refpeft.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy

from refpeft import arrays as np
from refpeft import (
    checkpoint,
    fitting,
    generation,
    inputs,
    masks,
    prefix_encoder,
    prompt_embedding,
    task_inputs,
    tasks,
)
from refpeft.arrays import Array, Float, Parameters
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.errors import ConfigError, InputError
from refpeft.generation import GenerateOutput
from refpeft.generation_config import as_generation_config
from refpeft.tasks import Output, extend_labels, forward, get_prompt
from refpeft.torch_random import Generator
from refpeft.transformer.block import KeyValue
from refpeft.transformer.weights import TOKENS, BaseModel, word_embeddings

__all__ = ["Output", "PeftModel", "extend_labels", "forward", "get_peft_model", "get_prompt"]


class PeftModel:
    """A frozen base model with a trainable prompt or prefix. Made by `get_peft_model` or `from_pretrained`.

    Attributes:
        base: The frozen base.
        config: Filled in from the base.
    """

    def __init__(self, base: BaseModel, config: PromptLearningConfig, parameters: Parameters) -> None:
        self.base = base
        self.config = config
        heads = {name: value for name, value in parameters.items() if name.startswith(tasks.TRAINED)}
        self._frozen = heads if config.inference_mode else {}
        self._parameters = {name: value for name, value in parameters.items() if name not in self._frozen}

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
        checked = self._checked(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        return forward({**self._frozen, **self._parameters}, self.base, self.config, **checked)  # type: ignore[arg-type]

    def value_and_grad(
        self, input_ids: Any, labels: Any = None, attention_mask: Any = None, **inputs: Any
    ) -> tuple[Array, dict[str, Array]]:
        """The loss, and its gradient for each trainable parameter under HF's name. The base gets none.

        Raises:
            InputError: as `__call__`; or there is nothing to take a loss of.
        """
        checked = self._checked(input_ids=input_ids, labels=labels, attention_mask=attention_mask, **inputs)
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

        def loss(parameters: Parameters) -> Array:
            value = forward({**self._frozen, **parameters}, self.base, self.config, **checked).loss  # type: ignore[arg-type]
            assert value is not None  # noqa: S101  (there are labels)
            return value

        return np.value_and_grad(loss, self._parameters)

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
            input_ids: As `__call__`. Pad on the left.
            attention_mask: As `__call__`; inferred from pad_token_id if there is none (GN-1).
            return_dict_in_generate: Return logits or scores too.
            options: The fields of `refpeft.generation_config.GenerationConfig`; eos_token_id and pad_token_id are the base model's
                own (config.json) unless they are given, None included.

        Returns:
            Token ids (batch · num_return_sequences, length), the text's and the new ones.

        Raises:
            InputError: as `__call__`; an option is unknown or wrong; there are too few positions.
        """
        for name in ("eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id"):
            options.setdefault(name, self.base.config.hf.get(name))
        chosen = as_generation_config(options)
        checked = self._checked(input_ids=input_ids, attention_mask=attention_mask)
        parameters = {**self._frozen, **self._parameters}
        output = generation.generate(parameters, self.base, self.config, **checked, options=chosen)  # type: ignore[arg-type]
        return output if return_dict_in_generate else output.sequences

    def get_prompt(self, batch_size: int) -> Array | tuple[KeyValue, ...]:
        """The virtual tokens as the base model gets them; see `refpeft.peft_model.get_prompt`."""
        return get_prompt(self._parameters, self.config, batch_size, self.base)

    def prepare_attention_mask(
        self, batch_size: int, attention_mask: Any = None
    ) -> Float[Array, "batch key"]:
        """The mask over virtual and real tokens; see `refpeft.masks.prepare_attention_mask`."""
        mask = None if attention_mask is None else numpy.asarray(attention_mask)
        return masks.prepare_attention_mask(batch_size, mask, self.config.num_virtual_tokens)

    def parameters(self) -> dict[str, Array]:
        """All of the adapter's parameters: those that are trained, and the heads of a loaded adapter, which HF freezes."""
        return {**self._frozen, **self._parameters}

    def trainable_parameters(self) -> dict[str, Array]:
        """The trainable parameters under HF's names (without the adapter's name), in HF's order."""
        return dict(self._parameters)

    def load_trainable_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Replace all trainable parameters, in the base model's dtype.

        Raises:
            InputError: a name is missing or unknown, a shape is wrong, or a value is not finite.
        """
        expected = {name: value.shape for name, value in self._parameters.items()}
        if set(parameters) != set(expected):
            raise InputError(
                f"The trainable parameters are {', '.join(expected)}; got {', '.join(sorted(parameters)) or 'none'}. "
                "Give exactly these, each an array."
            )
        self._parameters = {
            name: inputs.checked_parameter(parameters[name], name, shape, self.base.dtype)
            for name, shape in expected.items()
        }

    def num_trainable_parameters(self) -> int:
        """How many numbers are trained. Source: HF peft 0.21.2 `get_nb_trainable_parameters`."""
        return sum(int(numpy.prod(value.shape)) for value in self._parameters.values())

    def save_pretrained(self, directory: str | Path) -> None:
        """Write an adapter that HF peft loads; see `refpeft.checkpoint.save`."""
        named = self.config.base_model_name_or_path or self.base.config.name_or_path or None
        parameters = {**self._frozen, **self._parameters}
        checkpoint.save(directory, replace(self.config, base_model_name_or_path=named), parameters)

    @classmethod
    def from_pretrained(cls, base: BaseModel, directory: str | Path) -> PeftModel:
        """Load an adapter that HF peft or refpeft wrote, in inference mode.

        As in HF, a loaded adapter can be evaluated and differentiated, but a projection comes back as the flat prefix it
        was folded into.

        Raises:
            ConfigError, CheckpointError: see `refpeft.checkpoint.load`; or the adapter does not fit the base.
        """
        config, tensors = checkpoint.load(directory, base.dtype)
        config = fitting.fitted(base, config)
        wanted = {checkpoint.TENSOR: fitting.prompt_shapes(config)[prompt_embedding.EMBEDDING]}
        wanted |= {name: value.shape for name, value in fitting.trained_modules(base, config).items()}
        return cls(base, config, checkpoint.parameters_from(tensors, wanted, directory))

    def _checked(self, **given: Any) -> dict[str, Array | None]:
        return task_inputs.checked(self.base.config, self.config, given)


def get_peft_model(base: BaseModel, config: PromptLearningConfig, seed: int = 0) -> PeftModel:
    """Put a new prompt or prefix on a base model, with the initial values that `torch.manual_seed(seed)` gives HF.

    The caller's configuration is left as it is; the model's is filled in from the base (clause CF-3). Values are drawn
    in float32, as HF's, and kept in the base model's dtype. Heads that are trained too start as the base model's.

    Raises:
        ConfigError: the configuration does not fit the base, or has no task type.
    """
    config = fitting.fitted(base, replace(config, base_model_name_or_path=base.config.name_or_path or None))
    if (
        isinstance(config, PromptTuningConfig)
        and config.prompt_tuning_init == "TEXT"
        and config.tokenizer_kwargs
    ):
        safe = {name: value for name, value in config.tokenizer_kwargs.items() if name != "trust_remote_code"}
        config = replace(config, tokenizer_kwargs=safe)  # HF drops it here too, and saves what is left
    try:
        drawn = _initial_parameters(base, config, Generator(seed))
    except MemoryError as error:
        raise ConfigError(
            f"There is no memory for the parameters of {config.num_virtual_tokens} virtual tokens. Use fewer, or a smaller "
            "encoder_hidden_size."
        ) from error
    return PeftModel(base, config, {**fitting.trained_modules(base, config), **drawn})


def _initial_parameters(
    base: BaseModel, config: PromptLearningConfig, generator: Generator
) -> dict[str, Array]:
    """The method's own; see its `initial_parameters`."""
    like = base.parameters[TOKENS]
    if isinstance(config, PrefixTuningConfig):
        return prefix_encoder.initial_parameters(config, generator, like)
    assert isinstance(config, PromptTuningConfig)  # noqa: S101  (the two classes there are)

    def rows(ids: Array) -> Array:
        return np.entry(word_embeddings(base, ids[None, :]), 0, 0)

    return prompt_embedding.initial_parameters(config, generator, rows, base.config.vocab_size, like)
