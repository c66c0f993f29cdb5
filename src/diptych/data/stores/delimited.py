"""CSV and TSV: rows by number under the names of their header."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from diptych.data import samples
from diptych.data.samples import RecordError
from diptych.data.stores.offset_index import index_table, load_index, read_range
from diptych.data.stores.record_store import regular_file


class DelimitedTable:
    """Rows of a `.csv` (commas) or `.tsv` (tabs) with a header, in UTF-8. Raises ValueError for a header that is none.

    An empty cell is no field.
    """

    def __init__(self, path: str | Path, *, index_dir: Path | None = None) -> None:
        self.path = regular_file(path)
        self.folder = self.path.parent
        self._delimiter = "\t" if self.path.suffix.lower() == ".tsv" else ","
        self._starts = load_index(self.path, "table", index_table, index_dir)
        if len(self._starts) < 2:
            raise ValueError(f"{self.path} is empty; its first row names the columns")
        try:
            self.header = self._row(0)
        except RecordError as error:
            raise ValueError(f"{self.path}: the header is bad: {error}") from None
        if len(set(self.header)) != len(self.header) or not all(self.header):
            raise ValueError(f"{self.path}: the header {self.header} names a column twice, or not at all")

    def __len__(self) -> int:
        return len(self._starts) - 2

    def read(self, number: int) -> Any:
        cells = self._row(number + 1)
        if len(cells) != len(self.header):
            raise RecordError("structure", f"{len(cells)} cells under {len(self.header)} columns")
        return {name: cell for name, cell in zip(self.header, cells, strict=True) if cell}

    def _row(self, number: int) -> list[str]:
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        if end - start > samples.MAX_RECORD_BYTES:
            raise RecordError("too long", f"the record is longer than {samples.MAX_RECORD_BYTES} bytes")
        try:
            text = read_range(self.path, start, end - start).decode("utf-8-sig" if start == 0 else "utf-8")
            lines = text.splitlines(keepends=True)
            (cells,) = csv.reader(lines, delimiter=self._delimiter, strict=True)
        except UnicodeDecodeError as error:
            raise RecordError("encoding", f"not UTF-8 at byte {error.start}") from None
        except (csv.Error, ValueError) as error:
            raise RecordError("structure", f"not a row of a table: {error}") from None
        return cells

    def where(self, number: int) -> str:
        return f"{os.fspath(self.path)}, row {number + 2}"
