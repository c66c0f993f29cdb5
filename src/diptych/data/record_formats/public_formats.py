"""The formats of public sets, by the name that a recipe calls them: each set's layout is told in its own file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diptych.data.record_formats.clip_captions import is_clip_caption, parse_clip_caption
from diptych.data.record_formats.clip_prediction import parse_clip
from diptych.data.record_formats.frame_folders import parse_frame_folders
from diptych.data.record_formats.generation_pairs import parse_generation
from diptych.data.record_formats.record_shape import RecordSettings
from diptych.data.record_formats.visual_cot import is_visual_cot, parse_visual_cot
from diptych.data.record_formats.vstar import is_vstar, parse_vstar
from diptych.data.samples import Sample


@dataclass(frozen=True)
class PublicFormat:
    """As `recognition.RecordFormat`, which imports this table."""

    matches: Callable[[dict[str, Any]], bool]
    parse: Callable[[Any, int, RecordSettings], Sample]
    fields: str


def _never(record: dict[str, Any]) -> bool:
    """Of formats that have the fields of another: they are named in the recipe."""
    del record
    return False


PUBLIC_FORMATS = {
    "visual_cot": PublicFormat(is_visual_cot, parse_visual_cot, "conversations and image with ###[box]"),
    "vstar": PublicFormat(is_vstar, parse_vstar, "conversations and target_instances"),
    "clip_captions": PublicFormat(is_clip_caption, parse_clip_caption, "video_path and captions"),
    "generation": PublicFormat(_never, parse_generation, "image and caption"),
    "frame_folders": PublicFormat(_never, parse_frame_folders, "conversations and video, a folder"),
    "clips": PublicFormat(_never, parse_clip, "video"),
}
