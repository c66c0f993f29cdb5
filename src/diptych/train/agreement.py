"""What every rank must know alike before a step is taken: one sum over all of them."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from diptych import distributed
from diptych.train.prefetch import StepBatches


@dataclass(frozen=True)
class Agreement:
    """Counts of the step's losses; samples used and skipped in it; rank 0's clock; whether to stop, and with which exit
    code; whether a checkpoint failed in the background."""

    counts: dict[str, float]
    num_samples: int
    num_skipped: int
    train_seconds: float
    exit_code: int
    stop: bool
    writing_failed: bool


def agree(
    step: StepBatches,
    *,
    names: Sequence[str],
    train_seconds: float,
    asked: bool,
    caught: int | None,
    writing_failed: bool,
) -> Agreement:
    """names: of the losses; asked, caught: to stop, by whoever runs the training or by a signal. Every rank must call
    it."""
    batches = step.micro_batches
    counts = [float(sum(batch.counts[name] for batch in batches)) for name in names]
    samples = [sum(batch.num_samples for batch in batches), len(step.skipped)]
    clock = train_seconds if distributed.is_main() else 0.0
    signals = [caught == number for number in (signal.SIGINT, signal.SIGTERM)]
    summed = distributed.sum_floats(
        [*counts, *map(float, samples), clock, *map(float, (asked, *signals, writing_failed))]
    )
    used, skipped, clock, asked_by, by_ctrl_c, by_sigterm, failed = summed[len(names) :]
    return Agreement(
        counts=dict(zip(names, summed[: len(names)], strict=True)),
        num_samples=int(used),
        num_skipped=int(skipped),
        train_seconds=clock,
        exit_code=128 + signal.SIGINT if by_ctrl_c else 128 + signal.SIGTERM if by_sigterm else 0,
        stop=bool(asked_by or by_ctrl_c or by_sigterm),
        writing_failed=bool(failed),
    )
