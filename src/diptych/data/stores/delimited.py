"""CSV and TSV: rows by number under the names of their header.

What a row is, Python's csv says: a quote counts where it opens a cell, and inside such a cell a line end is part of it.
"""

from __future__ import annotations

import array
import csv
import io
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diptych.data import samples
from diptych.data.samples import RecordError
from diptych.data.stores.offset_index import load_index, read_range
from diptych.data.stores.record_store import regular_file

MANY_LINES = 100
"""A row of more lines is told: more often than a long text it is two stray quotes with all that lies between."""
_BYTE_ORDER_MARK = "\xef\xbb\xbf"  # of UTF-8, read as Latin-1


class DelimitedTable:
    """Rows of a `.csv` (commas) or `.tsv` (tabs) with a header, in UTF-8. Raises ValueError for a header that is none.

    An empty cell is no field.
    """

    def __init__(self, path: str | Path, *, index_dir: Path | None = None) -> None:
        self.path = regular_file(path)
        self.folder = self.path.parent
        self._delimiter = "\t" if self.path.suffix.lower() == ".tsv" else ","
        build = partial(index_rows, delimiter=self._delimiter)
        self._starts = load_index(self.path, f"rows {self._delimiter!r}", build, index_dir)
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
            rows = [row for row in _reader(io.StringIO(text, newline=""), self._delimiter) if row]
        except UnicodeDecodeError as error:
            raise RecordError("encoding", f"not UTF-8 at byte {error.start}") from None
        except csv.Error as error:
            raise RecordError("structure", f"not a row of a table: {error}") from None
        if len(rows) != 1:
            raise RecordError("structure", f"not a row of a table: {len(rows)} of them")
        return rows[0]

    def where(self, number: int) -> str:
        return f"{os.fspath(self.path)}, row {number + 2}"


def index_rows(file: BinaryIO, *, delimiter: str) -> np.ndarray:
    """The starts of the rows of a CSV or TSV file, then its length; blank lines are no rows.

    Where no row begins (a quote that is never closed, or with words behind it), the line is a row by itself, and bad.
    """
    starts = array.array("q")
    text = io.TextIOWrapper(file, "latin-1", newline="")  # a character is a byte, and no other line ends are known
    lines = _Lines(text)
    rows = _reader(lines, delimiter)
    opening = f'{delimiter}"'
    try:
        position, number = 0, 0
        while size := lines.take():
            number += 1
            line = lines.first = lines.first.removeprefix(_BYTE_ORDER_MARK) if position == 0 else lines.first
            if size <= samples.MAX_RECORD_BYTES and (line.startswith('"') or opening in line):
                try:
                    next(rows)
                    size += sum(length for _, length in lines.behind)
                    if len(lines.behind) >= MANY_LINES:
                        _tell_long_row(file, number, len(lines.behind) + 1)
                    number += len(lines.behind)
                except csv.Error:
                    lines.unread.extendleft(reversed(lines.behind))
            if line.strip("\r\n"):
                starts.append(position)
            position += size
    finally:
        text.detach()
    return np.concatenate((np.frombuffer(starts, np.int64), [position])).astype(np.int64)


def _reader(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """csv's, for cells of any length that a record may have."""
    csv.field_size_limit(max(csv.field_size_limit(), samples.MAX_RECORD_BYTES))
    return csv.reader(lines, delimiter=delimiter, strict=True)


class _Lines:
    """What csv is given of a file: the line that a row begins with, then those behind it, as long as it asks for more
    and no record is longer. Of a line that is longer than a record may be, only its beginning is held."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.first = ""
        self.behind: list[tuple[str, int]] = []  # and their lengths
        self.unread: deque[tuple[str, int]] = deque()
        self._begun, self._total = False, 0

    def take(self) -> int:
        """The length of the next line, now `first`; 0 at the end."""
        self.first, self._total = self._read()
        self._begun, self.behind = False, []
        return self._total

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if not self._begun:
            self._begun = True
            return self.first
        if self._total > samples.MAX_RECORD_BYTES or not (line := self._read())[1]:
            raise StopIteration
        self.behind.append(line)
        self._total += line[1]
        return line[0]

    def _read(self) -> tuple[str, int]:
        if self.unread:
            return self.unread.popleft()
        line = last = self._text.readline(samples.MAX_RECORD_BYTES + 1)
        size = len(line)
        while size > samples.MAX_RECORD_BYTES and last and not last.endswith(("\n", "\r")):
            last = self._text.readline(samples.MAX_RECORD_BYTES)
            size += len(last)
        return line, size


def _tell_long_row(file: BinaryIO, number: int, num_lines: int) -> None:
    warnings.warn(
        f"{getattr(file, 'name', 'a table')}: the row at line {number} has {num_lines:,} lines in it, from a quote "
        "that opens a cell to the next that closes one; if these are rows, double both quotes and quote their cells",
        stacklevel=4,
    )
