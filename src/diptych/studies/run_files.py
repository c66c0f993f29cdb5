"""The folder of a training, read: its recipe, its log, its grids, and how far it came."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from PIL import Image

from diptych.settings import TrainConfig
from diptych.studies.training_record import RECORD
from diptych.train.durable import is_held
from diptych.train.log import read_log
from diptych.train.optim import training_progress

RECIPE, LOG = "recipe.yaml", "log.jsonl"


@dataclass(frozen=True)
class TrainedRun:
    """A run, or a stage of one. `settings`: its recipe; `rows`: of its log; `progress`: 0 to 1; `record`: its
    training.json, or nothing; `steps_before`, `seconds_before`: of the stages before it."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    state: Literal["complete", "training now", "stopped"]
    progress: float
    record: Mapping[str, Any]
    steps_before: int = 0
    seconds_before: float = 0.0

    @property
    def steps(self) -> int:
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def train_seconds(self) -> float:
        return self.rows[-1]["train_seconds"] if self.rows else 0.0


def read_runs(folders: Sequence[Path]) -> list[TrainedRun]:
    """The runs in these folders. One that was trained in stages is its stages and itself, each going on where the one
    before ended. A folder that is no run itself stands for the runs in it.

    Raises ValueError that names a folder that is not there, given twice, or no run (with what it lacks), and a file
    that is damaged.
    """
    named: dict[str, Path] = {}
    last_parts = [folder.resolve().name for folder in folders]
    for folder, last in zip(folders, last_parts, strict=True):
        name = last if last_parts.count(last) == 1 else str(folder)
        if name in named:
            raise ValueError(f"{folder} is given twice")
        named[name] = folder
    return [
        run for name, folder in named.items() for chain in _find_chains(folder) for run in _read(chain, name, folder)
    ]


def _find_chains(folder: Path) -> list[list[Path]]:
    """Folders of runs; those of one chain are stages, each begun with the morph of the one before."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    inside = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{LOG}")) if _is_run(path.parent)}
    before = {part: inside.get(_begun_with(part)) for part in (*inside.values(), folder) if _is_run(part)}
    if folder in before:
        ends = [folder]
    elif inside:
        ends = [part for part in inside.values() if part not in before.values()]
    else:
        lacking = " and no ".join(name for name in (RECIPE, LOG) if not (folder / name).is_file())
        raise ValueError(f"{folder} is no run: it holds no {lacking}; give an output_dir of diptych train")
    chains = []
    for end in ends:
        chain = [end]
        while (earlier := before[chain[0]]) is not None and earlier not in chain:
            chain.insert(0, earlier)
        chains.append(chain)
    return chains


def _is_run(folder: Path) -> bool:
    return (folder / RECIPE).is_file() and (folder / LOG).is_file()


def _begun_with(folder: Path) -> str:
    """The name of the run's folder whose morph this one began with, or nothing."""
    vpit = _read_settings(folder).get("vpit")
    return Path((vpit.get("init_from") if isinstance(vpit, dict) else None) or "").parent.name


def _read(chain: Sequence[Path], name: str, given: Path) -> list[TrainedRun]:
    runs: list[TrainedRun] = []
    for folder in chain:
        own = name if folder == given else f"{name}/{folder.name}"
        runs.append(_read_run(folder, own, runs[-1] if runs else None))
    return runs


def _read_run(folder: Path, name: str, before: TrainedRun | None) -> TrainedRun:
    settings, rows, record = _read_settings(folder), read_log(folder / LOG), read_record(folder / RECORD)
    limits = {key: settings["train"].get(key) for key in ("max_steps", "max_train_minutes")}
    config = TrainConfig(**{key: value for key, value in limits.items() if value is not None})
    progress = training_progress(rows[-1]["step"], rows[-1]["train_seconds"], config) if rows else 0.0
    if is_held(folder):
        state = "training now"
    else:
        state = "complete" if record or progress >= 1 else "stopped"
    return TrainedRun(
        name=name,
        folder=folder,
        settings=settings,
        rows=rows,
        state=state,
        progress=1.0 if state == "complete" else progress,
        record=record,
        steps_before=before.steps_before + before.steps if before else 0,
        seconds_before=before.seconds_before + before.train_seconds if before else 0.0,
    )


def _read_settings(folder: Path) -> dict[str, Any]:
    """As they were written, also by another version of Diptych."""
    try:
        settings = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / RECIPE} is damaged: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("train"), dict):
        raise ValueError(f"{folder / RECIPE} is damaged: it holds no settings of train")
    return settings


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file that a run may have or not: nothing if it has none. Raises ValueError for one that is damaged."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to do without") from error


def open_grids(folder: Path, num: int) -> list[tuple[str, Image.Image]]:
    """Grids of samples with their steps in words: at most `num`, from the first to the last. Raises ValueError for one
    that is damaged."""
    paths = sorted((folder / "samples").glob("step-*.png"))
    last = len(paths) - 1
    if len(paths) > num:
        paths = [paths[round(k * last / (num - 1))] for k in range(num)]
    grids = []
    for path in paths:
        try:
            with Image.open(path, formats=["PNG"]) as grid:
                grids.append((f"step {int(path.stem.removeprefix('step-')):,}", grid.convert("RGB")))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to do without") from error
    return grids
