"""Mistakes about the prefix: how a flat row is cut up, and the projection that it comes out of (PX-1 to PX-9)."""

from __future__ import annotations

from typing import Any

from refpeft import activations
from refpeft import arrays as np
from refpeft.oracle.mutants.mutant import Mutant, Steps, each, mutant
from refpeft.prefix_encoder import SECOND_BIAS
from refpeft.steps import definition

_ACTIVATION = "prefix.projection_activation"
_SIZES = "the wrong nesting has the right size"


@mutant(
    "M01", "all keys before all values", clause="PX-4",
    why="NumPy's and Paddle's split(2) cuts in two sections, torch's in sections of two",
    seen="PaddleNLP; BLOOM in HF peft before 2023",
)  # fmt: skip
def keys_before_values() -> Steps:
    """Block `layer` and block `layers + layer`."""

    def key(layer: int, layers: int) -> int:
        return layer

    def value(layer: int, layers: int) -> int:
        return layers + layer

    return {
        "prefix.key_row": key,
        "prefix.value_row": value,
        "prefix.decoder_key_row": key,
        "prefix.decoder_value_row": value,
    }


@mutant("M02", "values before keys", clause="PX-4", why="the two of a pair exchanged")
def values_before_keys() -> Steps:
    """The key's block for values and the other way round."""
    pairs = (("prefix.key_row", "prefix.value_row"), ("prefix.decoder_key_row", "prefix.decoder_value_row"))
    return {name: definition(other) for pair in pairs for name, other in (pair, pair[::-1])}


@mutant(
    "M174", "values in the place of keys", clause="PX-4", why="one block is read twice: a name copied and not changed"
)  # fmt: skip
def values_for_keys() -> Steps:
    """The value's block for both."""
    return {
        "prefix.key_row": definition("prefix.value_row"),
        "prefix.decoder_key_row": definition("prefix.decoder_value_row"),
    }


def _cut(flat: Any, config: Any) -> tuple[int, int, int, int]:
    return flat.shape[0], 2 * (config.num_layers or 0), config.num_attention_heads or 1, config.head_dim


def _for_batch(blocks: Any, batch_size: int) -> Any:
    """(rows, kv_heads, virtual, head_dim) for each row of a batch."""
    rows, heads, virtual, dim = blocks.shape
    return np.broadcast_to(
        np.reshape(blocks, (rows, 1, heads, virtual, dim)), (rows, batch_size, heads, virtual, dim)
    )


@mutant(
    "M03", "heads and head_dim exchanged in the flat row", clause="PX-3", why=f"{_SIZES}: dim · heads + head"
)
def heads_inside() -> Steps:
    """Dimension outermost, head innermost."""

    def rows(flat: Any, config: Any, batch_size: int) -> Any:
        virtual, blocks, heads, dim = _cut(flat, config)
        cut = np.reshape(flat, (virtual, blocks, dim, heads))
        return _for_batch(np.transpose(cut, (1, 3, 0, 2)), batch_size)

    return {"prefix.rows": rows}


@mutant(
    "M04", "virtual tokens and heads reshaped where they should be transposed", clause="PX-3",
    why=f"{_SIZES}, and a reshape is what frameworks without permute offer first", seen="HF peft's old postprocessing for BLOOM",
)  # fmt: skip
def reshaped() -> Steps:
    """(virtual, heads, dim) read on as (heads, virtual, dim)."""

    def rows(flat: Any, config: Any, batch_size: int) -> Any:
        virtual, blocks, heads, dim = _cut(flat, config)
        cut = np.transpose(np.reshape(flat, (virtual, blocks, heads * dim)), (1, 0, 2))
        return _for_batch(np.reshape(cut, (blocks, heads, virtual, dim)), batch_size)

    return {"prefix.rows": rows}


@mutant("M05", "layers in reverse order", clause="PX-4", why="blocks popped from the end of a list")
def layers_reversed() -> Steps:
    """The last layer's prefix for the first layer."""

    def backwards(row: Any, layer: int, layers: int) -> Any:
        return row(layers - 1 - layer, layers)

    names = ("prefix.key_row", "prefix.value_row", "prefix.decoder_key_row", "prefix.decoder_value_row")
    return each(names, backwards)


@mutant(
    "M06", "blocks outside, virtual tokens inside the flat table", clause="PX-3",
    why=f"{_SIZES}: a view of (2 · layers, virtual, …) needs no permute", seen="ChatGLM's prefix encoder, axes in another order",
)  # fmt: skip
def blocks_outside() -> Steps:
    """The table read on as (2 · layers, virtual, heads, head_dim)."""

    def rows(flat: Any, config: Any, batch_size: int) -> Any:
        virtual, blocks, heads, dim = _cut(flat, config)
        cut = np.reshape(flat, (blocks, virtual, heads, dim))
        return _for_batch(np.transpose(cut, (0, 2, 1, 3)), batch_size)

    return {"prefix.rows": rows}


@mutant(
    "M10", "the first layer's prefix in every layer", clause="PX-4", why="a loop that does not use its index"
)
def first_layer_everywhere() -> Steps:
    """Blocks 0 and 1 for all."""

    def key(layer: int, layers: int) -> int:
        return 0

    def value(layer: int, layers: int) -> int:
        return 1

    return {
        "prefix.key_row": key,
        "prefix.value_row": value,
        "prefix.decoder_key_row": key,
        "prefix.decoder_value_row": value,
    }


@mutant(
    "M11",
    "keys in the place of values",
    clause="PX-4",
    why="one tensor used for both",
    seen="ghostflow, scirs2",
)
def keys_as_values() -> Steps:
    """A layer's values are its keys."""
    return {
        "prefix.value_row": definition("prefix.key_row"),
        "prefix.decoder_value_row": definition("prefix.decoder_key_row"),
    }


@mutant(
    "M12", "behind an encoder, layer l reads blocks 2l and 2l + 1", clause="PX-8",
    why="that is what a decoder alone does, and what the paper means; HF's blocks there are 4l and 4l + 1 mod 2 · layers",
)  # fmt: skip
def pairs_in_order() -> Steps:
    """As in a decoder alone."""
    return {
        "prefix.decoder_key_row": definition("prefix.key_row"),
        "prefix.decoder_value_row": definition("prefix.value_row"),
    }


@mutant("M69", "virtual tokens in reverse order", clause="PX-4", why="tokens prepended one by one")
def tokens_reversed() -> Steps:
    """The last virtual token first."""

    def backwards(block: Any, flat: Any, config: Any, batch_size: int) -> Any:
        blocks = block(flat, config, batch_size)
        virtual = blocks.shape[3]
        return np.concatenate([np.cut(blocks, i, i + 1, 3) for i in reversed(range(virtual))], axis=3)

    return each(("prefix.rows",), backwards)


@mutant(
    "M16", "relu instead of tanh in the projection", clause="PX-2",
    why="the projection of P-tuning has relu", seen="peft-rs (prefix_tuning.rs)",
)  # fmt: skip
def relu_in_the_projection() -> Steps:
    """Relu between the two linear maps."""
    return {_ACTIVATION: activations.relu}


@mutant(
    "M70", "gelu instead of tanh in the projection", clause="PX-2", why="most networks of today have gelu"
)
def gelu_in_the_projection() -> Steps:
    """The exact gelu between the two linear maps."""
    return {_ACTIVATION: activations.gelu}


@mutant(
    "M71",
    "no activation in the projection",
    clause="PX-2",
    why="two linear layers look complete",
    seen="ghostflow",
)
def nothing_in_the_projection() -> Steps:
    """The identity between the two linear maps."""
    return {_ACTIVATION: activations.identity}


@mutant(
    "M17",
    "tanh behind the second linear map instead of the first",
    clause="PX-2",
    why="the activation at the end",
)
def tanh_at_the_end() -> Steps:
    """`tanh(W₂ (W₀ E + b₀) + b₂)`."""

    def flat(original: Any, parameters: Any, config: Any) -> Any:
        result = original(parameters, config)
        return np.tanh(result) if config.prefix_projection and not config.inference_mode else result

    return {_ACTIVATION: activations.identity, **each(("prefix.flat",), flat)}


@mutant(
    "M18", "a square weight of the projection read as inputs × outputs", clause="PX-1",
    why="Nx, Flax and Keras store weights so, and a square one fits both ways", seen="hf_peft_ex stores inputs × outputs",
)  # fmt: skip
def weight_not_transposed() -> Steps:
    """E · W₀ where HF has E · W₀ᵀ."""

    def hidden(original: Any, embedding: Any, weight: Any, bias: Any) -> Any:
        square = weight.shape[0] == weight.shape[1]
        return original(embedding, np.swapaxes(weight, 0, 1) if square else weight, bias)

    return each(("prefix.projection_hidden",), hidden)


@mutant(
    "M19", "the bias of the projection's first map left out", clause="PX-1", why="a product without its bias"
)
def first_bias_dropped() -> Steps:
    """`b₀ = 0`."""

    def hidden(original: Any, embedding: Any, weight: Any, bias: Any) -> Any:
        return original(embedding, weight, 0.0 * bias)

    return each(("prefix.projection_hidden",), hidden)


@mutant(
    "M72", "the bias of the projection's second map left out", clause="PX-2", why="a product without its bias"
)
def second_bias_dropped() -> Steps:
    """`b₂ = 0`."""

    def flat(original: Any, parameters: Any, config: Any) -> Any:
        if SECOND_BIAS in parameters:
            parameters = {**parameters, SECOND_BIAS: 0.0 * parameters[SECOND_BIAS]}
        return original(parameters, config)

    return each(("prefix.flat",), flat)


@mutant(
    "M73",
    "a prefix counted along the batch: row b gets rows of others",
    clause="PX-3",
    why="repeat and reshape instead of broadcast",
)
def rows_of_others() -> Steps:
    """Each virtual token repeated for the batch, then read on as batch × virtual tokens."""

    def rows(original: Any, flat: Any, config: Any, batch_size: int) -> Any:
        blocks = original(flat, config, 1)
        count, _, heads, virtual, dim = blocks.shape
        by_token = np.transpose(blocks, (0, 3, 1, 2, 4))  # (rows, virtual, 1, heads, dim)
        wide = np.broadcast_to(by_token, (count, virtual, batch_size, heads, dim))
        mixed = np.reshape(wide, (count, batch_size, virtual, heads, dim))
        return np.transpose(mixed, (0, 1, 3, 2, 4))

    return each(("prefix.rows",), rows)


MUTANTS: tuple[Mutant, ...] = (
    keys_before_values, values_before_keys, heads_inside, reshaped, layers_reversed, blocks_outside, first_layer_everywhere,
    keys_as_values, values_for_keys, pairs_in_order, tokens_reversed, rows_of_others, relu_in_the_projection, gelu_in_the_projection,
    nothing_in_the_projection, tanh_at_the_end, weight_not_transposed, first_bias_dropped, second_bias_dropped,
)  # fmt: skip
