"""COCO's captions: one JSON object whose `annotations` name their images by number.

Layout of `annotations/captions_train2017.json` (cocodataset.org, arXiv 1504.00325): an object with `info`, `licenses`,
`images` (a list of `id`, `file_name`, `width`, `height` and more) and `annotations` (a list of `id`, `image_id`,
`caption`): 118 thousand images, 592 thousand captions. The images are `train2017/000000000009.jpg` and so on, apart
from the annotations: the source's `image_root` names their folder. Of 2014's files `file_name` begins with COCO_.
Known from: the format page of cocodataset.org as two public pages repeat it. Never read from the real file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.samples import RecordError, decode_record
from diptych.data.stores.record_store import regular_file
from diptych.data.stores.string_table import StringTable

MAX_FILE_BYTES = 1_000_000_000
"""Read as a whole once, and then held as its names and captions alone: 60 MB for captions_train2017.json."""


class CocoCaptions:
    """A record per caption, in the file's order: `image` its file name, `caption`, `id` the annotation's.

    Raises ValueError that names the file for one that is no such object. Captions that are no text, or of an image
    that the file does not list, are bad records: they are counted, and the others are read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = regular_file(path)
        self.folder = self.path.parent
        if self.path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path} has more than {MAX_FILE_BYTES:,} bytes; COCO's captions have 90 million")
        try:
            content = decode_record(self.path.read_bytes())
        except RecordError as error:
            raise ValueError(f"{path}: {error}") from None
        images, annotations = (content.get(key) if isinstance(content, dict) else None for key in _KEYS)
        if not isinstance(images, list) or not isinstance(annotations, list):
            raise ValueError(f"{path} must be an object with the lists images and annotations, as COCO's captions are")
        names: dict[int, str] = {
            image["id"]: image["file_name"]
            for image in images
            if isinstance(image, dict) and type(image.get("id")) is int and isinstance(image.get("file_name"), str)
        }
        place = {number: index for index, number in enumerate(names)}
        entries = [entry if isinstance(entry, dict) else {} for entry in annotations]
        self._names = StringTable(names.values())
        self._captions = StringTable(
            entry["caption"] if isinstance(entry.get("caption"), str) else "" for entry in entries
        )
        of_image = (entry.get("image_id") for entry in entries)
        self._images = np.array([place.get(number, -1) if type(number) is int else -1 for number in of_image], np.int64)
        numbers = (entry.get("id") for entry in entries)
        self._ids = np.array([number if type(number) is int else -1 for number in numbers], np.int64)

    def __len__(self) -> int:
        return len(self._captions)

    def read(self, number: int) -> Any:
        image, caption = int(self._images[number]), self._captions[number]
        if image < 0:
            raise RecordError("missing image", "its image_id is none of the file's images")
        if not caption.strip():
            raise RecordError("empty", "its caption is empty, or no text")
        return {"image": self._names[image], "caption": caption, "id": int(self._ids[number])}

    def where(self, number: int) -> str:
        return f"{os.fspath(self.path)}, annotation {number + 1}"


_KEYS = ("images", "annotations")
