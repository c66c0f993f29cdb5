"""Which rows of a suite its page shows, and small copies of the images that they were asked with, kept beside the rows:
the page is drawn from the folder alone, also when the data is elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.images import open_image
from diptych.evaluate.suite import Example, Metric, Row
from diptych.models.morph_files import replace_whole

NUM_SOME, NUM_WORST = 32, 24
NUM_IMAGES = 6
"""Of one row, each of those read and those drawn."""
SHOWN_SIZE = 160
"""Pixels of the longer side of an image on the page; files of answers are whole."""


def choose_some(rows: Sequence[Row]) -> list[Row]:
    """So many by the hash of their ids: always the same."""
    return sorted(rows, key=_draw)[:NUM_SOME]


def choose_worst(rows: Sequence[Row], metrics: Sequence[Metric]) -> list[Row]:
    """Those below the best score, worst first, by the first metric and among equals by the next; where all metrics are
    equal, kinds take turns."""
    headline = metrics[0]
    scored = [row for row in rows if headline.name in row.scores]
    best = max((_goodness(row, headline) for row in scored), default=0.0)
    best = max(best, 1.0) if headline.unit == "share" else best
    turns: dict[tuple[tuple[float, ...], str], int] = {}
    ranked = []
    for row in sorted(scored, key=_draw):
        if _goodness(row, headline) < best:
            values = tuple(_goodness(row, metric) for metric in metrics)
            turn = turns[values, row.kind] = turns.get((values, row.kind), 0) + 1
            ranked.append((values, turn, row.kind, row.id, row))
    return [row for *_, row in sorted(ranked, key=lambda entry: entry[:4])[:NUM_WORST]]


def _goodness(row: Row, metric: Metric) -> float:
    return row.scores.get(metric.name, 0.0) * (1 if metric.higher_is_better else -1)


def _draw(row: Row) -> bytes:
    return hashlib.sha256(row.id.encode()).digest()


@dataclass(frozen=True)
class ShownImages:
    """Of one row, small: what it was asked with, what is right (and may be what it was asked with), what was drawn."""

    asked: list[Image.Image]
    right: list[Image.Image]
    drawn: list[Image.Image]


def keep_shown(examples: Sequence[Example], rows: Sequence[Row], metrics: Sequence[Metric], folder: Path) -> None:
    """Writes small copies of the images that the rows which will be shown were asked with, where they are missing.
    `rows`: of one suite; `examples`: its own, with these ids."""
    by_id = {example.id: example for example in examples}
    for row in {row.id: row for row in (*choose_some(rows), *choose_worst(rows, metrics))}.values():
        example = by_id[row.id]
        right = example.reference_image
        for number, path in enumerate(_spread([path for path in example.images if path != right])):
            _keep(path, folder / _name(row, f"asked-{number}"))
        if right is not None:
            _keep(right, folder / _name(row, "right"))


def open_shown(row: Row, folder: Path) -> ShownImages:
    """The images of a row that `keep_shown` was given."""
    asked = (folder / _name(row, f"asked-{number}") for number in range(NUM_IMAGES))
    return ShownImages(
        asked=[open_image(path) for path in asked if path.is_file()],
        right=[open_image(path) for path in (folder / _name(row, "right"),) if path.is_file()],
        drawn=[_small(folder / path) for path in _spread(row.images)],
    )


def _spread(entries: Sequence[Any]) -> list[Any]:
    """At most NUM_IMAGES of them, from the first to the last."""
    last = len(entries) - 1
    if last < NUM_IMAGES:
        return list(entries)
    return [entries[round(k * last / (NUM_IMAGES - 1))] for k in range(NUM_IMAGES)]


def _name(row: Row, what: str) -> str:
    return f"shown/{row.suite}/{hashlib.sha256(row.id.encode()).hexdigest()[:16]}-{what}.png"


def _keep(path: Path, copy: Path) -> None:
    if copy.exists():
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    image = _small(path)
    replace_whole(copy, lambda partial: image.save(partial, format="PNG"))


def _small(path: Path) -> Image.Image:
    image = open_image(path)
    image.thumbnail((SHOWN_SIZE, SHOWN_SIZE))
    return image
