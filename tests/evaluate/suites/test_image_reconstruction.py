"""Laws of reconstruction: equal images are perfect, their mean is the majority, and PSNR is the formula's."""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.images import open_image
from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.metrics.reference_statistics import find_images
from diptych.evaluate.suites.image_reconstruction import MAX_PSNR, ImageReconstruction, compare_images
from tiny_judges import small_efficientnet
from toy_suite import STAMP

pytest.importorskip("torchmetrics")
SIZE = 16


class Mirror:
    """Gives each image back as `change` makes it."""

    abilities = frozenset({"reconstructs"})

    def __init__(self, change: Callable[[Image.Image], Image.Image]) -> None:
        self.change = change

    def reconstruct(self, images: list[Image.Image], **sampling: Any) -> list[Image.Image]:
        return [self.change(image) for image in images]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number in range(6):
        cells = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        place = folder / "more" if number % 2 else folder
        Image.fromarray(cells).resize((SIZE, SIZE)).save(place / f"{number}.png")
    return folder


def test_equal_images_are_perfect(pictures: Path, tmp_path: Path) -> None:
    suite = ImageReconstruction(pictures, encoder=small_efficientnet())
    (result,) = evaluate_suites(Mirror(lambda image: image), [suite], tmp_path / "out", stamp=STAMP)
    assert result.scores["psnr"].mean == MAX_PSNR
    assert result.scores["ssim"].mean == pytest.approx(1)
    assert result.scores["effnet_distance"].mean == 0
    assert {e.id for e in result.examples} == {"0.png", "2.png", "4.png", "more/1.png", "more/3.png", "more/5.png"}


def test_the_mean_of_all_images_scores_the_majority_baseline(pictures: Path, tmp_path: Path) -> None:
    all_pixels = [np.asarray(Image.open(path), dtype=float) for path in pictures.rglob("*.png")]
    mean = Image.fromarray(np.mean(all_pixels, axis=0).round().astype(np.uint8))
    suite = ImageReconstruction(pictures, encoder=small_efficientnet())
    (result,) = evaluate_suites(Mirror(lambda image: mean), [suite], tmp_path / "out", stamp=STAMP)
    for name, tolerance in (("psnr", 0.02), ("ssim", 0.002), ("effnet_distance", 0.002)):
        majority, chance = result.scores[name].baselines.majority, result.scores[name].baselines.chance
        assert majority is not None
        assert chance is not None
        assert result.scores[name].mean == pytest.approx(majority, abs=tolerance)
        if name != "effnet_distance":  # of a random network
            assert chance < majority


def test_another_image_in_place_of_each_scores_the_chance_baseline(pictures: Path, tmp_path: Path) -> None:
    """Of neighbours by name, which are often alike, it would not be the chance of any other image."""
    drawn = sorted(find_images(pictures), key=lambda p: sha256(p.relative_to(pictures).as_posix().encode()).digest())
    others = {open_image(p).tobytes(): open_image(q) for p, q in zip(drawn, [*drawn[1:], drawn[0]], strict=True)}
    suite = ImageReconstruction(pictures, encoder=small_efficientnet())
    mirror = Mirror(lambda image: others[image.tobytes()])
    (result,) = evaluate_suites(mirror, [suite], tmp_path / "out", stamp=STAMP)
    for name in ("psnr", "ssim", "effnet_distance"):
        assert result.scores[name].mean == pytest.approx(result.scores[name].baselines.chance, abs=1e-4)


def test_psnr_is_the_formulas_and_ssim_falls_with_noise() -> None:
    real = torch.rand(3, 3, SIZE, SIZE) * 1.6 - 0.8
    noise = torch.randn_like(real)
    similarities = []
    for strength in (0.02, 0.1, 0.4):
        noised = (real + strength * noise).clamp(-1, 1)
        scores = compare_images(noised, real)
        for own, image, other in zip(scores, noised, real, strict=True):
            error = float(((image - other) / 2).square().mean())
            assert own["psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-3)
        similarities.append(scores[0]["ssim"])
    assert similarities == sorted(similarities, reverse=True)


def test_images_too_small_for_ssim_and_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="windows of 11 pixels"):
        compare_images(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="holds no images"):
        ImageReconstruction(tmp_path).load_examples(lambda what, done, total: None)
