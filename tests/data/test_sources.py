"""Laws of sources: their settings reach every sample; a bad record is named, never met by surprise; no image leaves the
source's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.data import sources as sources_module
from diptych.data.bad_records import survey_images
from diptych.data.samples import Message, RecordError
from small_sources import BLUE, colours, source_of, write_pictures, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "root")


def test_settings_of_a_source_reach_its_samples(folder: Path) -> None:
    records = [{"picture": "d.png", "text": f"number {n}"} for n in range(5)]
    path = write_records(folder / "x.jsonl", *records)
    source = source_of(
        path,
        columns={"image": "picture", "caption": "text"},
        task="read",
        limit=3,
        image_root=str(folder / "c"),
        loss={"assistant": False},
    )
    assert len(source) == 3
    assert colours(source[2]) == [BLUE]
    assert source[-1] == source[2]
    assert [message.loss for message in source[0].messages] == [None, False]
    with pytest.raises(IndexError):
        source[3]


ESCAPES = [
    *("../secret.png", "c/../../secret.png", "..", "./../secret.png", "//etc/passwd", "/etc/passwd", "/"),
    *("..\\secret.png", "c\\..\\..\\secret.png", "C:\\a.png", "C:/a.png", "\\\\server\\share"),
    *("file:///etc/passwd", "file:a.png", "FILE:/etc/passwd", "pipe:cat a.png", "ftp://a/b.png", "s3://b/a.png"),
    *("http://127.0.0.1/a.png", "https://example.com/a.png", "HTTP://a/a.png", "https:/a", "gopher:a", "jar:a"),
    *("a.png\0", "\0", "../secret.png\0.png", "out.png", "out/secret.png", "loop.png", "a" * 5000, "c/" + "b" * 300),
    *("x.tar@0+100", "../x.tar@0+100", "/x.tar@0+100", "x.parquet#0/image", "/x.parquet#0/image/3", "c#row=0/image"),
    *("/tmp#row=0/image", "../secret.png#frame=0/1", "/etc/passwd#frame=0/1", "a.png#frame=1/1", "a.png#frame=0/99999"),
    *(f"{'../' * depth}etc/passwd" for depth in range(1, 11)),
    *(f"c/{'../' * depth}secret.png" for depth in range(2, 10)),
    *(f"{'../' * depth}secret.png#frame=0/2" for depth in range(1, 5)),
]


def test_no_image_of_a_record_leaves_the_folder(folder: Path) -> None:
    (folder / "out.png").symlink_to("../secret.png")
    (folder / "out").symlink_to("..")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "x.tar").write_bytes(b"x" * 200)
    assert len(set(ESCAPES)) >= 60
    shapes = [
        lambda path: {"messages": [{"role": "user", "content": "<image>"}], "images": [path]},
        lambda path: {"conversations": [{"from": "human", "value": "<image>"}], "image": path},
        lambda path: {"instruction": "x", "output_image": path},
    ]
    for number, shape in enumerate(shapes):
        source = source_of(write_records(folder / f"{number}.jsonl", shape("a.png"), *map(shape, ESCAPES)))
        assert len(source[0].images) == 1
        for place in range(1, len(source)):
            with pytest.raises(RecordError) as caught:
                source[place]
            assert caught.value.kind in ("image path", "missing image"), ESCAPES[place - 1]


def test_absolute_paths_are_allowed_only_where_the_recipe_says(folder: Path, tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": "<image>"}], "images": [str(tmp_path / "secret.png")]}
    path = write_records(folder / "x.jsonl", record)
    with pytest.raises(RecordError, match="relative path"):
        source_of(path)[0]
    assert source_of(path, allow_absolute=True)[0].images == (str(tmp_path / "secret.png"),)


GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_images_in_records_are_kept_by_their_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not so many samples, whatever they weigh."""
    monkeypatch.setattr(sources_module, "SAMPLE_BYTES_KEPT", 50_000)
    image = "data:image/png;base64," + "A" * 10_000
    records = [{"messages": [{"role": "user", "content": f"<image>{n}"}], "images": [image]} for n in range(20)]
    source = source_of(write_records(folder / "x.jsonl", *records))
    assert len(list(source)) == 20
    assert 3 <= len(source._kept) <= 4
    assert survey_images([source], max_bad_fraction=0, max_bytes=100_000) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["<image>", "a.png", "<video>"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text", "image_url", "url", "image", "bytes"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
WHOLE: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": [{"type": "image"}]}], "images": ["a.png"], "meta": {}, "id": 1},
    {"conversations": [{"from": "human", "value": "<image>"}], "image": "a.png", "video": None, "id": 1},
    {"instruction": "x", "input_images": ["a.png"], "output_image": "b.png"},
    {"image": "a.png", "caption": "x"},
]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(range(4)), st.data(), anything, anything)
def test_malformed_records_are_named_never_a_crash(
    folder: Path, which: int, data: st.DataObject, new: Any, whole: Any
) -> None:
    """Whole records, with one place of them replaced by anything, or anything at all."""
    names = ("messages", "llava", "triples", "captions")
    record = json.loads(json.dumps(WHOLE[which]))
    record[data.draw(st.sampled_from(sorted(record)))] = new
    inner = json.loads(json.dumps(WHOLE[which]))
    turns = inner.get("messages") or inner.get("conversations")
    if turns:
        turns[0][data.draw(st.sampled_from(sorted(turns[0])))] = new
    path = write_records(folder / "x.jsonl", WHOLE[which], record, inner, whole)
    task: Any = "read" if which == 3 else None
    source = source_of(path, format=names[which], task=task, num_frames=2 if which == 1 else None)
    for number in range(len(source)):
        problem = None
        try:
            sample = source[number]
        except RecordError as error:
            problem = error
        if problem is not None:
            assert problem.kind
            assert f"record {number + 1}: " in str(problem)
        else:
            used = [part for message in sample.messages for part in message.parts if isinstance(part, int)]
            assert used == list(range(len(sample.images)))
            assert all(isinstance(message, Message) for message in sample.messages)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.tsv", "x.tar", "x.parquet"]))
def test_any_bytes_are_refused_by_name_or_read(folder: Path, body: bytes, name: str) -> None:
    (folder / name).write_bytes(body)
    problem = ""
    try:
        source = source_of(folder / name)
        for number in range(len(source)):
            source[number]
    except ValueError as error:
        problem = str(error)
    assert not problem or name in problem
