"""Scenes to be drawn from words: two things, several of one, one in a colour, one beside another.

What is asked follows from THINGS alone, so prompts are the same on every machine. A third of all pairs, of all numbers
of a thing and of all colours of a thing (unless it is its own) stand in no training file: evaluation asks for them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.builders.data_card import read_card, with_changed_pictures
from diptych.data.builders.emoji import STYLE_WORDS, BuiltSet, Progress, draw_prompt
from diptych.data.builders.emoji_scenes import HUES, SIDES, Placed, draw_scene, recolour, scatter
from diptych.data.builders.emoji_tasks import NUMBER_WORDS
from diptych.data.builders.set_writing import Draft, SetPlan, build_set
from diptych.data.images import open_image
from diptych.data.samples import Sample

# fmt: off
THINGS = (
    "dog", "cat", "pig", "elephant", "giraffe", "penguin", "frog", "turtle", "snake", "octopus", "crab",
    "butterfly", "mushroom", "cactus", "lemon", "strawberry", "pizza", "hamburger", "croissant", "house", "tent",
    "bus", "bicycle", "rocket", "airplane", "umbrella", "basketball", "crown", "bell", "guitar", "key", "pencil",
    "telephone", "backpack", "star", "magnet",
)
# fmt: on
"""Everyday things of one word with a plain plural, told from each other at 24 pixels in either style and in any
colour, of which the emoji set holds out no style."""
# fmt: off
COLOURED = (
    "cat", "frog", "snake", "octopus", "crab", "mushroom", "lemon", "strawberry", "tent", "bus", "rocket",
    "basketball", "crown", "bell", "guitar", "key", "pencil", "telephone", "backpack", "star", "magnet",
)
# fmt: on
"""Those that are mostly of one colour, bright enough in both styles that every hue has its name."""
ONE, TWO, COUNT, COLOUR, POSITION = KINDS = ("one object", "two objects", "count", "colour", "position")
NUMBERS = (2, 3, 4)
HELD_OUT_SHARE = 1 / 3
NUM_ASKED_PAIRS = 129
"""Held-out prompts of two objects, and as many of position."""
SPLITS = {
    "train_scene": "two objects, numbers, colours and positions that are not held out, each kind as often",
    "held_out_scene": "pairs, numbers and colours of things that training never shows, but for a thing's own colour",
    "one_object": "each thing alone in each style, as the emoji set asks for it and shows it",
}
ASKED = ("held_out_scene", "one_object")
"""Splits that evaluation asks for."""


@dataclass(frozen=True)
class SceneRequest:
    """What a scene is to show. `things`: one or two names; `number`: how many of the only one, where several;
    `side`: where the first stands, seen from the second (SIDES)."""

    kind: str
    style: str
    things: tuple[str, ...]
    number: int = 1
    colour: str = ""
    side: str = ""

    @property
    def caption(self) -> str:
        """`three frogs`, `red bus`, `dog to the left of cat` ..."""
        first = self.things[0]
        if self.kind == COUNT:
            return f"{NUMBER_WORDS[self.number]} {plural(first)}"
        if self.kind == COLOUR:
            return f"{self.colour} {first}"
        if self.kind == TWO:
            return " and ".join(self.things)
        if self.kind == POSITION:
            return f"{first} {self.side}{' of' if self.side.startswith('to ') else ''} {self.things[1]}"
        return first

    @property
    def prompt(self) -> str:
        """Worded as the emoji set words a single one."""
        return draw_prompt(self.caption, self.style)


Pictures = Mapping[tuple[str, str], Image.Image]
"""Of things, by name and style."""


@dataclass(frozen=True)
class Facts:
    """What scenes can show: pairs of things, numbers of a thing, colours of a thing."""

    pairs: tuple[tuple[str, str], ...]
    numbers: tuple[tuple[str, int], ...]
    colours: tuple[tuple[str, str], ...]


def plural(noun: str) -> str:
    """`buses`, `butterflies`, `dogs`."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def all_facts(things: Sequence[str] = THINGS, coloured: Sequence[str] = COLOURED) -> Facts:
    """Those for training and those held out, for who judges scenes."""
    train, held_out = split_facts(things, coloured)
    return Facts(train.pairs + held_out.pairs, train.numbers + held_out.numbers, train.colours + held_out.colours)


def split_facts(things: Sequence[str], coloured: Sequence[str]) -> tuple[Facts, Facts]:
    """For training, and held out: by hash a third of the pairs, of the things in each number, and in each colour."""
    sorts: list[list[list[tuple[Any, Any]]]] = [
        [list(itertools.combinations(things, 2))],
        [[(thing, number) for thing in things] for number in NUMBERS],
        [[(thing, colour) for thing in coloured] for colour in HUES],
    ]
    train, held_out = [], []
    for groups in sorts:
        ranked = [sorted(facts, key=lambda fact: _hash(f"{fact[0]}:{fact[1]}")) for facts in groups]
        held_out.append(tuple(fact for facts in ranked for fact in facts[: round(HELD_OUT_SHARE * len(facts))]))
        train.append(tuple(fact for facts in ranked for fact in facts[round(HELD_OUT_SHARE * len(facts)) :]))
    return Facts(*train), Facts(*held_out)


def held_out_requests(facts: Facts, *, num_pairs: int = NUM_ASKED_PAIRS) -> Iterator[SceneRequest]:
    """Numbers and colours in both styles; `num_pairs` pairs as two objects and as many in a position, sides and styles
    in turn (pairs begin anew where they are fewer)."""
    for style in STYLE_WORDS:
        for thing, number in facts.numbers:
            yield SceneRequest(COUNT, style, (thing,), number=number)
        for thing, colour in facts.colours:
            yield SceneRequest(COLOUR, style, (thing,), colour=colour)
    styles, sides = tuple(STYLE_WORDS), tuple(SIDES)
    for number in range(min(num_pairs, len(facts.pairs) * len(styles))):
        turn, place = divmod(number, len(facts.pairs))
        pair = facts.pairs[place] if number % 3 else facts.pairs[place][::-1]
        style = styles[(place + turn) % len(styles)]
        yield SceneRequest(TWO, style, pair)
        yield SceneRequest(POSITION, style, pair, side=sides[place // 2 % len(sides)])


def one_object_requests(things: Sequence[str]) -> Iterator[SceneRequest]:
    """Each thing in each style."""
    for thing, style in itertools.product(things, STYLE_WORDS):
        yield SceneRequest(ONE, style, (thing,))


def draw_request(kind: str, facts: Facts, chance: random.Random) -> SceneRequest:
    """Any of a kind (not ONE) that the facts allow."""
    style = chance.choice(tuple(STYLE_WORDS))
    if kind == COUNT:
        thing, number = chance.choice(facts.numbers)
        return SceneRequest(kind, style, (thing,), number=number)
    if kind == COLOUR:
        thing, colour = chance.choice(facts.colours)
        return SceneRequest(kind, style, (thing,), colour=colour)
    pair = chance.choice(facts.pairs)
    pair = pair if chance.random() < 0.5 else pair[::-1]
    return SceneRequest(kind, style, pair, side=chance.choice(tuple(SIDES)) if kind == POSITION else "")


def lay_out(request: SceneRequest, pictures: Pictures, chance: random.Random) -> list[Placed]:
    """Things at places that fulfil the request: one alone fills the scene, one in a colour half of it or more, others
    35% to 50% of the side each."""
    names = list(request.things) * request.number
    shown = [pictures[name, request.style] for name in names]
    if request.kind == ONE:
        return [Placed(names[0], shown[0], (0.0, 0.0, 1.0, 1.0))]
    if request.kind == COLOUR:
        side = chance.uniform(0.5, 1.0)
        left, top = chance.uniform(0, 1 - side), chance.uniform(0, 1 - side)
        return [Placed(names[0], recolour(shown[0], request.colour), (left, top, left + side, top + side))]
    if request.kind != POSITION:
        return scatter(names, shown, chance)
    column, row = SIDES[request.side]  # of 3 by 3 cells: the other stands in the middle
    across = chance.uniform(0, 0.4)
    placed = []
    for name, picture, half in zip(names, shown, (column + row - 1, 3 - column - row), strict=True):
        side = chance.uniform(0.35, 0.5)
        along = 0.5 * (half // 2) + chance.uniform(0, 0.5 - side)
        aside = across + chance.uniform(0, 0.6 - side)
        left, top = (along, aside) if row == 1 else (aside, along)
        placed.append(Placed(name, picture, (left, top, left + side, top + side)))
    return placed


def request_of(sample: Sample) -> SceneRequest:
    """What a sample of a built set asks for. Raises ValueError where it does not say so."""
    try:
        meta: dict[str, Any] = {field.name: sample.meta[field.name] for field in fields(SceneRequest)}
    except KeyError as error:
        raise ValueError(f"a sample of scenes does not say its {error}; build the set again") from None
    meta["things"] = tuple(meta["things"])
    return SceneRequest(**meta)


def read_pictures(emoji_folder: Path, things: Sequence[str]) -> Pictures:
    """Of a built emoji set. Raises ValueError where it lacks a thing, or keeps one of its styles out of training."""
    entries = {e["name"]: e for e in json.loads((emoji_folder / "concepts.json").read_text(encoding="utf-8"))}
    lacking = [thing for thing in things if thing not in entries]
    kept_out = [t for t in things if t not in lacking and (entries[t]["held_out_style"] or entries[t].get("unseen"))]
    for names, what in ((lacking, "does not hold"), (kept_out, "keeps out of training, in a style or both,")):
        if names:
            raise ValueError(
                f"{emoji_folder} {what} {', '.join(names)}, of which scenes are made; give a set of all concepts: "
                "diptych data build emoji --out data/emoji"
            )
    return {(t, style): open_image(emoji_folder / path) for t in things for style, path in entries[t]["images"].items()}


def build_emoji_scenes(
    out: str | Path,
    *,
    emoji_folder: str | Path,
    num_samples: int = 6000,
    image_size: int = 128,
    seed: int = 0,
    things: Sequence[str] = THINGS,
    coloured: Sequence[str] = COLOURED,
    progress: Progress | None = None,
) -> BuiltSet:
    """Builds scenes in the folder `out` from the built emoji set `emoji_folder`; the same arguments, the same files.

    `num_samples`: for training; 0: none, only what is asked for. Held-out prompts are the same whatever the number and
    the seed. Each sample's `meta` is its request, and what stands where (shares of the side). Raises ValueError as
    `build_emoji` and `read_pictures` do.
    """
    source = Path(emoji_folder)
    if num_samples < 0:
        raise ValueError(f"num_samples is {num_samples}; it must be 0 or more")
    parent = read_card(source)
    if parent.settings.get("builder") != "emoji":
        raise ValueError(f"{source} is no emoji set; build one with: diptych data build emoji --out {source}")
    train, held_out = split_facts(things, coloured)
    plan = SetPlan(
        name="emoji-scenes",
        description="Scenes of emoji drawn from words: two things, several, in a colour, one beside another.",
        settings={
            "builder": "emoji-scenes",
            "builder_version": 1,
            "emoji": parent.settings,
            "things": list(things),
            "coloured": list(coloured),
            "num_samples": num_samples,
            "image_size": image_size,
            "seed": seed,
        },
        splits=SPLITS if num_samples else {split: SPLITS[split] for split in ASKED},
        licences=with_changed_pictures(parent.licences),
    )

    def draft(request: SceneRequest, pictures: Pictures, chance: random.Random) -> Draft:
        placed = lay_out(request, pictures, chance)
        meta = asdict(request) | {"boxes": [[p.name, [round(edge, 4) for edge in p.box]] for p in placed]}
        return Draft((request.prompt,), (draw_scene(placed, image_size),), meta)

    def drafts() -> Iterator[tuple[str, Draft]]:
        pictures = read_pictures(source, things)
        for number in range(num_samples):
            chance = random.Random(f"{seed}:train:{number}")
            yield "train_scene", draft(draw_request(KINDS[1 + number % 4], train, chance), pictures, chance)
        for request in held_out_requests(held_out):
            yield "held_out_scene", draft(request, pictures, random.Random(f"{seed}:{request.prompt}"))
        for request in one_object_requests(things):
            yield "one_object", draft(request, pictures, random.Random())

    return build_set(out, plan, drafts, counts=lambda: {"things": len(things)}, progress=progress)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
