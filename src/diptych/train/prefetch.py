"""Builds the batches to come in the background, and measures how long the training waits for them."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

from diptych.data.mixture import Mixture
from diptych.models.method import Method


@dataclass(frozen=True)
class MicroBatch:
    """A batch on the CPU and the counts that its losses will have."""

    batch: Any
    counts: dict[str, float]


@dataclass(frozen=True)
class DrawPlan:
    """Which draws of the run's stream belong to whom.

    Step s consumes draws [s G, (s + 1) G), G = micro_batch_size * accumulation * world_size; micro-batch m of rank r
    takes the slice m * world_size + r of them. So G alone decides which samples a step sees.
    """

    micro_batch_size: int
    accumulation: int
    world_size: int
    rank: int

    @property
    def samples_per_step(self) -> int:
        return self.micro_batch_size * self.accumulation * self.world_size

    def draws(self, step: int, micro: int) -> range:
        start = step * self.samples_per_step + (micro * self.world_size + self.rank) * self.micro_batch_size
        return range(start, start + self.micro_batch_size)


class Prefetcher:
    """Hands out the micro-batches of one step after another, from `first_step` up to `last_step` (not included).

    One thread builds ahead; at most `depth` micro-batches wait in memory. An error in building a batch is raised by
    the `next_step` that would have returned it, not earlier. Use as a context manager.
    """

    def __init__(
        self,
        method: Method,
        mixture: Mixture,
        plan: DrawPlan,
        *,
        seed: int,
        first_step: int,
        last_step: int,
        depth: int | None = None,
    ) -> None:
        self._method, self._mixture, self._plan, self._seed = method, mixture, plan, seed
        self._steps = range(first_step, last_step)
        self._ready: queue.Queue[MicroBatch | BaseException] = queue.Queue(depth or max(4, 2 * plan.accumulation))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
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
            for step in self._steps:
                for micro in range(self._plan.accumulation):
                    if self._closed.is_set():
                        return
                    picks = [self._mixture.pick(draw) for draw in self._plan.draws(step, micro)]
                    batch = self._method.build_batch(picks, seed=self._seed)
                    self._ready.put(MicroBatch(batch, self._method.loss_counts(batch)))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the training thread must hear of it
            self._ready.put(error)

    def next_step(self) -> list[MicroBatch]:
        """The micro-batches of the next step; sets `last_wait`, the seconds spent waiting for them."""
        started = time.perf_counter()
        batches = []
        for _ in range(self._plan.accumulation):
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            batches.append(item)
        self.last_wait = time.perf_counter() - started
        return batches
