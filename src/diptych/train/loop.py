"""The train loop: any method, one process or many, to the end or to the first Ctrl-C, resumed exactly."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from diptych import distributed
from diptych.config import Recipe
from diptych.data.mixture import build_mixture
from diptych.data.packing import Pick
from diptych.models.method import LossSum, Method
from diptych.train.agreement import Agreement, agree
from diptych.train.batch_plan import Share, build_batch_plan, describe_batches
from diptych.train.checkpoint import CheckpointWriter, find_checkpoint
from diptych.train.durable import only_writer, remove_incomplete, replace_file
from diptych.train.interrupt import Interrupt
from diptych.train.log import TrainLog
from diptych.train.optim import (
    AveragedWeights,
    build_optimizer,
    clip_gradients,
    learning_rate,
    set_learning_rate,
    squared_norm,
    training_progress,
)
from diptych.train.outputs import write_grid, write_morph
from diptych.train.prefetch import MicroBatch, Prefetcher, StepBatches
from diptych.train.progress import Pace, TrainDisplay
from diptych.train.run_state import (
    Progress,
    TrainState,
    describe_run,
    random_state_kept,
    restore,
    seed_everything,
    take_snapshot,
)
from diptych.train.sharding import TrainedMethod, collect_whole, move_to


class NonFiniteError(ValueError):
    """A loss or the gradient is NaN or infinite. The parameters are as they were before the step."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `losses`: means of the last row of the log; `skipped_samples`: how many of each kind;
    `loader_wait`: share of step time spent waiting for batches, the first step of the session left out; `exit_code`:
    130 or 143 after Ctrl-C or SIGTERM, otherwise 0."""

    step: int
    train_seconds: float
    skipped_steps: int
    skipped_samples: dict[str, int]
    losses: dict[str, float]
    loader_wait: float
    samples_per_second: float
    interrupted: bool
    exit_code: int
    morph: Path


def run_training(recipe: Recipe, method: Method, *, stop: threading.Event | None = None) -> TrainResult:
    """Trains a method as its recipe says, and writes under `recipe.output_dir`: recipe.yaml, log.jsonl,
    checkpoints/step-XXXXXX, samples/step-XXXXXX.png and at the end morph/ (with the averaged weights, if any).

    Under torchrun every rank calls it. The first Ctrl-C or SIGTERM (or `stop` being set) finishes the step, saves, and
    returns with `interrupted`; the second kills the process. Raises ValueError for what the user can mend: a loss that
    is not finite (NonFiniteError), a checkpoint that cannot be written or resumed from (CheckpointError), a batch that
    cannot be built.
    """
    with distributed.process_group(), Interrupt() as interrupt:
        return _Run(recipe, method, interrupt, stop).train()


class _Run:
    def __init__(self, recipe: Recipe, method: Method, interrupt: Interrupt, stop: threading.Event | None) -> None:
        self.recipe, self.method, self.interrupt, self.stop = recipe, method, interrupt, stop
        self.output = Path(recipe.output_dir)
        self.losses: dict[str, float] = {}
        self.rate = 0.0
        self.grad_norm: float | None = None  # until a step is taken
        self.measures: dict[str, float] = {}

    def train(self) -> TrainResult:
        with ExitStack() as held:
            distributed.on_main(lambda: self._prepare_folders(held), what=f"preparing output_dir {self.output}")
            return self._train()

    def _train(self) -> TrainResult:
        config = self.recipe.train
        checkpoint = find_checkpoint(config.resume_from_checkpoint, self.output / "checkpoints")
        self._set_up()
        if checkpoint is not None:
            restore(self.state, checkpoint, self.run, self.frozen)
        progress = self.state.progress
        self.first_step = progress.step
        self.saved_step = progress.step if checkpoint is not None else None
        distributed.on_main(self._write_recipe, what=f"writing into output_dir {self.output}")
        self.display = TrainDisplay(
            max_steps=None if config.max_train_minutes else config.max_steps, visible=distributed.is_main()
        )
        self.log = TrainLog(self.output / "log.jsonl", resumed_step=progress.step) if distributed.is_main() else None
        if checkpoint is not None:
            self.display.say(f"resuming from {checkpoint.path}")
        try:
            exit_code, interrupted = self._run_steps()
            self._finish(interrupted)
        finally:
            self.writer.join()
            self.display.close()
            if self.log is not None:
                self.log.close()
        return TrainResult(
            step=progress.step,
            train_seconds=progress.train_seconds,
            skipped_steps=progress.skipped_steps,
            skipped_samples=dict(progress.samples.by_kind),
            losses=self.losses,
            loader_wait=self.pace.wait_share,
            samples_per_second=self.pace.samples_per_second,
            interrupted=interrupted,
            exit_code=exit_code,
            morph=self.output / "morph",
        )

    def _prepare_folders(self, held: ExitStack) -> None:
        (self.output / "checkpoints").mkdir(parents=True, exist_ok=True)
        held.enter_context(only_writer(self.output))
        for folder in (self.output, self.output / "checkpoints"):
            remove_incomplete(folder)

    def _write_recipe(self) -> None:
        text = yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        replace_file(self.output / "recipe.yaml", text.encode())

    def _set_up(self) -> None:
        recipe, config = self.recipe, self.recipe.train
        self.device = distributed.compute_device()
        self.dtype = distributed.resolve_dtype(recipe.dtype, self.device)
        self.share = Share(config.gradient_accumulation_steps, distributed.world_size(), distributed.rank())
        num_samples = self.method.num_samples()
        self.mixture = build_mixture(recipe, num_samples, num_tokens=self._num_tokens)
        self.run = describe_run(recipe, mixture=self.mixture, batches=describe_batches(recipe, self.share))
        self.frozen = self.method.frozen_hashes()
        self.trained = TrainedMethod(self.method, self.device)
        parameters = self.trained.parameters
        average = AveragedWeights(parameters, config.ema) if config.ema else None
        self.state = TrainState(parameters, build_optimizer(parameters, config), average, Progress())
        self.writer = CheckpointWriter(self.output / "checkpoints", keep=config.save_total_limit)
        self.pace, self.row_pace = Pace(), Pace()
        seed_everything(recipe.seed)

    def _num_tokens(self, pick: Pick) -> int:
        return self.method.num_tokens(pick, seed=self.recipe.seed)

    def _run_steps(self) -> tuple[int, bool]:
        """Steps until the end or an interruption; gives the exit code and whether it was interrupted."""
        config, progress = self.recipe.train, self.state.progress
        session_start = time.perf_counter() - progress.train_seconds
        seed = self.recipe.seed
        plan = build_batch_plan(
            self.recipe,
            self.mixture,
            self.share,
            num_tokens=self._num_tokens,
            first_step=self.first_step,
            state=progress.data_state,
        )
        num_steps, depth = config.max_steps - self.first_step, max(2, 4 // config.gradient_accumulation_steps)
        pick = self.mixture.pick
        with Prefetcher(self.method, plan, pick=pick, seed=seed, num_steps=num_steps, depth=depth) as loader:
            while progress.step < config.max_steps:
                step_start = time.perf_counter()
                batches = loader.next_step()
                agreed = self._agree(batches, time.perf_counter() - session_start)
                if training_progress(progress.step, agreed.train_seconds, config) >= 1:
                    break
                if agreed.stop:
                    return agreed.exit_code, True
                self._count_samples(batches, agreed)
                self._step(batches, agreed)
                now = time.perf_counter()
                progress.step += 1
                progress.data_state = batches.state
                progress.train_seconds = now - session_start
                self.row_pace.add(now - step_start, loader.last_wait, agreed.num_samples)
                if progress.step > self.first_step + 1:
                    self.pace.add(now - step_start, loader.last_wait, agreed.num_samples)
                self._after_step(progress.step)
        return 0, False

    def _agree(self, step: StepBatches, train_seconds: float) -> Agreement:
        """Raises CheckpointError in every rank if a checkpoint failed in the background."""
        agreed = agree(
            step,
            names=sorted(self.method.loss_weights),
            train_seconds=train_seconds,
            asked=self.stop is not None and self.stop.is_set(),
            caught=self.interrupt.signal,
            writing_failed=self.writer.failure is not None,
        )
        if agreed.writing_failed:
            self.writer.raise_failure()
        return agreed

    def _count_samples(self, step: StepBatches, agreed: Agreement) -> None:
        """Raises TooManyBadSamples, in every rank, where more were skipped than the recipe allows."""
        tally = self.state.progress.samples
        seen = agreed.num_samples + agreed.num_skipped
        for line in tally.add(step.skipped, num_seen=seen, num_skipped=agreed.num_skipped):
            self.display.say(line)
        tally.check(max_fraction=self.recipe.data.max_bad_fraction)

    def _step(self, step: StepBatches, agreed: Agreement) -> None:
        """One optimisation step. Raises NonFiniteError, with nothing changed, if it must not be taken or skipped."""
        config, state = self.recipe.train, self.state
        local_totals = self._accumulate(step.micro_batches, agreed.counts)
        gradients = self.trained.finish_backward()
        names = list(local_totals)
        summed = distributed.sum_floats([*local_totals.values(), squared_norm(gradients)])
        totals = dict(zip(names, summed[:-1], strict=True))
        norm = math.sqrt(summed[-1]) if summed[-1] >= 0 else math.nan
        broken = [f"the loss {name!r} is {total}" for name, total in totals.items() if not math.isfinite(total)]
        if not broken and not math.isfinite(norm):
            broken = [f"the norm of the gradient is {norm}"]
        if broken:
            self._skip_or_stop(broken, draws=step.draws)
            return
        clip_gradients(gradients, norm, config.max_grad_norm)
        self.rate = learning_rate(state.progress.step, agreed.train_seconds, config)
        set_learning_rate(state.optimizer, self.rate)
        state.optimizer.step()
        if state.average is not None:
            state.average.update()
        state.progress.window.add(totals, agreed.counts)
        self.grad_norm = norm

    def _accumulate(self, batches: Sequence[MicroBatch], counts: dict[str, float]) -> dict[str, float]:
        """Adds up the gradients of weight * total / count over micro-batches; gives this rank's totals by loss."""
        weights, names = self.method.loss_weights, sorted(self.method.loss_weights)
        totals = {name: torch.zeros((), dtype=torch.float64, device=self.device) for name in names}
        self.trained.begin_step()
        for micro in batches:
            batch = move_to(micro.batch, self.device)
            with self._autocast():
                losses = self.trained(batch)
            if micro.weight:
                _check_losses(losses, micro.counts, names)
            objective = torch.zeros((), device=self.device)
            for name in names:
                totals[name] += micro.weight * losses[name].total.detach().double()
                if counts[name]:  # FSDP2 takes the mean over ranks, and the sum is meant
                    scale = micro.weight * weights[name] * self.share.world_size / counts[name]
                    objective = objective + losses[name].total.float() * scale
            if objective.requires_grad:
                objective.backward()
        return dict(zip(names, torch.stack(list(totals.values())).tolist(), strict=True))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _skip_or_stop(self, broken: list[str], *, draws: tuple[int, int]) -> None:
        progress, allowed = self.state.progress, self.recipe.train.max_skipped_steps
        self.trained.abandon_step()
        problem = f"step {progress.step + 1}: {' and '.join(broken)}"
        if progress.skipped_steps >= allowed:
            raise NonFiniteError(
                f"{problem} (samples {draws[0]} to {draws[1]} of the run); the parameters and the checkpoints are as "
                "they were before this step; lower train.learning_rate, look at the data, or allow "
                f"more than {allowed} skipped steps with train.max_skipped_steps"
            )
        progress.skipped_steps += 1
        self.display.say(f"{problem}; skipped ({progress.skipped_steps} of at most {allowed})")

    def _after_step(self, step: int) -> None:
        """What is due after a step: a row of the log, a grid, a checkpoint."""
        config, progress = self.recipe.train, self.state.progress
        fraction = training_progress(step, progress.train_seconds, config)
        self.display.move(progress=fraction, step=step, seconds_left=self._seconds_left())
        if config.sample_every and step % config.sample_every == 0:
            self._draw_grid()
        if step % config.logging_steps == 0:
            self._write_row()
        if step % config.save_every == 0:
            self._save(wait=not config.async_save)

    def _seconds_left(self) -> float:
        config, progress = self.recipe.train, self.state.progress
        pace = self.pace if self.pace.steps else self.row_pace
        left = (config.max_steps - progress.step) / pace.steps_per_second if pace.steps else 0.0
        if config.max_train_minutes is not None:
            left = min(left, 60 * config.max_train_minutes - progress.train_seconds)
        return max(left, 0.0)

    def _write_row(self) -> None:
        progress, weights = self.state.progress, self.method.loss_weights
        means = progress.window.means()
        if not means:
            return
        self.losses = means
        if not self.row_pace.steps:  # a resumed run with nothing left to do
            return
        row = {
            "step": progress.step,
            "loss": sum(weights[name] * mean for name, mean in means.items()),
            "losses": means,
            "learning_rate": self.rate,
            "grad_norm": self.grad_norm,
            "samples_per_second": self.row_pace.samples_per_second,
            "loader_wait": self.row_pace.wait_share,
            "train_seconds": progress.train_seconds,
            "skipped_steps": progress.skipped_steps,
        }
        if progress.samples.total:
            row["skipped_samples"] = dict(progress.samples.by_kind)
        if self.measures:
            row["measures"], self.measures = self.measures, {}
        progress.window.totals, progress.window.counts = {}, {}
        left, self.row_pace = self._seconds_left(), Pace()
        self.display.show_row(row, seconds_left=left)
        distributed.on_main(lambda: self.log.write(row) if self.log else None, what="writing the log")

    def _draw_grid(self) -> None:
        """Every rank draws, since gathered parameters need all of them; rank 0 saves."""
        weights = self.state.average.tensors if self.state.average else None
        with random_state_kept(), self.trained.whole(weights) as method, self._autocast():
            grid = method.sample_grid(seed=self.recipe.sample.seed)
            self.measures = method.measure(seed=self.recipe.sample.seed)
        for name, value in self.measures.items():
            self.display.say(f"step {self.state.progress.step}: {name.replace('_', ' ')} {value:.4g}")
        if grid is not None:
            path = self.output / "samples" / f"step-{self.state.progress.step:06d}.png"
            distributed.on_main(lambda: write_grid(path, grid), what=f"writing {path}")

    def _save(self, *, wait: bool) -> None:
        self._wait_for_writer()  # a failure must not be hidden by the next attempt
        self.saved_step = self.state.progress.step
        snapshot = take_snapshot(self.state, self.recipe, self.run, self.frozen)
        if distributed.is_main():
            self.writer.start(snapshot)
        if wait:
            self._wait_for_writer()

    def _wait_for_writer(self) -> None:
        """Until the checkpoint is complete; if it failed, every rank raises."""
        self.writer.join()
        if distributed.sum_floats([float(self.writer.failure is not None)])[0]:
            self.writer.raise_failure()

    def _finish(self, interrupted: bool) -> None:
        """The last row, grid, checkpoint and the morph."""
        config, step = self.recipe.train, self.state.progress.step
        if not interrupted:
            if config.sample_every and step % config.sample_every and step != self.first_step:
                self._draw_grid()
            self._write_row()
        self._wait_for_writer()
        if step != self.saved_step:
            self._save(wait=True)
        average = self.state.average
        several = distributed.world_size() > 1
        weights = average.tensors if average else self.trained.parameters if several else None
        whole = collect_whole(weights) if weights is not None else None
        morph = self.output / "morph"
        distributed.on_main(lambda: write_morph(self.method, morph, whole), what=f"writing {morph}")
        if interrupted:
            self.display.say(f"stopped at step {step}: {morph}; train.resume_from_checkpoint=latest goes on from here")
        else:
            self.display.say(f"done at step {step}: {morph}")


def _check_losses(losses: dict[str, LossSum], counts: dict[str, float], names: list[str]) -> None:
    """The method must keep what it promised, or means over micro-batches and ranks would be wrong."""
    if sorted(losses) != names or sorted(counts) != names:
        raise ValueError(f"the method weighs losses {names} but computed {sorted(losses)} and counted {sorted(counts)}")
    wrong = [
        f"{name}: {losses[name].count} instead of {counts[name]}"
        for name in names
        if losses[name].count != counts[name]
    ]
    if wrong:
        raise ValueError(f"the method's losses have other counts than loss_counts promised: {', '.join(wrong)}")
