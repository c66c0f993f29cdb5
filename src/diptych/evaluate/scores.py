"""A score with what it takes to judge it: how many, what chance gives, and how sure."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """A share of successes: `value` in 0..1, of `num` trials, where guessing gives `chance`."""

    value: float
    num: int
    chance: float

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval."""
        if not self.num:
            return 0.0, 1.0
        z = 1.96
        centre = (self.value + z**2 / (2 * self.num)) / (1 + z**2 / self.num)
        spread = self.value * (1 - self.value) / self.num + z**2 / (4 * self.num**2)
        half = z / (1 + z**2 / self.num) * math.sqrt(max(0.0, spread))
        low = 0.0 if self.value == 0 else max(0.0, centre - half)  # exactly, whatever is rounded
        return low, 1.0 if self.value == 1 else min(1.0, centre + half)

    def as_dict(self) -> dict[str, float | int | list[float]]:
        return {"value": self.value, "n": self.num, "chance": self.chance, "interval_95": list(self.interval)}


@dataclass(frozen=True)
class Mean:
    """A mean over `num` trials; `deviation`: their standard deviation."""

    value: float
    num: int
    deviation: float

    @property
    def interval(self) -> tuple[float, float]:
        """95%, by the normal approximation: the half width is 1.96 standard errors."""
        half = 1.96 * self.deviation / math.sqrt(self.num)
        return self.value - half, self.value + half

    def as_dict(self) -> dict[str, float | int | list[float]]:
        return {"value": self.value, "n": self.num, "interval_95": list(self.interval)}


def mean(values: list[float]) -> Mean:
    """Raises ValueError for none at all."""
    if not values:
        raise ValueError("a mean needs at least one trial")
    return Mean(statistics.fmean(values), len(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def share(hits: list[bool], *, chance: float) -> Score:
    """The share of True. Raises ValueError for none at all: a score of nothing is no score."""
    if not hits:
        raise ValueError("a score needs at least one trial")
    return Score(sum(hits) / len(hits), len(hits), chance)
