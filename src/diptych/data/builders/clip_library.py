"""The animated emoji as clips: their frames, which of them look alike, and which clips training never shows.

The packages hold one style only, Fluent. So the held-out style is the same clips in shades of grey, and a held-out
combination is a clip with a task that training never sets on it, or of a thing that training never shows in Fluent,
as pictures of the gallery neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from diptych.data.builders.concept_splits import held_out_choice, is_held_out
from diptych.data.builders.data_card import Licence
from diptych.data.builders.emoji import Progress, npm_package, package_version
from diptych.data.builders.emoji_concepts import STYLES, read_package_json, without_selectors
from diptych.data.video import read_clip_info, read_frames

MOVES = 0.03
"""Root mean square between two frames' thumbnails (of a range of 1) from which a person sees a difference."""
SAME = 0.012
"""Below this two frames look alike: neighbours in a clip, 1/24 second apart, mostly do."""
GREY = "grey"
COLOUR = "colour"
_THUMBNAIL = 32
_BLANK = 16
_LEAST_FRAMES = 24
_GROUPS_OF_PEOPLE = (1, 2, 9)
"""People come in hundreds of near twins (skins, genders, hair), components and flags are no things."""


@dataclass(frozen=True)
class Clip:
    """A named clip. `group`, `subgroup` and `tags`: as emojibase has them."""

    name: str
    path: Path
    subgroup: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class ClipFrames:
    """All frames of a clip, evenly spaced over `seconds`, RGB on white; `distances` [frames, frames] of their looks, in
    colour."""

    seconds: float
    frames: tuple[Image.Image, ...]
    distances: np.ndarray

    @property
    def fps(self) -> float:
        return len(self.frames) / self.seconds

    def index_at(self, time: float) -> int:
        """The frame on show at a time, seconds from the start."""
        return min(int(time * self.fps + 1e-6), len(self.frames) - 1)

    def any_blank(self, indices: Iterable[int]) -> bool:
        """Whether one of the frames is of a single colour: nothing is to be seen in it (a droplet not yet there)."""
        extremes = (self.frames[index].getextrema() for index in indices)
        return any(max(int(high) - int(low) for low, high in bands) < _BLANK for bands in extremes)  # type: ignore[misc]

    def look_alike(self, one: Sequence[int], other: Sequence[int], *, limit: float = SAME) -> bool:
        return all(self.distances[a, b] < limit for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class ClipSource:
    """Where clips come from: unpacked npm packages @lobehub/fluent-emoji-anim-N, and emojibase-data for their names."""

    clip_folders: tuple[str | Path, ...]
    emojibase_folder: str | Path
    num_clips: int = 200
    image_size: int = 128
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not self.clip_folders or self.num_clips < 1 or not 16 <= self.image_size <= 1024:
            raise ValueError(
                f"clips need folders ({len(self.clip_folders)} given), num_clips of 1 or more ({self.num_clips}), an "
                f"image_size in 16..1024 ({self.image_size})"
            )

    @cached_property
    def licences(self) -> tuple[Licence, ...]:
        clips = ", ".join(sorted({package_version(npm_package(folder)) for folder in self.clip_folders}))
        origin = "https://github.com/microsoft/fluentui-emoji"
        used = "the clips (Microsoft; npm packages @lobehub/fluent-emoji-anim-1 to 4)"
        words = package_version(npm_package(self.emojibase_folder))
        return (
            Licence("Fluent Emoji, animated", clips, "MIT", origin, used),
            Licence("emojibase-data", words, "MIT", "https://emojibase.dev", "names, tags and groups (CLDR)"),
        )

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "sources": {entry.source: entry.version for entry in self.licences},
            "num_clips": self.num_clips,
            "image_size": self.image_size,
            "seed": self.seed,
        }

    @cached_property
    def clips(self) -> tuple[Clip, ...]:
        """`num_clips` things with a name of one to three words that move, spread over Unicode's order."""
        found = list(self._named_clips())
        if len(found) < self.num_clips:
            raise ValueError(f"the packages hold {len(found)} fitting clips; ask for fewer than {self.num_clips}")
        return tuple(found[k * len(found) // self.num_clips] for k in range(self.num_clips))

    @property
    def counts(self) -> dict[str, int]:
        """For a card."""
        held_out = sum(not self.is_trained(clip.name) for clip in self.clips)
        return {"clips": len(self.clips), "clips held out": held_out}

    def is_trained(self, name: str) -> bool:
        """Whether training may show the clip of that name: neither its thing nor that in Fluent is held out."""
        return not is_held_out(name, seed=self.seed) and held_out_choice(name, STYLES, seed=self.seed) != "fluent"

    def splits_of(self, clip: Clip, tasks: Sequence[str]) -> list[tuple[str, str, tuple[str, ...]]]:
        """(split, colour or grey, the tasks that the split sets on the clip)."""
        if not self.is_trained(clip.name):
            split = "held_out_concept" if is_held_out(clip.name, seed=self.seed) else "held_out_combination"
            return [(split, COLOUR, tuple(tasks))]
        apart = held_out_choice(clip.name, tasks, seed=self.seed)
        found = [
            ("train", COLOUR, tuple(task for task in tasks if task != apart)),
            ("held_out_style", GREY, tuple(tasks)),
        ]
        return found if apart is None else [*found, ("held_out_combination", COLOUR, (apart,))]

    def read_for_splits(
        self, clip: Clip, tasks: Sequence[str]
    ) -> Iterator[tuple[str, str, tuple[str, ...], ClipFrames]]:
        """As of `splits_of`, and the clip's frames; the clip is decoded once."""
        frames = self.read(clip)
        for split, colours, asked in self.splits_of(clip, tasks):
            if colours == GREY:
                grey = tuple(ImageOps.grayscale(frame).convert("RGB") for frame in frames.frames)
                yield split, colours, asked, replace(frames, frames=grey)
            else:
                yield split, colours, asked, frames

    def read(self, clip: Clip) -> ClipFrames:
        """Every frame at `image_size`."""
        info = read_clip_info(clip.path)
        size = (self.image_size, self.image_size)
        whole = read_frames(clip.path, num_frames=info.num_frames or 1)
        frames = [frame.resize(size, Image.Resampling.LANCZOS) for frame in whole]
        looks = np.stack([_look(frame) for frame in frames])
        products = looks @ looks.T
        squares = np.diag(products)[:, None] + np.diag(products)[None] - 2 * products
        distances = np.sqrt(np.maximum(squares, 0) / looks.shape[1])
        return ClipFrames(info.seconds, tuple(frames), distances)

    def _named_clips(self) -> Iterator[Clip]:
        files: dict[str, Path] = {}
        for folder in self.clip_folders:
            for path in sorted((npm_package(folder) / "assets").glob("*.webp")):
                files[without_selectors(path.stem)] = path
        if not files:
            raise ValueError(f"{self.clip_folders[0]} holds no .webp clips; is it the unpacked package?")
        package = npm_package(self.emojibase_folder)
        entries = read_package_json(package / "en" / "data.json")
        subgroups = read_package_json(package / "meta" / "groups.json")["subgroups"]
        names: set[str] = set()
        for entry in sorted((entry for entry in entries if "order" in entry), key=lambda entry: entry["order"]):
            path, name = files.get(without_selectors(entry["hexcode"])), entry["label"]
            if path is None or entry["group"] in _GROUPS_OF_PEOPLE or len(name.split()) > 3 or name in names:
                continue
            if tells_a_time(name):
                continue
            if (read_clip_info(path).num_frames or 0) >= _LEAST_FRAMES:
                names.add(name)
                yield Clip(name, path, subgroups[str(entry["subgroup"])], tuple(entry.get("tags", ())))


def tells_a_time(name: str) -> bool:
    """Of a clock that shows a time: its name is true of one frame, and in a clip its hands turn."""
    return name.endswith(("o’clock", "-thirty"))  # noqa: RUF001 - as Unicode writes it


def _look(frame: Image.Image) -> np.ndarray:
    small = frame.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64).ravel() / 255
