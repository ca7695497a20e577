"""Prefix tuning's parameters: virtual tokens -> a key and a value for each layer, head and virtual token.

Follows HF peft 0.21.2 `tuners/prefix_tuning/model.py` (`PrefixEncoder`) and `peft_model.py` (`get_prompt`).

    flat = E                                   (prefix_projection=False, or in inference mode)
    flat = tanh(E · W₀ᵀ + b₀) · W₂ᵀ + b₂       (prefix_projection=True, while training)

and each row of `flat` (2 · layers · kv_heads · head_dim numbers for one virtual token) is laid out as

    layer 0 key | layer 0 value | layer 1 key | layer 1 value | …      each: head 0 | head 1 | …
"""

from __future__ import annotations

from collections.abc import Sequence

from refpeft import arrays as np
from refpeft.arrays import Array, Float, Parameters
from refpeft.config import PrefixTuningConfig
from refpeft.errors import ConfigError, InputError
from refpeft.ops import linear
from refpeft.steps import scope, step
from refpeft.torch_random import Generator, embedding
from refpeft.torch_random import linear as random_linear

EMBEDDING = "prompt_encoder.embedding.weight"
FIRST_WEIGHT, FIRST_BIAS = "prompt_encoder.transform.0.weight", "prompt_encoder.transform.0.bias"
SECOND_WEIGHT, SECOND_BIAS = "prompt_encoder.transform.2.weight", "prompt_encoder.transform.2.bias"

_ENCODER = "peft tuners/prefix_tuning/model.py PrefixEncoder.forward"
_GET_PROMPT = "peft peft_model.py PeftModel.get_prompt"


def projects(config: PrefixTuningConfig) -> bool:
    """Whether the flat prefix comes out of the two-layer network: never in inference mode (clause PX-5).

    Source: HF peft 0.21.2 `tuners/prefix_tuning/model.py`, `PrefixEncoder.__init__`.
    """
    return config.prefix_projection and not config.inference_mode


def parameter_shapes(config: PrefixTuningConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the trainable parameters, in HF's order. Linear weights are outputs × inputs. Clause PX-1.

    Source: HF peft 0.21.2 `tuners/prefix_tuning/model.py`, `PrefixEncoder.__init__`.
    """
    width = config.prefix_embedding_dim
    if not projects(config):
        return {EMBEDDING: (config.num_virtual_tokens, width)}
    hidden, token_dim = (
        config.required_encoder_hidden_size(),
        config.head_dim * (config.num_attention_heads or 1),
    )
    return {
        EMBEDDING: (config.num_virtual_tokens, token_dim),
        FIRST_WEIGHT: (hidden, token_dim),
        FIRST_BIAS: (hidden,),
        SECOND_WEIGHT: (width, hidden),
        SECOND_BIAS: (width,),
    }


def initial_parameters(config: PrefixTuningConfig, generator: Generator, like: Array) -> dict[str, Array]:
    """Initial values: those that HF gives after `torch.manual_seed(seed)`. Clause PX-6.

    The table draws N(0, 1); each linear layer U(±1/√inputs), weight before bias. `init_weights="zero"` then overwrites
    the last map (the second layer's weight and bias; without projection the table itself) with zeros, after the draws.
    Zeros are not a no-op: zero keys still take their share of the softmax (clause AT-4).

    Source: `PrefixEncoder.__init__`; `torch.nn.Embedding`, `torch.nn.Linear`.

    Each has the shape that `parameter_shapes` says.
    """
    shapes = parameter_shapes(config)
    drawn = {EMBEDDING: embedding(generator, *shapes[EMBEDDING])}
    if projects(config):
        for weight, bias in ((FIRST_WEIGHT, FIRST_BIAS), (SECOND_WEIGHT, SECOND_BIAS)):
            outputs, inputs = shapes[weight]
            drawn[weight], drawn[bias] = random_linear(generator, inputs, outputs)
    if config.init_weights == "zero":
        for name in (SECOND_WEIGHT, SECOND_BIAS) if projects(config) else (EMBEDDING,):
            drawn[name] = np.full(drawn[name].shape, 0, drawn[name].dtype, like=drawn[name])
    return {name: np.place(value.astype(like.dtype), like) for name, value in drawn.items()}


@step("prefix.projection_hidden", clause="PX-1", axes="virtual encoder_hidden", source=_ENCODER)
def projection_hidden(
    embedding: Float[Array, "virtual token_dim"],
    weight: Float[Array, "encoder_hidden token_dim"],
    bias: Float[Array, " encoder_hidden"],
) -> Float[Array, "virtual encoder_hidden"]:
    """The first linear map of the projection. How others differ: a square weight read as inputs × outputs."""
    return linear(embedding, weight, bias)


@step("prefix.projection_activation", clause="PX-2", axes="virtual encoder_hidden", source=_ENCODER)
def projection_activation(
    hidden: Float[Array, "virtual encoder_hidden"],
) -> Float[Array, "virtual encoder_hidden"]:
    """Tanh between the two linear maps. How others differ: relu or gelu."""
    return np.tanh(hidden)


@step("prefix.flat", clause="PX-2", axes="virtual prefix_width", source=_ENCODER)
def flat(parameters: Parameters, config: PrefixTuningConfig) -> Float[Array, "virtual prefix_width"]:
    """One flat row for each virtual token: the table itself, or the projection of it. No dropout, no norm.

    HF computes one equal copy for each row of the batch; here there is one.
    """
    table = parameters[EMBEDDING]
    if not projects(config):
        return table
    activated = projection_activation(
        projection_hidden(table, parameters[FIRST_WEIGHT], parameters[FIRST_BIAS])
    )
    return linear(activated, parameters[SECOND_WEIGHT], parameters[SECOND_BIAS])


@step("prefix.rows", clause="PX-3", stage="", axes="rows batch kv_heads virtual head_dim", source=_GET_PROMPT)
def rows(
    flat: Float[Array, "virtual prefix_width"], config: PrefixTuningConfig, batch_size: int
) -> Float[Array, "rows batch kv_heads virtual head_dim"]:
    """Cut the flat rows up: (virtual, 2 · layers · kv_heads · head_dim) -> (2 · layers, batch, kv_heads, virtual, head_dim).

    In a flat row the 2 · layers blocks are outermost, then heads, then head_dim; the virtual token is the row.
    How others differ: any other nesting of the same axes has the same size, and survives every test of shapes.
    """
    layers, heads, head_dim = config.num_layers or 0, config.num_attention_heads or 1, config.head_dim
    virtual = flat.shape[0]
    cut = np.reshape(flat, (1, virtual, 2 * layers, heads, head_dim))
    cut = np.broadcast_to(cut, (batch_size, virtual, 2 * layers, heads, head_dim))
    return np.transpose(cut, (2, 0, 3, 1, 4))  # (2 · layers, batch, kv_heads, virtual, head_dim)


@step("prefix.key_row", clause="PX-4", stage="", axes="", source=_GET_PROMPT)
def key_row(layer: int, layers: int) -> int:
    """Which of the 2 · layers blocks holds a layer's keys: keys and values alternate, so 2 · layer."""
    return 2 * layer


@step("prefix.value_row", clause="PX-4", stage="", axes="", source=_GET_PROMPT)
def value_row(layer: int, layers: int) -> int:
    """Which of the 2 · layers blocks holds a layer's values: 2 · layer + 1.

    How others differ: all keys before all values (`layer` and `layers + layer`: NumPy's and Paddle's `split(2)` means
    two sections, torch's means sections of two); values before keys.
    """
    return 2 * layer + 1


@step("prefix.decoder_key_row", clause="PX-8", stage="", axes="", source=_GET_PROMPT)
def decoder_key_row(layer: int, layers: int) -> int:
    """Behind an encoder (num_transformer_submodules 2), layer l's keys are in block 4·l mod 2·layers.

    HF lays two copies of the 2 · layers blocks side by side and cuts the row into fours, of which it uses the first two. With an
    even number of layers, layers l and l + layers/2 therefore share their prefix, and blocks 4·l + 2 and 4·l + 3 are dead:
    stored, trained and saved, with a gradient of zero.
    How others differ: blocks 2·l and 2·l + 1, as in a decoder alone.
    """
    return 4 * layer % (2 * layers)


@step("prefix.decoder_value_row", clause="PX-8", stage="", axes="", source=_GET_PROMPT)
def decoder_value_row(layer: int, layers: int) -> int:
    """Behind an encoder, layer l's values are in the block after its keys."""
    return 4 * layer % (2 * layers) + 1


@step(
    "prefix.cut",
    clause="PX-9",
    stage="",
    axes="",
    source="transformers cache_utils.py DynamicSlidingWindowLayer.update",
)
def forgotten(virtual: int, window: int | None) -> int:
    """How many of the first virtual tokens the cache of a layer does not keep.

    Gemma-2's and Gemma-3's layers with a window keep the last window − 1, though positions count all; other families keep all.
    No query could have seen the others, so that logits do not change.
    """
    return 0 if window is None or window < 2 else max(0, virtual - (window - 1))


@step(
    "prefix.key",
    clause="PX-4",
    stage="prefix.layers.{layer}.key",
    axes="batch kv_heads virtual head_dim",
    source=_GET_PROMPT,
)
def key(
    block: Float[Array, "batch kv_heads virtual head_dim"],
) -> Float[Array, "batch kv_heads virtual head_dim"]:
    """A layer's prefix keys, virtual tokens in the order of the table. They are used as stored: never rotated or scaled.

    The order of the virtual tokens cannot be seen in GPT-2's logits (clause AT-6), only here.
    """
    return block


@step(
    "prefix.value",
    clause="PX-4",
    stage="prefix.layers.{layer}.value",
    axes="batch kv_heads virtual head_dim",
    source=_GET_PROMPT,
)
def value(
    block: Float[Array, "batch kv_heads virtual head_dim"],
) -> Float[Array, "batch kv_heads virtual head_dim"]:
    """A layer's prefix values, virtual tokens in the order of the table."""
    return block


def forward(
    parameters: Parameters,
    config: PrefixTuningConfig,
    batch_size: int,
    windows: Sequence[int | None] = (),
) -> tuple[tuple[Array, Array], ...]:
    """Trainable parameters -> one `(key, value)` for each layer, each (batch, kv_heads, virtual, head_dim).

    `windows`: each layer's, where the base model's cache cuts the prefix to it (PX-9). Behind an encoder the layers are the
    decoder's (PX-8); no other attention gets a prefix.

    Source: HF peft 0.21.2 `peft_model.py`, `PeftModel.get_prompt`: `view(batch, virtual, 2 · layers, heads, head_dim)`,
    `permute(2, 0, 3, 1, 4)`, `split(2)`.
    """
    layers = config.num_layers or 0
    blocks = np.unstack(rows(flat(parameters, config), config, batch_size))
    behind_encoder = config.num_transformer_submodules == 2
    rows_of = (decoder_key_row, decoder_value_row) if behind_encoder else (key_row, value_row)
    pairs = []
    for layer in range(layers):
        virtual = blocks[0].shape[2]
        first = forgotten(virtual, windows[layer] if windows else None)
        own = [blocks[row(layer, layers)] for row in rows_of]
        own = [np.cut(block, first, virtual, 2) for block in own] if first else own
        with scope(layer=layer):
            pairs.append((key(own[0]), value(own[1])))
    return tuple(pairs)


def flatten(past_key_values: tuple[tuple[Array, Array], ...]) -> Float[Array, "virtual prefix_width"]:
    """The inverse of `forward` for a batch of one: the flat rows that give these keys and values.

    Source: HF peft 0.21.2 `tuners/cartridge/utils.py`, `prompt_embeddings_from_past_key_values`.

    Each key and value is (1, kv_heads, virtual, head_dim).

    Raises:
        InputError: the batch is not one.
    """
    if past_key_values[0][0].shape[0] != 1:
        raise InputError(
            f"A prefix holds one row's keys and values; these are of a batch of {past_key_values[0][0].shape[0]}. "
            "Give those of a single sequence."
        )
    blocks = [np.swapaxes(np.reshape(x, x.shape[1:]), 0, 1) for pair in past_key_values for x in pair]
    virtual, heads, head_dim = blocks[0].shape
    return np.concatenate([np.reshape(block, (virtual, heads * head_dim)) for block in blocks], axis=1)


def load_prompt_embeddings(
    parameters: Parameters, config: PrefixTuningConfig, prompt_embeddings: Float[Array, ...]
) -> dict[str, Array]:
    """New parameters whose flat prefix is `prompt_embeddings` (virtual, 2 · layers · token_dim). Clause PX-7.

    Source: `PrefixEncoder.load_prompt_embeddings`, with its two errors (also for a projection that was loaded flat,
    since its flag stays set).

    Raises:
        ConfigError: the configuration has a projection, which cannot be inverted.
        InputError: the shape is not that of the table.
    """
    if config.prefix_projection:
        raise ConfigError("Cannot load flattened prompt embeddings when `prefix_projection=True`.")
    table = parameters[EMBEDDING]
    if tuple(prompt_embeddings.shape) != tuple(table.shape):
        raise InputError(
            f"Invalid `prompt_embeddings` shape. Expected {tuple(table.shape)}, got {tuple(prompt_embeddings.shape)}."
        )
    return {EMBEDDING: prompt_embeddings.astype(table.dtype)}
