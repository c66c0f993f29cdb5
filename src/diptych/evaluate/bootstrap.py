"""How sure a mean is: the percentile bootstrap, seeded."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

NUM_RESAMPLES = 10_000
_DRAWS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Estimate:
    """A mean over `num` values, and the 2.5% and 97.5% points of the means of resamples."""

    mean: float
    interval: tuple[float, float]
    num: int


def estimate_mean(
    values: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimate:
    """The mean with its 95% bootstrap interval. Raises ValueError for no values, and for one that is not finite.

    `groups`: of each value what it shares with others, such as the image that is asked about. Values of one group go
    together, so groups are resampled as wholes: a hundred questions on ten images are no hundred independent ones.

    A resample is drawn as counts of the distinct values, so that a share of 10,000 costs no more than one of ten.
    Paired differences are values like any other: their interval is that of a paired bootstrap.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise ValueError("a mean needs at least one value")
    if not np.isfinite(array).all():
        raise ValueError("a mean of values that are not finite says nothing; look at the rows of the results")
    if groups is not None and len(set(groups)) < len(array):
        sums: dict[Hashable, list[float]] = {}
        for group, value in zip(groups, values, strict=True):
            sums.setdefault(group, []).append(value)
        totals, counts = zip(*((sum(own), len(own)) for own in sums.values()), strict=True)
        return replace(estimate_ratio(totals, counts, seed=seed, num_resamples=num_resamples), num=len(array))
    distinct, counts = np.unique(array, return_counts=True)
    generator = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    at_once = max(1, _DRAWS_AT_ONCE // len(distinct))
    for start in range(0, num_resamples, at_once):
        drawn = generator.multinomial(len(array), counts / len(array), size=min(at_once, num_resamples - start))
        means.append(drawn @ distinct / len(array))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Estimate(float(array.mean()), (float(low), float(high)), len(array))


def estimate_ratio(
    totals: Sequence[float], counts: Sequence[float], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """The sum of `totals` over the sum of `counts`, such as nats over tokens, with the 95% bootstrap interval over
    pairs of them. Raises ValueError for none, for one that is not finite, and for a count below 1."""
    both = np.asarray([totals, counts], dtype=np.float64)
    if not both.size or not np.isfinite(both).all() or both[1].min() < 1:
        raise ValueError("a ratio needs at least one pair, finite, with counts of 1 or more")
    top, bottom = resample_sums(both.T, seed=seed, num_resamples=num_resamples).T
    low, high = np.percentile(top / bottom, [2.5, 97.5])
    return Estimate(float(both[0].sum() / both[1].sum()), (float(low), float(high)), both.shape[1])


def resample_sums(rows: np.ndarray, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """Sums [R, K] over each of R resamples of rows [N, K]: all that a score which is made of sums asks for."""
    num = len(rows)
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // num)
    sums = [
        generator.multinomial(num, np.full(num, 1 / num), size=min(at_once, num_resamples - start)) @ rows
        for start in range(0, num_resamples, at_once)
    ]
    return np.concatenate(sums)
