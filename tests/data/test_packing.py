"""Laws of packing: every sample once, no pack too long, the same packs after a resume, and little room left."""

from __future__ import annotations

import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.data.packing import Pack, Packer, PackingState, Pick


def pick(draw: int) -> Pick:
    return draw, 0, draw


def packer(lengths: list[int], *, length: int, buffer_size: int = 8, state: PackingState | None = None) -> Packer:
    """Draw k has lengths[k], over and over; 0 marks a sample that cannot be used."""

    def num_tokens(own: Pick) -> int:
        tokens = lengths[own[0] % len(lengths)]
        if not tokens:
            raise ValueError(f"draw {own[0]} is broken")
        return tokens

    return Packer(pick, num_tokens, length=length, buffer_size=buffer_size, state=state)


def packs(source: Packer, num: int) -> list[Pack]:
    return [source.next_pack() for _ in range(num)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(30, 90), st.integers(1, 20))
def test_every_sample_comes_once_and_no_pack_is_too_long(lengths: list[int], length: int, buffer_size: int) -> None:
    source = packer(lengths, length=length, buffer_size=buffer_size)
    made = packs(source, 30)
    draws = [draw for pack in made for draw, _, _ in pack.picks]
    assert len(draws) == len(set(draws))
    assert set(draws) | set(source.state.waiting) == set(range(source.state.next_draw))
    for pack in made:
        assert pack.picks
        assert pack.num_tokens == sum(lengths[draw % len(lengths)] for draw, _, _ in pack.picks) <= length


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(0, 20))
def test_resumed_packs_are_the_same(lengths: list[int], after: int) -> None:
    whole = packer(lengths, length=40)
    expected = packs(whole, after + 10)[after:]
    first = packer(lengths, length=40)
    packs(first, after)
    assert packs(packer(lengths, length=40, state=first.state), 10) == expected


@given(st.lists(st.integers(1, 30), min_size=2, max_size=40))
def test_nothing_waits_longer_than_a_buffer_of_packs(lengths: list[int]) -> None:
    """The oldest opens a pack, so that a sample is passed by at most once for each one before it in the buffer."""
    source = packer(lengths, length=40)
    for number in range(60):
        newest = source.state.next_draw + 8
        for draw, _, _ in source.next_pack().picks:
            assert draw <= newest
        assert min(source.state.waiting, default=newest) > number - 8


def test_a_buffer_of_short_and_long_samples_leaves_hardly_any_room() -> None:
    rng = random.Random(0)
    lengths = [rng.choice((18, 25, 31, 44, 90, 140, 260)) for _ in range(5000)]
    source = packer(lengths, length=1024, buffer_size=256)
    fill = [pack.num_tokens / 1024 for pack in packs(source, 200)]
    assert sum(fill) / len(fill) > 0.99
    in_order = packer(lengths, length=1024, buffer_size=1)
    assert sum(pack.num_tokens for pack in packs(in_order, 200)) < sum(fill) * 1024


def test_what_cannot_be_used_is_passed_over_and_told_once() -> None:
    source = packer([5, 0, 7, 50], length=20, buffer_size=4)
    made = packs(source, 6)
    told = [own for pack in made for own in pack.unusable]
    assert [draw for (draw, _, _), _ in told] == [draw for draw in range(source.state.next_draw) if draw % 4 in (1, 3)]
    assert "draw 1 is broken" in str(told[0][1])
    assert "50 tokens does not fit into packs of 20" in str(told[1][1])
    assert all(draw % 4 in (0, 2) for pack in made for draw, _, _ in pack.picks)


def test_a_stream_without_one_usable_sample_ends() -> None:
    with pytest.raises(ValueError, match="draw 0 is broken"):
        packer([0], length=20).next_pack()


def test_ranks_that_follow_all_packs_share_them() -> None:
    one = packs(packer([3, 9, 14], length=20), 12)
    shares = [list(islice((p for p in packs(packer([3, 9, 14], length=20), 12)), rank, None, 3)) for rank in range(3)]
    assert [pack for group in zip(*shares, strict=True) for pack in group] == one
