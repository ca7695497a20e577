"""HF's checkpoints of every family: names, fused layouts, heads, what old files leave out, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from support import (
    MODELS,
    hf_tensors,
    save_base,
    tasks_of,
    tiny_adapter,
    tiny_model,
    tiny_question,
    tiny_values,
)

from refpeft.errors import CheckpointError
from refpeft.stored import Stored
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.families import FAMILIES
from refpeft.transformer.shapes import HEADS, parameter_shapes
from refpeft.transformer.weights import (
    HEAD,
    TOKENS,
    BaseModel,
    load_base_model,
    parameters_from_hf,
    word_embeddings,
)

FILE = Path("model.safetensors")
DOES_IT_BELONG = "Does config.json belong to these weights?"


def made(name: str, **others: Any) -> BaseModel:
    family, changes = MODELS[name]
    return tiny_model(family, **changes, **others)


def read(
    tensors: Mapping[str, Any], config: ModelConfig, dtype: str = "float64", **options: Any
) -> dict[str, Any]:
    return parameters_from_hf(tensors, config, numpy.dtype(dtype), FILE, **options)


def equal(given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert list(given) == list(expected)
    for name, value in expected.items():
        numpy.testing.assert_array_equal(given[name], value, err_msg=name)


@pytest.mark.parametrize("prefix", [None, ""])
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_comes_back(name: str, prefix: str | None) -> None:
    """Every parameter in its place, transposed and cut, with and without what the class puts before the names."""
    base = made(name)
    loaded = read(hf_tensors(base, prefix), base.config)
    equal({name: loaded[name] for name in base.parameters}, base.parameters)
    assert set(loaded) == set(base.parameters)
    tied = base.config.tie_word_embeddings and HEAD in loaded
    assert (loaded.get(HEAD) is loaded[TOKENS]) == tied
    shapes = {name: value.shape for name, value in loaded.items()}
    assert shapes == parameter_shapes(base.config)
    assert all(value.flags.writeable and value.flags.c_contiguous for value in loaded.values())


@pytest.mark.parametrize("name", MODELS)
def test_sizes_that_are_alike_do_not_hide_a_transposition(name: str) -> None:
    base = made(name, vocab_size=15)
    loaded = read(hf_tensors(base), base.config)
    equal({name: loaded[name] for name in base.parameters}, base.parameters)


# ---------------------------------------------------------------- fused layouts, decoded from numbers that say where they stood


def coded(shape: tuple[int, ...]) -> Any:
    """Each row its own index, whatever the column."""
    return numpy.broadcast_to(numpy.arange(shape[0], dtype=float).reshape(-1, *[1] * (len(shape) - 1)), shape)


LAYOUTS = {
    # row of head h's number c, in queries, in keys, in values; d numbers a head
    "gpt2": lambda d, heads, stored: (lambda h, c: h * d + c, lambda k, c: (heads + k) * d + c, lambda k, c: (2 * heads + k) * d + c),
    "gpt_bigcode": lambda d, heads, stored: (lambda h, c: h * d + c, lambda k, c: heads * d + c, lambda k, c: (heads + 1) * d + c),
    "gpt_bigcode, many keys": lambda d, heads, stored: tuple(lambda h, c, i=i: (3 * h + i) * d + c for i in range(3)),
    "gpt_neox": lambda d, heads, stored: tuple(lambda h, c, i=i: (3 * h + i) * d + c for i in range(3)),
    "bloom": lambda d, heads, stored: tuple(lambda h, c, i=i: (3 * h + i) * d + c for i in range(3)),
    "falcon": lambda d, heads, stored: (lambda h, c: h * d + c, lambda k, c: heads * d + c, lambda k, c: (heads + 1) * d + c),
    "falcon, alibi": lambda d, heads, stored: tuple(lambda h, c, i=i: (3 * h + i) * d + c for i in range(3)),
    # six heads in two groups: five rows of heads each; a key serves three heads, and is there once for each
    "falcon, grouped": lambda d, heads, stored: (
        lambda h, c: (h // 3 * 5 + h % 3) * d + c,
        lambda k, c: (k // 3 * 5 + 3) * d + c,
        lambda k, c: (k // 3 * 5 + 4) * d + c,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_where_queries_keys_and_values_stand(name: str) -> None:
    base = made(name)
    config, tensors = base.config, hf_tensors(base)
    (full,) = [
        key for key in tensors if ".1." in key and key.endswith(("c_attn.weight", "query_key_value.weight"))
    ]
    rows = coded(tensors[full].shape[::-1]).T if config.family == "gpt2" else coded(tensors[full].shape)
    loaded = read({**tensors, full: rows}, config)
    stored = config.stored_key_value_heads or config.num_key_value_heads
    places = LAYOUTS[name](config.head_dim, config.num_attention_heads, stored)
    for part, place in zip(("query", "key", "value"), places, strict=True):
        weight = loaded[f"layers.1.attention.{part}.weight"]
        heads = config.num_attention_heads if part == "query" else config.num_key_value_heads
        assert len(weight) == heads * config.head_dim
        for row in range(len(weight)):
            assert set(weight[row]) == {place(*divmod(row, config.head_dim))}, (part, row)


def test_falcon_s_stored_keys_are_fewer_than_those_of_the_cache() -> None:
    base = made("falcon, grouped")
    config = base.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.stored_key_value_heads) == (
        6,
        6,
        2,
    )
    key = base.parameters["layers.0.attention.key.weight"].reshape(6, 4, 24)
    for head in range(6):
        numpy.testing.assert_array_equal(key[head], key[head // 3 * 3])
    assert hf_tensors(base)["transformer.h.0.self_attention.query_key_value.weight"].shape == (2 * 5 * 4, 24)


# ---------------------------------------------------------------- old checkpoints


def test_the_norms_of_old_berts_say_gamma_and_beta() -> None:
    base = made("bert")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in hf_tensors(base).items()
    }
    assert sum("gamma" in name for name in old) == 7
    equal(read(old, base.config), read(hf_tensors(base), base.config))


def test_the_head_of_old_gpt_neox_is_embed_out() -> None:
    base = made("gpt_neox")
    tensors = hf_tensors(base)
    tensors["embed_out.weight"] = tensors.pop("lm_head.weight")
    equal(read(tensors, base.config), read(hf_tensors(base), base.config))


def test_bart_without_the_buffer_of_its_bias_has_none() -> None:
    base = made("bart")
    tensors = hf_tensors(base)
    del tensors["final_logits_bias"]
    expected = {name: value for name, value in base.parameters.items() if name != "head.bias"}
    assert set(read(tensors, base.config)) == set(expected)


IGNORED = {
    "gpt2": ("transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias"),
    "gpt_bigcode": ("transformer.h.1.attn.bias", "transformer.h.1.attn.masked_bias"),
    "gpt_neox": (
        "gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias", "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
    ),
    "llama": ("model.layers.0.self_attn.rotary_emb.inv_freq",),
    "mistral": ("model.layers.0.self_attn.rotary_emb.inv_freq",),
    "qwen2": ("model.layers.0.self_attn.rotary_emb.inv_freq",),
    "bert": ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids", "cls.predictions.decoder.weight", "cls.seq_relationship.bias"),
    "roberta": ("roberta.embeddings.position_ids", "lm_head.dense.weight", "lm_head.bias"),
    "electra": ("electra.embeddings.position_ids", "discriminator_predictions.dense.weight", "generator_lm_head.bias"),
    "t5": ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
    "bart": ("model.encoder.version", "model.decoder.version"),
}  # fmt: skip


@pytest.mark.parametrize("family", IGNORED)
def test_buffers_and_heads_that_nobody_adapts_are_left_out(family: str) -> None:
    base = made(family)
    tensors = hf_tensors(base)
    more = {name: numpy.ones((2, 2), bool) for name in IGNORED[family]}
    assert not more.keys() & tensors.keys()
    equal(read({**tensors, **more}, base.config), read(tensors, base.config))


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_copies_of_the_token_table_are_left_out(family: str) -> None:
    base = made(family)
    start = "model." if family == "bart" else ""
    copies = {
        f"{start}{stack}.embed_tokens.weight": base.parameters[TOKENS] for stack in ("encoder", "decoder")
    }
    equal(read({**hf_tensors(base), **copies}, base.config), read(hf_tensors(base), base.config))


def test_question_answering_in_the_classes_of_llama_says_transformer() -> None:
    base = made("llama")
    tensors = {
        name: value for name, value in hf_tensors(base, "transformer.").items() if name != "lm_head.weight"
    }
    loaded = read(tensors, base.config)
    assert set(loaded) == set(base.parameters) - {HEAD}
    equal({name: value for name, value in base.parameters.items() if name in loaded}, loaded)


# ---------------------------------------------------------------- heads


@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_alone_has_no_heads_of_classification(family: str) -> None:
    base = made(family)
    bare = {name: value for name, value in hf_tensors(base).items() if HEADS + name not in base.parameters}
    loaded = read(bare, base.config)
    assert set(loaded) == {name for name in base.parameters if not name.startswith(HEADS)}


UNTIED = ("gpt_neox", "llama", "mistral", "qwen2", "qwen3", "phi")


@pytest.mark.parametrize("family", UNTIED)
def test_a_classifier_alone_has_no_head_of_a_language_model(family: str) -> None:
    """Known by its own head, or by the class that config.json names."""
    base = made(family)
    tensors = {name: value for name, value in hf_tensors(base).items() if not name.startswith("lm_head.")}
    assert set(read(tensors, base.config)) == {
        name for name in base.parameters if not name.startswith("head.")
    }
    bare = {name: value for name, value in tensors.items() if HEADS + name not in base.parameters}
    with pytest.raises(CheckpointError) as caught:
        read(bare, base.config)
    listed = ", ".join(sorted(name.removeprefix(FAMILIES[family].prefix) for name in bare)[:5])
    assert str(caught.value) == (
        f"'model.safetensors' has no tensor 'lm_head.weight'. It holds {len(bare)} tensors: {listed} …. {DOES_IT_BELONG}"
    )
    named = ModelConfig.from_dict(tiny_values(family, architectures=["SomethingModel"]))
    assert HEAD not in read(bare, named)
    for architectures in (["LlamaForCausalLM"], ["GPT2LMHeadModel"], [], None, "LlamaModel"):
        with pytest.raises(CheckpointError, match=r"has no tensor 'lm_head.weight'"):
            read(bare, ModelConfig.from_dict(tiny_values(family, architectures=architectures)))


def test_a_head_of_another_number_of_classes() -> None:
    base = made("llama")
    with pytest.raises(CheckpointError) as caught:
        read(hf_tensors(base), ModelConfig.from_dict(tiny_values("llama", num_labels=3)))
    assert str(caught.value) == (
        f"'score.weight' in 'model.safetensors' has shape (8, 18); config.json says (3, 18). {DOES_IT_BELONG}"
    )


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", MODELS)
def test_each_tensor_is_missed(name: str) -> None:
    base = made(name)
    tensors = hf_tensors(base)
    family = FAMILIES[base.config.family]
    optional = {key for key in tensors if HEADS + key in base.parameters} | {"final_logits_bias"}
    alone = base.config.tie_word_embeddings and family.kind != "encoder"
    for missing in sorted(tensors.keys() - optional):
        left = {
            key: value for key, value in tensors.items() if key != missing and (key not in optional or alone)
        }
        plain = missing.removeprefix(family.prefix)
        if missing.startswith("lm_head.") and alone:
            continue
        with pytest.raises(CheckpointError) as caught:
            read(left, base.config)
        assert str(caught.value).startswith(
            f"'model.safetensors' has no tensor '{plain}'. It holds {len(left)} tensors"
        ), missing


@pytest.mark.parametrize("name", MODELS)
def test_a_tensor_of_another_model(name: str) -> None:
    base = made(name)
    for unknown in ("x.weight", "layers.9.mlp.up_proj.weight", "h.1.attn.c_attn.scale"):
        with pytest.raises(CheckpointError) as caught:
            read({**hf_tensors(base), unknown: numpy.zeros(2)}, base.config)
        assert str(caught.value) == (
            f"'model.safetensors' holds tensors that a {base.config.family} model does not have: {unknown}. {DOES_IT_BELONG}"
        )


@pytest.mark.parametrize("name", MODELS)
def test_each_tensor_is_measured(name: str) -> None:
    base = made(name)
    tensors = hf_tensors(base)
    for wrong, value in tensors.items():
        with pytest.raises(CheckpointError) as caught:
            read({**tensors, wrong: numpy.zeros((*value.shape, 2))}, base.config)
        plain = wrong.removeprefix(FAMILIES[base.config.family].prefix)
        assert str(caught.value) == (
            f"'{plain}' in 'model.safetensors' has shape {(*value.shape, 2)}; config.json says {value.shape}. {DOES_IT_BELONG}"
        )


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_stack_with_a_token_table_of_its_own(family: str, stack: str) -> None:
    base = made(family)
    own = {
        f"{FAMILIES[family].prefix * (family == 'bart')}{stack}.embed_tokens.weight": 2
        * base.parameters[TOKENS]
    }
    with pytest.raises(CheckpointError) as caught:
        read({**hf_tensors(base), **own}, base.config)
    assert str(caught.value) == (
        f"The {stack} of 'model.safetensors' does not read the token table 'shared.weight', which refpeft's encoder-decoders share: "
        "it has one of its own, or none at all though tie_word_embeddings is false."
    )


# ---------------------------------------------------------------- number formats, and matrices that stay in the file


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_number_formats(family: str, stored: Any, dtype: str) -> None:
    base = made(family)
    tensors = {name: value.astype(stored) for name, value in hf_tensors(base).items()}
    loaded = read(tensors, base.config, dtype)
    expected = base.map(lambda x: x.astype(stored).astype(dtype)).parameters
    equal({name: loaded[name] for name in expected}, expected)
    assert {value.dtype.name for value in loaded.values()} == {dtype}


@pytest.mark.parametrize("name", MODELS)
def test_a_lazy_model_computes_the_same(name: str, tmp_path: Path) -> None:
    family, changes = MODELS[name]
    base = made(name)
    directory = save_base(tmp_path, base.map(lambda x: x.astype("float32")), tiny_values(family, **changes))
    eager, lazy = load_base_model(directory), load_base_model(directory, lazy=True)
    equal(lazy.parameters, eager.parameters)
    matrices = {key for key, value in eager.parameters.items() if value.ndim == 2 and value.shape[0] > 1}
    assert {key for key, value in lazy.parameters.items() if isinstance(value, Stored)} == matrices
    for method in ("prompt", "prefix"):
        models = [tiny_adapter(model, method) for model in (eager, lazy)]
        outputs = [model.value_and_grad(**tiny_question(model)) for model in models]
        numpy.testing.assert_allclose(outputs[1][0], outputs[0][0], rtol=1e-12)
        for key, gradient in outputs[0][1].items():
            numpy.testing.assert_allclose(outputs[1][1][key], gradient, rtol=1e-9, atol=1e-14, err_msg=key)


def test_a_lazy_model_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    base = made("falcon, grouped")
    family, changes = MODELS["falcon, grouped"]
    base.parameters["layers.2.attention.value.weight"][3, 1] = numpy.nan
    directory = save_base(tmp_path, base, tiny_values(family, **changes))
    with pytest.raises(
        CheckpointError, match=r"'h.2.self_attention.query_key_value.weight' in .* holds 1 NaN"
    ):
        load_base_model(directory, lazy=True)


def test_word_embeddings_are_scaled_where_the_module_scales_them() -> None:
    ids = numpy.array([[3, 1]])
    for name, scale in {"gemma": 18**0.5, "gemma2": 18**0.5, "gemma3_text": 18**0.5, "bart": 1.0, "bart, scaled": 15**0.5, "t5": 1.0, "llama": 1.0}.items():  # fmt: skip
        base = made(name)
        numpy.testing.assert_array_equal(word_embeddings(base, ids), scale * base.parameters[TOKENS][ids])


def test_every_task_of_a_family_finds_its_head() -> None:
    for family in FAMILIES:
        base = made(family)
        for task in tasks_of(family):
            assert tiny_adapter(base, "prompt", task).config.task_type == task


def test_a_directory_is_read_as_it_is_named(tmp_path: Path) -> None:
    base = made("qwen3")
    directory = save_base(tmp_path / "base", base, tiny_values("qwen3"))
    loaded = load_base_model(directory)
    assert loaded.config.name_or_path == str(directory)
    assert json.loads((directory / "config.json").read_text())["model_type"] == "qwen3"
    equal({name: loaded.parameters[name] for name in base.parameters}, base.parameters)
