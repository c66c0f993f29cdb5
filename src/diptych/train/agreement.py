"""What every rank must know alike before a step is taken: one sum over all of them."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from diptych import distributed
from diptych.train.prefetch import StepBatches
from diptych.train.skipped_samples import MOST_IN_A_ROW, SkippedSamples


@dataclass(frozen=True)
class Agreement:
    """Counts of the step's losses; samples used and skipped in it; the run of skipped ones that this rank stands in
    (`in_a_row`), and whether any rank's is too long; rank 0's clock; whether to stop, and with which exit code; whether
    a checkpoint failed in the background."""

    counts: dict[str, float]
    num_samples: int
    num_skipped: int
    in_a_row: int
    too_many_in_a_row: bool
    train_seconds: float
    exit_code: int
    stop: bool
    writing_failed: bool


def agree(
    step: StepBatches,
    *,
    names: Sequence[str],
    tally: SkippedSamples,
    train_seconds: float,
    asked: bool,
    caught: int | None,
    writing_failed: bool,
) -> Agreement:
    """names: of the losses; tally: of the steps before; asked, caught: to stop, by whoever runs the training or by a
    signal. Every rank must call it."""
    batches = step.micro_batches
    in_a_row = tally.in_a_row_after([(batch.num_samples, batch.num_skipped) for batch in batches])
    counts = [float(sum(batch.counts[name] for batch in batches)) for name in names]
    samples = [sum(batch.num_samples for batch in batches), len(step.skipped), in_a_row >= MOST_IN_A_ROW]
    clock = train_seconds if distributed.is_main() else 0.0
    signals = [caught == number for number in (signal.SIGINT, signal.SIGTERM)]
    summed = distributed.sum_floats(
        [*counts, *map(float, samples), clock, *map(float, (asked, *signals, writing_failed))]
    )
    used, skipped, too_many, clock, asked_by, by_ctrl_c, by_sigterm, failed = summed[len(names) :]
    return Agreement(
        counts=dict(zip(names, summed[: len(names)], strict=True)),
        num_samples=int(used),
        num_skipped=int(skipped),
        in_a_row=in_a_row,
        too_many_in_a_row=bool(too_many),
        train_seconds=clock,
        exit_code=128 + signal.SIGINT if by_ctrl_c else 128 + signal.SIGTERM if by_sigterm else 0,
        stop=bool(asked_by or by_ctrl_c or by_sigterm),
        writing_failed=bool(failed),
    )
