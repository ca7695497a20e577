"""The table of virtual tokens: initial values from torch's stream, a vocabulary or a text; where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import need, tiny_base
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from refpeft import arrays, prompt_embedding
from refpeft.config import PromptTuningConfig
from refpeft.errors import ConfigError, InputError
from refpeft.fill_in import fill_in
from refpeft.prompt_embedding import EMBEDDING
from refpeft.torch_random import Generator, embedding

LIKE = numpy.zeros(1)
TABLE = numpy.random.default_rng(2).normal(size=(43, 15))


def config_of(**fields: Any) -> PromptTuningConfig:
    return fill_in(
        PromptTuningConfig(task_type="CAUSAL_LM", **{"num_virtual_tokens": 4, **fields}),
        {"hidden_size": 15, "num_hidden_layers": 3, "num_attention_heads": 5},
    )


def initial(config: PromptTuningConfig, seed: int = 3, like: Any = LIKE, vocab_size: int = 43) -> Any:
    parameters = prompt_embedding.initial_parameters(
        config, Generator(seed), lambda ids: TABLE[ids], vocab_size, like
    )
    assert list(parameters) == [EMBEDDING] == ["prompt_encoder.embedding.weight"]
    return parameters[EMBEDDING]


def write_tokenizer(path: Path) -> Path:
    """Words a, b, c are 5, 6, 7; every text is put between the special tokens 1 and 2."""
    unknown = "[UNK]"
    words = {unknown: 0, "[CLS]": 1, "[SEP]": 2, "a": 5, "b": 6, "c": 7, "far": 43}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("stored", ["padding", "truncation", "both"])
def test_padding_and_truncation_that_the_file_asks_for_are_switched_off(tmp_path: Path, stored: str) -> None:
    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path) / "tokenizer.json"))
    if stored != "truncation":
        tokenizer.enable_padding(length=9)
    if stored != "padding":
        tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert prompt_embedding.tokenize(str(tmp_path), "a b c").tolist() == [1, 5, 6, 7, 2]


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
def test_stored_padding_and_truncation_are_switched_off_by_hf_too(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path) / "tokenizer.json"))
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(2)
    fast = need("transformers").PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert fast("a b c")["input_ids"] == [1, 5, 6, 7, 2]


def text_config(path: Path, text: str = "a b c", **fields: Any) -> PromptTuningConfig:
    return config_of(
        prompt_tuning_init="TEXT", prompt_tuning_init_text=text, tokenizer_name_or_path=str(path), **fields
    )


def test_the_parameters_are_one_table() -> None:
    assert prompt_embedding.parameter_shapes(config_of()) == {EMBEDDING: (4, 15)}
    assert prompt_embedding.parameter_shapes(config_of(num_transformer_submodules=2)) == {EMBEDDING: (8, 15)}


def test_token_dim_must_be_known() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_transformer_submodules=1)
    with pytest.raises(ConfigError) as caught:
        prompt_embedding.parameter_shapes(config)
    assert str(caught.value) == (
        "token_dim is not set. Fill the configuration in from the base model: fill_in(config, base_config)."
    )


def test_every_row_of_the_batch_sees_the_same_tokens() -> None:
    table = numpy.arange(6.0).reshape(3, 2)
    prompts = prompt_embedding.forward({EMBEDDING: table}, 4)
    assert prompts.tolist() == [table.tolist()] * 4


def test_the_gradient_is_summed_over_the_batch() -> None:
    weights = numpy.arange(24.0).reshape(4, 3, 2)
    _, gradients = arrays.value_and_grad(
        lambda p: arrays.sum(prompt_embedding.forward(p, 4) * weights), {EMBEDDING: numpy.zeros((3, 2))}
    )
    assert gradients[EMBEDDING].tolist() == (weights[0] + weights[1] + weights[2] + weights[3]).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_virtual_tokens_come_first_in_the_texts_dtype(dtype: str) -> None:
    prompts, text = numpy.full((2, 3, 4), 0.1, numpy.float64), numpy.full((2, 5, 4), 2.0, dtype)
    joined = prompt_embedding.prepend(prompts, text)
    numpy.testing.assert_array_equal(joined[:, :3], prompts.astype(dtype))
    numpy.testing.assert_array_equal(joined[:, 3:], text)
    assert joined.dtype == numpy.dtype(dtype)


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [
        ([5, 6, 7], 2, [5, 6]),
        ([5, 6, 7], 3, [5, 6, 7]),
        ([5, 6, 7], 7, [5, 6, 7, 5, 6, 7, 5]),
        ([5, 6, 7], 6, [5, 6, 7, 5, 6, 7]),
        ([9], 3, [9, 9, 9]),
    ],
)
def test_ids_are_cut_on_the_right_or_repeated(text: list[int], total: int, expected: list[int]) -> None:
    ids = prompt_embedding.fit_token_ids(numpy.array(text), total)
    assert ids.tolist() == expected
    assert ids.dtype == numpy.int64


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 20))
def test_id_i_is_that_of_the_text_modulo_its_length(text: list[int], total: int) -> None:
    ids = prompt_embedding.fit_token_ids(numpy.array(text), total)
    assert ids.tolist() == [text[i % len(text)] for i in range(total)]


def test_a_text_without_tokens() -> None:
    with pytest.raises(ConfigError) as caught:
        prompt_embedding.fit_token_ids(numpy.array([], dtype=numpy.int64), 3)
    assert str(caught.value) == (
        "prompt_tuning_init_text gives no tokens, so there is nothing to start from. Give a text of at least one "
        "token, or choose prompt_tuning_init='RANDOM'."
    )


# ---------------------------------------------------------------- initial values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_random_is_torchs_normal_in_float32(dtype: str) -> None:
    values = initial(config_of(), like=numpy.zeros(1, dtype))
    numpy.testing.assert_array_equal(values, embedding(Generator(3), 4, 15).astype(dtype))
    assert values.dtype == numpy.dtype(dtype)
    assert (initial(config_of(), seed=4) != values).all()


def test_sample_vocab_draws_and_drops_a_table_first() -> None:
    generator = Generator(3)
    embedding(generator, 4, 15)
    ids = generator.randint(0, 43, (4,))
    expected = TABLE.astype("float32")[ids]  # HF keeps a prompt in float32, also beside a wider table
    numpy.testing.assert_array_equal(initial(config_of(prompt_tuning_init="SAMPLE_VOCAB")), expected)


def test_sample_vocab_draws_from_the_whole_vocabulary_with_replacement() -> None:
    config = config_of(prompt_tuning_init="SAMPLE_VOCAB", num_virtual_tokens=200)
    rows = {tuple(row) for row in initial(config, vocab_size=3)}
    assert rows == {tuple(row) for row in TABLE[:3].astype("float32").astype("float64")}


@pytest.mark.parametrize(
    ("total", "expected"), [(3, [1, 5, 6]), (5, [1, 5, 6, 7, 2]), (7, [1, 5, 6, 7, 2, 1, 5])]
)
def test_text_includes_special_tokens(tmp_path: Path, total: int, expected: list[int]) -> None:
    values = initial(text_config(write_tokenizer(tmp_path), num_virtual_tokens=total))
    numpy.testing.assert_array_equal(values, TABLE[expected].astype("float32"))


def test_the_tokenizer_may_be_named_by_its_file(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        ids = prompt_embedding.tokenize(str(path), "b a")
        assert ids.tolist() == [1, 6, 5, 2]
        assert ids.dtype == numpy.int64


@pytest.mark.parametrize("init", ["SAMPLE_VOCAB", "TEXT"])
def test_in_inference_mode_every_choice_is_random(init: str, tmp_path: Path) -> None:
    fields = (
        {"prompt_tuning_init_text": "a", "tokenizer_name_or_path": str(tmp_path)} if init == "TEXT" else {}
    )
    values = initial(config_of(prompt_tuning_init=init, inference_mode=True, **fields))
    numpy.testing.assert_array_equal(values, initial(config_of()))


def test_rows_come_through_the_embedding_module_in_its_dtype() -> None:
    config = config_of(prompt_tuning_init="SAMPLE_VOCAB")
    doubled = prompt_embedding.initial_parameters(config, Generator(3), lambda ids: 2 * TABLE[ids], 43, LIKE)
    numpy.testing.assert_array_equal(doubled[EMBEDDING], 2 * initial(config))


def test_a_model_of_a_text(tmp_path: Path) -> None:
    from refpeft.peft_model import get_peft_model

    base = tiny_base()
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=6,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="c",
        tokenizer_name_or_path=str(write_tokenizer(tmp_path)),
    )
    given_values = get_peft_model(base, config).trainable_parameters()[EMBEDDING]
    expected = base.parameters["embeddings.tokens.weight"][[1, 7, 2, 1, 7, 2]]
    numpy.testing.assert_array_equal(given_values, expected.astype("float32"))


# ---------------------------------------------------------------- errors


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        initial(text_config(tmp_path / "none"))
    assert str(caught.value) == (
        f"No tokenizer.json at '{tmp_path / 'none'}', which tokenizer_name_or_path names. refpeft reads local files "
        "only: save the tokenizer there, with tokenizer.save_pretrained(directory)."
    )


def test_a_broken_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        initial(text_config(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / 'tokenizer.json'} is not a tokenizer.json that the tokenizers library can read: "
        "Model missing. at line 1 column 2"
    )


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        initial(text_config(write_tokenizer(tmp_path), text="a far"))
    assert str(caught.value) == (
        f"The tokenizer at {tmp_path} gives token id 43 for the init text, but the base model's vocabulary has 43 "
        "rows. Use the base model's own tokenizer."
    )


def test_tokenizer_kwargs_are_refused_but_for_trust(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    initial(text_config(tmp_path, tokenizer_kwargs={"trust_remote_code": True}))
    with pytest.raises(ConfigError) as caught:
        initial(text_config(tmp_path, tokenizer_kwargs={"trust_remote_code": True, "use_fast": False}))
    assert str(caught.value) == (
        "tokenizer_kwargs is {'use_fast': False}; they configure transformers' AutoTokenizer, and refpeft reads "
        "tokenizer.json as it is. Save the tokenizer with these options applied and leave tokenizer_kwargs out."
    )
