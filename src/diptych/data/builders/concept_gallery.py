"""Everyday concepts in three styles, split into what training shows and what it never does.

Styles: Fluent (3D), OpenMoji (flat), and OpenMoji's lines alone (outline), which is kept out of training whole: what
OpenMoji draws in lines alone anyway (snowflake) has no outline style here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.data.builders.concept_splits import held_out_choice, is_held_out
from diptych.data.builders.concept_words import usable_tags
from diptych.data.builders.data_card import Licence
from diptych.data.builders.emoji import Progress, draw_concept, emoji_licences, npm_package
from diptych.data.builders.emoji_concepts import (
    STYLES,
    Concept,
    choose_everyday,
    is_everyday,
    read_concepts,
    thumbnail,
)
from diptych.data.builders.fair_answers import AnswerBalance
from diptych.data.svg import render_svg

LINE_STYLE = "line"
STYLE_NAMES = {"fluent": "3D", "openmoji": "flat", LINE_STYLE: "outline"}
LOOKS_ALIKE = 0.03
"""Root mean square between two pictures (of a range of 1) below which they are one for a person."""
CATEGORIES = {
    "animal": ("animal-",),
    "fruit": ("food-fruit",),
    "drink": ("drink",),
    "vehicle": ("transport-",),
    "musical instrument": ("musical-instrument",),
}
"""What a concept plainly is, by how its subgroup begins. Only these are asked about: nothing is two of them."""
_NOT_OF_ITS_GROUP = frozenset(
    re.split(
        r",\s*",
        "paw prints, feather, spiral shell, coral, spider web, wing, empty nest, nest with eggs, microbe, footprints, "
        "tomato, olive, coconut, ice, pouring liquid, anchor, fuel pump, bus stop, police car light, wheel, stop sign, "
        "horizontal traffic light, vertical traffic light, construction, ring buoy, railway track, motorway, oil drum, "
        "parachute, seat, roller skate, pig nose, cat face, satellite, railway car, mountain railway, "
        "baby bottle, teapot",
    )
)


def category_of(name: str, subgroup: str) -> str | None:
    """`animal`, `fruit` ...; None where the subgroup's name does not say plainly what the thing is."""
    if name in _NOT_OF_ITS_GROUP or subgroup == "transport-sign":
        return None
    return next((word for word, starts in CATEGORIES.items() if subgroup.startswith(starts)), None)


def category(concept: Concept) -> str | None:
    """What a concept plainly is."""
    return category_of(concept.name, concept.subgroup)


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@dataclass(frozen=True)
class Gallery:
    """Concepts by name, their pictures at `size` pixels, and which combinations of name and style a split may use."""

    concepts: Mapping[str, Concept]
    size: int
    seed: int
    drawn: dict[tuple[str, str], Image.Image] = field(default_factory=dict, repr=False)

    def picture(self, name: str, style: str) -> Image.Image:
        """Drawn once and kept."""
        if (name, style) not in self.drawn:
            self.drawn[name, style] = draw_in_style(self.concepts[name], style, self.size)
        return self.drawn[name, style]

    def tags(self, name: str) -> tuple[str, ...]:
        """Words that go with a concept; for one of training, without those that name what training never shows."""
        return self._tags[name]

    @cached_property
    def _tags(self) -> dict[str, tuple[str, ...]]:
        usable = usable_tags({name: concept.tags for name, concept in self.concepts.items()})
        unseen = {name for name in self.concepts if is_held_out(name, seed=self.seed)}
        return {
            name: tuple(tag for tag in tags if name in unseen or not is_held_out(tag, seed=self.seed))
            for name, tags in usable.items()
        }

    @cached_property
    def pools(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Split to style to the names that it may show in that style."""
        unseen = [name for name in self.concepts if is_held_out(name, seed=self.seed)]
        seen = [name for name in self.concepts if name not in unseen]
        apart = {name: held_out_choice(name, STYLES, seed=self.seed) for name in seen}
        return {
            "train": {style: tuple(name for name in seen if apart[name] != style) for style in STYLES},
            "held_out_concept": dict.fromkeys(STYLES, tuple(unseen)),
            "held_out_style": {LINE_STYLE: tuple(name for name in seen if self._has_outline(name))},
            "held_out_combination": {style: tuple(name for name in seen if apart[name] == style) for style in STYLES},
        }

    def pool(self, split: str, chance: random.Random, balance: AnswerBalance | None = None) -> Pool:
        """One of the split's styles, and the names in it. `balance`: of the answers that the split has so far."""
        pools = {style: names for style, names in self.pools[split].items() if names}
        if not pools:
            raise ValueError(f"no concept falls into {split}; build with more concepts")
        style = chance.choice(sorted(pools))
        return Pool(self, style, pools[style], balance or AnswerBalance())

    def _has_outline(self, name: str) -> bool:
        """Whether the lines alone look different from the flat picture, which training may show."""
        lines, flat = (np.asarray(self.picture(name, s), dtype=np.float32) / 255 for s in (LINE_STYLE, "openmoji"))
        return float(np.sqrt(np.square(lines - flat).mean())) >= LOOKS_ALIKE


@dataclass(frozen=True)
class Pool:
    """The names that may stand in one scene, all in one style."""

    gallery: Gallery
    style: str
    names: tuple[str, ...]
    balance: AnswerBalance = field(default_factory=AnswerBalance, repr=False)

    def picture(self, name: str) -> Image.Image:
        return self.gallery.picture(name, self.style)

    def of_category(self, wanted: Callable[[str | None], bool]) -> list[str]:
        return [name for name in self.names if wanted(category(self.gallery.concepts[name]))]

    @cached_property
    def by_kind(self) -> dict[str, list[str]]:
        """The categories that the pool has, and their names."""
        kinds = {kind: self.of_category(lambda word, kind=kind: word == kind) for kind in CATEGORIES}
        return {kind: names for kind, names in kinds.items() if names}


@dataclass(frozen=True)
class GallerySource:
    """What a gallery is read from, once and only when it is needed. The folders: as of `build_emoji`.

    `num_concepts` everyday concepts that look different (`choose_everyday`).
    """

    openmoji_folder: str | Path
    fluent_folder: str | Path
    emojibase_folder: str | Path
    num_concepts: int = 300
    image_size: int = 128
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not 16 <= self.image_size <= 1024:
            raise ValueError(f"image_size is {self.image_size}; it must lie in 16..1024")

    @cached_property
    def licences(self) -> tuple[Licence, ...]:
        return emoji_licences(*self._packages)

    @property
    def settings(self) -> dict[str, Any]:
        """What the pictures and splits of a set follow from."""
        return {
            "sources": {entry.source: entry.version for entry in self.licences},
            "num_concepts": self.num_concepts,
            "image_size": self.image_size,
            "seed": self.seed,
        }

    @cached_property
    def gallery(self) -> Gallery:
        openmoji, fluent, emojibase = self._packages
        concepts = read_concepts(openmoji_folder=openmoji, fluent_folder=fluent, emojibase_folder=emojibase)
        concepts = [concept for concept in concepts if is_everyday(concept)]
        drawn: dict[tuple[str, str], Image.Image] = {}
        for done, concept in enumerate(concepts, start=1):
            for style in STYLES:
                drawn[concept.name, style] = draw_concept(concept, style, self.image_size)
            if self.progress is not None:
                self.progress("drawing emoji", done, len(concepts))
        thumbnails = {style: np.stack([thumbnail(drawn[c.name, style]) for c in concepts]) for style in STYLES}
        chosen = {concept.name: concept for concept in choose_everyday(concepts, thumbnails, self.num_concepts)}
        drawn = {key: picture for key, picture in drawn.items() if key[0] in chosen}
        return Gallery(chosen, self.image_size, self.seed, drawn)

    @property
    def _packages(self) -> tuple[Path, ...]:
        return tuple(npm_package(f) for f in (self.openmoji_folder, self.fluent_folder, self.emojibase_folder))


def draw_in_style(concept: Concept, style: str, size: int) -> Image.Image:
    """A concept in one of STYLE_NAMES, RGB on white, size x size."""
    if style == LINE_STYLE:
        return render_svg(concept.files["openmoji"], size, only_layers="line")
    return draw_concept(concept, style, size)
