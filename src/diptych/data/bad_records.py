"""What of a set's records is bad, told before a training begins: counted by kind, and refused where it is too much."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from diptych.data.references import WebImage
from diptych.data.samples import RecordError, Sample
from diptych.data.sources import Source
from diptych.data.stores.offset_index import keep, kept_file, read_kept

SURVEYED_RECORDS = 50_000
SURVEYED_BYTES = 100_000_000
"""Of the names of images; records that hold their images have long ones."""
FEWEST_KEPT_RECORDS = 1000
"""Fewer are read faster than what is kept of them is found."""


def survey_images(
    sources: Sequence[Source],
    *,
    max_bad_fraction: float,
    index_dir: Path | None = None,
    max_records: int = SURVEYED_RECORDS,
    max_bytes: int = SURVEYED_BYTES,
) -> list[list[str]] | None:
    """The images of each source in the order of its records, as often as they are named, if all of them together hold
    at most `max_records` records, and none is a stream, which would have to be read twice; else None, and nothing is
    read. None also as soon as the images' names are longer than `max_bytes`.

    `index_dir`: where the images of a source that is one file, with no bad record, are kept until the file changes, so
    that the next run need not read it. An image that goes away meanwhile is told when it is drawn.
    Raises ValueError for a source of which more than `max_bad_fraction` is bad, or all; fewer are a warning.
    """
    if sum(map(len, sources)) > max_records or any(source.config.is_stream for source in sources):
        return None
    found, num_bytes = [], 0
    for source in sources:
        kept = _kept_file(source, index_dir)
        images = _read_images(kept)
        if images is not None:
            found.append(images)
            continue
        counts: Counter[str] = Counter()
        images = []
        first = None
        for sample in good_samples(source, counts):
            if isinstance(sample, RecordError):
                first = first or sample
            else:
                images += sample.images
                num_bytes += sum(map(len, sample.images))
                if num_bytes > max_bytes:
                    return None
        if first is not None:
            _report(source, counts, first, max_bad_fraction)
        elif kept is not None and not any(isinstance(image, WebImage) for image in images):
            keep(kept, np.frombuffer(json.dumps(images).encode(), np.uint8), of=Path(source.config.path))
        found.append(images)
    return found


def _kept_file(source: Source, index_dir: Path | None) -> Path | None:
    path = Path(source.config.path)
    if index_dir is None or len(source) < FEWEST_KEPT_RECORDS or not path.is_file():
        return None
    settings = source.config.model_dump_json(exclude={"path", "weight", "epochs", "tokens"})
    return kept_file(path, f"images {source.root} {settings}", index_dir)


def _read_images(kept: Path | None) -> list[str] | None:
    found = read_kept(kept) if kept is not None else None
    try:
        return None if found is None else json.loads(found.tobytes())
    except ValueError as error:
        warnings.warn(f"{kept} is damaged ({error}); it is made again", stacklevel=4)
        return None


def good_samples(source: Source, counts: Counter[str]) -> Iterator[Sample | RecordError]:
    """Every sample of a source in order, or what is wrong with it; `counts` counts these by kind."""
    for number in range(len(source)):
        try:
            yield source[number]
        except RecordError as error:
            counts[error.kind] += 1
            yield error


def _report(source: Source, counts: Counter[str], first: RecordError, max_bad_fraction: float) -> None:
    kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items()))
    bad = counts.total()
    summary = f"{source.config.path}: {bad} of {len(source)} records are bad ({kinds}); the first: {first}"
    if bad > max_bad_fraction * len(source) or bad == len(source):
        raise ValueError(f"{summary}; correct them, or raise data.max_bad_fraction (now {max_bad_fraction:g})")
    warnings.warn(f"{summary}; they are skipped", stacklevel=4)
