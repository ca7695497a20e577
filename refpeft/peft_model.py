"""The flow of HF's PeftModel: check the inputs, put the virtual tokens in, run the frozen base, take the loss.

Follows HF peft 0.21.2 `peft_model.py` (`PeftModelForCausalLM.forward`, `PeftModel.get_prompt`).

    prompt tuning   x = [P ; E(ids)]    positions 0 … n+m−1    labels = [−100 … ; labels]    logits (batch, n+m, vocab)
    prefix tuning   cache = (K, V)      positions n … n+m−1    labels unchanged              logits (batch, m, vocab)
    both            mask = [1 … ; mask], None stays None
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
from jaxtyping import Int, Shaped

from refpeft import arrays as np
from refpeft import checkpoint, generation, inputs, masks, ops, prefix_encoder, prompt_embedding
from refpeft.arrays import Array, Float, Parameters
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.errors import ConfigError, InputError
from refpeft.fill_in import fill_in
from refpeft.generation import GenerateOutput
from refpeft.generation_config import as_generation_config
from refpeft.steps import step
from refpeft.torch_random import Generator
from refpeft.transformer import heads, stack
from refpeft.transformer.block import KeyValue
from refpeft.transformer.weights import BaseModel, embed_tokens

_FORWARD = "peft peft_model.py PeftModelForCausalLM.forward"


@dataclass(frozen=True)
class Output:
    """What a forward pass returns; the names are HF's."""

    loss: Array | None
    """Mean cross-entropy, or None without labels."""
    logits: Array
    """(batch, virtual + tokens, vocab) for prompt tuning, (batch, tokens, vocab) for prefix tuning."""
    past_key_values: tuple[KeyValue, ...]
    """Each layer's key and value states (batch, kv_heads, virtual + tokens, head_dim)."""


@step("inputs.labels", clause="TK-1", axes="batch query", kind="exact", source=_FORWARD)
def extend_labels(labels: Int[Array, "batch tokens"], num_virtual_tokens: int) -> Int[Array, "batch query"]:
    """Prompt tuning: −100 for each virtual token, then the labels. Prefix tuning leaves labels as they are.

    The loss shifts labels by one, so the first real token *is* predicted, by the last virtual token: the mean is over
    m terms per row, against m − 1 for prefix tuning.
    How others differ: labels not extended (another length, or every label off by n), or padded with 0 or a pad id.
    """
    ignored = np.full((labels.shape[0], num_virtual_tokens), ops.IGNORE_INDEX, labels.dtype, like=labels)
    return np.concatenate([ignored, labels], axis=1)


def get_prompt(
    parameters: Parameters, config: PromptLearningConfig, batch_size: int
) -> Array | tuple[KeyValue, ...]:
    """The virtual tokens as the base model gets them.

    Returns:
        Prompt tuning: embeddings (batch, virtual, hidden). Prefix tuning: one (key, value) for each layer, each
        (batch, kv_heads, virtual, head_dim).

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.get_prompt`.
    """
    if isinstance(config, PrefixTuningConfig):
        return prefix_encoder.forward(parameters, config, batch_size)
    return prompt_embedding.forward(parameters, batch_size)


def forward(
    parameters: Parameters,
    base: BaseModel,
    config: PromptLearningConfig,
    input_ids: Int[Array, "batch tokens"],
    attention_mask: Shaped[Array, "batch tokens"] | None = None,
    labels: Int[Array, "batch tokens"] | None = None,
    position_ids: Int[Array, "batch tokens"] | None = None,
) -> Output:
    """The adapted model on checked inputs: a pure function of the trainable parameters.

    Zero virtual tokens give the base model. Source: HF peft 0.21.2 `peft_model.py`, `PeftModelForCausalLM.forward`.
    """
    batch_size = input_ids.shape[0]
    virtual = parameters[prompt_embedding.EMBEDDING].shape[0]
    embeds = embed_tokens(base.parameters["embeddings.tokens.weight"], input_ids)
    mask = None if attention_mask is None else masks.extend_attention_mask(attention_mask, virtual)
    past: tuple[KeyValue, ...] | None = None
    if isinstance(config, PrefixTuningConfig):
        past = prefix_encoder.forward(parameters, config, batch_size)
    else:
        embeds = prompt_embedding.prepend(prompt_embedding.forward(parameters, batch_size), embeds)
        labels = None if labels is None else extend_labels(labels, virtual)
        position_ids = None
    decoded = stack.forward(base.parameters, base.config, embeds, mask, past, position_ids)
    logits = heads.language_model_head(decoded.hidden, base.parameters["head.weight"])
    loss = None if labels is None else ops.loss("causal_lm", logits, labels)
    return Output(loss, logits, decoded.past_key_values)


class PeftModel:
    """A frozen base model with a trainable prompt or prefix. Made by `get_peft_model` or `from_pretrained`.

    Attributes:
        base: The frozen base.
        config: Filled in from the base.
    """

    def __init__(self, base: BaseModel, config: PromptLearningConfig, parameters: Parameters) -> None:
        self.base = base
        self.config = config
        self._parameters = dict(parameters)

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        labels: Any = None,
        position_ids: Any = None,
    ) -> Output:
        """Run the adapted model.

        Args:
            input_ids: Integers (batch, tokens), each below the vocabulary's size.
            attention_mask: (batch, tokens) of 0 and 1, for the text alone; the virtual tokens are added here.
            labels: Integers (batch, tokens), −100 where no loss is wanted; not shifted.
            position_ids: (batch, tokens), counted without the virtual tokens. Prompt tuning ignores them with a
                UserWarning, as HF does.

        Raises:
            InputError: an input has the wrong shape, dtype or range.
        """
        return forward(self._parameters, *self._checked(input_ids, attention_mask, labels, position_ids))

    def value_and_grad(
        self, input_ids: Any, labels: Any, attention_mask: Any = None, position_ids: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        """The loss, and its gradient for each trainable parameter under HF's name. The base gets none.

        Raises:
            InputError: as `__call__`; or there are no labels.
        """
        if labels is None:
            raise InputError("value_and_grad needs labels: without them there is no loss to differentiate.")
        arguments = self._checked(input_ids, attention_mask, labels, position_ids)

        def loss(parameters: Parameters) -> Array:
            value = forward(parameters, *arguments).loss
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
        for name in ("eos_token_id", "pad_token_id"):
            options.setdefault(name, self.base.config.hf.get(name))
        chosen = as_generation_config(options)
        base, config, ids, mask, *_ = self._checked(input_ids, attention_mask, None, None)
        output = generation.generate(self._parameters, base, config, ids, mask, chosen)
        return output if return_dict_in_generate else output.sequences

    def get_prompt(self, batch_size: int) -> Array | tuple[KeyValue, ...]:
        """The virtual tokens as the base model gets them; see `refpeft.peft_model.get_prompt`."""
        return get_prompt(self._parameters, self.config, batch_size)

    def prepare_attention_mask(
        self, batch_size: int, attention_mask: Any = None
    ) -> Float[Array, "batch key"]:
        """The mask over virtual and real tokens; see `refpeft.masks.prepare_attention_mask`."""
        mask = None if attention_mask is None else numpy.asarray(attention_mask)
        return masks.prepare_attention_mask(batch_size, mask, self.config.num_virtual_tokens)

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
        checkpoint.save(directory, replace(self.config, base_model_name_or_path=named), self._parameters)

    @classmethod
    def from_pretrained(cls, base: BaseModel, directory: str | Path) -> PeftModel:
        """Load an adapter that HF peft or refpeft wrote, in inference mode.

        As in HF, a loaded adapter can be evaluated and differentiated, but a projection comes back as the flat prefix it
        was folded into.

        Raises:
            ConfigError, CheckpointError: see `refpeft.checkpoint.load`; or the adapter does not fit the base.
        """
        config, tensor = checkpoint.load(directory, base.dtype)
        config = _prepared(base, config)
        parameters = checkpoint.parameters_from(tensor, config, directory)
        return cls(base, config, parameters)

    def _checked(
        self, input_ids: Any, attention_mask: Any, labels: Any, position_ids: Any
    ) -> tuple[BaseModel, PromptLearningConfig, Array, Array | None, Array | None, Array | None]:
        virtual, model = self.config.num_virtual_tokens, self.base.config
        ids = inputs.checked_ids(input_ids, model, virtual)
        mask = None if attention_mask is None else inputs.checked_mask(attention_mask, ids.shape, virtual)
        label_ids = None if labels is None else inputs.checked_labels(labels, ids.shape, model.vocab_size)
        positions = None
        if position_ids is not None and isinstance(self.config, PromptTuningConfig):
            warnings.warn(
                "Position ids are not supported for parameter efficient tuning. Ignoring position ids.",
                stacklevel=3,
            )
        elif position_ids is not None:
            positions = inputs.checked_positions(position_ids, ids.shape, virtual, model)
        return self.base, self.config, ids, mask, label_ids, positions


def get_peft_model(base: BaseModel, config: PromptLearningConfig, seed: int = 0) -> PeftModel:
    """Put a new prompt or prefix on a base model, with the initial values that `torch.manual_seed(seed)` gives HF.

    The caller's configuration is left as it is; the model's is filled in from the base (clause CF-3). Values are drawn
    in float32, as HF's, and kept in the base model's dtype.

    Raises:
        ConfigError: the configuration does not fit the base, or has no task type.
    """
    config = _prepared(base, replace(config, base_model_name_or_path=base.config.name_or_path or None))
    generator, like = Generator(seed), base.parameters["embeddings.tokens.weight"]
    if (
        isinstance(config, PromptTuningConfig)
        and config.prompt_tuning_init == "TEXT"
        and config.tokenizer_kwargs
    ):
        safe = {name: value for name, value in config.tokenizer_kwargs.items() if name != "trust_remote_code"}
        config = replace(config, tokenizer_kwargs=safe)  # HF drops it here too, and saves what is left
    try:
        return PeftModel(base, config, _initial_parameters(base, config, generator, like))
    except MemoryError as error:
        raise ConfigError(
            f"There is no memory for the parameters of {config.num_virtual_tokens} virtual tokens. Use fewer, or a smaller "
            "encoder_hidden_size."
        ) from error


def _initial_parameters(
    base: BaseModel, config: PromptLearningConfig, generator: Generator, like: Array
) -> dict[str, Array]:
    """The method's own; see its `initial_parameters`."""
    if isinstance(config, PrefixTuningConfig):
        return prefix_encoder.initial_parameters(config, generator, like)
    assert isinstance(config, PromptTuningConfig)  # noqa: S101  (the two classes there are)

    def word_embeddings(ids: Array) -> Array:
        rows: Array = embed_tokens(like, ids[None, :])[0]
        return rows

    return prompt_embedding.initial_parameters(
        config, generator, word_embeddings, base.config.vocab_size, like
    )


def _prepared(base: BaseModel, config: PromptLearningConfig) -> PromptLearningConfig:
    """The configuration filled in from the base, and checked against it where HF fails only in forward, or never."""
    if config.task_type != "CAUSAL_LM":
        hf = " (With None, HF's get_peft_model raises KeyError and its PeftModel never injects the prompt.)"
        raise ConfigError(
            f"task_type is {config.task_type!r}; this version of refpeft computes CAUSAL_LM."
            f"{hf if config.task_type is None else ''}"
        )
    if config.modules_to_save:
        raise ConfigError(
            f"modules_to_save is {config.modules_to_save}; refpeft trains and loads the virtual tokens alone, and without these "
            "modules its answers would not be HF's. Leave it out."
        )
    filled = fill_in(config, base.config.hf)
    model = base.config
    key_values = model.num_key_value_heads * model.head_dim
    width = key_values if isinstance(filled, PrefixTuningConfig) else model.hidden_size
    if filled.num_transformer_submodules != 1:
        raise ConfigError(
            f"num_transformer_submodules is {filled.num_transformer_submodules}; a {model.family} model has 1. "
            "Leave it out."
        )
    if filled.token_dim != width:
        raise ConfigError(
            f"token_dim is {filled.token_dim}, but this base model needs {width}. Leave it out, or was the adapter made for "
            "another base model?"
        )
    if isinstance(filled, PrefixTuningConfig) and (filled.num_layers, filled.num_attention_heads) != (
        model.num_layers,
        model.num_key_value_heads,
    ):
        raise ConfigError(
            f"num_layers and num_attention_heads are {filled.num_layers} and {filled.num_attention_heads}, but this base "
            f"model has {model.num_layers} layers and {model.num_key_value_heads} key/value heads. Leave them out, or was "
            "the adapter made for another base model?"
        )
    return filled
