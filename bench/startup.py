"""P10: how soon `diptych --help` answers, and how long a run's steps waited for data (from its log.jsonl)."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from diptych.train.log import read_log
from paired import print_table


def time_help(runs: int = 9) -> float:
    """Seconds of the median run of `python -m diptych --help`."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "diptych", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def loader_wait(log: Path) -> float | None:
    """Share of a run's step time that was spent waiting for data; None if its log does not say."""
    shares = [row["loader_wait"] for row in read_log(log) if "loader_wait" in row]
    return statistics.fmean(shares) if shares else None


def main() -> None:
    logs = [Path(argument) for argument in sys.argv[1:]] or sorted(Path("runs").glob("*/log.jsonl"))
    rows = [["diptych --help", f"{time_help():.2f} s", "<= 0.3 s"]]
    for log in logs:
        share = loader_wait(log)
        if share is not None:
            rows.append([f"loader wait / step time, {log.parent}", f"{share:.2%}", "<= 2%"])
    print_table("Startup and loader", ["what", "measured", "goal"], rows)


if __name__ == "__main__":
    main()
