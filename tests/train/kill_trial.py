"""A run that checkpoints after every step, killed again and again at random moments. Usage: FOLDER KILLS.

Forks rather than starts its sessions, so that a session costs milliseconds; this process itself never trains, since
autograd's threads do not survive a fork. Prints two lines of JSON: for saving in the foreground, and in the background.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from diptych.train.checkpoint import find_latest
from diptych.train.log import read_log
from diptych.train.loop import run_training
from train.toy_method import ToyMethod, toy_recipe


def session(output: Path, steps: int, asynchronous: bool) -> None:
    torch.set_num_threads(1)
    options = {"save_every": 1, "max_steps": steps, "resume_from_checkpoint": "latest", "async_save": asynchronous}
    options |= {"lr_scheduler_type": "constant", "warmup_ratio": 0.0}  # max_steps must not matter
    run_training(toy_recipe(output, **options), ToyMethod(noise=0.1))


def warm_up() -> None:
    """What torch imports late is imported once, here; no gradient is computed by autograd."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    torch.optim.AdamW([parameter], fused=True).step()


def wait_for_row(log: Path, size: int, child: int) -> None:
    """Until the log has grown beyond its size, or the child has ended."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (log.is_file() and log.stat().st_size > size):
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "the session ended by itself"
        time.sleep(0.001)


def fork_session(output: Path, steps: int, asynchronous: bool) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            session(output, steps, asynchronous)
            code = 0
        finally:
            os._exit(code)
    return child


def trial(folder: Path, kills: int, *, asynchronous: bool) -> dict[str, Any]:
    choice = random.Random(kills)
    output, steps = folder / "killed", 10_000_000
    bad: list[str] = []
    reached = killed_while_writing = 0
    log = output / "log.jsonl"
    for number in range(kills):
        size = log.stat().st_size if log.is_file() else 0
        child = fork_session(output, steps, asynchronous)
        if number % 5:  # every fifth may die before its first step
            wait_for_row(log, size, child)
        time.sleep(choice.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed_while_writing += any((output / "checkpoints").glob(".writing-*"))
        rows = read_log(log) if log.is_file() else []
        shown = rows[-1]["step"] if rows else 0
        try:
            latest = find_latest(output / "checkpoints")
            step = latest.state["step"] if latest else 0
        except (ValueError, OSError, UserWarning) as error:
            bad.append(f"kill {number}: {error!r}")
            continue
        lost = shown - step
        if lost > (2 if asynchronous else 1) or step < reached:
            bad.append(f"kill {number}: at step {shown}, the checkpoint has {step}, an earlier one had {reached}")
        reached = max(reached, step)
    steps = reached + 3
    ended = [fork_session(output, steps, asynchronous), fork_session(folder / "whole", steps, asynchronous)]
    codes = [os.waitpid(child, 0)[1] for child in ended]
    finals = [
        [(path / f"checkpoints/step-{steps:06d}/{name}.safetensors").read_bytes() for name in ("trained", "optimizer")]
        for path in (output, folder / "whole")
    ]
    return {
        "mode": "async" if asynchronous else "sync",
        "bad": bad,
        "steps": reached,
        "killed_while_writing": killed_while_writing,
        "codes": codes,
        "equal": finals[0] == finals[1],
        "left": [path.name for path in (output / "checkpoints").iterdir() if path.name.startswith(".")],
    }


if __name__ == "__main__":
    warnings.simplefilter("error")  # a checkpoint that is named step-X and is damaged would warn
    warm_up()
    for mode in (False, True):
        print(json.dumps(trial(Path(sys.argv[1]) / str(mode), int(sys.argv[2]), asynchronous=mode)), flush=True)
