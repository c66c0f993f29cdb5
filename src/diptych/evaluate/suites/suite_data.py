"""The built sets that suites ask about: the user's own folder, or built once into the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diptych.backbones.assets import asset_path, cache_root
from diptych.backbones.cache_folder import locked
from diptych.data.builders.clip_library import ClipSource
from diptych.data.builders.concept_gallery import GallerySource
from diptych.data.builders.data_card import OtherSettingsError, read_card
from diptych.data.builders.easy_vqa import build_easy_vqa
from diptych.data.builders.emoji import PACKAGES, build_emoji
from diptych.data.builders.image_qa import build_image_qa
from diptych.data.builders.pure_video import build_pure_video
from diptych.data.builders.scene_prompts import build_emoji_scenes
from diptych.data.builders.video_qa import build_video_qa
from diptych.data.samples import Sample, read_samples, sample_to_record
from diptych.evaluate.suite import Example, Progress

EMOJI_ASSETS = tuple(PACKAGES.values())
EASY_VQA_ASSETS = ("easy-vqa",)
_CLIPS = tuple(f"fluent-emoji-anim-{number}" for number in range(1, 5))
CLIP_ASSETS = (*_CLIPS, PACKAGES["emojibase_folder"])


def find_emoji_set(data: Path | None, progress: Progress) -> Path:
    """Every emoji in two styles, as `diptych data build emoji` makes it."""
    return _find("emoji", data, lambda out: _build_emoji(out, progress))


def find_image_qa(data: Path | None, progress: Progress) -> Path:
    """Questions on emoji and scenes, as `diptych data build image-qa` makes them."""
    return _find("image-qa", data, lambda out: _build_image_qa(out, progress))


def find_emoji_scenes(data: Path | None, progress: Progress) -> Path:
    """Scenes of emoji, as `diptych data build emoji-scenes` makes them; without those for training."""
    return _find("emoji-scenes", data, lambda out: _build_emoji_scenes(out, progress))


def find_easy_vqa(data: Path | None, progress: Progress) -> Path:
    """easy-VQA, as `diptych data build easy-vqa` makes it."""
    folder = lambda: asset_path("easy-vqa")  # noqa: E731
    return _find("easy-vqa", data, lambda out: build_easy_vqa(out, easy_vqa_folder=folder(), progress=progress))


def find_video_qa(data: Path | None, progress: Progress) -> Path:
    """Questions on clips, as `diptych data build video-qa` makes them."""
    return _find("video-qa", data, lambda out: _build_clips(build_video_qa, out, progress))


def find_pure_video(data: Path | None, progress: Progress) -> Path:
    """Frames of clips in and out, as `diptych data build pure-video` makes them."""
    return _find("pure-video", data, lambda out: _build_clips(build_pure_video, out, progress))


def read_splits(folder: Path, splits: tuple[str, ...]) -> list[tuple[str, Sample]]:
    """The samples of some splits of a built set, each with an id that follows from all that is said and shown
    (pictures are named by their content). Raises ValueError for a split that is missing."""
    found = []
    for split in splits:
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            raise ValueError(f"{folder} holds no {path.name}; give another folder (--data), or none to have it built")
        for sample in read_samples(path):
            record = sample_to_record(sample)
            digest = hashlib.sha256(json.dumps([record["messages"], record["images"]]).encode()).hexdigest()
            found.append((f"{split}/{digest[:16]}", sample))
    return found


def read_questions(folder: Path, splits: tuple[str, ...], kind_of: Callable[[Sample], str]) -> list[Example]:
    """The samples of some splits of a built set whose answer is text, each with its kind of question."""
    return [_question(folder, id, sample, kind_of(sample)) for id, sample in read_splits(folder, splits)]


def _question(folder: Path, id: str, sample: Sample, kind: str) -> Example:
    return Example(
        id=id,
        messages=sample.messages[:-1],
        images=tuple(folder / image for image in sample.images),
        reference=str(sample.messages[-1].parts[0]),
        kind=kind,
        choices=tuple(sample.meta.get("words", ())),
    )


def _find(name: str, data: Path | None, build: Callable[[Path], object]) -> Path:
    """The user's folder, checked for a card; otherwise the set in the cache, built where it is not there, and again
    where it is that of another version of diptych. Several processes build it once."""
    if data is not None:
        read_card(data)
        return data
    folder = cache_root() / "suites" / name
    with locked(folder.with_name(f".{name}.lock")):
        try:
            build(folder)
        except OtherSettingsError:
            shutil.rmtree(folder)
            build(folder)
    return folder


def _build_emoji(out: Path, progress: Progress) -> None:
    build_emoji(out, **_emoji_folders(), progress=progress)


def _build_image_qa(out: Path, progress: Progress) -> None:
    build_image_qa(out, GallerySource(**_emoji_folders(), progress=progress))


def _build_emoji_scenes(out: Path, progress: Progress) -> None:
    emoji = find_emoji_set(None, progress)
    build_emoji_scenes(out, emoji_folder=emoji, num_samples=0, progress=progress)


def _build_clips(build: Callable[[Path, ClipSource], object], out: Path, progress: Progress) -> None:
    folders = tuple(asset_path(name) for name in _CLIPS)
    build(out, ClipSource(folders, asset_path(PACKAGES["emojibase_folder"]), progress=progress))


def _emoji_folders() -> dict[str, Any]:
    return {argument: asset_path(name) for argument, name in PACKAGES.items()}
