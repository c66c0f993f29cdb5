"""Laws of canonical samples: what is written is read back, and a bad record is always named."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych.data import samples
from diptych.data.samples import (
    BadRecord,
    Message,
    RecordError,
    Sample,
    parse_sample,
    read_samples,
    sample_to_record,
    scan_samples,
    write_samples,
)

DRAW = {
    "messages": [{"role": "user", "content": "Draw a dog."}, {"role": "assistant", "content": "<image>"}],
    "images": ["a.png"],
}
TEXT = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def write_lines(folder: Path, *lines: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def test_placeholders_become_image_indices_in_order() -> None:
    record = {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": "<image>\nand <image>: which is larger?"},
            {"role": "assistant", "content": "This:<image>", "loss": False},
        ],
        "images": ["a.png", "b.png", "c.png"],
        "meta": {"k": 1},
        "id": 7,
    }
    sample = parse_sample(record)
    assert [message.parts for message in sample.messages] == [
        (),
        (0, "\nand ", 1, ": which is larger?"),
        ("This:", 2),
    ]
    assert [message.loss for message in sample.messages] == [None, None, False]
    assert sample.images == ("a.png", "b.png", "c.png")
    assert sample.meta == {"k": 1, "id": 7}


def test_content_parts_mean_the_same_as_placeholders() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What"}, {"type": "text", "text": " is it?"}]
    as_parts = {"messages": [{"role": "user", "content": parts}], "images": ["a.png"]}
    as_text = {"messages": [{"role": "user", "content": "<image>What is it?"}], "images": ["a.png"]}
    assert parse_sample(as_parts) == parse_sample(as_text)


def test_a_sample_without_images_is_text() -> None:
    assert parse_sample(TEXT) == Sample((Message("user", ("Hello",)), Message("assistant", ("Hi",))))


def test_what_else_a_record_has_is_passed_over() -> None:
    """As datasets of conversations have it: columns of their own, and OpenAI's names and newer role."""
    others = {"prompt": "Hello", "prompt_id": 3, "source": "web", "conversations": [], "tools": []}
    assert parse_sample({**TEXT, **others}) == parse_sample(TEXT)
    user = {"role": "user", "content": "Hi", "name": "Ann"}
    named = {"messages": [{"role": "developer", "content": "Be kind."}, user]}
    assert [message.role for message in parse_sample(named).messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("record", "kind", "words"),
    [
        ([], "structure", "a list"),
        ({}, "structure", "messages"),
        ({"messages": []}, "structure", "at least one message"),
        ({**TEXT, "image": "a.png"}, "unknown key", r"\['image'\]"),
        ({**TEXT, "images": "a.png"}, "structure", "list of paths"),
        ({**TEXT, "images": ["a.png"]}, "image count", "0 <image> placeholders for 1 images"),
        ({**DRAW, "images": []}, "image count", "1 <image> placeholders for 0 images"),
        ({**TEXT, "meta": 3}, "structure", "meta .* a number"),
        ({"messages": ["hi"]}, "structure", "message 1"),
        ({"messages": [{"role": "human", "content": "a"}]}, "role", "message 1 has role 'human'"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "role", "message 1"),
        ({"messages": [{"content": "a"}]}, "role", "message 1 has role None"),
        ({"messages": [{"role": "user"}]}, "structure", "content .* nothing"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty", "message 1 is empty"),
        ({**TEXT, "image": "a.png", "source": "x"}, "unknown key", r"keys \['image'\]"),
        ({**TEXT, "mesages": []}, "unknown key", "mesages"),
        ({**TEXT, "video": "a.mp4"}, "unknown key", "video"),
        ({"messages": [{"role": "user", "content": "a", "losss": True}]}, "unknown key", "losss"),
        ({"messages": [{"role": "user", "content": "a", "loss": 1}]}, "structure", "true or false"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "encoding", "surrogate"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "structure", "image_url"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "structure", "a number"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "<image>"}]}]}, "structure", "image part"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(record: Any, kind: str, words: str) -> None:
    with pytest.raises(RecordError, match=words) as caught:
        parse_sample(record)
    assert caught.value.kind == kind


texts = st.text('ab é🐶\n\0<>"\\', min_size=1, max_size=6)


@st.composite
def any_samples(draw: st.DrawFn) -> Sample:
    messages: list[Message] = []
    num_images = 0
    for _ in range(draw(st.integers(1, 4))):
        parts: list[str | int] = []
        for is_image in draw(st.lists(st.booleans(), min_size=1, max_size=4)):
            if is_image:
                parts.append(num_images)
                num_images += 1
            elif not (parts and isinstance(parts[-1], str)):
                parts.append(draw(texts))
        loss = draw(st.sampled_from([None, True, False]))
        messages.append(Message(draw(st.sampled_from(samples.ROLES)), tuple(parts), loss))
    images = tuple(draw(st.lists(texts, min_size=num_images, max_size=num_images)))
    return Sample(tuple(messages), images, draw(st.dictionaries(st.text("abc", min_size=1), st.integers())))


@given(any_samples())
def test_records_round_trip(sample: Sample) -> None:
    assert parse_sample(json.loads(json.dumps(sample_to_record(sample), ensure_ascii=False))) == sample


def test_a_sample_that_would_be_misread_is_not_written() -> None:
    with pytest.raises(ValueError, match="order its images"):
        sample_to_record(Sample((Message("user", (1, 0)),), ("a.png", "b.png")))
    with pytest.raises(ValueError, match="read as an image"):
        sample_to_record(Sample((Message("user", ("say <image>",)),)))


def test_files_round_trip(folder: Path) -> None:
    original = [parse_sample(DRAW), parse_sample(TEXT)]
    assert write_samples(folder / "data.jsonl", original) == 2
    assert read_samples(folder / "data.jsonl") == original


def test_blank_lines_a_byte_order_mark_and_windows_ends_are_fine(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(DRAW).encode() + b"\r\n\r\n   \n" + json.dumps(TEXT).encode())
    assert len(read_samples(path)) == 2


BAD_LINES: list[tuple[Any, str]] = [
    (b"{", "JSON"),
    (b"\xff\xfe", "encoding"),
    (b"[" * 100_000, "JSON"),
    (b'{"messages": NaN}', "JSON"),
    ({**DRAW, "images": ["../a.png"]}, "image path"),
    ({**DRAW, "images": ["/etc/passwd"]}, "image path"),
    ({**DRAW, "images": ["a\0.png"]}, "image path"),
    ({**DRAW, "images": ["none.png"]}, "missing image"),
    ({**DRAW, "images": ["."]}, "missing image"),
    ({**DRAW, "images": ["x" * 5000]}, "missing image"),
]


@pytest.mark.parametrize(("line", "kind"), BAD_LINES)
def test_a_bad_line_is_named_with_its_file_and_number(folder: Path, line: Any, kind: str) -> None:
    path = write_lines(folder, DRAW, TEXT, line)
    with pytest.raises(ValueError, match=rf"data\.jsonl: 1 of 3 records are bad \(({kind}): 1\).* line 3: "):
        read_samples(path)


def test_bad_records_up_to_the_fraction_are_skipped_counted_and_reported(folder: Path) -> None:
    lines = [DRAW] * 196 + [line for line, _ in BAD_LINES[:4]]
    path = write_lines(folder, *lines)
    with pytest.warns(UserWarning, match=r"4 of 200 records are bad \(JSON: 3, encoding: 1\)"):
        assert len(read_samples(path, max_bad_fraction=0.02)) == 196
    with pytest.raises(ValueError, match=r"data\.max_bad_fraction \(now 0\.019\)"):
        read_samples(path, max_bad_fraction=0.019)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    Image.new("RGB", (4, 4)).save(outside)
    (folder / "link.png").symlink_to(outside)
    (record,) = scan_samples(write_lines(folder, {**DRAW, "images": ["link.png"]}))
    assert isinstance(record, BadRecord)
    assert record.kind == "image path"


def test_a_record_without_end_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_RECORD_BYTES", 1000)
    path = write_lines(folder, TEXT, b"x" * 5000, TEXT, b"y" * 1001)
    kinds = [record.kind if isinstance(record, BadRecord) else "good" for record in scan_samples(path)]
    assert kinds == ["good", "too long", "good", "too long"]


def test_missing_and_empty_files_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        read_samples(folder / "none.jsonl")
    with pytest.raises(ValueError, match="holds no samples"):
        read_samples(write_lines(folder))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8) | st.just("<image>"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["messages", "images", "role", "content", "type", "text", "loss"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(json_values | st.binary(max_size=40), min_size=1, max_size=4), st.data())
def test_malformed_records_are_skipped_never_a_crash(folder: Path, values: list[Any], data: st.DataObject) -> None:
    """Random records, and a good one with one place of it replaced."""
    broken = json.loads(json.dumps(DRAW))
    place = data.draw(st.sampled_from(["messages", "images", "role", "content"]))
    (broken if place in broken else broken["messages"][0])[place] = data.draw(json_values)
    path = write_lines(folder, *[v.replace(b"\n", b"") if isinstance(v, bytes) else v for v in values], broken, TEXT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = list(scan_samples(path))
    assert isinstance(records[-1], Sample)
    assert all(isinstance(record, Sample) or (record.kind and record.reason) for record in records)
