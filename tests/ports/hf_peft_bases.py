"""Tiny base models of every family that the port computes, with random weights and with the heads of all tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
GROUPED = PLAIN | {"num_key_value_heads": 2}
SLIDING = GROUPED | {"head_dim": 12, "sliding_window": 4}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "pad_token_id": 0}
BART = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 44,
    "decoder_ffn_dim": 44,
    "max_position_embeddings": 40,
    "scale_embedding": True,
}
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "opt": {
        **{k: v for k, v in PLAIN.items() if k != "intermediate_size"},
        "ffn_dim": 44,
        "word_embed_proj_dim": 32,
    },
    "gpt_neox": PLAIN,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0},
    "gpt_bigcode": GPT2,
    "falcon": PLAIN | {"multi_query": True, "ffn_hidden_size": 44},
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 4},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 12},
    "gemma": GROUPED | {"head_dim": 12},
    "gemma2": SLIDING,
    "gemma3_text": SLIDING | {"layer_types": ["sliding_attention", "full_attention"]},
    "phi": PLAIN,
    "bert": PLAIN,
    "roberta": PLAIN | {"pad_token_id": 1},
    "electra": PLAIN | {"embedding_size": 32},
    "t5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 44,
        "num_layers": 3,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "bart": BART | {"num_labels": 3},
}
"""By HF's `model_type`. All have two labels, so that the encoders' question answering has its two outputs, except BART:
HF writes no two into its config.json, and reads none as three."""
VOCABULARY = 43
SPECIAL = {"bos_token_id": 0, "eos_token_id": 2}
CLASSES = (
    transformers.AutoModelForSequenceClassification,
    transformers.AutoModelForTokenClassification,
    transformers.AutoModelForQuestionAnswering,
    transformers.AutoModelForCausalLM,
    transformers.AutoModelForSeq2SeqLM,
    transformers.AutoModel,
)


def write_base(family: str, directory: Path, **changes: Any) -> Path:
    """One directory from which the class of each task takes what it needs.

    The bodies of the classes are the same, whatever their prefix: in the question answering of Llama and Qwen it is
    `transformer.`, and everywhere else `model.`.
    """
    sizes = {"vocab_size": VOCABULARY, "num_labels": 2} | SPECIAL | SIZES[family] | changes
    tensors: dict[str, torch.Tensor] = {}
    body: dict[str, torch.Tensor] = {}
    for number, kind in enumerate(CLASSES):
        config = transformers.AutoConfig.for_model(family, **sizes)
        if type(config) not in kind._model_mapping:
            continue
        torch.manual_seed(number)
        model = kind.from_config(config)
        spread(model)
        model.base_model.load_state_dict(body, strict=False)
        body = {**model.base_model.state_dict(), **body}
        prefix = f"{model.base_model_prefix}." if model is model.base_model else ""
        tensors |= {prefix + name: value.clone() for name, value in model.state_dict().items()}
    directory.mkdir(parents=True, exist_ok=True)
    config.architectures = None
    config.save_pretrained(directory)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def spread(model: torch.nn.Module) -> None:
    """Weights that are large enough for everything to show, on the bfloat16 grid; tied ones stay tied."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter)).copy_(parameter.bfloat16())
