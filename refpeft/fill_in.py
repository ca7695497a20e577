"""The sizes of a configuration that come from the base model (clauses CF-3 and CF-4).

Follows HF peft 0.21.2 `peft/utils/other.py`, `_prepare_prompt_learning_config`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from refpeft.config import PrefixTuningConfig, PromptLearningConfig
from refpeft.errors import ConfigError
from refpeft.rules import DICTIONARY, SIZE

_SIZE_KEYS = {
    "num_layers": ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers"),
    "token_dim": ("hidden_size", "n_embd", "d_model"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads"),
}
"""Where each size stands in the configurations of base models; the first key that is there counts (CF-3)."""

Config = TypeVar("Config", bound=PromptLearningConfig)


def fill_in(config: Config, base_config: Mapping[str, Any]) -> Config:
    """Return `config` with the sizes that are None taken from the base model's configuration (CF-3, CF-4).

    `base_config` is the base model's `config.json` as a dictionary, complete: HF sees the defaults of the
    model's configuration class too (`ModelConfig.hf` holds them). If it has a `text_config`, that part
    counts. Then, in order:

    1. num_layers, token_dim, num_attention_heads: from the first key of `_SIZE_KEYS` that is there.
    2. For prefix tuning, if there is `num_key_value_heads`: num_attention_heads = kv_heads, token_dim =
       kv_heads · head_dim, *whatever the caller gave*.
    3. For prefix tuning, encoder_hidden_size = token_dim.
    4. num_transformer_submodules = 2 if task_type is SEQ_2_SEQ_LM, else 1.

    Filling in twice changes nothing more, unless the base model has a `per_layer_config` but no `head_dim`:
    the second time, as in HF, the width of a head is computed from the sizes of the first.

    Source: `_prepare_prompt_learning_config` in peft 0.21.2, `peft/utils/other.py`; step 4 is in
    `PeftModel._setup_prompt_encoder`, `peft/peft_model.py`.

    Raises:
        ConfigError: a size stands under no known key (HF's words), or is not a size (stricter).

    How others differ: HF changes `config` itself. Given a configuration *object*, HF asks first for its
    attribute `num_hidden_layers`, which transformers maps to `n_layer` for GPT-2, to the encoder's layers for
    T5 and BART. The `config.json` gives the same: `encoder_layers` is the last key here because HF's class of
    BART has no other; for classes that derive the number from other keys still, the caller has to give
    `num_layers`. HF also sets `encoder_hidden_size`
    on a PromptTuningConfig, where it is no field: never used, never written. Ports forget that step 2
    overwrites, or do step 3 before it.
    """
    base = base_config
    if "text_config" in base:
        base = base["text_config"]
        DICTIONARY.check("text_config of the base model", base)
    sizes: dict[str, Any] = {
        name: _first_present(name, keys, base)
        for name, keys in _SIZE_KEYS.items()
        if getattr(config, name) is None
    }
    if config.num_transformer_submodules is None:
        sizes["num_transformer_submodules"] = 2 if config.task_type == "SEQ_2_SEQ_LM" else 1
    config = replace(config, **sizes)
    return (
        replace(config, **_prefix_sizes(config, base)) if isinstance(config, PrefixTuningConfig) else config
    )


def _prefix_sizes(config: PrefixTuningConfig, base: Mapping[str, Any]) -> dict[str, Any]:
    """Steps 2 and 3 of `fill_in`."""
    token_dim, heads = config.known("fill_in", "token_dim", "num_attention_heads")
    if "num_key_value_heads" in base:
        heads, head_dim = _key_value_heads(base, token_dim // heads)
        token_dim = head_dim * heads
    hidden = token_dim if config.encoder_hidden_size is None else config.encoder_hidden_size
    return {"token_dim": token_dim, "num_attention_heads": heads, "encoder_hidden_size": hidden}


def _first_present(name: str, keys: tuple[str, ...], base: Mapping[str, Any]) -> Any:
    for key in keys:
        if key in base:
            return base[key]
    raise ConfigError(f"Please specify `{name}` in `peft_config`")


def _key_value_heads(base: Mapping[str, Any], default_head_dim: int) -> tuple[int, int]:
    """The key/value heads and their width; if the layers differ, those of the widest heads (CF-3)."""
    heads, head_dim = base["num_key_value_heads"], base.get("head_dim")
    if base.get("global_head_dim") is not None:
        heads, head_dim = base.get("num_global_key_value_heads") or heads, base["global_head_dim"]
    elif base.get("per_layer_config") is not None:
        heads, head_dim = _widest_heads(base, default_head_dim)
    elif head_dim is None:
        head_dim = default_head_dim
    SIZE.check("num_key_value_heads of the base model", heads)
    SIZE.check("head_dim of the base model", head_dim)
    return heads, head_dim


def _widest_heads(base: Mapping[str, Any], default_head_dim: int) -> tuple[Any, Any]:
    base_heads = base["num_key_value_heads"]
    base_head_dim = base.get("head_dim", default_head_dim)
    SIZE.check("head_dim of the base model", base_head_dim)
    DICTIONARY.check("per_layer_config of the base model", base["per_layer_config"])
    heads, head_dim = base_heads, base_head_dim
    for layer, overrides in base["per_layer_config"].items():
        DICTIONARY.check(f"per_layer_config[{layer!r}] of the base model", overrides)
        layer_head_dim = overrides.get("head_dim", base_head_dim)
        SIZE.check(f"per_layer_config[{layer!r}]['head_dim'] of the base model", layer_head_dim)
        if layer_head_dim > head_dim:
            heads, head_dim = overrides.get("num_key_value_heads", base_heads), layer_head_dim
    return heads, head_dim
