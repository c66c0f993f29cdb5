"""Samples of unequal length into packs of at most so many tokens, best fit from a bounded buffer, in a fixed order."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass

Pick = tuple[int, int, int]
"""(draw, source, index), as `Mixture.pick` gives it."""

BUFFER = 256
"""Samples that may wait for a place. Emoji conversations (20 to 200 tokens) fill packs of 1,024 to 99% with it."""


class Unusable(ValueError):
    """A sample that no pack can take; `kind` groups equal problems."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def too_long_to_pack(num_tokens: int, length: int) -> Unusable:
    return Unusable(
        "too long",
        f"a sample of {num_tokens} tokens does not fit into packs of {length}; raise train.packing_length, or lower "
        "data.max_length to leave such samples out",
    )


@dataclass(frozen=True)
class PackingState:
    """Where the stream of draws stands: the next one to look at, and those that were looked at and still wait."""

    next_draw: int = 0
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pack:
    """Samples for one stream, their tokens together, and the draws that were passed over, with the reason."""

    picks: tuple[Pick, ...]
    num_tokens: int
    unusable: tuple[tuple[Pick, ValueError], ...] = ()


class Packer:
    """An endless stream of packs. What it gives depends on the draws, the lengths and its state alone, so that a run
    resumes with `state` to the exact sample, and every rank can follow all packs and take its own.

    The sample that has waited longest opens a pack; the longest that still fit fill it. So nothing waits for ever.
    """

    def __init__(
        self,
        pick: Callable[[int], Pick],
        num_tokens: Callable[[Pick], int],
        *,
        length: int,
        buffer_size: int = BUFFER,
        state: PackingState | None = None,
    ) -> None:
        """`pick`: of a draw; `num_tokens`: of a pick, ValueError for a sample that cannot be used."""
        if length <= 0 or buffer_size <= 0:
            raise ValueError(f"packs of {length} tokens from a buffer of {buffer_size} samples: both must be above 0")
        self._pick, self._num_tokens, self._length, self._buffer_size = pick, num_tokens, length, buffer_size
        state = state or PackingState()
        self._next_draw = state.next_draw
        self._by_length: list[tuple[int, int]] = []  # (tokens, -draw): of equally long ones the oldest is last
        self._unusable: list[tuple[Pick, ValueError]] = []
        self._picks: dict[int, Pick] = {}  # in the order of the draws
        for draw in state.waiting:
            self._take(draw)
        if self._unusable:
            raise ValueError(f"a sample that waited for its pack cannot be used any more: {self._unusable[0][1]}")

    @property
    def state(self) -> PackingState:
        return PackingState(self._next_draw, tuple(self._picks))

    def next_pack(self) -> Pack:
        """At least one sample. Raises the first sample's error if a whole buffer in a row cannot be used."""
        while len(self._picks) < self._buffer_size:
            self._take(self._next_draw)
            self._next_draw += 1
            if len(self._unusable) >= self._buffer_size and not self._picks:
                raise self._unusable[0][1]
        oldest = next(iter(self._picks))
        place = next(i for i, (_, draw) in enumerate(self._by_length) if -draw == oldest)
        room, picks = self._length, []
        while place >= 0:
            tokens, draw = self._by_length.pop(place)
            picks.append(self._picks.pop(-draw))
            room -= tokens
            place = bisect_right(self._by_length, (room, 1)) - 1
        unusable, self._unusable = tuple(self._unusable), []
        return Pack(tuple(picks), self._length - room, unusable)

    def _take(self, draw: int) -> None:
        pick = self._pick(draw)
        try:
            tokens = self._num_tokens(pick)
            if tokens > self._length:
                raise too_long_to_pack(tokens, self._length)
        except ValueError as error:
            self._unusable.append((pick, error))
            return
        insort(self._by_length, (tokens, -draw))
        self._picks[draw] = pick
