"""HF's checkpoints: names, layout, tied weights, number formats; what is refused, with what words."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from foreign import Foreign
from support import need, tiny_base

from refpeft.config import PrefixTuningConfig
from refpeft.errors import CheckpointError, ConfigError
from refpeft.peft_model import get_peft_model
from refpeft.stored import Stored
from refpeft.tensors import write_tensors
from refpeft.transformer.shapes import parameter_shapes
from refpeft.transformer.weights import BaseModel, embed_tokens, load_base_model

CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 43,
    "n_positions": 37,
    "n_embd": 15,
    "n_layer": 3,
    "n_head": 5,
    "n_inner": 22,
}


def hf_tensors(base: BaseModel, prefix: str = "transformer.") -> dict[str, Any]:
    """The tensors that HF's GPT2LMHeadModel saves for this model, written out name by name."""
    p = base.parameters
    tensors = {
        "wte.weight": p["embeddings.tokens.weight"],
        "wpe.weight": p["embeddings.positions.weight"],
        "ln_f.weight": p["final_norm.weight"],
        "ln_f.bias": p["final_norm.bias"],
    }
    for layer in range(base.config.num_layers):
        for kind in ("weight", "bias"):
            own = {name: p[f"layers.{layer}.{name}.{kind}"] for name in LAYER_NAMES}
            fused = numpy.concatenate([own[f"attention.{name}"] for name in ("query", "key", "value")])
            tensors |= {
                f"h.{layer}.ln_1.{kind}": own["input_norm"],
                f"h.{layer}.ln_2.{kind}": own["post_attention_norm"],
                f"h.{layer}.attn.c_attn.{kind}": fused.T,
                f"h.{layer}.attn.c_proj.{kind}": own["attention.output"].T,
                f"h.{layer}.mlp.c_fc.{kind}": own["mlp.up"].T,
                f"h.{layer}.mlp.c_proj.{kind}": own["mlp.down"].T,
            }
    tensors = {prefix + name: value for name, value in tensors.items()}
    return tensors if base.config.tie_word_embeddings else {**tensors, "lm_head.weight": p["head.weight"]}


LAYER_NAMES = (
    *("attention.query", "attention.key", "attention.value", "attention.output"),
    *("mlp.up", "mlp.down", "input_norm", "post_attention_norm"),
)


def write(directory: Path, tensors: dict[str, Any], **changes: Any) -> Path:
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    write_tensors(directory / "model.safetensors", tensors, {"format": "pt"})
    return directory


def equal(given: BaseModel, expected: BaseModel) -> None:
    assert set(given.parameters) == set(expected.parameters)
    for name, value in expected.parameters.items():
        numpy.testing.assert_array_equal(given.parameters[name], value, err_msg=name)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_with_and_without_the_prefix(tmp_path: Path, prefix: str, tied: bool) -> None:
    base = tiny_base(tie_word_embeddings=tied)
    loaded = load_base_model(write(tmp_path, hf_tensors(base, prefix), tie_word_embeddings=tied))
    equal(loaded, base)
    assert {value.dtype.name for value in loaded.parameters.values()} == {"float64"}
    assert loaded.config.name_or_path == str(tmp_path)


def test_sizes_that_are_alike_do_not_hide_a_transposition(tmp_path: Path) -> None:
    sizes = {"vocab_size": 8, "n_positions": 8, "n_embd": 8, "n_head": 2, "n_inner": 8}
    base = tiny_base(**sizes)
    equal(load_base_model(write(tmp_path, hf_tensors(base), **sizes)), base)


def test_tied_weights_are_one_array(tmp_path: Path) -> None:
    base = load_base_model(write(tmp_path, hf_tensors(tiny_base())))
    for model in (base, base.map(lambda x: x.astype("float32")), base.map(Foreign)):
        assert model.parameters["head.weight"] is model.parameters["embeddings.tokens.weight"]


def test_an_untied_head_stays_apart(tmp_path: Path) -> None:
    base = tiny_base(tie_word_embeddings=False)
    loaded = load_base_model(write(tmp_path, hf_tensors(base), tie_word_embeddings=False))
    for model in (loaded, loaded.map(Foreign)):
        assert model.parameters["head.weight"] is not model.parameters["embeddings.tokens.weight"]


def test_a_tied_checkpoint_may_hold_the_head_too(tmp_path: Path) -> None:
    base = tiny_base()
    head = base.parameters["head.weight"]
    loaded = load_base_model(write(tmp_path, {**hf_tensors(base), "lm_head.weight": head}))
    equal(loaded, base)
    assert loaded.parameters["head.weight"] is loaded.parameters["embeddings.tokens.weight"]


def test_a_tied_checkpoint_with_another_head_is_untied(tmp_path: Path) -> None:
    """As HF does: two different tensors in the file are not tied, whatever the configuration says."""
    base = tiny_base()
    head = 2.0 * base.parameters["head.weight"]
    loaded = load_base_model(write(tmp_path, {**hf_tensors(base), "lm_head.weight": head}))
    numpy.testing.assert_array_equal(loaded.parameters["head.weight"], head)
    numpy.testing.assert_array_equal(
        loaded.parameters["embeddings.tokens.weight"], base.parameters["embeddings.tokens.weight"]
    )


def test_a_tied_checkpoint_with_the_head_alone(tmp_path: Path) -> None:
    """As HF does: the one tensor that is there is both."""
    base = tiny_base()
    tensors = hf_tensors(base)
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    equal(load_base_model(write(tmp_path, tensors)), base)


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("heads", ["none", "equal", "other", "alone"])
def test_tying_is_hf_s(tmp_path: Path, heads: str) -> None:
    transformers = need("transformers")
    base = tiny_base(dtype="float32")
    tensors = hf_tensors(base)
    table = tensors["transformer.wte.weight"]
    if heads == "alone":
        del tensors["transformer.wte.weight"]
    if heads != "none":
        tensors["lm_head.weight"] = 2 * table if heads == "other" else table
    directory = write(tmp_path, tensors)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(directory)
    ours = load_base_model(directory, dtype="float32").parameters
    numpy.testing.assert_array_equal(theirs.lm_head.weight.detach().numpy(), ours["head.weight"])
    numpy.testing.assert_array_equal(
        theirs.transformer.wte.weight.detach().numpy(), ours["embeddings.tokens.weight"]
    )


def test_map_keeps_the_configuration_and_calls_once_for_each_array() -> None:
    base, seen = tiny_base(), []
    mapped = base.map(lambda x: seen.append(x) or x * 2)
    assert mapped.config is base.config
    assert len(seen) == len(base.parameters) - 1
    numpy.testing.assert_array_equal(
        mapped.parameters["final_norm.bias"], 2 * base.parameters["final_norm.bias"]
    )
    assert list(mapped.parameters) == list(base.parameters)


def test_buffers_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    base = tiny_base()
    buffers = {f"h.{layer}.attn.bias": numpy.ones((1, 1, 37, 37), bool) for layer in range(3)}
    buffers |= {f"h.{layer}.attn.masked_bias": numpy.array(-1e4, "float32") for layer in range(3)}
    equal(load_base_model(write(tmp_path, {**hf_tensors(base, ""), **buffers})), base)


@pytest.mark.parametrize("stored", ["float16", ml_dtypes.bfloat16, "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_number_formats(tmp_path: Path, stored: Any, dtype: str) -> None:
    base = tiny_base()
    tensors = {name: value.astype(stored) for name, value in hf_tensors(base).items()}
    loaded = load_base_model(write(tmp_path, tensors), dtype=dtype)
    equal(loaded, base.map(lambda x: x.astype(stored).astype(dtype)))
    assert {value.dtype.name for value in loaded.parameters.values()} == {dtype} == {loaded.dtype.name}


def test_rows_of_the_token_table() -> None:
    table = numpy.arange(8.0).reshape(4, 2)
    assert embed_tokens(table, numpy.array([[3, 0], [1, 1]])).tolist() == [[[6, 7], [0, 1]], [[2, 3], [2, 3]]]


# ---------------------------------------------------------------- what is refused

Tensors = dict[str, Any]
DOES_IT_BELONG = "Does config.json belong to these weights?"


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def with_one(name: str, value: Any) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: value}


BAD: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing": (
        without("transformer.h.1.ln_2.bias"),
        (
            "'{file}' has no tensor 'h.1.ln_2.bias'. It holds 39 tensors: h.0.attn.c_attn.bias, h.0.attn.c_attn.weight, "
            f"h.0.attn.c_proj.bias, h.0.attn.c_proj.weight, h.0.ln_1.bias …. {DOES_IT_BELONG}"
        ),
    ),
    "none": (
        lambda _: {},
        f"config.json says 3 layers, but '{{file}}' holds 0 tensors, not even one for each. {DOES_IT_BELONG}",
    ),
    "transposed": (
        with_one("transformer.h.0.mlp.c_fc.weight", numpy.zeros((22, 15))),
        f"'h.0.mlp.c_fc.weight' in '{{file}}' has shape (22, 15); config.json says (15, 22). {DOES_IT_BELONG}",
    ),
    "not fused": (
        with_one("transformer.h.2.attn.c_attn.bias", numpy.zeros(15)),
        f"'h.2.attn.c_attn.bias' in '{{file}}' has shape (15,); config.json says (45,). {DOES_IT_BELONG}",
    ),
    "another vocabulary": (
        with_one("transformer.wte.weight", numpy.zeros((44, 15))),
        f"'wte.weight' in '{{file}}' has shape (44, 15); config.json says (43, 15). {DOES_IT_BELONG}",
    ),
    "quantised": (
        with_one("transformer.h.0.mlp.c_proj.weight", numpy.zeros((22, 15), numpy.int8)),
        (
            "'h.0.mlp.c_proj.weight' in '{file}' has dtype int8; weights must be one of float64, float32, float16, "
            "bfloat16. Quantised checkpoints cannot be read: save the model in a floating-point format."
        ),
    ),
    "NaN": (
        with_one("transformer.ln_f.bias", numpy.array([0.0] * 4 + [numpy.nan] + [0.0] * 10, "float32")),
        (
            "'ln_f.bias' in '{file}' holds 1 NaN or infinite values, the first at index (4,): nan. Weights must be finite; "
            "look at how the file was made."
        ),
    ),
    "one tensor of another model": (
        with_one("transformer.h.3.ln_1.bias", numpy.zeros(15)),
        f"'{{file}}' holds tensors that a gpt2 model does not have: h.3.ln_1.bias. {DOES_IT_BELONG}",
    ),
    "many tensors of another model": (
        lambda tensors: {**tensors, **{f"x{i}": numpy.zeros(1) for i in range(6)}},
        f"'{{file}}' holds tensors that a gpt2 model does not have: x0, x1, x2, x3, x4 …. {DOES_IT_BELONG}",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_weights_that_do_not_fit(tmp_path: Path, name: str) -> None:
    change, expected = BAD[name]
    write(tmp_path, change(hf_tensors(tiny_base())))
    with pytest.raises(CheckpointError) as caught:
        load_base_model(tmp_path)
    assert str(caught.value) == expected.format(file=tmp_path / "model.safetensors")


def test_an_untied_head_that_is_missing(tmp_path: Path) -> None:
    write(tmp_path, hf_tensors(tiny_base()), tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"has no tensor 'lm_head.weight'"):
        load_base_model(tmp_path)


@pytest.mark.parametrize("data", [b"", b"junk", struct.pack("<Q", 2**60) + b"{}"])
def test_damaged_weights(tmp_path: Path, data: bytes) -> None:
    write(tmp_path, {})
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load_base_model(tmp_path)
    assert str(caught.value) == (
        f"'{tmp_path / 'model.safetensors'}' cannot be read as safetensors ({caught.value.__cause__}). The file of the "
        "base model's weights is truncated or damaged: copy or write it again."
    )


def test_truncated_weights(tmp_path: Path) -> None:
    file = write(tmp_path, hf_tensors(tiny_base())) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is truncated or damaged: copy or write it again"):
        load_base_model(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError) as caught:
        load_base_model(tmp_path)
    assert (
        str(caught.value)
        == f"Can't find 'model.safetensors' at '{tmp_path}', which holds the base model's weights."
    )


def test_pickled_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError) as caught:
        load_base_model(tmp_path)
    assert str(caught.value) == (
        f"'{tmp_path}' has pytorch_model.bin but no model.safetensors. refpeft does not unpickle: load the model with "
        "transformers and save it again with save_pretrained(directory), which writes safetensors."
    )


def test_an_index_without_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        load_base_model(tmp_path)
    assert str(caught.value) == (
        f"'{tmp_path / 'model.safetensors.index.json'}' does not lead to the base model's weights: it must have 'metadata', an "
        "object ({…}), but it has none. Copy all files of one model into one directory, or save the model again with "
        "save_pretrained(directory)."
    )


def test_another_architecture(tmp_path: Path) -> None:
    write(tmp_path, hf_tensors(tiny_base()), model_type="opt", hidden_size=15, num_attention_heads=5)
    with pytest.raises(CheckpointError) as caught:
        load_base_model(tmp_path)
    assert str(caught.value) == (
        f"'{tmp_path / 'model.safetensors'}' has no tensor 'decoder.embed_tokens.weight'. It holds 40 tensors: "
        "h.0.attn.c_attn.bias, h.0.attn.c_attn.weight, h.0.attn.c_proj.bias, h.0.attn.c_proj.weight, h.0.ln_1.bias …. "
        f"{DOES_IT_BELONG}"
    )


def test_an_adapter_is_no_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        load_base_model(tmp_path)
    assert str(caught.value) == (
        f"'{tmp_path}' is an adapter, not a base model: it has adapter_config.json but no config.json. "
        "Give the directory of the base model, which that file names as base_model_name_or_path."
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_a_working_precision_that_refpeft_does_not_have(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_base_model(tmp_path, dtype=dtype)
    assert str(caught.value) == f"dtype must be 'float32' or 'float64', not {dtype!r}."


def test_numbers_too_large_for_float32(tmp_path: Path) -> None:
    """Finite in the file's float64, infinite in float32: refused as well."""
    huge = numpy.full(15, 1e300)
    write(tmp_path, {**hf_tensors(tiny_base()), "transformer.ln_f.bias": huge})
    assert load_base_model(tmp_path).parameters["final_norm.bias"][0] == 1e300
    with pytest.raises(CheckpointError, match=r"ln_f\.bias"):
        load_base_model(tmp_path, dtype="float32")


# ---------------------------------------------------------------- matrices that stay in the file


@pytest.mark.parametrize("stored", ["float16", ml_dtypes.bfloat16, "float32", "float64"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_lazy_model_computes_the_same(tmp_path: Path, stored: Any, tied: bool) -> None:
    base = tiny_base(tie_word_embeddings=tied)
    tensors = {name: value.astype(stored) for name, value in hf_tensors(base).items()}
    directory = write(tmp_path, tensors, tie_word_embeddings=tied)
    eager, lazy = load_base_model(directory), load_base_model(directory, lazy=True)
    equal(lazy, eager)
    assert lazy.dtype == numpy.float64
    matrices = {name for name, value in eager.parameters.items() if value.ndim == 2}
    assert {name for name, value in lazy.parameters.items() if isinstance(value, Stored)} == matrices
    assert (lazy.parameters["head.weight"] is lazy.parameters["embeddings.tokens.weight"]) == tied
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ids = numpy.array([[1, 2, 3], [4, 5, 42]])
    outputs = [get_peft_model(model, config, seed=0).value_and_grad(ids, ids) for model in (eager, lazy)]
    numpy.testing.assert_allclose(outputs[1][0], outputs[0][0], rtol=1e-12)
    for name, gradient in outputs[0][1].items():
        numpy.testing.assert_allclose(outputs[1][1][name], gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", BAD)
def test_a_lazy_model_is_refused_when_it_is_loaded(tmp_path: Path, name: str) -> None:
    change, expected = BAD[name]
    write(tmp_path, change(hf_tensors(tiny_base())))
    with pytest.raises(CheckpointError) as caught:
        load_base_model(tmp_path, lazy=True)
    assert str(caught.value) == expected.format(file=tmp_path / "model.safetensors")


def test_loaded_weights_are_the_caller_s_own(tmp_path: Path) -> None:
    """Not views of the file: they may be written to, and the file may go."""
    directory = write(tmp_path, hf_tensors(tiny_base()))
    base = load_base_model(directory)
    assert all(value.flags.writeable and value.flags.c_contiguous for value in base.parameters.values())


def test_parameter_shapes() -> None:
    base = tiny_base(tie_word_embeddings=False)
    shapes = {name: value.shape for name, value in base.parameters.items()}
    heads = {
        "heads.score.weight": (2, 15), "heads.classifier.weight": (2, 15), "heads.classifier.bias": (2,),
        "heads.qa_outputs.weight": (2, 15), "heads.qa_outputs.bias": (2,),
    }  # fmt: skip
    assert parameter_shapes(base.config) == shapes | heads


def test_a_thousand_million_layers(tmp_path: Path) -> None:
    """Nothing is made for each layer before the file is seen to have so many."""
    tensors = hf_tensors(tiny_base())
    write(tmp_path, tensors)
    path = tmp_path / "config.json"
    values = {**json.loads(path.read_text()), "n_layer": 10**9}
    values.pop("num_hidden_layers", None)
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as caught:
        load_base_model(tmp_path)
    assert str(caught.value) == (
        f"config.json says 1000000000 layers, but '{tmp_path / 'model.safetensors'}' holds {len(tensors)} tensors, not even "
        "one for each. Does config.json belong to these weights?"
    )
