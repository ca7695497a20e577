"""CF-8: the base model's configuration, by complete values and messages, and against real transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import need

from refpeft.config import PrefixTuningConfig, PromptTuningConfig
from refpeft.errors import ConfigError
from refpeft.fill_in import fill_in
from refpeft.transformer.config import ModelConfig

ONE = "an integer from 1 to 2147483648"
SUPPORTED = (
    "gpt2, opt, gpt_neox, bloom, gpt_bigcode, falcon, llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, phi, bert, "
    "roberta, electra, t5, bart"
)
DEFAULTS = {
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "pad_token_id": None,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
STANDARD = ModelConfig(
    family="gpt2",
    vocab_size=50257,
    hidden_size=768,
    num_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    head_dim=64,
    intermediate_size=3072,
    max_position_embeddings=1024,
    activation="gelu_new",
    norm_epsilon=1e-5,
    attention_scale=0.125,
    scale_attention_by_inverse_layer=False,
    tie_word_embeddings=True,
    pad_token_id=None,
    bos_token_id=50256,
    eos_token_id=50256,
    dtype=None,
    name_or_path="",
    hf={"model_type": "gpt2", "num_hidden_layers": 12} | DEFAULTS,
)


def gpt2(**values: Any) -> ModelConfig:
    return ModelConfig.from_dict({"model_type": "gpt2"} | values)


def message(function: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    return str(caught.value)


def test_defaults() -> None:
    assert gpt2() == STANDARD


def test_every_key() -> None:
    values = {
        "model_type": "gpt2",
        "vocab_size": 31,
        "n_embd": 12,
        "n_layer": 2,
        "n_head": 3,
        "n_inner": 20,
        "n_positions": 40,
        "activation_function": "relu",
        "layer_norm_epsilon": 1e-3,
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": [1, 2],
        "torch_dtype": "float16",
        "_name_or_path": "somewhere",
        "anything": {"else": 1},
    }
    assert ModelConfig.from_dict(values) == ModelConfig(
        family="gpt2",
        vocab_size=31,
        hidden_size=12,
        num_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=4,
        intermediate_size=20,
        max_position_embeddings=40,
        activation="relu",
        norm_epsilon=1e-3,
        attention_scale=1.0,
        scale_attention_by_inverse_layer=True,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=[1, 2],
        dtype="float16",
        name_or_path="somewhere",
        hf=values | {"num_hidden_layers": 2},
    )


def test_common_names_win() -> None:
    config = gpt2(
        n_embd=6, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=9
    )
    assert (config.hidden_size, config.num_layers, config.head_dim, config.max_position_embeddings) == (
        8,
        3,
        4,
        9,
    )
    assert config.intermediate_size == 32


def test_dtype_and_name() -> None:
    assert gpt2(dtype="bfloat16", torch_dtype="float16").dtype == "bfloat16"
    assert gpt2(dtype=None, torch_dtype="float16").dtype == "float16"
    assert gpt2(name_or_path="a").name_or_path == "a"
    assert gpt2(name_or_path="a", _name_or_path="b").name_or_path == "b"


def test_the_mapping_is_copied() -> None:
    values = {"model_type": "gpt2", "eos_token_id": [1]}
    config = ModelConfig.from_dict(values)
    values["eos_token_id"].append(2)
    assert (config.eos_token_id, config.hf["eos_token_id"]) == ([1], [1])


def test_fill_in_sees_the_defaults() -> None:
    filled = fill_in(PrefixTuningConfig(), gpt2(n_embd=24, num_layers=7).hf)
    assert (filled.num_layers, filled.token_dim, filled.num_attention_heads) == (12, 24, 12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"n_embd": 10, "n_head": 3},
            "`embed_dim` must be divisible by num_heads (got `embed_dim`: 10 and `num_heads`: 3).",
        ),
        ({"n_layer": 0}, f"n_layer of the base model must be {ONE}, not 0 (int)."),
        ({"n_layer": True}, f"n_layer of the base model must be {ONE}, not True (bool)."),
        ({"vocab_size": "5"}, f"vocab_size of the base model must be {ONE}, not '5' (str)."),
        ({"n_embd": None}, f"n_embd of the base model must be {ONE}, not None (NoneType)."),
        ({"hidden_size": 8.0}, f"hidden_size of the base model must be {ONE}, not 8.0 (float)."),
        ({"n_positions": 2**31 + 1}, f"n_positions of the base model must be {ONE}, not 2147483649 (int)."),
        ({"n_inner": 0}, f"n_inner of the base model must be {ONE} or None, not 0 (int)."),
        (
            {"activation_function": None},
            "activation_function of the base model must be a string, not None (NoneType).",
        ),
        (
            {"layer_norm_epsilon": 1},
            "layer_norm_epsilon of the base model must be a finite number with a decimal point, at least 0, not 1 (int).",
        ),
        (
            {"tie_word_embeddings": 1},
            "tie_word_embeddings of the base model must be true or false, not 1 (int).",
        ),
        ({"pad_token_id": "0"}, "pad_token_id of the base model must be an integer or None, not '0' (str)."),
        (
            {"eos_token_id": [1, "2"]},
            "eos_token_id of the base model must be an integer, a list of integers, or None, not [1, '2'] (list).",
        ),
        ({"dtype": 16}, "dtype of the base model must be a string or None, not 16 (int)."),
        (
            {"add_cross_attention": True},
            (
                "add_cross_attention of the base model is not supported: "
                "refpeft's GPT-2 is a decoder alone, without cross-attention."
            ),
        ),
        (
            {"reorder_and_upcast_attn": True},
            (
                "reorder_and_upcast_attn of the base model is not supported: HF then computes scores and "
                "softmax in float32, refpeft in its working precision; set it to false, which changes rounding only."
            ),
        ),
        (
            {"per_layer_config": {"0": {"n_head": 1}}},
            "per_layer_config of the base model is not supported: refpeft's layers are all alike.",
        ),
        ({"model_type": "mamba"}, f"Unknown model_type 'mamba' of the base model. Supported: {SUPPORTED}."),
        ({"model_type": None}, f"Unknown model_type None of the base model. Supported: {SUPPORTED}."),
        (
            {"peft_type": "LORA"},
            "This is the configuration of an adapter (peft_type 'LORA'), not of a base model.",
        ),
    ],
)
def test_what_is_refused(values: dict[str, Any], expected: str) -> None:
    assert message(ModelConfig.from_dict, {"model_type": "gpt2"} | values) == expected


def test_no_model_type() -> None:
    assert message(ModelConfig.from_dict, {"n_layer": 2}) == (
        f"The base model's configuration has no model_type, which says how to read it. Supported: {SUPPORTED}."
    )


def test_from_pretrained(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "_name_or_path": "elsewhere"}')
    hf = {**STANDARD.hf, "_name_or_path": "elsewhere"}
    expected = replace(STANDARD, name_or_path=str(tmp_path), hf=hf)
    assert ModelConfig.from_pretrained(tmp_path) == expected
    assert ModelConfig.from_pretrained(str(tmp_path)) == expected


def test_directories_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert message(ModelConfig.from_pretrained, tmp_path / "no") == (
        f"Can't find 'config.json' at '{tmp_path / 'no'}': there is no such directory. "
        "Give the directory that holds the base model's configuration."
    )
    assert message(ModelConfig.from_pretrained, tmp_path) == (
        f"Can't find 'config.json' at '{tmp_path}': that directory has no such file. "
        "Give the directory that holds the base model's configuration."
    )
    PromptTuningConfig().save_pretrained(tmp_path)
    assert message(ModelConfig.from_pretrained, tmp_path) == (
        f"'{tmp_path}' is an adapter, not a base model: it has adapter_config.json but no config.json. "
        "Give the directory of the base model, which that file names as base_model_name_or_path."
    )


def test_broken_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": }')
    assert message(ModelConfig.from_pretrained, tmp_path) == (
        f"'{tmp_path / 'config.json'}' is not valid JSON: Expecting value, line 1, column 16. "
        "Correct the base model's configuration there, or write it anew."
    )


# The real HF transformers; fields and `fill_in` of every family in test_configs_of_families.py


@pytest.mark.live
def test_live_heads_message() -> None:
    modeling = need("transformers.models.gpt2.modeling_gpt2")
    values = {"n_embd": 10, "n_head": 3, "n_layer": 1, "vocab_size": 50300}
    with pytest.raises(ValueError, match="divisible") as theirs:
        modeling.GPT2Model(modeling.GPT2Config(**values))
    assert message(ModelConfig.from_dict, {"model_type": "gpt2"} | values) == str(theirs.value)


@pytest.mark.live
def test_live_file(tmp_path: Path) -> None:
    transformers = need("transformers")
    transformers.GPT2Config(dtype="float16").save_pretrained(str(tmp_path))
    ours = ModelConfig.from_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    expected = replace(
        STANDARD, dtype="float16", name_or_path=str(tmp_path), hf=written | {"num_hidden_layers": 12}
    )
    assert ours == expected


def test_a_configuration_nested_too_deeply() -> None:
    value: dict[str, object] = {}
    for _ in range(400):
        value = {"a": value}
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict({"model_type": "gpt2", "b": value})
    shown = repr({"model_type": "gpt2", "b": value})[:77]
    assert str(caught.value) == (
        f"The base model's configuration must be nested at most 100 deep, not {shown}... (dict)."
    )
