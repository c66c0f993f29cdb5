"""A JSON array of records in one file, as LLaVA's are: split into offsets, never loaded as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diptych.data import samples
from diptych.data.samples import RecordError, decode_record
from diptych.data.stores.offset_index import index_array, load_index, read_range
from diptych.data.stores.record_store import regular_file


class JsonArray:
    """Elements of a `.json` file's array by number. Raises ValueError if the file is no array, or was cut."""

    def __init__(self, path: str | Path, *, index_dir: Path | None = None) -> None:
        self.path = regular_file(path)
        self.folder = self.path.parent
        try:
            self._bounds = load_index(self.path, "array", index_array, index_dir)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def __len__(self) -> int:
        return self._bounds.shape[1]

    def read(self, number: int) -> Any:
        start, end = (int(bound) for bound in self._bounds[:, number])
        if end - start > samples.MAX_RECORD_BYTES:
            raise RecordError("too long", f"the record is longer than {samples.MAX_RECORD_BYTES} bytes")
        return decode_record(read_range(self.path, start, end - start))

    def where(self, number: int) -> str:
        return f"{os.fspath(self.path)}, record {number + 1}"
