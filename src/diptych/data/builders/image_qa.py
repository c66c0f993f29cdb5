"""Questions about emoji and scenes of them, answered in words: names, kinds, keywords, counting, position."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from diptych.data.builders.concept_gallery import CATEGORIES, GallerySource, Pool, category, with_article
from diptych.data.builders.emoji import QUESTIONS, BuiltSet
from diptych.data.builders.emoji_scenes import Placed, draw_scene
from diptych.data.builders.gallery_sets import build_gallery_set
from diptych.data.builders.set_writing import Draft
from diptych.data.builders.visual_thinking import (
    NUMBERS,
    cell_of,
    count_scene,
    grid_scene,
)

TASKS = {
    "name": "what it is, by its CLDR name",
    "kind": "whether it is an animal, a fruit, a drink, a vehicle or a musical instrument",
    "keyword": "which of four words goes with it, by emojibase's tags",
    "count": "how many animals (fruits, drinks ...) a scene holds, none included",
    "exists": "whether a thing is in a scene",
    "position": "whether a thing is further left, right, up or down than another",
}
RELATIONS = {
    "further left than": lambda one, other: one[0] < other[0],
    "further right than": lambda one, other: one[0] > other[0],
    "higher up than": lambda one, other: one[1] < other[1],
    "lower down than": lambda one, other: one[1] > other[1],
}


def build_image_qa(out: str | Path, source: GallerySource, *, num_samples: int = 4000) -> BuiltSet:
    """Builds the set in the folder `out`: `num_samples` for training, a tenth as many for each held-out file."""
    return build_gallery_set(
        out,
        source,
        make_draft,
        name="image-qa",
        description="Pictures and scenes of emoji, and questions about them answered in words.",
        num_samples=num_samples,
    )


def make_draft(pool: Pool, chance: random.Random) -> Draft | None:
    """One question; None where the drawn things allow none with one right answer."""
    task = chance.choice(sorted(_MAKERS))
    draft = _MAKERS[task](pool, chance)
    if draft is not None:
        draft.meta["task"] = task
    return draft


def _name(pool: Pool, chance: random.Random) -> Draft:
    name = chance.choice(pool.names)
    return Draft((f"{chance.choice(QUESTIONS)}\n", pool.picture(name)), (name,), {"concept": name})


def _kind(pool: Pool, chance: random.Random) -> Draft | None:
    name = chance.choice(pool.names)
    kind = category(pool.gallery.concepts[name])
    words = [with_article(word) for word in CATEGORIES]
    question = f"Is this {', '.join(words[:-1])} or {words[-1]}?\n"
    return None if kind is None else Draft((question, pool.picture(name)), (with_article(kind),), {"concept": name})


def _keyword(pool: Pool, chance: random.Random) -> Draft | None:
    """Words that stand in the name would give it away, and words of the same subgroup might fit as well."""
    concept = pool.gallery.concepts[chance.choice(pool.names)]
    right = [tag for tag in pool.gallery.tags(concept.name) if not set(tag.split()) & set(concept.name.split())]
    others = [c for c in map(pool.gallery.concepts.__getitem__, pool.names) if c.group != concept.group]
    wrong = sorted({tag for other in others for tag in pool.gallery.tags(other.name)} - {*concept.tags, *concept.name.split()})
    if not right or len(wrong) < 3:
        return None
    word = chance.choice(right)
    words = [word, *chance.sample(wrong, 3)]
    chance.shuffle(words)
    question = f"Which word goes with this picture: {', '.join(words[:-1])} or {words[-1]}?\n"
    return Draft((question, pool.picture(concept.name)), (word,), {"concept": concept.name, "words": words})


def _count(pool: Pool, chance: random.Random) -> Draft | None:
    placed = count_scene(pool, chance)
    if placed is None:
        return None
    word = chance.choice(sorted(CATEGORIES))
    number = sum(category(pool.gallery.concepts[thing.name]) == word for thing in placed)
    if number >= len(NUMBERS) or (number == 0 and chance.random() < 0.7):  # else most answers were none
        return None
    scene = draw_scene(placed, 2 * pool.gallery.size)
    return Draft((f"How many {word}s are there?\n", scene), (NUMBERS[number],), _things(placed))


def _exists(pool: Pool, chance: random.Random) -> Draft | None:
    placed = grid_scene(pool, chance, chance.randint(3, 6))
    if placed is None:
        return None
    there = [thing.name for thing in placed]
    absent = [name for name in pool.names if name not in there]
    is_there = chance.random() < 0.5 or not absent
    name = chance.choice(there if is_there else absent)
    answer = "yes" if is_there else "no"
    scene = draw_scene(placed, 2 * pool.gallery.size)
    return Draft((f"Is this in the picture: {name}?\n", scene), (answer,), _things(placed))


def _position(pool: Pool, chance: random.Random) -> Draft | None:
    placed = grid_scene(pool, chance, chance.randint(2, 5))
    if placed is None:
        return None
    one, other = chance.sample(placed, 2)
    words = chance.choice(sorted(RELATIONS))
    axis = 0 if "left" in words or "right" in words else 1
    if cell_of(one)[axis] == cell_of(other)[axis]:
        return None
    answer = "yes" if RELATIONS[words](cell_of(one), cell_of(other)) else "no"
    scene = draw_scene(placed, 2 * pool.gallery.size)
    return Draft((f"Is the {one.name} {words} the {other.name}?\n", scene), (answer,), _things(placed))


def _things(placed: list[Placed]) -> dict[str, list[list[object]]]:
    return {"things": [[thing.name, list(cell_of(thing))] for thing in placed]}


_MAKERS: dict[str, Callable[[Pool, random.Random], Draft | None]] = {
    "name": _name,
    "kind": _kind,
    "keyword": _keyword,
    "count": _count,
    "exists": _exists,
    "position": _position,
}
