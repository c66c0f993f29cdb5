"""The emoji set: concepts drawn in two styles, to be drawn from their names and to be named from their pictures.

Pictures: Fluent (3D) and OpenMoji (flat). Words: CLDR names and tags. A fifth of the concepts keep one style out
of training, so that drawing and naming can be measured on combinations that no model has seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.data.builders.data_card import DataCard, Licence, building, is_built, read_card, write_card
from diptych.data.builders.emoji_concepts import (
    STYLES,
    Concept,
    choose_everyday,
    is_everyday,
    read_concepts,
    thumbnail,
    without_twins,
)
from diptych.data.images import open_image
from diptych.data.samples import Message, Sample, write_samples
from diptych.data.svg import render_svg

STYLE_WORDS = {"fluent": "3D", "openmoji": "flat"}
PROMPT_KINDS = ("name", "tags")
# The question stands before the picture: text before a picture is frozen, so its states are computed once and kept.
QUESTIONS = ("What is this?", "What does this picture show?", "Name the thing in this picture.")
SPLITS = {
    "train_draw.jsonl": "text to image; every combination of concept and style but the held-out ones",
    "train_read.jsonl": "image to text, three questions per picture; the same combinations",
    "held_out_draw.jsonl": "text to image; combinations of concept and style that training never shows",
    "held_out_read.jsonl": "image to text, three questions per picture; the same held-out combinations",
}
UNSEEN_SPLITS = {
    "unseen_draw.jsonl": "text to image; concepts that training shows in neither style",
    "unseen_read.jsonl": "image to text; the same concepts",
}
PACKAGES = {
    "openmoji_folder": "openmoji",
    "fluent_folder": "fluent-emoji-3d",
    "emojibase_folder": "emojibase-data",
}
"""Embedded packages that sets of emoji are built of, by the argument that takes their folder."""
_BUILDER_VERSION = 2
"""Counts on whenever the same settings would give other files."""
_NUM_TAGS = 3

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""


@dataclass(frozen=True)
class BuiltSet:
    """`is_new` is False where the folder already held this very data set."""

    folder: Path
    card: DataCard
    is_new: bool

    def summary(self) -> str:
        counts = self.card.counts
        verb = "built" if self.is_new else "already there, nothing to do:"
        samples = sum(self.card.num_samples.values())
        held = ", ".join(f"{count} {what}" for what, count in list(counts.items())[:2])
        return f"{verb} {self.folder}: {held}, {samples} samples"


def draw_prompt(name: str, style: str) -> str:
    """The prompt of a concept in a style: "Draw {name} in 3D style." or "... in flat style."."""
    return f"Draw {name} in {STYLE_WORDS[style]} style."


def build_emoji(
    out: str | Path,
    *,
    openmoji_folder: str | Path,
    fluent_folder: str | Path,
    emojibase_folder: str | Path,
    num_concepts: int | None = None,
    num_unseen: int = 0,
    prompt_kinds: Sequence[str] = ("name",),
    held_out_fraction: float = 0.2,
    image_size: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> BuiltSet:
    """Builds the emoji set in the folder `out`; the same arguments give the same files.

    The three folders are the unpacked npm packages openmoji, @lobehub/fluent-emoji-3d and emojibase-data.
    `num_concepts`: that many everyday concepts which look different from each other (`choose_everyday`); None: all.
    `num_unseen` concepts more are chosen and kept out of training in both styles, in files of their own.
    `prompt_kinds`: "name", "tags" or both. `held_out_fraction` of the concepts have one style in the held-out files
    only, in turn Fluent and OpenMoji.

    Writes images/{fluent,openmoji}/*.png (RGB on white), the four JSONL files of SPLITS, concepts.json, card.json and
    card.md to a temporary folder that is renamed at the end. Where `out` holds this data set already, nothing is done.
    Raises ValueError if `out` holds anything else, or an argument or a source is wrong.
    """
    out = Path(out)
    kinds = tuple(prompt_kinds)
    if not kinds or not set(kinds) <= set(PROMPT_KINDS) or len(set(kinds)) != len(kinds):
        raise ValueError(f"prompt_kinds is {kinds}; give some of {PROMPT_KINDS}, each once")
    if not 0 <= held_out_fraction <= 1:
        raise ValueError(f"held_out_fraction is {held_out_fraction}; it must lie in 0..1")
    if num_unseen < 0:
        raise ValueError(f"num_unseen is {num_unseen}; it must be 0 or more")
    if not 16 <= image_size <= 1024:
        raise ValueError(f"image_size is {image_size}; it must lie in 16..1024")
    openmoji, fluent, emojibase = (npm_package(folder) for folder in (openmoji_folder, fluent_folder, emojibase_folder))
    licences = emoji_licences(openmoji, fluent, emojibase)
    settings = {
        "builder": "emoji",
        "builder_version": _BUILDER_VERSION,
        "sources": {entry.source: entry.version for entry in licences},
        "num_concepts": num_concepts,
        "prompt_kinds": list(kinds),
        "held_out_fraction": held_out_fraction,
        "image_size": image_size,
        "seed": seed,
    } | ({"num_unseen": num_unseen} if num_unseen else {})
    if is_built(out, settings):
        return BuiltSet(out, read_card(out), is_new=False)

    concepts = read_concepts(openmoji_folder=openmoji, fluent_folder=fluent, emojibase_folder=emojibase)
    if num_concepts is not None:
        concepts = [concept for concept in concepts if is_everyday(concept)]
    pictures: dict[str, dict[str, Image.Image]] = {}
    for done, concept in enumerate(concepts, start=1):
        pictures[concept.name] = {style: draw_concept(concept, style, image_size) for style in STYLES}
        if progress is not None:
            progress("drawing emoji", done, len(concepts))
    thumbnails = {style: np.stack([thumbnail(pictures[c.name][style]) for c in concepts]) for style in STYLES}
    if num_concepts is None:
        concepts = without_twins(concepts, thumbnails)
    else:
        concepts = choose_everyday(concepts, thumbnails, num_concepts + num_unseen)
    unseen = choose_unseen([concept.name for concept in concepts], num_unseen, seed=seed)
    seen = [concept.name for concept in concepts if concept.name not in unseen]
    held_out = choose_held_out(seen, fraction=held_out_fraction, seed=seed)

    with building(out.resolve()) as folder:
        for style in STYLES:
            (folder / "images" / style).mkdir(parents=True)
        for done, concept in enumerate(concepts, start=1):
            for style in STYLES:
                pictures[concept.name][style].save(folder / image_path(concept, style), format="PNG")
            if progress is not None:
                progress("writing images", done, len(concepts))
        num_samples = _write_splits(folder, concepts, held_out, unseen, kinds, seed)
        _write_concepts(folder, concepts, held_out, unseen)
        card = DataCard(
            name="emoji",
            description="Emoji in two styles: to be drawn from their CLDR names and tags, and named from pictures.",
            settings=settings,
            counts={
                "concepts": len(concepts),
                "images": len(concepts) * len(STYLES),
                "held-out combinations, Fluent": sum(style == "fluent" for style in held_out.values()),
                "held-out combinations, OpenMoji": sum(style == "openmoji" for style in held_out.values()),
            }
            | ({"concepts that training never shows": num_unseen} if num_unseen else {}),
            num_samples=num_samples,
            splits=SPLITS | (UNSEEN_SPLITS if num_unseen else {}),
            licences=licences,
        )
        write_card(folder, card)
    return BuiltSet(out, card, is_new=True)


def draw_concept(concept: Concept, style: str, size: int) -> Image.Image:
    """A concept's drawing in one style, RGB on white, size x size."""
    file = concept.files[style]
    if file.suffix == ".svg":
        return render_svg(file, size)
    return open_image(file).resize((size, size), Image.Resampling.LANCZOS)


def image_path(concept: Concept, style: str) -> str:
    """Where a concept's picture lies, relative to the data set."""
    return f"images/{style}/{concept.hexcode}.png"


def choose_held_out(names: Sequence[str], *, fraction: float, seed: int) -> dict[str, str]:
    """Name to the style that training never shows of it, for a fraction of the names, in turn Fluent and OpenMoji."""
    ranked = sorted(names, key=lambda name: _hash(f"held out:{seed}:{name}"))
    return {name: STYLES[turn % 2] for turn, name in enumerate(ranked[: round(fraction * len(names))])}


def choose_unseen(names: Sequence[str], count: int, *, seed: int) -> set[str]:
    """The names that training shows in neither style."""
    return set(sorted(names, key=lambda name: _hash(f"unseen:{seed}:{name}"))[:count])


def _write_splits(
    folder: Path,
    concepts: Sequence[Concept],
    held_out: dict[str, str],
    unseen: set[str],
    kinds: Sequence[str],
    seed: int,
) -> dict[str, int]:
    splits: dict[str, list[Sample]] = {name: [] for name in (*SPLITS, *(UNSEEN_SPLITS if unseen else ()))}
    for concept in concepts:
        for style in STYLES:
            is_held_out = concept.name in unseen or held_out.get(concept.name) == style
            prefix = "unseen" if concept.name in unseen else "held_out" if is_held_out else "train"
            meta = {"concept": concept.name, "style": style, "held_out": is_held_out}
            images = (image_path(concept, style),)
            for kind in kinds:
                named = kind == "name"
                prompt = (
                    draw_prompt(concept.name, style) if named else tags_prompt(concept.name, concept.tags, style, seed)
                )
                if prompt is not None:
                    messages = (Message("user", (prompt,)), Message("assistant", (0,)))
                    splits[f"{prefix}_draw.jsonl"].append(Sample(messages, images, {**meta, "prompt_kind": kind}))
            for question in QUESTIONS:
                messages = (Message("user", (f"{question}\n", 0)), Message("assistant", (concept.name,)))
                splits[f"{prefix}_read.jsonl"].append(Sample(messages, images, {**meta, "prompt_kind": "name"}))
    return {name: write_samples(folder / name, samples) for name, samples in splits.items()}


def tags_prompt(name: str, tags: Sequence[str], style: str, seed: int = 0) -> str | None:
    """A prompt of up to three of a concept's tags, in an order of their own; None for one without tags."""
    chosen = sorted(tags, key=lambda tag: _hash(f"tags:{seed}:{name}:{tag}"))[:_NUM_TAGS]
    return f"Draw a picture of {', '.join(chosen)} in {STYLE_WORDS[style]} style." if chosen else None


def _write_concepts(folder: Path, concepts: Sequence[Concept], held_out: dict[str, str], unseen: set[str]) -> None:
    entries = [
        {
            "name": concept.name,
            "emoji": concept.emoji,
            "hexcode": concept.hexcode,
            "group": concept.group_name,
            "subgroup": concept.subgroup,
            "tags": list(concept.tags),
            "images": {style: image_path(concept, style) for style in STYLES},
            "held_out_style": held_out.get(concept.name),
            "unseen": concept.name in unseen,
        }
        for concept in concepts
    ]
    text = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    (folder / "concepts.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


def emoji_licences(openmoji: Path, fluent: Path, emojibase: Path) -> tuple[Licence, ...]:
    """Of the unpacked packages, with their versions."""
    return (
        Licence(
            "OpenMoji",
            package_version(openmoji),
            "CC BY-SA 4.0",
            "https://openmoji.org",
            "the flat pictures; what shows them must name OpenMoji and keep the licence",
        ),
        Licence(
            "Fluent Emoji",
            package_version(fluent),
            "MIT",
            "https://github.com/microsoft/fluentui-emoji",
            "the 3D pictures (Microsoft; npm package @lobehub/fluent-emoji-3d)",
        ),
        Licence(
            "emojibase-data",
            package_version(emojibase),
            "MIT",
            "https://emojibase.dev",
            "names, tags and groups (CLDR)",
        ),
    )


def npm_package(folder: str | Path) -> Path:
    """npm's tarballs hold one folder named `package`; both that and its parent are understood."""
    folder = Path(folder)
    return folder / "package" if (folder / "package").is_dir() else folder


def package_version(package: Path) -> str:
    """Of an unpacked npm package. Raises ValueError if it is none."""
    path = package / "package.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); is {package} an unpacked npm package?") from error


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
