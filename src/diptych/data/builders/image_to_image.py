"""A picture and what to change of it, answered with a picture: style, colour; add, move, remove in a scene."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from diptych.data.builders.concept_gallery import STYLE_NAMES, GallerySource, Pool
from diptych.data.builders.concept_splits import is_held_out
from diptych.data.builders.data_card import with_changed_pictures
from diptych.data.builders.emoji import BuiltSet
from diptych.data.builders.emoji_concepts import STYLES
from diptych.data.builders.emoji_scenes import Placed, cell_box, draw_scene
from diptych.data.builders.emoji_tasks import CORNERS, another_colour
from diptych.data.builders.gallery_sets import build_gallery_set
from diptych.data.builders.set_writing import Draft

TASKS = {
    "style": "the same thing in another style",
    "colour": "the same thing in another colour",
    "add": "one thing more in a free corner of a scene",
    "move": "a thing of a scene moved to a free corner",
    "remove": "a thing of a scene taken out",
}


def build_image_to_image(out: str | Path, source: GallerySource, *, num_samples: int = 3000) -> BuiltSet:
    """Builds the set in the folder `out`: `num_samples` for training, a tenth as many for each held-out file."""
    return build_gallery_set(
        out,
        source,
        make_draft,
        name="image-to-image",
        description="Pictures and scenes of emoji, what to change of them, and the changed picture.",
        num_samples=num_samples,
        licences=with_changed_pictures(source.licences),
    )


def make_draft(pool: Pool, chance: random.Random) -> Draft | None:
    """One change; None where it cannot be seen, or the other style is not the split's."""
    task = chance.choice(sorted(_MAKERS))
    draft = _MAKERS[task](pool, chance)
    if draft is not None:
        draft.meta["task"] = task
    return draft


def _style(pool: Pool, chance: random.Random) -> Draft | None:
    """The answer is in the pool's style; shown is another, which training shows too, or not the concept at all."""
    name = chance.choice(pool.names)
    shown = chance.choice([style for style in STYLES if style != pool.style])
    if not is_held_out(name, seed=pool.gallery.seed) and name not in pool.gallery.pools["train"][shown]:
        return None
    request = f"Redraw it in {STYLE_NAMES[pool.style]} style.\n"
    meta = {"concept": name, "from_style": shown}
    return Draft((request, pool.gallery.picture(name, shown)), (pool.picture(name),), meta)


def _colour(pool: Pool, chance: random.Random) -> Draft | None:
    name = chance.choice(pool.names)
    found = another_colour(pool.picture(name), chance)
    if found is None:
        return None
    colour, picture = found
    return Draft((f"Make it {colour}.\n", pool.picture(name)), (picture,), {"concept": name, "colour": colour})


def _add(pool: Pool, chance: random.Random) -> Draft | None:
    found = _corner_scene(pool, chance)
    if found is None:
        return None
    placed, free = found
    names = [name for name in pool.names if name not in {thing.name for thing in placed}]
    if not names:
        return None
    name, corner = chance.choice(names), chance.choice(sorted(free))
    after = [*placed, Placed(name, pool.picture(name), cell_box(*CORNERS[corner], cells=2))]
    request = f"Add this in the {corner} corner: {name}.\n"
    return _change(pool, request, placed, after)


def _move(pool: Pool, chance: random.Random) -> Draft | None:
    found = _corner_scene(pool, chance)
    if found is None:
        return None
    placed, free = found
    thing, corner = chance.choice(placed), chance.choice(sorted(free))
    moved = replace(thing, box=cell_box(*CORNERS[corner], cells=2))
    after = [moved if other is thing else other for other in placed]
    return _change(pool, f"Move the {thing.name} to the {corner} corner.\n", placed, after)


def _remove(pool: Pool, chance: random.Random) -> Draft | None:
    found = _corner_scene(pool, chance, least=2)
    if found is None:
        return None
    placed, _ = found
    thing = chance.choice(placed)
    return _change(pool, f"Remove the {thing.name}.\n", placed, [other for other in placed if other is not thing])


def _corner_scene(pool: Pool, chance: random.Random, least: int = 1) -> tuple[list[Placed], set[str]] | None:
    """Up to three things in corners of their own, and the corners that are free."""
    count = chance.randint(least, 3)
    if len(pool.names) < count:
        return None
    names, corners = chance.sample(pool.names, count), chance.sample(sorted(CORNERS), count)
    placed = [
        Placed(name, pool.picture(name), cell_box(*CORNERS[corner], cells=2))
        for name, corner in zip(names, corners, strict=True)
    ]
    return placed, set(CORNERS) - set(corners)


def _change(pool: Pool, request: str, before: Sequence[Placed], after: Sequence[Placed]) -> Draft:
    size = pool.gallery.size
    meta = {"before": _corners(before), "after": _corners(after)}
    return Draft((request, draw_scene(before, size)), (draw_scene(after, size),), meta)


def _corners(placed: Sequence[Placed]) -> dict[str, str]:
    """Corner to what stands there."""
    cells = {cell: corner for corner, cell in CORNERS.items()}
    return {cells[int(thing.centre[0] > 0.5), int(thing.centre[1] > 0.5)]: thing.name for thing in placed}


_MAKERS: dict[str, Callable[[Pool, random.Random], Draft | None]] = {
    "style": _style,
    "colour": _colour,
    "add": _add,
    "move": _move,
    "remove": _remove,
}
