"""Which emoji become concepts: those that both styles draw, and a choice of everyday ones that look different."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STYLES = ("fluent", "openmoji")
_COMPONENTS, _FLAGS = 2, 9
_SHARES = {3: 55, 4: 50, 5: 35, 6: 20, 7: 40}
"""Of 200 everyday concepts: animals and nature, food and drink, travel and places, activities, objects."""
_SERIES = frozenset(
    ("time", "book-paper", "mail", "office", "money", "place-map", "place-religious", "sound", "lock", "hotel")
)
"""Subgroups that hold one thing in many states: clock faces, moon phases, books, letters, speakers, padlocks ..."""
_UNCLEAR = """
foggy, wedding, motorway, construction, cooking, camping, cityscape, sunset, stadium, bank, cyclone, link, joystick,
seat, microbe, custard, oden, dango, sake, mate, chestnut, fondue, tamale, falafel, shortcake, spaghetti, amphora,
hamsa, trackball, pager, videocassette, dvd, clamp, joker, ticket, memo, briefs, bikini, cigarette, coffin, headstone,
firecracker, water pistol, cricket game
"""
"""Scenes, signs, acts, and things that a small picture hardly names."""
_NEAR_TWINS = """
poodle, ox, boar, ram, rat, chipmunk, bug, badger, turkey, fly, cricket, rosette, blossom, hibiscus, bouquet, hotel,
houses, metro, mango, station, minibus, trolleybus, monorail, locomotive, ferry, softball
"""
"""Hard to tell from a plainer concept: ox from cow, mango from tangerine, ferry from ship."""
_NOT_EVERYDAY = frozenset(re.split(r"\s*,\s*", f"{_UNCLEAR.strip()}, {_NEAR_TWINS.strip()}"))
_MIN_DIFFERENCE = 0.12
_TWIN_DIFFERENCE = 0.004


@dataclass(frozen=True)
class Concept:
    """One emoji: its CLDR name, words and place in Unicode's order, and its drawing in each style."""

    name: str
    emoji: str
    hexcode: str
    group: int
    group_name: str
    subgroup: str
    tags: tuple[str, ...]
    version: float
    files: dict[str, Path]


def read_concepts(*, openmoji_folder: Path, fluent_folder: Path, emojibase_folder: Path) -> list[Concept]:
    """Every emoji with a name of its own and a drawing in both styles, in Unicode's order.

    Left out: components, flags, and skin tones (which emojibase lists below their emoji). Raises ValueError that
    names what a folder lacks.
    """
    drawings = {
        "fluent": _drawings(fluent_folder / "assets", "webp"),
        "openmoji": _drawings(openmoji_folder / "color" / "svg", "svg"),
    }
    names = read_package_json(emojibase_folder / "meta" / "groups.json")
    concepts: dict[str, Concept] = {}
    entries = [entry for entry in read_package_json(emojibase_folder / "en" / "data.json") if "order" in entry]
    for entry in sorted(entries, key=lambda entry: entry["order"]):
        key = without_selectors(entry["hexcode"])
        if entry["group"] in (_COMPONENTS, _FLAGS) or entry["label"] in concepts:
            continue
        if all(key in drawings[style] for style in STYLES):
            concepts[entry["label"]] = Concept(
                name=entry["label"],
                emoji=entry["emoji"],
                hexcode=key.lower(),
                group=entry["group"],
                group_name=names["groups"][str(entry["group"])],
                subgroup=names["subgroups"][str(entry["subgroup"])],
                tags=tuple(entry.get("tags", ())),
                version=float(entry["version"]),
                files={style: drawings[style][key] for style in STYLES},
            )
    return list(concepts.values())


def thumbnail(image: Image.Image) -> np.ndarray:
    """16 x 16 colours in 0..1, flat: what two drawings are compared by."""
    return np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=np.float32).ravel() / 255


def without_twins(concepts: Sequence[Concept], thumbnails: dict[str, np.ndarray]) -> list[Concept]:
    """Leaves out concepts that some style draws like an earlier one (OpenMoji's "cook" and "man cook" are one drawing).

    `thumbnails`: by style, one row per concept.
    """
    kept: list[int] = []
    for index in range(len(concepts)):
        if _difference(thumbnails, index, kept) >= _TWIN_DIFFERENCE:
            kept.append(index)
    return [concepts[index] for index in kept]


def is_everyday(concept: Concept) -> bool:
    """A thing of daily life with a plain name of one or two words, not one state of a series, and clear when small."""
    plain = re.fullmatch(r"[a-z]+( [a-z]+)?", concept.name) is not None
    return plain and concept.group in _SHARES and concept.subgroup not in _SERIES and concept.name not in _NOT_EVERYDAY


def choose_everyday(concepts: Sequence[Concept], thumbnails: dict[str, np.ndarray], num_concepts: int) -> list[Concept]:
    """Chooses everyday concepts that no two of them look alike, the same ones every time, in Unicode's order.

    Groups get their shares of 200 (animals 55, food 50, travel 35, activities 20, objects 40). Within them, short and
    old names come first, spread over the subgroups; one concept per last word ("tiger", not also "tiger face"), and
    none whose thumbnail is nearer than 0.12 (root mean square) to a chosen one in either style.

    Raises ValueError if there are not that many.
    """
    if num_concepts < 1:
        raise ValueError(f"num_concepts is {num_concepts}; it must be at least 1")
    ranked = _ranked(concepts)
    shares = {group: round(num_concepts * share / 200) for group, share in _SHARES.items()}
    chosen: list[int] = []
    words: set[str] = set()
    for keeps_shares in (True, False):
        for index in ranked:
            concept = concepts[index]
            word = _last_word(concept.name)
            full = len(chosen) >= num_concepts or (keeps_shares and not shares[concept.group])
            if full or word in words or _difference(thumbnails, index, chosen) < _MIN_DIFFERENCE:
                continue
            chosen.append(index)
            words.add(word)
            shares[concept.group] -= 1
    if len(chosen) < num_concepts:
        raise ValueError(
            f"only {len(chosen)} everyday concepts look different enough; ask for fewer than {num_concepts}, or for all"
        )
    return [concepts[index] for index in sorted(chosen)]


def _ranked(concepts: Sequence[Concept]) -> list[int]:
    """Indices of everyday concepts: by level (number of words; recent ones a level later), spread over subgroups."""
    levels: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, concept in enumerate(concepts):
        if is_everyday(concept):
            level = len(concept.name.split()) + (concept.version > 4)
            levels[level, concept.subgroup].append(index)
    ranks = []
    for (level, _), members in levels.items():
        members.sort(key=lambda index: (concepts[index].version > 1, index))
        ranks += [(level, (turn + 0.5) / len(members), index) for turn, index in enumerate(members)]
    return [index for _, _, index in sorted(ranks)]


def _difference(thumbnails: dict[str, np.ndarray], index: int, others: list[int]) -> float:
    """Least root-mean-square difference to any of the others, in the style where it is least."""
    if not others:
        return float("inf")
    squares = [((rows[others] - rows[index]) ** 2).mean(axis=1).min() for rows in thumbnails.values()]
    return float(np.sqrt(min(squares)))


def _last_word(name: str) -> str:
    words = [word for word in name.split() if word != "face"] or [name]
    return words[-1][:-1] if words[-1].endswith("s") and not words[-1].endswith("ss") else words[-1]


def _drawings(folder: Path, extension: str) -> dict[str, Path]:
    found = {without_selectors(path.stem): path for path in sorted(folder.glob(f"*.{extension}"), key=str)}
    if not found:
        raise ValueError(f"{folder} holds no .{extension} drawings; is it the unpacked package?")
    return found


def without_selectors(hexcode: str) -> str:
    """The two styles and emojibase disagree about writing the variation selector FE0F, so it is left out."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def read_package_json(path: Path) -> Any:
    """A JSON file of an unpacked package. Raises ValueError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); is {path.parents[1]} the unpacked package?") from error
