"""Visual thinking on scenes: a look closer, then the answer. The look is a picture that the model draws itself.

Zoomed (as in Visual CoT): the asked thing alone, cut out of the scene and enlarged. Boxed (as in V*): the whole scene
with red boxes around what the answer rests on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from diptych.data.builders.concept_gallery import GallerySource, Pool, category
from diptych.data.builders.emoji import BuiltSet
from diptych.data.builders.emoji_scenes import Placed, cell_box, draw_scene
from diptych.data.builders.gallery_sets import build_gallery_set
from diptych.data.builders.set_writing import Draft

CELLS = 4
SCENE_SCALE = 2
"""A scene is that many times as wide as a single picture, so that a thing in it is small and a look closer helps."""
RED = (230, 20, 20)
ORDINALS = ("first", "second", "third", "fourth")
NEIGHBOURS = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}
NUMBERS = ("zero", "one", "two", "three", "four")
"""How many things of a kind are asked for: few enough that a split has them of several kinds."""
ZOOM_LEADS = ("Let me look closer.", "I will zoom in on it.", "Let me zoom in.")
BOX_LEADS = ("Let me mark what matters.", "I will draw boxes around what matters.", "Let me mark it first.")


def build_visual_thinking(out: str | Path, source: GallerySource, *, num_samples: int = 2000) -> BuiltSet:
    """Builds the set in the folder `out`: `num_samples` for training, a tenth as many for each held-out file."""
    return build_gallery_set(
        out,
        source,
        make_draft,
        name="visual-thinking",
        description="Scenes of emoji; the answer looks closer first: a zoomed cut-out, or the scene with boxes.",
        num_samples=num_samples,
    )


def make_draft(pool: Pool, chance: random.Random) -> Draft | None:
    """One question on a scene of three to eight things in a grid of 4 by 4, answered by a zoom or by boxes."""
    kind = chance.choice(("place", "neighbour", "count"))
    drawn = None
    if kind == "count":
        counted = count_scene(pool, chance, NUMBERS[1:])
        if counted is None:
            return None
        placed, word, answer = counted
        wanted = [thing for thing in placed if category(pool.gallery.concepts[thing.name]) == word]
        question, drawn = count_question(word), (f"count {word}", answer)
    else:
        placed = grid_scene(pool, chance, chance.randint(3, 7))
        found = None if placed is None else _ask(kind, placed, chance)
        if placed is None or found is None:
            return None
        question, wanted, answer = found
    scene = draw_scene(placed, SCENE_SCALE * pool.gallery.size)
    meta = {"kind": kind, "things": [[thing.name, list(cell_of(thing))] for thing in placed]}
    # What has several right places, or none, is boxed; one thing is looked at either way.
    if len(wanted) == 1 and kind != "count" and chance.random() < 0.6:
        look, lead, meta["look"] = zoom(scene, wanted[0], pool.gallery.size), chance.choice(ZOOM_LEADS), "zoom"
    else:
        look, lead, meta["look"] = draw_boxes(scene, wanted), chance.choice(BOX_LEADS), "boxes"
    meta["wanted"] = [list(cell_of(thing)) for thing in wanted]
    return Draft((f"{question}\n", scene), (f"{lead}\n", look, f"\n{answer}"), meta, drawn)


def grid_scene(pool: Pool, chance: random.Random, count: int) -> list[Placed] | None:
    """That many different things in cells of their own; None if the pool has too few."""
    if len(pool.names) < count:
        return None
    return _placed(pool, chance.sample(pool.names, count), chance)


def count_scene(pool: Pool, chance: random.Random, numbers: Sequence[str]) -> tuple[list[Placed], str, str] | None:
    """A scene, a category, and how many of it are there: the number is drawn first, each as often for each category.

    Two to four other things stand by, which plainly are of other categories. None if no category of the pool has
    enough names for all numbers: then some answers would be rarer.
    """
    plain = pool.by_kind
    most = len(NUMBERS) - 1
    words = [w for w in plain if len(plain[w]) >= most and sum(map(len, plain.values())) - len(plain[w]) >= 4]
    if not words:
        return None
    word = chance.choice(words)
    answer = pool.balance.draw(f"count {word}", numbers, chance)
    others = [name for kind, names in plain.items() if kind != word for name in names]
    names = chance.sample(plain[word], NUMBERS.index(answer)) + chance.sample(others, chance.randint(2, 4))
    return _placed(pool, names, chance), word, answer


def count_question(word: str) -> str:
    return f"How many {word}s are there?"


def cell_of(thing: Placed) -> tuple[int, int]:
    """Column and row in the grid."""
    x, y = thing.centre
    return int(x * CELLS), int(y * CELLS)


def zoom(scene: Image.Image, thing: Placed, size: int) -> Image.Image:
    """The thing's cell, cut out of the scene and enlarged to size x size."""
    box = tuple(round(edge * scene.width) for edge in thing.box)
    return scene.crop(box).resize((size, size), Image.Resampling.LANCZOS)  # type: ignore[arg-type]


def draw_boxes(scene: Image.Image, things: Sequence[Placed]) -> Image.Image:
    """The scene with a red box around each thing, inside the edges of its cell."""
    boxed = scene.copy()
    pen = ImageDraw.Draw(boxed)
    for thing in things:
        left, top, right, bottom = (round(edge * scene.width) for edge in thing.box)
        pen.rectangle((left, top, right - 1, bottom - 1), outline=RED, width=max(1, scene.width // 85))
    return boxed


def _placed(pool: Pool, names: Sequence[str], chance: random.Random) -> list[Placed]:
    cells = chance.sample([(column, row) for row in range(CELLS) for column in range(CELLS)], len(names))
    return [
        Placed(name, pool.picture(name), cell_box(*cell, cells=CELLS)) for name, cell in zip(names, cells, strict=True)
    ]


def _ask(kind: str, placed: list[Placed], chance: random.Random) -> tuple[str, list[Placed], str] | None:
    at = {cell_of(thing): thing for thing in placed}
    if kind == "place":
        thing = chance.choice(placed)
        column, row = cell_of(thing)
        return f"What is in the {ORDINALS[row]} row and the {ORDINALS[column]} column of four?", [thing], thing.name
    pairs = [
        (thing, where, at[cell_of(thing)[0] + x, cell_of(thing)[1] + y])
        for thing in placed
        for where, (x, y) in NEIGHBOURS.items()
        if (cell_of(thing)[0] + x, cell_of(thing)[1] + y) in at
    ]
    if not pairs:
        return None
    thing, where, other = chance.choice(pairs)
    return f"What is directly {where} the {thing.name}?", [other], other.name
