"""The norms of a transformer, each a step of its own: one kind for a model, at places that the family's row names.

Follows transformers 5.23.0 `models/*/modeling_*.py`; the formulas are those of `refpeft.ops`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refpeft.arrays import Array, Float, Parameters
from refpeft.ops import NORMS
from refpeft.steps import step
from refpeft.transformer.config import ModelConfig

_LAYER = "{stack}.layers.{layer}."
_HIDDEN = "batch query hidden"

Norm = Callable[..., Array]


def _norm(name: str, clause: str, stage: str, source: str, says: str, axes: str = _HIDDEN) -> Norm:
    """Enter a norm in the table of steps: (x, weight or None, bias or None, epsilon, kind) -> x."""

    def apply(
        x: Float[Array, "*rows hidden"],
        weight: Float[Array, " hidden"] | None,
        bias: Float[Array, " hidden"] | None,
        epsilon: float,
        kind: str = "layer_norm",
    ) -> Float[Array, "*rows hidden"]:
        return NORMS[kind](x, weight, bias, epsilon)

    apply.__doc__, apply.__name__ = says, name.rsplit(".", 1)[-1]
    return step(name, clause=clause, stage=stage, axes=axes, source=f"transformers models/{source}")(apply)


input_norm = _norm(
    "block.input_norm", "AT-1", _LAYER + "input_norm", "gpt2/modeling_gpt2.py GPT2Block.forward",
    "The norm before attention. The prefix's keys and values never pass through it.",
)  # fmt: skip
post_attention_norm = _norm(
    "block.post_attention_norm", "AT-5", _LAYER + "post_attention_norm", "gpt2/modeling_gpt2.py GPT2Block.forward",
    "The norm that follows the residual sum around attention: the network's, T5's cross-attention's, or BERT's own.",
)  # fmt: skip
post_cross_attention_norm = _norm(
    "block.post_cross_attention_norm", "AT-8", _LAYER + "post_cross_attention_norm", "bart/modeling_bart.py BartDecoderLayer.forward",
    "The norm that follows the residual sum around cross-attention.",
)  # fmt: skip
attention_output_norm = _norm(
    "block.attention_output_norm", "AT-7", _LAYER + "attention_output_norm", "gemma2/modeling_gemma2.py Gemma2DecoderLayer.forward",
    "Gemma-2's norm of attention's output, before it is added back.",
)  # fmt: skip
mlp_output_norm = _norm(
    "block.mlp_output_norm", "AT-7", _LAYER + "mlp_output_norm", "gemma2/modeling_gemma2.py Gemma2DecoderLayer.forward",
    "Gemma-2's norm of the network's output, before it is added back.",
)  # fmt: skip
output_norm = _norm(
    "block.output_norm", "AT-7", _LAYER + "output", "bert/modeling_bert.py BertOutput.forward",
    "BERT's, BART's and OPT-350m's norm behind the last residual sum: the layer's output.",
)  # fmt: skip
query_norm = _norm(
    "attention.query_norm", "AT-7", _LAYER + "attention.query_norm", "qwen3/modeling_qwen3.py Qwen3Attention.forward",
    "The norm of each head's query, before it is turned by its position.", "batch heads query head_dim",
)  # fmt: skip
key_norm = _norm(
    "attention.key_norm", "AT-7", _LAYER + "attention.key_norm", "qwen3/modeling_qwen3.py Qwen3Attention.forward",
    "The norm of each head's own key; a prefix's keys never pass through it.", "batch kv_heads query head_dim",
)  # fmt: skip
embeddings_norm = _norm(
    "decoder.embeddings_norm", "PO-2", "{stack}.embeddings_norm", "bloom/modeling_bloom.py BloomModel.forward",
    "The norm of the embeddings, virtual tokens of a prompt included.", "batch query embedding",
)  # fmt: skip
final_norm = _norm(
    "decoder.final_norm", "AT-5", "{stack}.final_norm", "gpt2/modeling_gpt2.py GPT2Model.forward",
    "The norm after the last layer.",
)  # fmt: skip


def apply(norm: Norm, x: Array, parameters: Parameters, name: str, config: ModelConfig) -> Array:
    """A norm of `x` (…, hidden) with the parameters `name.weight` and `name.bias` (hidden), as far as there are such.

    Source: transformers 5.23.0 `models/*/modeling_*.py`.
    """
    kind: dict[str, Any] = {} if config.norm == "layer_norm" else {"kind": config.norm}
    return norm(
        x, parameters.get(f"{name}.weight"), parameters.get(f"{name}.bias"), config.norm_epsilon, **kind
    )
