"""Rows in threads are the same rows: hidden states, keys and values, and gradients of all that may have one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from support import MODELS, relative_error, save_base, tiny_model, tiny_values
from threadpoolctl import threadpool_limits

from refpeft import arrays as np
from refpeft import steps, threads
from refpeft.transformer import stack
from refpeft.transformer.stack import Given, StackOutput
from refpeft.transformer.weights import BaseModel, load_base_model

ROWS, TOKENS, PAST = 5, 4, 3


@pytest.fixture(autouse=True)
def _whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "WORTH", 0)
    with threadpool_limits(2):
        if threads.count() != 2:
            pytest.skip("NumPy's matrix products do not tell how many threads they take")
        yield


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each part had that was computed in a thread of its own."""
    found: list[int] = []
    own = stack.embed

    def embed(parameters: Any, config: Any, embeds: Any, ids: Any, given: Any) -> Any:
        found.append(len(embeds))
        return own(parameters, config, embeds, ids, given)

    monkeypatch.setattr(stack, "embed", embed)
    return found


def arguments(base: BaseModel) -> tuple[Any, ...]:
    """Embeddings, a mask that is another in each row, and a past."""
    config, random = base.config, numpy.random.default_rng(0)
    past = tuple(
        tuple(random.normal(size=(ROWS, config.num_key_value_heads, PAST, config.head_dim)) for _ in range(2))
        for _ in range(config.num_layers)
    )
    mask = numpy.ones((ROWS, PAST + TOKENS), numpy.int64)
    mask[numpy.arange(ROWS), PAST + numpy.arange(ROWS) % TOKENS] = 0
    return random.normal(size=(ROWS, TOKENS, config.embedding_width)), mask, past


def numbers(output: StackOutput) -> list[Any]:
    return [output.hidden, *(half for pair in output.past_key_values for half in pair)]


def same(given: list[Any], expected: list[Any]) -> bool:
    return len(given) == len(expected) and all(
        relative_error(one, other) <= 1e-13 for one, other in zip(given, expected, strict=True)
    )


def test_outputs_and_caches_are_put_together_again(parts: list[int]) -> None:
    base = tiny_model("gpt2")
    given = numbers(stack.forward(base.parameters, base.config, *arguments(base)))
    assert sorted(parts) == [2, 3]
    with steps.kernels():
        assert same(given, numbers(stack.forward(base.parameters, base.config, *arguments(base))))
    assert sorted(parts) == [2, 3, 5]


def test_what_is_given_by_row_is_cut_by_row(parts: list[int]) -> None:
    """An encoder-decoder's states and mask, BERT's types, positions of the caller's."""
    random = numpy.random.default_rng(1)
    t5 = tiny_model("t5")
    encoded = random.normal(size=(ROWS, 6, t5.config.hidden_size))
    crossing = (random.random((ROWS, 6)) < 0.6) | (numpy.arange(6) == 0)
    bert, gpt2 = tiny_model("bert"), tiny_model("gpt2")
    types = random.integers(0, 2, (ROWS, TOKENS))
    ids = random.integers(0, 6, (ROWS, TOKENS))
    decoder = BaseModel(t5.config.stack("decoder"), stack.stack_parameters(t5.parameters, "decoder"))
    for base, around, name in [
        (decoder, Given(encoded=encoded, encoder_mask=crossing.astype(numpy.int64)), "decoder"),
        (bert, Given(token_type_ids=types), None),
        (gpt2, Given(position_ids=ids), None),
    ]:
        embeds, mask, _ = arguments(base)
        question: Any = (base.parameters, base.config, embeds, mask[:, PAST:], None, around, name)
        given = numbers(stack.forward(*question))
        with steps.kernels():
            assert same(given, numbers(stack.forward(*question)))
    assert sorted(parts) == [2, 2, 2, 3, 3, 3, 5, 5, 5]


@pytest.mark.parametrize("use_cache", [False, True])
def test_gradients(parts: list[int], use_cache: bool) -> None:
    """Of embeddings, and of keys and values before them; with a cache, of the cache too, and so without threads."""
    base = tiny_model("gpt2")
    embeds, mask, past = arguments(base)
    (key, value), *others = past

    def function(given: Any) -> Any:
        before = ((given["key"], value), *others)
        output = stack.forward(
            base.parameters, base.config, given["embeds"], mask, before, Given(use_cache=use_cache)
        )
        assert len(output.past_key_values) == (base.config.num_layers if use_cache else 0)
        cached = np.sum(output.past_key_values[1][0]) if use_cache else 0.0
        return np.sum(np.sin(output.hidden)) + cached

    given = np.value_and_grad(function, {"embeds": embeds, "key": key})
    assert sorted(parts) == ([5] if use_cache else [2, 3])
    with steps.kernels():
        expected = np.value_and_grad(function, {"embeds": embeds, "key": key})
    assert same([given[0], *given[1].values()], [expected[0], *expected[1].values()])


@pytest.mark.parametrize("gradients", [False, True])
def test_a_past_of_one_row_is_every_rows(parts: list[int], gradients: bool) -> None:
    base = tiny_model("llama")
    embeds, mask, past = arguments(base)
    one = {f"{layer}.{half}": pair[half][:1] for layer, pair in enumerate(past) for half in (0, 1)}

    def function(copies: int) -> Any:
        def run(given: Any) -> Any:
            pairs = tuple(
                tuple(
                    np.broadcast_to(given[f"{layer}.{half}"], (copies, *one["0.0"].shape[1:]))
                    for half in (0, 1)
                )
                for layer in range(base.config.num_layers)
            )
            output = stack.forward(
                base.parameters, base.config, embeds, mask, pairs, Given(use_cache=not gradients)
            )
            return np.sum(np.sin(output.hidden)) if gradients else output

        return run

    found = []
    for copies in (1, ROWS):
        if gradients:
            value, slopes = np.value_and_grad(function(copies), one)
            assert {name: slope.shape for name, slope in slopes.items()} == dict.fromkeys(
                one, one["0.0"].shape
            )
            found.append([value, *slopes.values()])
        else:
            found.append(numbers(function(copies)(one)))
    assert same(*found)
    assert sorted(parts) == [2, 2, 3, 3]


def test_a_base_that_is_trained_is_left_to_the_definition(parts: list[int]) -> None:
    base = tiny_model("gpt2")
    name = "layers.1.mlp.up.weight"

    def function(given: Any) -> Any:
        weights = {**base.parameters, **given}
        return np.sum(stack.forward(weights, base.config, *arguments(base)).hidden)

    _, gradients = np.value_and_grad(function, {name: base.parameters[name]})
    assert parts == [5]
    assert numpy.abs(gradients[name]).max() > 0


def test_weights_that_stay_in_their_file_are_converted_once(parts: list[int], tmp_path: Any) -> None:
    base = load_base_model(save_base(tmp_path / "base", tiny_model("gpt2"), tiny_values("gpt2")), lazy=True)
    stack.forward(base.parameters, base.config, *arguments(base))
    assert parts == [5]


@pytest.mark.parametrize(
    "name", [name for name, (family, _) in MODELS.items() if family in ("falcon", "bloom", "gemma3_text")]
)
def test_biases_and_windows_are_those_of_the_rows(name: str, parts: list[int]) -> None:
    family, changes = MODELS[name]
    base = tiny_model(family, **changes)
    given = numbers(stack.forward(base.parameters, base.config, *arguments(base)[:1]))
    with steps.kernels():
        assert same(given, numbers(stack.forward(base.parameters, base.config, *arguments(base)[:1])))
    assert sorted(parts) == [2, 3, 5]
