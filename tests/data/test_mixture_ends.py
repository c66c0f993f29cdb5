"""Laws of sources that end: the others go on without one that is through; where all are, all begin again."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.config import Recipe, build_recipe
from diptych.data.mixture import Mixture, build_mixture
from diptych.data.packing import Pick

ends = st.integers(2, 4).flatmap(
    lambda n: st.builds(
        Mixture,
        st.tuples(*[st.integers(1, 20)] * n),
        st.tuples(*[st.integers(1, 6)] * n),
        st.integers(0, 2**40),
        st.sampled_from((1, 1, 3)),
        num_draws=st.tuples(*[st.one_of(st.none(), st.integers(1, 60))] * n),
    )
)


def rounded(mixture: Mixture) -> list[int | None]:
    """Draws of whole turns."""
    length = mixture.run_length
    return [draws and -(-draws // length) * length for draws in mixture.num_draws]


@settings(max_examples=60)
@given(ends)
def test_a_source_gives_exactly_its_draws_and_the_others_go_on_with_their_weights(mixture: Mixture) -> None:
    """After each draw, every source that is not through has had its share of this phase, to within one turn each."""
    limits, count = rounded(mixture), len(mixture.weights)
    total = sum(limit or 0 for limit in limits) if all(limits) else 600
    taken, phase, active = Counter(), Counter(), set(range(count))
    for draw in range(total):
        source = mixture.pick(draw)[1]
        assert source in active, "it is through"
        taken[source] += 1
        phase[source] += 1
        weights = sum(mixture.weights[one] for one in active)
        for one in active:
            share = phase.total() * mixture.weights[one] / weights
            assert abs(phase[one] - share) <= count * mixture.run_length
        if taken[source] == limits[source]:
            active.remove(source)
            phase.clear()
    if all(limits):
        assert [taken[source] for source in range(count)] == limits


@settings(max_examples=60)
@given(ends)
def test_each_source_still_runs_through_whole_permutations(mixture: Mixture) -> None:
    """Over the end of all sources too: the second time round goes on where the first stopped."""
    seen: dict[int, list[int]] = {source: [] for source in range(len(mixture.weights))}
    for draw in range(500):
        _, source, index = mixture.pick(draw)
        seen[source].append(index)
    for source, count in enumerate(mixture.num_samples):
        for start in range(0, len(seen[source]) - count + 1, count):
            assert sorted(seen[source][start : start + count]) == list(range(count))


@given(ends, st.lists(st.integers(0, 2_000_000), min_size=1, max_size=20))
def test_a_pick_depends_on_nothing_but_its_draw(mixture: Mixture, draws: list[int]) -> None:
    forwards = {draw: mixture.pick(draw) for draw in draws}
    assert {draw: mixture.pick(draw) for draw in reversed(draws)} == forwards


def test_sources_without_an_end_are_drawn_as_before() -> None:
    plain = Mixture((5, 3), (2, 1), seed=7)
    named = Mixture((5, 3), (2, 1), seed=7, num_draws=(None, None))
    later = Mixture((5, 3), (2, 1), seed=7, num_draws=(None, 20))
    assert [plain.pick(draw) for draw in range(60)] == [named.pick(draw) for draw in range(60)]
    assert [plain.pick(draw) for draw in range(60)] == [later.pick(draw) for draw in range(60)]
    assert {later.pick(draw)[1] for draw in range(60, 90)} == {0}


def test_where_every_source_ends_all_begin_again() -> None:
    mixture = Mixture((4, 3), (1, 1), seed=1, num_draws=(4, 6))
    rounds = [[mixture.pick(draw)[1:] for draw in range(start, start + 10)] for start in (0, 10)]
    for one in rounds:
        assert Counter(one) == {(0, 0): 1, (0, 1): 1, (0, 2): 1, (0, 3): 1, (1, 0): 2, (1, 1): 2, (1, 2): 2}
    assert rounds[0] != rounds[1], "in another order"


def test_a_resume_far_behind_the_ends_costs_nothing() -> None:
    mixture = Mixture((100_000, 50_000, 9), (200, 30, 1), seed=3, num_draws=(None, 150_000, 27))
    started = time.perf_counter()
    assert mixture.pick(1_000_000)[:2] == (1_000_000, 0)
    assert time.perf_counter() - started < 1.0


def recipe_of(*sources: dict[str, Any], **settings: Any) -> Recipe:
    named = [{"path": f"{place}.jsonl", **source} for place, source in enumerate(sources)]
    return build_recipe({"output_dir": "nowhere", "data": {"sources": named}, **settings})


def num_tokens(pick: Pick) -> int:
    """10 or 30: 20 on the average. Every fifth cannot be used."""
    if pick[2] % 5 == 4:
        raise ValueError(f"sample {pick[2]} is broken")
    return 10 + 20 * (pick[2] % 2)


def test_epochs_and_tokens_become_draws() -> None:
    recipe = recipe_of({"epochs": 2.5}, {"tokens": 2000}, {"weight": 3})
    mixture = build_mixture(recipe, (10, 40, 7), num_tokens=num_tokens)
    assert mixture.num_draws == (25, 100, None)
    assert Counter(mixture.pick(draw)[1] for draw in range(2000)) == {0: 25, 1: 100, 2: 1875}


def test_of_a_large_source_few_records_are_measured() -> None:
    asked: list[int] = []

    def measured(pick: Pick) -> int:
        asked.append(pick[2])
        return 20

    mixture = build_mixture(recipe_of({"tokens": 2_000_000}, {}), (1_000_000, 5), num_tokens=measured)
    assert mixture.num_draws == (100_000, None)
    assert len(asked) <= 512
    assert max(asked) > 990_000, "from all over it"


def test_a_source_of_which_nothing_can_be_measured_is_refused() -> None:
    def broken(pick: Pick) -> int:
        raise ValueError(f"sample {pick[2]} is broken")

    with pytest.raises(ValueError, match="sample 0 is broken"):
        build_mixture(recipe_of({"tokens": 9}, {}), (3, 3), num_tokens=broken)


def test_tokens_of_a_method_that_has_none_are_refused() -> None:
    recipe = recipe_of({"tokens": 9}, {}, method="autoencoder", autoencoder_training={"latent_channels": 4})
    with pytest.raises(ValueError, match=r"0\.jsonl: tokens: method autoencoder learns from images alone; say epochs"):
        build_mixture(recipe, (3, 3), num_tokens=num_tokens)


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([{"epochs": 2}], "of the only source they would change nothing"),
        ([{"tokens": 2}], "of the only source they would change nothing"),
        ([{"epochs": 2, "tokens": 9}, {}], "leave one out"),
        ([{"epochs": 0}, {}], "greater than 0"),
        ([{"epochs": float("inf")}, {}], "finite"),
        ([{"tokens": 0}, {}], "greater than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(sources: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recipe_of(*sources)


def test_a_mixture_checks_its_numbers_of_draws() -> None:
    with pytest.raises(ValueError, match="1 numbers of draws for 2 sources"):
        Mixture((3, 3), (1, 1), num_draws=(4,))
    with pytest.raises(ValueError, match="each must be 1 or more"):
        Mixture((3, 3), (1, 1), num_draws=(None, 0))
