"""A stored matrix computes as the array that it stands for, and converts no more than a strip at a time."""

from __future__ import annotations

import tracemalloc
from typing import Any

import ml_dtypes
import numpy
import pytest

from refpeft import arrays, ops, stored
from refpeft.oracle.questions import Arithmetic
from refpeft.stored import Stored
from refpeft.transformer.weights import embed_tokens

RANDOM = numpy.random.default_rng(0)
LEFT = RANDOM.normal(size=(2, 3, 5))


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
@pytest.mark.parametrize("piece", [1, 8, 2**22])
def test_products(kind: str, dtype: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "PIECE", piece)
    view = RANDOM.normal(size=(4, 5)).astype(kind)
    weight, left = Stored(view, dtype), LEFT.astype(dtype)
    product = ops.linear(left, weight, None)
    assert (product.dtype, product.shape) == (numpy.dtype(dtype), (2, 3, 4))
    numpy.testing.assert_allclose(product, left @ view.astype(dtype).T, rtol=1e-5, atol=1e-6)
    numpy.testing.assert_array_equal(numpy.asarray(weight), view.astype(dtype))


def test_what_it_says_of_itself() -> None:
    weight = Stored(numpy.zeros((4, 5), "float16"), "float64")
    assert (weight.shape, weight.ndim, weight.size, len(weight), weight.dtype) == (
        (4, 5),
        2,
        20,
        4,
        numpy.float64,
    )
    assert weight.astype("float32").dtype == numpy.float32
    assert (numpy.ndim(weight), numpy.shape(weight)) == (2, (4, 5))
    assert numpy.zeros_like(weight).dtype == numpy.float64
    assert isinstance(weight, arrays.Array)  # type: ignore[misc,arg-type]


def test_a_product_converts_a_strip_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "PIECE", 10)
    weight = Stored(numpy.zeros((5, 7), "float16"), "float64")
    assert [(place, piece.shape) for place, piece in weight.pieces()] == [
        (slice(start, start + 2), (5, min(2, 7 - start))) for start in (0, 2, 4, 6)
    ]


# ---------------------------------------------------------------- views of more axes than the matrix

FUSED = RANDOM.normal(size=(2, 5, 3, 7)).astype(ml_dtypes.bfloat16)
"""(groups, three heads with their queries, a key, a value; head_dim, inputs)"""


def repeated(heads: Any, times: int) -> Any:
    """Each of (groups, head_dim, inputs) `times` times: an axis of stride 0."""
    return numpy.broadcast_to(heads[:, None], (heads.shape[0], times, *heads.shape[1:]))


VIEWS: dict[str, Any] = {
    "queries": FUSED[:, :3],
    "keys": FUSED[:, 3],
    "repeated keys": repeated(FUSED[:, 3], 3),
    "one axis of 1": FUSED[:, :1],
    "from the end": FUSED[::-1, ::2, ::-1],
    "stored inputs first": numpy.moveaxis(
        numpy.ascontiguousarray(FUSED.transpose(3, 0, 1, 2))[..., :3, :], 0, -1
    ),
    "stored plain": FUSED.reshape(30, 7),
}


def both(view: Any, dtype: str) -> tuple[Stored, Any]:
    """The stored matrix and the array that it stands for."""
    dense = numpy.array(view).reshape(-1, view.shape[-1])
    return Stored(view, dtype, dense.shape), dense.astype(dtype)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("piece", [1, 8, 50, 2**22])
def test_products_with_a_view_of_more_axes(
    name: str, dtype: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "PIECE", piece)
    weight, dense = both(VIEWS[name], dtype)
    assert (weight.shape, weight.ndim, weight.size, len(weight)) == (dense.shape, 2, dense.size, len(dense))
    numpy.testing.assert_array_equal(numpy.asarray(weight), dense)
    for given, expected in ((weight, dense), (numpy.swapaxes(weight, 0, 1), dense.T)):
        assert isinstance(given, Stored)
        assert given.shape == expected.shape
        numpy.testing.assert_array_equal(numpy.asarray(given), expected)
        pieces = [part for _, part in given.pieces()]
        numpy.testing.assert_array_equal(numpy.concatenate([expected[:, :0], *pieces], axis=1), expected)
        left = RANDOM.normal(size=(2, 3, expected.shape[0])).astype(dtype)
        product = left @ given  # type: ignore[operator]
        assert (product.dtype, product.shape) == (numpy.dtype(dtype), (2, 3, expected.shape[1]))
        numpy.testing.assert_allclose(product, left @ expected, rtol=1e-5, atol=1e-6)
    x, bias = RANDOM.normal(size=(2, 3, dense.shape[1])).astype(dtype), numpy.ones(len(dense), dtype)
    numpy.testing.assert_allclose(
        ops.linear(x, weight, bias), ops.linear(x, dense, bias), rtol=1e-5, atol=1e-6
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["queries", "repeated keys", "stored inputs first", "stored plain"])
def test_rows_of_a_view_of_more_axes(name: str) -> None:
    weight, dense = both(VIEWS[name], "float64")
    last = len(dense) - 1
    for ids in (
        numpy.array([[last, 0], [1, 1]]),
        numpy.array([], int),
        2,
        -1,
        slice(1, None, 2),
        dense[:, 0] > 0,
    ):
        rows = weight[ids]
        assert rows.dtype == numpy.float64
        numpy.testing.assert_array_equal(rows, dense[ids])
    numpy.testing.assert_array_equal(numpy.swapaxes(weight, -1, -2)[[4, 0]], dense.T[[4, 0]])
    numpy.testing.assert_array_equal(embed_tokens(weight, numpy.array([[last, 0]])), dense[[[last, 0]]])  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        weight[last + 1]


def test_other_uses_of_a_view_of_more_axes() -> None:
    weight, dense = both(VIEWS["queries"], "float64")
    numpy.testing.assert_array_equal(weight * 2.0, dense * 2)
    numpy.testing.assert_array_equal(numpy.concatenate([weight, weight]), numpy.concatenate([dense, dense]))
    assert numpy.zeros_like(weight).shape == dense.shape
    narrow = weight.astype("float32")
    assert (narrow.dtype, narrow.shape, narrow.view is weight.view) == (numpy.float32, dense.shape, True)
    assert numpy.swapaxes(weight, 1, -1) is weight
    taken = Arithmetic("float32").take(weight)
    numpy.testing.assert_array_equal(numpy.asarray(taken), dense.astype("float32"))


def test_differentiating_through_a_view_of_more_axes() -> None:
    weight, dense = both(VIEWS["queries"], "float64")
    x = RANDOM.normal(size=(2, 3, 7))

    def gradient(weight: arrays.Array) -> arrays.Array:
        def loss(parameters: arrays.Parameters) -> arrays.Array:
            return arrays.sum(arrays.square(ops.linear(parameters["x"], weight, None)))

        return arrays.value_and_grad(loss, {"x": x})[1]["x"]

    numpy.testing.assert_allclose(gradient(weight), gradient(dense), rtol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(18, 6), (9, 14), (7, 18), (126,), (126, 1), (2, 9, 7)])
def test_a_view_that_is_another_matrix(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="A view of shape") as caught:
        Stored(FUSED[:, :3], "float64", shape)
    assert str(caught.value) == (
        f"A view of shape (2, 3, 3, 7) is no matrix of shape {shape}: its axes must be rows, then columns."
    )


class Watched(numpy.ndarray):
    """Notes how many numbers are converted, or copied, at once."""

    seen: list[int]

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        SEEN.append(self.size)
        return numpy.asarray(self).astype(*args, **kwargs)


SEEN: list[int] = []


@pytest.mark.parametrize("piece", [50, 80])
@pytest.mark.parametrize("name", ["queries", "repeated keys", "stored inputs first", "stored plain"])
def test_no_more_than_a_piece_is_converted(name: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "PIECE", piece)
    SEEN.clear()
    view = VIEWS[name].view(Watched)
    weight, dense = both(VIEWS[name], "float64")
    weight = Stored(view, "float64", weight.shape)
    ops.linear(RANDOM.normal(size=(3, 7)), weight, None)  # type: ignore[arg-type]
    assert sum(SEEN) == dense.size
    RANDOM.normal(size=(3, len(dense))) @ weight  # type: ignore[operator]
    assert sum(SEEN) == 2 * dense.size
    assert max(SEEN) <= piece
    SEEN.clear()
    embed_tokens(weight, numpy.array([[1, 5]]))  # type: ignore[arg-type]
    assert SEEN == [14]


def test_the_memory_of_a_product_is_that_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies on the way to a piece are counted too: the matrix has 8 MiB in bfloat16, a piece 64 KiB in float64."""
    monkeypatch.setattr(stored, "PIECE", 2**13)
    fused = numpy.ones((32, 3, 128, 1024), ml_dtypes.bfloat16)
    weight = Stored(fused[:, 1], "float64", (4096, 1024))
    outputs, inputs = numpy.ones((2, 4096)), numpy.ones((2, 1024))
    ids = numpy.array([[4095, 0]])
    tracemalloc.start()
    products = ops.linear(inputs, weight, None), outputs @ weight, weight[ids]  # type: ignore[arg-type,operator]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [product.flat[-1] for product in products] == [1024, 4096, 1]
    assert peak < 2**20


# ---------------------------------------------------------------- what else is done with it


def test_rows_and_other_uses() -> None:
    table = RANDOM.normal(size=(6, 5)).astype("float32")
    weight = Stored(table, "float64")
    rows = embed_tokens(weight, numpy.array([[5, 0]]))
    assert rows.dtype == numpy.float64
    numpy.testing.assert_array_equal(rows, table[[[5, 0]]])
    numpy.testing.assert_array_equal(weight * 2.0, table.astype("float64") * 2)
    numpy.testing.assert_array_equal(numpy.concatenate([weight, weight]).shape, (12, 5))
    with pytest.raises(TypeError):
        weight + object()


def test_differentiating_through_a_stored_weight() -> None:
    view = RANDOM.normal(size=(4, 5)).astype("float32")

    def gradient(weight: arrays.Array) -> arrays.Array:
        def loss(parameters: arrays.Parameters) -> arrays.Array:
            return arrays.sum(arrays.square(ops.linear(parameters["x"], weight, None)))

        return arrays.value_and_grad(loss, {"x": LEFT})[1]["x"]

    numpy.testing.assert_allclose(
        gradient(Stored(view, "float64")), gradient(view.astype("float64")), rtol=1e-12
    )  # type: ignore[arg-type]


def test_an_arithmetic_takes_it_without_reading_it() -> None:
    weight = Stored(numpy.zeros((4, 5), "float16"), "float64")
    taken = Arithmetic("float32").take(weight)
    assert isinstance(taken, Stored)
    assert (taken.dtype, taken.view is weight.view) == (numpy.float32, True)
