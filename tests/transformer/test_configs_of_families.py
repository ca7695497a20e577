"""CF-8 for every family: complete default values, and HF's own configuration classes, live, on whatever a file may say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import need, tiny_values

from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.errors import ConfigError
from refpeft.fill_in import fill_in
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import FAMILIES
from refpeft.transformer.rotary import Rotary

# ---------------------------------------------------------------- what an empty file means

_NO_BIAS = {"attention_bias": False, "output_bias": False, "mlp_bias": False}
_GPT2 = {
    "vocab_size": 50257, "hidden_size": 768, "num_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64,
    "intermediate_size": 3072, "max_position_embeddings": 1024, "activation": "gelu_new", "norm_epsilon": 1e-5,
    "attention_scale": 0.125, "bos_token_id": 50256, "eos_token_id": 50256,
}  # fmt: skip
_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "num_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "head_dim": 128, "intermediate_size": 11008, "max_position_embeddings": 2048, "activation": "silu", "norm_epsilon": 1e-6,
    "attention_scale": 128**-0.5, "norm": "rms_norm", "gated": True, "positions": "rotary", "rotary": (Rotary(10000.0, 128),) * 32,
    **_NO_BIAS, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_QWEN = {
    **_LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768, "sliding_windows": (None,) * 32,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_GEMMA = {
    **_LLAMA, "vocab_size": 256000, "hidden_size": 3072, "num_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16,
    "head_dim": 256, "intermediate_size": 24576, "max_position_embeddings": 8192, "activation": "gelu_pytorch_tanh",
    "attention_scale": 0.0625, "norm": "rms_norm_plus_one", "rotary": (Rotary(10000.0, 256),) * 28,
    "embedding_scale": 3072**0.5, "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
_GEMMA2 = {
    **_GEMMA, "hidden_size": 2304, "num_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 9216,
    "rotary": (Rotary(10000.0, 256),) * 26, "embedding_scale": 48.0, "norm_order": "around", "cuts_prefix": True,
    "sliding_windows": (4096, None) * 13, "attention_softcap": 50.0, "logits_softcap": 30.0,
}  # fmt: skip
_BERT = {
    "vocab_size": 30522, "hidden_size": 768, "num_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64,
    "intermediate_size": 3072, "max_position_embeddings": 512, "kind": "encoder", "activation": "gelu", "norm_epsilon": 1e-12,
    "norm_order": "after", "final_norm": False, "attention_scale": 0.125, "embedding_size": 768, "embedding_norm": True,
    "token_types": 2, "pooler": True, "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "gpt_bigcode": {**_GPT2, "num_key_value_heads": 1, "activation": "gelu_pytorch_tanh"},
    "opt": {
        **_GPT2, "vocab_size": 50272, "max_position_embeddings": 2048, "activation": "relu", "position_rule": "mask",
        "position_offset": 2, "embedding_size": 768, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
    },
    "gpt_neox": {
        "vocab_size": 50432, "hidden_size": 6144, "num_layers": 44, "num_attention_heads": 64, "num_key_value_heads": 64,
        "head_dim": 96, "intermediate_size": 24576, "max_position_embeddings": 2048, "activation": "gelu",
        "attention_scale": 96**-0.5, "parallel": True, "positions": "rotary", "rotary": (Rotary(10000.0, 24),) * 44,
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 2,
    },
    "bloom": {
        "vocab_size": 250880, "hidden_size": 64, "num_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8,
        "intermediate_size": 256, "activation": "bloom_gelu", "attention_scale": 8**-0.5, "positions": "alibi",
        "embedding_norm": True, "bos_token_id": 1, "eos_token_id": 2,
    },
    "falcon": {
        "vocab_size": 65024, "hidden_size": 4544, "num_layers": 32, "num_attention_heads": 71, "num_key_value_heads": 1,
        "stored_key_value_heads": 1, "head_dim": 64, "intermediate_size": 18176, "max_position_embeddings": 2048,
        "activation": "gelu", "attention_scale": 0.125, "parallel": True, "shared_norm": True, "positions": "rotary",
        "rotary": (Rotary(10000.0, 64),) * 32, **_NO_BIAS, "bos_token_id": 11, "eos_token_id": 11,
    },
    "llama": _LLAMA,
    "mistral": {
        **_LLAMA, "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 131072,
        "sliding_windows": (4096,) * 32,
    },
    "qwen2": {**_QWEN, "attention_bias": True},
    "qwen3": {**_QWEN, "query_key_norm": True},
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": {
        **_GEMMA2, "vocab_size": 262208, "max_position_embeddings": 131072, "query_key_norm": True,
        "sliding_windows": (*((*(4096,) * 5, None) * 4), 4096, 4096),
        "rotary": (*((*(Rotary(10000.0, 256),) * 5, Rotary(1000000.0, 256)) * 4), Rotary(10000.0, 256), Rotary(10000.0, 256)),
        "attention_softcap": None, "logits_softcap": None,
    },
    "phi": {
        "vocab_size": 51200, "hidden_size": 2048, "num_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32,
        "head_dim": 64, "intermediate_size": 8192, "max_position_embeddings": 2048, "activation": "gelu_new",
        "attention_scale": 0.125, "parallel": True, "shared_norm": True, "positions": "rotary",
        "rotary": (Rotary(10000.0, 32),) * 24, "head_bias": True, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    },
    "bert": _BERT,
    "roberta": {
        **_BERT, "vocab_size": 50265, "position_rule": "tokens", "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    },
    "electra": {
        **_BERT, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 1024,
        "embedding_size": 128, "pooler": False,
    },
    "t5": {
        "vocab_size": 32128, "hidden_size": 512, "num_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64,
        "intermediate_size": 2048, "kind": "encoder_decoder", "activation": "relu", "norm": "rms_norm", "norm_epsilon": 1e-6,
        "positions": "relative", "relative_buckets": 32, "relative_distance": 128, "decoder_layers": 6, **_NO_BIAS,
        "logits_scale": 512**-0.5, "pad_token_id": 0, "eos_token_id": 1,
    },
    "bart": {
        "vocab_size": 50265, "hidden_size": 1024, "num_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 16,
        "head_dim": 64, "intermediate_size": 4096, "max_position_embeddings": 1024, "kind": "encoder_decoder", "activation": "gelu",
        "norm_order": "after", "final_norm": False, "attention_scale": 0.125, "position_offset": 2, "embedding_norm": True,
        "decoder_layers": 12, "decoder_attention_heads": 16, "decoder_intermediate_size": 4096, "decoder_start_token_id": 2,
        "head_bias": True, "num_labels": 3, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    },
}  # fmt: skip
"""The fields of each family's default configuration that are not those of a plain decoder."""


def read(family: str, **values: Any) -> ModelConfig:
    return ModelConfig.from_dict({"model_type": family, **values})


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults(family: str) -> None:
    config = read(family)
    assert replace(config, hf={}) == ModelConfig(family=family, **DEFAULTS[family])
    assert {"model_type": family, "num_hidden_layers": config.num_layers}.items() <= config.hf.items()


def test_every_family_has_defaults() -> None:
    assert list(FAMILIES) == [*dict.fromkeys(FAMILIES)]
    assert set(DEFAULTS) == set(FAMILIES)
    names = {field.name for field in fields(ModelConfig)}
    assert all(set(values) < names for values in DEFAULTS.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_names_each_key_once(family: str) -> None:
    keys = [key for row in FAMILIES[family].rows for key in row.keys]
    assert len(set(keys)) == len(keys)
    assert len({row.name for row in FAMILIES[family].rows}) == len(FAMILIES[family].rows)


# ---------------------------------------------------------------- choices that follow from others


def changed(family: str, **values: Any) -> dict[str, Any]:
    """The fields that these values of a tiny configuration change."""
    before, after = (ModelConfig.from_dict(tiny_values(family, **change)) for change in ({}, values))
    names = [field.name for field in fields(ModelConfig) if field.name != "hf"]
    return {name: getattr(after, name) for name in names if getattr(before, name) != getattr(after, name)}


NARROW = {"embedding_size": 13, "projects_output": True}
GROUPED = {"num_attention_heads": 6, "hidden_size": 24, "num_kv_heads": 2}
CHOICES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("opt", {"word_embed_proj_dim": 13}, NARROW),
    ("opt", {"do_layer_norm_before": False}, {"norm_order": "after", "final_norm": False}),
    ("opt", {"_remove_final_layer_norm": True}, {"final_norm": False}),
    ("opt", {"enable_bias": False}, {"attention_bias": False, "output_bias": False, "mlp_bias": False}),
    ("opt", {"layer_norm_elementwise_affine": False}, {"norm_affine": False}),
    ("gpt_neox", {"use_parallel_residual": False}, {"parallel": False}),
    ("gpt_neox", {"attention_bias": False}, {"attention_bias": False, "output_bias": False}),
    ("gpt_neox", {"rotary_pct": 0.25}, {"rotary": (Rotary(10000.0, 2),) * 3}),
    ("gpt_neox", {"rotary_emb_base": 50}, {"rotary": (Rotary(50.0, 4),) * 3}),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, {"residual_from_norm": True}),
    ("gpt_bigcode", {"multi_query": False}, {"num_key_value_heads": 5}),
    ("gpt_bigcode", {"scale_attn_weights": False}, {"attention_scale": 1.0}),
    ("falcon", {"multi_query": False}, {"num_key_value_heads": 3, "stored_key_value_heads": 3}),
    ("falcon", {"num_kv_heads": 3}, {}),  # of the new architecture alone
    ("falcon", {"parallel_attn": False}, {"parallel": False, "shared_norm": False}),
    ("falcon", {"bias": True}, {"attention_bias": True, "output_bias": True, "mlp_bias": True}),
    (
        "falcon",
        {"alibi": True},
        {"positions": "alibi", "rotary": None, "alibi_times": 2 * 10**-0.5, "alibi_bfloat16": True},
    ),
    (
        "falcon",
        {"new_decoder_architecture": True, **GROUPED},
        {
            "num_attention_heads": 6, "hidden_size": 24, "head_dim": 4, "num_key_value_heads": 6, "stored_key_value_heads": 2,
            "attention_scale": 0.5, "shared_norm": False, "rotary": (Rotary(10000.0, 4),) * 3,
        },
    ),
    (
        "falcon",
        {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
        {"num_key_value_heads": 3, "stored_key_value_heads": 3},
    ),
    ("llama", {"attention_bias": True}, {"attention_bias": True, "output_bias": True}),
    ("llama", {"mlp_bias": True}, {"mlp_bias": True}),
    ("llama", {"head_dim": None, "hidden_size": 24}, {"hidden_size": 24, "head_dim": 4, "attention_scale": 0.5, "rotary": (Rotary(100.0, 4),) * 3}),
    ("llama", {"num_key_value_heads": None}, {"num_key_value_heads": 6}),
    ("llama", {"rope_theta": 7.0}, {"rotary": (Rotary(7.0, 10),) * 3}),
    ("llama", {"rope_parameters": {"rope_theta": 7.0}}, {"rotary": (Rotary(7.0, 10),) * 3}),
    (
        "llama",
        {"rope_parameters": {"rope_theta": 7.0}, "rope_scaling": {"type": "linear", "factor": 2}},
        {"rotary": (Rotary(100.0, 10, "linear", factor=2.0),) * 3},
    ),
    (
        "llama",
        {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 3.0, "high_freq_factor": 5.0}},
        {"rotary": (Rotary(100.0, 10, "llama3", 2.0, 3.0, 5.0, original=37.0),) * 3},
    ),
    ("mistral", {"sliding_window": None}, {"sliding_windows": (None,) * 3}),
    ("qwen2", {"use_sliding_window": False}, {"sliding_windows": (None,) * 3}),
    ("qwen2", {"max_window_layers": 2}, {"sliding_windows": (None, None, 4)}),
    (
        "qwen2",
        {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
        {"sliding_windows": (4, None, None)},
    ),
    ("qwen3", {"attention_bias": True}, {"attention_bias": True, "output_bias": True}),
    ("gemma", {"hidden_act": "gelu"}, {}),
    ("gemma", {"hidden_act": "relu"}, {"activation": "relu"}),
    ("gemma2", {"hidden_activation": "gelu"}, {"activation": "gelu"}),
    ("gemma2", {"query_pre_attn_scalar": 4}, {"attention_scale": 0.5}),
    ("gemma2", {"attn_logit_softcapping": None}, {"attention_softcap": None}),
    ("gemma3_text", {"attn_logit_softcapping": 9.0}, {}),  # HF ignores it
    ("gemma3_text", {"final_logit_softcapping": None}, {"logits_softcap": None}),
    (
        "gemma3_text",
        {"sliding_window_pattern": 3},
        {"sliding_windows": (4, 4, None), "rotary": (Rotary(10.0, 10), Rotary(10.0, 10), Rotary(100.0, 10))},
    ),
    (
        "gemma3_text",
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rotary": (Rotary(10.0, 10), Rotary(100.0, 10, "linear", 8.0), Rotary(10.0, 10))},
    ),
    (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": {"rope_theta": 5.0}, "full_attention": {"rope_theta": 6.0}}},
        {"rotary": (Rotary(5.0, 10), Rotary(6.0, 10), Rotary(5.0, 10))},
    ),
    ("phi", {"partial_rotary_factor": 1.0}, {"rotary": (Rotary(10000.0, 8),) * 3}),
    ("phi", {"qk_layernorm": True}, {"query_key_norm": True}),
    ("t5", {"num_decoder_layers": None}, {"decoder_layers": 3}),
    ("t5", {"feed_forward_proj": "gated-gelu"}, {"activation": "gelu_new", "gated": True}),
    ("t5", {"feed_forward_proj": "gated-silu"}, {"activation": "silu", "gated": True}),
    ("t5", {"feed_forward_proj": "gelu"}, {"activation": "gelu"}),
    ("t5", {"tie_word_embeddings": False}, {"logits_scale": 1.0}),
    ("t5", {"tie_word_embeddings": True, "scale_decoder_outputs": False}, {"logits_scale": 1.0}),
    ("t5", {"tie_word_embeddings": False, "scale_decoder_outputs": True}, {}),
    ("bart", {"scale_embedding": True}, {"embedding_scale": 15**0.5}),
    ("bart", {"decoder_start_token_id": 0}, {"decoder_start_token_id": 0}),
    ("bert", {"num_labels": 5}, {"num_labels": 5}),
    ("bert", {"id2label": {"0": "no", "1": "yes", "2": "both"}, "num_labels": 8}, {"num_labels": 3}),
    ("bert", {"problem_type": "regression"}, {"problem_type": "regression"}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "values", "expected"), CHOICES)
def test_what_an_option_changes(family: str, values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert changed(family, **values) == expected


def test_an_option_may_say_what_is_so_anyway() -> None:
    assert (
        changed("llama", rope_scaling=None, rope_parameters=None, layer_types=None, problem_type=None) == {}
    )
    assert changed("gemma2", use_bidirectional_attention=False, per_layer_config=None) == {}


# ---------------------------------------------------------------- what is refused

ROPE_TYPES = "refpeft computes default, linear and llama3. Use a base model with one of these."
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        f"The base model's rope_type is 'yarn'; {ROPE_TYPES}",
    ),
    ("llama", {"rope_scaling": {"type": "dynamic"}}, f"The base model's rope_type is 'dynamic'; {ROPE_TYPES}"),
    (
        "llama",
        {"rope_scaling": {"type": "linear"}},
        "rope_parameters['factor'] of the base model must be a finite number above 0, not None (NoneType).",
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": True}},
        "rope_parameters['low_freq_factor'] of the base model must be a finite number above 0, not True (bool).",
    ),
    (
        "llama",
        {"rope_parameters": {"rope_theta": 0}},
        "rope_parameters['rope_theta'] of the base model must be a finite number above 0, not 0 (int).",
    ),
    ("llama", {"rope_theta": -1.0}, "rope_theta of the base model must be a finite number above 0, not -1.0 (float)."),
    (
        "gemma3_text",
        {"rope_parameters": {"full_attention": [1]}},
        "rope_parameters['full_attention'] of the base model must be a dictionary or None, not [1] (list).",
    ),
    (
        "gemma2",
        {"attn_logit_softcapping": 10**400},
        f"attn_logit_softcapping of the base model must be a finite number above 0 or None, not {str(10**400)[:77]}... (int).",
    ),
    ("llama", {"rope_scaling": 2.0}, "rope_scaling of the base model must be a dictionary or None, not 2.0 (float)."),
    (
        "llama",
        {"head_dim": 5},
        ("The base model turns 5 of the 5 numbers of a head by their positions; it must be an even number from 2. Check "
        "head_dim and partial_rotary_factor."),
    ),
    (
        "phi",
        {"partial_rotary_factor": 0.1},
        ("The base model turns 0 of the 8 numbers of a head by their positions; it must be an even number from 2. Check "
        "head_dim and partial_rotary_factor."),
    ),
    (
        "gpt_neox",
        {"rotary_pct": 2.0},
        ("The base model turns 16 of the 8 numbers of a head by their positions; it must be an even number from 2. Check "
        "head_dim and partial_rotary_factor."),
    ),
    (
        "llama",
        {"num_key_value_heads": 4},
        "num_attention_heads of the base model is 6, which its 4 key/value heads do not divide.",
    ),
    (
        "llama",
        {"head_dim": None, "hidden_size": 20},
        "`embed_dim` must be divisible by num_heads (got `embed_dim`: 20 and `num_heads`: 6).",
    ),
    (
        "qwen2",
        {"layer_types": ["full_attention"]},
        "layer_types of the base model has 1 entries, but the model has 3 layers.",
    ),
    (
        "gemma2",
        {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
        ("layer_types of the base model must be a list of 'full_attention' and 'sliding_attention' or None, not "
        "['full_attention', 'chunked_attention', 'full_attention'] (list)."),
    ),
    (
        "mistral",
        {"layer_types": ["full_attention"] * 3},
        ("layer_types of the base model is not supported: HF's Mistral ignores it; use the configuration class that it names "
        "instead."),
    ),
    (
        "qwen3",
        {"max_window_layers": -1},
        "max_window_layers of the base model must be an integer of at least 0, not -1 (int).",
    ),
    (
        "gemma3_text",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention of the base model is not supported: refpeft's decoders look to the left alone.",
    ),
    (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        "num_kv_heads of the base model is 2, which does not divide its 3 heads.",
    ),
    (
        "falcon",
        {"new_decoder_architecture": True, "parallel_attn": False, "num_ln_in_parallel_attn": 1},
        ("parallel_attn of the base model is false, with new_decoder_architecture: HF then has no norm to feed the "
        "feed-forward network with, and fails. Set parallel_attn to true."),
    ),
    (
        "bloom",
        {"slow_but_exact": True},
        "slow_but_exact of the base model is not supported: it only adds the parts of a product one after the other.",
    ),
    (
        "gpt_bigcode",
        {"add_cross_attention": True},
        ("add_cross_attention of the base model is not supported: refpeft's GPT-BigCode is a decoder alone, without "
        "cross-attention."),
    ),
    ("bert", {"is_decoder": True}, "is_decoder of the base model is not supported: refpeft's encoders look in both directions."),
    ("t5", {"is_decoder": True}, "is_decoder of the base model is not supported: refpeft's T5 has both stacks."),
    ("bart", {"is_decoder": True}, "is_decoder of the base model is not supported: refpeft's BART has both stacks."),
    (
        "roberta",
        {"pad_token_id": None},
        "pad_token_id of the base model is None; RoBERTa counts positions from it.",
    ),
    (
        "t5",
        {"feed_forward_proj": "double-gelu"},
        ("`feed_forward_proj`: double-gelu is not a valid activation function of the dense layer. Please make sure "
        "`feed_forward_proj` is of the format `gated-{ACT_FN}` or `{ACT_FN}`, e.g. 'gated-gelu' or 'relu'"),
    ),
    *(
        (
            "t5",
            {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": distance},
            (f"relative_attention_num_buckets and relative_attention_max_distance of the base model are {buckets} and {distance}; "
            "T5's logarithms need at least 4 buckets, and a distance beyond half of them."),
        )
        for buckets, distance in ((3, 100), (8, 4), (32, 10))
    ),
    (
        "bert",
        {"problem_type": "ranking"},
        ("problem_type of the base model must be one of regression, single_label_classification, multi_label_classification, "
        "not 'ranking'."),
    ),
    ("bert", {"num_labels": 0}, "num_labels of the base model must be an integer from 1 to 2147483648, not 0 (int)."),
    ("bert", {"id2label": ["a"]}, "id2label of the base model must be a dictionary, not ['a'] (list)."),
    (
        "t5",
        {"decoder_start_token_id": -1},
        "decoder_start_token_id of the base model must be a token id, not -1 (int).",
    ),
    (
        "bart",
        {"decoder_start_token_id": True},
        "decoder_start_token_id of the base model must be a token id, not True (bool).",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("family", "values", "expected"), REFUSED)
def test_what_is_refused(family: str, values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(tiny_values(family, **values))
    assert str(caught.value) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_refuses_what_it_does_not_compute(family: str) -> None:
    assert "per_layer_config" in FAMILIES[family].unsupported
    for key, reason in FAMILIES[family].unsupported.items():
        with pytest.raises(ConfigError) as caught:
            ModelConfig.from_dict(tiny_values(family, **{key: True}))
        assert str(caught.value) == f"{key} of the base model is not supported: {reason}."
        ModelConfig.from_dict(tiny_values(family, **{key: None}))


# ---------------------------------------------------------------- widths, limits, stacks


def test_widths_and_limits() -> None:
    opt, electra = read("opt", word_embed_proj_dim=512), read("electra")
    assert (opt.embedding_width, opt.output_width, opt.position_limit, opt.position_rows) == (
        512,
        512,
        2048,
        2050,
    )
    assert (electra.embedding_width, electra.output_width) == (128, 256)
    assert (read("bert").position_limit, read("roberta").position_limit) == (512, 510)
    assert (read("bart").position_limit, read("bart").position_rows) == (1024, 1026)
    assert [read(family).position_limit for family in ("bloom", "t5", "llama", "falcon")] == [None] * 4
    assert [read("gemma2").window(layer) for layer in (0, 1, 2)] == [4096, None, 4096]
    assert read("llama").window(0) is None


def test_the_stacks_of_an_encoder_decoder() -> None:
    config = read("bart", decoder_layers=6, decoder_attention_heads=8, decoder_ffn_dim=100)
    assert config.stack("encoder") is config
    assert config.stack("decoder") == replace(
        config, num_layers=6, num_attention_heads=8, num_key_value_heads=8, head_dim=128, intermediate_size=100,
        attention_scale=128**-0.5,
    )  # fmt: skip
    t5 = read("t5", num_decoder_layers=2)
    assert t5.stack("decoder") == replace(t5, num_layers=2)
    for family in ("gpt2", "bert"):
        assert read(family).stack("decoder") is read(family).stack("encoder") or read(family) == read(
            family
        ).stack("decoder")


# ---------------------------------------------------------------- the real HF transformers and peft

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 50.0},
    {"rope_type": "linear", "factor": 2.0},
    {**LLAMA3, "rope_theta": 30.0},
    {**LLAMA3, "original_max_position_embeddings": 5},
]
SIZES = st.integers(1, 9)
STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "vocab_size": st.integers(60000, 70000),
    "hidden_size": st.sampled_from([32, 64]),
    "num_attention_heads": st.sampled_from([2, 4]),
    "num_key_value_heads": st.sampled_from([1, 2]),
    "head_dim": st.sampled_from([8, 12]),
    "num_layers": st.integers(1, 4),
    "max_position_embeddings": st.integers(16, 64),
    "activation": st.sampled_from(["relu", "silu", "gelu", "gelu_new"]),
    "norm_epsilon": st.sampled_from([1e-5, 0.0, 0.5]),
    "pad_token_id": st.integers(0, 9),
    "bos_token_id": st.none() | st.integers(0, 9),
    "eos_token_id": st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1, max_size=3),
    "rope_parameters": st.none() | st.sampled_from(ROPES),
    "rope_scaling": st.none() | st.sampled_from(ROPES),
    "rope_theta": st.sampled_from([10.0, 500]),
    "rope_local_base_freq": st.sampled_from([10.0, 500]),
    "rotary_pct": st.sampled_from([0.25, 1.0]),
    "partial": st.sampled_from([0.25, 1.0]),
    "sliding_window": st.none() | SIZES,
    "max_window_layers": st.integers(0, 4),
    "feed_forward_proj": st.sampled_from(["relu", "gelu", "gated-gelu", "gated-silu"]),
    "attention_softcap": st.none() | st.sampled_from([5.0, 50.0]),
    "logits_softcap": st.none() | st.sampled_from([5.0, 50.0]),
    "num_kv_heads": st.none() | st.sampled_from([1, 2]),
    "num_ln_in_parallel_attn": st.none() | st.sampled_from([1, 2]),
    "decoder_layers": SIZES,
    "decoder_attention_heads": st.sampled_from([2, 4]),
    "intermediate_size": SIZES,
    **dict.fromkeys(["decoder_intermediate_size", "embedding_size"], SIZES),
    "relative_buckets": st.integers(4, 9),
    "relative_distance": st.integers(5, 20),
    **dict.fromkeys(["token_types", "query_pre_attn_scalar", "sliding_window_pattern"], SIZES),
    **dict.fromkeys(["scale_attention", "scale_attention_by_inverse_layer", "multi_query", "do_layer_norm_before"], st.booleans()),
    **dict.fromkeys(["remove_final_layer_norm", "enable_bias", "norm_affine", "use_parallel_residual"], st.booleans()),
    **dict.fromkeys(["attention_bias", "mlp_bias", "bias", "alibi", "new_decoder_architecture", "parallel_attn"], st.booleans()),
    **dict.fromkeys(["residual_from_norm", "use_sliding_window", "query_key_norm", "scale_embedding"], st.booleans()),
    **dict.fromkeys(["tie_word_embeddings", "tied", "scale_decoder_outputs"], st.booleans()),
}  # fmt: skip
"""Values of a field, by refpeft's name of it."""
NEEDED = ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads")
"""Fields whose defaults would not go with small values of one another."""
OWN_KEY = (("gpt_bigcode", "num_attention_heads"), ("t5", "num_layers"))
"""HF computes another field from the family's own key, or its default, before the common one is seen."""


@st.composite
def raw_values(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """What a config.json may say: any of a field's keys, several of them, or none."""
    values: dict[str, Any] = {}
    for row in FAMILIES[family].rows:
        if row.name == "layer_types":
            continue
        least = 1 if row.name in NEEDED else 0
        keys = row.keys[-1:] if (family, row.name) in OWN_KEY else row.keys
        for key in draw(st.lists(st.sampled_from(keys), min_size=least, unique=True)):
            values[key] = draw(STRATEGIES[row.name])
    if family in ("gemma2", "gemma3_text"):  # HF's own forward pass fails without
        values["sliding_window"] = draw(SIZES)
    if "rope_parameters" in values and family == "gemma3_text":
        kinds = {kind: dict(draw(st.sampled_from(ROPES))) for kind in ("full_attention", "sliding_attention")}
        values["rope_parameters"] = draw(st.none() | st.just(kinds))
    if any(row.name == "layer_types" for row in FAMILIES[family].rows) and draw(st.booleans()):
        kinds_of = st.sampled_from(["full_attention", "sliding_attention"])
        values["layer_types"] = draw(st.lists(kinds_of, min_size=1, max_size=4))
        values["num_hidden_layers"] = len(values["layer_types"])
    for key, strategy in MORE.items():
        if draw(st.booleans()):
            values[key] = draw(strategy)
    return values


MORE: dict[str, st.SearchStrategy[Any]] = {
    "_name_or_path": st.sampled_from(["", "a"]),
    "name_or_path": st.sampled_from(["", "b"]),
    "num_labels": st.integers(1, 9),
    "problem_type": st.sampled_from([None, "regression", "multi_label_classification"]),
    "dtype": st.sampled_from([None, "bfloat16"]),
}

View = Mapping[str, str | Callable[[Any], Any]]


def _rotary(config: Any, kind: str | None = None) -> Rotary:
    """HF's rope_parameters, of one kind of layer, in refpeft's words."""
    parameters = config.rope_parameters if kind is None else config.rope_parameters[kind]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    names = {
        "factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original",
    }  # fmt: skip
    wanted = {"default": [], "linear": ["factor"], "llama3": list(names)}[parameters["rope_type"]]
    dimensions = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    rest = {names[name]: float(parameters[name]) for name in wanted}
    return Rotary(float(parameters["rope_theta"]), dimensions, parameters["rope_type"], **rest)


def _all_rotary(config: Any) -> Any:
    return (_rotary(config),) * config.num_hidden_layers


def _windows(config: Any) -> Any:
    return tuple(
        config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types
    )


def _head_dim(config: Any) -> int:
    return config.hidden_size // config.num_attention_heads


def _inner(config: Any) -> int:
    return 4 * config.hidden_size if config.n_inner is None else config.n_inner


EVERY: View = {
    "vocab_size": "vocab_size", "hidden_size": "hidden_size", "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads", "pad_token_id": "pad_token_id", "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id", "name_or_path": "name_or_path", "num_labels": "num_labels", "problem_type": "problem_type",
}  # fmt: skip
_TIES: View = {"tie_word_embeddings": "tie_word_embeddings"}
_GPT2_VIEW: View = {
    **_TIES, "max_position_embeddings": "n_positions", "activation": "activation_function", "norm_epsilon": "layer_norm_epsilon",
    "intermediate_size": _inner, "head_dim": _head_dim,
    "attention_scale": lambda c: _head_dim(c) ** -0.5 if c.scale_attn_weights else 1.0,
}  # fmt: skip
_LLAMA_VIEW: View = {
    **_TIES, "num_key_value_heads": "num_key_value_heads", "intermediate_size": "intermediate_size", "activation": "hidden_act",
    "max_position_embeddings": "max_position_embeddings", "norm_epsilon": "rms_norm_eps", "rotary": _all_rotary,
    "head_dim": lambda c: getattr(c, "head_dim", None) or _head_dim(c),
    "attention_scale": lambda c: (getattr(c, "head_dim", None) or _head_dim(c)) ** -0.5,
}  # fmt: skip
_BIAS: View = {"attention_bias": "attention_bias", "output_bias": "attention_bias"}
_GEMMA2_VIEW: View = {
    **_LLAMA_VIEW, **_BIAS, "activation": "hidden_activation", "attention_scale": lambda c: c.query_pre_attn_scalar**-0.5,
    "sliding_windows": _windows, "attention_softcap": "attn_logit_softcapping", "logits_softcap": "final_logit_softcapping",
    "embedding_scale": lambda c: c.hidden_size**0.5,
}  # fmt: skip
_BERT_VIEW: View = {
    "intermediate_size": "intermediate_size", "max_position_embeddings": "max_position_embeddings", "activation": "hidden_act",
    "token_types": "type_vocab_size", "norm_epsilon": "layer_norm_eps", "head_dim": _head_dim,
}  # fmt: skip
VIEWS: dict[str, View] = {
    "gpt2": {**_GPT2_VIEW, "scale_attention_by_inverse_layer": "scale_attn_by_inverse_layer_idx"},
    "gpt_bigcode": {**_GPT2_VIEW, "num_key_value_heads": "num_key_value_heads"},
    "opt": {
        **_TIES, "intermediate_size": "ffn_dim", "max_position_embeddings": "max_position_embeddings",
        "embedding_size": "word_embed_proj_dim", "activation": "activation_function", "norm_affine": "layer_norm_elementwise_affine",
        "norm_order": lambda c: "before" if c.do_layer_norm_before else "after", "mlp_bias": "enable_bias",
        "final_norm": lambda c: c.do_layer_norm_before and not c._remove_final_layer_norm, "attention_bias": "enable_bias",
    },
    "gpt_neox": {
        **_TIES, **_BIAS, "intermediate_size": "intermediate_size", "max_position_embeddings": "max_position_embeddings",
        "activation": "hidden_act", "norm_epsilon": "layer_norm_eps", "parallel": "use_parallel_residual", "rotary": _all_rotary,
    },
    "bloom": {
        **_TIES, "norm_epsilon": "layer_norm_epsilon", "residual_from_norm": "apply_residual_connection_post_layernorm",
        "intermediate_size": lambda c: 4 * c.hidden_size, "head_dim": _head_dim,
    },
    "falcon": {
        **_TIES, "intermediate_size": "ffn_hidden_size", "max_position_embeddings": "max_position_embeddings",
        "activation": "activation", "norm_epsilon": "layer_norm_epsilon", "mlp_bias": "bias", "head_dim": "head_dim",
        "rotary": lambda c: None if c.alibi else _all_rotary(c),
        "stored_key_value_heads": lambda c: c.num_kv_heads if c.new_decoder_architecture else 1 if c.multi_query else c.num_attention_heads,
    },
    "llama": {**_LLAMA_VIEW, **_BIAS, "mlp_bias": "mlp_bias"},
    "mistral": {**_LLAMA_VIEW, "sliding_windows": lambda c: (c.sliding_window,) * c.num_hidden_layers},
    "qwen2": {**_LLAMA_VIEW, "sliding_windows": _windows},
    "qwen3": {**_LLAMA_VIEW, **_BIAS, "sliding_windows": _windows},
    "gemma": {**_LLAMA_VIEW, **_BIAS, "embedding_scale": lambda c: c.hidden_size**0.5},
    "gemma2": _GEMMA2_VIEW,
    "gemma3_text": {
        **{name: value for name, value in _GEMMA2_VIEW.items() if name != "attention_softcap"},
        "rotary": lambda c: tuple(_rotary(c, kind) for kind in c.layer_types),
    },
    "phi": {**_LLAMA_VIEW, "norm_epsilon": "layer_norm_eps", "query_key_norm": "qk_layernorm"},
    "bert": _BERT_VIEW,
    "roberta": _BERT_VIEW,
    "electra": {**_BERT_VIEW, "embedding_size": "embedding_size"},
    "t5": {
        "head_dim": "d_kv", "intermediate_size": "d_ff", "decoder_layers": "num_decoder_layers", "activation": "dense_act_fn",
        "gated": "is_gated_act", "relative_buckets": "relative_attention_num_buckets", "norm_epsilon": "layer_norm_epsilon",
        "relative_distance": "relative_attention_max_distance",
        "logits_scale": lambda c: c.d_model**-0.5 if c.scale_decoder_outputs else 1.0,
    },
    "bart": {
        **_TIES, "decoder_layers": "decoder_layers", "decoder_attention_heads": "decoder_attention_heads",
        "intermediate_size": "encoder_ffn_dim", "decoder_intermediate_size": "decoder_ffn_dim", "activation": "activation_function",
        "max_position_embeddings": "max_position_embeddings", "decoder_start_token_id": "decoder_start_token_id",
        "embedding_scale": lambda c: c.d_model**0.5 if c.scale_embedding else 1.0,
    },
}  # fmt: skip
"""What each field is of HF's configuration object."""


def both(family: str, raw: Mapping[str, Any]) -> tuple[ModelConfig, Any]:
    """The same values read by refpeft and by HF; what HF or refpeft refuses is not compared."""
    transformers = need("transformers")
    try:
        ours = ModelConfig.from_dict({"model_type": family, **raw})
    except ConfigError:
        assume(False)
        raise
    return ours, transformers.AutoConfig.for_model(family, **copy.deepcopy(dict(raw)))


@pytest.mark.live
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_live_fields(family: str, data: st.DataObject) -> None:
    ours, theirs = both(family, data.draw(raw_values(family)))
    view = {**EVERY, **VIEWS[family]}
    expected = {
        name: read_one(theirs) if callable(read_one) else getattr(theirs, read_one, None)
        for name, read_one in view.items()
    }
    assert {name: getattr(ours, name) for name in view} == expected


@pytest.mark.live
@pytest.mark.parametrize("cls", [PromptTuningConfig, PrefixTuningConfig])
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_live_fill_in(family: str, cls: type[PromptLearningConfig], data: st.DataObject) -> None:
    """What `fill_in` finds in `ModelConfig.hf` is what HF finds in the configuration object, keys of other families too."""
    raw = data.draw(raw_values(family))
    extra = ("num_layers",) if family in ("gpt_bigcode", "t5") else ("num_layers", "num_key_value_heads")
    raw |= {key: 8 for key in data.draw(st.lists(st.sampled_from(extra), unique=True)) if key not in raw}
    ours, base = both(family, raw)
    peft = need("peft")
    task = {"decoder": "CAUSAL_LM", "encoder": "SEQ_CLS", "encoder_decoder": "SEQ_2_SEQ_LM"}[
        FAMILIES[family].kind
    ]
    theirs = getattr(peft, cls.__name__)(num_virtual_tokens=3, task_type=task)
    peft.utils.other._prepare_prompt_learning_config(theirs, base)
    filled = fill_in(cls(num_virtual_tokens=3, task_type=task), ours.hf)
    expected = theirs.to_dict() | {"num_transformer_submodules": 2 if task == "SEQ_2_SEQ_LM" else 1}
    assert filled.to_dict() == expected


@pytest.mark.live
@pytest.mark.parametrize("family", FAMILIES)
def test_live_file(family: str, tmp_path: Any) -> None:
    """What HF writes, refpeft reads as it reads the values that HF was given."""
    transformers = need("transformers")
    values = tiny_values(family)
    transformers.AutoConfig.for_model(**values).save_pretrained(str(tmp_path))
    ours = ModelConfig.from_pretrained(tmp_path)
    assert replace(ours, hf={}, name_or_path="") == replace(ModelConfig.from_dict(values), hf={})
