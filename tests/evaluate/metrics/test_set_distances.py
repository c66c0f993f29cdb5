"""Laws of the metrics of sets: torchmetrics' numbers, no bias, 0 for copies and halves, and more for what is worse."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from diptych.backbones.assets import asset_path
from diptych.backbones.vision import load_image_encoder
from diptych.data.images import image_to_tensor, open_image
from diptych.evaluate.metrics.set_distances import FEWEST, estimate_diversity, estimate_kid, frechet_distance
from diptych.evaluate.retrieval import pooled_features

pytest.importorskip("torchmetrics")
DIM = 24
STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)


def cloud(num: int, *, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, DIM, generator=generator) * 0.4 + 0.3 + shift


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_kid_of_two_sets_is_torchmetrics_own() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    drawn, real = cloud(60, seed=0, shift=0.2), cloud(60, seed=1)
    theirs = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=60)
    theirs.update(real, real=True)
    theirs.update(drawn, real=False)
    assert estimate_kid(drawn, real, are_pairs=False).mean == pytest.approx(float(theirs.compute()[0]), abs=1e-5)


def test_frechet_distance_is_torchmetrics_own_and_that_of_two_gaussians() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Pass(torch.nn.Identity):
        num_features = DIM

    drawn, real = cloud(300, seed=0, shift=0.2), cloud(400, seed=1)
    theirs = FrechetInceptionDistance(feature=Pass())
    theirs.update(real, real=True)
    theirs.update(drawn, real=False)
    mean, covariance = real.double().mean(dim=0), real.double().T.cov()
    assert frechet_distance(drawn, mean, covariance) == pytest.approx(float(theirs.compute()), rel=1e-4)
    many = frechet_distance(cloud(40_000, seed=2), torch.full((DIM,), 0.5), 0.16 * torch.eye(DIM))
    assert many == pytest.approx(DIM * 0.2**2, rel=0.02)
    with pytest.raises(ValueError, match="needs more images than 24"):
        frechet_distance(drawn[:DIM], mean, covariance)


def test_copies_are_no_distance_away_and_a_set_is_none_from_another_of_its_kind() -> None:
    real = cloud(80, seed=0)
    copies = estimate_kid(real, real, are_pairs=True)
    assert (copies.mean, copies.interval) == (0, (0, 0))
    values = [estimate_kid(cloud(80, seed=k), cloud(80, seed=100 + k), are_pairs=False).mean for k in range(30)]
    error = torch.tensor(values).std() / 30**0.5
    assert abs(sum(values) / 30) < 3 * error


def test_kid_of_pairs_has_no_bias_though_they_depend_on_each_other() -> None:
    """Half of what is drawn is the real image of its prompt: the sets' distance is that of independent ones."""

    def paired(seed: int) -> tuple[Tensor, Tensor]:
        real = cloud(60, seed=seed)
        return (real - 0.3) * 0.5 + cloud(60, seed=seed + 1000), real

    far = [paired(k) for k in range(40)]
    drawn, real = torch.cat([d for d, _ in far[:20]]), torch.cat([r for _, r in far[20:]])
    truth = estimate_kid(drawn, real, are_pairs=False).mean
    values = torch.tensor([estimate_kid(d, r, are_pairs=True).mean for d, r in far])
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 40**0.5
    naive = torch.tensor([estimate_kid(d, r, are_pairs=False).mean for d, r in far])
    assert float(naive.mean()) < truth - 4 * float(naive.std()) / 40**0.5


def test_the_interval_holds_the_truth() -> None:
    truth = estimate_kid(cloud(2000, seed=1, shift=0.1), cloud(2000, seed=2), are_pairs=False).mean
    held = 0
    for k in range(40):
        found = estimate_kid(cloud(60, seed=10 + k, shift=0.1), cloud(60, seed=500 + k), are_pairs=False)
        held += found.interval[0] <= truth <= found.interval[1]
    assert held >= 34  # 38 of 40 on average


def test_diversity_is_the_mean_over_pairs_and_0_where_all_are_alike() -> None:
    features = cloud(30, seed=0)
    found = estimate_diversity(features)
    unit = normalize(features.double(), dim=-1)
    pairs = [1 - float(unit[i] @ unit[j]) for i in range(30) for j in range(30) if i != j]
    assert found.mean == pytest.approx(sum(pairs) / len(pairs))
    assert found.interval[0] < found.mean < found.interval[1]
    assert found.num == 30
    assert estimate_diversity(features[:1].expand(30, -1) * torch.rand(30, 1)).mean == pytest.approx(0, abs=1e-6)


def test_sets_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        estimate_diversity(cloud(FEWEST - 1, seed=0))
    with pytest.raises(ValueError, match="cannot be compared"):
        estimate_kid(cloud(20, seed=0), cloud(21, seed=0), are_pairs=True)
    with pytest.raises(ValueError, match="cannot be compared"):
        estimate_kid(cloud(20, seed=0), cloud(20, seed=0)[:, 1:], are_pairs=False)


def blur(images: Tensor, strength: float) -> Tensor:
    side = round(images.shape[-1] * (1 - strength))
    small = interpolate(images, (side, side), mode="bicubic", antialias=True)
    return interpolate(small, images.shape[-2:], mode="bicubic").clamp(-1, 1)


def add_noise(images: Tensor, strength: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * noise).clamp(-1, 1)


@pytest.fixture(scope="module")
def embed() -> Callable[[Tensor], Tensor]:
    encoder = load_image_encoder("efficientnet-lite0", image_size=64)
    return lambda images: pooled_features(encoder, images, batch_size=32)


@pytest.fixture(scope="module")
def real() -> Tensor:
    folder = asset_path("fluent-emoji-3d")
    files = sorted(folder.rglob("*.webp"))
    random.Random(0).shuffle(files)
    return torch.stack([image_to_tensor(open_image(file), 64) for file in files[:160]])


@pytest.mark.assets("efficientnet-lite0", "fluent-emoji-3d")
def test_two_halves_of_real_emoji_are_within_noise_of_0(real: Tensor, embed: Callable[[Tensor], Tensor]) -> None:
    features = embed(real)
    for seed in range(5):
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
        one, other = features[order].chunk(2)
        low, high = estimate_kid(one, other, are_pairs=False).interval
        assert low < 0 < high


@pytest.mark.assets("efficientnet-lite0", "fluent-emoji-3d")
@pytest.mark.parametrize("spoil", [blur, add_noise])
@pytest.mark.parametrize("are_pairs", [True, False])
def test_more_blur_and_more_noise_are_farther_away(
    real: Tensor, embed: Callable[[Tensor], Tensor], spoil: Callable[[Tensor, float], Tensor], are_pairs: bool
) -> None:
    spoilt = real[: len(real) // 2]
    theirs = embed(spoilt if are_pairs else real[len(real) // 2 :])
    found = [estimate_kid(embed(spoil(spoilt, s)), theirs, are_pairs=are_pairs) for s in STRENGTHS]
    kids = [one.mean for one in found]
    assert kids == sorted(set(kids))
    assert found[-1].interval[0] > max(kids[0], 0)


@pytest.mark.assets("efficientnet-lite0", "fluent-emoji-3d")
def test_more_modes_dropped_are_farther_away_and_less_diverse(real: Tensor, embed: Callable[[Tensor], Tensor]) -> None:
    """Modes: groups of like images. One who draws only some of them, each equally well, is told by both."""
    features = embed(real)
    direction = (features - features.mean(dim=0)).svd().V[:, 0]
    ordered = features[(features @ direction).argsort()]
    kids, diversities = [], []
    for dropped in (0.0, 0.15, 0.3, 0.45, 0.6, 0.75):
        kept = ordered[: round(len(ordered) * (1 - dropped))]
        drawn = kept[torch.arange(len(ordered)) % len(kept)]
        kids.append(estimate_kid(drawn, features, are_pairs=False).mean)
        diversities.append(estimate_diversity(drawn).mean)
    assert kids == sorted(set(kids))
    assert diversities == sorted(set(diversities), reverse=True)
