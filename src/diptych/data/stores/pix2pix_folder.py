"""InstructPix2Pix as its authors give it out: folders of image pairs, listed in `seeds.json`.

Layout of `clip-filtered-dataset` (timothybrooks/instruct-pix2pix, arXiv 2211.09800): `seeds.json`, an array of
`[FOLDER, [SEED, ...]]`; in each FOLDER (such as `shard-00/0000123`) `prompt.json` with `input`, `edit`, `output`, and
for each seed `SEED_0.jpg`, the image before, and `SEED_1.jpg`, the image after. Known from: the repository's
`edit_dataset.py`. Not confirmed: the keys of `prompt.json` other than `edit`. Never read from the real folder.

The same pairs as a table are `timbrooks/instructpix2pix-clip-filtered` on the Hub: parquet, read as it is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.images import resolve_inside
from diptych.data.samples import MAX_RECORD_BYTES, RecordError, decode_record, kind_of
from diptych.data.stores.json_array import JsonArray
from diptych.data.stores.record_store import regular_file


class Pix2PixFolder:
    """A record per pair, in the order of `seeds.json`: `instruction`, `input_image`, `output_image`.

    Raises ValueError if there is no `seeds.json`, or it is none.
    """

    def __init__(self, folder: str | Path, *, index_dir: Path | None = None) -> None:
        self.folder = Path(folder)
        listed = JsonArray(regular_file(self.folder / "seeds.json"), index_dir=index_dir)
        names: list[str] = []
        seeds: list[str] = []
        ends = []
        for number in range(len(listed)):
            entry = listed.read(number)
            if not (
                isinstance(entry, list)
                and len(entry) == 2
                and isinstance(entry[0], str)
                and isinstance(entry[1], list)
                and all(isinstance(seed, str) or type(seed) is int for seed in entry[1])
            ):
                raise ValueError(f"{listed.where(number)} must be [folder, [seed, ...]], not {str(entry)[:100]}")
            names.append(entry[0])
            seeds += map(str, entry[1])
            ends.append(len(seeds))
        self._names, self._seeds = names, seeds
        self._ends = np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._seeds)

    def read(self, number: int) -> Any:
        name, seed = self._place(number)
        try:
            path = resolve_inside(self.folder, f"{name}/prompt.json")
            with path.open("rb") as file:
                data = file.read(MAX_RECORD_BYTES + 1)
        except ValueError as error:
            raise RecordError("image path", str(error)) from None
        except OSError as error:
            raise RecordError("missing prompt", f"{name}/prompt.json cannot be read: {error.strerror}") from None
        if len(data) > MAX_RECORD_BYTES:
            raise RecordError("too long", f"{name}/prompt.json is longer than {MAX_RECORD_BYTES} bytes")
        prompt = decode_record(data)
        if not isinstance(prompt, dict):
            raise RecordError("structure", f"{name}/prompt.json must be an object with edit, not {kind_of(prompt)}")
        return {
            "instruction": prompt.get("edit"),
            "input_image": f"{name}/{seed}_0.jpg",
            "output_image": f"{name}/{seed}_1.jpg",
        }

    def where(self, number: int) -> str:
        name, seed = self._place(number)
        return f"{os.fspath(self.folder / name)}, seed {seed}"

    def _place(self, number: int) -> tuple[str, str]:
        return self._names[int(np.searchsorted(self._ends, number, side="right"))], self._seeds[number]
