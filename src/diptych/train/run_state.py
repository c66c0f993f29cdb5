"""Everything that a resumed run must find again, collected into a snapshot and put back from a checkpoint."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych import __version__, distributed
from diptych.config import Recipe
from diptych.data.mixture import Mixture, samples_in_a_row
from diptych.train.checkpoint import Checkpoint, CheckpointError, Snapshot
from diptych.train.optim import AveragedWeights, optimizer_moments, set_updates
from diptych.train.sharding import assign_whole, collect_whole
from diptych.train.skipped_samples import SkippedSamples


@dataclass
class Window:
    """Sums since the last row of the log: total and count of each loss over all ranks."""

    totals: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, totals: Mapping[str, float], counts: Mapping[str, float]) -> None:
        for name in totals:
            self.totals[name] = self.totals.get(name, 0.0) + totals[name]
            self.counts[name] = self.counts.get(name, 0.0) + counts[name]

    def means(self) -> dict[str, float]:
        """Mean of each loss that had items."""
        return {name: total / self.counts[name] for name, total in self.totals.items() if self.counts[name]}


@dataclass
class Progress:
    """Where a run stands. `step`: steps done, skipped ones included; `train_seconds`: over all its sessions;
    `data_state`: of its batch plan."""

    step: int = 0
    train_seconds: float = 0.0
    skipped_steps: int = 0
    window: Window = field(default_factory=Window)
    samples: SkippedSamples = field(default_factory=SkippedSamples)
    data_state: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainState:
    """What training changes."""

    parameters: Mapping[str, Tensor]
    optimizer: torch.optim.AdamW
    average: AveragedWeights | None
    progress: Progress

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """The tensors by file of the checkpoint."""
        groups = {
            "trained": dict(self.parameters),
            "optimizer": optimizer_moments(self.optimizer, self.parameters),
        }
        if self.average is not None:
            groups["average"] = self.average.tensors
        return groups


def describe_run(recipe: Recipe, *, mixture: Mixture, batches: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run. Paths, lengths and rates may change.

    `batches`: that of the batch plan."""
    ends = {"draws after which sources end": mixture.num_draws} if any(mixture.num_draws) else {}
    settings = recipe.model_dump(mode="json")
    read = (
        {}
        if recipe.image_input is None
        else {"image_input": {key: value for key, value in settings["image_input"].items() if key != "image_encoder"}}
    )
    description = {
        **{key: settings[key] for key in ("method", "seed", "template", "image_size", "vision_tower", "objective")},
        **read,
        "data.max_length": recipe.data.max_length,
        "data.weights": [source.weight for source in recipe.data.sources],
        "samples in a row of one source": samples_in_a_row(recipe),
        "number of samples": list(mixture.num_samples),
        **ends,
        **batches,
        "averaged weights": recipe.train.ema > 0,
    }
    return json.loads(json.dumps(description))


def take_snapshot(state: TrainState, recipe: Recipe, run: dict[str, Any], frozen: dict[str, str]) -> Snapshot:
    """Copies everything; every rank must call it, and rank 0's snapshot is the one to write."""
    progress = state.progress
    return Snapshot(
        step=progress.step,
        state={
            "format": 1,
            "step": progress.step,
            "train_seconds": progress.train_seconds,
            "skipped_steps": progress.skipped_steps,
            "window": asdict(progress.window),
            "samples": asdict(progress.samples),
            "data_state": progress.data_state,
            "average_updates": state.average.updates if state.average else 0,
            "run": run,
            "frozen_hashes": frozen,
            "random_states": [json.loads(part) for part in distributed.gather_bytes(_random_state())],
            "recipe": recipe.model_dump(mode="json"),
            "versions": {"diptych": __version__, "torch": torch.__version__},
        },
        tensors={group: collect_whole(tensors) for group, tensors in state.groups().items()},
    )


def restore(state: TrainState, checkpoint: Checkpoint, run: dict[str, Any], frozen: dict[str, str]) -> None:
    """Puts a checkpoint back, on any number of processes.

    Raises CheckpointError that lists every difference if the checkpoint is of another run, other frozen weights, or a
    model with other tensors; nothing is changed then.
    """
    saved = checkpoint.state
    differences = [
        f"{name}: {was} in the checkpoint, {now} now"
        for was_all, now_all in ((saved["run"], run), (saved["frozen_hashes"], frozen))
        for name in sorted({*was_all, *now_all})
        for was, now in _leaf_differences(was_all.get(name), now_all.get(name))
    ]
    if differences:
        raise CheckpointError(
            f"{checkpoint.path} belongs to another run: {'; '.join(differences)}; "
            "resume with the settings that the run began with, or train into another output_dir"
        )
    groups = state.groups()
    loaded = {
        group: checkpoint.load_tensors(group, {name: tensor.shape for name, tensor in tensors.items()})
        for group, tensors in groups.items()
    }
    for group, tensors in groups.items():
        assign_whole(tensors, loaded[group])
    state.progress.step = saved["step"]
    state.progress.train_seconds = saved["train_seconds"]
    state.progress.skipped_steps = saved["skipped_steps"]
    state.progress.window = Window(**saved["window"])
    state.progress.samples = SkippedSamples(**saved.get("samples", {}))
    state.progress.data_state = saved.get("data_state", {})
    set_updates(state.optimizer, saved["step"] - saved["skipped_steps"])
    if state.average is not None:
        state.average.updates = saved["average_updates"]
    states = saved["random_states"]
    if len(states) == distributed.world_size():
        set_random_state(states[distributed.rank()])
    else:  # another number of processes: no state of old belongs to this rank
        seed_everything(recipe_seed=run["seed"] + saved["step"])


def _leaf_differences(was: Any, now: Any) -> Iterator[tuple[str, str]]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            for before, after in _leaf_differences(was.get(key), now.get(key)):
                yield f"{key} {before}", f"{key} {after}"
    elif was != now:
        yield str(was), str(now)


def seed_everything(recipe_seed: int) -> None:
    """Seeds this rank's global generators. Samples do not use them: their noise derives from (seed, draw)."""
    seed = (recipe_seed * 1_000_003 + distributed.rank()) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _random_state() -> bytes:
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    torch_states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    state = {
        "python": [version, list(words), gauss],
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "torch": [base64.b64encode(words.numpy().tobytes()).decode() for words in torch_states],
    }
    return json.dumps(state).encode()


def set_random_state(state: dict[str, Any]) -> None:
    """Sets this process's global generators to a state that a snapshot took."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    words = state["numpy"]["state"]
    key = np.array(words["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**words, "key": key}})
    own, *cuda = (torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) for text in state["torch"])
    torch.set_rng_state(own)
    for device, device_state in enumerate(cuda[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, device)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """What happens inside leaves the global generators as they were, so that sampling does not change training."""
    state = json.loads(_random_state())
    try:
        yield
    finally:
        set_random_state(state)
