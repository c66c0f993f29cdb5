"""JSON Lines: one record per line, each found by its offset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diptych.data import samples
from diptych.data.samples import RecordError, decode_record
from diptych.data.stores.offset_index import index_lines, load_index, read_range
from diptych.data.stores.record_store import regular_file


class JsonLines:
    """Records of a `.jsonl` file by number; blank lines are none. Only the offsets are held, on disk where kept."""

    def __init__(self, path: str | Path, *, index_dir: Path | None = None) -> None:
        self.path = regular_file(path)
        self.folder = self.path.parent
        self._starts = load_index(self.path, "lines", index_lines, index_dir)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, number: int) -> Any:
        return decode_record(self.line(number))

    def line(self, number: int) -> bytes:
        """The line as it is, without its end. Raises RecordError for one that is too long."""
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        # The next record's start lies behind blank lines too: only what a record may measure is read of them.
        line = read_range(self.path, start, min(end - start, samples.MAX_RECORD_BYTES + 1))
        line = line.partition(b"\n")[0]
        if len(line) > samples.MAX_RECORD_BYTES:
            raise RecordError("too long", f"the record is longer than {samples.MAX_RECORD_BYTES} bytes")
        return line

    def where(self, number: int) -> str:
        return f"{os.fspath(self.path)}, record {number + 1}"
