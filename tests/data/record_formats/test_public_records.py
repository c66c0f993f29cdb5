"""Laws of public sets' records: each in its set's own form becomes the sample that is written down here by hand; one of
another form is a RecordError that says what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.record_formats.clip_captions import REQUESTS
from diptych.data.record_formats.file_settings import FileSettings
from diptych.data.record_formats.generation_pairs import LEAD_INS
from diptych.data.record_formats.public_formats import PUBLIC_FORMATS
from diptych.data.record_formats.record_shape import RecordSettings
from diptych.data.record_formats.visual_cot import ANNOUNCEMENTS as ZOOM_ANNOUNCEMENTS
from diptych.data.record_formats.vstar import ANNOUNCEMENTS as BOX_ANNOUNCEMENTS
from diptych.data.samples import RecordError, Sample

REQUEST = "Please provide the bounding box coordinate of the region that can help you answer the question better."
VISUAL_COT: dict[str, Any] = {
    "question_id": 7,
    "image": ["cot/flickr30k/1.jpg", "cot/flickr30k/1.jpg###[62, 17, 423, 485]"],
    "conversations": [
        {"from": "human", "value": f"<image>\nWhat does the man hold? {REQUEST}"},
        {"from": "gpt", "value": "[0.124, 0.034, 0.846, 0.970]"},
        {"from": "human", "value": "<image>"},
        {"from": "gpt", "value": "A guitar."},
    ],
}
VSTAR: dict[str, Any] = {
    "image": "coco2017/train2017/1.jpg",
    "search": True,
    "target_instances": [
        {"name": "cup", "bbox": [10, 20, 30, 40.5]},
        {"name": "plate", "bbox": [100.25, 5, 50, 10]},
    ],
    "conversations": [
        {
            "from": "human",
            "value": "<image>\nAdditional visual information to focus on: <object>; <object>.\n"
            "Is the cup left of the plate?",
        },
        {"from": "gpt", "value": "Yes, it is."},
        {"from": "human", "value": "And its colour?"},
        {"from": "gpt", "value": "Blue."},
    ],
}
CLIP_CAPTION: dict[str, Any] = {
    "video_id": "abc",
    "video_path": "panda/abc.mp4",
    "timestamp": ["00:00:00.000", "00:00:08.000"],
    "keyframe": [0, 48],
    "captions": [{"idx": "1", "content": "A dog."}, {"idx": "-1", "content": "A dog runs, then sleeps."}],
    "zip_folder": "panda_videos_1.zip",
}
FRAME_FOLDER: dict[str, Any] = {
    "id": "v_1_2",
    "video": "v_1",
    "conversations": [
        {"from": "human", "value": "<video>\nWhat is the setting?"},
        {"from": "gpt", "value": "A newsroom."},
    ],
}


def settings_of(**given: Any) -> FileSettings:
    folder = [f"c01_{number:04d}.jpeg" for number in range(1, 8)] + ["notes.txt"]
    defaults: dict[str, Any] = {
        "frames": lambda clip: [f"{clip}#frame=0/2", f"{clip}#frame=1/2"],
        "locate": lambda name: f"/data/{name}",
        "list_folder": lambda name: list(reversed(folder)),
        "fps": 1.0,
    }
    return FileSettings(**(defaults | given))


def parse(name: str, record: Any, number: int = 0, settings: RecordSettings | None = None) -> Sample:
    return PUBLIC_FORMATS[name].parse(record, number, settings or settings_of())


def said(sample: Sample) -> list[tuple[str, tuple[str | int, ...]]]:
    return [(message.role, message.parts) for message in sample.messages]


def changed(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The record with another value at `a.0.b`; with the field left out for None."""
    record = copy.deepcopy(record)
    *parents, last = path.split(".")
    target: Any = record
    for part in parents:
        target = target[int(part) if part.isdecimal() else part]
    if value is None:
        del target[int(last) if last.isdecimal() else last]
    else:
        target[int(last) if last.isdecimal() else last] = value
    return record


def test_visual_cot_looks_at_the_region_and_then_answers() -> None:
    sample = parse("visual_cot", VISUAL_COT)
    assert said(sample) == [
        ("user", (0, "\nWhat does the man hold?")),
        ("assistant", (f"{ZOOM_ANNOUNCEMENTS[0]}\n", 1, "\nA guitar.")),
    ]
    assert sample.images == ("cot/flickr30k/1.jpg", "cot/flickr30k/1.jpg#crop=62,17,423,485")
    assert sample.meta == {"question_id": 7}
    assert {parse("visual_cot", VISUAL_COT, n).messages[1].parts[0] for n in range(40)} == {
        f"{words}\n" for words in ZOOM_ANNOUNCEMENTS
    }


def test_vstar_draws_the_boxes_and_then_answers() -> None:
    sample = parse("vstar", VSTAR)
    assert said(sample) == [
        ("user", (0, "\nIs the cup left of the plate?")),
        ("assistant", (f"{BOX_ANNOUNCEMENTS[0]}\n", 1, "\nYes, it is.")),
        ("user", ("And its colour?",)),
        ("assistant", ("Blue.",)),
    ]
    boxes = "10,20,40,60.5;100.25,5,150.25,15"
    assert sample.images == ("coco2017/train2017/1.jpg", f"coco2017/train2017/1.jpg#boxes={boxes}")


@pytest.mark.parametrize(
    "words",
    [
        "<image>\nAdditional visual information to focus on: <object>.\nWhat is it?",
        "<image>\nAdditional visual information to focus on: <object>; <object>; <object>.\n What is it?",
        "What is it?\n<image>",
        "Additional visual information to focus on: <object>\nWhat is it?<image>",
    ],
)
def test_vstars_phrase_is_taken_out_whatever_stands_behind_it(words: str) -> None:
    sample = parse("vstar", changed(VSTAR, "conversations.0.value", words))
    assert sample.messages[0].parts == (0, "\nWhat is it?")


def test_generation_leads_in_before_the_image() -> None:
    sample = parse("generation", {"image": "a.jpg", "caption": "A red kite.", "id": 3})
    assert said(sample) == [
        ("user", ("Generate an image of A red kite.",)),
        ("assistant", (f"{LEAD_INS[2]}\n", 0)),
    ]
    assert sample.images == ("a.jpg",)
    assert sample.meta == {"id": 3}
    others = settings_of(prompt_templates=("Draw {caption}",))
    assert parse("generation", {"image": "a.jpg", "caption": "a kite"}, 0, others).messages[0].parts == ("Draw a kite",)


def test_a_described_clip_is_asked_about_after_its_frames() -> None:
    sample = parse("clip_captions", CLIP_CAPTION)
    assert said(sample) == [
        ("user", (0, 1, f"\n{REQUESTS[0]}")),
        ("assistant", ("A dog runs, then sleeps.",)),
    ]
    assert sample.images == ("panda/abc.mp4#frame=0/2", "panda/abc.mp4#frame=1/2")
    assert sample.meta == {"id": "abc"}


@pytest.mark.parametrize(
    ("fps", "max_frames", "taken"),
    [(1.0, 45, (1, 3, 5, 7)), (2.0, 45, (1, 2, 3, 4, 5, 6, 7)), (0.5, 45, (1, 5)), (1.0, 2, (2, 6)), (0.1, 45, (1,))],
)
def test_folders_of_frames_are_read_at_the_sources_rate(fps: float, max_frames: int, taken: tuple[int, ...]) -> None:
    sample = parse("frame_folders", FRAME_FOLDER, 0, settings_of(fps=fps, max_frames=max_frames))
    assert sample.images == tuple(f"v_1/c01_{number:04d}.jpeg" for number in taken)
    assert said(sample) == [
        ("user", (*range(len(taken)), "\nWhat is the setting?")),
        ("assistant", ("A newsroom.",)),
    ]


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("visual_cot", changed(VISUAL_COT, "image", "cot/1.jpg"), "structure", "list of two"),
    ("visual_cot", changed(VISUAL_COT, "image.1", "cot/flickr30k/1.jpg"), "box", "###"),
    ("visual_cot", changed(VISUAL_COT, "image.1", "cot/flickr30k/2.jpg###[1, 2, 3, 4]"), "box", "2.jpg"),
    ("visual_cot", changed(VISUAL_COT, "image.1", "cot/flickr30k/1.jpg###[1, 2, 3]"), "box", "###"),
    ("visual_cot", changed(VISUAL_COT, "image.1", "cot/flickr30k/1.jpg###[9, 2, 3, 4]"), "box", "encloses no pixel"),
    ("visual_cot", changed(VISUAL_COT, "image.1", "cot/flickr30k/1.jpg###[1..2, 2, 3, 4]"), "box", "1..2"),
    ("visual_cot", changed(VISUAL_COT, "conversations.3", None), "role", "turns are from"),
    ("visual_cot", changed(VISUAL_COT, "conversations.3.value", " "), "empty", "turn 4"),
    ("visual_cot", changed(VISUAL_COT, "conversations.0.value", f"<image>\n{REQUEST}"), "empty", "the question"),
    ("visual_cot", changed(VISUAL_COT, "conversations.3.value", "a <image>"), "structure", "the answer holds"),
    ("visual_cot", changed(VISUAL_COT, "conversations", None), "structure", "conversations"),
    ("vstar", changed(VSTAR, "target_instances", None), "box", "format: llava"),
    ("vstar", changed(VSTAR, "target_instances", []), "box", "format: llava"),
    ("vstar", changed(VSTAR, "target_instances.0.bbox", [1, 2, 3]), "box", "left, top, width, height"),
    ("vstar", changed(VSTAR, "target_instances.0.bbox", [1, 2, 3, "4"]), "box", "left, top, width, height"),
    ("vstar", changed(VSTAR, "target_instances.0.bbox", [1, 2, 0, 4]), "box", "encloses no pixel"),
    ("vstar", changed(VSTAR, "image", ["a.jpg", "b.jpg"]), "image count", "2 images"),
    ("vstar", changed(VSTAR, "conversations.0.from", "gpt"), "role", "turn 1"),
    ("vstar", changed(VSTAR, "conversations.0.value", "<image>\nIs <object> red?"), "structure", "<object>"),
    ("vstar", changed(VSTAR, "conversations.1.value", "It is <image>"), "structure", "<image>"),
    ("generation", {"image": "a.jpg"}, "structure", "caption"),
    ("generation", {"image": ["a.jpg", "b.jpg"], "caption": "x"}, "image count", "2 images"),
    ("clip_captions", changed(CLIP_CAPTION, "captions.1", None), "structure", '"idx": "-1"'),
    ("clip_captions", changed(CLIP_CAPTION, "captions", None), "structure", '"idx": "-1"'),
    ("clip_captions", changed(CLIP_CAPTION, "captions.1.content", ""), "empty", "content"),
    ("clip_captions", changed(CLIP_CAPTION, "video_path", None), "structure", "video_path"),
    ("frame_folders", changed(FRAME_FOLDER, "conversations.0.value", "What?"), "image count", "clips"),
    ("frame_folders", changed(FRAME_FOLDER, "video", 3), "structure", "video"),
]


@pytest.mark.parametrize(("name", "record", "kind", "words"), BAD)
def test_a_record_of_another_form_is_named(name: str, record: dict[str, Any], kind: str, words: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse(name, record)
    assert caught.value.kind == kind
    assert words in str(caught.value)


def test_a_folder_without_frames_is_named() -> None:
    with pytest.raises(RecordError, match=r"'v_1' holds no frames"):
        parse("frame_folders", FRAME_FOLDER, 0, settings_of(list_folder=lambda name: ["notes.txt"]))


def test_clips_need_to_be_told_how_they_are_read() -> None:
    with pytest.raises(RecordError, match="num_frames or fps"):
        parse("clip_captions", CLIP_CAPTION, 0, settings_of(frames=None))
    with pytest.raises(RecordError, match="fps: 1"):
        parse("frame_folders", FRAME_FOLDER, 0, settings_of(fps=None))
    with pytest.raises(ValueError, match="open it as a source"):
        parse("frame_folders", FRAME_FOLDER, 0, RecordSettings())


def test_a_record_is_told_by_its_fields_or_not_at_all() -> None:
    records = {"visual_cot": VISUAL_COT, "vstar": VSTAR, "clip_captions": CLIP_CAPTION, "frame_folders": FRAME_FOLDER}
    told = {
        name: [kind for kind, known in PUBLIC_FORMATS.items() if known.matches(record)]
        for name, record in records.items()
    }
    assert told == {
        "visual_cot": ["visual_cot"],
        "vstar": ["vstar"],
        "clip_captions": ["clip_captions"],
        "frame_folders": [],
    }


def paths_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Of everything inside a record, and of the record itself."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inside:
        yield from paths_in(entry, (*path, key))


WHOLE = {
    "visual_cot": VISUAL_COT,
    "vstar": VSTAR,
    "clip_captions": CLIP_CAPTION,
    "frame_folders": FRAME_FOLDER,
    "generation": {"image": "a.jpg", "caption": "A kite."},
    "clips": {"video": "a.mp4"},
}
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text("a<image>#[]1,./ \ud800", max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(WHOLE)), anything, st.data())
def test_whatever_stands_in_a_field_is_a_sample_or_a_named_error(name: str, value: Any, data: st.DataObject) -> None:
    record: Any = copy.deepcopy(WHOLE[name])
    *parents, last = data.draw(st.sampled_from([path for path in paths_in(record) if path]))
    target = record
    for key in parents:
        target = target[key]
    target[last] = value

    def gone(path: str) -> str:
        raise RecordError("missing image", f"image {path[:200]!r} does not exist")

    try:
        outcome: Sample | RecordError = parse(name, record, 5, settings_of(locate=gone))
    except RecordError as error:
        outcome = error
    if isinstance(outcome, RecordError):
        assert outcome.kind
        assert str(outcome)
    else:
        used = [part for message in outcome.messages for part in message.parts if isinstance(part, int)]
        assert sorted(set(used)) == list(range(len(outcome.images)))
