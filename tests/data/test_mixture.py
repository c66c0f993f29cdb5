"""Laws of the order of samples."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.mixture import Mixture

mixtures = st.integers(1, 5).flatmap(
    lambda n: st.builds(
        Mixture,
        st.tuples(*[st.integers(1, 60)] * n),
        st.tuples(*[st.integers(1, 12)] * n),
        st.integers(0, 2**40),
        st.sampled_from((1, 1, 2, 7)),
    )
)


@given(mixtures, st.integers(0, 10_000))
def test_every_round_gives_each_source_exactly_its_weight(mixture: Mixture, number: int) -> None:
    start = number * mixture.round_length
    picks = [mixture.pick(draw) for draw in range(start, start + mixture.round_length)]
    assert [draw for draw, _, _ in picks] == list(range(start, start + mixture.round_length))
    assert Counter(source for _, source, _ in picks) == {
        source: weight * mixture.run_length for source, weight in enumerate(mixture.weights)
    }


@given(mixtures)
def test_sources_are_interleaved_evenly(mixture: Mixture) -> None:
    """After k draws of a round a source has had k * weight / total samples, to within the number of sources' turns."""
    taken = [0] * len(mixture.weights)
    for draw in range(mixture.round_length):
        taken[mixture.pick(draw)[1]] += 1
        for source, weight in enumerate(mixture.weights):
            share = weight * mixture.run_length / mixture.round_length
            assert abs(taken[source] - (draw + 1) * share) <= len(mixture.weights) * mixture.run_length


@given(mixtures, st.integers(0, 10_000))
def test_a_turn_is_of_one_source(mixture: Mixture, turn: int) -> None:
    first = turn * mixture.run_length
    assert len({mixture.pick(draw)[1] for draw in range(first, first + mixture.run_length)}) == 1


@settings(max_examples=50)
@given(mixtures)
def test_every_epoch_of_a_source_is_a_permutation(mixture: Mixture) -> None:
    seen: dict[int, list[int]] = {source: [] for source in range(len(mixture.weights))}
    for draw in range(mixture.round_length * 2 * max(mixture.num_samples)):
        _, source, index = mixture.pick(draw)
        seen[source].append(index)
    for source, count in enumerate(mixture.num_samples):
        indices = seen[source]
        assert len(indices) >= 2 * count
        for start in range(0, len(indices) - count + 1, count):
            assert sorted(indices[start : start + count]) == list(range(count))


@given(mixtures, st.lists(st.integers(0, 2_000_000), min_size=1, max_size=20))
def test_a_pick_depends_on_nothing_but_its_draw(mixture: Mixture, draws: list[int]) -> None:
    forwards = {draw: mixture.pick(draw) for draw in draws}
    again = Mixture(mixture.num_samples, mixture.weights, mixture.seed, mixture.run_length)
    assert {draw: again.pick(draw) for draw in reversed(draws)} == forwards


def test_seeds_epochs_and_sources_have_different_orders() -> None:
    def order(seed: int, source: int, epoch: int) -> list[int]:
        mixture = Mixture((50, 50), (1, 1), seed)
        return [mixture.pick(2 * (epoch * 50 + k) + source)[2] for k in range(50)]

    orders = [tuple(order(seed, source, epoch)) for seed in (0, 1) for source in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == len(orders)


def test_the_order_is_the_same_on_every_machine() -> None:
    """A change here breaks the exact resume of older runs."""
    mixture = Mixture((5, 3), (2, 1), seed=7)
    assert [mixture.pick(draw)[1:] for draw in range(9)] == [
        (0, 3),
        (1, 1),
        (0, 4),
        (0, 0),
        (1, 2),
        (0, 2),
        (0, 1),
        (1, 0),
        (0, 1),
    ]


def test_a_resume_at_draw_one_million_costs_nothing() -> None:
    mixture = Mixture((100_000, 50_000), (2, 1), seed=3)
    started = time.perf_counter()
    assert mixture.pick(1_000_000)[0] == 1_000_000
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize(
    ("num_samples", "weights", "seed", "message"),
    [
        ((), (), 0, "one weight per source"),
        ((3,), (1, 1), 0, "one weight per source"),
        ((3, 0), (1, 1), 0, "source 1 .* no samples"),
        ((3, 3), (1, 0), 0, "source 1 .* weight 0"),
        ((3,), (1,), -1, "seed is -1"),
    ],
)
def test_wrong_mixtures_are_refused(
    num_samples: tuple[int, ...], weights: tuple[int, ...], seed: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(num_samples, weights, seed)


def test_a_negative_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Mixture((3,), (1,)).pick(-1)


def test_a_source_that_is_in_order_runs_through_its_records_as_they_stand() -> None:
    mixture = Mixture((3, 50), (1, 1), in_order=(True, False))
    picks = [mixture.pick(draw) for draw in range(12)]
    assert [index for _, source, index in picks if source == 0] == [0, 1, 2, 0, 1, 2]
    plain = Mixture((3, 50), (1, 1))
    assert [pick for pick in picks if pick[1] == 1] == [p for p in map(plain.pick, range(12)) if p[1] == 1]
