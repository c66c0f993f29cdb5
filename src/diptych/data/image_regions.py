"""What a model looks at closer: a part of an image cut out, or the image with boxes drawn in, as references.

| reference | what it names |
|---|---|
| `REFERENCE#crop=x1,y1,x2,y2` | the square around a box, moved into the image; white where the image is too small |
| `REFERENCE#boxes=x1,y1,x2,y2;x1,...` | the whole image with red boxes drawn in |

Numbers are pixels of the image as it is opened, from its upper left corner. REFERENCE is any other of `references.py`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

MAX_BOXES = 32
RED = (230, 20, 20)

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

_FAR = 1e6
_NUMBER = r"\d{1,6}(?:\.\d{1,3})?"
_BOX = rf"{_NUMBER}(?:,{_NUMBER}){{3}}"
_REGION = re.compile(rf"(.+)#(crop|boxes)=({_BOX}(?:;{_BOX}){{0,{MAX_BOXES - 1}}})", re.DOTALL)


@dataclass(frozen=True)
class Region:
    """What is shown of an image: `kind` crop, with one box, or boxes."""

    kind: str
    boxes: tuple[Box, ...]

    def __str__(self) -> str:
        return f"{self.kind}={';'.join(','.join(map(_shown, box)) for box in self.boxes)}"


def crop_reference(image: str, box: Sequence[float]) -> str:
    """Of the part of an image that a box holds. Raises ValueError for a box that is none (`checked_box`)."""
    return f"{image}#{Region('crop', (checked_box(box),))}"


def boxed_reference(image: str, boxes: Sequence[Sequence[float]]) -> str:
    """Of an image with boxes drawn in. Raises ValueError for a box that is none, for none at all, and for too many."""
    if not 1 <= len(boxes) <= MAX_BOXES:
        raise ValueError(f"{len(boxes)} boxes to draw into {image[:200]!r}; there must be 1 to {MAX_BOXES}")
    return f"{image}#{Region('boxes', tuple(map(checked_box, boxes)))}"


def split_region(reference: str) -> tuple[str, Region] | None:
    """(image, region) of a reference to a part of an image, or with boxes; None for any other.

    Raises ValueError for a box without area, and for several boxes to cut out.
    """
    found = _REGION.fullmatch(reference)
    if found is None:
        return None
    image, kind, body = found.groups()
    boxes = tuple(checked_box([float(edge) for edge in box.split(",")]) for box in body.split(";"))
    if kind == "crop" and len(boxes) > 1:
        raise ValueError(f"{reference[:300]!r} names {len(boxes)} boxes to cut out; a crop is of one")
    return image, Region(kind, boxes)


def checked_box(box: Sequence[float]) -> Box:
    """Four edges, those that lie outside to the left and above moved to 0.

    Raises ValueError if they are not four numbers that an image could have, or enclose no pixel.
    """
    numbers = [edge for edge in box if isinstance(edge, int | float) and not isinstance(edge, bool)]
    if len(box) != 4 or len(numbers) != 4 or not all(-_FAR < edge < _FAR for edge in numbers):
        raise ValueError(f"{str(list(box))[:100]} is no box; a box is left, top, right, bottom in pixels")
    left, top, right, bottom = (max(0.0, float(edge)) for edge in numbers)
    if right - left < 1 or bottom - top < 1:
        raise ValueError(f"box {list(box)} encloses no pixel; a box is left, top, right, bottom in pixels")
    return left, top, right, bottom


def show_region(image: Image.Image, region: Region, *, what: str = "the image") -> Image.Image:
    """The region of an RGB image. Raises ValueError that names `what` for a box that lies outside of it."""
    for left, top, *_ in region.boxes:
        if left >= image.width or top >= image.height:
            raise ValueError(
                f"a box at {_shown(left)}, {_shown(top)} lies outside {what} of {image.width} x {image.height}"
            )
    return _cut(image, region.boxes[0]) if region.kind == "crop" else _draw(image, region.boxes)


def region_hash(image_hash: str, region: Region) -> str:
    """The content hash of a region, from its image's."""
    return hashlib.sha256(f"{image_hash} {region}".encode()).hexdigest()


def locate_region(reference: str, locate: Callable[[str], str]) -> str | None:
    """The reference with its image's name replaced by what `locate` gives for it; None if it names no region."""
    found = split_region(reference)
    return None if found is None else f"{locate(found[0])}#{found[1]}"


def _cut(image: Image.Image, box: Box) -> Image.Image:
    """A square, since images are seen as their centre square: what a long box holds at its ends would be lost. White
    where the image is not as wide, or as high, as the box is long."""
    left, top, right, bottom = box
    right, bottom = min(right, image.width), min(bottom, image.height)
    side = math.ceil(max(right - left, bottom - top))
    x = round(min(max(0, (left + right - side) / 2), max(0, image.width - side)))
    y = round(min(max(0, (top + bottom - side) / 2), max(0, image.height - side)))
    part = image.crop((x, y, min(x + side, image.width), min(y + side, image.height)))
    if part.size == (side, side):
        return part
    square = Image.new("RGB", (side, side), "white")
    square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return square


def _draw(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    shown = image.copy()
    pen = ImageDraw.Draw(shown)
    width = max(1, round(min(image.size) / 100))
    for left, top, right, bottom in boxes:
        edges = (left, top, min(right, image.width) - 1, min(bottom, image.height) - 1)
        pen.rectangle((edges[0], edges[1], max(edges[0], edges[2]), max(edges[1], edges[3])), outline=RED, width=width)
    return shown


def _shown(edge: float) -> str:
    return f"{edge:.2f}".rstrip("0").rstrip(".")
