"""Prefixes from caches, from texts, and of several adapters: layouts, the golden identity, and whole messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from safetensors.numpy import load_file, save_file
from support import MODELS, relative_error, tiny_base, tiny_model, tiny_values
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from refpeft import kv_prefix
from refpeft.config import PrefixTuningConfig, PromptTuningConfig
from refpeft.errors import CheckpointError, ConfigError, InputError, RefpeftError
from refpeft.kv_prefix import (
    compose_prefix_adapters,
    initialize_kv_prefix_from_past_key_values,
    initialize_kv_prefix_from_text,
    prompt_embeddings_from_past_key_values,
)
from refpeft.peft_model import PeftModel, get_peft_model
from refpeft.transformer.families import FAMILIES

EMBEDDING = "prompt_encoder.embedding.weight"
WEIGHTS = "adapter_model.safetensors"
GPT2 = tiny_base()  # 3 layers, 5 heads of 3
DECODERS = [name for name, (family, _) in MODELS.items() if FAMILIES[family].kind == "decoder"]


def prefix(virtual: int = 3, task: str = "CAUSAL_LM", **fields: Any) -> PrefixTuningConfig:
    return PrefixTuningConfig(task_type=task, num_virtual_tokens=virtual, **fields)


def fitting(family: str, changes: dict[str, Any]) -> dict[str, Any]:
    """What has to be given where HF's rule finds other sizes than those of the cache."""
    values = tiny_values(family, **changes)
    if family == "falcon" and not values.get("new_decoder_architecture") and values.get("multi_query", True):
        return {"token_dim": values["hidden_size"] // values["num_attention_heads"], "num_attention_heads": 1}
    return {}


def refusal(call: Callable[[], Any], kind: type[RefpeftError] = InputError) -> str:
    with pytest.raises(RefpeftError) as caught:
        call()
    assert type(caught.value) is kind
    return str(caught.value)


def cache(layers: int = 3, tokens: int = 5, heads: int = 5, head_dim: int = 3, batch: int = 1) -> list[Any]:
    """Numbers that say what they are: layer, key or value, head, token, place."""
    index = numpy.indices((batch, heads, tokens, head_dim)).astype(float)
    states = 1000 * index[1] + 10 * index[2] + index[3]
    return [(100000 * layer + states, 100000 * layer + 50000 + states) for layer in range(layers)]


# ---------------------------------------------------------------- from a cache


def test_the_layout() -> None:
    """One row for each token; in it layers, key before value, heads, places."""
    flat = prompt_embeddings_from_past_key_values(
        cache(layers=2, tokens=4, heads=2, head_dim=3), num_virtual_tokens=2
    )
    row = [0, 1, 2, 1000, 1001, 1002, 50000, 50001, 50002, 51000, 51001, 51002]
    row += [100000 + number for number in row]
    assert flat.tolist() == [row, [number + 10 for number in row]]


def test_a_cache_becomes_the_prefix() -> None:
    model = get_peft_model(GPT2, prefix(3))
    model.add_adapter("b", prefix(5))
    flat = initialize_kv_prefix_from_past_key_values(model, past_key_values=cache())
    numpy.testing.assert_array_equal(model.parameters()[EMBEDDING], flat)
    for layer, (key, value) in enumerate(model.get_prompt(2)):  # type: ignore[arg-type]
        for row in range(2):
            numpy.testing.assert_array_equal(key[row], cache()[layer][0][0, :, :3])
            numpy.testing.assert_array_equal(value[row], cache()[layer][1][0, :, :3])
    flat = initialize_kv_prefix_from_past_key_values(model, past_key_values=iter(cache()), adapter_name="b")
    assert flat.shape == (5, 90)
    model.set_adapter("b")
    numpy.testing.assert_array_equal(model.parameters()[EMBEDDING], flat)


def test_the_format_is_the_first_keys_and_then_the_adapters() -> None:
    pairs = [(key.astype("float32"), value) for key, value in cache()]
    assert prompt_embeddings_from_past_key_values(pairs, num_virtual_tokens=2).dtype == numpy.float32
    halves = [(key.astype(ml_dtypes.bfloat16), value) for key, value in cache()]
    model = get_peft_model(tiny_base(dtype="float32"), prefix(3))
    assert (
        initialize_kv_prefix_from_past_key_values(model, past_key_values=halves).dtype == ml_dtypes.bfloat16
    )
    assert model.parameters()[EMBEDDING].dtype == numpy.float32


def uneven(**changes: Any) -> list[Any]:
    return [cache()[0], cache(**changes)[1]]


FORM = (
    "Unsupported `past_key_values` type. Expected a legacy tuple/list, an object with `to_legacy_cache()`, or an iterable of (key, "
    "value) tuples."
)


@pytest.mark.parametrize(
    ("past", "words"),
    [
        (5, FORM),
        (numpy.zeros((3, 3, 1, 5, 5, 3)), FORM),
        ([5], FORM),
        ([], "Empty `past_key_values`."),
        ([(numpy.zeros((5, 5, 3)),) * 2], "Expected key/value tensors with rank 4, got key.ndim=3."),
        (
            cache(batch=2),
            "This helper expects `past_key_values` from a single-sequence prefill (batch=1). Got batch=2.",
        ),
        (cache(tokens=2), "Need at least 3 cached tokens, got 2."),
        (uneven(heads=4), "Inconsistent head shapes across layers in `past_key_values`."),
        ([(cache()[0][0], numpy.zeros((5, 5, 3)))], "Inconsistent head shapes across layers in `past_key_values`."),
        (
            uneven(tokens=2),
            "Not enough cached tokens in `past_key_values` for the requested cartridge length.",
        ),
        (uneven(head_dim=2), "Inconsistent head_dim across layers in `past_key_values`."),
        (cache(layers=2), "Invalid `prompt_embeddings` shape. Expected (3, 90), got (3, 60)."),
        (
            cache(heads=3, head_dim=5),
            "The cache has 3 heads of 5, the adapter 5 of 3: HF takes the numbers in another order. Is the cache this base model's?",
        ),
        ([(key * numpy.nan, value) for key, value in cache()], f"'{EMBEDDING}' holds NaN or infinite values. Parameters must be finite."),
        ([(key + 1j, value) for key, value in cache()], "Keys and values must be real numbers, got complex128."),
    ],
)  # fmt: skip
def test_caches_that_are_none(past: Any, words: str) -> None:
    model = get_peft_model(GPT2, prefix(3))
    before = model.parameters()[EMBEDDING]
    assert refusal(lambda: initialize_kv_prefix_from_past_key_values(model, past_key_values=past)) == words
    numpy.testing.assert_array_equal(model.parameters()[EMBEDDING], before)


def test_numbers_of_tokens_that_are_not_the_adapters() -> None:
    model = get_peft_model(GPT2, prefix(3))
    for virtual in (2, 4):
        assert refusal(
            lambda: initialize_kv_prefix_from_past_key_values(model, past_key_values=cache(), num_virtual_tokens=virtual)  # noqa: B023
        ) == f"Invalid `prompt_embeddings` shape. Expected (3, 90), got ({virtual}, 90)."  # fmt: skip
    assert refusal(lambda: prompt_embeddings_from_past_key_values(cache(), num_virtual_tokens=0)) == (
        "num_virtual_tokens must be at least 1, not 0."
    )


def test_adapters_that_cannot_be_started(tmp_path: Path) -> None:
    projected = get_peft_model(GPT2, prefix(3, prefix_projection=True))
    projected.save_pretrained(tmp_path)
    words = "Initialization from KV cache is not supported for prefix tuning with `prefix_projection=True`."
    for model in (projected, PeftModel.from_pretrained(GPT2, tmp_path)):
        for call in (
            lambda: initialize_kv_prefix_from_past_key_values(model, past_key_values=cache()),  # noqa: B023
            lambda: initialize_kv_prefix_from_text(model, tmp_path, text="a"),  # noqa: B023
        ):
            assert refusal(call, ConfigError) == words
    model = get_peft_model(GPT2, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert refusal(
        lambda: initialize_kv_prefix_from_past_key_values(model, past_key_values=cache()), ConfigError
    ) == "Adapter 'default' must be a CARTRIDGE or PREFIX_TUNING adapter (got PeftType.PROMPT_TUNING)."  # fmt: skip
    assert refusal(
        lambda: initialize_kv_prefix_from_past_key_values(projected, past_key_values=cache(), adapter_name="zz")
    ) == "There is no adapter 'zz'; there are default."  # fmt: skip


# ---------------------------------------------------------------- from a text


def make_tokenizer(directory: Path, vocabulary: int = 43) -> Path:
    """The words t0, t1, …; t1 is put before a text and t2 behind it."""
    words = {f"t{i}": i for i in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="t1 $A t2", special_tokens=[("t1", 1), ("t2", 2)]
    )
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.mark.parametrize("name", DECODERS)
def test_the_golden_identity(name: str, tmp_path: Path) -> None:
    """With the prefix of a text of three tokens the model computes what the base does behind that text."""
    family, changes = MODELS[name]
    base = tiny_model(family, **changes)
    model = get_peft_model(base, prefix(3, **fitting(family, changes)), seed=1)
    flat = initialize_kv_prefix_from_text(model, make_tokenizer(tmp_path / "tokenizer"), text="t9")
    following = numpy.array([[7, 30, 2, 2, 11, 40]])
    with model.disable_adapter():
        whole = model(numpy.concatenate([[[1, 9, 2]], following], axis=1)).logits
        states = model(numpy.array([[1, 9, 2]])).past_key_values
    assert relative_error(model(following).logits, whole[:, 3:]) < 1e-13
    assert relative_error(model(following[:, :1]).logits, whole[:, 3:4]) < 1e-13
    for layer, (key, value) in enumerate(states):
        width = key.shape[1] * key.shape[3]
        stored = flat[:, 2 * layer * width :][:, : 2 * width].reshape(3, 2, key.shape[1], key.shape[3])
        assert relative_error(stored[:, 0].swapaxes(0, 1), key[0]) < 1e-14
        assert relative_error(stored[:, 1].swapaxes(0, 1), value[0]) < 1e-14


def test_the_first_tokens_of_a_longer_text(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    model = get_peft_model(GPT2, prefix(2))
    flats = [
        initialize_kv_prefix_from_text(model, path, text="t9 t8 t7", **given)  # type: ignore[arg-type]
        for path, given in (
            (tokenizer, {}),
            (str(tokenizer / "tokenizer.json"), {"use_chat_template": False}),
            (tokenizer, {"max_length": 4}),  # t1 t9 t8 t2
            (tokenizer, {"max_length": 3}),  # t1 t9 t2
        )
    ]
    for flat in flats:
        assert relative_error(flat, flats[0]) < 1e-14
    with model.disable_adapter():
        past = model(numpy.array([[1, 9]])).past_key_values
    assert (
        relative_error(prompt_embeddings_from_past_key_values(past, num_virtual_tokens=2), flats[0]) < 1e-14
    )


def test_a_text_is_cut_between_its_special_tokens(tmp_path: Path) -> None:
    model, tokenizer = get_peft_model(GPT2, prefix(3)), make_tokenizer(tmp_path / "tokenizer")
    flat = initialize_kv_prefix_from_text(model, tokenizer, text="t9 t8 t7", max_length=3)
    with model.disable_adapter():
        past = model(numpy.array([[1, 9, 2]])).past_key_values
    assert relative_error(flat, prompt_embeddings_from_past_key_values(past, num_virtual_tokens=3)) < 1e-14


def test_what_a_cache_keeps_of_a_window() -> None:
    """Window 4: the last three positions, of every family; the first of these are taken, whatever their places in the text."""
    for family in ("mistral", "gemma2"):
        base = tiny_model(family)
        windows = base.config.sliding_windows or ()
        past = tuple((key, 2 * key) for key in [numpy.arange(5.0).reshape(1, 1, 5, 1)] * 3)
        for window, (key, value) in zip(windows, kv_prefix.kept(past, base.config), strict=True):
            first = 2 if window == 4 else 0
            assert key.ravel().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0][first:]
            assert value.ravel().tolist() == [0.0, 2.0, 4.0, 6.0, 8.0][first:]
    assert set(windows) == {4, None}


def test_a_text_longer_than_a_window(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    model = get_peft_model(tiny_model("mistral"), prefix(3))
    flat = initialize_kv_prefix_from_text(model, tokenizer, text="t9 t8 t7")
    with model.disable_adapter():
        past = model(numpy.array([[1, 9, 8, 7, 2]])).past_key_values
    last = [(key[:, :, 2:], value[:, :, 2:]) for key, value in past]
    numpy.testing.assert_array_equal(flat, prompt_embeddings_from_past_key_values(last, num_virtual_tokens=3))
    model = get_peft_model(tiny_model("mistral"), prefix(4))
    assert refusal(lambda: initialize_kv_prefix_from_text(model, tokenizer, text="t9 t8 t7")) == (
        "Need at least 4 cached tokens, got 3."
    )


def test_behind_an_encoder(tmp_path: Path) -> None:
    """BART's decoder reads the text, shifted; T5's has nothing to read."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    base = tiny_model("bart", decoder_layers=3)
    model = get_peft_model(base, prefix(2, "SEQ_2_SEQ_LM"))
    flat = initialize_kv_prefix_from_text(model, tokenizer, text="t9 t8")
    ids = numpy.array([[1, 9, 8, 2]])
    with model.disable_adapter():
        past = model(ids, decoder_input_ids=numpy.array([[2, 1, 9, 8]])).past_key_values
    assert relative_error(flat, prompt_embeddings_from_past_key_values(past, num_virtual_tokens=2)) < 1e-14
    model = get_peft_model(tiny_model("t5"), prefix(2, "SEQ_2_SEQ_LM", token_dim=20))
    assert refusal(lambda: initialize_kv_prefix_from_text(model, tokenizer, text="t9 t8")) == (
        "HF gives the text to the encoder alone, and a t5 model then fails for want of something to decode. Use "
        "initialize_kv_prefix_from_past_key_values with a cache of its decoder."
    )


def test_texts_and_tokenizers_that_are_none(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    model = get_peft_model(GPT2, prefix(4))

    def start(**given: Any) -> str:
        arguments = {"tokenizer": tokenizer, "text": "t9", **given}
        with pytest.raises(RefpeftError) as caught:
            initialize_kv_prefix_from_text(model, **arguments)
        return str(caught.value)

    assert start() == "Need at least 4 cached tokens, got 3."
    assert start(max_length=0) == "max_length must be at least 1, not 0."
    assert start(text="t9 " * 40).startswith("0 virtual tokens and 42 tokens need 42 positions")
    assert start(tokenizer=tmp_path) == (
        f"No tokenizer.json at '{tmp_path}'. refpeft reads local files only: save the tokenizer there, with "
        "tokenizer.save_pretrained(directory)."
    )
    assert start(tokenizer=tmp_path / "none").startswith(f"No tokenizer.json at '{tmp_path / 'none'}'.")
    (tmp_path / "empty").mkdir()
    plain = json.loads((tokenizer / "tokenizer.json").read_text())
    (tmp_path / "empty/tokenizer.json").write_text(json.dumps({**plain, "post_processor": None}))
    assert start(tokenizer=tmp_path / "empty", text="") == (
        "The tokenizer gives no tokens for the text, so there is nothing to start from."
    )
    classifier = get_peft_model(tiny_model("gpt2"), prefix(2, "SEQ_CLS"))
    assert refusal(lambda: initialize_kv_prefix_from_text(classifier, tokenizer, text="t9")) == (
        "The adapter of a model for SEQ_CLS cannot be disabled: HF fails (UnboundLocalError), since only models that generate "
        "have the method that it replaces."
    )


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_is_not_run(where: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    model = get_peft_model(GPT2, prefix(2))
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    initialize_kv_prefix_from_text(model, tokenizer, text="t9")
    (tokenizer / where).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    for path in (tokenizer, tokenizer / "tokenizer.json"):
        assert refusal(lambda: initialize_kv_prefix_from_text(model, path, text="t9"), ConfigError) == (  # noqa: B023
            f"The tokenizer at '{path}' has a chat template, which HF puts the text into and refpeft does not run. Give "
            "use_chat_template=False to take the text as it is."
        )
        initialize_kv_prefix_from_text(model, path, text="t9", use_chat_template=False)


# ---------------------------------------------------------------- of several


def test_prefixes_one_behind_the_other(tmp_path: Path) -> None:
    paths = []
    for number, (virtual, fields) in enumerate(
        (
            (2, {"base_model_name_or_path": "here"}),
            (3, {"prefix_projection": True, "encoder_hidden_size": 4}),
            (1, {}),
        )
    ):
        base = GPT2 if number else type(GPT2)(GPT2.config, GPT2.parameters)
        get_peft_model(base, prefix(virtual, **fields), seed=number).save_pretrained(tmp_path / str(number))  # type: ignore[arg-type]
        paths.append(tmp_path / str(number))
    compose_prefix_adapters([paths[0], str(paths[1]), paths[2]], output_path=tmp_path / "all")
    parts = [load_file(path / WEIGHTS)["prompt_embeddings"] for path in paths]
    (composed,) = load_file(tmp_path / "all" / WEIGHTS).values()
    numpy.testing.assert_array_equal(composed, numpy.concatenate(parts))
    written = [
        json.loads((path / "adapter_config.json").read_text()) for path in (paths[0], tmp_path / "all")
    ]
    assert written[1] == {**written[0], "num_virtual_tokens": 6}
    whole = PeftModel.from_pretrained(GPT2, tmp_path / "all")
    assert whole.config.num_virtual_tokens == 6
    for number, (first, last) in enumerate(((0, 2), (2, 5), (5, 6))):
        part = PeftModel.from_pretrained(GPT2, paths[number])
        for (key, value), (own_key, own_value) in zip(whole.get_prompt(1), part.get_prompt(1), strict=True):  # type: ignore[arg-type]
            numpy.testing.assert_array_equal(key[:, :, first:last], own_key)
            numpy.testing.assert_array_equal(value[:, :, first:last], own_value)


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        (("float32", "float32"), "float32"),
        (("float16", "float16"), "float16"),
        (("float32", "float64"), "float64"),
        (("bfloat16", "bfloat16"), "bfloat16"),
        (("bfloat16", "float16"), "float32"),
    ],
)
def test_formats_are_joined_as_torch_joins_them(
    formats: tuple[str, str], expected: str, tmp_path: Path
) -> None:
    get_peft_model(GPT2, prefix(2)).save_pretrained(tmp_path / "a")
    get_peft_model(GPT2, prefix(2)).save_pretrained(tmp_path / "b")
    for name, kind in zip("ab", formats, strict=True):
        save_file(
            {"prompt_embeddings": numpy.ones((2, 90), ml_dtypes.bfloat16 if kind == "bfloat16" else kind)},
            tmp_path / name / WEIGHTS,
        )
    compose_prefix_adapters([tmp_path / "a", tmp_path / "b"], output_path=tmp_path / "c")
    (composed,) = load_file(tmp_path / "c" / WEIGHTS).values()
    assert (str(composed.dtype), composed.shape) == (expected, (4, 90))


def test_adapters_that_cannot_be_composed(tmp_path: Path) -> None:
    def saved(name: str, model: PeftModel) -> Path:
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    def compose(*names: str) -> str:
        with pytest.raises(RefpeftError) as caught:
            compose_prefix_adapters([tmp_path / name for name in names], output_path=tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    saved("a", get_peft_model(GPT2, prefix(2)))
    prompt = saved(
        "prompt", get_peft_model(GPT2, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    )
    saved("short", get_peft_model(tiny_base(n_layer=2), prefix(2)))
    saved("other heads", get_peft_model(tiny_base(n_head=3), prefix(2)))
    headed = saved("head", get_peft_model(GPT2, prefix(2, modules_to_save=["lm_head"])))
    saved("features", get_peft_model(GPT2, prefix(2, "FEATURE_EXTRACTION")))
    narrow = saved("narrow", get_peft_model(GPT2, prefix(2)))
    save_file({"prompt_embeddings": numpy.ones((2, 60))}, narrow / WEIGHTS)
    assert compose("a") == compose() == "Need at least 2 adapters to compose."
    assert (
        compose("a", "prompt")
        == f"Adapter at '{prompt}' is not a PREFIX_TUNING adapter (got PeftType.PROMPT_TUNING)."
    )
    words = "Incompatible PREFIX_TUNING configs for attribute '{}'."
    assert compose("a", "short") == words.format("num_layers")
    assert compose("a", "other heads") == words.format("num_attention_heads")
    assert compose("a", "features") == words.format("task_type")
    assert compose("a", "head") == (
        f"'{headed}' also holds base_model.lm_head.weight: HF leaves heads out of what it composes, and the result cannot be loaded."
    )
    assert compose("a", "narrow") == (
        f"'prompt_embeddings' in '{narrow}' has 60 numbers for each virtual token, that in '{tmp_path / 'a'}' 90. Do their "
        "adapter_config.json belong to them?"
    )
    (tmp_path / "a" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="adapter_model"):
        compose_prefix_adapters([tmp_path / "a", tmp_path / "a"], output_path=tmp_path / "out")
