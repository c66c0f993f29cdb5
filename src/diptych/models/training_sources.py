"""The sources of a recipe as a training draws from them: samples when they are drawn, images encoded when they are due.

A small set's images are all encoded before the first step, in batches, which is fast; a large set's when a micro-batch
holds them. Neither grows with the set: what is kept in memory of either is bounded.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from diptych.config import Recipe
from diptych.data.bad_records import good_samples, survey_images
from diptych.data.packing import Pick
from diptych.data.recently_used import RecentlyUsed
from diptych.data.samples import RecordError, Sample
from diptych.data.sources import Source, open_sources
from diptych.models.encoded_images import EncodedImages
from diptych.sequence import ImageSpan
from diptych.sequence import Sequence as Stream

PREPARED_IMAGES = 8192
"""A set with no more is encoded as a whole before the first step."""
STREAMS_KEPT = 65_536
STREAM_BYTES_KEPT = 500_000_000
LENGTHS_KEPT = 1_000_000
NO_IMAGE = torch.zeros(0)
"""In place of an image in a sequence of which only the length is asked."""
_BYTES_PER_TOKEN = 48

WantedImages = Callable[[Sample], Iterable[str]]
"""The images of a sample that an encoder is to see."""

K = TypeVar("K")
V = TypeVar("V")


def all_images(sample: Sample) -> Iterable[str]:
    """Read or drawn."""
    return sample.images


def drawn_images(sample: Sample) -> Iterable[str]:
    """Those that are learnt to be drawn."""
    return [sample.images[index] for index in sorted(sample.target_images())]


def read_images(sample: Sample) -> Iterable[str]:
    """Those that are read: all but a drawn one with nothing behind it."""
    parts = [part for message in sample.messages for part in message.parts]
    unread = sample.target_images() & set(parts[-1:])
    return [image for index, image in enumerate(sample.images) if index not in unread]


class TrainingSources:
    """`samples[source][index]`: the sample; `prepare(picks)`: encodes their images, in one batch.

    `images`: of a small set all of them, source by source, in the order of its records; None for a large one.
    Raises ValueError as `open_sources` does, and for a small set that holds too many bad records.
    """

    def __init__(self, recipe: Recipe, *, cache_dir: Path | None) -> None:
        index_dir = cache_dir / "indices" if cache_dir is not None else None
        self.samples = open_sources(recipe.data, index_dir=index_dir)
        self.images = survey_images(self.samples, max_bad_fraction=recipe.data.max_bad_fraction, index_dir=index_dir)
        self._encoders: list[tuple[EncodedImages, WantedImages]] = []

    def num_samples(self) -> tuple[int, ...]:
        return tuple(map(len, self.samples))

    def encode_with(self, *encoders: EncodedImages, wanted: WantedImages = all_images) -> None:
        """From now on samples' images, or the `wanted` ones of them, are encoded with these too; a small set's now."""
        self._encoders += [(encoder, wanted) for encoder in encoders]
        if self.images is not None:
            everything = {image for images in self.images for image in images}
            if len(everything) <= PREPARED_IMAGES:
                if wanted is not all_images:
                    everything = {image for sample in self._good_samples() for image in wanted(sample)}
                for encoder in encoders:
                    _prepare_what_can_be(encoder, everything)
                self.flush()

    def prepare(self, picks: Sequence[Pick]) -> None:
        """Encodes what the picks' samples show, so that the encoders' `load` is a look-up. Raises RecordError for a bad
        record too."""
        samples = [self.samples[source][index] for _, source, index in picks]
        for encoder, wanted in self._encoders:
            _encode(encoder, [image for sample in samples for image in wanted(sample)])

    def encode(self, images: Sequence[str]) -> None:
        """With all encoders. Raises RecordError for an image of which nothing can be made."""
        for encoder, _ in self._encoders:
            _encode(encoder, images)

    def flush(self) -> None:
        """Brings what was encoded to the disk; a warning where it cannot be written."""
        for encoder, _ in self._encoders:
            try:
                encoder.flush()
            except ValueError as error:  # the training is worth more than a cache
                warnings.warn(str(error), stacklevel=2)

    def spread(self, source: int, count: int) -> list[int]:
        """Indices of about `count` good records, evenly over a source; of a stream, without a way back, the first."""
        samples = self.samples[source]
        wanted = range(0, len(samples), max(1, len(samples) // count))
        if samples.config.is_stream:
            wanted = range(min(count, len(samples)))
        return [index for index in wanted if self._is_good(samples, index)]

    def some_images(self, count: int, source: int | None = None) -> list[str]:
        """All images of a small set, as often as its records name them; of a large one, those of about `count` records
        of each source. `source`: of this one alone."""
        chosen = range(len(self.samples)) if source is None else [source]
        if self.images is not None:
            return [image for own in chosen for image in self.images[own]]
        return [i for own in chosen for index in self.spread(own, count) for i in self.samples[own][index].images]

    def _good_samples(self) -> Iterable[Sample]:
        for source in self.samples:
            yield from (sample for sample in good_samples(source, Counter()) if isinstance(sample, Sample))

    @staticmethod
    def _is_good(samples: Source, index: int) -> bool:
        try:
            return bool(samples[index].messages)
        except RecordError:
            return False


def _encode(encoder: EncodedImages, images: Sequence[str]) -> None:
    try:
        encoder.prepare(images)
    except RecordError:
        raise
    except ValueError as error:
        raise RecordError("image", str(error)) from error


def _prepare_what_can_be(encoder: EncodedImages, images: set[str]) -> None:
    """An image of which nothing can be made is told, and skipped, when a sample that shows it is drawn."""
    try:
        encoder.prepare(images)
    except ValueError:
        for image in sorted(images):
            with suppress(ValueError):
                encoder.prepare([image])


def usable(items: Iterable[K], make: Callable[[K], V]) -> tuple[list[tuple[K, V]], list[ValueError]]:
    """(item, what `make` gives of it) of those that it can be made of, in order; and what was raised for the others.

    What looks at some of the samples beside the training leaves out what the training would skip.
    """
    made, errors = [], []
    for item in items:
        try:
            made.append((item, make(item)))
        except ValueError as error:
            errors.append(error)
    return made, errors


def some_usable(items: Iterable[K], make: Callable[[K], V]) -> list[tuple[K, V]]:
    """The first of what `usable` gives. Raises the first ValueError if nothing is left."""
    made, errors = usable(items, make)
    if errors and not made:
        raise errors[0]
    return made


def kept_lengths() -> RecentlyUsed:
    """How many tokens sequences have, by what they are made of."""
    return RecentlyUsed(LENGTHS_KEPT)


def kept_streams() -> RecentlyUsed:
    """Sequences by what they are made of: as many as memory is for, the ones used last."""
    return RecentlyUsed(STREAMS_KEPT, max_total=STREAM_BYTES_KEPT, size_of=_stream_bytes)


def _stream_bytes(stream: Stream) -> int:
    images = sum(span.image.nbytes + len(span.source) for span in stream.spans if isinstance(span, ImageSpan))
    return images + _BYTES_PER_TOKEN * len(stream)
