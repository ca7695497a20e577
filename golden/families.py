"""Where the stages of each of HF's architectures pass by: one row for each, the paths of its modules by stage.

A row says nothing about what the modules compute. `into(path)` is what a module is given, `out_of(path)` what it answers;
a stage whose module a model does not have is absent. Read in transformers 5.23.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sites import Attention, Family, Site, Stack, into, out_of
from sizes import by_group, by_head, in_blocks, queries_then_one


def _attention(path: str, projections: str, output: str, **others: Any) -> Attention:
    """An attention whose maps lie directly in the module that attends."""
    return Attention(
        path, tuple(f"{path}.{name}" for name in projections.split()), f"{path}.{output}", **others
    )


def _decoder(**stack: Any) -> dict[str, Stack]:
    return {"decoder": Stack(**{"path": "", **stack})}


def _gpt2(config: Any) -> Family:
    split = in_blocks
    if config.model_type == "gpt_bigcode":
        split = queries_then_one if config.multi_query else by_head
    layer = {
        "input_norm": out_of("ln_1"),
        "after_attention": into("ln_2"),
        "post_attention_norm": out_of("ln_2"),
        "mlp.activation": into("mlp.c_proj"),
        "mlp.output": out_of("mlp.c_proj"),
    }
    stacks = _decoder(
        layers="h",
        embeddings=("wte",),
        positions="wpe",
        sites={"embeddings": into("drop"), "final_norm": out_of("ln_f")},
        layer=layer,
        attention=_attention("attn", "c_attn", "c_proj", split=split),
    )
    return Family(stacks, types_given_to="")


def _opt(config: Any) -> Family:
    layer = {"mlp.activation": into("fc2"), "mlp.output": out_of("fc2")}
    if config.do_layer_norm_before:
        layer |= {
            "input_norm": out_of("self_attn_layer_norm"),
            "after_attention": into("final_layer_norm"),
            "post_attention_norm": out_of("final_layer_norm"),
        }
    else:
        layer |= {
            "after_attention": into("self_attn_layer_norm"),
            "post_attention_norm": out_of("self_attn_layer_norm"),
            "after_mlp": into("final_layer_norm"),
        }
    stacks = _decoder(
        path="decoder",
        layers="layers",
        embeddings=("decoder.embed_tokens",),
        positions="embed_positions",
        sites={
            "embeddings_projection": out_of("project_in"),
            "embeddings": into("layers.0"),
            "final_norm": out_of("final_layer_norm"),
            "output_projection": out_of("project_out"),
        },
        layer=layer,
        # HF scales the queries before the product with the keys; the stage is the projection's output, unscaled.
        attention=_attention("self_attn", "q_proj k_proj v_proj", "out_proj"),
    )
    return Family(stacks)


def _gpt_neox(config: Any) -> Family:
    layer = {
        "input_norm": out_of("input_layernorm"),
        "post_attention_norm": out_of("post_attention_layernorm"),
        "mlp.activation": into("mlp.dense_4h_to_h"),
        "mlp.output": out_of("mlp.dense_4h_to_h"),
    }
    if not config.use_parallel_residual:
        layer["after_attention"] = into("post_attention_layernorm")
    stacks = _decoder(
        layers="layers",
        embeddings=("embed_in",),
        rotary="rotary_emb",
        sites={"final_norm": out_of("final_layer_norm")},
        layer=layer,
        attention=_attention("attention", "query_key_value", "dense", split=by_head),
    )
    return Family(stacks)


def _bloom(config: Any) -> Family:
    layer = {
        "input_norm": out_of("input_layernorm"),
        "after_attention": into("post_attention_layernorm"),
        "post_attention_norm": out_of("post_attention_layernorm"),
        "mlp.activation": into("mlp.dense_4h_to_h"),
        "mlp.output": out_of("mlp.dense_4h_to_h"),
    }
    stacks = _decoder(
        layers="h",
        embeddings=("word_embeddings",),
        sites={"embeddings_norm": out_of("word_embeddings_layernorm"), "final_norm": out_of("ln_f")},
        layer=layer,
        attention=_attention("self_attention", "query_key_value", "dense", split=by_head),
    )
    return Family(stacks)


def _falcon(config: Any) -> Family:
    split = queries_then_one if config.multi_query else by_head
    layer = {
        "input_norm": out_of("ln_attn|input_layernorm"),
        "after_attention": into("post_attention_layernorm"),
        "post_attention_norm": out_of("ln_mlp|post_attention_layernorm"),
        "mlp.activation": into("mlp.dense_4h_to_h"),
        "mlp.output": out_of("mlp.dense_4h_to_h"),
    }
    stacks = _decoder(
        layers="h",
        embeddings=("word_embeddings",),
        rotary="" if config.alibi else "rotary_emb",  # with ALiBi, sines and cosines are made and not used
        sites={"final_norm": out_of("ln_f")},
        layer=layer,
        attention=_attention(
            "self_attention",
            "query_key_value",
            "dense",
            split=by_group if config.new_decoder_architecture else split,
        ),
    )
    return Family(stacks)


def _llama(config: Any) -> Family:
    """LLaMA, Mistral, Qwen2, Qwen3, Gemma."""
    return _gated(
        {
            "after_attention": into("post_attention_layernorm"),
            "post_attention_norm": out_of("post_attention_layernorm"),
        },
        norms=("self_attn.q_norm", "self_attn.k_norm") if config.model_type == "qwen3" else (),
        heads_last=True,
    )


def _gemma2(config: Any) -> Family:
    """Gemma 2 and 3: a norm behind attention and behind the feed-forward block as well."""
    return _gated(
        {
            "attention_output_norm": out_of("post_attention_layernorm"),
            "after_attention": into("pre_feedforward_layernorm"),
            "post_attention_norm": out_of("pre_feedforward_layernorm"),
            "mlp_output_norm": out_of("post_feedforward_layernorm"),
        },
        norms=("self_attn.q_norm", "self_attn.k_norm") if config.model_type == "gemma3_text" else (),
    )


def _gated(layer: dict[str, Site], **attention: Any) -> Family:
    stacks = _decoder(
        layers="layers",
        embeddings=("embed_tokens",),
        rotary="rotary_emb",
        sites={"final_norm": out_of("norm")},
        layer={
            "input_norm": out_of("input_layernorm"),
            "mlp.activation": into("mlp.down_proj"),
            "mlp.output": out_of("mlp.down_proj"),
            **layer,
        },
        attention=_attention("self_attn", "q_proj k_proj v_proj", "o_proj", **attention),
    )
    return Family(stacks)


def _phi(config: Any) -> Family:
    norms = ("self_attn.q_layernorm", "self_attn.k_layernorm") if config.qk_layernorm else ()
    stacks = _decoder(
        layers="layers",
        embeddings=("embed_tokens",),
        rotary="rotary_emb",
        sites={"final_norm": out_of("final_layernorm")},
        layer={
            "input_norm": out_of("input_layernorm"),
            "mlp.activation": into("mlp.fc2"),
            "mlp.output": out_of("mlp.fc2"),
        },
        attention=_attention("self_attn", "q_proj k_proj v_proj", "dense", norms=norms),
    )
    return Family(stacks)


def _bert(config: Any) -> Family:
    """BERT, RoBERTa, ELECTRA."""
    layer = {
        "after_attention": into("attention.output.LayerNorm"),
        "post_attention_norm": out_of("attention.output.LayerNorm"),
        "mlp.activation": into("output.dense"),
        "mlp.output": out_of("output.dense"),
        "after_mlp": into("output.LayerNorm"),
    }
    stack = Stack(
        path="",
        layers="encoder.layer",
        embeddings=("embeddings.word_embeddings",),
        positions="embeddings.position_embeddings",
        sites={
            "typed_embeddings": into("embeddings.LayerNorm"),
            "embeddings_norm": out_of("embeddings.LayerNorm"),
            "embeddings_out_projection": out_of("embeddings_project"),
        },
        layer=layer,
        attention=Attention(
            "attention.self",
            ("attention.self.query", "attention.self.key", "attention.self.value"),
            "attention.output.dense",
        ),
    )
    return Family({"encoder": stack}, types_given_to="embeddings")


def _t5(config: Any) -> Family:
    def stack(name: str, last: int, **layer: Site) -> Stack:
        dense = f"layer.{last}.DenseReluDense"
        cross = _attention("layer.1.EncDecAttention", "q k v", "o") if name == "decoder" else None
        return Stack(
            path=name,
            layers="block",
            embeddings=("shared", "encoder.embed_tokens") if name == "encoder" else ("decoder.embed_tokens",),
            sites={"final_norm": out_of("final_layer_norm")},
            layer={
                "input_norm": out_of("layer.0.layer_norm"),
                "after_attention": into("layer.1.layer_norm"),
                "post_attention_norm": out_of("layer.1.layer_norm"),
                "mlp.activation": into(f"{dense}.wo"),
                "mlp.output": out_of(f"{dense}.wo"),
                **layer,
            },
            attention=_attention("layer.0.SelfAttention", "q k v", "o"),
            cross_attention=cross,
        )

    after_cross = {
        "after_cross_attention": into("layer.2.layer_norm"),
        "post_cross_attention_norm": out_of("layer.2.layer_norm"),
    }
    return Family({"encoder": stack("encoder", 1), "decoder": stack("decoder", 2, **after_cross)})


def _bart(config: Any) -> Family:
    def stack(name: str, embeddings: tuple[str, ...], cross: Attention | None, **layer: Site) -> Stack:
        return Stack(
            path=name,
            layers="layers",
            embeddings=embeddings,
            positions="embed_positions",
            sites={
                "embeddings": into("layernorm_embedding"),
                "embeddings_norm": out_of("layernorm_embedding"),
            },
            layer={
                "after_attention": into("self_attn_layer_norm"),
                "post_attention_norm": out_of("self_attn_layer_norm"),
                "mlp.activation": into("fc2"),
                "mlp.output": out_of("fc2"),
                "after_mlp": into("final_layer_norm"),
                **layer,
            },
            attention=_attention("self_attn", "q_proj k_proj v_proj", "out_proj"),
            cross_attention=cross,
        )

    after_cross = {
        "after_cross_attention": into("encoder_attn_layer_norm"),
        "post_cross_attention_norm": out_of("encoder_attn_layer_norm"),
    }
    cross = _attention("encoder_attn", "q_proj k_proj v_proj", "out_proj")
    encoder = stack("encoder", ("shared", "encoder.embed_tokens"), None)
    return Family(
        {
            "encoder": encoder,
            "decoder": stack("decoder", ("decoder.embed_tokens",), cross, **after_cross),
        }
    )


FAMILIES: dict[str, Callable[[Any], Family]] = {
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt2,
    "opt": _opt,
    "gpt_neox": _gpt_neox,
    "bloom": _bloom,
    "falcon": _falcon,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gemma": _llama,
    "gemma2": _gemma2,
    "gemma3_text": _gemma2,
    "phi": _phi,
    "bert": _bert,
    "roberta": _bert,
    "electra": _bert,
    "t5": _t5,
    "bart": _bart,
}
"""The rows, by HF's `model_type`."""


def family_of(config: Any) -> Family:
    """The row of a model, by HF's configuration of it."""
    return FAMILIES[config.model_type](config)
