"""A training that leaves a record: that it came to its end, what it took, and on which machine."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from diptych import distributed
from diptych.config import Recipe
from diptych.evaluate.machine import describe_machine
from diptych.models.method import Method
from diptych.train.durable import replace_file
from diptych.train.log import read_log
from diptych.train.loop import TrainResult, run_training

RECORD = "training.json"


def train_with_record(recipe: Recipe, method: Method) -> TrainResult:
    """`run_training`, and training.json in `recipe.output_dir` once it came to its end; until then there is none."""
    path = Path(recipe.output_dir) / RECORD
    distributed.on_main(lambda: path.unlink(missing_ok=True), what=f"removing {path}")
    result = run_training(recipe, method)
    if not result.interrupted:
        distributed.on_main(lambda: _write(path, recipe, result), what=f"writing {path}")
    return result


def _write(path: Path, recipe: Recipe, result: TrainResult) -> None:
    rows = read_log(path.parent / "log.jsonl")
    record = {
        "steps": result.step,
        "train_seconds": result.train_seconds,
        "samples_per_second": statistics.median([row["samples_per_second"] for row in rows] or [0.0]),
        "loader_wait": statistics.median([row["loader_wait"] for row in rows] or [0.0]),
        "skipped_steps": result.skipped_steps,
        "machine": describe_machine(),
        "recipe": recipe.model_dump(mode="json"),
    }
    replace_file(path, (json.dumps(record, indent=2) + "\n").encode())
