"""Hugging Face datasets: a folder that `save_to_disk` wrote (by number), or one of the Hub (streamed, in its order)."""

from __future__ import annotations

import base64
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diptych.data.recently_used import RecentlyUsed
from diptych.data.references import StoredImage
from diptych.data.samples import RecordError
from diptych.data.stores.parquet import image_bytes, row_record
from diptych.data.stores.record_store import without_nothing

RETRY_SECONDS = (1.0, 5.0)
"""How long a broken connection is left alone before it is tried again."""

_datasets: RecentlyUsed[tuple[str, int], Any] = RecentlyUsed(8)


class SavedDataset:
    """Rows of a dataset on disk; Arrow maps its files, so that only what is read is in memory.

    Raises ValueError if it is none, `split` is not one of its splits, or `datasets` is not installed.
    """

    def __init__(self, folder: str | Path, *, split: str | None = None) -> None:
        self.folder = Path(folder)
        splits = sorted(path.parent.name for path in self.folder.glob("*/state.json"))
        if splits and not (self.folder / "state.json").is_file():
            if split is None or split not in splits:
                raise ValueError(f"{folder} holds the splits {', '.join(splits)}; name one of them with `split:`")
            self.folder = self.folder / split
        elif split is not None:
            raise ValueError(f"{folder} holds no splits; leave `split: {split}` out")
        self._folder = os.path.abspath(self.folder)
        self._length = len(_open_dataset(self._folder))

    def __len__(self) -> int:
        return self._length

    def read(self, number: int) -> Any:
        row = _open_dataset(self._folder)[number : number + 1]
        return row_record(
            {name: row.column(name)[0] for name in row.column_names},
            name_cell=lambda column: f"{self._folder}#row={number}/{column}",
            what=self.where(number),
        )

    def where(self, number: int) -> str:
        return f"{self.folder}, row {number + 1}"


class StreamedDataset:
    """Rows of a dataset that is read from its beginning on, the first `length` of them; images are kept in the record.

    `open_stream(skip)`: an iterator over the rows from number `skip` on. Rows asked for in order cost one step each,
    those between them too (which other ranks take); an earlier one starts the stream anew, which is cheap only where
    the dataset's shards know their lengths. A connection that breaks is opened again where it broke.
    """

    def __init__(self, open_stream: Callable[[int], Iterator[Any]], *, length: int, name: str) -> None:
        self.folder = Path()
        self._open, self._length, self._name = open_stream, length, name
        self._next = -1
        self._end = length
        self._stream: Iterator[Any] = iter(())
        self._last: tuple[int, Any] = (-1, None)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def read(self, number: int) -> Any:
        with self._lock:
            if self._last[0] != number:
                self._last = (number, self._fetch(number))
            row = self._last[1]
        return {name: _hold_images(without_nothing(value)) for name, value in row.items() if value is not None}

    def _fetch(self, number: int) -> Any:
        """The row of a number, by way of those before it. Raises RecordError: the stream's end, no connection."""
        for pause in (*RETRY_SECONDS, None):
            if number >= self._end < self._length:
                raise RecordError("end", f"{self._name} ends at row {self._end}; lower the source's limit")
            try:
                if self._next < 0 or number < self._next:
                    self._stream = self._open(number)
                    self._next = number
                while True:
                    row = next(self._stream)
                    self._next += 1
                    if self._next > number:
                        return row
            except StopIteration:
                # A stream that was opened behind its end does not say where that is.
                self._end, self._next = min(self._end, self._next), -1
                raise RecordError("end", f"{self._name} ends at row {self._end}; lower the source's limit") from None
            except _connection_errors() as error:
                self._next = -1
                if pause is None:
                    raise RecordError("connection", f"{self._name} cannot be reached: {error}") from None
                time.sleep(pause)
        raise AssertionError

    def where(self, number: int) -> str:
        return f"{self._name}, row {number + 1}"


def _connection_errors() -> tuple[type[Exception], ...]:
    """OSError, and those of the libraries that may be at work, where these do not derive from it."""
    found: list[type[Exception]] = [OSError]
    for module, name in (("httpx", "HTTPError"), ("aiohttp", "ClientError"), ("requests", "RequestException")):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def stream_hub_dataset(name: str, *, subset: str | None, split: str, length: int) -> StreamedDataset:
    """A dataset of the Hub. Raises ValueError if it cannot be reached, and `datasets` is needed."""
    datasets = import_datasets()
    try:
        dataset = datasets.load_dataset(name, subset, split=split, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"dataset {name} cannot be streamed from the Hub: {error}") from error
    return StreamedDataset(rows_from(dataset), length=length, name=f"hub:{name}")


def rows_from(dataset: Any) -> Callable[[int], Iterator[Any]]:
    """`open_stream` of an IterableDataset, its images left encoded."""
    dataset = _undecoded(dataset)
    return lambda skip: iter(dataset.skip(skip) if skip else dataset)


def read_dataset_cell(folder: str, row: int, column: str, index: int | None) -> bytes:
    """The bytes of an image in a saved dataset (`references.py`). Raises ValueError if there are none."""
    dataset = _open_dataset(folder)
    if not row < len(dataset) or column not in dataset.column_names:
        raise ValueError(f"{folder} has no row {row + 1} with a column {column!r}")
    value = dataset[row : row + 1].column(column)[0].as_py()
    return image_bytes(value, index, f"{folder}, row {row + 1}, column {column!r}")


def import_datasets() -> Any:
    """`datasets`. Raises ValueError that says how to install it."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            "Hugging Face datasets are read with `datasets`; install it with: pip install 'diptych[data]'"
        ) from error
    return datasets


def _open_dataset(folder: str) -> Any:
    """With rows as Arrow tables: nothing is decoded, an image is its bytes."""
    datasets = import_datasets()
    try:
        version = os.stat(os.path.join(folder, "state.json")).st_mtime_ns
        return _datasets.get_or_make(
            (folder, version), lambda: datasets.load_from_disk(folder, keep_in_memory=False).with_format("arrow")
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no dataset that save_to_disk wrote: {error}") from error


def _undecoded(dataset: Any) -> Any:
    datasets = import_datasets()
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return dataset


def _hold_images(value: Any) -> Any:
    """Bytes as a data URI: a stream cannot be asked for them again."""
    if isinstance(value, list):
        return [_hold_images(entry) for entry in value]
    if isinstance(value, dict) and set(value) <= {"bytes", "path"} and value:
        value = value.get("bytes", value.get("path"))
    if isinstance(value, bytes):
        return StoredImage("data:image/unknown;base64," + base64.b64encode(value).decode("ascii"))
    return value
