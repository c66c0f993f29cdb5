"""Laws of saving while training: a failure in the background is heard of, whatever it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from diptych.train import checkpoint as checkpoint_module
from diptych.train import durable
from diptych.train.checkpoint import CheckpointError
from diptych.train.log import read_log
from diptych.train.loop import run_training
from train.toy_method import HookedMethod, ToyMethod, toy_recipe


class WriterDied(BaseException):
    """As torch's CheckpointException, no Exception."""


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), WriterDied("gone")], ids=["disk", "base"])
def test_a_failed_background_save_surfaces_by_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    original, calls = durable.write_tensors, []

    def fail(path: Path, tensors: Any) -> Any:
        calls.append(path)
        if "step-000004" in str(path):
            raise failure
        return original(path, tensors)

    monkeypatch.setattr(checkpoint_module, "write_tensors", fail)
    method = HookedMethod(lambda _: time.sleep(0.05))
    with pytest.raises(CheckpointError, match=r"could not be written.*(No space left|gone)"):
        run_training(toy_recipe(tmp_path, save_every=2), method)
    assert calls
    assert len(read_log(tmp_path / "log.jsonl")) <= 5
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]


def test_a_failed_save_is_not_hidden_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is still busy failing when the next checkpoint is due."""
    original = durable.write_tensors

    def fail_slowly(path: Path, tensors: Any) -> Any:
        if "step-000002" in str(path):
            time.sleep(0.5)
            raise OSError(28, "No space left on device")
        return original(path, tensors)

    monkeypatch.setattr(checkpoint_module, "write_tensors", fail_slowly)
    with pytest.raises(CheckpointError, match="step-000002 could not be written"):
        run_training(toy_recipe(tmp_path, save_every=1), ToyMethod())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
