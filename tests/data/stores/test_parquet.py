"""Laws of parquet: records are read without their images, whatever form these have; an image is its cell's bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diptych.data.references import read_reference
from diptych.data.stores.parquet import ParquetTable

arrow = pytest.importorskip("pyarrow")

STRUCT = [{"bytes": b"one", "path": "1.png"}, {"bytes": None, "path": "2.png"}, None, {"bytes": b"four", "path": None}]
COLUMNS = {
    "caption": ["a", "b", None, "d"],
    "bytes": [b"one", None, b"three", b"four"],
    "struct": STRUCT,
    "full": [{"bytes": bytes([65 + number]), "path": "x"} for number in range(4)],
    "list": [[b"x", b"y"], [], None, [None, b"z"]],
    "structs": [[STRUCT[0], STRUCT[1]], None, [], [STRUCT[3]]],
}


def opened(value: Any) -> Any:
    """A field of a record with its images read."""
    if isinstance(value, list):
        return [opened(entry) for entry in value]
    return read_reference(value) if isinstance(value, str) and "#" in value else value


@pytest.mark.parametrize("group_size", [1, 3, 100])
@pytest.mark.parametrize("statistics", [True, False])
def test_images_of_every_form_are_named_and_read(tmp_path: Path, group_size: int, statistics: bool) -> None:
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table(COLUMNS), path, row_group_size=group_size, write_statistics=statistics)
    table = ParquetTable([path], folder=tmp_path)
    rows = [{name: opened(value) for name, value in table.read(number).items()} for number in range(4)]
    assert [row.get("caption") for row in rows] == ["a", "b", None, "d"]
    assert [row.get("bytes") for row in rows] == [b"one", None, b"three", b"four"]
    assert [row.get("struct") for row in rows] == [b"one", "2.png", None, b"four"]
    assert [row.get("full") for row in rows] == [b"A", b"B", b"C", b"D"]
    assert [row.get("list") for row in rows] == [[b"x", b"y"], [], None, [None, b"z"]]
    assert [row.get("structs") for row in rows] == [[b"one", "2.png"], None, [], [b"four"]]


def test_records_are_read_without_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    names = ["caption", "full"]
    parquet.write_table(arrow.table({name: COLUMNS[name] for name in names}), path, row_group_size=2)
    read: list[list[str]] = []
    plain = parquet.ParquetFile.read_row_group

    def watched(self: Any, group: int, columns: list[str], **rest: Any) -> Any:
        read.append(columns)
        return plain(self, group, columns=columns, **rest)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", watched)
    table = ParquetTable([path], folder=tmp_path)
    images = [table.read(number)["full"] for number in (3, 0, 2, 1)]
    assert read == [["caption"], ["caption"]]
    assert [read_reference(image) for image in images] == [b"D", b"A", b"C", b"B"]
    assert read[2:] == [["full"], ["full"]]
