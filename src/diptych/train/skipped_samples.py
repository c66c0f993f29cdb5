"""Samples that could not be used: passed over, counted by kind, told; too many of them end the run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

from diptych import distributed
from diptych.data.packing import Pick

MOST_IN_A_ROW = 100
FEW_SAMPLES = 1000
"""Of fewer samples than this, no share is judged: as many may be bad as of so many."""
KINDS_TOLD = 8
DRAWS_REMEMBERED = 4096
"""Of those skipped, the newest. Packing finds some bad long after their neighbours: a draw waits for its pack."""


class TooManyBadSamples(ValueError):
    """More samples than `data.max_bad_fraction` allows could not be used."""


@dataclass(frozen=True)
class SkippedSample:
    """A pick that could not be used; `kind` groups equal problems."""

    pick: Pick
    kind: str
    reason: str


def skipped(pick: Pick, error: ValueError) -> SkippedSample:
    return SkippedSample(pick, str(getattr(error, "kind", "unusable")), str(error))


@dataclass
class SkippedSamples:
    """The count over all ranks: `seen` samples, of which so many of each kind were skipped.

    `recent`: the draws skipped last, in order; `in_a_row`: how many of them follow each other, at most. All ranks know
    the draws of all, so a run is one of the data's, however many ranks or packs share it.
    """

    seen: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    in_a_row: int = 0
    recent: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.by_kind.values())

    def add(self, own: list[SkippedSample], *, num_seen: int, num_skipped: int) -> list[str]:
        """Counts a step: `own` of this rank, the numbers of all ranks alike. Gives what is new to be told. Every rank
        must call it."""
        self.seen += num_seen
        if not num_skipped:
            return []
        news = []
        for part in distributed.gather_bytes(json.dumps([[s.kind, s.reason, s.pick[0]] for s in own]).encode()):
            for kind, reason, draw in json.loads(part):
                self.recent.append(draw)
                if kind not in self.by_kind and len(self.by_kind) < KINDS_TOLD:
                    news.append(f"a sample is skipped ({kind}): {reason}")
                self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        self.recent = sorted(self.recent)[-DRAWS_REMEMBERED:]
        self.in_a_row = _longest_run(self.recent)
        return news

    def check(self, *, max_fraction: float) -> None:
        """Raises TooManyBadSamples."""
        most = max_fraction * max(self.seen, FEW_SAMPLES) if max_fraction else 0
        if self.total > most:
            raise TooManyBadSamples(
                f"{self.total} of {self.seen} samples could not be used ({self.counts()}), more than "
                f"data.max_bad_fraction {max_fraction:g} allows; look at them with `diptych data validate`, correct "
                "them, or raise it"
            )
        if self.in_a_row >= MOST_IN_A_ROW:
            raise TooManyBadSamples(
                f"{self.in_a_row} samples in a row could not be used ({self.counts()}); a file is damaged or a folder "
                "is missing: look at the data with `diptych data validate`"
            )

    def counts(self) -> str:
        return ", ".join(f"{kind}: {count}" for kind, count in Counter(self.by_kind).most_common())


def _longest_run(draws: list[int]) -> int:
    """Of numbers in order, how many follow each other at most."""
    longest = run = 0
    for place, draw in enumerate(draws):
        run = run + 1 if place and draw == draws[place - 1] + 1 else 1
        longest = max(longest, run)
    return longest
