"""The order of samples: which source and which sample is drawn at every draw of a run, computed, never remembered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from diptych.config import Recipe


@dataclass(frozen=True)
class Mixture:
    """A deterministic, endless stream over several sources.

    Each round of `sum(weights)` turns takes exactly `weights[s]` turns from source s, evenly interleaved; a turn is
    `run_length` draws in a row (1: sources change from draw to draw; a batch's size: from batch to batch). Each source
    runs through its own seeded permutation, a new one per epoch, so that within an epoch every sample comes exactly
    once; a source that is `in_order` (a stream has no other) runs through its records as they stand. `pick` keeps no
    state: a run that resumes at draw 1,000,000 starts there at once, and ranks or workers that share the draws among
    them share the samples.

    Raises ValueError if the sources do not match the weights, a source is empty, a weight or the run length is below 1,
    or the seed is negative.
    """

    num_samples: tuple[int, ...]
    weights: tuple[int, ...]
    seed: int = 0
    run_length: int = 1
    in_order: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.num_samples or len(self.num_samples) != len(self.weights):
            raise ValueError(
                f"a mixture needs one weight per source, "
                f"got {len(self.num_samples)} sources and {len(self.weights)} weights"
            )
        for source, (count, weight) in enumerate(zip(self.num_samples, self.weights, strict=True)):
            if count <= 0:
                raise ValueError(f"source {source} of the mixture holds no samples; remove it or fill it")
            if weight <= 0:
                raise ValueError(f"source {source} of the mixture has weight {weight}; weights are whole numbers >= 1")
        if self.run_length <= 0:
            raise ValueError(f"the mixture's run length is {self.run_length}; it must be 1 or more")
        if self.seed < 0:
            raise ValueError(f"the mixture's seed is {self.seed}; it must be 0 or more")

    @property
    def round_length(self) -> int:
        """Draws after which every source has had exactly its weight."""
        return sum(self.weights) * self.run_length

    def pick(self, draw: int) -> tuple[int, int, int]:
        """(draw, source, index of the sample in its source) of the draw-th sample of the run, draw >= 0."""
        if draw < 0:
            raise ValueError(f"draw {draw} is negative; the stream of samples starts at 0")
        turn, offset = divmod(draw, self.run_length)
        number, slot = divmod(turn, sum(self.weights))
        source, own = _round_order(self.weights)[slot]
        taken = (number * self.weights[source] + own) * self.run_length + offset
        epoch, position = divmod(taken, self.num_samples[source])
        if self.in_order and self.in_order[source]:
            return draw, source, position
        return draw, source, int(_permutation(self.num_samples[source], self.seed, source, epoch)[position])


def build_mixture(recipe: Recipe, num_samples: tuple[int, ...]) -> Mixture:
    """The order that the recipe's `data` and `seed` ask for, over sources that hold `num_samples`."""
    weights = tuple(source.weight for source in recipe.data.sources)
    in_order = tuple(source.is_stream for source in recipe.data.sources)
    return Mixture(num_samples, weights, recipe.seed, samples_in_a_row(recipe), in_order)


def samples_in_a_row(recipe: Recipe) -> int:
    """How many samples of one source follow each other: one, or a micro-batch."""
    return recipe.train.per_device_train_batch_size if recipe.data.mixing == "batch" else 1


@lru_cache(maxsize=64)
def _round_order(weights: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(source, its turn within the round) per slot: turn t of a source of weight w stands at (2 t + 1) / 2 w."""
    total = 1
    for weight in set(weights):
        total *= weight
    slots = [
        ((2 * turn + 1) * (total // weight), source, turn)
        for source, weight in enumerate(weights)
        for turn in range(weight)
    ]
    return tuple((source, turn) for _, source, turn in sorted(slots))


@lru_cache(maxsize=64)
def _permutation(count: int, seed: int, source: int, epoch: int) -> np.ndarray:
    """Sorts raw generator words: their stream is promised stable by numpy, its shuffling methods are not."""
    words = np.random.PCG64(np.random.SeedSequence((seed, source, epoch))).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int32 if count < 2**31 else np.int64)
