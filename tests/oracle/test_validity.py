"""Which elements count, and indices in words."""

from __future__ import annotations

import numpy
import pytest

from refpeft.oracle.questions import Ask
from refpeft.oracle.validity import Validity

MASK = numpy.array([[0, 0, 1, 1], [1, 1, 1, 0]])
EVERYWHERE = Validity(None, 0, prompts=False)
PROMPTS = Validity(MASK != 0, 2, prompts=True)
PREFIX = Validity(MASK != 0, 2, prompts=False)
SHORT, LONG = [[False, False, True, True], [True, True, True, False]], [True, True]


# ---------------------------------------------------------------- which positions count


def test_of_a_question() -> None:
    inputs = {"attention_mask": MASK}
    prompt = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}
    prefix = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2}
    for question in ("forward", "inputs", "gradients"):
        valid = Validity.of(Ask(question, "prompt_tuning", prompt, inputs=inputs))
        assert (valid.mask == (MASK != 0)).all()  # type: ignore[union-attr]
        assert (valid.virtual, valid.prompts) == (2, True)
    valid = Validity.of(Ask("forward", "prefix_tuning", prefix, inputs=inputs))
    assert (valid.virtual, valid.prompts) == (2, False)
    assert Validity.of(Ask("forward", "prefix_tuning", prefix)) == Validity(None, 2, prompts=False)
    assert Validity.of(Ask("mask", "common", inputs=inputs)) == EVERYWHERE, "the mask itself is the answer"
    assert Validity.of(Ask("forward", "common")) == EVERYWHERE


def test_virtual_tokens_of_the_mask_itself() -> None:
    """That question has no configuration: the number is among its arguments."""
    valid = Validity.of(
        Ask("mask", "common", arguments={"num_virtual_tokens": 2}, inputs={"attention_mask": MASK})
    )
    assert valid == Validity(None, 2, prompts=False)
    assert valid.words(["batch", "key"], (0, 0)) == "row 0, key: virtual token 0"
    assert valid.words(["batch", "key"], (1, 2)) == "row 1, key: token 0 (the first)"


def test_virtual_tokens_of_one_layer() -> None:
    """The question `attention` has no configuration: they are what stands before the text's keys."""
    past = numpy.zeros((2, 4, 5, 6))
    valid = Validity.of(Ask("attention", "common", inputs={"past.key": past, "past.value": past}))
    assert valid == Validity(None, 5, prompts=False)
    assert (
        valid.words(["heads", "query", "key"], (1, 0, 4))
        == "head 1, token 0 (the first), key: virtual token 4"
    )
    assert valid.words(["query", "key"], (1, 5)) == "token 1, key: token 0 (the first)"
    assert Validity.of(Ask("attention", "common")) == EVERYWHERE


def test_queries_and_keys() -> None:
    rows = [LONG + row for row in SHORT]
    assert PROMPTS.of_tensor(["batch", "query"], (2, 6)).tolist() == rows
    assert PREFIX.of_tensor(["batch", "query"], (2, 4)).tolist() == SHORT
    assert PREFIX.of_tensor(["batch", "tokens"], (2, 4)).tolist() == SHORT
    assert PROMPTS.of_tensor(["batch", "tokens"], (2, 4)).tolist() == SHORT
    for valid in (PREFIX, PROMPTS):
        assert valid.of_tensor(["batch", "key"], (2, 6)).tolist() == rows
    states = PREFIX.of_tensor(["batch", "kv_heads", "key", "head_dim"], (2, 3, 6, 5))
    assert (states == numpy.array(rows)[:, None, :, None]).all()
    scores = PREFIX.of_tensor(["batch", "heads", "query", "key"], (2, 3, 4, 6))
    assert (scores == numpy.array(SHORT)[:, None, :, None]).all(), "a hidden key counts: it must be hidden"


def test_everything_else_counts_everywhere() -> None:
    assert PREFIX.of_tensor(["virtual", "hidden"], (2, 4)).all()
    assert PREFIX.of_tensor([], ()).all()
    assert PREFIX.of_tensor(["batch", "kv_heads", "virtual", "head_dim"], (2, 3, 2, 5)).all()
    assert EVERYWHERE.of_tensor(["batch", "query"], (2, 4)).all()


# ---------------------------------------------------------------- places in words


@pytest.mark.parametrize(
    ("valid", "axes", "index", "words"),
    [
        (PREFIX, "batch query vocab", (0, 2, 17), "row 0, token 2 (the first after the padding), vocab 17"),
        (PREFIX, "batch query vocab", (1, 0, 3), "row 1, token 0 (the first), vocab 3"),
        (PREFIX, "batch query vocab", (1, 3, 3), "row 1, token 3 (padding), vocab 3"),
        (PREFIX, "batch query vocab", (1, 2, 3), "row 1, token 2, vocab 3"),
        (PROMPTS, "batch query hidden", (0, 1, 3), "row 0, virtual token 1, hidden 3"),
        (PROMPTS, "batch query hidden", (0, 4, 3), "row 0, token 2 (the first after the padding), hidden 3"),
        (PROMPTS, "batch tokens hidden", (1, 1, 3), "row 1, token 1, hidden 3"),
        (PREFIX, "batch heads query key", (1, 2, 1, 1), "row 1, head 2, token 1, key: virtual token 1"),
        (PREFIX, "batch heads query key", (1, 2, 1, 5), "row 1, head 2, token 1, key: token 3 (padding)"),
        (
            PREFIX,
            "batch kv_heads virtual head_dim",
            (1, 2, 0, 4),
            "row 1, head 2, virtual token 0, dimension 4",
        ),
        (EVERYWHERE, "batch query", (1, 3), "row 1, token 3"),
        (EVERYWHERE, "virtual prefix_width", (1, 3), "virtual token 1, prefix_width 3"),
        (EVERYWHERE, "steps", (0,), "step 0 (the first)"),
        (EVERYWHERE, "steps", (1,), "step 1 (counted from 0)"),
        (EVERYWHERE, "", (), ""),
        (EVERYWHERE, "batch", (1, 3), "index (1, 3)"),
        (EVERYWHERE, "batch", (), ""),
    ],
)
def test_words(valid: Validity, axes: str, index: tuple[int, ...], words: str) -> None:
    assert valid.words(axes.split(), index) == words


# ---------------------------------------------------------------- padding that predicts a label


def test_padding_that_predicts_a_label_counts() -> None:
    """Behind left padding, the last padding position predicts the first token."""
    labels = numpy.array([[-100, -100, 5, 6], [7, 8, 9, -100]])
    inputs = {"attention_mask": MASK, "labels": labels}
    predicted = [[False, True, True, True], [True, True, True, False]]
    for kind, prompts in (("PREFIX_TUNING", False), ("PROMPT_TUNING", True)):
        config = {"peft_type": kind, "num_virtual_tokens": 2}
        valid = Validity.of(Ask("forward", "any", config, inputs=inputs))
        assert valid.predicting is not None
        assert valid.predicting.tolist() == [[False, True, True, False], [True, True, False, False]]
        assert valid.of_tensor(["batch", "tokens"], (2, 4)).tolist() == predicted
        if prompts:
            assert valid.of_tensor(["batch", "query"], (2, 6)).tolist() == [LONG + row for row in predicted]
        else:
            assert valid.of_tensor(["batch", "query"], (2, 4)).tolist() == predicted
        assert valid.of_tensor(["batch", "key"], (2, 6)).tolist() == [LONG + row for row in SHORT], (
            "keys as before"
        )


def test_labels_that_do_not_count_predict_nothing() -> None:
    labels = numpy.full((2, 4), -100)
    valid = Validity.of(Ask("forward", "prefix_tuning", inputs={"attention_mask": MASK, "labels": labels}))
    assert valid.of_tensor(["batch", "query"], (2, 4)).tolist() == SHORT
    assert Validity.of(Ask("forward", "prefix_tuning", inputs={"attention_mask": MASK})).predicting is None
