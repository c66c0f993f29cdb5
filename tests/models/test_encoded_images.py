"""Laws of encoded images: a kill loses one shard at most, and long work shows how far it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from diptych.models import encoded_images
from diptych.models.encoded_images import EncodedImages


class Encoder:
    """The mean of an image; interrupted at image `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.num_encoded, self.stop_at = 0, stop_at

    def __call__(self, images: Tensor) -> Tensor:
        if self.stop_at is not None and self.num_encoded + len(images) > self.stop_at:
            raise KeyboardInterrupt
        self.num_encoded += len(images)
        return images.flatten(1).mean(1, keepdim=True)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{number}.png" for number in range(8)]
    for number, path in enumerate(paths):
        Image.new("RGB", (4, 4), (number * 30, 0, 0)).save(path)
    return [str(path) for path in paths]


def encoded_by(encoder: Encoder, folder: Path) -> EncodedImages:
    return EncodedImages(encoder, key="mean", image_size=4, cache_dir=folder / "cache", batch_size=2)


def test_a_preparation_that_is_interrupted_keeps_what_it_has_encoded(
    pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded_images, "SAVED_AT_ONCE", 4)
    with pytest.raises(KeyboardInterrupt):
        encoded_by(Encoder(stop_at=6), tmp_path).prepare(pictures)
    second = Encoder()
    encoded_by(second, tmp_path).prepare(pictures)
    assert second.num_encoded == 4


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_long_preparation_says_how_far_it_is(
    pictures: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
) -> None:
    monkeypatch.setattr(encoded_images, "SECONDS_SILENT", seconds)
    encoded_by(Encoder(), tmp_path).prepare(pictures)
    said = capsys.readouterr().err.splitlines()
    assert said == ([f"diptych: encoding images, once: {done} of 8" for done in (2, 4, 6, 8)] if seconds == 0 else [])
