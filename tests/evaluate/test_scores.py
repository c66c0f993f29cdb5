"""Laws of scores: an interval holds its value, narrows with more trials, and is known where it is known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.evaluate.scores import Score, mean, share


@given(st.integers(1, 500), st.data())
def test_the_interval_holds_the_value_and_stays_within_0_and_1(num: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, num))
    score = share([True] * hits + [False] * (num - hits), chance=0.1)
    low, high = score.interval
    assert 0 <= low <= score.value + 1e-12
    assert score.value - 1e-12 <= high <= 1
    more = Score(score.value, 4 * num, 0.1).interval
    assert more[1] - more[0] < high - low


def test_the_interval_is_wilsons() -> None:
    """81 of 263, the example of Newcombe (1998): 0.2553 to 0.3662."""
    assert Score(81 / 263, 263, 0.0).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_a_score_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        share([], chance=0.5)


def test_a_mean_s_interval_holds_its_true_mean_in_95_of_100() -> None:
    drawn = random.Random(0)
    held = 0
    for _ in range(1000):
        low, high = mean([drawn.gauss(0.3, 0.2) for _ in range(40)]).interval
        held += low <= 0.3 <= high
    assert 920 <= held <= 970
    assert mean([0.5]).interval == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one"):
        mean([])
