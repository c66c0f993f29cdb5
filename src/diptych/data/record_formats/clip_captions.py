"""ShareGPT4Video (ShareGPT4Video/ShareGPT4Video, arXiv 2406.04325): a clip, and what happens in it.

Layout of `sharegpt4video_40k.jsonl`: one entry a line: `video_id`, `video_path` (such as `panda/NAME.mp4`),
`zip_folder` (the archive that holds it), `timestamp`, `keyframe`, and `captions`, a list of `idx` and `content`; the
one whose `idx` is "-1" is of the whole clip. The archives `zip_folder/SET/....zip` unpack into a folder per set.

Known from: the card on the Hub (CC BY-NC 4.0) and loaders in three public repositories. Not confirmed: the folder
inside the archives. Not read: `sharegpt4video_mix181k_vqa-153k_share-cap-28k.json`, whose form could not be confirmed
(one public script finds clips through a field `image` that does not name a video). Never read from the real file.

As a video question: the frames, then a request to describe, answered by the caption of the whole clip.
"""

from __future__ import annotations

from typing import Any

from diptych.data.record_formats.record_shape import RecordSettings, choose, text_field
from diptych.data.samples import IMAGE_PLACEHOLDER, Message, RecordError, Sample

REQUESTS = ("Describe this video.", "What happens in this video?", "Describe in detail what this clip shows.")
_WHOLE_CLIP = "-1"


def is_clip_caption(record: dict[str, Any]) -> bool:
    return isinstance(record.get("captions"), list) and isinstance(record.get("video_path"), str)


def parse_clip_caption(record: dict[str, Any], number: int, settings: RecordSettings) -> Sample:
    """Raises RecordError for an entry without a path, or without a caption of the whole clip."""
    clip = text_field(record.get("video_path"), "video_path")
    captions = record.get("captions")
    entries = captions if isinstance(captions, list) else []
    whole = [entry for entry in entries if isinstance(entry, dict) and str(entry.get("idx")) == _WHOLE_CLIP]
    if len(whole) != 1:
        raise RecordError(
            "structure", f'captions must hold one entry with "idx": "-1", of the whole clip, not {len(whole)}'
        )
    caption = text_field(whole[0].get("content"), "content").strip()
    if IMAGE_PLACEHOLDER in caption:
        raise RecordError("structure", f"the caption holds {IMAGE_PLACEHOLDER}, which would be read as an image")
    if settings.frames is None:
        raise RecordError("video", f"{clip[:200]!r} is a clip; say with num_frames or fps of its source how it is read")
    images = settings.frames(clip)
    asked = choose(settings.prompt_templates or REQUESTS, number)
    messages = (Message("user", (*range(len(images)), f"\n{asked}")), Message("assistant", (caption,)))
    return Sample(messages, tuple(images), {"id": record["video_id"]} if "video_id" in record else {})
