"""Tables without a header, split at tabs alone: web-scale lists of images and captions.

Conceptual 12M (`cc12m.tsv`): URL, tab, caption, one a line, no header, no quoting; 12.4 million lines. Known from: the
card of the set on the Hub, whose loader splits each line at its one tab. Conceptual Captions (3M) has them the other
way round. The columns are called "0", "1" and so on: `columns: {image: "0", caption: "1"}` says which is which.

The images are on the web: such a source is read only where `data.allow_urls` lists their hosts, which for these sets
are far too many. Everybody fetches them once (img2dataset), and so should you: docs/data.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diptych.data import samples
from diptych.data.samples import RecordError
from diptych.data.stores.offset_index import index_lines, load_index, read_range
from diptych.data.stores.record_store import regular_file


class HeadlessTable:
    """Lines of a `.tsv` file by number, each an object of its cells; an empty cell is no field, a blank line none."""

    def __init__(self, path: str | Path, *, index_dir: Path | None = None) -> None:
        self.path = regular_file(path)
        self.folder = self.path.parent
        self._starts = load_index(self.path, "lines", index_lines, index_dir)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, number: int) -> Any:
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        # The next line's start lies behind blank lines too.
        line = read_range(self.path, start, min(end - start, samples.MAX_RECORD_BYTES + 1)).partition(b"\n")[0]
        if len(line) > samples.MAX_RECORD_BYTES:
            raise RecordError("too long", f"the record is longer than {samples.MAX_RECORD_BYTES} bytes")
        try:
            cells = line.decode("utf-8-sig" if start == 0 else "utf-8").rstrip("\r").split("\t")
        except UnicodeDecodeError as error:
            raise RecordError("encoding", f"not UTF-8 at byte {error.start}") from None
        if len(cells) < 2:
            raise RecordError("structure", "a line without a tab; cells are split at tabs")
        return {str(place): cell for place, cell in enumerate(cells) if cell}

    def where(self, number: int) -> str:
        return f"{os.fspath(self.path)}, line {number + 1}"
