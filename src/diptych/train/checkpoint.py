"""Resume checkpoints: folders step-XXXXXX of safetensors and JSON, complete or absent, checked before they are read."""

from __future__ import annotations

import json
import re
import shutil
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.train.durable import (
    TEMPORARY,
    find_damage,
    publish_folder,
    temporary_beside,
    write_json,
    write_manifest,
    write_tensors,
)

_NAME = re.compile(r"step-(\d{6,})")
_STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint could not be written or used; the message names the file and the remedy."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint stores: `state` (JSON) and groups of CPU tensors, one safetensors file per group."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was compared with its manifest."""

    path: Path
    state: dict[str, Any]

    def load_tensors(self, group: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """The tensors of a group, which must have exactly these names and shapes.

        Raises ValueError that lists every missing, extra and misshaped name.
        """
        file = self.path / f"{group}.safetensors"
        tensors = load_file(file) if file.is_file() else {}
        problems = [f"missing {name}" for name in shapes if name not in tensors]
        problems += [f"extra {name}" for name in tensors if name not in shapes]
        problems += [
            f"{name} has shape {list(tensor.shape)} instead of {list(shapes[name])}"
            for name, tensor in tensors.items()
            if name in shapes and tensor.shape != shapes[name]
        ]
        if problems:
            raise CheckpointError(
                f"{file} does not fit the model: {'; '.join(sorted(problems))}; "
                "resume with the recipe that the run began with, or train into another output_dir"
            )
        return tensors


def write_checkpoint(folder: Path, snapshot: Snapshot, *, keep: int) -> Path:
    """Writes `folder`/step-XXXXXX, then removes all but the newest `keep`. Gives its path.

    Raises CheckpointError if anything fails; older checkpoints are then untouched and nothing half-written is left.
    """
    final = folder / f"step-{snapshot.step:06d}"
    temporary = temporary_beside(final)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        files = {
            f"{group}.safetensors": write_tensors(temporary / f"{group}.safetensors", tensors)
            for group, tensors in snapshot.tensors.items()
        }
        files[_STATE] = write_json(temporary / _STATE, snapshot.state)
        write_manifest(temporary, files)
        publish_folder(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint {final} could not be written: {error}; earlier checkpoints are intact; "
            "free space or mend the disk, then run again with train.resume_from_checkpoint=latest"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _prune(folder, snapshot.step, keep)
    return final


def _prune(folder: Path, step: int, keep: int) -> None:
    """Keeps the newest `keep` up to this step. A later one was found damaged when the run fell back behind it: it does
    not count, or the whole ones would go in its stead; the run will write it anew."""
    for _, path in [entry for entry in list_checkpoints(folder) if entry[0] <= step][:-keep]:
        doomed = path.with_name(f"{TEMPORARY}{path.name}-removed")
        path.rename(doomed)  # so that a kill in between leaves no half-removed checkpoint
        shutil.rmtree(doomed, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every folder step-XXXXXX, oldest first, whether whole or not."""
    if not folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def open_checkpoint(path: Path) -> Checkpoint:
    """Checks a checkpoint against its manifest. Raises CheckpointError that names the damaged file."""
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {path}; give a folder step-XXXXXX, or latest")
    damage = find_damage(path)
    if damage is not None:
        raise CheckpointError(f"{damage}; use train.resume_from_checkpoint=latest for the newest whole checkpoint")
    return Checkpoint(path, _read_state(path))


def _read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / _STATE).read_text(encoding="utf-8"))


def find_latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; warns of each newer one that is damaged, naming the file."""
    for _, path in reversed(list_checkpoints(folder)):
        damage = find_damage(path)
        if damage is None:
            return Checkpoint(path, _read_state(path))
        warnings.warn(f"{damage}; falling back to the checkpoint before it", stacklevel=2)
    return None


def refuse_overwriting(folder: Path) -> None:
    """Raises CheckpointError where checkpoints stand, which a fresh run would overwrite."""
    present = list_checkpoints(folder)
    if present:
        raise CheckpointError(
            f"{folder} already holds {present[-1][1].name}; continue with train.resume_from_checkpoint=latest, "
            "or choose another output_dir"
        )


def find_checkpoint(resume: str | None, folder: Path) -> Checkpoint | None:
    """What a run starts from: None for a fresh start.

    `resume` is null, `latest` (a fresh start where there is none yet) or a path. Raises CheckpointError if `resume` is
    null where checkpoints stand, which a fresh run would overwrite; if all that stand there are damaged; if the path
    is damaged; or if newer whole checkpoints than the path's stand in the same folder, which would win as `latest`.
    """
    if resume is None:
        refuse_overwriting(folder)
        return None
    if resume == "latest":
        latest, present = find_latest(folder), list_checkpoints(folder)
        if latest is None and present:
            damages = "; ".join(str(find_damage(path)) for _, path in present)
            raise CheckpointError(
                f"no checkpoint in {folder} is whole: {damages}; a fresh start would replace what the run left: "
                "delete the folder to begin anew, or choose another output_dir"
            )
        return latest
    checkpoint = open_checkpoint(Path(resume))
    if checkpoint.path.resolve().parent == folder.resolve():
        step = checkpoint.state["step"]
        newer = [path.name for number, path in list_checkpoints(folder) if number > step and not find_damage(path)]
        if newer:
            raise CheckpointError(
                f"{folder} holds checkpoints newer than {checkpoint.path.name}: {', '.join(newer)}; "
                "remove them, or choose another output_dir to branch off"
            )
    return checkpoint


class CheckpointWriter:
    """Writes snapshots in the background, one at a time. What went wrong stays in `failure` until it is raised."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._thread: threading.Thread | None = None
        self.failure: BaseException | None = None

    def start(self, snapshot: Snapshot) -> None:
        """Starts writing, after the one before is done. The snapshot's tensors must not change any more."""
        self.join()
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint-writer")
        self._thread.start()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_checkpoint(self._folder, snapshot, keep=self._keep)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the training thread must hear of it
            self.failure = error

    def join(self) -> None:
        """Waits until nothing is being written; raises nothing."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def raise_failure(self) -> None:
        """Raises CheckpointError for what went wrong in this rank; for a rank that wrote nothing, that another did."""
        failure, self.failure = self.failure, None
        if isinstance(failure, CheckpointError):
            raise failure
        cause = repr(failure) if failure else "see the message of rank 0"
        raise CheckpointError(f"a checkpoint could not be written: {cause}") from failure
