"""HF's answer to a recipe -> the case and the tensors that are kept, in the golden-vector format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy
import peft
import torch
import transformers
from answers import EMBEDDING, Answer, answer
from hf import float32_valued
from numpy.typing import NDArray
from recipes import Recipe
from sizes import axis_sizes
from stages import STAGES, layer_of, stage_axes, template_of

from refpeft.oracle.questions import PROMPT, is_required
from refpeft.oracle.vectors import FORMAT, Case, Kind, Tensor

Arrays = dict[str, NDArray[Any]]

VERSIONS = {
    "torch": torch.__version__.split("+")[0],
    "transformers": transformers.__version__,
    "peft": peft.__version__,
}
WITHOUT_MODEL = ("prefix.encode", "checkpoint.save", "mask", "random", "config.resolve")
"""Questions that a port answers without the base model."""
ALL_STAGES = ("inputs", "prefix.encode", "training", "generate")
"""Questions small enough to keep every stage."""


@dataclass(frozen=True)
class Made:
    """A golden vector in memory."""

    case: Case
    inputs: Arrays
    expected: Arrays
    adapter: dict[str, bytes]


def make(recipe: Recipe) -> Made:
    """Ask HF, and keep what the recipe says."""
    given = answer(recipe)
    rejected = given.document == {"rejected": True}
    assert rejected == recipe.name.startswith("rejected-"), (
        f"{recipe.id}: HF {'rejects' if rejected else 'accepts'} it"
    )
    dims = _dims(recipe, given)
    kept = {name: value for name, value in given.double.items() if _is_kept(recipe, name)}
    tensors = {name: _tensor(recipe, given, name, dims) for name in kept}
    case = Case(
        format=FORMAT,
        id=recipe.id,
        title=recipe.title,
        question=recipe.question,
        method=recipe.method,
        clauses=recipe.clauses.split(),
        model=None if recipe.question in WITHOUT_MODEL else recipe.model,
        config=given.config,
        arguments=_arguments(recipe) if given.arguments is None else given.arguments,
        dims=dims,
        equal_axes=recipe.equal_axes,
        seed=recipe.seed if given.inputs and recipe.question != "init" else None,
        versions=VERSIONS,
        tensors=tensors,
        document=given.document,
    )
    inputs = {name: _array(value) for name, value in given.inputs.items()}
    return Made(case, inputs, {name: _expected(value) for name, value in kept.items()}, given.adapter)


def _is_kept(recipe: Recipe, name: str) -> bool:
    everything = recipe.stages or recipe.question in ALL_STAGES
    layer = (
        layer_of(name) if recipe.layers and ".layers." in name and not name.startswith("prefix.") else None
    )
    if (
        recipe.question == "prefix.encode"
        and name == "prefix.flat"
        and not str(recipe.model).startswith("gpt2")
    ):
        return False  # the same numbers as the keys and values
    return is_required(recipe.question, name) or (everything and (layer is None or layer in recipe.layers))


def _arguments(recipe: Recipe) -> dict[str, Any]:
    if recipe.question == "mask":
        assert recipe.text
        return {"batch_size": recipe.text.batch, **recipe.arguments}
    return dict(recipe.arguments)


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    return numpy.ascontiguousarray(tensor.detach().numpy()).reshape(tuple(tensor.shape))


def _expected(tensor: torch.Tensor) -> NDArray[Any]:
    return _array(tensor.double() if tensor.is_floating_point() else tensor)


def _tensor(recipe: Recipe, given: Answer, name: str, dims: dict[str, int]) -> Tensor:
    double, single = given.double[name].detach(), given.single[name].detach()
    kind, axes = _kind(recipe, given, name), _axes(recipe, given, name, dims)
    assert [dims[axis] for axis in axes] == list(double.shape), (
        f"{name}: {axes} are not {tuple(double.shape)}"
    )
    if kind != "composite":
        return Tensor(kind, axes)
    if _is_computed(recipe, name) and bool((double != 0).any()):
        assert not float32_valued(double), f"HF computed {name} of {recipe.id} in float32"
    return Tensor(kind, axes, _distance(double, single))


def _distance(double: torch.Tensor, single: torch.Tensor) -> float:
    """‖single − double‖ / ‖double‖, without masked scores, to two digits."""
    seen = double.abs() < 1e30
    scale = float(double[seen].norm())
    difference = float((single.double() - double)[seen].norm())
    return float(f"{difference / scale if scale else difference:.1e}")


def _is_computed(recipe: Recipe, name: str) -> bool:
    """Whether a composite tensor comes out of arithmetic here: an unprojected prefix is a copy.

    ALiBi's slopes may be powers of two, and short sums of numbers on the grid are numbers that float32 has.
    """
    projected = bool((recipe.config or {}).get("prefix_projection")) and not (recipe.config or {}).get(
        "inference_mode"
    )
    if name.endswith((".alibi", ".typed_embeddings", ".projection_hidden")):
        return False
    return projected or not name.startswith(("prefix.", "prompt_embeddings"))


def _kind(recipe: Recipe, given: Answer, name: str) -> Kind:
    if name.startswith("draws."):
        draw = recipe.arguments["draws"][int(name.split(".")[1])]
        return "exact" if draw["kind"] == "randint" else "drawn"
    if name.startswith("parameters."):
        return _kind_of_initial(recipe, given, name)
    if name == "prompt_embeddings":
        return "exact" if recipe.method == PROMPT else "composite"
    if name.startswith("base_model."):  # a saved head
        return "exact"
    if name == "inputs.embeddings" and "inputs.scaled_embeddings" in given.double:
        return "elementary"
    return (
        STAGES[template_of(name)].kind if template_of(name) in STAGES else _OTHER_KINDS.get(name, "composite")
    )


_OTHER_KINDS: dict[str, Kind] = {"sequences": "tokens"}
"""Kinds of tensors that are no stages of a forward pass and not composite."""


def _kind_of_initial(recipe: Recipe, given: Answer, name: str) -> Kind:
    config = recipe.config or {}
    folded = config.get("inference_mode")
    copied = config.get("prompt_tuning_init") in ("TEXT", "SAMPLE_VOCAB") and not folded
    projected = config.get("prefix_projection") and not folded
    last = "transform.2." in name if projected else EMBEDDING in name
    zero = config.get("init_weights") == "zero" and last
    if copied and (
        given.model.model_type.startswith("gemma") or getattr(given.model, "scale_embedding", False)
    ):
        return "elementary"  # rows of the table, scaled in float32
    return "exact" if copied or zero else "drawn"


def _axes(recipe: Recipe, given: Answer, name: str, dims: dict[str, int]) -> list[str]:
    if name.startswith("draws."):
        return _draw_axes(recipe, name)
    rows = "virtual_rows" if "virtual_rows" in dims else "virtual"
    table = [rows, "token_dim" if recipe.method == PROMPT else "prefix_width"]
    if name == "prompt_embeddings":
        return table
    if name.startswith("training."):
        return ["steps"]
    plain = name.removeprefix("parameters.").removeprefix("gradients.").removeprefix("trained.")
    config = recipe.config or {}
    if plain == EMBEDDING:
        projected = config.get("prefix_projection") and not config.get("inference_mode")
        return [rows, "token_dim"] if projected else table
    if plain.startswith("prompt_encoder."):
        return {
            "transform.0.weight": ["encoder_hidden", "token_dim"],
            "transform.0.bias": ["encoder_hidden"],
            "transform.2.weight": ["prefix_width", "encoder_hidden"],
            "transform.2.bias": ["prefix_width"],
        }[plain.removeprefix("prompt_encoder.")]
    outer = "embedding" if "embedding" in dims and given.model.model_type == "opt" else "hidden"
    if plain.startswith("base_model."):
        return _head_axes(plain, outer)
    if name in _OTHER_AXES:
        return _OTHER_AXES[name]
    return stage_axes(name, dims, outer, _cut_layers(recipe, given))


_OTHER_AXES = {
    "generation.logits": ["batch", "new_tokens", "vocab"],
    "sequences": ["sequences", "length"],
    "sequences_scores": ["sequences"],
}
"""Axes of the tensors that are no stages of a forward pass."""


def _head_axes(name: str, outer: str) -> list[str]:
    """Of a head's parameter; `outer` is the width of what the head gets."""
    *_, module, kind = name.split(".")
    outputs = {"lm_head": "vocab", "dense": "hidden"}.get(module, "labels")
    return [outputs, outer] if kind == "weight" else [outputs]


def _cut_layers(recipe: Recipe, given: Answer) -> dict[int, int]:
    """The layers whose window cuts the prefix, and how much of it is stored."""
    virtual = (recipe.config or {}).get("num_virtual_tokens", 0)
    stored = {layer_of(n): t.shape[2] for n, t in given.double.items() if n.startswith("prefix.layers.")}
    return {layer: count for layer, count in stored.items() if layer is not None and count < virtual}


def _draw_axes(recipe: Recipe, name: str) -> list[str]:
    _, index, *part = name.split(".")
    kind = recipe.arguments["draws"][int(index)]["kind"]
    if kind == "embedding":
        return [f"rows_{index}", f"columns_{index}"]
    if kind == "linear":
        return [f"outputs_{index}", f"inputs_{index}"][: 2 if part == ["weight"] else 1]
    shape = recipe.arguments["draws"][int(index)]["shape"]
    return [f"rows_{index}", f"columns_{index}"] if len(shape) == 2 else [f"values_{index}"]


def _dims(recipe: Recipe, given: Answer) -> dict[str, int]:
    """The size of each axis that the case knows."""
    dims: dict[str, int] = {}
    for name, tensor in given.double.items():
        if name.startswith("draws."):
            dims |= dict(zip(_draw_axes(recipe, name), tensor.shape, strict=True))
    virtual = {**(recipe.config or {}), **recipe.arguments}.get("num_virtual_tokens", 0)
    if virtual:
        dims["virtual"] = virtual
    if recipe.task_type == "SEQ_2_SEQ_LM" and recipe.method == PROMPT:
        dims["virtual_rows"] = 2 * virtual
    if recipe.text or "batch_size" in recipe.arguments:
        dims["batch"] = recipe.text.batch if recipe.text else recipe.arguments["batch_size"]
    if recipe.text:
        dims |= _text_dims(recipe, given, virtual)
    if given.model:
        dims |= _model_dims(recipe, given)
    if recipe.question == "mask":
        del dims["query"]
    if recipe.question == "training":
        dims |= {"steps": recipe.arguments["max_steps"], "micro_batches": recipe.arguments["micro_batches"]}
    if recipe.question == "generate":
        sequences, length = given.double["sequences"].shape
        del dims["query"], dims["key"]
        before = (
            dims["tokens"] if dims.pop("decoder_tokens", None) is None else 1
        )  # behind an encoder, the start token
        dims |= {"sequences": sequences, "length": length, "new_tokens": length - before}
    config = given.config or _saved_config(recipe, given)
    return {**dims, **_config_dims(config)} if config else dims


def _text_dims(recipe: Recipe, given: Answer, virtual: int) -> dict[str, int]:
    """The sizes that depend on the text. The encoder of an encoder-decoder has the axis `encoder_key` alone."""
    assert recipe.text
    tokens, prompt = recipe.text.tokens, recipe.method == PROMPT
    if getattr(given.model, "is_encoder_decoder", False):
        query = recipe.text.decoder_tokens
        dims = {"tokens": tokens, "encoder_key": tokens + (virtual if prompt else 0), "decoder_tokens": query}
        return dims | {"query": query, "key": query + (0 if prompt else virtual)}
    key = virtual + tokens
    dims = {"tokens": tokens, "query": key if prompt else tokens, "key": key}
    for stored in _cut_layers(recipe, given).values():
        dims |= {"stored_virtual": stored, "window_key": stored + tokens}
    return dims


def _config_dims(config: dict[str, Any]) -> dict[str, int]:
    """The sizes that an adapter's configuration gives."""
    dims: dict[str, int] = {"token_dim": config["token_dim"]}
    if config["peft_type"] == "PREFIX_TUNING":
        dims["prefix_width"] = 2 * config["num_layers"] * config["token_dim"]
        if config["prefix_projection"] and not config["inference_mode"]:
            dims["encoder_hidden"] = config["encoder_hidden_size"]
    return dims


def _saved_config(recipe: Recipe, given: Answer) -> dict[str, Any] | None:
    """The configuration beside the weights, where the case itself has none."""
    if "adapter_config.json" not in given.adapter:
        return None
    config: dict[str, Any] = json.loads(given.adapter["adapter_config.json"])
    return config


def _model_dims(recipe: Recipe, given: Answer) -> dict[str, int]:
    sizes = axis_sizes(given.model)
    if recipe.question in WITHOUT_MODEL:
        names = ["layers", "heads", "kv_heads", "head_dim"]
        if any(
            name.startswith("base_model.") for name in given.double
        ):  # a head is saved beside the virtual tokens
            names.append("hidden")
    else:
        names = [name for name in sizes if name != "labels"]
    dims = {name: sizes[name] for name in names}
    if recipe.task_type in ("SEQ_CLS", "TOKEN_CLS"):
        dims["labels"] = sizes["labels"]
    elif recipe.task_type == "QUESTION_ANS":
        dims["labels"] = 2  # where the answer begins, and where it ends
    return dims
