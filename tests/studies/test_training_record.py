"""Laws of the record: it is there when a training came to its end, and only then."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from diptych.studies import training_record
from diptych.studies.training_record import train_with_record
from diptych.train.loop import run_training
from train.toy_method import ToyMethod, toy_recipe


def test_a_training_that_ends_tells_what_it_took_and_where(tmp_path: Path) -> None:
    method: Any = ToyMethod()
    result = train_with_record(toy_recipe(tmp_path), method)
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["steps"], record["skipped_steps"]) == (result.step, 0) == (12, 0)
    assert record["train_seconds"] == result.train_seconds
    assert {"device", "cores", "torch", "commit"} <= record["machine"].keys()
    assert record["recipe"] == toy_recipe(tmp_path).model_dump(mode="json")


def test_a_training_that_is_stopped_leaves_none_not_even_an_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "training.json").write_text("{}")
    asked = threading.Event()
    asked.set()
    monkeypatch.setattr(training_record, "run_training", lambda *a: run_training(*a, stop=asked))
    method: Any = ToyMethod()
    assert train_with_record(toy_recipe(tmp_path), method).interrupted
    assert not (tmp_path / "training.json").exists()
