"""Laws of Ctrl-C and SIGTERM. That an interrupted run resumes exactly: test_loop.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import diptych
from diptych.train.loop import run_training
from train.toy_method import HookedMethod, ToyMethod, toy_recipe


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_first_signal_finishes_the_step_and_saves(tmp_path: Path, number: int, code: int) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    method = HookedMethod(lambda done: os.kill(os.getpid(), number) if done == 4 else None)
    result = run_training(toy_recipe(tmp_path), method)
    assert (result.interrupted, result.exit_code, result.step) == (True, code, 5)
    assert (tmp_path / "checkpoints" / "step-000005").is_dir()
    assert result.morph.is_dir()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert run_training(toy_recipe(tmp_path, resume_from_checkpoint="latest"), ToyMethod()).step == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once(number: int) -> None:
    code = f"""
import os, time
from diptych.train.interrupt import Interrupt
with Interrupt() as interrupt:
    os.kill(os.getpid(), {int(number)})
    assert interrupt.signal == {int(number)}
    os.kill(os.getpid(), {int(number)})
    time.sleep(60)
"""
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(Path(diptych.__file__).parents[1])}
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, env=environment)
    assert ended.returncode == -number, ended.stderr
    assert time.perf_counter() - started < 30
