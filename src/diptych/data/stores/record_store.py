"""The contract of a store: records on disk, read by number, and little of them in memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class RecordStore(Protocol):
    """Records by number. Opening one reads no record; any number of threads may read.

    `folder`: what the images' paths are relative to.
    """

    folder: Path

    def __len__(self) -> int: ...

    def read(self, number: int) -> Any:
        """The decoded record: an object for every good one. An image that the store holds itself is a `StoredImage`.

        Raises RecordError for one that cannot be decoded.
        """
        ...

    def where(self, number: int) -> str:
        """What to call a record in a message: its file and its number there, from 1."""
        ...


def regular_file(path: str | Path) -> Path:
    """The path of a file. Raises ValueError if nothing, or something else, is there."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise ValueError(
            f"data file {path} does not exist; build it first, such as with: diptych data build emoji --out DIR"
        ) from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"data file {path} is not a regular file")
    return path


def named_files(paths: Sequence[str | Path], ending: str) -> list[str]:
    """Absolute paths of files whose names end in `ending`: references to what is in them are told by it.

    Raises ValueError for one that does not, or is not there.
    """
    for path in paths:
        if not str(path).endswith(ending):
            raise ValueError(f"{path} must be named *{ending} to be read as one; rename it")
    return [os.path.abspath(regular_file(path)) for path in paths]


def without_nothing(value: Any) -> Any:
    """A table's value without the fields that hold nothing: a table gives every row the fields of all of them."""
    if isinstance(value, dict):
        return {key: without_nothing(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [without_nothing(entry) for entry in value]
    return value
