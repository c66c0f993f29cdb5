"""What a person sees of a study besides its training: stages, and how far each has come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""


class StageDisplay:
    """Bars on a terminal; elsewhere a line at every quarter. All on stderr, but for results."""

    def __init__(self, *, num_stages: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._num_stages = num_stages
        self._stage = 0

    def stage(self, what: str) -> None:
        self._stage += 1
        self.say(f"{self._stage}/{self._num_stages} {what}")

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def print_out(self, result: Any) -> None:
        """A result, on stdout."""
        Console(file=sys.stdout, highlight=False).print(result)

    @contextmanager
    def progress(self) -> Iterator[Report]:
        if not self.console.is_terminal:
            told: dict[str, int] = {}

            def tell(what: str, done: int, total: int) -> None:
                quarter = 4 * done // max(1, total)
                if quarter > told.get(what, 0):
                    told[what] = quarter
                    self.say(f"  {what}: {done} of {total}")

            yield tell
            return
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as bars:
            tasks: dict[str, Any] = {}

            def move(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total)
                bars.update(tasks[what], completed=done, total=total)

            yield move
