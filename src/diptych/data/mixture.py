"""The order of samples: which source and which sample is drawn at every draw of a run, computed, never remembered."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from diptych.config import Recipe
from diptych.data.packing import Pick

METHODS_WITH_TOKENS = ("xfusion", "vpit")
MEASURED_RECORDS = 512
"""Of a source with a budget of tokens, spread evenly over it: their mean length says how many samples the budget is."""


@dataclass(frozen=True)
class Mixture:
    """A deterministic, endless stream over several sources.

    Each round of `sum(weights)` turns takes exactly `weights[s]` turns from source s, evenly interleaved; a turn is
    `run_length` draws in a row (1: sources change from draw to draw; a batch's size: from batch to batch). Each source
    runs through its own seeded permutation, a new one per epoch, so that within an epoch every sample comes exactly
    once; a source that is `in_order` (a stream has no other) runs through its records as they stand. `pick` keeps no
    state: a run that resumes at draw 1,000,000 starts there at once, and ranks or workers that share the draws among
    them share the samples.

    `num_draws`: after so many draws (rounded up to whole turns) a source is through, and the others go on in rounds of
    their own; where every source ends, all begin again once the last is through. None, or nothing: it never is.

    Raises ValueError if the sources do not match the weights, a source is empty, a weight, a number of draws or the run
    length is below 1, or the seed is negative.
    """

    num_samples: tuple[int, ...]
    weights: tuple[int, ...]
    seed: int = 0
    run_length: int = 1
    in_order: tuple[bool, ...] = ()
    num_draws: tuple[int | None, ...] = ()

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
        if self.num_draws and len(self.num_draws) != len(self.weights):
            raise ValueError(f"{len(self.num_draws)} numbers of draws for {len(self.weights)} sources of the mixture")
        if any(draws is not None and draws <= 0 for draws in self.num_draws):
            raise ValueError(f"sources of the mixture end after {self.num_draws} draws; each must be 1 or more")
        if self.run_length <= 0:
            raise ValueError(f"the mixture's run length is {self.run_length}; it must be 1 or more")
        if self.seed < 0:
            raise ValueError(f"the mixture's seed is {self.seed}; it must be 0 or more")

    @property
    def round_length(self) -> int:
        """Draws after which every source that is not through has had exactly its weight."""
        return sum(self.weights) * self.run_length

    @cached_property
    def _ends(self) -> tuple[int | None, ...]:
        """Turns of each source after which it is through."""
        turns = tuple(draws and -(-draws // self.run_length) for draws in self.num_draws)
        return turns or (None,) * len(self.weights)

    def pick(self, draw: int) -> tuple[int, int, int]:
        """(draw, source, index of the sample in its source) of the draw-th sample of the run, draw >= 0."""
        if draw < 0:
            raise ValueError(f"draw {draw} is negative; the stream of samples starts at 0")
        turn, offset = divmod(draw, self.run_length)
        ends = self._ends
        phases, cycle = _phases(self.weights, ends)
        repeat, turn = divmod(turn, cycle) if cycle else (0, turn)
        phase = phases[bisect_right(phases, turn, key=lambda own: own.start) - 1]
        number, slot = divmod(turn - phase.start, sum(phase.weights))
        place, own = _round_order(phase.weights)[slot]
        source = phase.sources[place]
        turns = repeat * (ends[source] or 0) + phase.taken[place] + number * phase.weights[place] + own
        taken = turns * self.run_length + offset
        epoch, position = divmod(taken, self.num_samples[source])
        if self.in_order and self.in_order[source]:
            return draw, source, position
        return draw, source, int(_permutation(self.num_samples[source], self.seed, source, epoch)[position])


def build_mixture(recipe: Recipe, num_samples: tuple[int, ...], *, num_tokens: Callable[[Pick], int]) -> Mixture:
    """The order that the recipe's `data` and `seed` ask for, over sources that hold `num_samples`.

    `num_tokens`: of a pick, ValueError for one that cannot be used; asked only about sources with a budget of tokens.
    Raises ValueError for such a budget where nothing has tokens.
    """
    weights = tuple(source.weight for source in recipe.data.sources)
    in_order = tuple(source.is_stream for source in recipe.data.sources)
    num_draws: list[int | None] = []
    for source, (config, count) in enumerate(zip(recipe.data.sources, num_samples, strict=True)):
        draws = None if config.epochs is None else max(1, round(config.epochs * count))
        if config.tokens is not None:
            if recipe.method not in METHODS_WITH_TOKENS:
                raise ValueError(f"{config.path}: tokens: method {recipe.method} learns from images alone; say epochs")
            step = 1 if config.is_stream else -(-count // MEASURED_RECORDS)
            draws = max(
                1, round(config.tokens / _mean_tokens(source, range(0, count, step)[:MEASURED_RECORDS], num_tokens))
            )
        num_draws.append(draws)
    return Mixture(num_samples, weights, recipe.seed, samples_in_a_row(recipe), in_order, tuple(num_draws))


def _mean_tokens(source: int, indices: range, num_tokens: Callable[[Pick], int]) -> float:
    """Of the records that can be used. Raises the first one's ValueError if none can."""
    lengths, first = [], None
    for index in indices:
        try:
            lengths.append(num_tokens((index, source, index)))
        except ValueError as error:
            first = first or error
    if first is not None and not lengths:
        raise first
    return sum(lengths) / len(lengths)


def samples_in_a_row(recipe: Recipe) -> int:
    """How many samples of one source follow each other: one, or a micro-batch."""
    return recipe.train.per_device_train_batch_size if recipe.data.mixing == "batch" else 1


@dataclass(frozen=True)
class _Phase:
    """Turns from `start` on, in which the same sources take part; `taken`: turns that each has had before."""

    start: int
    sources: tuple[int, ...]
    weights: tuple[int, ...]
    taken: tuple[int, ...]


@lru_cache(maxsize=64)
def _phases(weights: tuple[int, ...], ends: tuple[int | None, ...]) -> tuple[tuple[_Phase, ...], int | None]:
    """The phases of a mixture whose sources are through after `ends` turns of theirs, and the turns of all of them
    together: None where the last has no end."""
    phases: list[_Phase] = []
    taken, start = [0] * len(weights), 0
    while active := [source for source, end in enumerate(ends) if end is None or taken[source] < end]:
        own = tuple(weights[source] for source in active)
        phases.append(_Phase(start, tuple(active), own, tuple(taken[source] for source in active)))
        order, length = _round_order(own), None
        for place, source in enumerate(active):
            end = ends[source]
            if end is not None:
                rounds, turn = divmod(end - taken[source] - 1, weights[source])
                last = rounds * len(order) + order.index((place, turn)) + 1
                length = last if length is None else min(length, last)
        if length is None:
            return tuple(phases), None
        rounds, rest = divmod(length, len(order))
        for place, source in enumerate(active):
            taken[source] += rounds * weights[source] + sum(one == place for one, _ in order[:rest])
        start += length
    return tuple(phases), start


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
