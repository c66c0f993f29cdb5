"""Parquet: a file, or a folder of shards. A few row groups are in memory, whatever the table's size.

Images in a table are bytes, or a struct of `bytes` and `path` (as Hugging Face writes them): a record names their
cells, and they are read when somebody asks for them, one column of a row group at once. Records are read without them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.recently_used import RecentlyUsed
from diptych.data.references import StoredImage
from diptych.data.samples import RecordError
from diptych.data.stores.record_store import named_files, regular_file, without_nothing

MAX_COLUMN_BYTES = 1_000_000_000
"""Of one column of images of one row group uncompressed, and of all that are kept."""
MAX_WORDS_BYTES = 250_000_000
"""Of all row groups that are kept without their images."""

_files: RecentlyUsed[tuple[str, int, int], _ParquetFile] = RecentlyUsed(8)
_words: RecentlyUsed[tuple[str, int, int], Any] = RecentlyUsed(
    4096, max_total=MAX_WORDS_BYTES, size_of=lambda table: table.nbytes
)
_images: RecentlyUsed[tuple[str, int, int, str], Any] = RecentlyUsed(
    256, max_total=MAX_COLUMN_BYTES, size_of=lambda table: table.nbytes
)


class ParquetTable:
    """Rows of one or more parquet files, in the order of their names, by number.

    Raises ValueError if there is none, one cannot be read, or pyarrow is not installed.
    """

    def __init__(self, paths: Sequence[str | Path], *, folder: Path) -> None:
        self.folder = folder
        self._paths = named_files(paths, ".parquet")
        if not self._paths:
            raise ValueError(f"folder {folder} holds no .parquet files")
        # The footers are read one after another; none of the files stays open for it.
        self._ends = np.cumsum([_open_parquet(path).num_rows for path in self._paths])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, number: int) -> tuple[str, int]:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return self._paths[shard], number - (int(self._ends[shard - 1]) if shard else 0)

    def read(self, number: int) -> Any:
        path, row = self._place(number)
        try:
            file = _open_parquet(path)
        except ValueError as error:
            raise RecordError("missing file", f"{path} cannot be read any more: {error}") from None
        return file.record(row)

    def where(self, number: int) -> str:
        path, row = self._place(number)
        return f"{path}, row {row + 1}"


def read_parquet_cell(path: str, row: int, column: str, index: int | None) -> bytes:
    """The bytes of an image in a table (`references.py`). Raises ValueError if there are none."""
    return image_bytes(_open_parquet(path).cell(row, column), index, f"{path}, row {row + 1}, column {column!r}")


def image_bytes(value: Any, index: int | None, what: str) -> bytes:
    """Of a cell that is bytes, or a struct of bytes and path, or (`index`) a list of them. Raises ValueError."""
    if index is not None:
        if not isinstance(value, list) or not index < len(value):
            raise ValueError(f"{what} holds no image number {index + 1}")
        value = value[index]
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ValueError(f"{what} holds no image's bytes")
    return value


def import_arrow() -> Any:
    """pyarrow.parquet. Raises ValueError that says how to install it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet files are read with pyarrow; install it with: pip install 'diptych[data]'") from error
    return pyarrow.parquet


class _ParquetFile:
    def __init__(self, path: str, version: int) -> None:
        parquet = import_arrow()
        try:
            self._file = parquet.ParquetFile(path)
            self._columns = list(self._file.schema_arrow.names)
        except _arrow_errors() as error:
            raise ValueError(f"{path} is corrupt, or no parquet file: {error}; replace it, or leave it out") from None
        metadata = self._file.metadata
        self._version = version
        self.path = path
        self.num_rows = metadata.num_rows
        self._ends = np.cumsum([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)])
        self._lock = threading.Lock()

    def record(self, row: int) -> dict[str, Any]:
        group, place = self._place(row)
        table = _words.get_or_make((self.path, self._version, group), lambda: self._read_words(group))
        return row_record(
            {name: table.column(name)[place] for name in self._columns},
            name_cell=lambda column: f"{self.path}#{row}/{column}",
            what=f"row {row + 1} of {self.path}",
        )

    def cell(self, row: int, column: str) -> Any:
        if column not in self._columns or not 0 <= row < self.num_rows:
            raise ValueError(f"{self.path} has no row {row + 1} with a column {column!r}")
        group, place = self._place(row)
        key = (self.path, self._version, group, column)
        table = _images.get_or_make(key, lambda: self._read(group, [column]))
        return _value(table.column(column)[place], f"row {row + 1} of {self.path}")

    def _place(self, row: int) -> tuple[int, int]:
        """The row group that holds a row, and the row's place in it."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        return group, row - (int(self._ends[group - 1]) if group else 0)

    def _read_words(self, group: int) -> Any:
        """A row group without its images: in their place are empty ones, where there are any."""
        import pyarrow

        schema = self._file.schema_arrow
        plain = [name for name in self._columns if not _holds_images(schema.field(name).type)]
        columns = dict(zip(plain, self._read(group, plain).columns, strict=True)) if plain else {}
        for name in self._columns:
            if name not in columns:
                columns[name] = self._empty_images(group, name, schema.field(name).type)
        return pyarrow.table({name: columns[name] for name in self._columns})

    def _empty_images(self, group: int, name: str, kind: Any) -> Any:
        import pyarrow

        metadata = self._file.metadata.row_group(group)
        chunks = [metadata.column(index) for index in range(metadata.num_columns)]
        leaf = name if _is_bytes(kind) else f"{name}.bytes"
        counts = [chunk.statistics for chunk in chunks if chunk.path_in_schema == leaf]
        if len(counts) == 1 and counts[0] is not None and counts[0].has_null_count and counts[0].null_count == 0:
            # Every row has an image, as the footer says: nothing is read.
            image = {"bytes": b"", "path": None} if _is_image_struct(kind) else b""
            return pyarrow.repeat(pyarrow.scalar(image, kind), metadata.num_rows)
        return pyarrow.chunked_array([_emptied(part) for part in self._read(group, [name]).column(name).chunks], kind)

    def _read(self, group: int, columns: list[str]) -> Any:
        metadata = self._file.metadata.row_group(group)
        chunks = [metadata.column(index) for index in range(metadata.num_columns)]
        size = sum(c.total_uncompressed_size for c in chunks if _top(c.path_in_schema, columns))
        if size > MAX_COLUMN_BYTES:
            raise RecordError(
                "too long",
                f"row group {group + 1} of {self.path} has {size:,} bytes in {', '.join(columns)[:200]}, more than the "
                f"{MAX_COLUMN_BYTES:,} that are read at once; write it with smaller row groups",
            )
        try:
            with self._lock:
                return self._file.read_row_group(group, columns=columns, use_threads=False).select(columns)
        except _arrow_errors() as error:
            raise RecordError("shard", f"row group {group + 1} of {self.path} is corrupt: {error}") from None


def _top(path: str, columns: list[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _emptied(column: Any) -> Any:
    """An Arrow array of images, or of lists of them, with their bytes left out: what is nothing stays nothing."""
    import pyarrow
    import pyarrow.compute

    compute: Any = pyarrow.compute
    kind = column.type
    if _is_bytes(kind):
        return compute.if_else(column.is_valid(), pyarrow.scalar(b"", kind), pyarrow.scalar(None, kind))
    if _is_image_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        parts = [compute.struct_field(column, field.name) for field in fields]
        parts = [_emptied(part) if field.name == "bytes" else part for field, part in zip(fields, parts, strict=True)]
        return pyarrow.StructArray.from_arrays(parts, fields=fields, mask=column.is_null())
    entries = _emptied(column.flatten())
    lengths = compute.fill_null(compute.list_value_length(column), 0).to_pylist()
    offsets = pyarrow.array(np.concatenate(([0], np.cumsum(lengths))), "int32")
    return pyarrow.ListArray.from_arrays(offsets, entries, mask=column.is_null()).cast(kind)


def _holds_images(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        kind = kind.value_type
    return _is_bytes(kind) or _is_image_struct(kind)


def row_record(cells: dict[str, Any], *, name_cell: Callable[[str], str], what: str) -> dict[str, Any]:
    """A row of Arrow scalars as a record, its images named by `name_cell` of their column rather than held."""
    record: dict[str, Any] = {}
    for name, scalar in cells.items():
        if not scalar.is_valid:
            continue
        if _is_bytes(scalar.type):
            record[name] = StoredImage(name_cell(name))
        elif _is_image_struct(scalar.type):
            record[name] = StoredImage(name_cell(name)) if scalar["bytes"].is_valid else scalar["path"].as_py()
        else:
            record[name] = without_nothing(_name_images(_value(scalar, what), name_cell(name)))
    return record


def _name_images(value: Any, reference: str) -> Any:
    """Of a cell that is a list, its images named, each with its index."""
    if not isinstance(value, list):
        return value
    named = []
    for index, entry in enumerate(value):
        if isinstance(entry, bytes):
            entry = StoredImage(f"{reference}/{index}")
        elif isinstance(entry, dict) and set(entry) == {"bytes", "path"}:
            entry = StoredImage(f"{reference}/{index}") if entry["bytes"] is not None else entry["path"]
        named.append(entry)
    return named


def _open_parquet(path: str) -> _ParquetFile:
    status = regular_file(path).stat()
    key = (path, status.st_size, status.st_mtime_ns)
    return _files.get_or_make(key, lambda: _ParquetFile(path, status.st_mtime_ns))


def _is_bytes(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _is_image_struct(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}


def _value(scalar: Any, what: str) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        raise RecordError("encoding", f"{what} cannot be decoded: {error}") from None


def _arrow_errors() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError, ValueError)
