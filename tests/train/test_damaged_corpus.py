"""Laws of a damaged set, read as a training reads it: every bad record is skipped, and counted exactly."""

from __future__ import annotations

import io
import json
import random
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.config import Recipe
from diptych.data.mixture import Mixture
from diptych.models.encoded_images import image_features
from diptych.models.training_sources import TrainingSources
from diptych.train.loop import run_training
from diptych.train.skipped_samples import TooManyBadSamples
from tiny_vpit import build_encoder
from train.toy_method import ToyMethod, toy_recipe

RECORDS, BATCH = 10_000, 50
KINDS = ("JSON", "missing image", "image", "image count")


class ReadingMethod(ToyMethod):
    """The toy, which reads and encodes its samples' images before it builds a batch."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.data = TrainingSources(recipe, cache_dir=None)
        self.data.encode_with(image_features(build_encoder(), 4, cache_dir=None))
        self.steps = 0
        self.stop, self.stops_at = threading.Event(), -1

    def num_samples(self) -> tuple[int, ...]:
        return self.data.num_samples()

    def build_batch(self, picks: Sequence[tuple[int, int, int]], *, seed: int) -> Any:
        self.data.prepare(picks)
        return super().build_batch(picks, seed=seed)

    def forward(self, batch: Any) -> Any:
        self.steps += 1
        if self.steps == self.stops_at:
            self.stop.set()
        return super().forward(batch)


def write_corpus(folder: Path, damage: dict[int, str]) -> Path:
    """RECORDS records of twenty good pictures; `damage`: kind of the bad ones by number."""
    file = io.BytesIO()
    noise = random.Random(0).randbytes(32 * 32 * 3)
    Image.frombytes("RGB", (32, 32), noise).save(file, "PNG")
    for number in range(20):
        Image.new("RGB", (32, 32), (12 * number, 0, 90)).save(folder / f"{number}.png")
    lines = []
    for number in range(RECORDS):
        kind = damage.get(number)
        image = f"{number % 20}.png"
        if kind == "missing image":
            image = f"nowhere-{number}.png"
        elif kind == "image":
            image = f"cut-{number}.png"
            (folder / image).write_bytes(file.getvalue()[: 100 + number % 2000])
        turns = [
            {"role": "user", "content": "<image>" * (2 if kind == "image count" else 1)},
            {"role": "assistant", "content": "x"},
        ]
        line = json.dumps({"messages": turns, "images": [image]})
        lines.append(line[: len(line) // 2] if kind == "JSON" else line)
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def recipe_of(folder: Path, name: str, **train: Any) -> Recipe:
    recipe = toy_recipe(
        folder / name, max_steps=RECORDS // BATCH, per_device_train_batch_size=BATCH, logging_steps=50, **train
    )
    source = recipe.data.sources[0].model_copy(update={"path": str(folder / "a.jsonl"), "weight": 1})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": (source,)})})


def damaged(every: int) -> dict[int, str]:
    """One in `every` records is bad; the kinds in turn, at places drawn by a seed."""
    places = random.Random(1).sample(range(RECORDS), RECORDS // every)
    return {place: KINDS[turn % len(KINDS)] for turn, place in enumerate(sorted(places))}


def test_ten_thousand_records_are_counted_exactly_and_resumed_past(tmp_path: Path) -> None:
    damage = damaged(110)
    folder = write_corpus(tmp_path, damage)
    expected = dict(Counter(damage.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = ReadingMethod(recipe := recipe_of(folder, "whole"))
        assert run_training(recipe, method).skipped_samples == expected
        drawn = {pick[2] for pick in method.built}
        assert drawn == set(range(RECORDS)) - set(damage)

        mixture = Mixture((RECORDS,), (1,), recipe.seed)
        stops_at = next(draw for draw in range(4000, RECORDS) if mixture.pick(draw)[2] in damage) // BATCH + 1
        method = ReadingMethod(recipe := recipe_of(folder, "parts"))
        method.stops_at = stops_at
        assert run_training(recipe, method, stop=method.stop).interrupted
        recipe = recipe_of(folder, "parts", resume_from_checkpoint="latest")
        assert run_training(recipe, ReadingMethod(recipe)).skipped_samples == expected
    whole, parts = (sorted((folder / name / "morph").iterdir()) for name in ("whole", "parts"))
    assert [path.read_bytes() for path in whole] == [path.read_bytes() for path in parts]


def test_one_in_fifty_ends_the_run(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, dict.fromkeys(damaged(50), "image"))
    recipe = recipe_of(folder, "run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = ReadingMethod(recipe)
        with pytest.raises(TooManyBadSamples, match=r"image: \d+.*max_bad_fraction 0\.01"):
            run_training(recipe, method)
    assert method.steps < RECORDS // BATCH
