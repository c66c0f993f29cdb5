"""Law of the growing cache: it holds what transformers' own cache holds, whatever comes and whichever rows go on."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from diptych.nn.growing_cache import SPARE, growing_cache


@given(
    lengths=st.lists(st.integers(1, SPARE + 9), min_size=1, max_size=6),
    kept=st.lists(st.integers(0, 2), min_size=1, max_size=3),
    when=st.integers(0, 5),
)
@settings(max_examples=30, deadline=None)
def test_it_is_the_plain_cache(lengths: list[int], kept: list[int], when: int) -> None:
    ours, theirs = growing_cache(), DynamicCache()
    generator = torch.Generator().manual_seed(0)
    rows = 3
    for step, length in enumerate(lengths):
        for layer in range(2):
            keys, values = (torch.randn(rows, 2, length, size, generator=generator) for size in (4, 6))
            for mine, other in zip(ours.update(keys, values, layer), theirs.update(keys, values, layer), strict=True):
                assert torch.equal(mine, other)
        assert ours.get_seq_length() == theirs.get_seq_length() == sum(lengths[: step + 1])
        if step == when:
            for cache in (ours, theirs):
                cache.batch_select_indices(torch.tensor(kept))
            rows = len(kept)


def test_a_token_more_is_written_in_place() -> None:
    cache = growing_cache()
    first, _ = cache.update(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4), 0)
    second, _ = cache.update(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4), 0)
    assert second.data_ptr() == first.data_ptr()
