"""Choices recorded and repeated: how close each was, and that a repetition follows them whatever the scores say."""

from __future__ import annotations

import numpy
import pytest

from refpeft.oracle.choices import Choice, recorded, repeated
from refpeft.token_scores import largest

SCORES = numpy.array([[1.0, 4.0, 3.5, 0.0], [2.0, -numpy.inf, -numpy.inf, -1e9]])


def choice(edge: int) -> Choice:
    contested = numpy.array([[4.0, 3.5, 1.0, 0.0], [2.0, -1e9, -numpy.inf, -numpy.inf]])
    return Choice(numpy.zeros(1), contested, numpy.zeros(1), edge)


@pytest.mark.parametrize(
    ("edge", "ordered", "gaps"),
    [(1, 0, [0.5, numpy.inf]), (2, 0, [2.5, numpy.inf]), (3, 1, [0.5, numpy.inf]), (4, 0, [numpy.inf] * 2)],
)
def test_the_gap_is_that_at_the_edge_and_between_those_in_order(
    edge: int, ordered: int, gaps: list[float]
) -> None:
    assert choice(edge).gap(ordered).tolist() == gaps


def test_what_is_chosen_is_kept() -> None:
    with recorded() as choices:
        assert largest(SCORES, 2).tolist() == [[1, 2], [0, 3]]
    (made,) = choices.made
    assert made.contested.tolist() == [[4.0, 3.5, 1.0], [2.0, -1e9, -numpy.inf]]
    assert choices.scores.tolist() == [4.0, 3.5, 1.0, 2.0]
    assert made.edge == 2


def test_a_repetition_follows_the_recorded_choices() -> None:
    with recorded() as choices:
        largest(SCORES, 2)
    with repeated(choices) as again:
        assert largest(-SCORES, 2).tolist() == [[1, 2], [0, 3]]
    assert again.scores_as_in(choices).tolist() == [-4.0, -3.5, -1.0, -2.0]


def test_outside_nothing_is_kept() -> None:
    with recorded() as choices:
        pass
    largest(SCORES, 1)
    assert choices.made == []
    assert choices.scores.shape == (0,)
