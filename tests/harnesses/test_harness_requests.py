"""Laws of what harnesses ask: whole conversations, every image in its place, batches that change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmark_layouts import ColourReader, name_colour, plain
from diptych.harnesses.harness_requests import (
    NEUTRAL,
    Request,
    answer_requests,
    generation_options,
    load_asked,
    read_part,
)
from tiny_xfusion import build_tiny_morph


class Echo:
    """Answers with the question, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], dict[str, Any]]] = []

    def generate_batch(self, conversations: list[Any], **options: Any) -> list[list[str]]:
        texts = [conversation[0]["content"] for conversation in conversations]
        self.calls.append((texts, options))
        return [[text] for text in texts]


def ask(text: str, **settings: Any) -> Request:
    return Request(lambda: [{"role": "user", "content": text}], settings, len(text))


@given(
    st.lists(st.tuples(st.text("abc", min_size=1), st.sampled_from([8, 16]), st.sampled_from([0.0, 0.5]))),
    st.integers(1, 5),
)
def test_every_answer_comes_back_to_its_question(asked: list[tuple[str, int, float]], size: int) -> None:
    echo, counted = Echo(), []
    requests = [ask(text, max_new_tokens=tokens, temperature=heat) for text, tokens, heat in asked]
    answers = answer_requests(echo, requests, batch_size=size, max_new_tokens=4, on_answers=counted.append)
    assert answers == [text for text, _, _ in asked]
    assert sum(counted) == len(asked)
    assert all(len(texts) <= size for texts, _ in echo.calls)
    for (tokens, heat), texts in {
        (options["max_new_tokens"], options.get("temperature", 0.0)): [
            text for own, made in echo.calls if made == options for text in own
        ]
        for _, options in echo.calls
    }.items():
        lengths = [len(text) for text in texts]
        assert lengths == sorted(lengths, reverse=True), "the longest first"
        assert sorted(texts) == sorted(text for text, *own in asked if own == [tokens, heat])


def test_only_the_images_of_one_batch_are_open() -> None:
    opened, most = [], []

    def conversation(number: int) -> list[dict[str, Any]]:
        opened.append(number)
        return [{"role": "user", "content": str(number)}]

    class Counting(Echo):
        def generate_batch(self, conversations: list[Any], **options: Any) -> list[list[str]]:
            most.append(len(opened))
            opened.clear()
            return super().generate_batch(conversations, **options)

    requests = [Request(lambda n=n: conversation(n), {}, 1) for n in range(5)]
    assert answer_requests(Counting(), requests, batch_size=2, max_new_tokens=1) == list("01234")
    assert most == [2, 2, 1]


def test_an_answer_ends_where_the_harness_says() -> None:
    said = "A\n\nbecause"
    requests = [ask(said), ask(said, until=["\n\n"]), ask(said, until="A"), ask(said, until=["use", "be", ""])]
    assert answer_requests(Echo(), requests, batch_size=4, max_new_tokens=4) == [said, "A", "", "A\n\n"]


def test_the_harness_settings_reach_the_morph() -> None:
    assert generation_options({}, max_new_tokens=7) == {"max_new_tokens": 7}
    # lmms-eval's words for a greedy answer
    greedy = {"temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "image_aspect_ratio": "original"}
    assert generation_options(greedy | {"max_new_tokens": 16}, max_new_tokens=7) == {"max_new_tokens": 16}
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 7}
    assert generation_options({"temperature": 0.7, "top_p": 0.9}, max_new_tokens=7) == sampled
    assert "do_sample" not in generation_options({"temperature": 0.7, "do_sample": False}, max_new_tokens=7)


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_setting_that_a_morph_does_not_have_is_refused(name: str) -> None:
    generation_options({name: NEUTRAL[name]}, max_new_tokens=1)
    with pytest.raises(ValueError, match=rf"{name}=5, which a morph does not have; say {name}="):
        generation_options({name: 5}, max_new_tokens=1)


def test_repeated_questions_are_sampled_anew() -> None:
    echo = Echo()
    settings = {"temperature": 1.0}
    twice = [Request(lambda: [{"role": "user", "content": "q"}], settings, 1, seed=seed) for seed in (0, 1)]
    answer_requests(echo, twice, batch_size=2, max_new_tokens=1)
    assert [options["seed"] for _, options in echo.calls] == [0, 1]


def test_a_text_that_names_a_file_stays_a_text(tmp_path: Path) -> None:
    named = str(tmp_path / "a.png")
    plain("red").save(named)
    assert read_part("text", named, num_frames=1) == [{"type": "text", "text": named}]


def test_a_clip_is_read_as_frames_from_a_file_and_from_a_folder(tmp_path: Path) -> None:
    frames = [plain(name) for name in ("red", "red", "green", "blue", "blue", "blue")]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    folder = tmp_path / "clip"
    folder.mkdir()
    for number, frame in enumerate(frames):
        frame.save(folder / f"frame-{number * 5}.png")  # 5 stands before 10, as numbers do
    (folder / "notes.txt").write_text("no frame")
    for clip in (tmp_path / "clip.gif", folder):
        shown = [name_colour(part["image"]) for part in read_part("video", str(clip), num_frames=3)]
        assert shown == ["red", "blue", "blue"]
    assert len(read_part("video", str(folder), num_frames=8)) == 8


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is a folder without numbered images"):
        read_part("video", tmp_path / "empty", num_frames=2)
    with pytest.raises(ValueError, match="gives audio as str"):
        read_part("audio", "a.wav", num_frames=2)
    with pytest.raises(ValueError, match="gives video as dict"):
        read_part("video", {"url": "a.mp4", "video_start": 1.0}, num_frames=2)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        answer_requests(Echo(), [], batch_size=0, max_new_tokens=1)


def test_who_is_asked_must_be_able_to_answer(tmp_path: Path) -> None:
    reader = ColourReader()
    assert load_asked(reader, "reads") == (reader, {})
    with pytest.raises(ValueError, match="needs a morph that writes, which this one does not; give one of method"):
        load_asked(reader, "writes")
    with pytest.raises(ValueError, match="nothing-here"):
        load_asked(str(tmp_path / "nothing-here"), "reads")
    morph = build_tiny_morph()
    assert load_asked(morph, "reads", device="cpu")[0] is morph
    for other in ("cuda", "cuda:1", "cpu:1"):
        with pytest.raises(ValueError, match=f"the morph is on cpu, not on {other}: leave the device out"):
            load_asked(morph, "reads", device=other)


def test_a_morph_answers_a_batch_as_it_answers_each_alone() -> None:
    morph = build_tiny_morph()
    images = [Image.new("RGB", (16, 16), (40 * n, 90, 200 - 40 * n)) for n in range(4)]

    def request(number: int) -> Request:
        content = [{"type": "image", "image": image} for image in images[: number + 1]]
        content.append({"type": "text", "text": "What? " * (number + 1)})
        return Request(lambda: [{"role": "user", "content": content}], {"max_new_tokens": 6}, 6 * number)

    requests = [request(number) for number in range(4)]
    together = answer_requests(morph, requests, batch_size=3, max_new_tokens=1)
    assert together == [answer_requests(morph, [one], batch_size=1, max_new_tokens=1)[0] for one in requests]
    assert any(together)
