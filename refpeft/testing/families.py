"""Base models drawn at random: of each family a config.json with every option that its row knows.

An option is left out, so that both sides have to know its default, or drawn. Files are written as HF's hub has them, old
names of the rotary options among them. All sizes are tiny, and the simplest choice comes first: that is where a search shrinks to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from refpeft.ops import ACTIVATIONS
from refpeft.transformer.families import FAMILIES as ROWS

Config = dict[str, Any]
Draw = Callable[[Any], Any]

ENCODERS = tuple(name for name, row in ROWS.items() if row.kind == "encoder")
ENCODER_DECODERS = tuple(name for name, row in ROWS.items() if row.kind == "encoder_decoder")
NORM_EPSILONS = st.sampled_from([1e-5, 1e-3, 1e-12])
LAYERS, INNER = st.integers(1, 3), st.integers(1, 9)
ACTIVATION = st.sampled_from(sorted(ACTIVATIONS))


def sometimes(draw: Draw, **options: Any) -> Config:
    """Each option left out or drawn."""
    return {name: draw(values) for name, values in options.items() if draw(st.booleans())}


# ---------------------------------------------------------------- what many families have


def _even_heads(draw: Draw) -> tuple[int, int]:
    """Heads, and a width of each that rotary positions can turn."""
    return draw(st.integers(1, 4)), draw(st.sampled_from([4, 2, 6, 8]))


def _rope(draw: Draw, head_dim: int, *, partial: str = "", theta: str = "rope_theta") -> Config:
    """Rotary positions: nothing, or one of three kinds, under the names of today or those of before transformers 5.

    `partial`: the old name of the part that is turned, where a family can turn a part. `theta`: the old name of the base.
    """
    parts = [
        part for part in (0.25, 0.5, 0.75, 1.0) if int(head_dim * part) % 2 == 0 and int(head_dim * part)
    ]
    base = draw(st.sampled_from([10000.0, 500.0, 20.0, 50]))
    kind, factor = (
        draw(st.sampled_from(["default", "linear", "llama3"])),
        draw(st.sampled_from([2.0, 3.5, 8])),
    )
    scaling: Config = {} if kind == "default" else {"factor": factor}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": draw(st.sampled_from([2.0, 4.0]))}
        scaling |= sometimes(draw, original_max_position_embeddings=st.sampled_from([8, 32]))
    turned = {partial: draw(st.sampled_from(parts))} if partial else {}
    if draw(st.booleans()):
        if partial:
            scaling["partial_rotary_factor"] = turned[partial]
        return {"rope_parameters": {"rope_type": kind, "rope_theta": base, **scaling}}
    word = draw(st.sampled_from(["type", "rope_type"]))
    return {theta: base, **turned, **({"rope_scaling": {word: kind, **scaling}} if scaling else {})}


def _grouped(draw: Draw, *, own_width: bool = True, activation: str = "hidden_act") -> tuple[Config, int]:
    """LLaMA's sizes: key/value heads that serve several queries, a width of heads that need not divide the hidden size."""
    heads, head_dim = _even_heads(draw)
    shared = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    hidden = heads * head_dim
    hidden = hidden if hidden >= 4 else 4 * heads
    config: Config = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": shared}
    if own_width and draw(st.booleans()):
        config |= {"hidden_size": heads * draw(st.integers(-(-4 // heads), 6)), "head_dim": head_dim}
    elif hidden != heads * head_dim:
        head_dim = hidden // heads
    config |= {
        "num_hidden_layers": draw(LAYERS),
        "intermediate_size": draw(INNER),
        "max_position_embeddings": draw(st.sampled_from([16, 64])),
        **sometimes(
            draw, rms_norm_eps=NORM_EPSILONS, tie_word_embeddings=st.booleans(), **{activation: ACTIVATION}
        ),
    }
    return config, head_dim


def _layer_types(draw: Draw, layers: int) -> Any:
    kind = st.sampled_from(["full_attention", "sliding_attention"])
    return st.lists(kind, min_size=layers, max_size=layers)


# ---------------------------------------------------------------- the families


def _gpt2(draw: Draw, needed: int) -> Config:
    heads = draw(st.integers(1, 4))
    return {
        "n_embd": heads * draw(st.integers(-(-4 // heads), 5)),
        "n_layer": draw(LAYERS),
        "n_head": heads,
        "n_positions": needed,
        **sometimes(
            draw,
            activation_function=ACTIVATION,
            n_inner=INNER,
            scale_attn_weights=st.booleans(),
            tie_word_embeddings=st.booleans(),
            layer_norm_epsilon=NORM_EPSILONS,
            scale_attn_by_inverse_layer_idx=st.booleans(),
        ),
    }


def _gpt_bigcode(draw: Draw, needed: int) -> Config:
    config = _gpt2(draw, needed)
    config.pop("scale_attn_by_inverse_layer_idx", None)
    return {**config, **sometimes(draw, multi_query=st.booleans())}


def _opt(draw: Draw, needed: int) -> Config:
    heads = draw(st.integers(1, 4))
    hidden = heads * draw(st.integers(-(-4 // heads), 5))
    return {
        "hidden_size": hidden,
        "num_hidden_layers": draw(LAYERS),
        "num_attention_heads": heads,
        "ffn_dim": draw(INNER),
        "max_position_embeddings": needed,
        **sometimes(
            draw,
            activation_function=ACTIVATION,
            word_embed_proj_dim=st.just(hidden) | st.integers(2, 9),
            do_layer_norm_before=st.booleans(),
            _remove_final_layer_norm=st.booleans(),
            enable_bias=st.booleans(),
            layer_norm_elementwise_affine=st.booleans(),
            tie_word_embeddings=st.booleans(),
        ),
    }


def _gpt_neox(draw: Draw, needed: int) -> Config:
    heads, head_dim = _even_heads(draw)
    head_dim = max(head_dim, 4)
    return {
        "hidden_size": heads * head_dim,
        "num_hidden_layers": draw(LAYERS),
        "num_attention_heads": heads,
        "intermediate_size": draw(INNER),
        "max_position_embeddings": draw(st.sampled_from([16, 64])),
        **_rope(draw, head_dim, partial="rotary_pct", theta="rotary_emb_base"),
        **sometimes(
            draw,
            hidden_act=ACTIVATION,
            layer_norm_eps=NORM_EPSILONS,
            use_parallel_residual=st.booleans(),
            attention_bias=st.booleans(),
            tie_word_embeddings=st.booleans(),
        ),
    }


def _bloom(draw: Draw, needed: int) -> Config:
    heads = draw(st.integers(1, 7))
    return {
        draw(st.sampled_from(["hidden_size", "n_embed"])): heads * draw(st.integers(-(-4 // heads), 4)),
        "n_layer": draw(LAYERS),
        draw(st.sampled_from(["n_head", "num_attention_heads"])): heads,
        **sometimes(
            draw,
            layer_norm_epsilon=NORM_EPSILONS,
            apply_residual_connection_post_layernorm=st.booleans(),
            tie_word_embeddings=st.booleans(),
        ),
    }


def _falcon(draw: Draw, needed: int) -> Config:
    """One key for all queries, a key for each, or (new architecture) for each group; ALiBi or rotary; one norm or two."""
    heads, head_dim = draw(st.integers(1, 6)), draw(st.sampled_from([4, 2, 6]))
    head_dim = head_dim if heads * head_dim >= 4 else 4
    config = {
        "hidden_size": heads * head_dim,
        "num_hidden_layers": draw(LAYERS),
        "num_attention_heads": heads,
        "max_position_embeddings": draw(st.sampled_from([16, 64])),
        **_rope(draw, head_dim),
        **sometimes(
            draw,
            ffn_hidden_size=INNER,
            activation=ACTIVATION,
            layer_norm_epsilon=NORM_EPSILONS,
            alibi=st.booleans(),
            multi_query=st.booleans(),
            parallel_attn=st.booleans(),
            bias=st.booleans(),
            tie_word_embeddings=st.booleans(),
        ),
    }
    if draw(st.booleans()):  # then HF fails where attention and network are not side by side
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        config |= {"new_decoder_architecture": True, "num_kv_heads": draw(st.sampled_from(divisors))}
        config |= {
            "parallel_attn": True,
            **sometimes(draw, num_ln_in_parallel_attn=st.sampled_from([1, 2, None])),
        }
    return config


def _llama(draw: Draw, needed: int) -> Config:
    config, head_dim = _grouped(draw)
    biases = sometimes(draw, attention_bias=st.booleans(), mlp_bias=st.booleans())
    if draw(st.booleans()) and config["num_key_value_heads"] == config["num_attention_heads"]:
        config["num_key_value_heads"] = None
    return {**config, **biases, **_rope(draw, head_dim)}


def _mistral(draw: Draw, needed: int) -> Config:
    config, head_dim = _grouped(draw)
    window = sometimes(draw, sliding_window=st.none() | st.integers(1, needed))
    return {**config, **window, **_rope(draw, head_dim)}


def _qwen2(draw: Draw, needed: int) -> Config:
    config, head_dim = _grouped(draw)
    config |= {"use_sliding_window": draw(st.booleans()), **_rope(draw, head_dim)}
    if config["use_sliding_window"]:
        config["sliding_window"] = draw(st.integers(1, needed))
        types = _layer_types(draw, config["num_hidden_layers"])
        config |= sometimes(draw, max_window_layers=st.integers(0, 3), layer_types=types)
    return config


def _qwen3(draw: Draw, needed: int) -> Config:
    config = _qwen2(draw, needed)
    own = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if own < 4:  # a norm of two numbers is nothing but signs
        own = 4
        config |= _rope(draw, own)
    return {**config, "head_dim": own, **sometimes(draw, attention_bias=st.booleans())}


def _gemma(draw: Draw, needed: int, activation: str = "hidden_act") -> Config:
    config, head_dim = _grouped(draw, activation=activation)
    return {
        **config,
        "head_dim": head_dim,
        **_rope(draw, head_dim),
        **sometimes(draw, attention_bias=st.booleans()),
    }


def _gemma2(draw: Draw, needed: int) -> Config:
    config = _gemma(draw, needed, "hidden_activation")
    return {
        **config,
        "sliding_window": draw(st.integers(2, needed + 1)),
        **sometimes(
            draw,
            query_pre_attn_scalar=st.integers(1, 30),
            layer_types=_layer_types(draw, config["num_hidden_layers"]),
            final_logit_softcapping=st.none() | st.sampled_from([2.0, 5.0]),
            attn_logit_softcapping=st.none() | st.sampled_from([1.0, 3.0]),
        ),
    }


def _gemma3_text(draw: Draw, needed: int) -> Config:
    """Layers with a window turn by a base of their own."""
    config, head_dim = _grouped(draw, activation="hidden_activation")
    head_dim = max(head_dim, 4)
    whole = {"rope_theta": draw(st.sampled_from([1000.0, 30.0]))}
    scaling = draw(st.sampled_from([{}, {"rope_type": "linear", "factor": 3.0}]))
    if draw(st.booleans()):
        near = {"rope_type": "default", "rope_theta": draw(st.sampled_from([200.0, 8.0]))}
        rope = {"full_attention": {"rope_type": "default", **whole, **scaling}, "sliding_attention": near}
        given: Config = {"rope_parameters": rope}
    else:
        given = {**whole, **({"rope_scaling": scaling} if scaling else {})}
        given |= sometimes(draw, rope_local_base_freq=st.sampled_from([200.0, 8.0]))
    return {
        **config,
        "head_dim": head_dim,
        **given,
        "sliding_window": draw(st.integers(2, needed + 1)),
        **sometimes(
            draw,
            attention_bias=st.booleans(),
            query_pre_attn_scalar=st.integers(1, 30),
            sliding_window_pattern=st.integers(1, 3),
            final_logit_softcapping=st.none() | st.sampled_from([2.0, 5.0]),
            attn_logit_softcapping=st.none() | st.sampled_from([1.0]),
            layer_types=_layer_types(draw, config["num_hidden_layers"]),
        ),
    }


def _phi(draw: Draw, needed: int) -> Config:
    heads, head_dim = _even_heads(draw)
    head_dim = max(head_dim, 4)
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    return {
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_hidden_layers": draw(LAYERS),
        "intermediate_size": draw(INNER),
        "max_position_embeddings": draw(st.sampled_from([16, 64])),
        **_rope(draw, head_dim, partial="partial_rotary_factor"),
        **sometimes(
            draw,
            num_key_value_heads=st.sampled_from(divisors),
            hidden_act=ACTIVATION,
            layer_norm_eps=NORM_EPSILONS,
            qk_layernorm=st.booleans(),
            tie_word_embeddings=st.booleans(),
        ),
    }


def _bert(draw: Draw, needed: int) -> Config:
    heads = draw(st.integers(1, 4))
    return {
        "hidden_size": heads * draw(st.integers(-(-4 // heads), 5)),
        "num_hidden_layers": draw(LAYERS),
        "num_attention_heads": heads,
        "intermediate_size": draw(INNER),
        "max_position_embeddings": needed,
        **sometimes(
            draw, hidden_act=ACTIVATION, layer_norm_eps=NORM_EPSILONS, type_vocab_size=st.integers(1, 3)
        ),
    }


def _roberta(draw: Draw, needed: int) -> Config:
    pad = draw(st.integers(0, 4))
    return {**_bert(draw, needed + pad + 1), "pad_token_id": pad}


def _electra(draw: Draw, needed: int) -> Config:
    config = _bert(draw, needed)
    return {**config, "embedding_size": draw(st.just(config["hidden_size"]) | st.integers(4, 9))}


def _t5(draw: Draw, needed: int) -> Config:
    heads = draw(st.integers(1, 4))
    word = draw(ACTIVATION)
    buckets = {
        "relative_attention_num_buckets": draw(st.sampled_from([4, 6, 8, 9])),
        "relative_attention_max_distance": draw(st.integers(5, 12)),
    }
    return {
        "d_model": draw(st.just(heads * 4) | st.integers(4, 18)),
        "d_kv": draw(st.just(4) | st.integers(1, 6)),
        "d_ff": draw(INNER),
        "num_layers": draw(st.integers(1, 4)),
        "num_heads": heads,
        "decoder_start_token_id": draw(st.integers(0, 5)),
        **draw(st.sampled_from([buckets, {}])),
        **sometimes(
            draw,
            num_decoder_layers=st.integers(1, 4),
            feed_forward_proj=st.sampled_from([word, f"gated-{word}", "gated-gelu"]),
            layer_norm_epsilon=NORM_EPSILONS,
            tie_word_embeddings=st.booleans(),
        ),
    }


def _bart(draw: Draw, needed: int) -> Config:
    hidden, layers = 12, st.integers(1, 4)
    heads = draw(st.sampled_from([1, 2, 3, 4, 6]))
    return {
        "d_model": hidden,
        "encoder_layers": (encoder := draw(layers)),
        "decoder_layers": draw(st.just(encoder) | layers),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": draw(st.just(heads) | st.sampled_from([1, 2, 3, 4])),
        "encoder_ffn_dim": draw(INNER),
        "decoder_ffn_dim": draw(INNER),
        "max_position_embeddings": needed,
        **sometimes(
            draw,
            activation_function=ACTIVATION,
            scale_embedding=st.booleans(),
            tie_word_embeddings=st.just(True),
            decoder_start_token_id=st.integers(0, 5),
        ),
    }


FAMILIES: dict[str, Callable[[Draw, int], Config]] = {
    "gpt2": _gpt2, "opt": _opt, "gpt_neox": _gpt_neox, "bloom": _bloom, "gpt_bigcode": _gpt_bigcode, "falcon": _falcon,
    "llama": _llama, "mistral": _mistral, "qwen2": _qwen2, "qwen3": _qwen3, "gemma": _gemma, "gemma2": _gemma2,
    "gemma3_text": _gemma3_text, "phi": _phi, "bert": _bert, "roberta": _roberta, "electra": _electra, "t5": _t5,
    "bart": _bart,
}  # fmt: skip
"""How each family's configuration is drawn, given how many positions there have to be."""


def draw_config(draw: Draw, family: str, needed: int, task_type: str) -> Config:
    """The contents of a config.json, without the class that `write_base` adds."""
    config = FAMILIES[family](draw, needed + draw(st.integers(0, 3)))
    config = {"model_type": family, "vocab_size": draw(st.integers(11, 40)), **config}
    if "pad_token_id" not in config:
        config |= sometimes(draw, pad_token_id=st.integers(0, 5))
    if task_type in ("SEQ_CLS", "TOKEN_CLS"):
        labels = draw(st.integers(1, 4))
        names = {str(label): f"LABEL_{label}" for label in range(labels)}
        config |= draw(st.sampled_from([{"num_labels": labels}, {"id2label": names}]))
    elif family in ENCODERS and task_type == "QUESTION_ANS":
        config |= {"num_labels": 2}
    return config
