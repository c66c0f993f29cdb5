"""Tiny npm packages in the layout of those that the emoji set is built from: each drawing a chessboard of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GROUPS = {
    "groups": {
        "0": "smileys",
        "2": "component",
        "3": "animals",
        "4": "food",
        "5": "travel",
        "6": "play",
        "7": "things",
    },
    "subgroups": {str(i): f"sub{i}" for i in range(10)}
    | {"10": "animal-x", "11": "food-fruit", "12": "drink", "58": "time"},
}
NAMES = [f"{first}{second}" for first in ("ba", "do", "ki", "lu") for second in ("m", "rn", "sp", "x", "zel", "fot")]
FOLDERS = ("openmoji_folder", "fluent_folder", "emojibase_folder")


def entry(name: str, number: int, group: int = 3, subgroup: int = 0, **more: Any) -> dict[str, Any]:
    base = {"label": name, "emoji": "?", "hexcode": f"1F{number:03X}", "order": number, "version": 1}
    return {**base, "group": group, "subgroup": subgroup, "tags": [f"tag{number}", "b", "a", "c"], **more}


def write_packages(root: Path, entries: list[dict[str, Any]], *, same: dict[str, str] | None = None) -> dict[str, Any]:
    """Tiny packages in the layout of the real ones: each drawing a chessboard of its own."""
    folders = {name: root / name / "package" for name in FOLDERS}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"name": name, "version": "1.0.0"}))
    openmoji, fluent, emojibase = folders.values()
    for folder in (openmoji / "color" / "svg", fluent / "assets", emojibase / "en", emojibase / "meta"):
        folder.mkdir(parents=True)
    (emojibase / "en" / "data.json").write_text(json.dumps(entries))
    (emojibase / "meta" / "groups.json").write_text(json.dumps(GROUPS))
    for item in entries:
        drawn = str((same or {}).get(item["label"], item["hexcode"]))
        cells = np.random.default_rng(int(drawn.split("-")[0], 16)).integers(0, 256, (4, 4, 4), dtype=np.uint8)
        cells[..., 3] = 255
        cells[0, 0, 3] = 0
        board = Image.fromarray(cells).resize((64, 64), Image.Resampling.NEAREST)
        board.save(fluent / "assets" / f"{item['hexcode'].lower()}.webp", lossless=True)
        squares = "".join(
            f'<rect x="{x}" y="{y}" width="1" height="1" fill="rgb({",".join(str(v) for v in cells[y, x, :3])})"/>'
            for x in range(4)
            for y in range(4)
            if x + y
        )
        corners = np.random.default_rng(int(drawn.split("-")[0], 16) + 1).permutation(9)[:5]
        dots = "".join(
            f'<rect x="{0.9 + k % 3}" y="{0.9 + k // 3}" width="0.2" height="0.2" fill="black"/>' for k in corners
        )  # where four squares meet, so that the middles of squares stay as they are
        lines = f'<g id="color">{squares}</g><g id="line">{dots}</g>'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4">{lines}</svg>'
        (openmoji / "color" / "svg" / f"{item['hexcode']}.svg").write_text(svg)
    return {name: root / name for name in FOLDERS}


def write_clips(root: Path, entries: list[dict[str, Any]], *, num_frames: int = 52) -> dict[str, Any]:
    """Two tiny packages of animated emoji: a square of its own colour and way over white, 1/24 second a frame."""
    folders = [root / f"clips-{k}" / "package" for k in (1, 2)]
    for folder in folders:
        (folder / "assets").mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"name": folder.parent.name, "version": "1.0.0"}))
    emojibase = root / "words" / "package"
    for folder in (emojibase / "en", emojibase / "meta"):
        folder.mkdir(parents=True)
    (emojibase / "package.json").write_text(json.dumps({"name": "words", "version": "1.0.0"}))
    (emojibase / "en" / "data.json").write_text(json.dumps(entries))
    (emojibase / "meta" / "groups.json").write_text(json.dumps(GROUPS))
    for number, item in enumerate(entries):
        chance = np.random.default_rng(number)
        colour = tuple(int(value) for value in chance.integers(0, 200, 3))
        start, step = chance.uniform(0, 4, 2), chance.uniform(1, 1.2, 2)
        frames = []
        for k in range(num_frames):
            left, top = (int(value) for value in start + k * step)
            frames.append(Image.new("RGBA", (84, 84), (255, 255, 255, 0)))
            frames[-1].paste((*colour, 255), (left, top, left + 18, top + 18))
        path = folders[number % 2] / "assets" / f"{item['hexcode'].lower()}.webp"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=42, lossless=True, quality=0, method=0)
    return {"clip_folders": tuple(folder.parent for folder in folders), "emojibase_folder": emojibase.parent}
