"""The stacks of every family around their layers: what enters the first, which keys each sees, how each is turned and biased."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy
import pytest
from support import MODELS, VIRTUAL, tasks_of, tiny_adapter, tiny_model, tiny_question

from refpeft.config import PromptTuningConfig
from refpeft.positions import alibi_slopes, relative_buckets
from refpeft.steps import recording, scope
from refpeft.transformer import stack
from refpeft.transformer.config import ModelConfig
from refpeft.transformer.rotary import inverse_frequencies
from refpeft.transformer.stack import Given
from refpeft.transformer.weights import BaseModel

RANDOM = numpy.random.default_rng(31)
LIKE = numpy.zeros((1, 1, 1))
HIDDEN = -1e300
"""Below: a masked score."""


def made(name: str) -> BaseModel:
    family, changes = MODELS[name]
    return tiny_model(family, **changes)


# ---------------------------------------------------------------- what enters the first layer


def layer_norm(x: Any, p: Any, name: str, epsilon: float) -> Any:
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / numpy.sqrt(variance + epsilon) * p[f"{name}.weight"] + p[f"{name}.bias"]


def rows(p: Any, ids: Any) -> Any:
    return p["embeddings.positions.weight"][ids]


def typed(p: Any, x: Any, ids: Any, types: Any) -> Any:
    return layer_norm(
        x + p["embeddings.token_types.weight"][types] + rows(p, ids), p, "embeddings.norm", 1e-12
    )


ENTERING: dict[str, Any] = {
    **dict.fromkeys(("gpt2", "gpt_bigcode"), lambda p, x, ids, types: x + rows(p, ids)),
    "opt": lambda p, x, ids, types: x + rows(p, ids + 2),
    "opt, narrow, norms after": lambda p, x, ids, types: (
        x @ p["embeddings.projection.weight"].T + rows(p, ids + 2)
    ),
    "bloom": lambda p, x, ids, types: layer_norm(x, p, "embeddings.norm", 1e-5),
    **dict.fromkeys(
        ("gpt_neox", "falcon", "llama", "mistral", "qwen2", "qwen3", "phi"), lambda p, x, ids, types: x
    ),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "t5"), lambda p, x, ids, types: x),
    **dict.fromkeys(("bert", "roberta"), typed),
    "electra": lambda p, x, ids, types: (
        typed(p, x, ids, types) @ p["embeddings.projection.weight"].T + p["embeddings.projection.bias"]
    ),
    "bart": lambda p, x, ids, types: layer_norm(x + rows(p, ids + 2), p, "embeddings.norm", 1e-5),
}


def parameters_of(base: BaseModel, name: Any) -> Any:
    return (
        stack.stack_parameters(base.parameters, name)
        if base.config.kind == "encoder_decoder"
        else base.parameters
    )


@pytest.mark.parametrize("name", ENTERING)
def test_what_enters_the_first_layer(name: str) -> None:
    base = made(name)
    parameters = parameters_of(base, "encoder")
    x = RANDOM.normal(size=(2, 5, base.config.embedding_width))
    ids, types = RANDOM.integers(0, 30, (2, 5)), RANDOM.integers(0, 3, (2, 5))
    given_types = types if base.config.token_types else None
    with scope(stack="encoder"):
        hidden = stack.embed(parameters, base.config, x, ids, Given(token_type_ids=given_types))
        expected = ENTERING[name](parameters, x, ids, types)
        numpy.testing.assert_allclose(hidden, expected, rtol=1e-12, atol=1e-13)
        if base.config.token_types:
            without = stack.embed(parameters, base.config, x, ids, Given())
            numpy.testing.assert_allclose(
                without, ENTERING[name](parameters, x, ids, 0 * types), rtol=1e-12, atol=1e-13
            )


def test_every_family_is_entered() -> None:
    assert {name.split(",")[0] for name in ENTERING} == {family for family, _ in MODELS.values()}


# ---------------------------------------------------------------- positions by the family's rule

MASK = numpy.array(
    [[1, 1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]], dtype=numpy.float32
)  # two of the past, five own
IDS = numpy.array([[2, 2, 9, 8, 7], [5, 6, 7, 8, 1]])
POSITIONS: dict[str, Any] = {
    **dict.fromkeys(
        ("gpt2", "gpt_bigcode", "gpt_neox", "falcon", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
        [[2, 3, 4, 5, 6]] * 2,
    ),
    **dict.fromkeys(("phi", "bert", "electra", "bart"), [[2, 3, 4, 5, 6]] * 2),
    "opt": [[-1, -1, 2, 3, 4], [2, 3, 4, 5, -1]],
    "roberta": [[4, 5, 6, 7, 8], [4, 5, 6, 7, 1]],
    **dict.fromkeys(("bloom", "t5", "falcon, alibi"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_behind_a_past(name: str) -> None:
    config = made(name).config
    ids = stack.position_ids(config, (2, 5), MASK, 2, Given(input_ids=IDS), LIKE)
    assert (None if ids is None else ids.tolist()) == POSITIONS[name]
    given_positions = stack.position_ids(
        config, (2, 5), MASK, 2, Given(position_ids=0 * IDS, input_ids=IDS), LIKE
    )
    assert given_positions is None if ids is None else (given_positions == 2).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["opt", "roberta"])
def test_positions_without_a_mask_or_ids(name: str) -> None:
    config = made(name).config
    ids = stack.position_ids(config, (2, 5), None, 0, Given(), LIKE)
    assert ids is not None
    assert ids.tolist() == [[2, 3, 4, 5, 6] if name == "roberta" else [0, 1, 2, 3, 4]] * 2


# ---------------------------------------------------------------- which keys each layer's queries see


def seen_by(config: ModelConfig, layer: int, query: int, key: int, *, causal: bool) -> bool:
    """By absolute positions, virtual tokens first."""
    window = config.window(layer)
    return not causal or (key <= query and (window is None or query - key < window))


def check_visible(
    scores: Any, config: ModelConfig, layer: int, mask: Any, *, causal: bool, virtual: int
) -> None:
    """`mask` (batch, all keys); the scores' last columns are the last keys, of which a cut cache lacks the first."""
    batch, _, queries, columns = scores.shape
    keys, past = mask.shape[1], mask.shape[1] - queries
    cut = keys - columns
    window = config.window(layer)
    assert cut == (max(0, virtual - (window - 1)) if config.cuts_prefix and window and past else 0)
    for b, q, k in numpy.ndindex(batch, queries, columns):
        expected = bool(mask[b, cut + k]) and seen_by(config, layer, past + q, cut + k, causal=causal)
        assert (scores[b, :, q, k] > HIDDEN).all() == expected, (layer, b, q, k)
        assert (scores[b, :, q, k] < HIDDEN).all() == (not expected), (layer, b, q, k)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("name", MODELS)
def test_which_keys_each_query_sees(name: str, method: str, masked: bool) -> None:
    """A window of four behind four virtual tokens: the first of them is seen by nobody, and cut where HF cuts."""
    base = made(name)
    model = tiny_adapter(base, method)
    question = tiny_question(model, masked=masked)
    with recording() as stages:
        model(**question)
    ids = question["input_ids"]
    own = numpy.ones_like(ids) if not masked else question["attention_mask"]
    virtual = numpy.ones((2, VIRTUAL), int)
    extended = numpy.concatenate([virtual, own], axis=1)
    both = base.config.kind == "encoder_decoder"
    encoder_mask = own if both and method == "prefix" else extended
    for kind in ("encoder", "decoder"):
        config = base.config.stack(kind)  # type: ignore[arg-type]
        mask = encoder_mask
        if both and kind == "decoder":
            labels = question["labels"]
            mask = question["decoder_attention_mask"] if masked else numpy.ones_like(labels)
            mask = numpy.concatenate([virtual, mask], axis=1) if method == "prefix" else mask
        elif base.config.kind not in (kind, "encoder_decoder"):
            assert not any(stage.startswith(f"{kind}.") for stage in stages)
            continue
        for layer in range(config.num_layers):
            start = f"{kind}.layers.{layer}."
            scores = stages[f"{start}attention.scores"]
            check_visible(scores, config, layer, mask, causal=kind == "decoder", virtual=VIRTUAL)
            crossed = stages.get(f"{start}cross_attention.scores")
            assert (crossed is not None) == (both and kind == "decoder")
            if crossed is not None:
                expected = numpy.broadcast_to(encoder_mask[:, None, None, :] == 1, crossed.shape)
                numpy.testing.assert_array_equal(crossed > HIDDEN, expected)


# ---------------------------------------------------------------- how queries and keys are turned


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("name", [name for name in MODELS if made(name).config.rotary])
def test_each_layer_turns_by_its_own_frequencies(name: str, method: str) -> None:
    """From position n behind a prefix; the keys of a prefix are not turned. Gemma-3's windows have a base of their own."""
    base = made(name)
    model = tiny_adapter(base, method)
    with recording() as stages:
        model(**tiny_question(model))
    config = base.config
    assert config.rotary is not None
    first = VIRTUAL if method == "prefix" else 0
    for layer in range(config.num_layers):
        rotary = config.rotary[layer]
        half = rotary.dimensions // 2
        frequencies = inverse_frequencies(rotary, numpy.zeros(1))
        for part in ("query", "key"):
            start = f"decoder.layers.{layer}.attention.{part}"
            plain = stages.get(f"{start}_norm", stages[start])
            pairs = plain[..., :half] + 1j * plain[..., half : 2 * half]
            turns = numpy.exp(1j * (first + numpy.arange(plain.shape[2]))[:, None] * frequencies)
            rotated = stages[f"{start}_rotated"]
            numpy.testing.assert_allclose(rotated[..., :half], (pairs * turns).real, rtol=1e-10, atol=1e-12)
            numpy.testing.assert_allclose(
                rotated[..., half : 2 * half], (pairs * turns).imag, rtol=1e-10, atol=1e-12
            )
        if method == "prefix":
            keys, rotated = (
                stages[f"decoder.layers.{layer}.attention.key_states"],
                stages[f"decoder.layers.{layer}.attention.key_rotated"],
            )
            numpy.testing.assert_array_equal(
                keys[:, :, : -rotated.shape[2]], stages[f"prefix.layers.{layer}.key"]
            )
            numpy.testing.assert_array_equal(keys[:, :, -rotated.shape[2] :], rotated)


def test_gemma3_turns_by_two_bases() -> None:
    rotary = made("gemma3_text").config.rotary
    assert rotary is not None
    assert [kind.theta for kind in rotary] == [10.0, 100.0, 10.0]


# ---------------------------------------------------------------- what is added to the scores


def test_bloom_adds_a_slope_of_the_position() -> None:
    base = made("bloom")
    model = tiny_adapter(base, "prefix")
    question = tiny_question(model)
    with recording() as stages:
        model(**question)
    extended = numpy.concatenate([numpy.ones((2, VIRTUAL)), question["attention_mask"]], axis=1)
    places = (numpy.cumsum(extended, axis=1) - 1) * extended
    bias = stages["decoder.alibi"]
    for b, h, k in numpy.ndindex(bias.shape):
        assert bias[b, h, k] == pytest.approx(alibi_slopes(5)[h] * places[b, k], rel=1e-15)
    check_bias(stages, base, bias[:, :, None, :])


def check_bias(stages: Any, base: BaseModel, bias: Any) -> None:
    """The scores that are not masked are scaled products plus the bias, in each layer."""
    for layer in range(base.config.num_layers):
        start = f"decoder.layers.{layer}.attention."
        query, key, scores = (stages[start + name] for name in ("query", "key_states", "scores"))
        key = key.repeat(query.shape[1] // key.shape[1], axis=1)
        expected = base.config.attention_scale * query @ numpy.swapaxes(key, -1, -2) + bias
        numpy.testing.assert_allclose(
            scores[scores > HIDDEN], expected[scores > HIDDEN], rtol=1e-11, atol=1e-12
        )


@pytest.mark.parametrize("masked", [True, False])
def test_falcon_adds_its_slopes_twice_in_eight_bits(masked: bool) -> None:
    """Before and after the scores are scaled: 2/√head_dim of slopes rounded to bfloat16; without a mask of rounded products."""
    base = made("falcon, alibi")
    model = tiny_adapter(base, "prefix")
    question = tiny_question(model, masked=masked)
    with recording() as stages:
        model(**question)
    own = question["attention_mask"] if masked else numpy.ones_like(question["input_ids"])
    extended = numpy.concatenate([numpy.ones((2, VIRTUAL)), own], axis=1)
    places = (numpy.cumsum(extended, axis=1) - 1) * extended
    slopes = [2**-4, 2**-8, 2**-2]  # exact in bfloat16, as are their products with few positions
    bias = stages["decoder.alibi"]
    for b, h, k in numpy.ndindex(bias.shape):
        assert bias[b, h, k] == pytest.approx(2 / math.sqrt(10) * slopes[h] * places[b, k], rel=1e-15)
    check_bias(stages, base, bias[:, :, None, :])


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_t5_adds_the_same_learned_numbers_in_every_layer(method: str) -> None:
    """Distances to virtual tokens count; the encoder's table has both directions, the decoder's one."""
    base = made("t5")
    model = tiny_adapter(base, method)
    with recording() as stages:
        model(**tiny_question(model))
    for kind in ("encoder", "decoder"):
        table = base.parameters[f"{kind}.relative_bias.weight"]
        scores = stages[f"{kind}.layers.0.attention.scores"]
        queries, keys = scores.shape[2:]
        past = keys - queries
        assert past == (VIRTUAL if method == "prefix" and kind == "decoder" else 0)
        buckets = relative_buckets(queries, keys, past, 8, 10, both_directions=kind == "encoder")
        bias = stages[f"{kind}.relative_bias"]
        numpy.testing.assert_array_equal(bias, numpy.moveaxis(table[buckets], -1, 0))
        for layer in range(base.config.stack(kind).num_layers):  # type: ignore[arg-type]
            start = f"{kind}.layers.{layer}.attention."
            query, key, scores = (stages[start + name] for name in ("query", "key_states", "scores"))
            expected = query @ numpy.swapaxes(key, -1, -2) + bias  # T5 does not scale
            numpy.testing.assert_allclose(
                scores[scores > HIDDEN], expected[scores > HIDDEN], rtol=1e-11, atol=1e-12
            )
            crossed = stages.get(f"{start.replace('attention', 'cross_attention')}scores")
            if crossed is not None:  # no positions in cross-attention
                query, key = (
                    stages[f"{start.replace('attention', 'cross_attention')}{name}"]
                    for name in ("query", "key")
                )
                plain = query @ numpy.swapaxes(key, -1, -2)
                numpy.testing.assert_allclose(
                    crossed[crossed > HIDDEN], plain[crossed > HIDDEN], rtol=1e-11, atol=1e-12
                )


# ---------------------------------------------------------------- behind the last layer


@pytest.mark.parametrize("name", MODELS)
def test_what_leaves_the_last_layer(name: str) -> None:
    """A norm in models that norm before; OPT-350m's way back to the token table's width; nothing else."""
    base = made(name)
    model = tiny_adapter(base, "prompt")
    with recording() as stages:
        model(**tiny_question(model))
    kind = "encoder" if base.config.kind == "encoder" else "decoder"
    last = stages[f"{kind}.layers.{base.config.stack(kind).num_layers - 1}.output"]
    after = name in ("opt, narrow, norms after", "bert", "roberta", "electra", "bart", "bart, scaled")
    assert (f"{kind}.final_norm" not in stages) == after
    if after:
        final = last
    else:
        final = stages[f"{kind}.final_norm"]
        assert final.shape == last.shape
        assert not numpy.allclose(final, last)
    if name == "opt, narrow, norms after":
        projected = stages["decoder.output_projection"]
        numpy.testing.assert_allclose(
            projected, final @ base.parameters["output_projection.weight"].T, rtol=1e-12
        )
    else:
        assert f"{kind}.output_projection" not in stages


# ---------------------------------------------------------------- an encoder before a decoder


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_decoder_reads_what_the_encoder_says(family: str, method: str) -> None:
    base = made(family)
    model = tiny_adapter(base, method)
    question = tiny_question(model)
    with recording() as stages:
        output = model(**question)
    encoded = output.encoder_last_hidden_state
    length = question["input_ids"].shape[1] + (VIRTUAL if method == "prompt" else 0)
    assert encoded.shape == (2, length, 15)
    last = stages["encoder.final_norm"] if family == "t5" else stages["encoder.layers.2.output"]
    numpy.testing.assert_array_equal(encoded, last)
    for layer in range(2):
        weight = base.parameters[f"decoder.layers.{layer}.cross_attention.key.weight"]
        bias = base.parameters.get(f"decoder.layers.{layer}.cross_attention.key.bias", 0.0)
        keys = stages[f"decoder.layers.{layer}.cross_attention.key"]
        heads = base.config.num_attention_heads
        expected = (encoded @ weight.T + bias).reshape(2, length, heads, -1).swapaxes(1, 2)
        numpy.testing.assert_allclose(keys, expected, rtol=1e-12, atol=1e-13)
    embeds = (
        stages["inputs.decoder_scaled_embeddings"]
        if base.config.embedding_scale != 1.0
        else stages["inputs.decoder_token_embeddings"]
    )
    shifted = stages["inputs.decoder_input_ids"]
    numpy.testing.assert_array_equal(embeds, base.parameters["embeddings.tokens.weight"][shifted])


def test_the_stacks_of_an_encoder_decoder_have_their_own_parameters() -> None:
    base = made("bart")
    for kind, other in (("encoder", "decoder"), ("decoder", "encoder")):
        own = stack.stack_parameters(base.parameters, kind)  # type: ignore[arg-type]
        assert own["layers.1.mlp.up.weight"] is base.parameters[f"{kind}.layers.1.mlp.up.weight"]
        assert not any(name.startswith((kind, other)) for name in own)
    assert made("bart").config.stack("decoder").intermediate_size == 14


def test_the_methods_of_every_family_are_those_of_its_kind() -> None:
    for name in MODELS:
        base = made(name)
        for task in tasks_of(base.config.family):
            assert isinstance(tiny_adapter(base, "prompt", task).config, PromptTuningConfig)


# ---------------------------------------------------------------- where not all of it is wanted


@pytest.mark.parametrize("first", [1, 3, 5])
@pytest.mark.parametrize("past", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_from_a_position_on_are_those_of_all(name: str, past: int, first: int) -> None:
    """The last layer's own keys and values are whole; from behind the last position on there are no hidden states."""
    base, tokens = made(name), 5
    for which in ("encoder", "decoder") if base.config.kind == "encoder_decoder" else (None,):
        own: BaseModel = base
        if which is not None:
            own = BaseModel(base.config.stack(which), stack.stack_parameters(base.parameters, which))
        config, ids = own.config, RANDOM.integers(3, own.config.vocab_size, (2, tokens))
        embeds = RANDOM.normal(size=(2, tokens, config.embedding_width))
        shape = (2, config.num_key_value_heads, past, config.head_dim)
        before = tuple(
            (RANDOM.normal(size=shape), RANDOM.normal(size=shape)) for _ in range(config.num_layers)
        )
        mask = numpy.ones((2, past + tokens), numpy.int64)
        mask[0, past] = mask[1, -1] = 0
        encoded = RANDOM.normal(size=(2, 4, config.hidden_size)) if which == "decoder" else None
        seen = None if encoded is None else numpy.array([[1, 1, 0, 1], [0, 1, 1, 1]])
        around = Given(input_ids=ids, encoded=encoded, encoder_mask=seen)
        arguments = (own.parameters, config, embeds, mask, before if past else None)
        whole = stack.forward(*arguments, around, which)
        cut = stack.forward(*arguments, replace(around, first=first), which)
        assert cut.hidden.shape == (2, tokens - first, whole.hidden.shape[2])
        assert numpy.abs(cut.hidden - whole.hidden[:, first:]).max(initial=0.0) <= 1e-13
        for given, expected in zip(cut.past_key_values, whole.past_key_values, strict=True):
            for half, other in zip(given, expected, strict=True):
                numpy.testing.assert_allclose(half, other, rtol=0, atol=1e-14)
