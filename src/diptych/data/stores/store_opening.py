"""Which store a path is: told by its ending, by what a folder holds, or by the source's `store:`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from diptych.data.stores.coco_captions import CocoCaptions
from diptych.data.stores.delimited import DelimitedTable
from diptych.data.stores.headless_table import HeadlessTable
from diptych.data.stores.image_folder import IMAGE_SUFFIXES, TABLE_NAMES, open_image_folder
from diptych.data.stores.json_array import JsonArray
from diptych.data.stores.json_lines import JsonLines
from diptych.data.stores.pix2pix_folder import Pix2PixFolder
from diptych.data.stores.record_store import RecordStore
from diptych.data_settings import SourceConfig

_ENDINGS = {
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".json": "json_array",
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "parquet",
    ".tar": "webdataset",
}
_ARCHIVES = (".zip", ".tgz", ".gz", ".zst", ".bz2", ".xz", ".7z", ".rar")


def open_store(source: SourceConfig, *, index_dir: Path | None = None) -> RecordStore:
    """Opens what a source's `path` names; no record is read. `index_dir`: where indices of large files are kept.

    Raises ValueError that names the path: nothing is there, it is no store, or it could be two.
    """
    kind = source.store or recognise_store(source.path)
    if kind == "json_lines":
        return JsonLines(source.path, index_dir=index_dir)
    if kind == "json_array":
        return JsonArray(source.path, index_dir=index_dir)
    if kind == "table":
        return DelimitedTable(source.path, index_dir=index_dir)
    if kind == "image_folder":
        return open_image_folder(source.path, index_dir=index_dir)
    if kind == "headless_table":
        return HeadlessTable(source.path, index_dir=index_dir)
    if kind == "coco_captions":
        return CocoCaptions(source.path)
    if kind == "pix2pix_folder":
        return Pix2PixFolder(source.path, index_dir=index_dir)
    if kind in ("parquet", "webdataset"):
        from diptych.data.stores.parquet import ParquetTable
        from diptych.data.stores.webdataset import TarShards, expand_shards

        ending = ".parquet" if kind == "parquet" else ".tar"
        if os.path.isdir(source.path):
            folder = Path(source.path)
            paths = sorted(str(path) for path in folder.rglob(f"*{ending}"))
        else:
            paths = expand_shards(source.path)
            folder = Path(paths[0]).parent
        if not paths:
            raise ValueError(f"folder {folder} holds no {ending} files")
        return ParquetTable(paths, folder=folder) if kind == "parquet" else TarShards(paths, index_dir=index_dir)
    from diptych.data.stores.hub_dataset import SavedDataset, stream_hub_dataset

    if kind == "saved_dataset":
        return SavedDataset(source.path, split=source.split)
    if source.limit is None:
        raise ValueError(f"{source.path} is streamed, and its length is not known; say with `limit:` how much of it")
    name = source.path.removeprefix("hub:")
    return stream_hub_dataset(name, subset=source.subset, split=source.split or "train", length=source.limit)


def recognise_store(path: str) -> str:
    """The `store:` that a path is. Raises ValueError if it is none, or could be two."""
    if path.startswith("hub:"):
        return "hub"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", path):
        raise ValueError(f"source {path[:200]!r} names a scheme; a source is a file, a folder, or hub:OWNER/NAME")
    if os.path.isdir(path):
        return _recognise_folder(Path(path))
    ending = os.path.splitext(path)[1].lower()
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    if ending in _ARCHIVES:
        raise ValueError(f"source {path} is an archive with no random access; unpack it")
    if not os.path.exists(path) and not any(mark in path for mark in "*?[{"):
        raise ValueError(
            f"data file {path} does not exist; build it first, such as with: diptych data build emoji --out DIR"
        )
    raise ValueError(f"source {path} ends in none of {', '.join(_ENDINGS)}; name what it is with `store:`")


def _recognise_folder(folder: Path) -> str:
    if (folder / "state.json").is_file() or any(folder.glob("*/state.json")):
        return "saved_dataset"
    if any((folder / name).is_file() for name in TABLE_NAMES):
        return "image_folder"
    found: set[str] = set()
    for _, _, names in os.walk(folder):
        endings = {os.path.splitext(name)[1].lower() for name in names}
        found |= {_ENDINGS[ending] for ending in endings & {".parquet", ".tar"}}
        if endings & IMAGE_SUFFIXES:
            found.add("image_folder")
    if len(found) > 1:
        kinds = " and ".join(sorted(found))
        raise ValueError(f"folder {folder} could be read as {kinds}; name one, such as store: {min(found)}")
    if not found:
        raise ValueError(f"folder {folder} holds no images, .parquet or .tar files; name a file in it as the path")
    return found.pop()
