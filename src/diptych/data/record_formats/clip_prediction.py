"""Clips without words, as MetaMorph learns from them (HowTo100M, Something-Something v2): frames in, frames out.

A record names a clip in `video`, as a path or without its suffix. With the recipe's `columns:` that is

- HowTo100M (arXiv 1906.03327): `HowTo100M_v1.csv` with the columns `video_id`, `category_1`, `category_2`, `rank`,
  `task_id`; `columns: {video: video_id}`. Known from: the set's own description of its files, kept in a public
  repository, and loaders in others. The set gives out no videos: they are fetched from YouTube by their ids, under
  names that the downloader chooses. Taken here: a folder of `VIDEO_ID.mp4` or `VIDEO_ID.webm`.
- Something-Something v2 (arXiv 1706.04261): JSON arrays `train.json`, `validation.json` (also called
  `something-something-v2-train.json` ...) of `id`, `label`, `template`, `placeholders`; the clips are `ID.webm` in the
  folder `20bn-something-something-v2`; `columns: {video: id}`. Known from: loaders in six public repositories that
  agree, and a public copy's file list.

Neither was ever read from the real files.

Frames are t seconds apart, t drawn evenly, in tenths (the words name it), from max(2 / fps, 0.1) to
min(10, length / 2). Two frames: the scene t seconds later. Three to MAX_SHOWN, one of seven tasks: the rest from the
first; what follows a random point; backwards from the last; every other frame; shuffled frames in order; the interval,
in words; the next one to three. The paper states tasks and interval, not how many frames, nor its words. All is drawn
by the record's number and the clip's name: the same in every run and every epoch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from diptych.data.record_formats.file_settings import FileSettings, file_settings
from diptych.data.record_formats.record_shape import RecordSettings, text_field
from diptych.data.references import MAX_FRAMES, frame_reference
from diptych.data.samples import Message, RecordError, Sample

TASKS = ("later", "rest", "split", "reverse", "fill", "reorder", "interval", "next")
MAX_SHOWN = 6
SUFFIXES = (".mp4", ".webm")
UNCOUNTED_FPS = 10.0
"""Of files whose headers do not count their frames (webm): below what these sets have, so frames still differ."""


def parse_clip(record: dict[str, Any], number: int, settings: RecordSettings) -> Sample:
    """Raises RecordError for a clip that is not there, cannot be read, or is too short for two frames."""
    from diptych.data.video import read_clip_info

    files = file_settings(settings)
    name = record.get("video")
    # Ids may be numbers, and come as such from a table.
    clip = _find(str(name) if type(name) is int else text_field(name, "video"), files)
    assert files.locate is not None
    try:
        info = read_clip_info(files.locate(clip))
    except RecordError:
        raise
    except ValueError as error:
        raise RecordError("video", str(error)) from None
    fps = info.num_frames / info.seconds if info.num_frames else UNCOUNTED_FPS
    return make_sample(clip, info.seconds, fps, random.Random(f"{number}:{clip}"))


def make_sample(clip: str, seconds: float, fps: float, chance: random.Random) -> Sample:
    """One task on a clip. Raises RecordError if it is too short for two frames that differ."""
    interval = _draw_interval(clip, seconds, fps, chance)
    most = min(MAX_SHOWN, int(seconds / interval + 1e-6) + 1)  # at least 3: an interval is at most half a clip
    task = chance.choice(TASKS)
    count = 2 if task == "later" else chance.randint(3, most)
    # References name one of N frames spread over the clip: N so that a whole number of them is the interval.
    stride = max(1, int(MAX_FRAMES * interval / seconds))
    spread = min(MAX_FRAMES, max(count, round(stride * seconds / interval)))
    stride = min(stride, (spread - 1) // (count - 1))
    start = chance.randint(0, spread - 1 - (count - 1) * stride)
    frames = [frame_reference(clip, start + place * stride, spread) for place in range(count)]
    asked, answered = _lay_out(task, count, f"{interval:.1f}", chance)
    meta = {"task": task, "interval": interval}
    return _number(asked, answered, frames, meta)


def _draw_interval(clip: str, seconds: float, fps: float, chance: random.Random) -> float:
    """In tenths; no finer than references can tell apart in a long clip."""
    low = math.ceil(10 * max(2 / fps, 0.1, seconds / MAX_FRAMES) - 1e-6)
    high = math.floor(10 * min(10.0, seconds / 2) + 1e-6)
    if high < low:
        raise RecordError("video", f"{clip[:200]!r} is {seconds:.2f} s long, too short for two frames that differ")
    return chance.randint(low, high) / 10


Places = list[str | int]
"""Words, and frames by their place in the clip's order."""


def _lay_out(task: str, count: int, interval: str, chance: random.Random) -> tuple[Places, Places]:
    """What is asked and what is answered."""
    apart = f"{interval} seconds apart"
    places = list(range(count))
    if task == "later":
        return [f"Predict the scene {interval} seconds later.\n", 0], [f"This is {interval} seconds later:\n", 1]
    if task == "rest":
        asked = f"This is the first of {count} frames of a clip, {apart}. Predict the others.\n"
        return [asked, 0], ["These are the others:\n", *places[1:]]
    if task == "split":
        cut = chance.randint(1, count - 1)
        asked = f"These are the first {cut} of {count} frames of a clip, {apart}. Predict what follows.\n"
        return [asked, *places[:cut]], ["This is what follows:\n", *places[cut:]]
    if task == "reverse":
        asked = f"This is the last of {count} frames of a clip, {apart}. Predict the ones before it, backwards.\n"
        return [asked, count - 1], ["These come before it, backwards:\n", *reversed(places[:-1])]
    if task == "fill":
        asked = f"Of {count} frames of a clip, {apart}, every other one is missing. Predict the missing ones.\n"
        return [asked, *places[::2]], ["These are the missing ones:\n", *places[1::2]]
    if task == "reorder":
        shuffled = list(places)
        while shuffled == places:
            chance.shuffle(shuffled)
        asked = f"These {count} frames of a clip, {apart}, are shuffled. Put them in order.\n"
        return [asked, *shuffled], ["This is their order:\n", *places]
    if task == "interval":
        return ["How many seconds lie between these frames of a clip?\n", *places], [f"{interval} seconds."]
    ahead = chance.randint(1, min(3, count - 1))
    asked = f"These frames of a clip are {apart}. Predict the next {'one' if ahead == 1 else ahead}.\n"
    return [asked, *places[:-ahead]], ["This comes next:\n", *places[-ahead:]]


def _number(asked: Places, answered: Places, frames: Sequence[str], meta: dict[str, Any]) -> Sample:
    """Images in the order of their use: one that is shown and drawn stands twice."""
    images: list[str] = []
    messages = []
    for role, parts in (("user", asked), ("assistant", answered)):
        numbered: list[str | int] = []
        for part in parts:
            if isinstance(part, int):
                images.append(frames[part])
                part = len(images) - 1
            numbered.append(part)
        messages.append(Message(role, tuple(numbered)))
    return Sample(tuple(messages), tuple(images), meta)


def _find(name: str, files: FileSettings) -> str:
    """The clip's path: as it stands, or with the first suffix under which there is a file."""
    assert files.locate is not None
    if PurePosixPath(name).suffix.lower() in SUFFIXES:
        return name
    for suffix in SUFFIXES:
        try:
            files.locate(name + suffix)
        except RecordError as error:
            if error.kind != "missing image":
                raise
        else:
            return name + suffix
    raise RecordError("missing clip", f"clip {name[:200]!r} is there neither as {' nor as '.join(SUFFIXES)}")
