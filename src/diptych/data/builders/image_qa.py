"""Questions about emoji and scenes of them, answered in words: names, kinds, keywords, counting, position."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from diptych.data.builders.concept_gallery import CATEGORIES, GallerySource, Pool, with_article
from diptych.data.builders.concept_words import stems
from diptych.data.builders.emoji import QUESTIONS, BuiltSet
from diptych.data.builders.emoji_concepts import Concept
from diptych.data.builders.emoji_scenes import Placed, draw_scene
from diptych.data.builders.fair_answers import listed
from diptych.data.builders.gallery_sets import build_gallery_set
from diptych.data.builders.set_writing import Draft
from diptych.data.builders.visual_thinking import NUMBERS, cell_of, count_question, count_scene, grid_scene

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
YES_NO = ("yes", "no")
_NUM_CHOICES = 4


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
    """The kind is drawn first, each as often, then a thing of it."""
    kinds = {with_article(kind): names for kind, names in pool.by_kind.items()}
    if len(kinds) < 2:
        return None
    answer = pool.balance.draw("kind", sorted(kinds), chance)
    name = chance.choice(kinds[answer])
    question = f"Is this {listed([with_article(word) for word in CATEGORIES], chance)}?\n"
    return Draft((question, pool.picture(name)), (answer,), {"concept": name}, drawn=("kind", answer))


def _keyword(pool: Pool, chance: random.Random) -> Draft | None:
    """Four things of different groups with a word each, and one of the four is shown: words tell nothing, any may be
    right. None fits another of the four, nor stands in its name, in singular or plural."""
    groups: dict[int, list[Concept]] = {}
    for name in pool.names:
        concept = pool.gallery.concepts[name]
        groups.setdefault(concept.group, []).append(concept)
    if len(groups) < _NUM_CHOICES:
        return None
    four = [chance.choice(groups[group]) for group in chance.sample(sorted(groups), _NUM_CHOICES)]
    named = {word for concept in four for word in stems(concept.name)}
    words: list[str] = []
    for concept in four:
        of_others = {word for other in four if other is not concept for tag in other.tags for word in stems(tag)}
        tags = [tag for tag in pool.gallery.tags(concept.name) if not set(stems(tag)) & (named | of_others)]
        if not tags:
            return None
        words.append(chance.choice(tags))
    place = pool.balance.draw("keyword", [str(k) for k in range(_NUM_CHOICES)], chance)
    name, word = four[int(place)].name, words[int(place)]  # the four stand in an order drawn by chance
    question = f"Which word goes with this picture: {', '.join(words[:-1])} or {words[-1]}?\n"
    return Draft((question, pool.picture(name)), (word,), {"concept": name, "words": words}, drawn=("keyword", place))


def _count(pool: Pool, chance: random.Random) -> Draft | None:
    counted = count_scene(pool, chance, NUMBERS)
    if counted is None:
        return None
    placed, word, answer = counted
    scene = draw_scene(placed, 2 * pool.gallery.size)
    return Draft((f"{count_question(word)}\n", scene), (answer,), _things(placed), drawn=(f"count {word}", answer))


def _exists(pool: Pool, chance: random.Random) -> Draft | None:
    placed = grid_scene(pool, chance, chance.randint(3, 6))
    if placed is None:
        return None
    there = [thing.name for thing in placed]
    absent = [name for name in pool.names if name not in there]
    if not absent:
        return None
    answer = pool.balance.draw("exists", YES_NO, chance)
    name = chance.choice(there if answer == "yes" else absent)
    scene = draw_scene(placed, 2 * pool.gallery.size)
    return Draft((f"Is this in the picture: {name}?\n", scene), (answer,), _things(placed), drawn=("exists", answer))


def _position(pool: Pool, chance: random.Random) -> Draft | None:
    placed = grid_scene(pool, chance, chance.randint(2, 5))
    if placed is None:
        return None
    one, other = chance.sample(placed, 2)
    words = chance.choice(sorted(RELATIONS))
    axis = 0 if "left" in words or "right" in words else 1
    if cell_of(one)[axis] == cell_of(other)[axis]:
        return None
    form = f"position {words}"
    answer = pool.balance.draw(form, YES_NO, chance)
    if RELATIONS[words](cell_of(one), cell_of(other)) != (answer == "yes"):
        one, other = other, one
    scene = draw_scene(placed, 2 * pool.gallery.size)
    return Draft(
        (f"Is the {one.name} {words} the {other.name}?\n", scene), (answer,), _things(placed), drawn=(form, answer)
    )


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
