"""Laws of what a training draws from: small sets are encoded at once, large ones when drawn, wherever an image lies."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.models import training_sources
from diptych.models.encoded_images import EncodedImages
from diptych.models.training_sources import TrainingSources
from tiny_xfusion import tiny_recipe

COLOURS = ("red", "lime", "blue", "white", "black")


class Encoder:
    """Mean colours; remembers how many images it was given at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return images.mean((2, 3))


def encoded(encoder: Encoder, cache_dir: Path | None = None) -> EncodedImages:
    return EncodedImages(encoder, key="colours", image_size=4, cache_dir=cache_dir)


def sources_of(folder: Path, *broken: str) -> TrainingSources:
    lines = []
    for name in COLOURS:
        Image.new("RGB", (4, 4), name).save(folder / f"{name}.png")
        if name in broken:
            (folder / f"{name}.png").write_bytes(b"no image")
        messages = [{"role": "user", "content": "Draw."}, {"role": "assistant", "content": "<image>"}]
        lines.append(json.dumps({"messages": messages, "images": [f"{name}.png"]}))
    (folder / "x.jsonl").write_text("\n".join(lines))
    data = {"sources": [{"path": str(folder / "x.jsonl")}], "max_bad_fraction": 0.5}
    return TrainingSources(tiny_recipe(data=data), cache_dir=None)


PICKS = [(10, 0, 3), (11, 0, 1), (12, 0, 3)]


def test_a_small_set_is_encoded_at_once(tmp_path: Path) -> None:
    encoder, data = Encoder(), sources_of(tmp_path)
    data.encode_with(encoded(encoder))
    assert encoder.batches == [5]
    assert data.readable(PICKS) == PICKS
    assert encoder.batches == [5]
    assert data.num_samples() == (5,)


def test_of_a_large_set_the_images_at_hand_are_encoded_as_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_sources, "PREPARED_IMAGES", 4)
    encoder, data = Encoder(), sources_of(tmp_path)
    images = encoded(encoder)
    data.encode_with(images)
    assert encoder.batches == []
    assert data.readable(PICKS) == PICKS
    assert encoder.batches == [2]
    images.load(data.samples[0][3].images[0])
    assert encoder.batches == [2]


def test_a_sample_whose_image_cannot_be_read_is_replaced_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_sources, "PREPARED_IMAGES", 4)
    data = sources_of(tmp_path, "lime", "blue")
    data.encode_with(encoded(Encoder()))
    with pytest.warns(UserWarning, match=r"lime\.png .*it is skipped"):
        assert data.readable(PICKS) == [(10, 0, 3), (11, 0, 3), (12, 0, 3)]
    assert data.skipper.counts == {"image": 2}
    assert data.skipper.num_drawn == 3


def test_an_image_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    """A member of a tar and a file of the same bytes share one entry of the cache."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(file.getvalue())
        tar.addfile(info, io.BytesIO(file.getvalue()))
    encoder = Encoder()
    plain = encoded(encoder, tmp_path / "cache").load(str(tmp_path / "a.png"))
    member = encoded(encoder, tmp_path / "cache").load(f"{tmp_path / 'a.tar'}@512+{len(file.getvalue())}")
    assert torch.equal(plain, member)
    assert encoder.batches == [1]


def test_little_is_kept_in_memory_and_the_rest_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.models.encoded_images.ITEMS_KEPT", 2)
    encoder, data = Encoder(), sources_of(tmp_path)
    images = encoded(encoder, tmp_path / "cache")
    data.encode_with(images)
    assert len(images._encoded) == 2
    values: list[Any] = [images.load(sample.images[0]) for sample in data.samples[0]]
    assert len({tuple(value.tolist()) for value in values}) == 5
    assert encoder.batches == [5]
