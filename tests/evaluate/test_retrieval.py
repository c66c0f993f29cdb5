"""Laws of retrieval: an image finds itself, chance is chance, ties and NaN help nobody."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diptych.evaluate.retrieval import embed_images, retrieval_ranks, retrieval_score


class Pixels:
    """An encoder whose features are the pixels."""

    def pooled(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def real_images(num: int = 40) -> Tensor:
    return torch.rand(num, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_real_images_find_themselves_every_time() -> None:
    features = embed_images(Pixels(), real_images(), batch_size=7)
    assert retrieval_ranks(features, features, range(40)) == [0] * 40
    assert features.norm(dim=1).tolist() == pytest.approx([1] * 40)


def test_unrelated_images_find_it_by_chance() -> None:
    """2,000 images against a gallery of 40: 1 in 40 first, 5 in 40 among five; within four standard deviations."""
    gallery = embed_images(Pixels(), real_images())
    drawn = embed_images(Pixels(), torch.rand(2000, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    ranks = retrieval_ranks(drawn, gallery, [i % 40 for i in range(2000)])
    for top in (1, 5):
        score = retrieval_score(ranks, top=top, gallery_size=40)
        assert score.chance == top / 40
        assert abs(score.value - score.chance) < 4 * (score.chance * (1 - score.chance) / 2000) ** 0.5


@given(st.integers(0, 9))
def test_a_rank_counts_those_that_are_nearer(place: int) -> None:
    gallery = torch.nn.functional.one_hot(torch.arange(10), 10).float()
    drawn = torch.linspace(1, 0.1, 10)[None]
    assert retrieval_ranks(drawn, gallery, [place]) == [place]


def test_who_is_equally_near_counts_against_the_drawn_image() -> None:
    gallery = torch.ones(5, 3)
    assert retrieval_ranks(torch.ones(1, 3), gallery, [2]) == [4]


def test_features_that_are_not_finite_are_refused() -> None:
    """NaN is nearer to nothing: unchecked, it would be ranked before the first."""
    images = real_images(3)
    images[1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        embed_images(Pixels(), images)


def test_each_drawn_image_needs_a_target() -> None:
    with pytest.raises(ValueError, match="2 drawn images but 1 targets"):
        retrieval_ranks(torch.ones(2, 3), torch.ones(4, 3), [0])
