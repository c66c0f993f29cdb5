"""Laws of the bootstrap: it is the literal one, and its interval is as wide as it should be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diptych.evaluate.bootstrap import estimate_mean, estimate_ratio, resample_sums


def test_it_equals_resampling_by_index() -> None:
    values = np.random.default_rng(0).normal(size=60)
    drawn = np.random.default_rng(1).integers(0, 60, (20_000, 60))
    literal = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    found = estimate_mean(list(values), num_resamples=20_000)
    assert found.mean == pytest.approx(values.mean())
    assert np.abs(np.array(found.interval) - literal).max() < 0.01


def test_the_interval_of_a_share_is_that_of_a_binomial() -> None:
    found = estimate_mean([1.0] * 300 + [0.0] * 700)
    spread = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert found.interval == pytest.approx((0.3 - spread, 0.3 + spread), abs=0.002)
    assert found.num == 1000


def test_it_holds_the_truth_nineteen_times_of_twenty() -> None:
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        low, high = estimate_mean(list(generator.normal(size=80)), num_resamples=400).interval
        held += low <= 0 <= high
    assert 0.90 <= held / 200 <= 0.985


def test_the_same_seed_gives_the_same_interval() -> None:
    values = list(np.random.default_rng(3).normal(size=50))
    assert estimate_mean(values) == estimate_mean(values)
    assert estimate_mean(values).interval != estimate_mean(values, seed=1).interval


def test_values_that_are_all_the_same_leave_no_doubt() -> None:
    assert estimate_mean([2.5] * 9).interval == (2.5, 2.5)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_no_values_and_values_that_are_not_finite_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="mean"):
        estimate_mean(values)


def test_values_of_one_group_go_together() -> None:
    """Ten questions on each of ten images, of which all are answered or none: the interval is that of ten images."""
    readable = [float(number < 6) for number in range(10)]
    values, groups = [value for value in readable for _ in range(10)], [n for n in range(10) for _ in range(10)]
    assert estimate_mean(values, groups=groups) == replace(estimate_ratio(readable, [1] * 10), num=100)
    low, high = estimate_mean(values, groups=groups).interval
    one, other = estimate_mean(values).interval
    assert high - low > 2.5 * (other - one)
    assert estimate_mean(values, groups=range(100)) == estimate_mean(values), "alone in their groups"


def test_the_interval_of_groups_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        readable = generator.random(60) < 0.5
        values = [float(value) for value in readable for _ in range(10)]
        low, high = estimate_mean(values, groups=[n for n in range(60) for _ in range(10)], num_resamples=400).interval
        held += low <= 0.5 <= high
    assert held >= 88


def test_sums_over_resamples_are_those_of_rows_drawn() -> None:
    rows = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    sums = resample_sums(rows, num_resamples=500)
    assert sums.shape == (500, 2)
    assert np.array_equal(sums[:, 1], 10 * sums[:, 0])
    assert set(sums[:, 0]) <= {a + b + c for a in (1, 2, 4) for b in (1, 2, 4) for c in (1, 2, 4)}
