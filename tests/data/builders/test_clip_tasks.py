"""Laws of the sets made of clips: right answers are right, and decided by what is shown; splits stay apart."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from built_sets import check_card, pictures_of, read_all, same_files
from diptych.data.builders import pure_video, video_qa
from diptych.data.builders.clip_library import Clip, ClipFrames, ClipSource, tells_a_time
from diptych.data.builders.concept_splits import SPLITS
from diptych.data.builders.pure_video import TASKS, build_pure_video, draw_interval, make_draft
from diptych.data.builders.video_qa import build_video_qa
from diptych.data.samples import Sample
from emoji_packages import NAMES, entry, write_clips

MANY = [*NAMES, *(f"{name}ta" for name in NAMES[:8])]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    entries = [entry(name, i, group=3 + i % 5, subgroup=10) for i, name in enumerate(MANY)]
    return write_clips(tmp_path_factory.mktemp("clips"), entries)


def source(packages: dict[str, Any], num_clips: int = len(MANY)) -> ClipSource:
    return ClipSource(**packages, num_clips=num_clips, image_size=32)


@pytest.fixture(scope="module")
def videos(packages: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "pure"
    build_pure_video(folder, source(packages), samples_per_clip=8)
    return folder


@pytest.fixture(scope="module")
def questions(packages: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "questions"
    build_video_qa(folder, source(packages), samples_per_clip=4)
    return folder


def line_clip(num_frames: int = 48, seconds: float = 2.0) -> ClipFrames:
    """Frame k is grey k; frames differ by how far they lie apart."""
    places = np.arange(num_frames)
    distances = np.abs(places[:, None] - places[None]) * 0.02
    frames = tuple(Image.new("RGB", (4, 4), (int(k),) * 3) for k in places)
    for frame in frames:
        frame.putpixel((3, 3), (255, 255, 255))
    return ClipFrames(seconds, frames, distances)


def shades(parts: tuple[Any, ...]) -> list[int]:
    return [part.getpixel((0, 0))[0] for part in parts if not isinstance(part, str)]


@pytest.mark.parametrize("name", ["videos", "questions"])
def test_the_card_equals_a_recount_and_splits_share_no_sample(name: str, request: pytest.FixtureRequest) -> None:
    check_card(request.getfixturevalue(name), SPLITS, licences={"MIT"})


def test_the_same_arguments_give_the_same_files(packages: dict[str, Any], tmp_path: Path) -> None:
    for build in (build_pure_video, build_video_qa):
        for name in ("one", "two"):
            assert build(tmp_path / build.__name__ / name, source(packages), samples_per_clip=1).is_new
        same_files(tmp_path / build.__name__ / "one", tmp_path / build.__name__ / "two")
        assert not build(tmp_path / build.__name__ / "one", source(packages), samples_per_clip=1).is_new


def test_all_tasks_are_there_in_training(videos: Path, questions: Path) -> None:
    assert {sample.meta["task"] for sample in read_all(videos)["train"]} == set(TASKS)
    assert {sample.meta["task"] for sample in read_all(questions)["train"]} >= {"name", "next"}


@pytest.mark.parametrize("name", ["videos", "questions"])
def test_held_out_clips_styles_and_combinations_are_held_out(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    samples = read_all(folder)

    def combinations(split: str, key: str) -> set[tuple[str, str]]:
        return {(sample.meta["concept"], sample.meta[key]) for sample in samples[split]}

    train = {concept for concept, _ in combinations("train", "task")}
    assert not train & {concept for concept, _ in combinations("held_out_concept", "task")}
    assert {colours for _, colours in combinations("held_out_style", "colours")} == {"grey"}
    assert {colours for _, colours in combinations("train", "colours")} == {"colour"}
    assert not combinations("train", "task") & combinations("held_out_combination", "task")
    for split in ("held_out_concept", "held_out_style"):
        assert not pictures_of(folder, samples["train"]) & pictures_of(folder, samples[split])


def test_frames_move_along_their_way(videos: Path) -> None:
    """The square goes right and down, so its place tells the time: every task's answer is checked by what is seen."""
    for sample in read_all(videos)["train"]:
        user, assistant = sample.messages
        shown = [where(videos, sample, part) for part in user.parts if isinstance(part, int)]
        asked = [where(videos, sample, part) for part in assistant.parts if isinstance(part, int)]
        task = sample.meta["task"]
        if task in ("later", "rest", "split", "next"):
            assert [*shown, *asked] == sorted({*shown, *asked})
        elif task == "reverse":
            assert [*shown, *asked] == sorted({*shown, *asked}, reverse=True)
        elif task == "fill":
            merged = [place for pair in zip(shown, [*asked, None], strict=False) for place in pair if place is not None]
            assert merged == sorted({*shown, *asked})
            assert len(shown) - len(asked) in (0, 1)
        elif task == "reorder":
            assert asked == sorted(shown)
            assert shown != asked
        else:
            assert asked == []
            assert assistant.parts == (f"{sample.meta['interval']:.1f} seconds",)
            frames = sample.meta["frames"]
            steps = [(b - a) * 0.042 for a, b in itertools.pairwise(frames)]
            assert steps == pytest.approx([sample.meta["interval"]] * len(steps), abs=0.043)


def where(folder: Path, sample: Sample, number: int) -> float:
    """How far right and down the square is."""
    pixels = np.asarray(Image.open(folder / sample.images[number]).convert("L"), dtype=float)
    weights = 255 - pixels
    rows, columns = np.indices(pixels.shape)
    return float(((rows + columns) * weights).sum() / weights.sum())


def test_words_count_the_pictures(videos: Path) -> None:
    for sample in read_all(videos)["train"]:
        user, assistant = sample.messages
        request, task = str(user.parts[0]), sample.meta["task"]
        shown, asked = (sum(isinstance(part, int) for part in turn.parts) for turn in (user, assistant))
        if task in ("rest", "reverse", "fill", "split"):
            assert f" {shown + asked} frames" in request
        if task == "reorder":
            assert f"These {shown} frames" in request
            assert shown == asked
        if task == "next":
            assert ("next frame." in request) == (asked == 1)
            assert 1 <= asked <= 3
        if task != "interval":
            assert f"{sample.meta['interval']:.1f} seconds" in request


def test_the_next_picture_is_the_one_that_lies_further_on(questions: Path) -> None:
    found = [s for s in read_all(questions)["train"] if s.meta["task"] == "next"]
    assert found
    assert {sample.messages[1].parts[0] for sample in found} == {"A", "B", "C"}
    for sample in found:
        places = [where(questions, sample, part) for part in sample.messages[0].parts if isinstance(part, int)]
        assert len(places) == 5
        right = places[2 + "ABC".index(str(sample.messages[1].parts[0]))]
        assert right - places[1] == pytest.approx(places[1] - places[0], abs=1.5)


def test_names_are_the_names(questions: Path) -> None:
    for sample in read_all(questions)["train"]:
        if sample.meta["task"] == "name":
            assert sample.messages[1].parts == (sample.meta["concept"],)
            assert sum(isinstance(part, int) for part in sample.messages[0].parts) == 3, "one a second"


@given(st.integers(0, 2**32), st.sampled_from(sorted(TASKS)))
@hypothesis_settings(max_examples=150)
def test_every_task_gives_its_own_frames_in_its_own_order(seed: int, task: str) -> None:
    clip = line_clip()
    draft = make_draft(clip, task, random.Random(seed))
    assume(draft is not None)
    assert draft is not None
    window = draft.meta["frames"]
    shown, asked = shades(draft.user), shades(draft.assistant)
    wanted = {
        "later": (window[:1], window[1:]),
        "rest": (window[:1], window[1:]),
        "reverse": (window[-1:], window[-2::-1]),
        "fill": (window[::2], window[1::2]),
        "reorder": (sorted(shown), window),
        "interval": (window, []),
    }
    if task in wanted:
        assert (sorted(shown) if task == "reorder" else shown, asked) == tuple(map(list, wanted[task]))
    else:
        assert shown + asked == window
        assert shown
        assert asked
    assert (len(window) == 2) == (task == "later")
    assert 0.1 <= draft.meta["interval"] <= 1.0


@given(st.integers(0, 2**32), st.floats(0.5, 60), st.integers(24, 200))
def test_intervals_lie_in_the_papers_range(seed: int, seconds: float, num_frames: int) -> None:
    clip = line_clip(num_frames, seconds)
    interval = draw_interval(clip, random.Random(seed))
    assert interval == pytest.approx(round(interval, 1))
    assert max(2 / clip.fps, 0.1) - 0.1 <= interval <= max(min(10, seconds / 2), 2 / clip.fps, 0.1)


def test_what_has_two_right_answers_is_refused() -> None:
    """A clip that swings to and fro: from its middle it may go either way; all frames alike: nothing to see."""
    there = np.concatenate([np.arange(24), np.arange(24)[::-1]])
    clip = line_clip()
    swinging = ClipFrames(2.0, clip.frames, np.abs(there[:, None] - there[None]) * 0.02)
    still = ClipFrames(2.0, clip.frames, np.zeros((48, 48)))
    assert not pure_video.is_determined(swinging, [10, 16], [0])
    assert pure_video.is_determined(clip, [10, 16], [0])
    assert not pure_video.has_one_order(swinging, [4, 8, 12]), "the clip shows them backwards too"
    assert pure_video.has_one_order(clip, [4, 8, 12])
    assert pure_video.has_one_interval(clip, [0, 12, 24], 0.5)
    assert not pure_video.has_one_interval(still, [0, 12, 24], 0.5)
    for task in TASKS:
        assert all(make_draft(still, task, random.Random(seed)) is None for seed in range(20))
    named = Clip("x", Path("x"), "animal-bird", ())
    assert video_qa.make_draft(named, still, "next", random.Random(0)) is None
    kind = video_qa.make_draft(named, still, "kind", random.Random(0))
    assert kind is not None
    assert kind.assistant == ("an animal",)


def test_a_blank_frame_is_never_shown() -> None:
    """Nothing to be seen before frame 30 of 48, one second of two."""
    clip = line_clip()
    blank = tuple(Image.new("RGB", (4, 4), "white") for _ in range(30))
    late = ClipFrames(2.0, (*blank, *clip.frames[30:]), clip.distances)
    named = Clip("x", Path("x"), "animal-bird", ())
    shown: list[int] = []
    for seed in range(60):
        for task in TASKS:
            draft = make_draft(late, task, random.Random(seed))
            shown += [] if draft is None else draft.meta["frames"]
        for task in video_qa.TASKS:
            assert video_qa.make_draft(named, late, task, random.Random(seed)) is None
    assert shown
    assert min(shown) >= 30


def test_says_what_is_missing(packages: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fitting clips"):
        build_pure_video(tmp_path / "set", source(packages, num_clips=1000))
    with pytest.raises(ValueError, match=r"num_clips of 1 or more"):
        source(packages, num_clips=0)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(("name", "tells"), [("two o’clock", True), ("ten-thirty", True), ("alarm clock", False)])  # noqa: RUF001
def test_a_clip_is_not_named_by_a_time_that_it_shows_once(name: str, tells: bool) -> None:
    assert tells_a_time(name) == tells
