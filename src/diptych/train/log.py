"""The run's log: one JSON object per row, cut back to the step that a run resumes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diptych.train.durable import replace_file


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a log.jsonl: step, loss, losses, learning_rate, grad_norm, samples_per_second, loader_wait (share of
    step time), train_seconds, skipped_steps.

    A last line that a killed run left unfinished is dropped. Raises ValueError that names any other unreadable line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no log {path}")
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number} is not a log row: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"{path} line {number} is not a log row: it has no step")
        rows.append(row)
    return rows


class TrainLog:
    """Appends rows to a log; `resumed_step` says how much of an existing one still holds (0: nothing)."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        kept = [row for row in read_log(path) if row["step"] <= resumed_step] if path.is_file() and resumed_step else []
        replace_file(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
