"""Laws of the EffNet distance: 0 for equal pictures, the same either way, more for what is worse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diptych.backbones.efficientnet_lite import STAGES
from diptych.backbones.vision import EfficientNetFeatures, ImageEncoder, load_image_encoder
from diptych.evaluate.metrics.effnet_distance import effnet_distance
from tiny_judges import small_efficientnet


def pictures(num: int = 4) -> Tensor:
    cells = torch.rand(num, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return interpolate(cells, (32, 32), mode="bicubic").clamp(-1, 1)


def shrink(images: Tensor, side: int) -> Tensor:
    return interpolate(interpolate(images, side, mode="bicubic", antialias=True), 32, mode="bicubic")


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return small_efficientnet()


def test_equal_pictures_are_no_distance_away_and_order_does_not_count(encoder: ImageEncoder) -> None:
    real = pictures()
    other = real.flip(0)
    assert effnet_distance(encoder, real, real).tolist() == [0] * 4
    there, back = effnet_distance(encoder, real, other), effnet_distance(encoder, other, real)
    torch.testing.assert_close(there, back)
    assert bool((there > 0).all())
    assert bool((there <= 4).all())


def test_it_is_the_mean_over_stages_of_squared_distances_of_directions(encoder: ImageEncoder) -> None:
    one, other = pictures(2)
    network = encoder.network
    assert isinstance(network, EfficientNetFeatures)
    maps = [network.network.stage_maps(encoder.preprocessing(image[None])) for image in (one, other)]
    assert [stage.shape[1] for stage in maps[0]] == [stage[-1] for stage in STAGES]
    total = 0.0
    for mine, theirs in zip(*maps, strict=True):
        cosine = torch.nn.functional.cosine_similarity(mine.double(), theirs.double(), dim=1)
        total += float((2 - 2 * cosine).mean()) / len(STAGES)
    assert float(effnet_distance(encoder, one[None], other[None])) == pytest.approx(total, rel=1e-4)


def test_several_are_compared_with_one(encoder: ImageEncoder) -> None:
    real = pictures()
    against_one = effnet_distance(encoder, real[1:], real[:1])
    torch.testing.assert_close(against_one, effnet_distance(encoder, real[1:], real[:1].expand(3, -1, -1, -1)))


@pytest.mark.assets("efficientnet-lite0")
def test_more_blur_and_more_noise_are_farther_away() -> None:
    encoder = load_image_encoder("efficientnet-lite0", image_size=64)
    real = pictures()
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    for spoilt in (
        [shrink(real, side) for side in (28, 20, 12, 7, 3)],
        [real + strength * noise for strength in (0.02, 0.05, 0.1, 0.2, 0.4)],
    ):
        distances = [float(effnet_distance(encoder, images.clamp(-1, 1), real).mean()) for images in spoilt]
        assert distances == sorted(set(distances))
