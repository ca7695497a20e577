"""The stages in the order of computation, with their axes and kinds: no tensor depends on a later one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from refpeft.oracle.vectors import Kind


class Stage(NamedTuple):
    """One row."""

    axes: tuple[str, ...]
    kind: Kind


def _rows(prefix: str, *rows: str) -> dict[str, Stage]:
    """Rows written as `name: axes`; a kind other than composite stands behind a slash."""
    table = {}
    for row in rows:
        name, rest = row.split(":")
        axes, _, kind = rest.partition("/")
        table[prefix + name] = Stage(tuple(axes.split()), kind.strip() or "composite")  # type: ignore[arg-type]
    return table


_INPUTS = _rows(
    "",
    "inputs.token_embeddings: batch tokens embedding /exact",
    "inputs.scaled_embeddings: batch tokens embedding /elementary",
    "inputs.attention_mask: batch key /exact",
    "inputs.token_type_ids: batch query /exact",
    "prefix.projection_hidden: virtual encoder_hidden",
    "prefix.projection_activation: virtual encoder_hidden",
    "prefix.flat: virtual prefix_width",
    "prefix.layers.{layer}.key: batch kv_heads virtual head_dim",
    "prefix.layers.{layer}.value: batch kv_heads virtual head_dim",
    "prompt.embeddings: batch virtual_rows embedding /exact",
    "inputs.embeddings: batch query embedding /exact",
    "inputs.labels: batch query /exact",
    "inputs.position_ids: batch query /exact",
)
_DECODER_INPUTS = _rows(
    "inputs.",
    "decoder_input_ids: batch query /exact",
    "decoder_token_embeddings: batch query hidden /exact",
    "decoder_scaled_embeddings: batch query hidden /elementary",
    "decoder_attention_mask: batch key /exact",
    "decoder_position_ids: batch query /exact",
)
_STACK = (
    "embeddings_projection: batch query hidden",
    "embeddings: batch query hidden /elementary",
    "typed_embeddings: batch query embedding",
    "embeddings_norm: batch query embedding",
    "embeddings_out_projection: batch query hidden",
    "visible: batch query key /exact",
    "sliding_visible: batch query key /exact",
    "cross_visible: batch query encoder_key /exact",
    "alibi: batch heads key",
    "relative_bias: heads query key /exact",
)
_LAYER = (
    "input_norm: batch query hidden",
    "attention.query: batch heads query head_dim",
    "attention.key: batch kv_heads query head_dim",
    "attention.value: batch kv_heads query head_dim",
    "attention.query_norm: batch heads query head_dim",
    "attention.key_norm: batch kv_heads query head_dim",
    "attention.query_rotated: batch heads query head_dim",
    "attention.key_rotated: batch kv_heads query head_dim",
    "attention.key_states: batch kv_heads key head_dim",
    "attention.value_states: batch kv_heads key head_dim",
    "attention.scores: batch heads query key",
    "attention.weights: batch heads query key",
    "attention.context: batch query width",
    "attention.output: batch query hidden",
    "attention_output_norm: batch query hidden",
    "after_attention: batch query hidden",
    "post_attention_norm: batch query hidden",
    "cross_attention.query: batch heads query head_dim",
    "cross_attention.key: batch heads encoder_key head_dim",
    "cross_attention.value: batch heads encoder_key head_dim",
    "cross_attention.scores: batch heads query encoder_key",
    "cross_attention.weights: batch heads query encoder_key",
    "cross_attention.context: batch query width",
    "cross_attention.output: batch query hidden",
    "after_cross_attention: batch query hidden",
    "post_cross_attention_norm: batch query hidden",
    "mlp.activation: batch query intermediate",
    "mlp.output: batch query hidden",
    "mlp_output_norm: batch query hidden",
    "after_mlp: batch query hidden",
    "output: batch query hidden",
)
_HEADS = _rows(
    "",
    "logits: batch query vocab",
    "last_hidden_state: batch query outer",
    "pooler_output: batch hidden",
    "head.hidden: batch hidden",
    "score_logits: batch query labels",
    "pooled_logits: batch labels",
    "token_logits: batch query labels",
    "start_logits: batch query",
    "end_logits: batch query",
    "loss:",
)


def _stack(name: str) -> dict[str, Stage]:
    after = ("final_norm: batch query hidden", "output_projection: batch query outer")
    return {
        **_rows(f"{name}.", *_STACK),
        **_rows(f"{name}.layers.{{layer}}.", *_LAYER),
        **_rows(f"{name}.", *after),
    }


STAGES: dict[str, Stage] = {
    **_INPUTS,
    **_stack("encoder"),
    **_DECODER_INPUTS,
    **_stack("decoder"),
    **_HEADS,
}
"""Every stage by its name, in which `{layer}` is a number. The axis `embedding` is the width of the rows of the table of
tokens, `outer` that of what the last map gets; `virtual_rows` are the prompt's."""

_FROM_TOKENS = (
    "inputs.decoder_input_ids",
    "inputs.decoder_token_embeddings",
    "inputs.decoder_scaled_embeddings",
)
"""What the decoder's tokens, not its queries, number."""

_NUMBER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")


def template_of(name: str) -> str:
    """A stage's name with `{layer}` for the layer's number."""
    return _NUMBER.sub("{layer}", name)


def layer_of(name: str) -> int | None:
    """The number of the layer in a stage's name."""
    found = _NUMBER.search(name)
    return int(found[0]) if found else None


def stage_axes(name: str, dims: Mapping[str, int], outer: str, cut: Mapping[int, int]) -> list[str]:
    """The axes of a stage in one case.

    Args:
        name: The stage.
        dims: The sizes of the case's axes: an axis that is not there is called by its usual name.
        outer: The axis of what a head gets.
        cut: The layers that store a part of the prefix, and how much of it.
    """
    renamed = {"outer": outer}
    if "embedding" not in dims:
        renamed["embedding"] = "hidden"
    if "virtual_rows" not in dims:
        renamed["virtual_rows"] = "virtual"
    if "encoder_key" in dims and name.startswith(("encoder.", "inputs.")) and ".decoder_" not in name:
        renamed |= {"query": "encoder_key", "key": "encoder_key"}
    if name in _FROM_TOKENS:
        renamed["query"] = "decoder_tokens"
    if layer_of(name) in cut or (cut and name.endswith(".sliding_visible")):
        renamed |= {"virtual": "stored_virtual", "key": "window_key"}
    return [renamed.get(axis, axis) for axis in STAGES[template_of(name)].axes]


def ordered(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """In the order of computation, gradients last.

    Raises:
        AssertionError: a tensor has no place in that order.
    """
    layers = 1 + max((layer_of(name) or 0 for name in tensors), default=0)
    names = [*_names(layers), *(name for name in tensors if name.startswith("gradients."))]
    assert not set(tensors) - set(names), f"no place for {set(tensors) - set(names)}"
    return {name: tensors[name] for name in names if name in tensors}


def _names(layers: int) -> Iterator[str]:
    """Every stage of a model of some depth: one after another, what is in layers layer by layer."""
    in_layers: list[str] = []
    for template in STAGES:
        if in_layers and _first(template) != _first(in_layers[0]):
            yield from _unrolled(in_layers, layers)
            in_layers = []
        if "{layer}" in template:
            in_layers.append(template)
        else:
            yield template


def _first(template: str) -> str:
    """What stands before the layer's number."""
    return template.partition("{layer}")[0]


def _unrolled(templates: Iterable[str], layers: int) -> Iterator[str]:
    for layer in range(layers):
        for template in templates:
            yield template.replace("{layer}", str(layer))
