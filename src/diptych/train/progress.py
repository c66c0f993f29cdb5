"""What a person sees while training: one line that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


def format_seconds(seconds: float) -> str:
    """1h05m, 12m07s or 9s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


@dataclass
class Pace:
    """Seconds that steps took, and that they waited for batches; samples of all ranks."""

    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    waits: float = 0.0

    def add(self, seconds: float, wait: float, num_samples: int) -> None:
        self.steps += 1
        self.samples += num_samples
        self.seconds += seconds
        self.waits += wait

    @property
    def wait_share(self) -> float:
        return self.waits / self.seconds if self.seconds else 0.0

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.seconds if self.seconds else 0.0


class TrainDisplay:
    """Shows steps, loss, speed and time left; silent where `visible` is false (every rank but one)."""

    def __init__(self, *, max_steps: int | None, visible: bool) -> None:
        """`max_steps`: None where the clock decides."""
        self._last = "" if max_steps is None else f"/{max_steps}"
        self._visible = visible
        self._bar: Progress | None = None
        if visible and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True))
            self._task = self._bar.add_task("training", total=1.0, text="")
            self._bar.start()

    def move(self, *, progress: float, step: int, seconds_left: float) -> None:
        """After every step; `progress` is 0 to 1."""
        if self._bar is not None:
            text = f"step {step}  left {format_seconds(seconds_left)}"
            self._bar.update(self._task, completed=progress, description=text)

    def show_row(self, row: dict[str, Any], *, seconds_left: float) -> None:
        """After every row of the log."""
        if not self._visible:
            return
        losses = "  ".join(f"{name} {value:.4f}" for name, value in row["losses"].items())
        text = f"loss {row['loss']:.4f}  {losses}  {row['samples_per_second']:.1f} samples/s"
        if self._bar is not None:
            self._bar.update(self._task, text=text)
        else:
            left = format_seconds(seconds_left)
            print(f"step {row['step']}{self._last}  {text}  left {left}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        elif self._visible:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
