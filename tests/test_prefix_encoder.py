"""The flat prefix and its layout, decoded from numbers that say where they stood; the projection by loops."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refpeft import prefix_encoder
from refpeft.config import PrefixTuningConfig
from refpeft.errors import ConfigError, InputError
from refpeft.fill_in import fill_in
from refpeft.prefix_encoder import EMBEDDING, FIRST_BIAS, FIRST_WEIGHT, SECOND_BIAS, SECOND_WEIGHT
from refpeft.prompt_embedding import parameter_shapes as prompt_shapes
from refpeft.torch_random import Generator, embedding, linear
from refpeft.transformer.config import ModelConfig

RANDOM = numpy.random.default_rng(4)
LAYERS, HEADS, HEAD_DIM, VIRTUAL, HIDDEN = 3, 5, 2, 4, 7


def config_of(**fields: Any) -> PrefixTuningConfig:
    sizes = {
        "num_virtual_tokens": VIRTUAL,
        "num_layers": LAYERS,
        "num_attention_heads": HEADS,
        "token_dim": 10,
    }
    return PrefixTuningConfig(task_type="CAUSAL_LM", **{**sizes, "num_transformer_submodules": 1, **fields})


def projected(**fields: Any) -> PrefixTuningConfig:
    return config_of(prefix_projection=True, encoder_hidden_size=HIDDEN, **fields)


def ramp(virtual: int, width: int) -> Any:
    """Every entry its own index in memory."""
    return numpy.arange(virtual * width, dtype=float).reshape(virtual, width)


@given(*(st.integers(1, 4) for _ in range(5)))
def test_the_layout_is_decoded_from_a_ramp(
    layers: int, heads: int, head_dim: int, virtual: int, batch: int
) -> None:
    config = config_of(
        num_layers=layers, num_attention_heads=heads, token_dim=heads * head_dim, num_virtual_tokens=virtual
    )
    width = 2 * layers * heads * head_dim
    past = prefix_encoder.forward({EMBEDDING: ramp(virtual, width)}, config, batch)
    assert len(past) == layers
    for layer, pair in enumerate(past):
        for kv, states in enumerate(pair):
            assert states.shape == (batch, heads, virtual, head_dim)
            for b, h, v, c in numpy.ndindex(states.shape):
                offset = ((2 * layer + kv) * heads + h) * head_dim + c
                assert divmod(int(states[b, h, v, c]), width) == (v, offset)


def test_flatten_is_the_inverse_of_forward() -> None:
    table = RANDOM.normal(size=(VIRTUAL, 60))
    past = prefix_encoder.forward({EMBEDDING: table}, config_of(), 1)
    numpy.testing.assert_array_equal(prefix_encoder.flatten(past), table)
    keys = [tuple(RANDOM.normal(size=(1, HEADS, VIRTUAL, HEAD_DIM)) for _ in range(2)) for _ in range(LAYERS)]
    again = prefix_encoder.forward({EMBEDDING: prefix_encoder.flatten(tuple(keys))}, config_of(), 1)
    numpy.testing.assert_array_equal(again, keys)


def test_flatten_of_a_batch() -> None:
    past = prefix_encoder.forward({EMBEDDING: ramp(VIRTUAL, 60)}, config_of(), 3)
    with pytest.raises(InputError) as caught:
        prefix_encoder.flatten(past)
    assert str(caught.value) == (
        "A prefix holds one row's keys and values; these are of a batch of 3. Give those of a single sequence."
    )


def random_parameters(config: PrefixTuningConfig) -> dict[str, Any]:
    return {
        name: RANDOM.normal(size=shape) for name, shape in prefix_encoder.parameter_shapes(config).items()
    }


def test_the_projection_by_loops() -> None:
    p = random_parameters(projected())
    flat = prefix_encoder.flat(p, projected())
    assert flat.shape == (VIRTUAL, 60)
    for v in range(VIRTUAL):
        hidden = [math.fsum(p[FIRST_WEIGHT][i] * p[EMBEDDING][v]) + p[FIRST_BIAS][i] for i in range(HIDDEN)]
        activated = numpy.array([math.tanh(value) for value in hidden])
        for o in range(60):
            expected = math.fsum(p[SECOND_WEIGHT][o] * activated) + p[SECOND_BIAS][o]
            assert flat[v, o] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_without_projection_the_table_is_the_prefix() -> None:
    table = ramp(VIRTUAL, 60)
    assert prefix_encoder.flat({EMBEDDING: table}, config_of()) is table


def test_in_inference_mode_nothing_is_projected() -> None:
    config = projected(inference_mode=True)
    assert not prefix_encoder.projects(config)
    assert prefix_encoder.projects(projected())
    assert not prefix_encoder.projects(config_of())
    assert prefix_encoder.parameter_shapes(config) == {EMBEDDING: (VIRTUAL, 60)}
    table = ramp(VIRTUAL, 60)
    assert prefix_encoder.flat({EMBEDDING: table}, config) is table


def test_names_shapes_and_order_of_the_parameters() -> None:
    assert list(prefix_encoder.parameter_shapes(config_of()).items()) == [(EMBEDDING, (VIRTUAL, 60))]
    assert list(prefix_encoder.parameter_shapes(projected()).items()) == [
        ("prompt_encoder.embedding.weight", (VIRTUAL, 10)),
        ("prompt_encoder.transform.0.weight", (HIDDEN, 10)),
        ("prompt_encoder.transform.0.bias", (HIDDEN,)),
        ("prompt_encoder.transform.2.weight", (60, HIDDEN)),
        ("prompt_encoder.transform.2.bias", (60,)),
    ]


GPT2 = ModelConfig.from_dict({"model_type": "gpt2"})  # the 124M model: 12 layers, 12 heads, 768 wide


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def test_parameter_counts_of_gpt2() -> None:
    from refpeft.config import PromptTuningConfig

    n, d, layers = 20, 768, 12
    prompt = fill_in(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n), GPT2.hf)
    assert count(prompt_shapes(prompt)) == n * d == 15_360
    prefix = fill_in(PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n), GPT2.hf)
    assert count(prefix_encoder.parameter_shapes(prefix)) == n * layers * 2 * d == 368_640
    with_projection = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n, prefix_projection=True)
    shapes = prefix_encoder.parameter_shapes(fill_in(with_projection, GPT2.hf))
    formula = n * d + (d * d + d) + (d * layers * 2 * d + layers * 2 * d)
    assert count(shapes) == formula == 14_780_160


# ---------------------------------------------------------------- initial values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_values_are_torchs(dtype: str) -> None:
    generator = Generator(5)
    expected = {EMBEDDING: embedding(generator, VIRTUAL, 10)}
    expected[FIRST_WEIGHT], expected[FIRST_BIAS] = linear(generator, 10, HIDDEN)
    expected[SECOND_WEIGHT], expected[SECOND_BIAS] = linear(generator, HIDDEN, 60)
    values = prefix_encoder.initial_parameters(projected(), Generator(5), numpy.zeros(1, dtype))
    assert list(values) == list(expected)
    for name, value in values.items():
        numpy.testing.assert_array_equal(value, expected[name].astype(dtype), err_msg=name)
        assert value.dtype == numpy.dtype(dtype)
    flat = prefix_encoder.initial_parameters(config_of(), Generator(5), numpy.zeros(1, dtype))
    numpy.testing.assert_array_equal(flat[EMBEDDING], embedding(Generator(5), VIRTUAL, 60).astype(dtype))


def test_zero_overwrites_the_last_map_after_the_draws() -> None:
    like = numpy.zeros(1)
    drawn = prefix_encoder.initial_parameters(projected(), Generator(5), like)
    zero = prefix_encoder.initial_parameters(projected(init_weights="zero"), Generator(5), like)
    for name in (EMBEDDING, FIRST_WEIGHT, FIRST_BIAS):
        numpy.testing.assert_array_equal(zero[name], drawn[name])
    for name in (SECOND_WEIGHT, SECOND_BIAS):
        numpy.testing.assert_array_equal(zero[name], numpy.zeros_like(drawn[name]))
    assert not prefix_encoder.flat(zero, projected()).any()
    assert not any(numpy.signbit(value).any() for name, value in zero.items() if "2" in name)


@pytest.mark.parametrize("fields", [{}, {"prefix_projection": True, "inference_mode": True}])
def test_zero_without_projection_is_a_table_of_zeros(fields: dict[str, Any]) -> None:
    config, generator = config_of(init_weights="zero", **fields), Generator(5)
    values = prefix_encoder.initial_parameters(config, generator, numpy.zeros(1))
    numpy.testing.assert_array_equal(values[EMBEDDING], numpy.zeros((VIRTUAL, 60)))
    assert not numpy.signbit(values[EMBEDDING]).any()
    other = Generator(5)
    embedding(other, VIRTUAL, 60)
    assert generator.randint(0, 2**20, (3,)).tolist() == other.randint(0, 2**20, (3,)).tolist()


# ---------------------------------------------------------------- loading a flat prefix


def test_loading_a_flat_prefix() -> None:
    table = numpy.zeros((VIRTUAL, 60), numpy.float32)
    loaded = prefix_encoder.load_prompt_embeddings({EMBEDDING: table}, config_of(), ramp(VIRTUAL, 60))
    assert list(loaded) == [EMBEDDING]
    numpy.testing.assert_array_equal(loaded[EMBEDDING], ramp(VIRTUAL, 60))
    assert loaded[EMBEDDING].dtype == numpy.float32
    assert not table.any()


@pytest.mark.parametrize("inference_mode", [False, True])
def test_a_projection_cannot_be_loaded(inference_mode: bool) -> None:
    config = projected(inference_mode=inference_mode)
    with pytest.raises(ConfigError) as caught:
        prefix_encoder.load_prompt_embeddings(random_parameters(config), config, ramp(VIRTUAL, 60))
    assert str(caught.value) == "Cannot load flattened prompt embeddings when `prefix_projection=True`."


@pytest.mark.parametrize("shape", [(VIRTUAL + 1, 60), (60, VIRTUAL), (VIRTUAL * 60,)])
def test_a_flat_prefix_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        prefix_encoder.load_prompt_embeddings({EMBEDDING: ramp(VIRTUAL, 60)}, config_of(), numpy.zeros(shape))
    assert str(caught.value) == f"Invalid `prompt_embeddings` shape. Expected (4, 60), got {shape}."
