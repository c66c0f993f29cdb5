"""Laws of clips without words: what is shown and what is asked for are the clip's frames, in the order that the words
say, as far apart as they say."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych.data.record_formats.clip_prediction import MAX_SHOWN, TASKS, make_sample, parse_clip
from diptych.data.record_formats.file_settings import FileSettings
from diptych.data.references import MAX_FRAMES, split_frame
from diptych.data.samples import RecordError, Sample


def places(sample: Sample, role: int) -> list[int]:
    """Of the frames of a message, their places among the N."""
    found = []
    for part in sample.messages[role].parts:
        if isinstance(part, int):
            split = split_frame(sample.images[part])
            assert split is not None
            found.append(split[1])
    return found


def words(sample: Sample, role: int) -> str:
    return "".join(part for part in sample.messages[role].parts if isinstance(part, str))


def samples_of(task: str, *, seconds: float = 20.0, fps: float = 25.0, tries: int = 400) -> list[Sample]:
    made = [make_sample("a.mp4", seconds, fps, random.Random(seed)) for seed in range(tries)]
    return [sample for sample in made if sample.meta["task"] == task]


@settings(max_examples=150)
@given(st.floats(0.5, 7200), st.floats(5, 60), st.integers(0, 10**6))
def test_frames_are_as_far_apart_as_the_words_say(seconds: float, fps: float, seed: int) -> None:
    if seconds / 2 < max(2 / fps, 0.1) + 0.1:  # a tenth may lie between the bounds, or none
        seconds += 1
    sample = make_sample("a b.mp4", seconds, fps, random.Random(seed))
    interval = sample.meta["interval"]
    assert max(2 / fps, 0.1) - 1e-6 <= interval <= min(10, seconds / 2) + 1e-6
    task = sample.meta["task"]
    numbers = [split_frame(image) for image in sample.images]
    assert all(found is not None and found[0] == "a b.mp4" for found in numbers)
    spread = {found[2] for found in numbers if found}
    assert len(spread) == 1
    assert max(spread) <= MAX_FRAMES
    every = sorted({found[1] for found in numbers if found})
    steps = {b - a for a, b in itertools.pairwise(every)}
    assert len(steps) == 1
    apart = steps.pop() * seconds / spread.pop()
    assert apart == pytest.approx(interval, rel=0.05, abs=0.5 * seconds / MAX_FRAMES)
    assert (len(every) == 2) == (task == "later")
    assert 2 <= len(every) <= MAX_SHOWN
    said = words(sample, 0) + words(sample, 1)
    assert f"{interval:.1f} seconds" in said
    assert [message.role for message in sample.messages] == ["user", "assistant"]
    used = [part for message in sample.messages for part in message.parts if isinstance(part, int)]
    assert used == list(range(len(sample.images)))


@pytest.mark.parametrize(("seconds", "fps"), [(0.19, 60.0), (0.3, 10.0), (0.7, 5.0)])
def test_a_clip_with_no_room_for_two_frames_is_named(seconds: float, fps: float) -> None:
    with pytest.raises(RecordError, match=rf"'a\.mp4' is {seconds:.2f} s long, too short") as caught:
        make_sample("a.mp4", seconds, fps, random.Random(0))
    assert caught.value.kind == "video"


@pytest.mark.parametrize("task", TASKS)
def test_each_task_shows_and_asks_what_it_says(task: str) -> None:
    found = samples_of(task)
    assert found
    for sample in found:
        shown, asked = places(sample, 0), places(sample, 1)
        order = sorted({*shown, *asked})
        if task in ("later", "rest"):
            assert shown == order[:1]
            assert asked == order[1:]
        elif task in ("split", "next"):
            assert shown == order[: len(shown)]
            assert asked == order[len(shown) :]
            assert shown
            assert asked
        elif task == "reverse":
            assert shown == order[-1:]
            assert asked == order[-2::-1]
        elif task == "fill":
            assert shown == order[::2]
            assert asked == order[1::2]
        elif task == "reorder":
            assert asked == order
            assert sorted(shown) == order
            assert shown != order
        else:
            assert shown == order
            assert asked == []
            assert words(sample, 1) == f"{sample.meta['interval']:.1f} seconds."
            assert f"{sample.meta['interval']:.1f}" not in words(sample, 0)
        if task == "next":
            number = re.search(r"next (one|\d)", words(sample, 0))
            assert number is not None
            assert number[1] == ("one" if len(asked) == 1 else str(len(asked)))
            assert 1 <= len(asked) <= 3
        if task == "split":
            assert f"first {len(shown)} of {len(order)}" in words(sample, 0)
    if task == "split":
        assert len({len(places(sample, 0)) for sample in found}) > 2


def test_all_tasks_come_up_about_equally_often_and_intervals_are_even() -> None:
    made = [make_sample("a.mp4", 20, 25, random.Random(seed)) for seed in range(1600)]
    counts = {task: sum(sample.meta["task"] == task for sample in made) for task in TASKS}
    assert min(counts.values()) > 150
    assert max(counts.values()) < 250
    intervals = [sample.meta["interval"] for sample in made]
    quarters = [sum(low < interval <= low + 2.5 for interval in intervals) for low in (0, 2.5, 5, 7.5)]
    assert max(quarters) - min(quarters) < 120


def test_a_record_gives_the_same_in_every_run_and_others_differ(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(0, 250, 10)]
    for name in ("a.webp", "7.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=200, lossless=True)
    files = settings_of(tmp_path)
    one = [parse_clip({"video": "a.mp4"}, number, files) for number in range(20)]
    assert one == [parse_clip({"video": "a.mp4"}, number, files) for number in range(20)]
    assert len({sample.messages for sample in one}) > 10
    assert parse_clip({"video": 7}, 0, files).images[0].startswith("7.mp4#frame=")


def settings_of(root: Path, suffix: str = ".mp4") -> FileSettings:
    """Clips that lie under another suffix than they are named by: what matters here is the path that is asked for."""

    def locate(name: str) -> str:
        path = root / name.replace(suffix, ".webp")
        if not path.is_file():
            raise RecordError("missing image", f"image {name!r} does not exist")
        return str(path)

    return FileSettings(locate=locate, list_folder=lambda name: [])


def test_a_clip_is_found_without_its_suffix(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(0, 250, 10)]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], duration=200, lossless=True)
    for suffix in (".mp4", ".webm"):
        sample = parse_clip({"video": "x"}, 0, settings_of(tmp_path, suffix))
        assert sample.images[0].startswith(f"x{suffix}#frame=")


@pytest.mark.parametrize(
    ("record", "kind", "said"),
    [
        ({}, "structure", "video must be text"),
        ({"video": ["a"]}, "structure", "video must be text"),
        ({"video": "gone"}, "missing clip", "'gone' is there neither as .mp4 nor as .webm"),
        ({"video": "gone.mp4"}, "missing image", "gone.mp4"),
        ({"video": "short.mp4"}, "video", "0.10 s long, too short"),
        ({"video": "broken.mp4"}, "video", "broken"),
    ],
)
def test_a_clip_that_cannot_be_used_is_named(tmp_path: Path, record: dict[str, Any], kind: str, said: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "short.webp")
    (tmp_path / "broken.webp").write_bytes(b"RIFF\x00\x00\x00\x00WEBPxxxx")
    with pytest.raises(RecordError) as caught:
        parse_clip(record, 0, settings_of(tmp_path))
    assert caught.value.kind == kind
    assert said in str(caught.value)
