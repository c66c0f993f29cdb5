"""Scenes of emoji with known places, and what is done to pictures in the tasks of emoji_tasks.py."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

HUES = {"red": 0, "orange": 18, "yellow": 40, "green": 85, "blue": 155, "purple": 195, "pink": 230}
"""Of 255, as Pillow counts them."""
LEAST_SHADES = {
    "red": (130, 140),
    "orange": (110, 190),
    "yellow": (90, 190),
    "green": (64, 70),
    "blue": (64, 80),
    "purple": (64, 80),
    "pink": (64, 170),
}
"""Saturation and value, of 255, from which a hue has that name: dark orange is brown, pale red is pink."""
_COLOURED = 64
_LIT = 26
SIDES = {"to the left": (0, 1), "to the right": (2, 1), "above": (1, 0), "below": (1, 2)}
"""Cells (column, row) of a 3 by 3 grid, around what stands in the middle."""
GREY = (128, 128, 128)


@dataclass(frozen=True)
class Placed:
    """A named picture in a square scene: left, top, right, bottom as shares of its side."""

    name: str
    picture: Image.Image
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def draw_scene(placed: Sequence[Placed], size: int) -> Image.Image:
    """Pictures on white at their places, in order."""
    scene = Image.new("RGB", (size, size), "white")
    for thing in placed:
        left, top, right, bottom = (round(edge * size) for edge in thing.box)
        scene.paste(thing.picture.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
    return scene


def cell_box(column: int, row: int, *, cells: int) -> tuple[float, float, float, float]:
    """A cell of a square grid."""
    return column / cells, row / cells, (column + 1) / cells, (row + 1) / cells


def scatter(names: Sequence[str], pictures: Sequence[Image.Image], chance: random.Random) -> list[Placed]:
    """One to four things, each in a quarter of its own, 35% to 50% of the scene wide, anywhere in it."""
    quarters = chance.sample([(0, 0), (1, 0), (0, 1), (1, 1)], len(names))
    placed = []
    for name, picture, (column, row) in zip(names, pictures, quarters, strict=True):
        side = chance.uniform(0.35, 0.5)
        left = 0.5 * column + chance.uniform(0, 0.5 - side)
        top = 0.5 * row + chance.uniform(0, 0.5 - side)
        placed.append(Placed(name, picture, (left, top, left + side, top + side)))
    return placed


def recolour(picture: Image.Image, colour: str) -> Image.Image:
    """Every colour's hue becomes that of `colour`; lightness stays, and grey, black and white stay as they are."""
    hue, saturation, value = (np.asarray(band) for band in picture.convert("HSV").split())
    changed = np.stack([np.full_like(hue, HUES[colour]), saturation, value], axis=-1)
    return Image.fromarray(changed, mode="HSV").convert("RGB")


def fits_word(picture: Image.Image, colour: str) -> bool:
    """Whether a person calls the picture's coloured parts by that word: hue, saturation and value of most of them."""
    hue, saturation, value = (np.asarray(band, dtype=int) for band in picture.convert("HSV").split())
    coloured = (saturation >= _COLOURED) & (value >= _LIT)
    if not coloured.any():
        return False
    around = np.abs((hue[coloured] - HUES[colour] + 128) % 256 - 128)
    shades = (float(np.median(band[coloured])) for band in (saturation, value))
    least = LEAST_SHADES[colour]
    return float(np.median(around)) <= 8 and all(shade >= limit for shade, limit in zip(shades, least, strict=True))


def mask_inside(picture: Image.Image, chance: random.Random) -> Image.Image:
    """Hides a square of 40% to 60% of the side, anywhere, under grey."""
    size = picture.width
    side = round(size * chance.uniform(0.4, 0.6))
    left, top = chance.randint(0, size - side), chance.randint(0, size - side)
    masked = picture.copy()
    masked.paste(GREY, (left, top, left + side, top + side))
    return masked


def mask_outside(picture: Image.Image, chance: random.Random) -> Image.Image:
    """Hides all but a square of 60% to 75% of the side, anywhere, under grey."""
    size = picture.width
    side = round(size * chance.uniform(0.6, 0.75))
    left, top = chance.randint(0, size - side), chance.randint(0, size - side)
    kept = (left, top, left + side, top + side)
    masked = Image.new("RGB", picture.size, GREY)
    masked.paste(picture.crop(kept), kept[:2])
    return masked
