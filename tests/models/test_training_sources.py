"""Laws of what a training draws from: small sets are encoded at once, large ones when drawn, wherever an image lies."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.data.samples import RecordError
from diptych.data_settings import SourceConfig
from diptych.models import training_sources
from diptych.models.encoded_images import EncodedImages
from diptych.models.training_sources import NO_IMAGE, TrainingSources
from diptych.sequence import ImageSpan
from diptych.sequence import Sequence as Stream
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
    data.prepare(PICKS)
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
    data.prepare(PICKS)
    assert encoder.batches == [2]
    images.load(data.samples[0][3].images[0])
    assert encoder.batches == [2]


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_sources, "PREPARED_IMAGES", 4)
    data = sources_of(tmp_path, "lime", "blue")
    data.encode_with(encoded(Encoder()))
    with pytest.raises(RecordError, match=r"lime\.png") as caught:
        data.prepare(PICKS)
    assert caught.value.kind == "image"
    data.prepare(PICKS[:1])


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
    first = encoded(encoder, tmp_path / "cache")
    plain = first.load(str(tmp_path / "a.png"))
    first.flush()
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


def test_what_is_encoded_reaches_the_disk_in_few_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one for each micro-batch."""
    monkeypatch.setattr("diptych.models.encoded_images.SAVED_AT_ONCE", 4)
    encoder, data = Encoder(), sources_of(tmp_path)
    images = encoded(encoder, tmp_path / "cache")
    for sample in data.samples[0]:
        images.prepare(sample.images)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    images.flush()
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    again = encoded(encoder, tmp_path / "cache")
    again.prepare([sample.images[0] for sample in data.samples[0]])
    assert encoder.batches == [1] * 5


def test_a_full_disk_makes_no_image_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_sources, "PREPARED_IMAGES", 1)
    monkeypatch.setattr("diptych.models.encoded_images.SAVED_AT_ONCE", 1)
    data = sources_of(tmp_path)
    data.encode_with(encoded(Encoder(), tmp_path / "cache"))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diptych.data.tensor_cache.save_file", fail)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for index in range(len(COLOURS)):
            data.prepare([(0, 0, index)])
    assert ["No space left" in str(one.message) for one in told] == [True]


def test_images_of_a_stream_are_not_read_before_they_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream has no way back: neither a survey nor a spread over it."""
    sources_of(tmp_path)
    monkeypatch.setattr(SourceConfig, "is_stream", True)
    data = TrainingSources(tiny_recipe(data={"sources": [{"path": str(tmp_path / "x.jsonl")}]}), cache_dir=None)
    assert data.images is None
    assert data.spread(0, 2) == [0, 1]
    assert [Path(image).name for image in data.some_images(2)] == ["red.png", "lime.png"]


def test_images_in_the_records_are_not_what_memory_is_for(tmp_path: Path) -> None:
    """Known by their content: no store holds on to the words of a long reference."""
    file = io.BytesIO()
    Image.effect_noise((40, 40), 90).save(file, "PNG")
    image = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    encoder = Encoder()
    images = encoded(encoder, tmp_path / "cache")
    value = images.load(image)
    assert torch.equal(images.load(image), value)
    assert encoder.batches == [1]
    assert all(len(key) < 100 < len(image) for key in images._encoded._values)
    stream = Stream((ImageSpan(NO_IMAGE, 4, is_target=True, source=image),))
    assert training_sources._stream_bytes(stream) > len(image)
