"""What two ranks do, for test_sharding.py. Started by torchrun: FOLDER. Each rank writes FOLDER/rank-R.json."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from diptych import distributed
from diptych.config import Recipe
from diptych.train import durable
from diptych.train.loop import NonFiniteError, run_training
from tiny_vpit import build_training, vpit_recipe
from train.tiny_xfusion_runs import DESIGNS, build_xfusion_training, xfusion_recipe
from train.toy_method import HookedMethod, ToyBatch, ToyMethod, toy_recipe

MIXES = {"max_steps": 50, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
PACKS = {"packing_length": 40, "resume_from_checkpoint": "latest"}
SITES = ("text", "image", "gradient")


def vpit_run(output: Path, data: Path, *, batch_size: int) -> Recipe:
    train = {"max_steps": 6, "per_device_train_batch_size": batch_size, "sample_every": 3, "logging_steps": 1}
    return vpit_recipe(output, data, train=train)


class PackedMethod(HookedMethod):
    """Keeps the draws of each pack that it builds."""

    def __init__(self, hook: Callable[[int], object] = lambda done: None) -> None:
        super().__init__(hook)
        self.packs: list[list[int]] = []

    def build_batch(self, picks: Sequence[tuple[int, int, int]], *, seed: int) -> ToyBatch:
        self.packs.append([draw for draw, _, _ in picks])
        return super().build_batch(picks, seed=seed)


def train_packs(folder: Path, *, ranks: int = 2, stop_after: int | None = None) -> list[list[int]]:
    """The draws of this rank's packs; four packs are a step on any number of ranks."""
    stop = threading.Event()
    method = PackedMethod(lambda done: stop.set() if done == stop_after else None)
    run_training(toy_recipe(folder, gradient_accumulation_steps=4 // ranks, **PACKS), method, stop=stop)
    return method.packs


def train_with_poison(folder: Path, site: str, **train: Any) -> dict[str, Any]:
    """Draw 18 is in step 5 (samples 16 to 19), in the second micro-batch: rank 1's alone."""
    method = ToyMethod(poison={18: site})
    before = {name: value.detach().clone() for name, value in method.trainable_parameters().items()}
    try:
        result = run_training(toy_recipe(folder, **train), method)
    except NonFiniteError as error:
        equal = [
            torch.equal(value.full_tensor(), before[name])  # type: ignore[attr-defined]
            for name, value in method.trainable_parameters().items()
        ]
        return {"error": str(error), "unchanged": all(equal)}
    return {"skipped": result.skipped_steps, "step": result.step}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    with distributed.process_group():
        rank = distributed.rank()
        report["sum"] = distributed.sum_floats([1.0 + rank, float("nan") if rank else 0.0])[0]
        report["bytes"] = [part.decode() for part in distributed.gather_bytes(b"x" * (rank + 1))]

        method = ToyMethod(kinds="pairs")
        if rank:  # ranks that begin apart must be made equal
            with torch.no_grad():
                for parameter in method.trainable_parameters().values():
                    parameter.add_(1)
        result = run_training(toy_recipe(folder / "mixes", sample_every=25, save_every=20, **MIXES), method)
        report["mixes"] = {"built": method.built, "step": result.step, "frozen": method.frozen_hashes()["base"]}

        for site in SITES:  # at a learning rate so small that no float changes before the poison
            report[site] = train_with_poison(folder / site, site, learning_rate=1e-30, ema=0.0)
            report[f"{site} skipped"] = train_with_poison(folder / f"{site}-skipped", site, max_skipped_steps=1)

        stop = threading.Event()
        options = {"per_device_train_batch_size": 1, "resume_from_checkpoint": "latest"}
        halting = HookedMethod(lambda done: stop.set() if done == 5 and rank == 1 else None)
        result = run_training(toy_recipe(folder / "two-to-one", **options), halting, stop=stop)
        report["stopped"] = {"step": result.step, "interrupted": result.interrupted}
        again = ToyMethod()
        result = run_training(toy_recipe(folder / "one-to-two", **options), again)
        report["one to two"] = {"step": result.step, "built": again.built}
        exact = ToyMethod()
        run_training(toy_recipe(folder / "whole-of-two", **options), exact)
        distributed.on_main(lambda: copy_checkpoint(folder), what="copying")
        run_training(toy_recipe(folder / "two-to-two", **options), ToyMethod())

        report["packs"] = train_packs(folder / "packs")
        train_packs(folder / "packs-halted", stop_after=9)
        report["packs resumed"] = train_packs(folder / "packs-halted")
        report["packs one to two"] = train_packs(folder / "packs-one-to-two")

        for design in DESIGNS:
            recipe = xfusion_recipe(folder / design, folder / "data", batch_size=1, design=design)
            run_training(recipe, build_xfusion_training(recipe))

        recipe = vpit_run(folder / "vpit", folder / "emblems", batch_size=1)
        run_training(recipe, build_training(recipe))

        durable.write = fail_to_write
        try:
            run_training(toy_recipe(folder / "disk-full", save_every=3), HookedMethod(lambda _: None))
        except ValueError as error:
            report["disk full"] = str(error)
    (folder / f"rank-{rank}.json").write_text(json.dumps(report))


def copy_checkpoint(folder: Path) -> None:
    shutil.copytree(folder / "two-to-one", folder / "two-to-two")


def fail_to_write(_descriptor: int, data: memoryview) -> int:
    raise OSError(28, f"No space left on device for {len(data)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
