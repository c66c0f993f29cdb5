"""Pictures in rows with captions: samples of a data set, grids that a model drew."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diptych.data.images import open_image
from diptych.data.references import open_reference
from diptych.data.samples import Sample
from diptych.data.sources import open_sources
from diptych.data_settings import DataConfig, SourceConfig

_GAP = 8
_FONT_SIZE = 12
_INK, _PAPER, _FRAME = "#222222", "white", "#dddddd"


def draw_image_grid(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    *,
    cell: int = 128,
) -> Image.Image:
    """Images row by row, each fitted into a square of `cell` pixels, with its caption (wrapped) below.

    `columns` left out: as square a grid as possible. Raises ValueError if there is no image, or captions do not match.
    """
    if not images:
        raise ValueError("an image grid needs at least one image")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"an image grid has {len(images)} images but {len(captions)} captions")
    if columns is None:
        columns = 1
        while columns * columns < len(images):
            columns += 1
    if columns < 1 or cell < 8:
        raise ValueError(f"an image grid of {columns} columns of {cell} pixels cannot be drawn")
    columns = min(columns, len(images))
    font = ImageFont.load_default(_FONT_SIZE)
    texts = [_wrap(caption, font, cell) for caption in captions or [""] * len(images)]
    line_height = _FONT_SIZE + 3
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    text_heights = [max(len(texts[index]) for index in row) * line_height for row in rows]
    height = _GAP + sum(cell + text_height + _GAP for text_height in text_heights)
    sheet = Image.new("RGB", (_GAP + columns * (cell + _GAP), height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    top = _GAP
    for row, text_height in zip(rows, text_heights, strict=True):
        for place, index in enumerate(row):
            left = _GAP + place * (cell + _GAP)
            sheet.paste(_fit(images[index], cell), (left, top))
            for number, line in enumerate(texts[index]):
                pen.text((left, top + cell + 2 + number * line_height), line, fill=_INK, font=font)
        top += cell + text_height + _GAP
    return sheet


def draw_contact_sheet(
    samples: Sequence[Sample],
    num: int = 8,
    *,
    root: str | Path | None = None,
    columns: int | None = None,
    cell: int = 160,
) -> Image.Image:
    """`num` samples, spread evenly over all, each with its images and what is said, as one picture.

    `root`: the folder that the samples' images are relative to; without one they are references.
    Raises ValueError if there are no samples, or an image cannot be read.
    """
    if not samples or num < 1:
        raise ValueError(f"a contact sheet of {num} out of {len(samples)} samples cannot be drawn")
    num = min(num, len(samples))
    chosen = [samples[(2 * k + 1) * len(samples) // (2 * num)] for k in range(num)]
    pictures = [_picture([_open(image, root) for image in sample.images], cell) for sample in chosen]
    return draw_image_grid(pictures, [caption(sample) for sample in chosen], columns or min(num, 4), cell=cell)


def draw_folder_sheet(folder: str | Path, num: int = 8) -> Image.Image:
    """A contact sheet over all sample files (*.jsonl) of a data set, `num` samples in turn from each file.

    Raises ValueError if the folder has none, or one cannot be read.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give the folder of the data set, {folder.parent}, or a recipe (.yaml)")
    if not folder.is_dir():
        raise ValueError(
            f"data folder {folder} does not exist; build one with: diptych data build emoji --out {folder}"
        )
    files = [path for path in sorted(folder.glob("*.jsonl")) if path.stat().st_size]
    if not files:
        raise ValueError(f"folder {folder} holds no .jsonl files of samples; is it a data set?")
    return draw_recipe_sheet(DataConfig(sources=tuple(SourceConfig(path=str(file)) for file in files)), num)


def draw_recipe_sheet(data: DataConfig, num: int = 8) -> Image.Image:
    """A contact sheet over the sources of a recipe, `num` samples in turn from each."""
    sources, chosen = open_sources(data), list[Sample]()
    for place, samples in enumerate(sources):
        share = num // len(sources) + (place < num % len(sources))
        shift = place / len(sources)  # so that files that list the same things show different ones
        chosen += [samples[int((k + shift) / share * len(samples))] for k in range(share)]
    return draw_contact_sheet(chosen, num)


def _open(image: str, root: str | Path | None) -> Image.Image:
    return open_reference(image) if root is None else open_image(image, root=root)


def caption(sample: Sample) -> str:
    """What is said in a sample, a line per message; the assistant's begin with an arrow."""
    lines = []
    for message in sample.messages:
        words = " ".join("".join(part if isinstance(part, str) else " [image] " for part in message.parts).split())
        lines.append(f"-> {words}" if message.role == "assistant" else words)
    return "\n".join(lines)


def _picture(images: list[Image.Image], cell: int) -> Image.Image:
    """One image as it is; several side by side; none: a blank one."""
    if len(images) == 1:
        return images[0]
    picture = Image.new("RGB", (cell, cell), _FRAME if not images else _PAPER)
    side = cell // max(1, len(images))
    for place, image in enumerate(images):
        picture.paste(_fit(image, side), (place * side, (cell - side) // 2))
    return picture


def _fit(image: Image.Image, side: int) -> Image.Image:
    """The image scaled to fit a framed square: small ones by whole pixels, so that they stay what they are."""
    rgb = image.convert("RGB")
    scale = side / max(rgb.size)
    size = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
    exact = scale >= 2 and scale == int(scale)
    rgb = rgb.resize(size, Image.Resampling.NEAREST if exact else Image.Resampling.BICUBIC)
    framed = Image.new("RGB", (side, side), _PAPER)
    framed.paste(rgb, ((side - size[0]) // 2, (side - size[1]) // 2))
    ImageDraw.Draw(framed).rectangle((0, 0, side - 1, side - 1), outline=_FRAME)
    return framed


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of whole words as wide as `width` pixels allow; a word that is wider is cut. Letters lose their marks: the
    font has none."""
    lines: list[str] = []
    bare = "".join(sign for sign in unicodedata.normalize("NFD", text) if not unicodedata.combining(sign))
    text = unicodedata.normalize("NFC", bare)
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            while font.getlength(word) > width and len(word) > 1:
                cut = len(word) - 1
                while cut > 1 and font.getlength(word[:cut]) > width:
                    cut -= 1
                lines += [line, word[:cut]] if line else [word[:cut]]
                line, word = "", word[cut:]
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
