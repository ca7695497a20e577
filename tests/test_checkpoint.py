"""Adapter directories: what is written, what comes back, and everything that is refused."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from support import tiny_base

from refpeft import checkpoint, files, prefix_encoder
from refpeft.config import PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from refpeft.errors import CheckpointError, ConfigError
from refpeft.fill_in import fill_in
from refpeft.peft_model import PeftModel, get_peft_model
from refpeft.tensors import read_tensors, write_tensors

EMBEDDING = "prompt_encoder.embedding.weight"
SIZES = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
CONFIGS = {
    "prompt": PromptTuningConfig(**SIZES),
    "vocabulary": PromptTuningConfig(**SIZES, prompt_tuning_init="SAMPLE_VOCAB"),
    "prefix": PrefixTuningConfig(**SIZES),
    "projected": PrefixTuningConfig(**SIZES, prefix_projection=True, encoder_hidden_size=11),
}
IDS = numpy.array([[5, 1, 40, 2, 2], [7, 7, 0, 3, 42]])
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A good adapter of prefix tuning, for the tests to spoil."""
    get_peft_model(tiny_base(), CONFIGS["prefix"]).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_round_trip(tmp_path: Path, config: PromptLearningConfig, dtype: str) -> None:
    base = tiny_base(dtype=dtype)
    model = get_peft_model(base, config, seed=9)
    model.save_pretrained(tmp_path / "new" / "adapter")
    loaded = PeftModel.from_pretrained(base, tmp_path / "new" / "adapter")
    assert loaded.config.inference_mode
    assert not model.config.inference_mode
    ((name, table),) = loaded.trainable_parameters().items()
    assert name == EMBEDDING
    assert table.dtype == numpy.dtype(dtype)
    expected = checkpoint.prompt_embeddings(model.trainable_parameters(), model.config)
    numpy.testing.assert_array_equal(table, expected)
    inputs: dict[str, Any] = {"input_ids": IDS, "labels": IDS}
    assert loaded(**inputs).loss == model(**inputs).loss
    numpy.testing.assert_array_equal(loaded(**inputs).logits, model(**inputs).logits)
    loaded.save_pretrained(tmp_path / "again")
    for file in (WEIGHTS, CONFIG):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "new" / "adapter" / file).read_bytes()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_the_files_are_hfs(tmp_path: Path, config: PromptLearningConfig) -> None:
    model = get_peft_model(tiny_base(), config)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    tensors = read_tensors(tmp_path / WEIGHTS, "the test")
    assert {name: value.shape for name, value in tensors.items()} == {
        "prompt_embeddings": (4, 15 if isinstance(config, PromptTuningConfig) else 90)
    }
    assert json.loads((tmp_path / CONFIG).read_text())["inference_mode"] is True
    data = (tmp_path / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert json.loads(data[8 : 8 + length])["__metadata__"] == {"format": "pt"}


def test_a_projection_is_saved_evaluated(tmp_path: Path) -> None:
    model = get_peft_model(tiny_base(), CONFIGS["projected"])
    model.save_pretrained(tmp_path)
    saved = read_tensors(tmp_path / WEIGHTS, "the test")["prompt_embeddings"]
    numpy.testing.assert_array_equal(saved, prefix_encoder.flat(model.trainable_parameters(), model.config))


@pytest.mark.parametrize("stored", ["float16", ml_dtypes.bfloat16, "float32"])
def test_other_number_formats_are_read(adapter: Path, stored: Any) -> None:
    values = numpy.random.default_rng(0).normal(size=(4, 90)).astype(stored)
    write_tensors(adapter / WEIGHTS, {"prompt_embeddings": values})
    table = PeftModel.from_pretrained(tiny_base(), adapter).trainable_parameters()[EMBEDDING]
    numpy.testing.assert_array_equal(table, values.astype("float64"))
    assert table.dtype == numpy.float64


def test_a_loaded_adapter_is_differentiated(adapter: Path) -> None:
    _, gradients = PeftModel.from_pretrained(tiny_base(), adapter).value_and_grad(input_ids=IDS, labels=IDS)
    assert gradients[EMBEDDING].shape == (4, 90)
    assert gradients[EMBEDDING].any()


def test_loading_is_inference_whatever_the_file_says(tmp_path: Path) -> None:
    """A projection that says it is still training would ask for parameters that no file holds."""
    model = get_peft_model(tiny_base(), CONFIGS["projected"])
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**values, "inference_mode": False}))
    loaded = PeftModel.from_pretrained(tiny_base(), tmp_path)
    assert loaded.config.inference_mode
    numpy.testing.assert_array_equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


# ---------------------------------------------------------------- writing that fails


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError) as caught:
        get_peft_model(tiny_base(), CONFIGS["prompt"]).save_pretrained(tmp_path / "file")
    assert str(caught.value) == f"Provided path ({tmp_path / 'file'}) should be a directory, not a file"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError) as caught:
        get_peft_model(tiny_base(), CONFIGS["prompt"]).save_pretrained(tmp_path / "file" / "adapter")
    assert (
        str(caught.value) == f"Can't write the adapter to '{tmp_path / 'file' / 'adapter'}': Not a directory."
    )


@pytest.mark.parametrize("failing", [0, 1], ids=["weights", "configuration"])
def test_a_failed_write_leaves_the_old_files_whole(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    old = {path.name: path.read_bytes() for path in adapter.iterdir()}
    calls, write = [], os.fsync

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > failing:
            raise OSError(28, "No space left on device")
        write(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    model = get_peft_model(tiny_base(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7))
    with pytest.raises(CheckpointError) as caught:
        model.save_pretrained(adapter)
    assert str(caught.value) == f"Can't write the adapter to '{adapter}': No space left on device."
    new = {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert sorted(new) == [CONFIG, WEIGHTS]
    assert new[CONFIG] == old[CONFIG]
    assert (new[WEIGHTS] == old[WEIGHTS]) is (failing == 0)


def test_a_failed_first_write_leaves_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(CheckpointError):
        get_peft_model(tiny_base(), CONFIGS["prompt"]).save_pretrained(tmp_path / "adapter")
    assert list((tmp_path / "adapter").iterdir()) == []


# ---------------------------------------------------------------- what is refused


def refused(adapter: Path, error: type[ValueError] = CheckpointError, **changes: Any) -> str:
    with pytest.raises(error) as caught:
        PeftModel.from_pretrained(tiny_base(**changes), adapter)
    return str(caught.value)


def test_no_weights(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    assert refused(adapter) == f"Can't find '{WEIGHTS}' at '{adapter}', which holds the adapter's weights."


def test_pickled_weights(adapter: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert refused(adapter) == (
        f"'{adapter}' has adapter_model.bin but no {WEIGHTS}. refpeft does not unpickle: load the adapter with peft and "
        "save it again with save_pretrained(directory), which writes safetensors."
    )


def test_no_configuration(adapter: Path) -> None:
    (adapter / CONFIG).unlink()
    assert refused(adapter, ConfigError) == (
        f"Can't find '{CONFIG}' at '{adapter}': that directory has no such file. Give the directory that holds the "
        "adapter's configuration."
    )


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(adapter: Path, keep: int) -> None:
    path = adapter / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError) as caught:
        PeftModel.from_pretrained(tiny_base(), adapter)
    assert str(caught.value) == (
        f"'{path}' cannot be read as safetensors ({caught.value.__cause__}). The file of the adapter's weights is "
        "truncated or damaged: copy or write it again."
    )


@pytest.mark.parametrize(
    ("names", "held"), [((), "none"), (("base.lora_B", "base.lora_A"), "base.lora_A, base.lora_B")]
)
def test_weights_without_the_tensor(adapter: Path, names: tuple[str, ...], held: str) -> None:
    write_tensors(adapter / WEIGHTS, {name: numpy.zeros(2) for name in names})
    assert refused(adapter) == (
        f"'{adapter / WEIGHTS}' has no tensor 'prompt_embeddings'; it holds {held}. HF peft saves one tensor of that "
        "name: the prompt's table, or the flat prefix after any projection."
    )


@pytest.mark.parametrize(
    ("dtype", "shape"), [("int8", (4, 90)), ("bool", (4, 90)), ("float32", (360,)), ("float32", (1, 4, 90))]
)
def test_a_tensor_that_is_no_matrix_of_floats(adapter: Path, dtype: str, shape: tuple[int, ...]) -> None:
    write_tensors(adapter / WEIGHTS, {"prompt_embeddings": numpy.zeros(shape, dtype)})
    assert refused(adapter) == (
        f"'prompt_embeddings' in '{adapter / WEIGHTS}' is {dtype} of shape {shape}; it must be a floating-point matrix "
        "with one row for each virtual token."
    )


def test_weights_that_are_not_finite(adapter: Path) -> None:
    values = numpy.zeros((4, 90), "float32")
    values[1, 2] = numpy.inf
    write_tensors(adapter / WEIGHTS, {"prompt_embeddings": values})
    assert refused(adapter) == (
        f"'prompt_embeddings' in '{adapter / WEIGHTS}' holds 1 NaN or infinite values, the first at index (1, 2): inf. "
        "Weights must be finite; look at how the file was made."
    )


@pytest.mark.parametrize("shape", [(5, 90), (4, 60), (90, 4)])
def test_a_prefix_of_another_shape(adapter: Path, shape: tuple[int, int]) -> None:
    write_tensors(adapter / WEIGHTS, {"prompt_embeddings": numpy.zeros(shape)})
    assert refused(adapter) == (
        f"'prompt_embeddings' in '{adapter}' has shape {shape}; with its adapter_config.json and this base model it must "
        "be (4, 90), a row for each virtual token. Was the adapter trained for another base model?"
    )


def test_a_prompt_of_another_shape(tmp_path: Path) -> None:
    get_peft_model(tiny_base(), CONFIGS["prompt"]).save_pretrained(tmp_path)
    write_tensors(tmp_path / WEIGHTS, {"prompt_embeddings": numpy.zeros((4, 90))})
    assert refused(tmp_path) == (
        f"'prompt_embeddings' in '{tmp_path}' has shape (4, 90); with its adapter_config.json and this base model it "
        "must be (4, 15), a row for each virtual token. Was the adapter trained for another base model?"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"n_embd": 20},
            "token_dim is 15, but this base model needs 20. Leave it out, or was the adapter made for another base model?",
        ),
        (
            {"n_layer": 2},
            (
                "num_layers and num_attention_heads are 3 and 5, but this base model has 2 layers and 5 key/value heads. "
                "Leave them out, or was the adapter made for another base model?"
            ),
        ),
        (
            {"n_head": 3},
            (
                "num_layers and num_attention_heads are 3 and 5, but this base model has 3 layers and 3 key/value heads. "
                "Leave them out, or was the adapter made for another base model?"
            ),
        ),
    ],
)
def test_an_adapter_of_another_base(adapter: Path, changes: dict[str, int], expected: str) -> None:
    assert refused(adapter, ConfigError, **changes) == expected


def test_numbers_too_large_for_float32(adapter: Path) -> None:
    """Finite in the file's float64, infinite in float32: refused as well."""
    write_tensors(adapter / WEIGHTS, {"prompt_embeddings": numpy.full((4, 90), 1e300)})
    PeftModel.from_pretrained(tiny_base(), adapter)
    with pytest.raises(CheckpointError, match="prompt_embeddings"):
        PeftModel.from_pretrained(tiny_base(dtype="float32"), adapter)


@pytest.mark.parametrize("given", [None, "somewhere/else"])
def test_the_base_model_s_name_is_filled_in_when_saving(tmp_path: Path, given: str | None) -> None:
    """Where the configuration names none, as HF does in `save_pretrained`."""
    base = tiny_base()
    base = replace(base, config=replace(base.config, name_or_path="a/base"))
    model = PeftModel(
        base,
        fill_in(PrefixTuningConfig(task_type="CAUSAL_LM", base_model_name_or_path=given), base.config.hf),
        {"prompt_encoder.embedding.weight": numpy.ones((20, 90))},
    )
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == (given or "a/base")
    assert model.config.base_model_name_or_path == given
