"""One row per HF architecture: what its config.json means, where its weights are, and which choices it is made of.

A family is a row in this table, not another forward pass. It follows transformers 5.23.0, `models/*/configuration_*.py`
(names, defaults) and `models/*/modeling_*.py` (what the tensors mean); `columns.py` says what the columns are, `ModelConfig`
which choices there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refpeft.errors import ConfigError
from refpeft.rules import DICTIONARY, SIZE, Rule
from refpeft.transformer.columns import (
    LAYER,
    LAYER_TYPES,
    POSITIVE,
    Family,
    Head,
    Row,
    Source,
    attention,
    epsilon,
    flag,
    fused,
    linear,
    norm,
    size,
    special_tokens,
    table,
    word,
)
from refpeft.transformer.rotary import read_rotary

Read = dict[str, Any]
Weights = dict[str, Source]

_NEWER = {"per_layer_config": "refpeft's layers are all alike"}
_LEFT_TO_RIGHT = {
    **_NEWER,
    "use_bidirectional_attention": "refpeft's decoders look to the left alone",
}
_DECODER_HEADS = {
    "SEQ_CLS": Head("score", "last_token", bias=False),
    "TOKEN_CLS": Head("classifier", "each_token"),
    "QUESTION_ANS": Head("qa_outputs", "span"),
}
_GENERIC_HEADS = {**_DECODER_HEADS, "TOKEN_CLS": Head("score", "each_token")}
_TIED, _UNTIED = flag("tie_word_embeddings", default=True), flag("tie_word_embeddings", default=False)
_ROPE = (
    Row("rope_parameters", ("rope_parameters",), None, DICTIONARY.or_none()),
    Row("rope_scaling", ("rope_scaling",), None, DICTIONARY.or_none()),
    Row("rope_theta", ("rope_theta",), 10000.0, POSITIVE),
)


def _heads_divide(read: Read) -> Read:
    """head_dim = hidden_size / num_attention_heads where the file has none; every head its own keys and values likewise."""
    hidden, heads = read["hidden_size"], read["num_attention_heads"]
    if read.get("head_dim") is None:
        if hidden % heads:
            raise ConfigError(
                "`embed_dim` must be divisible by num_heads "
                f"(got `embed_dim`: {hidden} and `num_heads`: {heads})."
            )
        read = {**read, "head_dim": hidden // heads}
    if read.get("num_key_value_heads") is None:
        read = {**read, "num_key_value_heads": heads}
    if heads % read["num_key_value_heads"]:
        raise ConfigError(
            f"num_attention_heads of the base model is {heads}, which its {read['num_key_value_heads']} key/value heads do "
            "not divide."
        )
    return {**read, "attention_scale": read["head_dim"] ** -0.5}


def _rotary(read: Read, partial: float | None = None) -> Read:
    """The same rotary positions in every layer, from `rope_parameters` or the older `rope_scaling` and `rope_theta`."""
    read = _heads_divide(read)
    given, theta = read.pop("rope_scaling") or read.pop("rope_parameters") or {}, read.pop("rope_theta")
    read.pop("rope_parameters", None)
    if partial is None:
        _require_whole_heads(given)
    parameters = {
        "rope_theta": theta,
        **({} if partial is None else {"partial_rotary_factor": partial}),
        **given,
    }
    rotary = read_rotary(parameters, read["head_dim"], read["max_position_embeddings"])
    return {**read, "positions": "rotary", "rotary": (rotary,) * read["num_layers"]}


def _require_whole_heads(parameters: Read) -> None:
    """Only GPT-NeoX and Phi turn a part of each head: of the others HF ignores the part, or fails, as the scaling is."""
    part = parameters.get("partial_rotary_factor", 1.0)
    if part != 1.0:
        raise ConfigError(
            f"rope_parameters['partial_rotary_factor'] of the base model is {part!r}, but HF's model of this family turns whole "
            "heads by their positions. Leave it out."
        )


def _windows(read: Read, default_types: list[str]) -> Read:
    """One window, or none, for each layer."""
    window, types = read.pop("sliding_window"), read.pop("layer_types", None) or default_types
    if len(types) != read["num_layers"]:
        raise ConfigError(
            f"layer_types of the base model has {len(types)} entries, but the model has {read['num_layers']} layers."
        )
    return {
        **read,
        "sliding_windows": tuple(window if kind == "sliding_attention" else None for kind in types),
    }


# ---------------------------------------------------------------- GPT-2 and GPT-BigCode


def _inner(read: Read) -> Read:
    wide = 4 * read["hidden_size"] if read["intermediate_size"] is None else read["intermediate_size"]
    return {**read, "intermediate_size": wide}


def _gpt2(read: Read) -> Read:
    scaled, multi_query = read.pop("scale_attention"), read.pop("multi_query", False)
    read = _inner(_heads_divide({**read, "num_key_value_heads": 1 if multi_query else None}))
    return {**read, "attention_scale": read["attention_scale"] if scaled else 1.0}


def _gpt2_weights(c: Any) -> Weights:
    conv1d = c.family == "gpt2"
    return {
        **table("embeddings.tokens", "wte"),
        **table("embeddings.positions", "wpe"),
        **norm(LAYER + "input_norm", "h.{layer}.ln_1"),
        **fused(
            LAYER + "attention", "h.{layer}.attn.c_attn", "sections" if conv1d or c.num_key_value_heads == 1 else "interleaved",
            transposed=conv1d,
        ),
        **linear(LAYER + "attention.output", "h.{layer}.attn.c_proj", transposed=conv1d),
        **norm(LAYER + "post_attention_norm", "h.{layer}.ln_2"),
        **linear(LAYER + "mlp.up", "h.{layer}.mlp.c_fc", transposed=conv1d),
        **linear(LAYER + "mlp.down", "h.{layer}.mlp.c_proj", transposed=conv1d),
        **norm("final_norm", "ln_f"),
        **table("head", "lm_head"),
    }  # fmt: skip


_GPT2_ROWS = (
    size("vocab_size", default=50257),
    size("hidden_size", "hidden_size", "n_embd", default=768),
    size("num_layers", "num_hidden_layers", "n_layer", default=12),
    size("num_attention_heads", "num_attention_heads", "n_head", default=12),
    size("intermediate_size", "n_inner", default=None),
    size("max_position_embeddings", "max_position_embeddings", "n_positions", default=1024),
    epsilon("layer_norm_epsilon", default=1e-5),
    flag("scale_attention", "scale_attn_weights", default=True),
    _TIED,
    *special_tokens(None, 50256, 50256),
)

GPT2 = Family(
    "gpt2", "decoder", "transformer.",
    rows=(
        *_GPT2_ROWS,
        word("activation", "activation_function", default="gelu_new"),
        flag("scale_attention_by_inverse_layer", "scale_attn_by_inverse_layer_idx", default=False),
    ),
    derive=_gpt2, weights=_gpt2_weights, heads=_DECODER_HEADS,
    ignored=(".attn.bias", ".attn.masked_bias"),
    unsupported={
        "add_cross_attention": "refpeft's GPT-2 is a decoder alone, without cross-attention",
        "reorder_and_upcast_attn": "HF then computes scores and softmax in float32, refpeft in its working "
        "precision; set it to false, which changes rounding only",
        **_NEWER,
    },
)  # fmt: skip

GPT_BIGCODE = Family(
    "gpt_bigcode", "decoder", "transformer.",
    rows=(
        *_GPT2_ROWS,
        word("activation", "activation_function", default="gelu_pytorch_tanh"),
        flag("multi_query", default=True),
    ),
    derive=_gpt2, weights=_gpt2_weights,
    heads={task: head for task, head in _DECODER_HEADS.items() if task != "QUESTION_ANS"},
    ignored=(".attn.bias", ".attn.masked_bias"),
    unsupported={"add_cross_attention": "refpeft's GPT-BigCode is a decoder alone, without cross-attention", **_NEWER},
)  # fmt: skip

# ---------------------------------------------------------------- OPT


def _opt(read: Read) -> Read:
    before, narrow = read.pop("do_layer_norm_before"), read.pop("embedding_size") or read["hidden_size"]
    removed = read.pop("remove_final_layer_norm")
    bias = read.pop("enable_bias")
    return {
        **_heads_divide(read),
        "position_rule": "mask", "position_offset": 2,
        "embedding_size": narrow, "projects_output": narrow != read["hidden_size"],
        "norm_order": "before" if before else "after", "final_norm": before and not removed,
        "attention_bias": bias, "output_bias": bias, "mlp_bias": bias,
    }  # fmt: skip


def _opt_weights(c: Any) -> Weights:
    layer, affine = "decoder.layers.{layer}.", c.norm_affine
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    norms = (
        ("input_norm", "post_attention_norm")
        if c.norm_order == "before"
        else ("post_attention_norm", "output_norm")
    )
    entries = {
        **table("embeddings.tokens", "decoder.embed_tokens"),
        **table("embeddings.positions", "decoder.embed_positions"),
        **attention(
            LAYER + "attention", {part: f"{layer}self_attn.{name}" for part, name in names.items()},
            bias=c.attention_bias, output_bias=c.output_bias,
        ),
        **linear(LAYER + "mlp.up", layer + "fc1", bias=c.mlp_bias),
        **linear(LAYER + "mlp.down", layer + "fc2", bias=c.mlp_bias),
        **table("head", "lm_head"),
    }  # fmt: skip
    if affine:
        entries |= norm(LAYER + norms[0], layer + "self_attn_layer_norm")
        entries |= norm(LAYER + norms[1], layer + "final_layer_norm")
        entries |= norm("final_norm", "decoder.final_layer_norm") if c.final_norm else {}
    if c.projects_output:
        entries |= linear("embeddings.projection", "decoder.project_in", bias=False)
        entries |= linear("output_projection", "decoder.project_out", bias=False)
    return entries


OPT = Family(
    "opt", "decoder", "model.",
    rows=(
        size("vocab_size", default=50272),
        size("hidden_size", default=768),
        size("num_layers", "num_hidden_layers", default=12),
        size("num_attention_heads", default=12),
        size("intermediate_size", "ffn_dim", default=3072),
        size("max_position_embeddings", default=2048),
        size("embedding_size", "word_embed_proj_dim", default=None),
        word("activation", "activation_function", default="relu"),
        flag("do_layer_norm_before", default=True),
        flag("remove_final_layer_norm", "_remove_final_layer_norm", default=False),
        flag("enable_bias", default=True),
        flag("norm_affine", "layer_norm_elementwise_affine", default=True),
        _TIED,
        *special_tokens(1, 2, 2),
    ),
    derive=lambda read: {**_opt(read), "norm_epsilon": 1e-5},
    weights=_opt_weights,
    heads={task: head for task, head in _DECODER_HEADS.items() if task != "TOKEN_CLS"},
    unsupported=_NEWER,
)  # fmt: skip

# ---------------------------------------------------------------- GPT-NeoX, BLOOM, Falcon


def _query_key_value(layer: str, attention_name: str, c: Any) -> Weights:
    """The maps that these three name alike, with queries, keys and values interleaved."""
    return {
        **fused(
            LAYER + "attention",
            f"{layer}{attention_name}.query_key_value",
            "interleaved",
            bias=c.attention_bias,
        ),
        **linear(LAYER + "attention.output", f"{layer}{attention_name}.dense", bias=c.output_bias),
        **linear(LAYER + "mlp.up", layer + "mlp.dense_h_to_4h", bias=c.mlp_bias),
        **linear(LAYER + "mlp.down", layer + "mlp.dense_4h_to_h", bias=c.mlp_bias),
    }


def _gpt_neox_weights(c: Any) -> Weights:
    layer = "layers.{layer}."
    return {
        **table("embeddings.tokens", "embed_in"),
        **norm(LAYER + "input_norm", layer + "input_layernorm"),
        **_query_key_value(layer, "attention", c),
        **norm(LAYER + "post_attention_norm", layer + "post_attention_layernorm"),
        **norm("final_norm", "final_layer_norm"),
        **table("head", "lm_head"),
    }


def _gpt_neox(read: Read) -> Read:
    parallel, bias = read.pop("use_parallel_residual"), read.pop("attention_bias")
    return {
        **_rotary(read, read.pop("rotary_pct")),
        "parallel": parallel, "attention_bias": bias, "output_bias": bias,
    }  # fmt: skip


GPT_NEOX = Family(
    "gpt_neox", "decoder", "gpt_neox.",
    rows=(
        size("vocab_size", default=50432),
        size("hidden_size", default=6144),
        size("num_layers", "num_hidden_layers", default=44),
        size("num_attention_heads", default=64),
        size("intermediate_size", default=24576),
        size("max_position_embeddings", default=2048),
        word("activation", "hidden_act", default="gelu"),
        epsilon("layer_norm_eps", default=1e-5),
        flag("use_parallel_residual", default=True),
        flag("attention_bias", default=True),
        *(row._replace(keys=("rotary_emb_base",)) if row.name == "rope_theta" else row for row in _ROPE),
        Row("rotary_pct", ("rotary_pct",), 0.25, POSITIVE),
        _UNTIED,
        *special_tokens(None, 0, 2),
    ),
    derive=_gpt_neox, weights=_gpt_neox_weights, heads=_DECODER_HEADS,
    ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    unsupported=_NEWER,
)  # fmt: skip


def _bloom_weights(c: Any) -> Weights:
    layer = "h.{layer}."
    return {
        **table("embeddings.tokens", "word_embeddings"),
        **norm("embeddings.norm", "word_embeddings_layernorm"),
        **norm(LAYER + "input_norm", layer + "input_layernorm"),
        **_query_key_value(layer, "self_attention", c),
        **norm(LAYER + "post_attention_norm", layer + "post_attention_layernorm"),
        **norm("final_norm", "ln_f"),
        **table("head", "lm_head"),
    }


BLOOM = Family(
    "bloom", "decoder", "transformer.",
    rows=(
        size("vocab_size", default=250880),
        size("hidden_size", "n_embed", "hidden_size", default=64),
        size("num_layers", "num_hidden_layers", "n_layer", default=2),
        size("num_attention_heads", "num_attention_heads", "n_head", default=8),
        epsilon("layer_norm_epsilon", default=1e-5),
        flag("residual_from_norm", "apply_residual_connection_post_layernorm", default=False),
        _TIED,
        *special_tokens(None, 1, 2),
    ),
    derive=lambda read: {
        **_heads_divide(read), "positions": "alibi", "activation": "bloom_gelu",
        "intermediate_size": 4 * read["hidden_size"], "embedding_norm": True,
    },
    weights=_bloom_weights, heads=_DECODER_HEADS,
    unsupported={"slow_but_exact": "it only adds the parts of a product one after the other", **_NEWER},
)  # fmt: skip


def _falcon(read: Read) -> Read:
    heads, grouped = read["num_attention_heads"], read.pop("new_decoder_architecture")
    parallel, norms, alibi = read.pop("parallel_attn"), read.pop("num_ln_in_parallel_attn"), read.pop("alibi")
    multi_query, stored, bias = read.pop("multi_query"), read.pop("num_kv_heads") or heads, read.pop("bias")
    stored = stored if grouped else 1 if multi_query else heads
    read = {**read, "num_key_value_heads": heads if grouped else stored}
    if alibi:  # HF makes rotary frequencies then too, and does not use them
        read = _heads_divide({name: value for name, value in read.items() if not name.startswith("rope_")})
    read = _inner(read if alibi else _rotary(read))
    if heads % stored:
        raise ConfigError(
            f"num_kv_heads of the base model is {stored}, which does not divide its {heads} heads."
        )
    norms = 2 if norms is None and grouped else norms
    if grouped and not parallel:
        raise ConfigError(
            "parallel_attn of the base model is false, with new_decoder_architecture: HF then has no norm to feed the "
            "feed-forward network with, and fails. Set parallel_attn to true."
        )
    if parallel and norms == 2 and not grouped:
        raise ConfigError(
            "num_ln_in_parallel_attn of the base model is 2, without new_decoder_architecture: HF then makes two norms, looks for "
            "one, and fails. Set it to 1."
        )
    return {
        **read,
        "positions": "alibi" if alibi else "rotary",
        "rotary": None if alibi else read["rotary"],
        "alibi_times": 2 * read["attention_scale"] if alibi else 1.0,
        "alibi_bfloat16": alibi,
        "stored_key_value_heads": stored,
        "parallel": parallel or grouped,
        "shared_norm": (parallel or grouped) and not (grouped and norms == 2),
        "attention_bias": bias, "output_bias": bias, "mlp_bias": bias,
    }  # fmt: skip


def _falcon_weights(c: Any) -> Weights:
    layer, two = "h.{layer}.", c.parallel and not c.shared_norm
    second = {} if c.shared_norm else norm(
        LAYER + "post_attention_norm", layer + ("ln_mlp" if two else "post_attention_layernorm")
    )  # fmt: skip
    return {
        **table("embeddings.tokens", "word_embeddings"),
        **norm(LAYER + "input_norm", layer + ("ln_attn" if two else "input_layernorm")),
        **_query_key_value(layer, "self_attention", c),
        **second,
        **norm("final_norm", "ln_f"),
        **table("head", "lm_head"),
    }


FALCON = Family(
    "falcon", "decoder", "transformer.",
    rows=(
        size("vocab_size", default=65024),
        size("hidden_size", "n_embed", "hidden_size", default=4544),
        size("num_layers", "num_hidden_layers", default=32),
        size("num_attention_heads", default=71),
        size("num_kv_heads", default=None),
        size("intermediate_size", "ffn_hidden_size", default=None),
        size("max_position_embeddings", default=2048),
        size("num_ln_in_parallel_attn", default=None),
        word("activation", "activation", default="gelu"),
        epsilon("layer_norm_epsilon", default=1e-5),
        flag("alibi", default=False),
        flag("new_decoder_architecture", default=False),
        flag("multi_query", default=True),
        flag("parallel_attn", default=True),
        flag("bias", default=False),
        *_ROPE,
        _TIED,
        *special_tokens(None, 11, 11),
    ),
    derive=_falcon, weights=_falcon_weights, heads=_DECODER_HEADS, heads_drop_positions=True, unsupported=_NEWER,
)  # fmt: skip

# ---------------------------------------------------------------- LLaMA and what is made like it


def _llama_weights(c: Any) -> Weights:
    layer, around = "layers.{layer}.", c.norm_order == "around"
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    entries = {
        **table("embeddings.tokens", "embed_tokens"),
        **norm(LAYER + "input_norm", layer + "input_layernorm", bias=False),
        **attention(
            LAYER + "attention", {part: f"{layer}self_attn.{name}" for part, name in names.items()},
            bias=c.attention_bias, output_bias=c.output_bias,
        ),
        **linear(LAYER + "mlp.gate", layer + "mlp.gate_proj", bias=c.mlp_bias),
        **linear(LAYER + "mlp.up", layer + "mlp.up_proj", bias=c.mlp_bias),
        **linear(LAYER + "mlp.down", layer + "mlp.down_proj", bias=c.mlp_bias),
        **norm("final_norm", "norm", bias=False),
        **table("head", "lm_head"),
    }  # fmt: skip
    if c.query_key_norm:
        entries |= norm(LAYER + "attention.query_norm", layer + "self_attn.q_norm", bias=False)
        entries |= norm(LAYER + "attention.key_norm", layer + "self_attn.k_norm", bias=False)
    if around:
        entries |= norm(LAYER + "attention_output_norm", layer + "post_attention_layernorm", bias=False)
        entries |= norm(LAYER + "post_attention_norm", layer + "pre_feedforward_layernorm", bias=False)
        entries |= norm(LAYER + "mlp_output_norm", layer + "post_feedforward_layernorm", bias=False)
    else:
        entries |= norm(LAYER + "post_attention_norm", layer + "post_attention_layernorm", bias=False)
    return entries


def _llama_rows(
    vocab: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int | None, positions: int,
    head_dim: int | None = None, activation: str = "hidden_act", function: str = "silu",
) -> tuple[Row, ...]:  # fmt: skip
    """The fields that all of them have, with their defaults."""
    return (
        size("vocab_size", default=vocab),
        size("hidden_size", default=hidden),
        size("intermediate_size", default=inner),
        size("num_layers", "num_hidden_layers", default=layers),
        size("num_attention_heads", default=heads),
        Row("num_key_value_heads", ("num_key_value_heads",), kv_heads, SIZE.or_none()),
        Row("head_dim", ("head_dim",), head_dim, SIZE.or_none()),
        size("max_position_embeddings", default=positions),
        word("activation", activation, default=function),
        epsilon("rms_norm_eps", default=1e-6),
        *_ROPE,
    )


def _attention_bias(read: Read) -> Read:
    bias = read.pop("attention_bias")
    return {**read, "attention_bias": bias, "output_bias": bias}


def _llama(read: Read) -> Read:
    return {
        "mlp_bias": False,
        "attention_bias": False,
        "output_bias": False,
        **read,
        "norm": "rms_norm",
        "gated": True,
    }


LLAMA = Family(
    "llama", "decoder", "model.",
    rows=(
        *_llama_rows(32000, 4096, 11008, 32, 32, None, 2048),
        flag("attention_bias", default=False),
        flag("mlp_bias", default=False),
        _UNTIED,
        *special_tokens(None, 1, 2),
    ),
    derive=lambda read: _llama(_attention_bias(_rotary(read))),
    weights=_llama_weights, heads=_GENERIC_HEADS, ignored=(".rotary_emb.inv_freq",), unsupported=_NEWER,
)  # fmt: skip

_WINDOW = size("sliding_window", default=4096)._replace(rule=SIZE.or_none())

MISTRAL = Family(
    "mistral", "decoder", "model.",
    rows=(
        *_llama_rows(32000, 4096, 14336, 32, 32, 8, 131072), _WINDOW, _UNTIED, *special_tokens(None, 1, 2),
    ),
    derive=lambda read: _llama(_rotary(_windows(read, ["sliding_attention"] * read["num_layers"]))),
    weights=_llama_weights, heads=_GENERIC_HEADS, ignored=(".rotary_emb.inv_freq",),
    unsupported={**_NEWER, "layer_types": "HF's Mistral ignores it; use the configuration class that it names instead"},
)  # fmt: skip


def _qwen_windows(read: Read) -> Read:
    """The layers from max_window_layers on have a window, if windows are used at all."""
    first, used = read.pop("max_window_layers"), read.pop("use_sliding_window")
    window = read["sliding_window"] if used else None
    later = [
        "sliding_attention" if window and i >= first else "full_attention" for i in range(read["num_layers"])
    ]
    return _windows({**read, "sliding_window": window}, later)


_QWEN_ROWS = (
    *_llama_rows(151936, 4096, 22016, 32, 32, 32, 32768),
    flag("use_sliding_window", default=False),
    _WINDOW,
    Row("max_window_layers", ("max_window_layers",), 28, Rule("an integer of at least 0", lambda v: isinstance(v, int) and v >= 0)),
    Row("layer_types", ("layer_types",), None, LAYER_TYPES),
    _UNTIED,
    *special_tokens(None, None, None),
)  # fmt: skip

QWEN2 = Family(
    "qwen2", "decoder", "model.",
    rows=_QWEN_ROWS,
    derive=lambda read: {**_llama(_rotary(_qwen_windows(read))), "attention_bias": True},
    weights=_llama_weights, heads=_GENERIC_HEADS, ignored=(".rotary_emb.inv_freq",), unsupported=_NEWER,
)  # fmt: skip

QWEN3 = Family(
    "qwen3", "decoder", "model.",
    rows=(
        *(row._replace(default=128) if row.name == "head_dim" else row for row in _QWEN_ROWS),
        flag("attention_bias", default=False),
    ),
    derive=lambda read: {**_llama(_attention_bias(_rotary(_qwen_windows(read)))), "query_key_norm": True},
    weights=_llama_weights, heads=_GENERIC_HEADS, unsupported=_NEWER,
)  # fmt: skip


def _gemma(read: Read) -> Read:
    tanh = {"gelu": "gelu_pytorch_tanh"}.get(read["activation"], read["activation"])
    read = {**_llama(_attention_bias(read)), "norm": "rms_norm_plus_one"}
    return {**read, "activation": tanh, "embedding_scale": read["hidden_size"] ** 0.5}


GEMMA = Family(
    "gemma", "decoder", "model.",
    rows=(
        *_llama_rows(256000, 3072, 24576, 28, 16, 16, 8192, 256, function="gelu_pytorch_tanh"),
        flag("attention_bias", default=False), _TIED, *special_tokens(0, 2, 1),
    ),
    derive=lambda read: _gemma(_rotary(read)),
    weights=_llama_weights,
    heads={task: head for task, head in _GENERIC_HEADS.items() if task != "QUESTION_ANS"},
    unsupported=_LEFT_TO_RIGHT,
)  # fmt: skip


def _gemma2(read: Read) -> Read:
    scalar, activation = read.pop("query_pre_attn_scalar"), read["activation"]
    return {
        **_gemma(read),
        "activation": activation,  # its own key is read as it is
        "norm_order": "around", "attention_scale": scalar**-0.5, "cuts_prefix": True,
    }  # fmt: skip


_GEMMA2_ROWS = (
    *_llama_rows(256000, 2304, 9216, 26, 8, 4, 8192, 256, "hidden_activation", "gelu_pytorch_tanh"),
    flag("attention_bias", default=False),
    size("query_pre_attn_scalar", default=256),
    _WINDOW,
    Row("layer_types", ("layer_types",), None, LAYER_TYPES),
    Row("attention_softcap", ("attn_logit_softcapping",), 50.0, POSITIVE.or_none()),
    Row("logits_softcap", ("final_logit_softcapping",), 30.0, POSITIVE.or_none()),
    _TIED,
    *special_tokens(0, 2, 1),
)


def _alternating(layers: int, period: int) -> list[str]:
    return ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)]


GEMMA2 = Family(
    "gemma2", "decoder", "model.",
    rows=_GEMMA2_ROWS,
    derive=lambda read: _gemma2(_rotary(_windows(read, _alternating(read["num_layers"], 2)))),
    weights=_llama_weights,
    heads={task: head for task, head in _GENERIC_HEADS.items() if task != "QUESTION_ANS"},
    unsupported=_LEFT_TO_RIGHT,
)  # fmt: skip


def _of_kind(given: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """What Gemma-3's rope_parameters say of one kind of layer."""
    DICTIONARY.or_none().check(f"rope_parameters[{kind!r}] of the base model", given.get(kind))
    return given.get(kind) or {}


def _gemma3(read: Read) -> Read:
    """Layers with a window turn by a base of their own. HF ignores attn_logit_softcapping here."""
    given: Mapping[str, Any] = read.pop("rope_parameters") or {}
    period, local = read.pop("sliding_window_pattern"), read.pop("rope_local_base_freq")
    whole = {
        "rope_theta": read.pop("rope_theta"),
        **_of_kind(given, "full_attention"),
        **(read.pop("rope_scaling") or {}),
    }
    near = {"rope_theta": local, **_of_kind(given, "sliding_attention")}
    for parameters in (whole, near):
        _require_whole_heads(parameters)
    read = _windows(_heads_divide(read), _alternating(read["num_layers"], period))
    kinds = [
        read_rotary(parameters, read["head_dim"], read["max_position_embeddings"])
        for parameters in (whole, near)
    ]
    rotary = tuple(kinds[window is not None] for window in read["sliding_windows"])
    return {
        **_gemma2({**read, "positions": "rotary", "rotary": rotary}), "query_key_norm": True, "attention_softcap": None,
    }  # fmt: skip


_GEMMA3_DEFAULTS = {
    "vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1_000_000.0,
    "attention_softcap": None, "logits_softcap": None,
}  # fmt: skip

GEMMA3_TEXT = Family(
    "gemma3_text", "decoder", "model.",
    rows=(
        *(row._replace(default=_GEMMA3_DEFAULTS.get(row.name, row.default)) for row in _GEMMA2_ROWS),
        size("sliding_window_pattern", default=6),
        Row("rope_local_base_freq", ("rope_local_base_freq",), 10_000.0, POSITIVE),
    ),
    derive=_gemma3, weights=_llama_weights, heads={"SEQ_CLS": _DECODER_HEADS["SEQ_CLS"]},
    unsupported=_LEFT_TO_RIGHT,
)  # fmt: skip

# ---------------------------------------------------------------- Phi


def _phi_weights(c: Any) -> Weights:
    layer = "layers.{layer}."
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "dense"}
    entries = {
        **table("embeddings.tokens", "embed_tokens"),
        **norm(LAYER + "input_norm", layer + "input_layernorm"),
        **attention(LAYER + "attention", {part: f"{layer}self_attn.{name}" for part, name in names.items()}),
        **linear(LAYER + "mlp.up", layer + "mlp.fc1"),
        **linear(LAYER + "mlp.down", layer + "mlp.fc2"),
        **norm("final_norm", "final_layernorm"),
        **linear("head", "lm_head"),
    }
    if c.query_key_norm:
        entries |= norm(LAYER + "attention.query_norm", layer + "self_attn.q_layernorm")
        entries |= norm(LAYER + "attention.key_norm", layer + "self_attn.k_layernorm")
    return entries


PHI = Family(
    "phi", "decoder", "model.",
    rows=(
        *(
            epsilon("layer_norm_eps", default=1e-5) if row.name == "norm_epsilon" else row
            for row in _llama_rows(51200, 2048, 8192, 24, 32, None, 2048, function="gelu_new")
        ),
        Row("partial", ("partial_rotary_factor",), 0.5, POSITIVE),
        flag("query_key_norm", "qk_layernorm", default=False),
        _UNTIED,
        *special_tokens(None, 1, 2),
    ),
    derive=lambda read: {**_rotary(read, read.pop("partial")), "parallel": True, "shared_norm": True, "head_bias": True},
    weights=_phi_weights,
    heads={task: head for task, head in _GENERIC_HEADS.items() if task != "QUESTION_ANS"},
    unsupported=_NEWER,
)  # fmt: skip

# ---------------------------------------------------------------- BERT, RoBERTa, ELECTRA


def _bert(read: Read) -> Read:
    return {
        "embedding_size": read["hidden_size"], **_heads_divide(read),
        "norm_order": "after", "final_norm": False, "embedding_norm": True, "tie_word_embeddings": False,
    }  # fmt: skip


def _bert_weights(c: Any) -> Weights:
    layer = "encoder.layer.{layer}."
    names = {part: f"{layer}attention.self.{part}" for part in ("query", "key", "value")}
    entries = {
        **table("embeddings.tokens", "embeddings.word_embeddings"),
        **table("embeddings.positions", "embeddings.position_embeddings"),
        **table("embeddings.token_types", "embeddings.token_type_embeddings"),
        **norm("embeddings.norm", "embeddings.LayerNorm"),
        **attention(LAYER + "attention", {**names, "output": layer + "attention.output.dense"}),
        **norm(LAYER + "post_attention_norm", layer + "attention.output.LayerNorm"),
        **linear(LAYER + "mlp.up", layer + "intermediate.dense"),
        **linear(LAYER + "mlp.down", layer + "output.dense"),
        **norm(LAYER + "output_norm", layer + "output.LayerNorm"),
    }
    if c.embedding_size != c.hidden_size:
        entries |= linear("embeddings.projection", "embeddings_project")
    return entries


_BERT_ROWS = (
    size("vocab_size", default=30522),
    size("hidden_size", default=768),
    size("num_layers", "num_hidden_layers", default=12),
    size("num_attention_heads", default=12),
    size("intermediate_size", default=3072),
    size("max_position_embeddings", default=512),
    size("token_types", "type_vocab_size", default=2),
    word("activation", "hidden_act", default="gelu"),
    epsilon("layer_norm_eps", default=1e-12),
    *special_tokens(0, None, None),
)
_ENCODER_ONLY = {
    "is_decoder": "refpeft's encoders look in both directions",
    "add_cross_attention": "refpeft's encoders stand alone",
    **_NEWER,
}
_EACH = {"TOKEN_CLS": Head("classifier", "each_token"), "QUESTION_ANS": Head("qa_outputs", "span")}
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")

BERT = Family(
    "bert", "encoder", "bert.",
    rows=_BERT_ROWS, derive=lambda read: {**_bert(read), "pooler": True}, weights=_bert_weights,
    heads={"SEQ_CLS": Head("classifier", "pooler"), **_EACH}, ignored=(*_BUFFERS, "cls."), unsupported=_ENCODER_ONLY,
)  # fmt: skip


def _roberta(read: Read) -> Read:
    if read["pad_token_id"] is None:
        raise ConfigError("pad_token_id of the base model is None; RoBERTa counts positions from it.")
    return {**_bert(read), "pooler": True, "position_rule": "tokens", "position_offset": 0}


ROBERTA = Family(
    "roberta", "encoder", "roberta.",
    rows=tuple(
        row._replace(default={"vocab_size": 50265, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}.get(row.name, row.default))
        for row in _BERT_ROWS
    ),
    derive=_roberta, weights=_bert_weights,
    heads={"SEQ_CLS": Head("classifier", "first_token"), **_EACH}, ignored=(*_BUFFERS, "lm_head."),
    unsupported=_ENCODER_ONLY,
)  # fmt: skip

ELECTRA = Family(
    "electra", "encoder", "electra.",
    rows=(
        size("embedding_size", default=128),
        *(
            row._replace(default={"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}.get(row.name, row.default))
            for row in _BERT_ROWS
        ),
    ),
    derive=_bert, weights=_bert_weights,
    heads={"SEQ_CLS": Head("classifier", "first_token", activation="gelu"), **_EACH},
    ignored=(*_BUFFERS, "discriminator_predictions.", "generator_predictions.", "generator_lm_head."),
    unsupported=_ENCODER_ONLY,
)  # fmt: skip

# ---------------------------------------------------------------- T5 and BART


def _t5(read: Read) -> Read:
    words = read.pop("feed_forward_proj").split("-")
    if len(words) > 2 or (len(words) == 2 and words[0] != "gated"):
        raise ConfigError(
            f"`feed_forward_proj`: {'-'.join(words)} is not a valid activation function of the dense layer. Please make sure "
            "`feed_forward_proj` is of the format `gated-{ACT_FN}` or `{ACT_FN}`, e.g. 'gated-gelu' or 'relu'"
        )
    buckets, distance = read["relative_buckets"], read["relative_distance"]
    if buckets < 4 or distance <= buckets // 2:
        raise ConfigError(
            f"relative_attention_num_buckets and relative_attention_max_distance of the base model are {buckets} and {distance}; T5's "
            "logarithms need at least 4 buckets, and a distance beyond half of them."
        )
    tied, scaled = read.pop("tied"), read.pop("scale_decoder_outputs")
    scaled = tied is not False if scaled is None else scaled
    layers = read["decoder_layers"] or read["num_layers"]
    return {
        **read, "decoder_layers": layers, "num_key_value_heads": read["num_attention_heads"],
        "activation": "gelu_new" if words == ["gated", "gelu"] else words[-1], "gated": len(words) == 2,
        "positions": "relative", "attention_scale": 1.0, "norm": "rms_norm", "tie_word_embeddings": True,
        "logits_scale": read["hidden_size"] ** -0.5 if scaled else 1.0,
        "attention_bias": False, "output_bias": False, "mlp_bias": False,
    }  # fmt: skip


def _t5_stack(c: Any, stack: str) -> Weights:
    layer = f"{stack}.block.{{layer}}.layer."
    here, last = f"{stack}.{LAYER}", 2 if stack == "decoder" else 1

    def maps(place: str) -> dict[str, str]:
        return {part: f"{layer}{place}.{part[0]}" for part in ("query", "key", "value", "output")}

    first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
    entries = {
        **table(f"{stack}.relative_bias", first),
        **norm(here + "input_norm", layer + "0.layer_norm", bias=False),
        **attention(here + "attention", maps("0.SelfAttention"), bias=False, output_bias=False),
        **norm(here + "post_attention_norm", layer + "1.layer_norm", bias=False),
        **linear(here + "mlp.up", f"{layer}{last}.DenseReluDense.{'wi_1' if c.gated else 'wi'}", bias=False),
        **linear(here + "mlp.down", f"{layer}{last}.DenseReluDense.wo", bias=False),
        **norm(f"{stack}.final_norm", f"{stack}.final_layer_norm", bias=False),
    }
    if c.gated:
        entries |= linear(here + "mlp.gate", f"{layer}{last}.DenseReluDense.wi_0", bias=False)
    if stack == "decoder":
        entries |= attention(
            here + "cross_attention", maps("1.EncDecAttention"), bias=False, output_bias=False
        )
        entries |= norm(here + "post_cross_attention_norm", layer + "2.layer_norm", bias=False)
    return entries


T5 = Family(
    "t5", "encoder_decoder", "transformer.",
    rows=(
        size("vocab_size", default=32128),
        size("hidden_size", "hidden_size", "d_model", default=512),
        size("head_dim", "head_dim", "d_kv", default=64),
        size("intermediate_size", "d_ff", default=2048),
        size("num_layers", "num_hidden_layers", "num_layers", default=6),
        Row("decoder_layers", ("num_decoder_layers",), None, SIZE.or_none()),
        size("num_attention_heads", "num_attention_heads", "num_heads", default=8),
        size("relative_buckets", "relative_attention_num_buckets", default=32),
        size("relative_distance", "relative_attention_max_distance", default=128),
        word("feed_forward_proj", default="relu"),
        epsilon("layer_norm_epsilon", default=1e-6),
        Row("tied", ("tie_word_embeddings",), None, flag("", default=True).rule.or_none()),
        Row("scale_decoder_outputs", ("scale_decoder_outputs",), None, flag("", default=True).rule.or_none()),
        *special_tokens(0, None, 1),
    ),
    derive=_t5,
    weights=lambda c: {
        **table("embeddings.tokens", "shared"), **_t5_stack(c, "encoder"), **_t5_stack(c, "decoder"),
        **table("head", "lm_head"),
    },
    ignored=(
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.", "encoder.embed_tokens.", "decoder.embed_tokens.",
    ),
    unsupported={"is_decoder": "refpeft's T5 has both stacks", **_NEWER},
)  # fmt: skip


def _bart(read: Read) -> Read:
    scaled = read.pop("scale_embedding")
    return {
        **_heads_divide(read), "position_offset": 2, "embedding_norm": True, "norm_order": "after", "final_norm": False,
        "norm_epsilon": 1e-5, "embedding_scale": read["hidden_size"] ** 0.5 if scaled else 1.0, "head_bias": True,
    }  # fmt: skip


def _bart_stack(stack: str) -> Weights:
    layer, here = f"{stack}.layers.{{layer}}.", f"{stack}.{LAYER}"

    def maps(place: str) -> dict[str, str]:
        names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
        return {part: f"{layer}{place}.{name}" for part, name in names.items()}

    entries = {
        **table(f"{stack}.embeddings.positions", f"{stack}.embed_positions"),
        **norm(f"{stack}.embeddings.norm", f"{stack}.layernorm_embedding"),
        **attention(here + "attention", maps("self_attn")),
        **norm(here + "post_attention_norm", layer + "self_attn_layer_norm"),
        **linear(here + "mlp.up", layer + "fc1"),
        **linear(here + "mlp.down", layer + "fc2"),
        **norm(here + "output_norm", layer + "final_layer_norm"),
    }
    if stack == "decoder":
        entries |= attention(here + "cross_attention", maps("encoder_attn"))
        entries |= norm(here + "post_cross_attention_norm", layer + "encoder_attn_layer_norm")
    return entries


BART = Family(
    "bart", "encoder_decoder", "model.",
    rows=(
        size("vocab_size", default=50265),
        size("hidden_size", "hidden_size", "d_model", default=1024),
        size("num_layers", "num_hidden_layers", "encoder_layers", default=12),
        size("decoder_layers", default=12),
        size("num_attention_heads", "num_attention_heads", "encoder_attention_heads", default=16),
        size("decoder_attention_heads", default=16),
        size("intermediate_size", "encoder_ffn_dim", default=4096),
        size("decoder_intermediate_size", "decoder_ffn_dim", default=4096),
        size("max_position_embeddings", default=1024),
        word("activation", "activation_function", default="gelu"),
        flag("scale_embedding", default=False),
        _TIED,
        *special_tokens(1, 0, 2),
    ),
    derive=_bart,
    weights=lambda c: {
        **table("embeddings.tokens", "shared"), **_bart_stack("encoder"), **_bart_stack("decoder"),
        **table("head", "lm_head"), "head.bias": Source("final_logits_bias", optional=True),
    },
    ignored=("encoder.version", "decoder.version", "encoder.embed_tokens.", "decoder.embed_tokens."),
    unsupported={"is_decoder": "refpeft's BART has both stacks", **_NEWER},
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        GPT2, OPT, GPT_NEOX, BLOOM, GPT_BIGCODE, FALCON, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3_TEXT, PHI,
        BERT, ROBERTA, ELECTRA, T5, BART,
    )
}  # fmt: skip
"""Every family by HF's `model_type`."""


def family_of(model_type: str) -> Family:
    """The row of an architecture.

    Source: transformers 5.23.0 `models/auto/auto_mappings.py`, `CONFIG_MAPPING_NAMES`: HF's names.

    Raises:
        ConfigError: refpeft does not know the architecture.
    """
    if model_type not in FAMILIES:
        raise ConfigError(
            f"The base model's model_type is {model_type!r}; refpeft knows {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]
