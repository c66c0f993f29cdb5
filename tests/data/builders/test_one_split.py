"""Laws of one split for all sets of the six types: what one set holds out, no set trains on, whatever its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from built_sets import pictures_of, read_all
from diptych.data.builders.clip_library import ClipSource
from diptych.data.builders.concept_gallery import GallerySource
from diptych.data.builders.concept_splits import held_out_choice, is_held_out
from diptych.data.builders.concept_words import stem, things_in, usable_tags
from diptych.data.builders.drawing_prompts import build_generation
from diptych.data.builders.emoji_concepts import STYLES
from diptych.data.builders.image_qa import build_image_qa
from diptych.data.builders.image_to_image import build_image_to_image
from diptych.data.builders.pure_video import build_pure_video
from diptych.data.builders.text_instructions import build_text_instructions
from diptych.data.builders.video_qa import build_video_qa
from diptych.data.builders.visual_thinking import build_visual_thinking
from diptych.data.samples import Sample
from emoji_packages import NAMES, entry, write_clips, write_packages

SHOWN = [f"{name}{suffix}" for name in NAMES for suffix in ("", "ta", "ro")]
FLAT_ALIKE = SHOWN[0]
OF_GALLERY: dict[str, Callable[..., Any]] = {
    "image-qa": build_image_qa,
    "generation": build_generation,
    "visual-thinking": build_visual_thinking,
    "image-to-image": build_image_to_image,
    "text-only": build_text_instructions,
}
OF_CLIPS: dict[str, Callable[..., Any]] = {"video-qa": build_video_qa, "pure-video": build_pure_video}


def twin(number: int, name: str) -> str:
    """Clips have the gallery's things, most under another name."""
    return (name, f"{name} face", f"two-hump {name}")[number % 3]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> GallerySource:
    """Every concept has the next one's name as a tag, too."""
    entries = [
        entry(
            name, i, group=3 + i % 5, subgroup=10 + i % 2, tags=[f"tag{name}", "a", SHOWN[(i + 1) % len(SHOWN)], "joy"]
        )
        for i, name in enumerate(SHOWN)
    ]
    folders = write_packages(tmp_path_factory.mktemp("packages"), entries)
    drawn = folders["openmoji_folder"] / "package" / "color" / "svg" / f"{entries[0]['hexcode']}.svg"
    drawn.write_text(re.sub(r'<g id="color">.*?</g>', "", drawn.read_text()))
    return GallerySource(**folders, num_concepts=60, image_size=32)


@pytest.fixture(scope="module")
def sets(gallery: GallerySource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """A small build of every set: its folder, and its samples by split."""
    entries = [entry(twin(i, name), i, group=3 + i % 5, subgroup=10) for i, name in enumerate(gallery.gallery.concepts)]
    clips = ClipSource(**write_clips(tmp_path_factory.mktemp("clips"), entries), num_clips=len(entries), image_size=32)
    folder = tmp_path_factory.mktemp("sets")
    for name, build in OF_GALLERY.items():
        build(folder / name, gallery, num_samples=80)
    for name, build in OF_CLIPS.items():
        build(folder / name, clips, samples_per_clip=3)
    return {name: (folder / name, read_all(folder / name)) for name in (*OF_GALLERY, *OF_CLIPS)}


def words_of(sample: Sample) -> list[str]:
    said = " ".join(str(part) for message in sample.messages for part in message.parts if isinstance(part, str))
    return re.findall(r"\w+", f"{said} {sample.meta.get('concept', '')}")


def held_out_pictures(folder: Path, split: str, found: list[Sample]) -> set[str]:
    """A change of style starts from a picture that training may show, but for a concept that it never shows."""
    changes = split != "held_out_concept"
    of_style = [Sample(s.messages, s.images[-1:], s.meta) for s in found if changes and s.meta.get("task") == "style"]
    others = [s for s in found if not (changes and s.meta.get("task") == "style")]
    return pictures_of(folder, [*of_style, *others])


def test_no_held_out_picture_stands_in_any_sets_training(sets: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    trained = set().union(*(pictures_of(folder, samples["train"]) for folder, samples in sets.values()))
    for name, (folder, samples) in sets.items():
        for split in ("held_out_concept", "held_out_style", "held_out_combination"):
            if split == "held_out_combination" and name in OF_CLIPS:  # of clip and task: training shows most clips
                continue
            assert not held_out_pictures(folder, split, samples[split]) & trained, (name, split)


def test_no_held_out_name_stands_in_any_sets_training(sets: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    held_out = {name for name in SHOWN if is_held_out(name, seed=0)}
    assert held_out
    for name, (_, samples) in sets.items():
        for sample in samples["train"]:
            assert not held_out & set(words_of(sample)), (name, sample.messages)
        assert any(held_out & set(words_of(sample)) for sample in samples["held_out_concept"]), name


def test_what_is_held_out_in_fluent_is_no_clip_of_training(sets: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    apart = {name for name in SHOWN if held_out_choice(name, STYLES, seed=0) == "fluent"}
    for name in OF_CLIPS:
        samples = sets[name][1]
        shown = {split: {things_in(s.meta["concept"])[-1] for s in found} for split, found in samples.items()}
        assert not apart & shown["train"]
        assert not apart & shown["held_out_style"], "in grey neither"
        assert apart & shown["held_out_combination"]


def test_a_concept_that_is_flat_in_outlines_too_has_no_outline(gallery: GallerySource) -> None:
    outlined = gallery.gallery.pools["held_out_style"]["line"]
    assert FLAT_ALIKE in gallery.gallery.pools["train"]["openmoji"]
    assert FLAT_ALIKE not in outlined
    assert len(outlined) > 40


@pytest.mark.parametrize(
    ("one", "other", "are_twins"),
    [
        ("tiger", "tiger face", True),
        ("camel", "two-hump camel", True),
        ("airplane arrival", "airplane departure", True),
        ("sun", "sun with face", True),
        ("cherries", "cherry", True),
        ("pig", "horse face", False),
    ],
)
def test_twins_are_held_out_together(one: str, other: str, are_twins: bool) -> None:
    """A further word can only hold out more; what training shows of the one, it may of the other."""
    for seed in range(200):
        if are_twins:
            assert is_held_out(other, seed=seed) or not is_held_out(one, seed=seed)
            assert held_out_choice(one, STYLES, seed=seed) == held_out_choice(other, STYLES, seed=seed)
    assert are_twins or any(is_held_out(one, seed=seed) != is_held_out(other, seed=seed) for seed in range(200))


def test_draws_among_different_choices_are_independent() -> None:
    names = [f"name{i}" for i in range(500)]
    styles = {name for name in names if held_out_choice(name, STYLES, seed=0)}
    tasks = {name for name in names if held_out_choice(name, ("name", "kind"), seed=0)}
    assert 0 < len(styles & tasks) < 50


@pytest.mark.parametrize(
    ("plural", "singular"),
    [("grapes", "grape"), ("cherries", "cherry"), ("brushes", "brush"), ("glass", "glass"), ("boxes", "box")],
)
def test_stems_are_without_number(plural: str, singular: str) -> None:
    assert stem(plural) == stem(singular) == singular


def test_tags_are_words_that_name_nothing_else() -> None:
    tags = {
        "seal": ("animal", "lion", "lions", "ocean", "sea"),
        "lion": ("animal",),
        "sparkles": ("*", "magic", "sparkle", "star", "c", "x2"),
        "star": ("stars",),
        "walrus": ("sea lion", "sea"),
    }
    assert usable_tags(tags) == {
        "seal": ("animal", "ocean", "sea"),
        "lion": ("animal",),
        "sparkles": ("magic", "sparkle"),
        "star": ("stars",),
        "walrus": ("sea lion", "sea"),
    }
