"""Which token comes next: forbidden and forced scores, the largest, and where a row ends."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from refpeft.generation_config import GenerationConfig
from refpeft.token_scores import force_tokens, is_finished, largest, process_scores


def test_ends_are_forbidden_until_there_are_enough_tokens() -> None:
    scores = numpy.array([[5.0, 1.0, 4.0]], dtype="float32")
    forbidden = process_scores(scores, 1, 2, (0, 2))
    assert forbidden.tolist() == [[-numpy.inf, 1.0, -numpy.inf]]
    assert forbidden.dtype == numpy.float32
    assert process_scores(scores, 2, 2, (0, 2)).tolist() == scores.tolist()
    assert process_scores(scores, 0, 2, ()).tolist() == scores.tolist()
    assert process_scores(scores, 0, None, (0,)).tolist() == scores.tolist()


@pytest.mark.parametrize(
    ("length", "last_step", "options", "possible"),
    [
        (1, False, {"forced_bos_token_id": 2}, [2]),
        (2, False, {"forced_bos_token_id": 2}, None),
        (2, True, {"forced_bos_token_id": 2}, None),
        (2, False, {"forced_eos_token_id": 0}, None),
        (2, True, {"forced_eos_token_id": 0}, [0]),
        (2, True, {"forced_eos_token_id": [0, 2]}, [0, 2]),
        (1, True, {"forced_bos_token_id": 2, "forced_eos_token_id": 0}, [0]),  # the last word is the end's
        (1, True, {}, None),
    ],
)
def test_tokens_are_forced(
    length: int, last_step: bool, options: dict[str, Any], possible: list[int] | None
) -> None:
    scores = numpy.array([[-numpy.inf, 1.0, 4.0], [2.0, 0.0, -3.0]], dtype="float32")
    forced = force_tokens(scores, length, last_step, GenerationConfig(**options))
    assert forced.dtype == numpy.float32
    expected = scores.tolist()
    if possible is not None:
        expected = [[0.0 if token in possible else -numpy.inf for token in range(3)]] * 2
    assert forced.tolist() == expected


def test_a_row_ends_with_an_end_or_at_the_last_step() -> None:
    tokens = numpy.array([3, 4, 5])
    assert is_finished(tokens, (4, 9), last_step=False).tolist() == [False, True, False]
    assert is_finished(tokens, (), last_step=False).tolist() == [False] * 3
    assert is_finished(tokens, (), last_step=True).tolist() == [True] * 3


def test_the_largest_come_first_and_of_equal_ones_the_first() -> None:
    scores = numpy.array([[1.0, 3.0, -numpy.inf, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    assert largest(scores, 3).tolist() == [[1, 3, 4], [4, 0, 1]]
    assert largest(scores, 9).shape == (2, 5)
