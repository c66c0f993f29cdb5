"""Laws of record formats: each in its true form becomes its sample; where two could be meant, both are named."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from diptych.data.references import content_hash, frame_reference, open_reference, split_frame
from diptych.data.samples import RecordError
from small_sources import BLUE, LIME, RED, colours, said, source_of, write_pictures, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "root")


def test_canonical_records_and_openai_parts_are_one_format(folder: Path) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "c/d.png", "detail": "low"}},
        {"type": "input_text", "text": "And this: "},
        {"type": "image"},
        {"type": "input_image", "image_url": "b.png"},
    ]
    source = source_of(
        write_records(
            folder / "x.jsonl",
            {"messages": [{"role": "user", "content": "<image>?"}], "images": ["a.png"], "id": 3},
            {"messages": [{"role": "user", "content": parts}], "images": ["a.png"]},
        )
    )
    assert said(source[0]) == [("user", (0, "?"))]
    assert source[0].meta == {"id": 3}
    assert said(source[1]) == [("user", (0, "And this: ", 1, 2))]
    assert colours(source[1]) == [BLUE, RED, LIME]
    assert all(Path(image).is_absolute() for image in source[1].images)


def test_an_image_may_be_in_the_record_itself(folder: Path) -> None:

    uri = "data:image/png;base64," + base64.b64encode((folder / "a.png").read_bytes()).decode()
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}
    (image,) = source_of(write_records(folder / "x.jsonl", {"messages": [message]}))[0].images
    assert open_reference(image).getpixel((0, 0)) == RED
    assert content_hash(image) == content_hash(str(folder / "a.png"))
    for broken in ("data:text/html;base64,AAAA", "data:image/png,AAAA", "data:image/png;base64,A", "data:"):
        with pytest.raises(ValueError, match="image"):
            open_reference(broken)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_llava(folder: Path, name: str) -> None:
    source = source_of(
        write_records(
            folder / name,
            {
                "id": "1",
                "image": "a.png",
                "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}],
            },
            {
                "image": ["a.png", "c/d.png"],
                "model": "",
                "conversations": [
                    {"from": "system", "value": ""},
                    {"from": "human", "value": "<image>\nMake it blue."},
                    {"from": "gpt", "value": "Here: <image>"},
                ],
            },
            {"id": 2, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            {"image": "a.png", "conversations": [{"from": "human", "value": "No image"}]},
            {"image": "a.png", "conversations": [{"from": "robot", "value": "<image>"}]},
        )
    )
    assert said(source[0]) == [("user", (0, "\nWhat?")), ("assistant", ("Red.",))]
    assert said(source[1])[1:] == [("user", (0, "\nMake it blue.")), ("assistant", ("Here: ", 1))]
    assert colours(source[1]) == [RED, BLUE]
    assert source[2].images == ()
    for number, kind in ((3, "image count"), (4, "role")):
        with pytest.raises(RecordError, match=rf"x\.\w+, record {number + 1}: ") as caught:
            source[number]
        assert caught.value.kind == kind


@pytest.mark.parametrize("word", ["<video>", "<image>"])
def test_a_clip_becomes_frames(folder: Path, word: str) -> None:
    (folder / "a.mp4").write_bytes(b"no frame is read before it is asked for")
    record = {"video": "a.mp4", "conversations": [{"from": "human", "value": f"{word}\nWhat?"}]}
    path = write_records(folder / "x.json", record)
    sample = source_of(path, num_frames=3)[0]
    assert said(sample) == [("user", (0, 1, 2, "\nWhat?"))]
    assert [split_frame(image) for image in sample.images] == [(str(folder / "a.mp4"), k, 3) for k in range(3)]
    assert len({content_hash(image) for image in sample.images}) == 3
    with pytest.raises(RecordError, match="num_frames or fps"):
        source_of(path)[0]
    with pytest.raises(ValueError, match="from 0 to N - 1"):
        split_frame(frame_reference("a.mp4", 3, 3))


def test_triples(folder: Path) -> None:
    source = source_of(
        write_records(
            folder / "x.jsonl",
            {
                "task_type": "edit",
                "instruction": "Swap.",
                "input_images": ["a.png", "b.png"],
                "output_image": "c/d.png",
            },
            {"task_type": "t2i", "instruction": "A blue.", "input_images": None, "output_image": "c/d.png"},
        )
    )
    assert said(source[0]) == [("user", (0, 1, "\nSwap.")), ("assistant", (2,))]
    assert colours(source[0]) == [RED, LIME, BLUE]
    assert said(source[1]) == [("user", ("A blue.",)), ("assistant", (0,))]


def test_captions_are_drawn_or_read_as_the_recipe_says(folder: Path) -> None:
    path = write_records(folder / "x.jsonl", {"image": "a.png", "caption": "a red square."})
    assert said(source_of(path, task="draw")[0]) == [
        ("user", ("Generate an image of a red square.",)),
        ("assistant", (0,)),
    ]
    assert said(source_of(path, task="read")[0]) == [
        ("user", (0, "\nDescribe the image.")),
        ("assistant", ("a red square.",)),
    ]
    own = source_of(path, task="draw", prompt_templates=("Paint: {caption}",))
    assert said(own[0])[0] == ("user", ("Paint: a red square.",))
    with pytest.raises(ValueError, match=r"task: draw .* task: read"):
        source_of(path)


def test_two_formats_that_could_be_meant_are_refused_with_both(folder: Path) -> None:
    both = {"image": "a.png", "caption": "x", "conversations": [{"from": "human", "value": "<image>"}]}
    path = write_records(folder / "x.jsonl", both)
    with pytest.raises(ValueError, match=r"as llava .* and as captions .* format: llava"):
        source_of(path)
    assert said(source_of(path, format="llava")[0]) == [("user", (0,))]
    with pytest.raises(ValueError, match=r"\['x'\].* no format known.*columns"):
        source_of(write_records(folder / "y.jsonl", {"x": 1}))
