"""All sets that together give MetaMorph's six data types, and text, from embedded packages; and how to mix them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diptych.data.builders.clip_library import ClipSource
from diptych.data.builders.concept_gallery import GallerySource
from diptych.data.builders.drawing_prompts import build_generation
from diptych.data.builders.easy_vqa import build_easy_vqa
from diptych.data.builders.emoji import BuiltSet, Progress
from diptych.data.builders.image_qa import build_image_qa
from diptych.data.builders.image_to_image import build_image_to_image
from diptych.data.builders.pure_video import build_pure_video
from diptych.data.builders.text_instructions import build_text_instructions
from diptych.data.builders.video_qa import build_video_qa
from diptych.data.builders.visual_thinking import build_visual_thinking

FRAGMENT_NAME = "six-types.yaml"
SHARES = {
    "image-qa": 34,
    "easy-vqa": 10,
    "video-qa": 10,
    "generation": 31,
    "pure-video": 9,
    "visual-thinking": 3,
    "image-to-image": 3,
}
"""MetaMorph's mixture, in per cent of the samples; its ImageQA falls to two sets here."""
TEXT_SHARE = 2
"""MetaMorph names no share of its text-only samples; this one is ours."""


@dataclass(frozen=True)
class SixTypesSize:
    """Training samples of each set (of clips: tries at each clip)."""

    image_qa: int = 4000
    generation: int = 4000
    visual_thinking: int = 2000
    image_to_image: int = 3000
    text_only: int = 2000
    per_clip: int = 6


def build_six_types(
    out: str | Path,
    *,
    gallery: GallerySource,
    clips: ClipSource,
    easy_vqa_folder: str | Path,
    size: SixTypesSize = SixTypesSize(),
    progress: Progress | None = None,
) -> list[BuiltSet]:
    """Builds every set in a folder of its own under `out`, and writes FRAGMENT_NAME: the `data` part of a recipe.

    A set that is already there is left as it is, so that a build that was stopped goes on. Errors: as of each builder.
    """
    out = Path(out)
    builds: dict[str, Callable[[Path], BuiltSet]] = {
        "image-qa": lambda folder: build_image_qa(folder, gallery, num_samples=size.image_qa),
        "easy-vqa": lambda folder: build_easy_vqa(folder, easy_vqa_folder=easy_vqa_folder, progress=progress),
        "generation": lambda folder: build_generation(folder, gallery, num_samples=size.generation),
        "visual-thinking": lambda folder: build_visual_thinking(folder, gallery, num_samples=size.visual_thinking),
        "image-to-image": lambda folder: build_image_to_image(folder, gallery, num_samples=size.image_to_image),
        "text-only": lambda folder: build_text_instructions(folder, gallery, num_samples=size.text_only),
        "video-qa": lambda folder: build_video_qa(folder, clips, samples_per_clip=size.per_clip),
        "pure-video": lambda folder: build_pure_video(folder, clips, samples_per_clip=size.per_clip),
    }
    built = [build(out / name) for name, build in builds.items()]
    (out / FRAGMENT_NAME).write_text(mixture_fragment(out), encoding="utf-8")
    return built


def mixture_fragment(out: Path) -> str:
    """The `data` part of a recipe that mixes the built sets in MetaMorph's shares, in per cent of the samples."""
    lines = ["# MetaMorph's six data types from embedded sets, in its shares, and text.", "data:", "  sources:"]
    for name, share in (SHARES | {"text-only": TEXT_SHARE}).items():
        lines += [f"    - path: {(out / name / 'train.jsonl').as_posix()}", f"      weight: {share}"]
    return "\n".join(lines) + "\n"
