"""ShareGPTVideo (ShareGPTVideo/train_video_and_instruction, arXiv 2404.01258): questions on clips kept as frames.

Layout: `video_instruction/train/sft/video_240k_caption_15k.jsonl` (questions, behind the first 240,000 lines captions)
and `video_caption_300k.jsonl`, one entry a line: `id`, `video` (the clip's name, no path and no suffix),
`conversations` in LLaVA's form, `<video>` in the first turn. The frames are in `train_300k/chunk_N.tar.gz` and
`train_600k/...`; unpacked, each clip is a folder of its name that holds `c01_0001.jpeg`, `c01_0002.jpeg` and so on, two
a second, 336 pixels wide.

Known from: the card and file list on the Hub (Apache 2.0); the frame rate from issue 3 of RifleZhang/LLaVA-Hound-DPO;
entries and frame names from a data sheet of a public repository that shows entries of the real file. Never read from
the real file. MetaMorph's ShareVideo (540 thousand) is taken to be the 240 and the 300 thousand: a guess by the counts.

As MetaMorph uses it: one image per frame at one frame a second, at most 45, then the question.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from diptych.data.record_formats.file_settings import FileSettings, file_settings
from diptych.data.record_formats.llava import parse_llava
from diptych.data.record_formats.record_shape import RecordSettings
from diptych.data.samples import RecordError, Sample

STORED_FPS = 2.0
_FRAME = re.compile(r"(?:.*\D)?(\d+)\.(?:jpe?g|png|webp)", re.IGNORECASE)


def parse_frame_folders(record: dict[str, Any], number: int, settings: RecordSettings) -> Sample:
    """As `parse_llava`, a clip being the images of its folder at the source's `fps`, at most `max_frames` of them.

    Raises RecordError also for a folder that is not there, or holds no frames.
    """
    files = file_settings(settings)
    if files.fps is None:
        raise RecordError("video", "folders of frames are read at a rate; say with fps of their source, such as fps: 1")
    return parse_llava(record, number, replace(files, frames=lambda clip: _frames(clip, files)))


def _frames(clip: str, files: FileSettings) -> list[str]:
    assert files.list_folder is not None
    assert files.fps is not None
    found = sorted(
        (int(match[1]), name) for name in files.list_folder(clip) if (match := _FRAME.fullmatch(name)) is not None
    )
    if not found:
        raise RecordError("video", f"folder {clip[:200]!r} holds no frames")
    names = [name for _, name in found]
    wanted = max(1, math.ceil(len(names) / STORED_FPS * files.fps - 1e-6))
    if wanted > files.max_frames:  # spread, so that the end is seen too
        places = [int((place + 0.5) * len(names) / files.max_frames) for place in range(files.max_frames)]
    else:
        places = [min(int(place * STORED_FPS / files.fps), len(names) - 1) for place in range(wanted)]
    return [f"{clip}/{names[place]}" for place in places]
