"""Laws of stores that hold images too: folders, tables and datasets in their true layouts become the same samples."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from diptych.data.references import open_reference
from diptych.data.samples import RecordError
from small_sources import BLUE, LIME, RED, colours, said, source_of, write_pictures, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "root")


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
        write_records(path, *[{"file_name": name, "caption": text} for name, text in rows])
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
