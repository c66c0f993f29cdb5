"""Tasks on emoji beyond drawing and naming (X-Fusion section 5): editing, painting, localisation, questions, naming.

Everything is made from a built emoji set, so that each right answer is known. Every sample has one picture and words
in, and a picture or words out. Some concepts never stand in a training file. The split "test" is drawn anew from those
that do: new scenes and masks, while of one thing's styles and colours there are so few that most are trained on, too.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.data.builders.data_card import (
    DataCard,
    building,
    is_built,
    read_card,
    with_changed_pictures,
    write_card,
)
from diptych.data.builders.emoji import STYLE_WORDS, BuiltSet, Progress
from diptych.data.builders.emoji_scenes import (
    HUES,
    SIDES,
    Placed,
    cell_box,
    draw_scene,
    fits_word,
    mask_inside,
    mask_outside,
    recolour,
    scatter,
)
from diptych.data.images import open_image
from diptych.data.samples import Message, Sample, write_samples

TASKS = {
    "edit": "a picture and what to change of it (style, colour, something added beside it), answered with a picture",
    "paint": "a picture with a part hidden, answered with the whole picture (in-painting and out-painting)",
    "locate": "a scene and a name, answered with its box in per cent of the side: left top right bottom",
    "ask": "a scene and a question on it: how many, is there, what stands where; answered in words",
    "name": "one thing of any size anywhere, or a scene, answered with the names of all that is there, row by row",
}
PREFIXES = {
    "train": "for training",
    "test": "drawn anew, of the same concepts (what is made of their styles and colours mostly stands there, too)",
    "held_out": "of concepts that no training file shows",
}
NUMBER_WORDS = ("none", "one", "two", "three", "four")
LEAST_CHANGE = 0.004
"""Mean square by which a picture in another colour differs from before, of a range of 1: less is hardly seen."""
NAMES_APART = "; "
"""Between the names of an answer: some of them have commas."""
CORNERS = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
ASKED = {"count": 1, "exists": 3, "corner": 2}
"""How often each question is asked: to count is learnt soonest, yes or no tells least."""
_BUILDER_VERSION = 6


@dataclass(frozen=True)
class Pool:
    """Concepts that a split draws from: their names, and each one's picture file by style."""

    names: tuple[str, ...]
    files: dict[str, dict[str, Path]]

    def picture(self, name: str, style: str) -> Image.Image:
        return open_image(self.files[name][style])


@dataclass(frozen=True)
class Task:
    """What one sample is made of: the picture shown, the request, and the answer."""

    shown: Image.Image
    request: str
    answer: Image.Image | str
    meta: dict[str, Any]


def build_emoji_tasks(
    out: str | Path,
    *,
    emoji_folder: str | Path,
    num_samples: int = 4000,
    num_concepts: int | None = None,
    held_out_fraction: float = 0.1,
    image_size: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> BuiltSet:
    """Builds the tasks in the folder `out` from the built emoji set `emoji_folder`; the same arguments, the same files.

    `num_samples`: of each task for training; a tenth as many for tests, and on held-out concepts. `num_concepts`: to
    choose from, drawn at random; None: all. Errors: as of `build_emoji`.
    """
    out, source = Path(out), Path(emoji_folder)
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    parent = read_card(source)
    if parent.settings.get("builder") != "emoji":
        raise ValueError(f"{source} is no emoji set; build one with: diptych data build emoji --out {source}")
    settings = {
        "builder": "emoji-tasks",
        "builder_version": _BUILDER_VERSION,
        "emoji": parent.settings,
        "num_samples": num_samples,
        "num_concepts": num_concepts,
        "held_out_fraction": held_out_fraction,
        "image_size": image_size,
        "seed": seed,
    }
    if is_built(out, settings):
        return BuiltSet(out, read_card(out), is_new=False)
    trained, held_out = _split_concepts(source, num_concepts, held_out_fraction, seed)
    pools = dict(zip(PREFIXES, (trained, trained, held_out), strict=True))
    counts: dict[str, int] = {}
    with building(out.resolve()) as folder:
        for prefix, pool in pools.items():
            for task, build in BUILDERS.items():
                name = f"{prefix}_{task}"
                wanted = num_samples if prefix == "train" else max(1, num_samples // 10)
                (folder / "images" / name).mkdir(parents=True)
                samples = []
                for number in range(wanted):
                    chance = random.Random(f"{seed}:{name}:{number}")
                    samples.append(_write_sample(folder, f"images/{name}/{number}", build(pool, chance, image_size)))
                    if progress is not None:
                        progress(f"making {name}", number + 1, wanted)
                counts[f"{name}.jsonl"] = write_samples(folder / f"{name}.jsonl", samples)
        card = DataCard(
            name="emoji-tasks",
            description="Editing, painting, localisation, questions, naming; of emoji, so that answers are known.",
            settings=settings,
            counts={
                "concepts in training": len(trained.names),
                "concepts held out": len(held_out.names),
            },
            num_samples=counts,
            splits={
                f"{prefix}_{task}.jsonl": f"{text}; {of}"
                for prefix, of in PREFIXES.items()
                for task, text in TASKS.items()
            },
            licences=with_changed_pictures(parent.licences),
        )
        write_card(folder, card)
    return BuiltSet(out, card, is_new=True)


def edit(pool: Pool, chance: random.Random, size: int) -> Task:
    """Another style (of "it", or of what the request names), another colour, or a second thing beside the first."""
    kind = chance.choice(("style", "colour", "add"))
    name, style = chance.choice(pool.names), chance.choice(sorted(STYLE_WORDS))
    picture = pool.picture(name, style).resize((size, size), Image.Resampling.LANCZOS)
    meta = {"kind": kind, "concept": name, "style": style}
    changed = another_colour(picture, chance) if kind == "colour" else None
    if changed is not None:
        colour, answer = changed
        return Task(picture, f"Make it {colour}.", answer, meta | {"colour": colour})
    if kind in ("style", "colour"):
        other = next(word for word in STYLE_WORDS if word != style)
        answer = pool.picture(name, other).resize((size, size), Image.Resampling.LANCZOS)
        kind, thing = ("style, named", name) if chance.random() < 0.5 else ("style", "it")
        request = f"Redraw {thing} in {STYLE_WORDS[other]} style."
        return Task(picture, request, answer, meta | {"kind": kind})
    side = chance.choice(sorted(SIDES))
    other = chance.choice([one for one in pool.names if one != name])
    before = [Placed(name, picture, cell_box(1, 1, cells=3))]
    added = Placed(other, pool.picture(other, style), cell_box(*SIDES[side], cells=3))
    request = f"Add {other} {side}."
    return Task(
        draw_scene(before, size), request, draw_scene([*before, added], size), meta | {"added": other, "side": side}
    )


def another_colour(picture: Image.Image, chance: random.Random) -> tuple[str, Image.Image] | None:
    """A colour and the picture in it, plainly another one than before and fitting its word; None if none is."""
    for colour in chance.sample(sorted(HUES), len(HUES)):
        answer = recolour(picture, colour)
        before, after = (np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in (picture, answer))
        if float(np.square(before - after).mean()) >= LEAST_CHANGE and fits_word(answer, colour):
            return colour, answer
    return None


def paint(pool: Pool, chance: random.Random, size: int) -> Task:
    """What is hidden under grey: inside, or around."""
    name, style = chance.choice(pool.names), chance.choice(sorted(STYLE_WORDS))
    picture = pool.picture(name, style).resize((size, size), Image.Resampling.LANCZOS)
    inside = chance.random() < 0.5
    masked = (mask_inside if inside else mask_outside)(picture, chance)
    request = "Fill in the grey part." if inside else "Continue the picture to its edges."
    return Task(masked, request, picture, {"kind": "inside" if inside else "outside", "concept": name, "style": style})


def locate(pool: Pool, chance: random.Random, size: int) -> Task:
    """A box as text: four numbers in per cent of the side."""
    placed = _scene(pool, chance, chance.randint(1, 4))
    wanted = chance.choice(placed)
    box = [round(100 * edge) for edge in wanted.box]
    return Task(draw_scene(placed, size), f"Where is {wanted.name}?", " ".join(map(str, box)), {"box": box})


def ask(pool: Pool, chance: random.Random, size: int) -> Task:
    """How many, is there, what stands where."""
    placed = _scene(pool, chance, chance.randint(1, 4))
    (kind,) = chance.choices(list(ASKED), weights=list(ASKED.values()))
    scene, there = draw_scene(placed, size), [thing.name for thing in placed]
    if kind == "count":
        return Task(scene, "How many things are there?", NUMBER_WORDS[len(placed)], {"kind": kind})
    if kind == "exists":
        is_there = chance.random() < 0.5
        name = chance.choice(there if is_there else [one for one in pool.names if one not in there])
        return Task(scene, f"Is there {name}?", "yes" if is_there else "no", {"kind": kind})
    thing = chance.choice(placed)
    x, y = thing.centre
    corner = next(word for word, cell in CORNERS.items() if cell == (int(x > 0.5), int(y > 0.5)))
    return Task(scene, f"What is in the {corner} corner?", thing.name, {"kind": kind})


def name_things(pool: Pool, chance: random.Random, size: int) -> Task:
    """What is there: a thing alone half of the time. Names stand row by row, as one reads."""
    if chance.random() < 0.5:
        placed = [_anywhere(pool, chance)]
    else:
        placed = _scene(pool, chance, chance.randint(2, 4))
    placed.sort(key=lambda thing: (thing.centre[1] > 0.5, thing.centre[0] > 0.5))
    kind = "alone" if len(placed) == 1 else "scene"
    answer = NAMES_APART.join(thing.name for thing in placed)
    return Task(draw_scene(placed, size), "What is there?", answer, {"kind": kind})


BUILDERS: dict[str, Callable[[Pool, random.Random, int], Task]] = {
    "edit": edit,
    "paint": paint,
    "locate": locate,
    "ask": ask,
    "name": name_things,
}


def parse_box(text: str) -> tuple[float, float, float, float] | None:
    """The answer of a localisation, as shares of the side; None if it is no box."""
    try:
        left, top, right, bottom = (float(word) / 100 for word in text.replace(",", " ").split())
    except ValueError:
        return None
    return (left, top, right, bottom) if left < right and top < bottom else None


def box_overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    whole = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    return shared / whole if whole > 0 else 0.0


def _anywhere(pool: Pool, chance: random.Random) -> Placed:
    """One thing, from as small as those of a scene to all of the picture."""
    name, style = chance.choice(pool.names), chance.choice(sorted(STYLE_WORDS))
    side = chance.uniform(0.35, 1)
    left, top = chance.uniform(0, 1 - side), chance.uniform(0, 1 - side)
    return Placed(name, pool.picture(name, style), (left, top, left + side, top + side))


def _scene(pool: Pool, chance: random.Random, count: int) -> list[Placed]:
    names = chance.sample(pool.names, count)
    style = chance.choice(sorted(STYLE_WORDS))
    return scatter(names, [pool.picture(name, style) for name in names], chance)


def _write_sample(folder: Path, path: str, task: Task) -> Sample:
    images = [f"{path}.png"]
    task.shown.save(folder / images[0], format="PNG")
    answer: int | str
    if isinstance(task.answer, str):
        answer = task.answer
    else:
        images.append(f"{path}-answer.png")
        task.answer.save(folder / images[1], format="PNG")
        answer = 1
    # The words stand before the picture, as in the emoji set: they are then computed once and kept.
    messages = (Message("user", (f"{task.request}\n", 0)), Message("assistant", (answer,)))
    return Sample(messages, tuple(images), task.meta)


def _split_concepts(source: Path, num_concepts: int | None, held_out_fraction: float, seed: int) -> tuple[Pool, Pool]:
    """Concepts for training, and held out. What the emoji set itself holds out is in neither."""
    entries = json.loads((source / "concepts.json").read_text(encoding="utf-8"))
    entries = [entry for entry in entries if not entry["held_out_style"] and not entry.get("unseen")]
    entries.sort(key=lambda entry: hashlib.sha256(f"{seed}:{entry['name']}".encode()).hexdigest())
    if num_concepts is not None and not 1 <= num_concepts <= len(entries):
        raise ValueError(
            f"num_concepts is {num_concepts}, but {source} has {len(entries)} that are held out in neither style; "
            "choose at most so many"
        )
    entries = entries[:num_concepts]
    count = round(held_out_fraction * len(entries))
    if min(count, len(entries) - count) < 5:
        raise ValueError(
            f"of {len(entries)} concepts {count} would be held out; of those and of the others there must be at least "
            "5, to make scenes of: choose more concepts (num_concepts), or another held_out_fraction"
        )
    return _pool(source, entries[count:]), _pool(source, entries[:count])


def _pool(source: Path, entries: list[dict[str, Any]]) -> Pool:
    files = {entry["name"]: {style: source / path for style, path in entry["images"].items()} for entry in entries}
    return Pool(tuple(files), files)
