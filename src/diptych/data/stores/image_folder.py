"""A folder of images with captions: a `.txt` beside each image, or a table that names the images.

The table is `metadata.jsonl`, `metadata.csv` or `metadata.tsv` (a column `file_name`), as Hugging Face's ImageFolder
has it; the folder may hold any of the three, but only one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diptych.data import samples
from diptych.data.images import resolve_inside
from diptych.data.samples import RecordError
from diptych.data.stores.delimited import DelimitedTable
from diptych.data.stores.json_lines import JsonLines
from diptych.data.stores.record_store import RecordStore
from diptych.data.stores.string_table import StringTable

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
TABLE_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
MAX_CAPTION_BYTES = 1_000_000


class ImageFolder:
    """Images under a folder, in the order of their names, each with the text beside it. Links to folders are not
    followed. Raises ValueError if there is no image."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._names = StringTable(_image_names(self.folder))
        if not len(self._names):
            raise ValueError(f"folder {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")

    def __len__(self) -> int:
        return len(self._names)

    def read(self, number: int) -> Any:
        name = self._names[number]
        record: dict[str, Any] = {"image": name}
        text = os.path.splitext(name)[0] + ".txt"
        try:
            location = resolve_inside(self.folder, text)
            if location.is_file():
                with location.open("rb") as file:
                    data = file.read(MAX_CAPTION_BYTES + 1)
                if len(data) > MAX_CAPTION_BYTES:
                    raise RecordError("too long", f"the caption of {name!r} is longer than {MAX_CAPTION_BYTES} bytes")
                record["caption"] = data.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise RecordError("encoding", f"the caption of {name!r} is not UTF-8 at byte {error.start}") from None
        except OSError as error:
            raise RecordError("missing caption", f"the caption of {name!r} cannot be read: {error.strerror}") from None
        except RecordError:
            raise
        except ValueError as error:
            raise RecordError("image path", str(error)) from None
        if not record.get("caption"):
            raise RecordError("missing caption", f"image {name!r} has no caption; put it into {text!r}")
        return record

    def where(self, number: int) -> str:
        return f"{self.folder / self._names[number]}"


class TabledImages:
    """The records of a folder's table, each with its `file_name` as `image`."""

    def __init__(self, table: RecordStore) -> None:
        self._table = table
        self.folder = table.folder

    def __len__(self) -> int:
        return len(self._table)

    def read(self, number: int) -> Any:
        record = self._table.read(number)
        if not isinstance(record, dict):
            raise RecordError("structure", f"a record is an object with file_name, not {samples.kind_of(record)}")
        if "file_name" in record and "image" not in record:
            record = {"image": record["file_name"], **{k: v for k, v in record.items() if k != "file_name"}}
        return record

    def where(self, number: int) -> str:
        return self._table.where(number)


def open_image_folder(folder: str | Path, *, index_dir: Path | None = None) -> RecordStore:
    """A folder's table if it has one, else its images with the texts beside them. Raises ValueError if it has two."""
    tables = [name for name in TABLE_NAMES if (Path(folder) / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"folder {folder} holds {' and '.join(tables)}; name one of the two as the source's path")
    if not tables:
        return ImageFolder(folder)
    path = Path(folder) / tables[0]
    opener = JsonLines if path.suffix == ".jsonl" else DelimitedTable
    return TabledImages(opener(path, index_dir=index_dir))


def _image_names(folder: Path) -> Iterator[str]:
    """Relative names with forward slashes, folder by folder."""
    pending = [""]
    while pending:
        inside = pending.pop()
        try:
            with os.scandir(folder / inside) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"folder {folder / inside} cannot be read: {error.strerror}") from None
        pending += [f"{inside}{e.name}/" for e in reversed(found) if e.is_dir(follow_symlinks=False)]
        for entry in found:
            if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not entry.is_dir(follow_symlinks=False):
                yield inside + entry.name
