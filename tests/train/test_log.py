"""Laws of the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.train.log import TrainLog, read_log
from diptych.train.progress import format_seconds


def write_rows(path: Path, steps: range, *, resumed_step: int) -> None:
    log = TrainLog(path, resumed_step=resumed_step)
    for step in steps:
        log.write({"step": step, "loss": 0.5})
    log.close()


def test_rows_after_the_resumed_step_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_rows(path, range(1, 8), resumed_step=0)
    write_rows(path, range(5, 7), resumed_step=4)
    assert [row["step"] for row in read_log(path)] == [1, 2, 3, 4, 5, 6]
    write_rows(path, range(1, 2), resumed_step=0)
    assert [row["step"] for row in read_log(path)] == [1]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}', "\0\0"])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "log.jsonl"
    write_rows(path, range(1, 3), resumed_step=0)
    with path.open("a") as file:
        file.write(torn)
    assert [row["step"] for row in read_log(path)] == [1, 2]
    write_rows(path, range(3, 4), resumed_step=2)
    assert [row["step"] for row in read_log(path)] == [1, 2, 3]


@pytest.mark.parametrize("line", ["not json", "[]", '{"loss": 1}', '{"step": "x"}'])
def test_another_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl line 2 is not a log row"):
        read_log(path)


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no log"):
        read_log(tmp_path / "log.jsonl")


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9s"), (61, "1m01s"), (727, "12m07s"), (3900, "1h05m")])
def test_times_are_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
