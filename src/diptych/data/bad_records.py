"""Bad records in a run: another one takes the place of each, they are counted by kind, and too many end the run."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from diptych.data.samples import RecordError, Sample
from diptych.data.sources import Source

MAX_IN_A_ROW = 100
_FEW = 1000
"""Draws below which a share says little: until then as many bad records pass as it allows among so many."""
SURVEYED_RECORDS = 50_000


class RecordSkipper:
    """Reads what a run draws. The record that takes a bad one's place is the next good one of its source, so that it
    follows from the draw alone: a run that resumes behind a bad record goes on as if it had never stopped.

    `counts`: bad records met so far, by kind.
    """

    def __init__(self, sources: Sequence[Source], *, max_bad_fraction: float) -> None:
        self.sources = sources
        self.counts: Counter[str] = Counter()
        self.num_drawn = 0
        self._max_bad_fraction = max_bad_fraction
        self._lock = threading.Lock()

    def readable(
        self, picks: Sequence[tuple[int, int, int]], *, check: Callable[[Sample], None] | None = None
    ) -> list[tuple[int, int, int]]:
        """The picks (draw, source, index) with the index of a good record each.

        `check`: raises RecordError for what is wrong with a sample beyond its record; a second look at picks that are
        counted already. Raises ValueError if there are too many bad ones: more than the share allowed, or MAX_IN_A_ROW
        in a row.
        """
        if check is None:
            self.num_drawn += len(picks)
        return [(draw, source, self._good(source, index, check)) for draw, source, index in picks]

    def _good(self, source: int, index: int, check: Callable[[Sample], None] | None) -> int:
        samples = self.sources[source]
        number = index
        for step in range(min(MAX_IN_A_ROW, len(samples))):
            number = (index + step) % len(samples)
            try:
                sample = samples[number]
                if check is not None:
                    check(sample)
            except RecordError as error:
                self._count(error)
            else:
                return number
        raise ValueError(
            f"{min(MAX_IN_A_ROW, len(samples))} records in a row are bad, up to {samples.where(number)}; "
            f"so far {self.summary()}"
        )

    def _count(self, error: RecordError) -> None:
        with self._lock:
            self.counts[error.kind] += 1
        total = self.counts.total()
        if total > self._max_bad_fraction * max(self.num_drawn, _FEW if self._max_bad_fraction else 0):
            raise ValueError(
                f"{self.summary()}; correct them, or raise data.max_bad_fraction (now {self._max_bad_fraction:g}). "
                f"The last one: {error}"
            ) from error
        if self.counts[error.kind] == 1:
            warnings.warn(f"{error}; it is skipped, and so are others of its kind ({error.kind})", stacklevel=4)

    def summary(self) -> str:
        """How many were bad, of how many, by kind."""
        counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(self.counts.items()))
        return f"{self.counts.total()} of {self.num_drawn} records are bad ({counts})"


def survey_images(
    sources: Sequence[Source], *, max_bad_fraction: float, max_records: int = SURVEYED_RECORDS
) -> list[list[str]] | None:
    """The images of each source in the order of its records, as often as they are named, if all of them together hold
    at most `max_records` records; None if they hold more: then nothing is read.

    Raises ValueError for a source of which more than `max_bad_fraction` is bad, or all; fewer are a warning.
    """
    if sum(map(len, sources)) > max_records:
        return None
    found = []
    for source in sources:
        counts: Counter[str] = Counter()
        images: list[str] = []
        first = None
        for sample in good_samples(source, counts):
            if isinstance(sample, RecordError):
                first = first or sample
            else:
                images += sample.images
        if first is not None:
            _report(source, counts, first, max_bad_fraction)
        found.append(images)
    return found


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
