"""Builds the batches to come in the background, and measures how long the training waits for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from diptych.data.packing import Pick
from diptych.models.method import Method
from diptych.train.batch_plan import BatchPlan, StepPicks
from diptych.train.skipped_samples import MOST_IN_A_ROW, SkippedSample, skipped


@dataclass(frozen=True)
class MicroBatch:
    """A batch on the CPU and the counts that its losses will have; how many samples are in it.

    weight 0: a stand-in for a batch of which no sample could be used, so that all ranks run alike.
    """

    batch: Any
    counts: dict[str, float]
    num_samples: int
    num_skipped: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class StepBatches:
    """One step's micro-batches of this rank; the samples that were skipped; the state to go on from behind it. `draws`:
    the first and the last, over all ranks."""

    draws: tuple[int, int]
    micro_batches: list[MicroBatch]
    skipped: list[SkippedSample] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)


class Prefetcher:
    """Hands out the micro-batches of one step after another, of `num_steps` steps at most.

    One thread builds ahead; at most `depth` steps wait in memory. A sample that cannot be used (ValueError) is left out
    of its batch. Any other error is raised by the `next_step` that would have returned it, not earlier. `pick`: of any
    draw, for a stand-in. Use as a context manager.
    """

    def __init__(
        self,
        method: Method,
        plan: BatchPlan,
        *,
        pick: Callable[[int], Pick],
        seed: int,
        num_steps: int,
        depth: int = 4,
    ) -> None:
        self._method, self._plan, self._pick, self._seed, self._num_steps = method, plan, pick, seed, num_steps
        self._ready: queue.Queue[StepBatches | BaseException] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._usable: tuple[Pick, ...] = ()
        self.last_wait = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        while self._thread.is_alive():
            self._drain()
            self._thread.join(timeout=0.01)

    def _drain(self) -> None:
        while True:
            try:
                self._ready.get_nowait()
            except queue.Empty:
                return

    def _run(self) -> None:
        try:
            for _ in range(self._num_steps):
                step = self._build_step(self._plan.next_step())
                if step is None:
                    return
                self._ready.put(step)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the training thread must hear of it
            self._ready.put(error)

    def _build_step(self, picks: StepPicks) -> StepBatches | None:
        """None: nobody waits for it any more."""
        bad = [skipped(pick, error) for pick, error in picks.unusable]
        batches = []
        for own in picks.micro_batches:
            if self._closed.is_set():
                return None
            batches.append(self._build(own, bad))
        return StepBatches(picks.draws, batches, bad, picks.state)

    def _build(self, picks: tuple[Pick, ...], bad: list[SkippedSample]) -> MicroBatch:
        try:
            return self._made(picks, num_skipped=0)
        except ValueError:
            usable = []
            for pick in picks:
                try:
                    self._method.build_batch([pick], seed=self._seed)
                except ValueError as error:
                    bad.append(skipped(pick, error))
                else:
                    usable.append(pick)
            if len(usable) == len(picks):  # each can be used, but not together
                raise
            if usable:
                return self._made(tuple(usable), num_skipped=len(picks) - len(usable))
            batch = self._stand_in(picks)
            if batch is None:
                raise
            none = dict.fromkeys(self._method.loss_counts(batch), 0.0)
            return MicroBatch(batch, none, num_samples=0, num_skipped=len(picks), weight=0.0)

    def _stand_in(self, picks: tuple[Pick, ...]) -> Any | None:
        """A batch of the first sample behind these that can be used: of the draws alone, so that a run that resumes
        here has the same. Where so many that follow are bad that the run must end, one of before; None without."""
        following = max(draw for draw, _, _ in picks) + 1
        for draw in range(following, following + MOST_IN_A_ROW):
            try:
                return self._method.build_batch([self._pick(draw)], seed=self._seed)
            except ValueError:
                continue
        return self._method.build_batch(self._usable, seed=self._seed) if self._usable else None

    def _made(self, picks: tuple[Pick, ...], *, num_skipped: int) -> MicroBatch:
        batch = self._method.build_batch(picks, seed=self._seed)
        self._usable = picks[:1]
        return MicroBatch(batch, self._method.loss_counts(batch), len(picks), num_skipped)

    def next_step(self) -> StepBatches:
        """The micro-batches of the next step; sets `last_wait`, the seconds spent waiting for them."""
        started = time.perf_counter()
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        self.last_wait = time.perf_counter() - started
        return item
