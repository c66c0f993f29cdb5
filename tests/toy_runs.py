"""Folders of trainings, written by hand: what a report reads, in the shapes that trainings leave."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image


def log_row(step: int, losses: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """As the train loop writes it; two seconds a step."""
    return {
        "step": step,
        "loss": sum(losses.values()),
        "losses": dict(losses),
        "learning_rate": 0.001,
        "grad_norm": 0.5,
        "samples_per_second": 10.0 + step,
        "loader_wait": 0.01,
        "train_seconds": 2.0 * step,
        "skipped_steps": 0,
        **more,
    }


def write_run(
    folder: Path,
    *,
    losses: Sequence[str] = ("ce", "flow"),
    steps: Sequence[int] = (10, 20),
    grids: Sequence[int] = (),
    method: str = "xfusion",
    rows: Sequence[Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Path:
    """A run of at most 20 steps, without training.json; keyword arguments are settings of its recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"method": method, "output_dir": str(folder), "train": {"max_steps": 20}, **settings}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    if rows is None:
        rows = [log_row(step, dict.fromkeys(losses, 1 / step)) for step in steps]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in grids:
        (folder / "samples").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (step % 256, 0, 0)).save(folder / "samples" / f"step-{step:06d}.png")
    return folder
