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

from diptych.data.samples import RecordError
from diptych.data.stores.json_lines import JsonLines


class HeadlessTable:
    """Lines of a `.tsv` file by number, each an object of its cells; an empty cell is no field, a blank line none."""

    def __init__(self, path: str | Path, *, index_dir: Path | None = None) -> None:
        self._lines = JsonLines(path, index_dir=index_dir)  # by their offsets; what they hold is not JSON
        self.path, self.folder = self._lines.path, self._lines.folder

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, number: int) -> Any:
        line = self._lines.line(number)
        try:
            cells = line.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r").split("\t")
        except UnicodeDecodeError as error:
            raise RecordError("encoding", f"not UTF-8 at byte {error.start}") from None
        if len(cells) < 2:
            raise RecordError("structure", "a line without a tab; cells are split at tabs")
        return {str(place): cell for place, cell in enumerate(cells) if cell}

    def where(self, number: int) -> str:
        return f"{os.fspath(self.path)}, line {number + 1}"
