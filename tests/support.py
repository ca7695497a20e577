"""What tests in several files share: requirements, tiny models of every family, questions to them, comparisons."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest

from refpeft import arrays, fitting
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.peft_model import PeftModel, get_peft_model
from refpeft.tensors import write_tensors
from refpeft.transformer.columns import Family
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import FAMILIES
from refpeft.transformer.shapes import HEADS, parameter_shapes
from refpeft.transformer.weights import HEAD, TOKENS, BaseModel

REQUIRED = frozenset(filter(None, os.environ.get("REFPEFT_REQUIRE", "").split(",")))
"""What must be there: in `.ci/run` a test may not skip for want of these."""
EVERY_CASE = os.environ.get("REFPEFT_CASES") == "all"
"""Studies take every golden case and print the figures that specs/ quotes; else a few, as fits a test."""


def need(name: str) -> Any:
    """A Python module, or the path of a program (`node`, `cc`), or skip the test; fail if REFPEFT_REQUIRE lists it."""
    root = name.partition(".")[0]
    if importlib.util.find_spec(root):  # before programs: transformers and torch bring some of their own name
        return importlib.import_module(name)
    program = shutil.which(name)
    if program:
        return program
    message = f"needs {root}, which is not installed here"
    if root in REQUIRED:
        pytest.fail(f"{message}, but REFPEFT_REQUIRE lists it", pytrace=False)
    return pytest.skip(message, allow_module_level=True)


def relative_error(given: Any, expected: Any) -> float:
    """‖given − expected‖ / ‖expected‖."""
    given, expected = numpy.asarray(given, dtype=numpy.float64), numpy.asarray(expected, dtype=numpy.float64)
    scale = float(numpy.linalg.norm(expected))
    return float(numpy.linalg.norm(given - expected)) / scale if scale else float(numpy.linalg.norm(given))


# ---------------------------------------------------------------- a GPT-2


def tiny_config(**changes: Any) -> ModelConfig:
    """A GPT-2 whose axes all have different sizes, unless `changes` say otherwise (HF's names)."""
    return ModelConfig.from_dict({"model_type": "gpt2", **_GPT2, **changes})


def tiny_base(seed: int = 0, dtype: str = "float64", **changes: Any) -> BaseModel:
    """A GPT-2 of a language model alone, with random weights of standard deviation 0.4, so that every mistake shows."""
    config = tiny_config(**changes)
    return BaseModel(config, _random_parameters(config, seed, dtype, heads=False))


def _random_parameters(config: ModelConfig, seed: int, dtype: str, *, heads: bool) -> dict[str, arrays.Array]:
    random = numpy.random.default_rng(seed)
    parameters: dict[str, arrays.Array] = {
        name: random.normal(0.0, 0.4, shape).astype(dtype)
        for name, shape in parameter_shapes(config).items()
        if heads or not name.startswith(HEADS)
    }
    if HEAD in parameters and config.tie_word_embeddings:
        parameters[HEAD] = parameters[TOKENS]
    stored = config.stored_key_value_heads or config.num_key_value_heads
    for name, value in parameters.items():  # Falcon repeats keys and values before its cache
        if stored != config.num_key_value_heads and (
            ".attention.key." in name or ".attention.value." in name
        ):
            repeats = config.num_key_value_heads // stored
            own = value.reshape(stored, repeats, config.head_dim, *value.shape[1:])[:, :1]
            parameters[name] = own.repeat(repeats, axis=1).reshape(value.shape)
    return parameters


# ---------------------------------------------------------------- every family

VIRTUAL, TOKENS_OF_TEXT, TOKENS_OF_DECODER = 4, 7, 6

_GPT2 = {"vocab_size": 43, "n_positions": 37, "n_embd": 15, "n_layer": 3, "n_head": 5, "n_inner": 22}
_COMMON = {"vocab_size": 43, "num_hidden_layers": 3, "num_labels": 8}
_HALF_TURNED = {
    **_COMMON,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 22,
    "max_position_embeddings": 37,
}
_GROUPED = {
    **_COMMON, "hidden_size": 18, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "intermediate_size": 22,
    "max_position_embeddings": 37, "rope_theta": 100.0,
}  # fmt: skip
_ENCODER = {
    **_COMMON, "hidden_size": 15, "num_attention_heads": 5, "intermediate_size": 22, "max_position_embeddings": 37,
    "type_vocab_size": 3,
}  # fmt: skip
_CAPPED = {
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 4.0,
    "query_pre_attn_scalar": 7,
    "sliding_window": 4,
}
TINY: dict[str, dict[str, Any]] = {
    "gpt2": {**_GPT2, "num_labels": 8, "pad_token_id": 2},
    "gpt_bigcode": {**_GPT2, "num_labels": 8, "pad_token_id": 2},
    "opt": {**_COMMON, "hidden_size": 15, "num_attention_heads": 5, "ffn_dim": 22, "max_position_embeddings": 37},
    "gpt_neox": {**_HALF_TURNED, "rotary_pct": 0.5, "pad_token_id": 2},
    "bloom": {**_COMMON, "hidden_size": 20, "num_attention_heads": 5, "pad_token_id": 2},
    "falcon": {
        **_COMMON, "hidden_size": 30, "num_attention_heads": 3, "ffn_hidden_size": 22, "max_position_embeddings": 37, "pad_token_id": 2,
    },
    "llama": {**_GROUPED, "pad_token_id": 2},
    "mistral": {**_GROUPED, "pad_token_id": 2, "sliding_window": 4},
    "qwen2": {**_GROUPED, "pad_token_id": 2, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 4},
    "qwen3": {**_GROUPED, "pad_token_id": 2},
    "gemma": {**_GROUPED},
    "gemma2": {**_GROUPED, **_CAPPED},
    "gemma3_text": {**_GROUPED, **_CAPPED, "sliding_window_pattern": 2, "rope_local_base_freq": 10.0},
    "phi": {**_HALF_TURNED, "pad_token_id": 2},
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "electra": {**_ENCODER, "embedding_size": 13},
    "t5": {
        "vocab_size": 43, "d_model": 15, "d_kv": 4, "num_heads": 5, "d_ff": 22, "num_layers": 3, "num_decoder_layers": 2,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10, "decoder_start_token_id": 0,
    },
    "bart": {
        "vocab_size": 43, "d_model": 15, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 5,
        "decoder_attention_heads": 5, "encoder_ffn_dim": 22, "decoder_ffn_dim": 14, "max_position_embeddings": 37,
    },
}  # fmt: skip
"""HF's config.json of a tiny model of each family, without `model_type`; its axes have different sizes."""

_LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt, narrow, norms after": ("opt", {"word_embed_proj_dim": 13, "do_layer_norm_before": False}),
    "opt, plain": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "bloom, from the norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "gpt_bigcode, many keys": ("gpt_bigcode", {"multi_query": False}),
    "falcon, alibi": ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "falcon, grouped": (
        "falcon", {"new_decoder_architecture": True, "num_attention_heads": 6, "hidden_size": 24, "num_kv_heads": 2},
    ),
    "falcon, grouped, one norm": (
        "falcon",
        {"new_decoder_architecture": True, "num_attention_heads": 6, "hidden_size": 24, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "llama, llama3": (
        "llama", {"rope_parameters": {**_LLAMA3, "rope_theta": 100.0, "original_max_position_embeddings": 16}, "mlp_bias": True},
    ),
    "llama, linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 3.0}, "attention_bias": True}),
    "phi, query and key norm": ("phi", {"qk_layernorm": True}),
    "t5, gated": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart, scaled": ("bart", {"scale_embedding": True}),
}  # fmt: skip
"""Options that wire a family otherwise."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {**{family: (family, {}) for family in FAMILIES}, **VARIANTS}
"""Every family, and every wiring: arguments of `tiny_model`."""
METHODS: dict[str, tuple[type[PromptLearningConfig], dict[str, Any]]] = {
    "prompt": (PromptTuningConfig, {}),
    "prefix": (PrefixTuningConfig, {}),
    "projected": (PrefixTuningConfig, {"prefix_projection": True, "encoder_hidden_size": 9}),
}


def tiny_values(family: str, **changes: Any) -> dict[str, Any]:
    """HF's config.json of a tiny model."""
    return {"model_type": family, **TINY[family], **changes}


def tiny_model(family: str, seed: int = 0, dtype: str = "float64", **changes: Any) -> BaseModel:
    """A base model with random weights of standard deviation 0.4, and with every head of its family."""
    config = ModelConfig.from_dict(tiny_values(family, **changes))
    return BaseModel(config, _random_parameters(config, seed, dtype, heads=True))


def hf_tensors(base: BaseModel, prefix: str | None = None) -> dict[str, Any]:
    """The tensors of a base model as HF's checkpoint holds them: names by the family's row, layouts written out here."""
    config, p = base.config, base.parameters
    family = FAMILIES[config.family]
    stored = config.stored_key_value_heads or config.num_key_value_heads
    tensors = {name.removeprefix(HEADS): value for name, value in p.items() if name.startswith(HEADS)}
    for canonical, source in family.weights(config).items():
        layers = config.stack("decoder").num_layers if canonical.startswith("decoder.") else config.num_layers
        for layer in range(layers if "{layer}" in canonical else 1):
            name, hf_name = canonical.format(layer=layer), source.name.format(layer=layer)
            if name not in p or (name == HEAD and p[HEAD] is p[TOKENS]):
                continue
            if source.fused and ".query." not in name:
                continue
            if source.fused:
                value = _fused(source.fused, p, name.replace(".query.", ".{}."), stored, config)
            else:
                value = p[name]
            tensors[_in_class(hf_name, family, prefix)] = value.T if source.transposed else value
    return tensors


def _in_class(name: str, family: Family, prefix: str | None) -> str:
    """A backbone's name as the classes with a head have it."""
    if name.startswith(("lm_head.", "final_logits_bias")) or family.model_type == "t5":
        return name
    return (family.prefix if prefix is None else prefix) + name


def _fused(layout: str, p: Mapping[str, Any], name: str, stored: int, config: ModelConfig) -> Any:
    """Queries, keys and values in one tensor: in three sections, or anew for each stored key/value head."""
    parts = [p[name.format(part)] for part in ("query", "key", "value")]
    query, key, value = (part.reshape(-1, config.head_dim, *part.shape[1:]) for part in parts)
    key, value = (part[:: len(part) // stored] for part in (key, value))  # without the repetitions
    if layout == "sections":
        heads = [*query, *key, *value]
    else:
        group = len(query) // stored
        heads = [
            head
            for kv in range(stored)
            for head in (*query[kv * group : (kv + 1) * group], key[kv], value[kv])
        ]
    return numpy.concatenate(heads)


def save_base(directory: Path, base: BaseModel, values: Mapping[str, Any], prefix: str | None = None) -> Path:
    """Write a base model as an HF directory; `values` is its config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(dict(values)))
    write_tensors(directory / "model.safetensors", hf_tensors(base, prefix), {"format": "pt"})
    return directory


def tasks_of(family: str) -> list[str]:
    """The task types that a model of the family can have."""
    row = FAMILIES[family]
    headless = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")
    return [task for task in fitting.TASKS[row.kind] if task in headless or task in row.heads]


ASKED = [(name, task) for name, (family, _) in MODELS.items() for task in tasks_of(family)]
"""Every model of every family, with every task that it can be asked."""


def tiny_adapter(
    base: BaseModel, method: str = "prompt", task: str = "", seed: int = 0, **fields: Any
) -> PeftModel:
    """A new adapter for the first or the named task; sizes that HF's rule would get wrong are given (CF-3)."""
    made, options = METHODS[method]
    own = base.config.stack("decoder")
    sizes: dict[str, Any] = {"num_virtual_tokens": VIRTUAL}
    if made is PromptTuningConfig and base.config.embedding_width != base.config.hidden_size:
        sizes["token_dim"] = base.config.embedding_width
    if made is PrefixTuningConfig and base.config.family in ("falcon", "t5"):
        heads = own.num_key_value_heads
        sizes |= {"token_dim": heads * own.head_dim, "num_attention_heads": heads}
    task = task or tasks_of(base.config.family)[0]
    return get_peft_model(base, made(task_type=task, **{**sizes, **options, **fields}), seed=seed)


def tiny_question(model: PeftModel, *, masked: bool = True, seed: int = 1) -> dict[str, Any]:
    """Two texts, the second without a mask's padding on the left, with all that the model's task has beside them."""
    base, task, random = model.base.config, model.config.task_type, numpy.random.default_rng(seed)
    ids = random.integers(3, base.vocab_size, (2, TOKENS_OF_TEXT))
    mask = numpy.ones_like(ids)
    mask[0, :2] = mask[1, -1:] = 0
    if masked:
        ids = numpy.where(mask == 1, ids, 0 if base.pad_token_id is None else base.pad_token_id)
    question: dict[str, Any] = {"input_ids": ids, "attention_mask": mask if masked else None}
    virtual = VIRTUAL if isinstance(model.config, PromptTuningConfig) else 0
    if task in ("SEQ_CLS", "TOKEN_CLS") and base.token_types:
        question["token_type_ids"] = random.integers(0, base.token_types, ids.shape)
    if task == "CAUSAL_LM":
        question["labels"] = numpy.where(mask == 1, ids, -100)
    elif task == "SEQ_2_SEQ_LM":
        labels = random.integers(3, base.vocab_size, (2, TOKENS_OF_DECODER))
        labels[1, -2:] = -100
        question["labels"] = labels
        question["decoder_attention_mask"] = (labels != -100).astype(int) if masked else None
    elif task == "SEQ_CLS":
        question["labels"] = random.integers(0, base.num_labels, 2)
    elif task == "TOKEN_CLS":
        question["labels"] = random.integers(0, base.num_labels, (2, virtual + TOKENS_OF_TEXT))
        question["labels"][0, :virtual] = -100
    elif task == "QUESTION_ANS":
        question |= {"start_positions": numpy.array([2, 4]), "end_positions": numpy.array([3, 6])}
    return {name: value for name, value in question.items() if value is not None}


def outputs_of(output: Any) -> Mapping[str, Any]:
    """What a forward pass says, by name, without the loss and the cache."""
    names = (
        "logits",
        "start_logits",
        "end_logits",
        "last_hidden_state",
        "pooler_output",
        "encoder_last_hidden_state",
    )
    return {name: value for name in names if (value := getattr(output, name)) is not None}
