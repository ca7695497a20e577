"""How each base model of the golden vectors is made: HF's configuration, and the classes whose heads its directory holds.

All axes of a model have different sizes (clause VF-5). Small numbers in the place of HF's make rare branches happen:
windows of 4, rotary bases of 200, softcaps of a few units, eight buckets of distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

LM, SEQ_2_SEQ, BACKBONE = AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModel
SEQUENCE, TOKEN, SPAN = (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
)


@dataclass(frozen=True)
class Model:
    """How one base model is made."""

    seed: int
    config: dict[str, Any]
    """Arguments of HF's configuration class, which `model_type` names."""
    classes: tuple[Any, ...] = (LM,)
    """HF's classes whose parameters the directory holds; `config.json` names the first."""
    tokenizer: bool = False
    """Whether the tokenizer stands beside it."""

    @property
    def half(self) -> bool:
        """Whether its file is in bfloat16, as most checkpoints are; in float32, the first of each family, and all of GPT-2."""
        return self.config["model_type"] != "gpt2" and self.config["vocab_size"] != _ODD["vocab_size"]


_GPT2 = {
    "model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 1, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
_IDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_ODD: dict[str, Any] = {
    **_IDS, "vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_labels": 9,
}  # fmt: skip
_EVEN: dict[str, Any] = {
    **_IDS, "vocab_size": 43, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 7,
}  # fmt: skip
_ALIGNED: dict[str, Any] = {
    **_IDS, "vocab_size": 160, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 9,
    "tie_word_embeddings": True,
}  # fmt: skip
_GROUPED: dict[str, Any] = {
    **_ODD,
    "intermediate_size": 34,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
"""Pairs of heads share keys and values."""


def _rope(theta: float = 200.0, rope_type: str = "default", **others: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **others}}


_GPT2_MODELS = {
    # An odd number of layers, tied head, an inner width of its own.
    "gpt2-odd": Model(
        20001,
        {"vocab_size": 293, "n_positions": 47, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 34, **_GPT2},
        tokenizer=True,
    ),
    # An even number, untied head, inner width 4 · hidden, scores scaled by the layer as well, another epsilon.
    "gpt2-even": Model(
        20002,
        {
            "vocab_size": 53, "n_positions": 41, "n_embd": 12, "n_layer": 6, "n_head": 4, "n_inner": None,
            "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-4,
            **_GPT2,
        },
    ),
    # Multiples of 32, for kernels that need alignment.
    "gpt2-aligned": Model(
        20003,
        {"vocab_size": 128, "n_positions": 160, "n_embd": 64, "n_layer": 3, "n_head": 2, "n_inner": 96, **_GPT2},
    ),
    # Every head, and a token to pad with.
    "gpt2-heads": Model(
        20004,
        {"vocab_size": 43, "n_positions": 37, "n_embd": 20, "n_layer": 2, "n_head": 4, "n_inner": 26, **_GPT2,
         "num_labels": 7, "pad_token_id": 2},
        (LM, SEQUENCE, TOKEN, SPAN),
    ),
}  # fmt: skip

_LEARNED_POSITIONS = {
    "opt-odd": Model(
        20101, {"model_type": "opt", **_ODD, "ffn_dim": 26, "max_position_embeddings": 47}, (LM, SEQUENCE, SPAN)
    ),
    # As OPT-350m: norms behind the residual sums, embeddings of another width.
    "opt-even": Model(
        20102,
        {"model_type": "opt", **_EVEN, "ffn_dim": 26, "max_position_embeddings": 37, "word_embed_proj_dim": 14,
         "do_layer_norm_before": False},
        (LM, SEQUENCE, SPAN),
    ),
    "opt-aligned": Model(20103, {"model_type": "opt", **_ALIGNED, "ffn_dim": 96, "max_position_embeddings": 48}),
    # One key for all queries.
    "gpt-bigcode-odd": Model(
        20111,
        {"model_type": "gpt_bigcode", **_IDS, "vocab_size": 41, "n_embd": 24, "n_layer": 3, "n_head": 4,
         "num_labels": 9, "n_inner": 26, "n_positions": 47},
        (LM, SEQUENCE, TOKEN),
    ),
    # A key for each: another order in the fused projection.
    "gpt-bigcode-aligned": Model(
        20112,
        {"model_type": "gpt_bigcode", **_IDS, "vocab_size": 160, "n_embd": 64, "n_layer": 1, "n_head": 2,
         "n_inner": 96, "n_positions": 48, "multi_query": False},
    ),
}  # fmt: skip

_ALIBI = {
    # Nine heads: slopes that are no powers of two.
    "bloom-odd": Model(
        20121,
        {"model_type": "bloom", **_ODD, "hidden_size": 18, "num_attention_heads": 9, "num_labels": 4},
        (LM, SEQUENCE, TOKEN, SPAN),
    ),
    # The residual is what the norms answer.
    "bloom-even": Model(
        20122,
        {"model_type": "bloom", **_EVEN, "num_hidden_layers": 3, "apply_residual_connection_post_layernorm": True},
        (LM, SEQUENCE, TOKEN, SPAN),
    ),
    "bloom-aligned": Model(20123, {"model_type": "bloom", **_ALIGNED}),
    # As Falcon-7b: one key for all queries, attention and feed-forward block side by side behind one norm.
    "falcon-odd": Model(
        20131,
        {"model_type": "falcon", **_ODD, "ffn_hidden_size": 26, **_rope()},
        (LM, SEQUENCE, TOKEN, SPAN),
    ),
    # As Falcon-40b: groups, two norms.
    "falcon-even": Model(
        20132,
        {"model_type": "falcon", **_EVEN, "hidden_size": 24, "ffn_hidden_size": 26, **_rope(),
         "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 2},
        (LM, SEQUENCE, TOKEN, SPAN),
    ),
    # As Falcon-RW: ALiBi, attention before the feed-forward block, biases.
    "falcon-alibi": Model(
        20133,
        {"model_type": "falcon", **_ODD, "hidden_size": 18, "num_attention_heads": 9, "num_labels": 4,
         "ffn_hidden_size": 26, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
        (LM, SEQUENCE, TOKEN, SPAN),
    ),
    "falcon-aligned": Model(
        20134,
        {"model_type": "falcon", **_ALIGNED, "ffn_hidden_size": 96, **_rope(), "new_decoder_architecture": True,
         "num_kv_heads": 1, "num_ln_in_parallel_attn": 2},
    ),
}  # fmt: skip

_ROTARY = {
    # Half of each head is rotated; blocks side by side behind two norms.
    "gpt-neox-odd": Model(
        20141,
        {"model_type": "gpt_neox", **_ODD, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 22,
         "max_position_embeddings": 64, **_rope(partial_rotary_factor=0.5)},
        (LM, SEQUENCE, TOKEN, SPAN),
    ),
    # One block behind the other, three quarters rotated, no biases in attention, exact gelu's neighbour.
    "gpt-neox-even": Model(
        20142,
        {"model_type": "gpt_neox", **_EVEN, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 26,
         "max_position_embeddings": 64, "use_parallel_residual": False, "attention_bias": False,
         "hidden_act": "gelu_new", "tie_word_embeddings": True, **_rope(partial_rotary_factor=0.75)},
        (LM, SEQUENCE, TOKEN, SPAN),
    ),
    "gpt-neox-aligned": Model(
        20143,
        {"model_type": "gpt_neox", **_ALIGNED, "intermediate_size": 96, "max_position_embeddings": 64,
         **_rope(partial_rotary_factor=0.25)},
    ),
    "phi-odd": Model(
        20151,
        {"model_type": "phi", **_ODD, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 22,
         "max_position_embeddings": 64, **_rope(partial_rotary_factor=0.5)},
        (LM, SEQUENCE, TOKEN),
    ),
    "llama-odd": Model(
        20161, {"model_type": "llama", **_GROUPED, **_rope(), "tie_word_embeddings": False}, (LM, SEQUENCE, TOKEN)
    ),
    # As LLaMA 3: scaled frequencies, of which some are kept, some blended, some divided; width of its own, biases.
    "llama-even": Model(
        20162,
        {"model_type": "llama", **_EVEN, "hidden_size": 18, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8,
         "intermediate_size": 26, "max_position_embeddings": 128, "attention_bias": True, "mlp_bias": True,
         "tie_word_embeddings": True,
         **_rope(100.0, "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                 original_max_position_embeddings=32)},
        (LM, SEQUENCE, TOKEN),
    ),
    # Linearly scaled positions; one number to predict.
    "llama-linear": Model(
        20163,
        {"model_type": "llama", **_ODD, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 22,
         "max_position_embeddings": 64, "num_labels": 1, **_rope(200.0, "linear", factor=2.5)},
        (LM, SEQUENCE),
    ),
    # Four queries for a key.
    "llama-aligned": Model(
        20164,
        {"model_type": "llama", **_ALIGNED, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
         "intermediate_size": 96, "max_position_embeddings": 64, **_rope()},
    ),
    "phi-aligned": Model(
        20152,
        {"model_type": "phi", **_ALIGNED, "intermediate_size": 96, "max_position_embeddings": 64, "tie_word_embeddings": True,
         **_rope(partial_rotary_factor=0.5)},
    ),
    "mistral-aligned": Model(
        20172,
        {"model_type": "mistral", **_ALIGNED, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
         "intermediate_size": 96, "max_position_embeddings": 64, "sliding_window": 4, **_rope()},
    ),
    "qwen2-aligned": Model(
        20183,
        {"model_type": "qwen2", **_ALIGNED, "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64,
         **_rope()},
    ),
    "mistral-odd": Model(
        20171, {"model_type": "mistral", **_GROUPED, **_rope(), "sliding_window": 4}, (LM, SEQUENCE, TOKEN, SPAN)
    ),
    "qwen2-odd": Model(20181, {"model_type": "qwen2", **_GROUPED, **_rope()}, (LM, SEQUENCE, TOKEN)),
    # A window in the second layer alone.
    "qwen2-even": Model(
        20182,
        {"model_type": "qwen2", **_EVEN, "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3,
         "intermediate_size": 26, "max_position_embeddings": 64, "use_sliding_window": True, "sliding_window": 5,
         "max_window_layers": 1, "tie_word_embeddings": True, **_rope()},
        (LM, SEQUENCE, TOKEN),
    ),
    # Norms of each head's query and key; a width that is not the hidden size.
    "qwen3-odd": Model(
        20191, {"model_type": "qwen3", **_GROUPED, "hidden_size": 20, "head_dim": 6, **_rope()}, (LM, SEQUENCE, TOKEN)
    ),
    "qwen3-aligned": Model(
        20192,
        {"model_type": "qwen3", **_ALIGNED, "num_key_value_heads": 2, "head_dim": 32,
         "intermediate_size": 96, "max_position_embeddings": 64, **_rope()},
    ),
}  # fmt: skip

_WINDOWS: dict[str, Any] = {"hidden_size": 20, "head_dim": 6, "sliding_window": 8}
_GEMMA = {
    "gemma-odd": Model(
        20201, {"model_type": "gemma", **_GROUPED, "hidden_size": 20, "head_dim": 6, **_rope()}, (LM, SEQUENCE, TOKEN)
    ),
    "gemma-aligned": Model(
        20202,
        {"model_type": "gemma", **_ALIGNED, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
         "intermediate_size": 96, "max_position_embeddings": 64, **_rope()},
    ),
    "gemma3-aligned": Model(
        20222,
        {"model_type": "gemma3_text", **_ALIGNED, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
         "intermediate_size": 96, "max_position_embeddings": 64, "sliding_window": 4, "query_pre_attn_scalar": 40,
         "layer_types": ["sliding_attention"],
         "rope_parameters": {
             "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
             "full_attention": {"rope_type": "default", "rope_theta": 900.0},
         }},
    ),
    # Windows in the first and the third layer, softcaps, scores scaled by something else than the heads' width.
    "gemma2-odd": Model(
        20211,
        {"model_type": "gemma2", **_GROUPED, **_WINDOWS, **_rope(), "query_pre_attn_scalar": 9,
         "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
        (LM, SEQUENCE, TOKEN),
    ),
    "gemma2-aligned": Model(
        20212,
        {"model_type": "gemma2", **_ALIGNED, "num_key_value_heads": 2, "head_dim": 32,
         "intermediate_size": 96, "max_position_embeddings": 64, "sliding_window": 4, **_rope(),
         "query_pre_attn_scalar": 40, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    ),
    # Windows in the first two layers; another rotation, and scaled, in the third.
    "gemma3-odd": Model(
        20221,
        {"model_type": "gemma3_text", **_GROUPED, **_WINDOWS, "query_pre_attn_scalar": 10,
         "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
         "rope_parameters": {
             "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
             "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 3.0},
         }},
        (LM, SEQUENCE),
    ),
}  # fmt: skip

_BERT: dict[str, Any] = {
    **_ODD, "intermediate_size": 26, "max_position_embeddings": 47, "num_labels": 2, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_BERT_ALIGNED: dict[str, Any] = {
    **_ALIGNED, "intermediate_size": 96, "max_position_embeddings": 48, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_ENCODERS = {
    # Two labels, because the head that answers questions has as many rows.
    "bert-odd": Model(20301, {"model_type": "bert", **_BERT}, (SEQUENCE, TOKEN, SPAN)),
    "bert-aligned": Model(20302, {"model_type": "bert", **_BERT_ALIGNED}, (SEQUENCE, TOKEN)),
    "roberta-aligned": Model(
        20312, {"model_type": "roberta", **_BERT_ALIGNED, "max_position_embeddings": 51}, (SEQUENCE, TOKEN)
    ),
    "electra-aligned": Model(
        20322, {"model_type": "electra", **_BERT_ALIGNED, "embedding_size": 192}, (SEQUENCE, TOKEN)
    ),
    # Padding has a row of its own in the table of positions.
    "roberta-odd": Model(
        20311,
        {"model_type": "roberta", **_BERT, "type_vocab_size": 2, "max_position_embeddings": 49},
        (SEQUENCE, TOKEN, SPAN, BACKBONE),
    ),
    # Embeddings of another width than the layers.
    "electra-odd": Model(
        20321, {"model_type": "electra", **_BERT, "embedding_size": 14}, (SEQUENCE, TOKEN, SPAN)
    ),
}  # fmt: skip

_T5: dict[str, Any] = {
    "model_type": "t5", "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 2,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "dropout_rate": 0.0,
}  # fmt: skip
_BART: dict[str, Any] = {
    "model_type": "bart", **_IDS, "decoder_start_token_id": 1, "forced_eos_token_id": None, "dropout": 0.0,
}  # fmt: skip
_ENCODER_DECODERS = {
    "t5-odd": Model(
        20401,
        {**_T5, "vocab_size": 41, "d_model": 16, "num_layers": 3, "num_heads": 2, "d_kv": 8, "d_ff": 22},
        (SEQ_2_SEQ,),
    ),
    # As T5 1.1: gated, a head of its own, whose input is not scaled; heads wider than their part of the hidden size.
    "t5-even": Model(
        20402,
        {**_T5, "vocab_size": 43, "d_model": 20, "num_layers": 2, "num_heads": 4, "d_kv": 6, "d_ff": 26,
         "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        (SEQ_2_SEQ,),
    ),
    "t5-aligned": Model(
        20403,
        {**_T5, "vocab_size": 160, "d_model": 64, "num_layers": 1, "num_heads": 2, "d_kv": 32, "d_ff": 96},
        (SEQ_2_SEQ,),
    ),
    "bart-odd": Model(
        20411,
        {**_BART, "vocab_size": 41, "d_model": 16, "encoder_layers": 3, "decoder_layers": 3,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 22, "decoder_ffn_dim": 22,
         "max_position_embeddings": 47},
        (SEQ_2_SEQ,),
    ),
    # Scaled embeddings.
    "bart-even": Model(
        20412,
        {**_BART, "vocab_size": 43, "d_model": 20, "encoder_layers": 2, "decoder_layers": 2,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 26, "decoder_ffn_dim": 26,
         "max_position_embeddings": 37, "scale_embedding": True},
        (SEQ_2_SEQ,),
    ),
    "bart-aligned": Model(
        20413,
        {**_BART, "vocab_size": 160, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
         "max_position_embeddings": 48},
        (SEQ_2_SEQ,),
    ),
}  # fmt: skip

MODELS: dict[str, Model] = {
    **_GPT2_MODELS, **_LEARNED_POSITIONS, **_ALIBI, **_ROTARY, **_GEMMA, **_ENCODERS, **_ENCODER_DECODERS,
}  # fmt: skip
"""Every base model by the name of its directory."""
