"""LLaVA's records: `conversations` of `from` and `value`, `image` a path or a list, `<image>` where each stands.

`video` (with `<video>`, or with `<image>` where a record has no image of its own) becomes frames. An image in a turn of
`gpt` is one to draw, as in MetaMorph's data.
"""

from __future__ import annotations

import re
from typing import Any

from diptych.data.record_formats.record_shape import RecordSettings, image_list
from diptych.data.samples import IMAGE_PLACEHOLDER, Message, RecordError, Sample, checked_text, kind_of

VIDEO_PLACEHOLDER = "<video>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_PLACEHOLDERS = re.compile(f"({IMAGE_PLACEHOLDER}|{VIDEO_PLACEHOLDER})")


def is_llava(record: dict[str, Any]) -> bool:
    return isinstance(record.get("conversations"), list)


def parse_llava(record: dict[str, Any], number: int, settings: RecordSettings) -> Sample:
    """Raises RecordError for turns that are none, and for placeholders that do not match images and clips."""
    del number
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RecordError("structure", "conversations must be a list of at least one turn")
    images = image_list(record.get("image"), "image")
    clips = image_list(record.get("video"), "video")
    stand_in = clips and not images and not any(VIDEO_PLACEHOLDER in _value(turn) for turn in turns)
    waiting = {IMAGE_PLACEHOLDER: [] if stand_in else images, VIDEO_PLACEHOLDER: clips}
    taken = dict.fromkeys(waiting, 0)
    used: list[str] = []
    messages = []
    for place, turn in enumerate(turns, start=1):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in _ROLES:
            raise RecordError("role", f"turn {place} is from {str(speaker)[:80]!r}; they are from {', '.join(_ROLES)}")
        if not isinstance(turn.get("value"), str):
            raise RecordError("structure", f"turn {place}: value must be text, not {kind_of(turn.get('value'))}")
        parts: list[str | int] = []
        for piece in _PLACEHOLDERS.split(checked_text(turn["value"], f"turn {place}")):
            if piece not in waiting:
                if piece:
                    parts.append(piece)
                continue
            kind = VIDEO_PLACEHOLDER if stand_in else piece
            here = taken[kind]
            taken[kind] += 1
            if here < len(waiting[kind]):
                new = _frames(waiting[kind][here], settings) if kind == VIDEO_PLACEHOLDER else [waiting[kind][here]]
                parts += range(len(used), len(used) + len(new))
                used += new
        if not parts and _ROLES[speaker] != "system":
            raise RecordError("empty", f"turn {place} is empty")
        messages.append(Message(_ROLES[speaker], tuple(parts)))
    for kind, names in waiting.items():
        if taken[kind] != len(names):
            word = "images" if kind == IMAGE_PLACEHOLDER else "clips"
            raise RecordError("image count", f"{taken[kind]} {kind} placeholders for {len(names)} {word}")
    return Sample(tuple(messages), tuple(used), {"id": record["id"]} if "id" in record else {})


def _value(turn: Any) -> str:
    value = turn.get("value") if isinstance(turn, dict) else None
    return value if isinstance(value, str) else ""


def _frames(clip: str, settings: RecordSettings) -> list[str]:
    if settings.frames is None:
        raise RecordError("video", f"{clip[:200]!r} is a clip; say with num_frames or fps of its source how it is read")
    return settings.frames(clip)
