"""Files of samples that are kept out of a training, read as the training's own sources are."""

from __future__ import annotations

from pathlib import Path

from diptych.data.sources import Source
from diptych.data_settings import DataConfig, SourceConfig

OF_ONE_PATH = {"path": "", "weight": 1, "limit": None, "epochs": None, "tokens": None, "split": None, "subset": None}
"""Settings that say which records a source holds, not how they are read."""


def open_held_out(path: Path, data: DataConfig) -> list[Source]:
    """A held-out file with the settings of the sources in its folder (of all of them where none is): once for each
    way of reading that they differ in.

    Raises ValueError if it can be opened in none of these ways.
    """
    folder = path.resolve().parent
    beside = [source for source in data.sources if Path(source.path).resolve().parent == folder]
    ways: list[SourceConfig] = []
    for source in beside or data.sources:
        way = source.model_copy(update=OF_ONE_PATH | {"path": str(path), "store": _store(source, path)})
        if way not in ways:
            ways.append(way)
    opened, failure = [], None
    for way in ways:
        try:
            opened.append(Source(way, data))
        except ValueError as error:
            failure = failure or error
    if not opened and failure is not None:
        raise failure
    return opened


def _store(source: SourceConfig, path: Path) -> str | None:
    """Only of a file with the same ending."""
    return source.store if Path(source.path).suffix == path.suffix else None
