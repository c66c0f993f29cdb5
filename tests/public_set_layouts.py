"""What public sets are written with in their true layouts, and how the mixtures in recipes/ open them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from diptych.config import build_recipe
from diptych.data.references import open_reference
from diptych.data.samples import RecordError, Sample
from diptych.data.sources import Source, open_sources
from diptych.data_settings import DataConfig

MIXTURES = Path(__file__).parents[1] / "recipes" / "mixtures"
RED, LIME, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(colour, size, path.suffix))


def encoded(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8), suffix: str = ".png") -> bytes:
    buffer = io.BytesIO()
    lossless: dict[str, Any] = {"quality": 100, "subsampling": 0} if suffix.startswith(".jp") else {}
    Image.new("RGB", size, colour).save(buffer, "JPEG" if lossless else "PNG", **lossless)
    return buffer.getvalue()


def write(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(one)}\n" for one in records) if path.suffix == ".jsonl" else json.dumps(records)
    path.write_text(text, encoding="utf-8")


def write_clip(path: Path, seconds: int = 3) -> None:
    """One frame of plain grey after the other, ten a second."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9" if path.suffix == ".webm" else "libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(10 * seconds):
            pixels = np.full((32, 32, 3), 10 + 7 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_shard(path: Path, entries: list[tuple[str, dict[str, bytes]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in entries:
            for suffix, body in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))


def pair(key: str, caption: str, colour: tuple[int, int, int]) -> tuple[str, dict[str, bytes]]:
    """As img2dataset writes it."""
    told = {"key": key, "caption": caption, "url": f"http://x/{key}", "status": "success", "width": 8, "height": 8}
    return key, {"jpg": encoded(colour, suffix=".jpg"), "json": json.dumps(told).encode(), "txt": caption.encode()}


def write_table(path: Path, fields: dict[str, list[Any]]) -> None:
    """As the Hub's `datasets` writes tables: images are structs of bytes and path."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    columns = {
        name: arrow.array([{"bytes": one, "path": None} for one in values], image)
        if any(isinstance(one, bytes) for one in values)
        else arrow.array(values)
        for name, values in fields.items()
    }
    parquet.write_table(arrow.table(columns), path)


def settings_of(name: str, **changes: Any) -> DataConfig:
    settings = yaml.safe_load((MIXTURES / f"{name}.yaml").read_text(encoding="utf-8"))
    settings["data"] |= changes
    return build_recipe({"output_dir": "runs/x", **settings}).data


def opened(name: str, **changes: Any) -> list[Source]:
    return open_sources(settings_of(name, **changes))


def said(sample: Sample) -> list[tuple[str, tuple[str | int, ...]]]:
    return [(message.role, message.parts) for message in sample.messages]


def colours(sample: Sample) -> list[tuple[int, ...]]:
    """Of each image the colour in its middle."""
    images = [open_reference(image) for image in sample.images]
    return [image.getpixel((image.width // 2, image.height // 2)) for image in images]  # type: ignore[misc]


def near(found: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> bool:
    """JPEG and YUV are off by a little."""
    return len(found) == len(expected) and bool(np.abs(np.subtract(found, expected)).max() <= 4)


def kind_of_error(source: Source, number: int) -> str:
    with pytest.raises(RecordError) as caught:
        source[number]
    assert source.where(number) in str(caught.value)
    return caught.value.kind


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
