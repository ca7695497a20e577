"""HF checkpoint tensors -> the frozen base's parameters, under one set of names for all families.

    embeddings.tokens.weight (vocab, embedding)     embeddings.{positions,token_types}.weight
    embeddings.norm.*                               embeddings.projection.*
    layers.{i}.input_norm.*                         layers.{i}.{attention_output_norm,post_attention_norm}.*
    layers.{i}.attention.{query,key,value,output}.{weight,bias}     layers.{i}.attention.{query_norm,key_norm}.*
    layers.{i}.cross_attention.{query,key,value,output}.*           layers.{i}.post_cross_attention_norm.*
    layers.{i}.mlp.{gate,up,down}.{weight,bias}     layers.{i}.{mlp_output_norm,output_norm}.*
    relative_bias.weight (buckets, heads)           final_norm.*          output_projection.weight
    head.{weight,bias}                              heads.<HF's name of a head of classification, and of the pooler>

Each exists where the family has it. The stacks of an encoder-decoder have `encoder.` and `decoder.` before their names; the
token table and the head are whole. Every weight of a linear map is outputs × inputs. Follows transformers 5.23.0
`models/*/modeling_*.py` for what the tensors mean, and `modeling_utils.py` for tied weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from jaxtyping import Int
from numpy.typing import NDArray

from refpeft import arrays as np
from refpeft.arrays import Array, Float, Parameters
from refpeft.devices import mover
from refpeft.errors import CheckpointError, ConfigError
from refpeft.sharded import map_model
from refpeft.steps import step
from refpeft.stored import Stored
from refpeft.tensors import FLOATING, release, require_finite
from refpeft.transformer.columns import Family, Source
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import family_of
from refpeft.transformer.shapes import expected_tensors

WEIGHTS_FILE = "model.safetensors"
TOKENS, HEAD = "embeddings.tokens.weight", "head.weight"


@dataclass(frozen=True)
class BaseModel:
    """The frozen base: what it is, and its parameters under refpeft's canonical names.

    Source: transformers 5.23.0 `modeling_utils.py`, `PreTrainedModel`.
    """

    config: ModelConfig
    """Read from config.json."""
    parameters: Parameters
    """Canonical names; see the module's docstring."""

    @property
    def dtype(self) -> Any:
        """The one dtype of all parameters."""
        return self.parameters["embeddings.tokens.weight"].dtype

    def map(self, function: Callable[[Array], Array]) -> BaseModel:
        """The same model with another form of every parameter: another dtype, another kind of array.

        A parameter that is tied to another stays tied.

        `function` takes and gives arrays of any shape.
        """
        done: dict[int, Array] = {}
        for parameter in self.parameters.values():
            if id(parameter) not in done:
                done[id(parameter)] = function(parameter)
        return BaseModel(self.config, {name: done[id(value)] for name, value in self.parameters.items()})

    def place(self, x: Array | None) -> Any:
        """An array of the host, of any shape, where the parameters live; None stays None."""
        return None if x is None else np.place(x, like=self.parameters[TOKENS])


@step("inputs.token_embeddings", clause="PT-3", stage="inputs.{which}token_embeddings", axes="batch tokens embedding", kind="exact", source="transformers models/gpt2/modeling_gpt2.py GPT2Model.forward")  # fmt: skip
def embed_tokens(
    table: Float[Array, "vocab embedding"], input_ids: Int[Array, "batch tokens"]
) -> Float[Array, "batch tokens embedding"]:
    """The base model's embedding of the text: rows of its table, before any position is added."""
    return np.take_rows(table, input_ids)


@step("inputs.scaled_embeddings", clause="PT-7", stage="inputs.{which}scaled_embeddings", axes="batch tokens embedding", kind="elementary", source="transformers models/gemma/modeling_gemma.py GemmaTextScaledWordEmbedding.forward")  # fmt: skip
def scale_embeddings(
    embeddings: Float[Array, "batch tokens embedding"], scale: float
) -> Float[Array, "batch tokens embedding"]:
    """Gemma's and BART's embedding modules multiply what they look up by √hidden; virtual tokens are not multiplied.

    A prompt that starts from tokens of the vocabulary goes through the module, and so starts scaled.
    How others differ: the table's rows as they are; or prompts that are scaled with the text.
    """
    return embeddings * scale


def word_embeddings(
    base: BaseModel, input_ids: Int[Array, "batch tokens"]
) -> Float[Array, "batch tokens embedding"]:
    """What the base model's embedding *module* gives for the text: its rows, scaled where the family scales them.

    Source: `get_input_embeddings()` of transformers' models; `models/gemma/modeling_gemma.py`,
    `GemmaTextScaledWordEmbedding.forward`.
    """
    rows = embed_tokens(base.parameters[TOKENS], input_ids)
    scale = base.config.embedding_scale
    return rows if scale == 1.0 else scale_embeddings(rows, scale)


def load_base_model(
    directory: str | Path, dtype: str = "float64", device: str = "cpu", *, lazy: bool = False
) -> BaseModel:
    """Read an unmodified HF model directory: config.json and model.safetensors, or the shards that an index names.

    Source: transformers 5.23.0 `modeling_utils.py`, `PreTrainedModel.from_pretrained`.

    Args:
        directory: As written by HF's `save_pretrained`.
        dtype: "float64" (the oracle's default) or "float32": the format of all parameters and all arithmetic.
        device: Where the parameters live, and so everything that is computed with them: "cpu"; or "cuda" or "cuda:1", as CuPy's
            arrays on a GPU (specs/devices.md).
        lazy: Leave matrices in the file and convert them where they are used (`refpeft.stored`): slower, for models that
            are large beside the memory. The file must stay as it is meanwhile.

    Raises:
        ConfigError: config.json is missing, broken, or of an architecture that refpeft does not know; or there is no such device.
        CheckpointError: weights are missing, damaged, not finite, or not of the shape that config.json says.
    """
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"dtype must be 'float32' or 'float64', not {dtype!r}.")
    move = mover(device)
    if lazy and device != "cpu":
        raise ConfigError(
            f"lazy=True leaves matrices in their file, and device={device!r} takes them out of it. Give one of the two."
        )
    config = ModelConfig.from_pretrained(directory)
    tensors, path = map_model(directory)
    return BaseModel(config, parameters_from_hf(tensors, config, numpy.dtype(dtype), path, lazy=lazy)).map(
        move
    )


_RENAMED = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^embed_out\.", "lm_head."),
)
"""What HF renames when it loads old checkpoints (transformers 5.23.0 `conversion_mapping.py`)."""
_WITH_LANGUAGE_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def parameters_from_hf(
    tensors: Mapping[str, NDArray[Any]], config: ModelConfig, dtype: Any, path: Path, *, lazy: bool = False
) -> dict[str, Array]:
    """HF's tensors under refpeft's canonical names, transposed and cut as the family's row says.

    The head is the token table if the configuration ties them and the file does not hold two different tensors: then HF
    leaves them untied (transformers 5.23.0 `modeling_utils.py`, `tie_weights`). If the file holds only one of the two, it is
    both. Heads of classification are read where they are there. Tensors that the family does not name are refused, except
    the buffers of old checkpoints and heads that nobody adapts: an unknown tensor means another architecture.

    Each has the shape that `shapes.parameter_shapes` says.

    Source: transformers 5.23.0 `models/*/modeling_*.py`, each module's parameters, and `conversion_mapping.py`.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, not floating point, or not finite.
    """
    if config.num_layers > len(tensors):
        raise CheckpointError(
            f"config.json says {config.num_layers} layers, but '{path}' holds {len(tensors)} tensors, not even one for "
            "each. Does config.json belong to these weights?"
        )
    family = family_of(config.family)
    plain = {_plain_name(name, family): tensor for name, tensor in tensors.items()}
    expected = expected_tensors(config)
    tied, used = _take_head_out(expected, plain, config)
    if config.kind == "encoder_decoder":
        _require_one_table(plain, expected[TOKENS][0].name, config, path)
    parameters: dict[str, Array] = {}
    for canonical, (source, shape) in expected.items():
        if source.name not in plain and source.optional:
            continue
        view = _canonical(plain, source, shape, config, path)
        if source.name not in used:  # queries, keys and values stand in one tensor
            require_finite(plain[source.name], source.name, path, dtype)
        used.add(source.name)
        parameters[canonical] = _placed(view, plain[source.name], shape, dtype, lazy=lazy)
    if tied:
        parameters[HEAD] = parameters[TOKENS]
    unknown = sorted(name for name in plain if name not in used and not _is_ignored(name, family))
    if unknown:
        raise CheckpointError(
            f"'{path}' holds tensors that a {config.family} model does not have: {', '.join(unknown[:5])}"
            f"{' …' if len(unknown) > 5 else ''}. Does config.json belong to these weights?"
        )
    return parameters


def _take_head_out(
    expected: dict[str, tuple[Source, tuple[int, ...]]], plain: dict[str, Any], config: ModelConfig
) -> tuple[bool, set[str]]:
    """Expect no head where it is the token table, or the checkpoint is of a class without one.

    Returns:
        Whether the head is the table, and HF's names of what is not looked at any more.
    """
    if HEAD not in expected:
        return False, set()
    table, head = expected[TOKENS][0].name, expected[HEAD][0].name
    tied = config.tie_word_embeddings
    if tied and head in plain:
        tied = numpy.array_equal(plain.setdefault(table, plain[head]), plain[head])
    bias = expected.get("head.bias")
    whole = tied and (bias is None or bias[0].optional or bias[0].name in plain)
    absent = not whole and head not in plain and not _wants_language_head(config, plain)
    if absent:
        expected.pop("head.bias", None)
    if not (tied or absent):
        return False, set()
    del expected[HEAD]
    return tied and not absent, {head}


def _plain_name(name: str, family: Family) -> str:
    """HF's name without what the class puts before the backbone's, and as HF renames it."""
    name = name.removeprefix(family.prefix)
    if family.prefix == "model.":  # HF's question-answering classes of this kind say `transformer.`
        name = name.removeprefix("transformer.")
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    return name


def _require_one_table(plain: Mapping[str, Any], table: str, config: ModelConfig, path: Path) -> None:
    """That both stacks read the one token table: without copies of it where HF ties them, or with equal ones."""
    for stack in ("encoder", "decoder"):
        own = plain.get(
            f"{stack}.embed_tokens.weight", plain.get(table) if config.tie_word_embeddings else None
        )
        if not numpy.array_equal(own, plain.get(table)):  # type: ignore[arg-type]
            raise CheckpointError(
                f"The {stack} of '{path}' does not read the token table '{table}', which refpeft's encoder-decoders share: it has "
                "one of its own, or none at all though tie_word_embeddings is false."
            )


def _is_ignored(name: str, family: Family) -> bool:
    return any(
        name.endswith(part) if part.startswith(".") else name.startswith(part) for part in family.ignored
    )


def _wants_language_head(config: ModelConfig, plain: Mapping[str, Any]) -> bool:
    """Whether a checkpoint without the head of a language model is damaged, rather than one of another class."""
    others = {head.module for head in family_of(config.family).heads.values()}
    if any(name.split(".")[0] in others for name in plain):
        return False
    named = config.hf.get("architectures")
    return not (isinstance(named, list) and named and not str(named[0]).endswith(_WITH_LANGUAGE_HEAD))


def _placed(
    view: NDArray[Any], tensor: NDArray[Any], shape: tuple[int, ...], dtype: Any, *, lazy: bool
) -> Any:
    """A view of a tensor, in memory as `dtype`; or, of a matrix of more than one row (BART's bias of logits has one), in its file."""
    if lazy and len(shape) > 1 and shape[0] > 1:
        return Stored(view, dtype) if view.shape == shape else Stored(view, dtype, shape=shape)
    placed = numpy.array(view, dtype, order="C").reshape(shape)
    if not lazy:
        release(tensor)
    return placed


def _canonical(
    tensors: Mapping[str, NDArray[Any]],
    source: Source,
    shape: tuple[int, ...],
    config: ModelConfig,
    path: Path,
) -> NDArray[Any]:
    """The tensor as it is stored, upright and cut, without a copy: of `shape`, once its leading axes are joined."""
    if source.name not in tensors:
        raise CheckpointError(
            f"'{path}' has no tensor '{source.name}'. It holds {len(tensors)} tensors"
            f"{': ' + ', '.join(sorted(tensors)[:5]) + ' …' if tensors else ''}. Does config.json belong to these weights?"
        )
    tensor = tensors[source.name]
    heads, stored_heads = (
        config.num_attention_heads,
        config.stored_key_value_heads or config.num_key_value_heads,
    )
    full = ((heads + 2 * stored_heads) * config.head_dim, *shape[1:]) if source.fused else shape
    stored = full[::-1] if source.transposed else full
    if tensor.shape != stored:
        raise CheckpointError(
            f"'{source.name}' in '{path}' has shape {tensor.shape}; config.json says {stored}. "
            "Does config.json belong to these weights?"
        )
    if str(tensor.dtype) not in FLOATING:
        raise CheckpointError(
            f"'{source.name}' in '{path}' has dtype {tensor.dtype}; weights must be one of {', '.join(FLOATING)}. "
            "Quantised checkpoints cannot be read: save the model in a floating-point format."
        )
    upright = tensor.T if source.transposed else tensor
    return _part(upright, source, config, stored_heads) if source.fused else upright


def _part(tensor: NDArray[Any], source: Source, config: ModelConfig, stored_heads: int) -> NDArray[Any]:
    """Queries, keys or values out of a fused tensor; keys and values repeated where HF repeats them before its cache."""
    heads, dimension = config.num_attention_heads, config.head_dim
    if source.fused == "sections":
        counts = {
            "query": (0, heads),
            "key": (heads, stored_heads),
            "value": (heads + stored_heads, stored_heads),
        }
        start, count = counts[source.part]
        return tensor[start * dimension : (start + count) * dimension]
    group = heads // stored_heads
    first, count = {"query": (0, group), "key": (group, 1), "value": (group + 1, 1)}[source.part]
    grouped = tensor.reshape(stored_heads, group + 2, dimension, *tensor.shape[1:])[:, first : first + count]
    repeats = 1 if source.part == "query" else config.num_key_value_heads // stored_heads
    return (
        numpy.broadcast_to(grouped, (stored_heads, count * repeats, *grouped.shape[2:]))
        if repeats > 1
        else grouped
    )
