"""Prefixes that start from keys and values: those of a cache, of a text that the base model reads, or of other prefixes.

Follows HF peft 0.21.2 `tuners/cartridge/utils.py`. With the prefix that the base model's own reading of a text c gives,

    peft(x).logits  =  base([c ; x]).logits[:, n:]         n = the tokens of c = num_virtual_tokens

in every decoder (clause AD-10): keys are stored as they are used, rotated by the positions 0 … n − 1, and x follows at n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from refpeft import checkpoint, prefix_encoder, tokenizer
from refpeft.arrays import Array, Float, to_host
from refpeft.config import PrefixTuningConfig, PromptLearningConfig
from refpeft.errors import CheckpointError, ConfigError, InputError
from refpeft.files import read_json_object
from refpeft.transformer.block import KeyValue
from refpeft.transformer.config import ModelConfig

if TYPE_CHECKING:
    from refpeft.peft_model import PeftModel

_MUST_AGREE = ("task_type", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules")


def prompt_embeddings_from_past_key_values(
    past_key_values: Any, *, num_virtual_tokens: int
) -> Float[Array, "virtual prefix_width"]:
    """The flat prefix of the *first* `num_virtual_tokens` cached tokens. Clause AD-9.

    Layer l's keys are in block 2 · l and its values in 2 · l + 1, behind an encoder too, where the prefix is read otherwise
    (PX-8). A cache that keeps the last tokens alone, as those of layers with a window do, gives the first of these.

    Source: HF peft 0.21.2 `tuners/cartridge/utils.py`, `prompt_embeddings_from_past_key_values`.

    Args:
        past_key_values: A (key, value) for each layer, each (1, kv_heads, tokens, head_dim), as `Output.past_key_values`.
        num_virtual_tokens: How many tokens.

    Raises:
        InputError: the cache has another form, fewer tokens, more than one row, or layers that differ.
    """
    pairs = _pairs(past_key_values)
    if num_virtual_tokens < 1:
        raise InputError(f"num_virtual_tokens must be at least 1, not {num_virtual_tokens}.")
    if not pairs:
        raise InputError("Empty `past_key_values`.")
    first = pairs[0][0]
    if first.ndim != 4:
        raise InputError(f"Expected key/value tensors with rank 4, got key.ndim={first.ndim}.")
    batch, heads, tokens, head_dim = first.shape
    if batch != 1:
        raise InputError(
            "This helper expects `past_key_values` from a single-sequence prefill (batch=1). "
            f"Got batch={batch}."
        )
    if tokens < num_virtual_tokens:
        raise InputError(f"Need at least {num_virtual_tokens} cached tokens, got {tokens}.")
    for pair in pairs:
        if any(states.ndim != 4 or states.shape[:2] != (1, heads) for states in pair):
            raise InputError("Inconsistent head shapes across layers in `past_key_values`.")
        if any(states.shape[2] < num_virtual_tokens for states in pair):
            raise InputError(
                "Not enough cached tokens in `past_key_values` for the requested cartridge length."
            )
        if any(states.shape[3] != head_dim for states in pair):
            raise InputError("Inconsistent head_dim across layers in `past_key_values`.")
    cut = [tuple(states[:, :, :num_virtual_tokens].astype(first.dtype) for states in pair) for pair in pairs]
    return prefix_encoder.flatten(tuple((key, value) for key, value in cut))


def initialize_kv_prefix_from_past_key_values(
    model: PeftModel,
    *,
    adapter_name: str | None = None,
    past_key_values: Any,
    num_virtual_tokens: int | None = None,
) -> Float[Array, "virtual prefix_width"]:
    """Start a prefix adapter, the active one if none is named, from a cache; returns the flat prefix. Clause AD-9.

    Source: HF peft 0.21.2 `tuners/cartridge/utils.py`, `initialize_kv_prefix_from_past_key_values`.

    Raises:
        ConfigError: the adapter is no prefix, or has a projection, even one that was loaded flat.
        InputError: there is no such adapter; or the cache does not fit it.
    """
    name, config = _prefix_of(model, adapter_name)
    wanted = config.num_virtual_tokens if num_virtual_tokens is None else num_virtual_tokens
    pairs = _pairs(past_key_values)
    flat = prompt_embeddings_from_past_key_values(pairs, num_virtual_tokens=wanted)
    heads, head_dim = pairs[0][0].shape[1], pairs[0][0].shape[3]
    own = (config.num_attention_heads, config.head_dim)
    if (heads, head_dim) != own and heads * head_dim == config.token_dim:
        raise InputError(
            f"The cache has {heads} heads of {head_dim}, the adapter {own[0]} of {own[1]}: HF takes the numbers in another order. "
            "Is the cache this base model's?"
        )
    model.load_prompt_embeddings(flat, name)
    return flat


def initialize_kv_prefix_from_text(
    model: PeftModel,
    tokenizer: str | Path,
    *,
    text: str,
    adapter_name: str | None = None,
    num_virtual_tokens: int | None = None,
    use_chat_template: bool = True,
    max_length: int | None = None,
) -> Float[Array, "virtual prefix_width"]:
    """Start a prefix adapter from the base model's keys and values of a text; returns the flat prefix. Clause AD-10.

    Source: HF peft 0.21.2 `tuners/cartridge/utils.py`, `initialize_kv_prefix_from_text`.

    Args:
        model: For CAUSAL_LM, or for SEQ_2_SEQ_LM with BART, whose decoder then reads the text, shifted.
        tokenizer: A directory with a tokenizer.json, or that file.
        text: What the base model reads, special tokens included; at least `num_virtual_tokens` tokens, of which the first count.
        adapter_name: Which adapter; the active one.
        num_virtual_tokens: How many tokens; the adapter's.
        use_chat_template: HF first asks for the tokenizer's chat template. refpeft does not run one, and refuses a tokenizer that
            has one unless this is False.
        max_length: At most so many tokens, cut on the right as the tokenizers library does, special tokens kept.

    Raises:
        ConfigError: as `initialize_kv_prefix_from_past_key_values`; or the tokenizer is none, or has a chat template.
        InputError: as there; or the model does not generate; or the text has too few or too many tokens.
    """
    name, config = _prefix_of(model, adapter_name)
    family = model.base.config
    if family.kind == "encoder_decoder" and family.family != "bart":
        raise InputError(
            f"HF gives the text to the encoder alone, and a {family.family} model then fails for want of something to decode. Use "
            "initialize_kv_prefix_from_past_key_values with a cache of its decoder."
        )
    ids = numpy.asarray([_tokenized(Path(tokenizer), text, use_chat_template, max_length)], numpy.int64)
    if ids.shape[1] == 0:
        raise InputError("The tokenizer gives no tokens for the text, so there is nothing to start from.")
    with model.disable_adapter():
        past = model(ids, attention_mask=numpy.ones_like(ids)).past_key_values
    return initialize_kv_prefix_from_past_key_values(
        model,
        adapter_name=name,
        past_key_values=kept(past, family),
        num_virtual_tokens=config.num_virtual_tokens if num_virtual_tokens is None else num_virtual_tokens,
    )


def kept(past_key_values: Sequence[KeyValue], model: ModelConfig) -> tuple[KeyValue, ...]:
    """What HF's cache holds of keys and values that the *base* model computed: of layers with a window, the last window − 1.

    This holds for every family with windows, where a prefix is cut for Gemma-2 and Gemma-3 alone (PX-9).
    Source: transformers 5.23.0 `cache_utils.py`, `DynamicSlidingWindowLayer.update`.
    """
    cut = []
    for layer, pair in enumerate(past_key_values):
        first = prefix_encoder.forgotten(pair[0].shape[2], model.stack("decoder").window(layer))
        cut.append((pair[0][:, :, first:], pair[1][:, :, first:]))
    return tuple(cut)


def compose_prefix_adapters(adapter_paths: Sequence[str | Path], *, output_path: str | Path) -> None:
    """Write the adapter whose prefix is the prefixes of saved adapters, one behind the other. Clause AD-11.

    The rules are those of HF's `compose_cartridge_adapters`, which takes adapters of its method CARTRIDGE: prefixes in the same
    file format. The configuration is the first adapter's, with the sum of the virtual tokens. Keys are not rotated anew: the
    second prefix keeps the positions that it was made with.

    Source: HF peft 0.21.2 `tuners/cartridge/utils.py`, `compose_cartridge_adapters`.

    Raises:
        ConfigError: an adapter is no prefix, or differs from the first in its task or sizes.
        InputError: there are fewer than two.
        CheckpointError: see `refpeft.checkpoint.load`; or an adapter has a head, or another width.
    """
    paths = [Path(path) for path in adapter_paths]
    if len(paths) < 2:
        raise InputError("Need at least 2 adapters to compose.")
    configs = [PromptLearningConfig.from_pretrained(path) for path in paths]
    for path, config in zip(paths, configs, strict=True):
        if not isinstance(config, PrefixTuningConfig):
            raise ConfigError(
                f"Adapter at '{path}' is not a PREFIX_TUNING adapter (got PeftType.{config.peft_type})."
            )
    for config in configs[1:]:
        for name in _MUST_AGREE:
            if getattr(config, name) != getattr(configs[0], name):
                raise ConfigError(f"Incompatible PREFIX_TUNING configs for attribute '{name}'.")
    prefixes = [_prefix_in(path) for path in paths]
    for path, prefix in zip(paths, prefixes, strict=True):
        if prefix.shape[1] != prefixes[0].shape[1]:
            raise CheckpointError(
                f"'{checkpoint.TENSOR}' in '{path}' has {prefix.shape[1]} numbers for each virtual token, that in '{paths[0]}' "
                f"{prefixes[0].shape[1]}. Do their adapter_config.json belong to them?"
            )
    if len({prefix.dtype for prefix in prefixes}) > 1:  # as torch.cat widens them
        wide = max(
            numpy.dtype("float32"), *(prefix.dtype for prefix in prefixes), key=lambda kind: kind.itemsize
        )
        prefixes = [prefix.astype(wide) for prefix in prefixes]
    composed = numpy.concatenate(prefixes)
    config = replace(configs[0], num_virtual_tokens=len(composed), inference_mode=True)
    checkpoint.save(output_path, config, {prefix_encoder.EMBEDDING: composed})


def _pairs(past_key_values: Any) -> list[tuple[Array, Array]]:
    """The cache as a list of NumPy's keys and values."""
    form = (
        "Unsupported `past_key_values` type. Expected a legacy tuple/list, an object with `to_legacy_cache()`, or an "
        "iterable of (key, value) tuples."
    )
    try:
        layers = [tuple(layer) for layer in past_key_values]
    except TypeError:
        raise InputError(form) from None
    if any(len(layer) != 2 for layer in layers):
        raise InputError(form)
    pairs = [(to_host(key), to_host(value)) for key, value in layers]
    strange = {
        str(states.dtype) for pair in pairs for states in pair if not numpy.can_cast(states.dtype, "float64")
    }
    if strange:
        raise InputError(f"Keys and values must be real numbers, got {', '.join(sorted(strange))}.")
    return pairs


def _prefix_of(model: PeftModel, adapter_name: str | None) -> tuple[str, PrefixTuningConfig]:
    """Name and configuration of a prefix that can be started, checked in HF's order and words."""
    name = model.active_adapter if adapter_name is None else adapter_name
    configs = model.peft_config
    if name not in configs:
        raise InputError(f"There is no adapter '{name}'; there are {', '.join(configs)}.")
    config = configs[name]
    if not isinstance(config, PrefixTuningConfig):
        raise ConfigError(
            f"Adapter '{name}' must be a CARTRIDGE or PREFIX_TUNING adapter (got PeftType.{config.peft_type})."
        )
    if config.prefix_projection:
        raise ConfigError(
            "Initialization from KV cache is not supported for prefix tuning with `prefix_projection=True`."
        )
    return name, config


def _prefix_in(path: Path) -> Array:
    tensors = checkpoint.load_tensors(path)
    further = sorted(set(tensors) - {checkpoint.TENSOR})
    if further:
        raise CheckpointError(
            f"'{path}' also holds {', '.join(further)}: HF leaves heads out of what it composes, and the result cannot be loaded."
        )
    return tensors[checkpoint.TENSOR]


def _tokenized(path: Path, text: str, use_chat_template: bool, max_length: int | None) -> list[int]:
    directory = path if path.is_dir() else path.parent
    file = directory / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"No tokenizer.json at '{path}'. refpeft reads local files only: save the tokenizer there, with "
            "tokenizer.save_pretrained(directory)."
        )
    if max_length is not None and max_length < 1:
        raise InputError(f"max_length must be at least 1, not {max_length}.")
    if use_chat_template and _has_chat_template(directory):
        raise ConfigError(
            f"The tokenizer at '{path}' has a chat template, which HF puts the text into and refpeft does not run. Give "
            "use_chat_template=False to take the text as it is."
        )
    return tokenizer.token_ids(file, text, max_length=max_length)


def _has_chat_template(directory: Path) -> bool:
    names = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
    if any((directory / name).exists() for name in names):
        return True
    file = directory / "tokenizer_config.json"
    return (
        file.is_file()
        and read_json_object(file, "the tokenizer's configuration").get("chat_template") is not None
    )
