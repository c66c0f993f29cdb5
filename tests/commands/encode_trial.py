"""`diptych data encode`, killed again and again at random moments, then left to end. Usage: FOLDER KILLS.

Forks rather than starts its sessions, so that a session costs milliseconds. Writes what each session encodes into
FOLDER/killed.log, a line per image as it begins, and prints what was found as a line of JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.tiny_language import build_tiny_language_model
from diptych.commands import encoding_data
from diptych.config import Recipe
from diptych.data.tensor_cache import TensorCache
from diptych.models import encoded_images, training_sources
from diptych.models.checkpoint import build_morph
from diptych.models.xfusion_training import XFusionTraining
from train.tiny_xfusion_runs import AveragedPixels, xfusion_recipe

NUM_IMAGES, SHARD = 48, 4


class Telling(AveragedPixels):
    """Names each image that it is given in a file, at once, and takes its time."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def encode(self, images: Tensor) -> Tensor:
        for image in images:
            with self.log.open("a") as file:
                file.write(hashlib.sha256(image.numpy().tobytes()).hexdigest() + "\n")
            time.sleep(0.002)
        return super().encode(images)


def write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    with (folder / "read.jsonl").open("w") as file:
        for number in range(NUM_IMAGES):
            pixels = np.random.RandomState(number).randint(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            turns = [
                {"role": "user", "content": f"Look at {number}: <image>What?"},
                {"role": "assistant", "content": str(number)},
            ]
            file.write(json.dumps({"messages": turns, "images": [f"{number}.png"]}) + "\n")


def session(folder: Path, name: str) -> None:
    """One call of the command, with models that need no download and shards of few images."""
    torch.set_num_threads(1)
    encoded_images.SAVED_AT_ONCE = encoding_data.AT_ONCE = SHARD
    training_sources.PREPARED_IMAGES = 2
    recipe = xfusion_recipe(folder / "run", folder / "data", batch_size=2)
    sources = tuple(source for source in recipe.data.sources if source.path.endswith("read.jsonl"))
    data = recipe.data.model_copy(update={"sources": sources})
    recipe = recipe.model_copy(update={"data": data, "cache_dir": str(folder / name)})

    def build_method(recipe: Recipe) -> XFusionTraining:
        autoencoder = Telling(folder / f"{name}.log")
        return XFusionTraining(recipe, build_morph(recipe, language=LANGUAGE, autoencoder=autoencoder))

    encoding_data.build_method = build_method
    with contextlib.redirect_stdout(sys.stderr):
        encoding_data.encode(recipe, progress=lambda what, done, total: None)


def fork_session(folder: Path, name: str) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            session(folder, name)
            code = 0
        finally:
            os._exit(code)
    return child


def lines(log: Path) -> list[str]:
    return log.read_text().split() if log.is_file() else []


def kill_one(folder: Path, choice: random.Random) -> bool:
    """Whether the session was killed before it ended by itself."""
    log = folder / "killed.log"
    wanted = len(lines(log)) + choice.randint(0, 2 * SHARD)
    child = fork_session(folder, "killed")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(lines(log)) < wanted:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    time.sleep(choice.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Of every cache in a folder, by its key: what it holds."""
    found = {}
    for own in sorted(path for path in folder.iterdir() if path.name != "indices"):
        cache = TensorCache(folder, key=own.name)
        found[own.name] = {content: cache.get(content) for content in sorted(cache._on_disk)}
    return found


def are_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one.keys() != other.keys():
        return False
    return all(
        torch.equal(value, other[key]) if isinstance(value, Tensor) else are_equal(value, other[key])
        for key, value in one.items()
    )


def trial(folder: Path, kills: int) -> dict[str, Any]:
    write_pictures(folder / "data")
    choice = random.Random(kills)
    done = sum(kill_one(folder, choice) for _ in range(kills))
    before = len(set(lines(folder / "killed.log")))
    codes = [os.waitpid(fork_session(folder, name), 0)[1] for name in ("killed", "whole")]
    encoded, whole = lines(folder / "killed.log"), lines(folder / "whole.log")
    codes.append(os.waitpid(fork_session(folder, "killed"), 0)[1])
    caches = [contents(folder / name) for name in ("killed", "whole")]
    return {
        "kills": done,
        "codes": codes,
        "encoded before the last session": before,
        "encoded in one": len(whole),
        "same images": set(encoded) == set(whole),
        "encoded again": len(encoded) - len(set(encoded)),
        "encoded where all was there": len(lines(folder / "killed.log")) - len(encoded),
        "caches": {name: len(held) for name, held in caches[1].items()},
        "equal": are_equal(*caches),
    }


if __name__ == "__main__":
    LANGUAGE = build_tiny_language_model()
    print(json.dumps(trial(Path(sys.argv[1]), int(sys.argv[2]))))
