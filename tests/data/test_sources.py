"""Laws of sources: every format in its true layout becomes the sample that it means; a bad record is named, never met
by surprise; no image leaves the source's folder."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych.data import sources as sources_module
from diptych.data.bad_records import survey_images
from diptych.data.references import content_hash, frame_reference, open_reference, split_frame
from diptych.data.samples import Message, RecordError, Sample
from diptych.data.sources import Source
from diptych.data_settings import DataConfig, SourceConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Beside the records: a.png red, b.png green, c/d.png blue."""
    root = tmp_path / "root"
    (root / "c").mkdir(parents=True)
    for name, colour in (("a.png", "red"), ("b.png", "lime"), ("c/d.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(root / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    return root


def source_of(path: Path, **config: Any) -> Source:
    allow_urls = config.pop("allow_urls", False)
    made = SourceConfig(path=str(path), **config)
    return Source(made, DataConfig(sources=(made,), allow_urls=allow_urls))


def write(path: Path, *records: Any) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(list(records), indent=1))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def said(sample: Sample) -> list[tuple[str, tuple[str | int, ...]]]:
    return [(message.role, message.parts) for message in sample.messages]


def colours(sample: Sample) -> list[tuple[int, ...]]:
    return [open_reference(image).getpixel((0, 0)) for image in sample.images]  # type: ignore[misc]


RED, LIME, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def test_canonical_records_and_openai_parts_are_one_format(folder: Path) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "c/d.png", "detail": "low"}},
        {"type": "input_text", "text": "And this: "},
        {"type": "image"},
        {"type": "input_image", "image_url": "b.png"},
    ]
    source = source_of(
        write(
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
    import base64

    uri = "data:image/png;base64," + base64.b64encode((folder / "a.png").read_bytes()).decode()
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}
    (image,) = source_of(write(folder / "x.jsonl", {"messages": [message]}))[0].images
    assert open_reference(image).getpixel((0, 0)) == RED
    assert content_hash(image) == content_hash(str(folder / "a.png"))
    for broken in ("data:text/html;base64,AAAA", "data:image/png,AAAA", "data:image/png;base64,A", "data:"):
        with pytest.raises(ValueError, match="image"):
            open_reference(broken)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_llava(folder: Path, name: str) -> None:
    source = source_of(
        write(
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
    path = write(folder / "x.json", record)
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
        write(
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
    path = write(folder / "x.jsonl", {"image": "a.png", "caption": "a red square."})
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


def test_settings_of_a_source_reach_its_samples(folder: Path) -> None:
    records = [{"picture": "d.png", "text": f"number {n}"} for n in range(5)]
    path = write(folder / "x.jsonl", *records)
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


def test_two_formats_that_could_be_meant_are_refused_with_both(folder: Path) -> None:
    both = {"image": "a.png", "caption": "x", "conversations": [{"from": "human", "value": "<image>"}]}
    path = write(folder / "x.jsonl", both)
    with pytest.raises(ValueError, match=r"as llava .* and as captions .* format: llava"):
        source_of(path)
    assert said(source_of(path, format="llava")[0]) == [("user", (0,))]
    with pytest.raises(ValueError, match=r"\['x'\].* no format known.*columns"):
        source_of(write(folder / "y.jsonl", {"x": 1}))


def test_image_folders(folder: Path) -> None:
    with pytest.raises(RecordError, match=r"'a\.png' has no caption"):
        source_of(folder, task="draw", format="captions")[0]
    for name in ("a.txt", "b.txt", "c/d.txt"):
        (folder / name).write_text(f"the {name}\n", encoding="utf-8-sig")
    source = source_of(folder, task="read")
    assert [said(sample)[1][1] for sample in source] == [("the a.txt",), ("the b.txt",), ("the c/d.txt",)]
    assert colours(source[2]) == [BLUE]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_image_folders_with_a_table(folder: Path, ending: str) -> None:
    rows = [("a.png", 'a, "red"\nsquare'), ("c/d.png", "tab\tand é")]
    path = folder / f"metadata.{ending}"
    if ending == "jsonl":
        write(path, *[{"file_name": name, "caption": text} for name, text in rows])
    else:
        text = io.StringIO()
        csv.writer(text, delimiter="," if ending == "csv" else "\t").writerows([("file_name", "caption"), *rows])
        path.write_bytes(text.getvalue().encode("utf-8-sig"))
    for where in (folder, path):
        columns = {} if where == folder else {"image": "file_name"}
        source = source_of(where, task="read", columns=columns)
        assert [said(sample)[1][1] for sample in source] == [(text.replace("\r", ""),) for _, text in rows]
        assert colours(source[1]) == [BLUE]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_parquet_with_images_as_bytes_structs_and_lists(folder: Path, compression: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    raw = [(folder / name).read_bytes() for name in ("a.png", "b.png", "c/d.png")]
    table = arrow.table(
        {
            "image": [
                {"bytes": raw[0], "path": None},
                {"bytes": None, "path": "b.png"},
                {"bytes": raw[2], "path": "x"},
            ],
            "caption": ["one", "two", None],
        }
    )
    (folder / "p").mkdir()
    for name, rows in (("p-0.parquet", table.slice(0, 2)), ("p-1.parquet", table.slice(2))):
        parquet.write_table(rows, folder / "p" / name, row_group_size=1, compression=compression)
    source = source_of(folder / "p", task="read", image_root=str(folder))
    assert len(source) == 3
    assert colours(source[0]) == [RED]
    assert colours(source[1]) == [LIME]
    with pytest.raises(RecordError, match=r"p-1\.parquet, row 1: caption"):
        source[2]
    messages = [[{"role": "user", "content": "<image><image>", "loss": None}]]
    listed = arrow.table({"messages": messages, "images": [[raw[2], raw[0]]]})
    parquet.write_table(listed, folder / "x.parquet")
    (sample,) = source_of(folder / "x.parquet", format="messages")
    assert colours(sample) == [BLUE, RED]


def test_datasets_on_disk_and_streamed(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from diptych.data.stores.hub_dataset import StreamedDataset, rows_from

    names = [str(folder / name) for name in ("a.png", "b.png", "c/d.png")]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": Path(n).read_bytes(), "path": None} for n in names], "caption": ["r", "g", "b"]}
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": data, "test": data.select([2])}).save_to_disk(folder / "saved")
    source = source_of(folder / "saved", task="read", split="train")
    assert [colours(sample)[0] for sample in source] == [RED, LIME, BLUE]
    assert len(source_of(folder / "saved", task="read", split="test")) == 1
    with pytest.raises(ValueError, match="splits test, train"):
        source_of(folder / "saved", task="read")
    opened = []
    rows_of = rows_from(data.to_iterable_dataset())
    stream = StreamedDataset(lambda skip: opened.append(skip) or rows_of(skip), length=4, name="hub:x")
    assert [open_reference(stream.read(number)["image"]).getpixel((0, 0)) for number in (0, 1, 1, 2)] == [
        RED,
        LIME,
        LIME,
        BLUE,
    ]
    assert opened == [0]
    assert stream.read(1)["caption"] == "g"
    with pytest.raises(RecordError, match="ends at row 3; lower"):
        stream.read(3)


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
        source = source_of(write(folder / f"{number}.jsonl", shape("a.png"), *map(shape, ESCAPES)))
        assert len(source[0].images) == 1
        for place in range(1, len(source)):
            with pytest.raises(RecordError) as caught:
                source[place]
            assert caught.value.kind in ("image path", "missing image"), ESCAPES[place - 1]


def test_absolute_paths_are_allowed_only_where_the_recipe_says(folder: Path, tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": "<image>"}], "images": [str(tmp_path / "secret.png")]}
    path = write(folder / "x.jsonl", record)
    with pytest.raises(RecordError, match="relative path"):
        source_of(path)[0]
    assert source_of(path, allow_absolute=True)[0].images == (str(tmp_path / "secret.png"),)


GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_images_in_records_are_kept_by_their_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not so many samples, whatever they weigh."""
    monkeypatch.setattr(sources_module, "SAMPLE_BYTES_KEPT", 50_000)
    image = "data:image/png;base64," + "A" * 10_000
    records = [{"messages": [{"role": "user", "content": f"<image>{n}"}], "images": [image]} for n in range(20)]
    source = source_of(write(folder / "x.jsonl", *records))
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
    path = write(folder / "x.jsonl", WHOLE[which], record, inner, whole)
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
