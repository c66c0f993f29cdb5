"""What holds for every built set: its card is a recount of it, and no sample stands in two of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from diptych.data.builders.data_card import DataCard, read_card
from diptych.data.samples import Sample, read_samples, sample_to_record


def read_all(folder: Path) -> dict[str, list[Sample]]:
    return {path.stem: read_samples(path) for path in sorted(folder.glob("*.jsonl"))}


def pictures_of(folder: Path, samples: Iterable[Sample]) -> set[str]:
    """Content hashes."""
    paths = {path for sample in samples for path in sample.images}
    return {hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in paths}


def content_hash(folder: Path, sample: Sample) -> str:
    """Of all that is said and shown, whatever files are called."""
    record = sample_to_record(sample)
    shown = [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in sample.images]
    return hashlib.sha256(json.dumps([record["messages"], shown]).encode()).hexdigest()


def check_card(folder: Path, splits: Sequence[str], *, licences: set[str]) -> DataCard:
    """Every number of the card against the files; splits disjoint by content."""
    card, samples = read_card(folder), read_all(folder)
    assert set(samples) == set(splits)
    assert card.num_samples == {f"{name}.jsonl": len(found) for name, found in samples.items()}
    assert set(card.splits) == set(card.num_samples)
    assert {licence.licence for licence in card.licences} == licences
    files = {path.relative_to(folder).as_posix() for path in folder.glob("images/*/*")}
    assert files == {path for found in samples.values() for sample in found for path in sample.images}
    assert card.counts["pictures"] == len(files)
    hashes = [content_hash(folder, sample) for found in samples.values() for sample in found]
    assert len(hashes) == len(set(hashes))
    return card


def same_files(one: Path, other: Path) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert content(one) == content(other)
