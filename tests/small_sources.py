"""Sources of a few records over three plain pictures, and what their samples say and show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.references import open_reference
from diptych.data.samples import Sample
from diptych.data.sources import Source
from diptych.data_settings import DataConfig, SourceConfig

RED, LIME, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def write_pictures(folder: Path) -> Path:
    """a.png red, b.png green, c/d.png blue in a folder; outside, beside it, secret.png."""
    (folder / "c").mkdir(parents=True)
    for name, colour in (("a.png", RED), ("b.png", LIME), ("c/d.png", BLUE)):
        Image.new("RGB", (8, 8), colour).save(folder / name)
    Image.new("RGB", (8, 8)).save(folder.parent / "secret.png")
    return folder


def source_of(path: Path, *, allow_urls: Any = False, **config: Any) -> Source:
    made = SourceConfig(path=str(path), **config)
    return Source(made, DataConfig(sources=(made,), allow_urls=allow_urls))


def write_records(path: Path, *records: Any) -> Path:
    """As a JSON array or as JSON Lines, by the path's ending."""
    if path.suffix == ".json":
        path.write_text(json.dumps(list(records), indent=1))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def said(sample: Sample) -> list[tuple[str, tuple[str | int, ...]]]:
    return [(message.role, message.parts) for message in sample.messages]


def colours(sample: Sample) -> list[tuple[int, ...]]:
    return [open_reference(image).getpixel((0, 0)) for image in sample.images]  # type: ignore[misc]
