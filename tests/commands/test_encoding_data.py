"""Laws of `diptych data encode`: everything is computed once, by whom it may be, and found by every later run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import diptych
from diptych.backbones.tiny_language import build_tiny_language_model
from diptych.commands.encoding_data import encode_share
from diptych.config import Recipe
from diptych.models import training_sources
from diptych.models.checkpoint import build_morph
from diptych.models.xfusion_training import XFusionTraining
from tiny_xfusion import FakeAutoencoder
from train.tiny_xfusion_runs import write_samples, xfusion_recipe
from train.toy_method import ToyMethod


class Counting(FakeAutoencoder):
    def __init__(self) -> None:
        self.seen = 0

    def encode(self, images: Any) -> Any:
        self.seen += len(images)
        return super().encode(images)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Of a set that counts as large: nothing of it is encoded before it is drawn."""
    monkeypatch.setattr(training_sources, "PREPARED_IMAGES", 2)
    write_samples(tmp_path / "data")
    made = xfusion_recipe(tmp_path / "run", tmp_path / "data", batch_size=2)
    return made.model_copy(update={"cache_dir": str(tmp_path / "cache")})


def method_of(recipe: Recipe) -> tuple[XFusionTraining, Counting]:
    autoencoder = Counting()
    morph = build_morph(recipe, language=build_tiny_language_model(), autoencoder=autoencoder)
    return XFusionTraining(recipe, morph), autoencoder


def test_what_is_encoded_is_not_computed_again(recipe: Recipe) -> None:
    method, autoencoder = method_of(recipe)
    assert encode_share(method) == {}
    assert autoencoder.seen == 8, "eight images that are drawn and read"
    later, autoencoder = method_of(recipe)
    picks = [(n, source, n) for source in (0, 1) for n in range(8)]
    batch = later.build_batch(picks, seed=0)
    later(batch)
    assert autoencoder.seen == 0
    assert encode_share(later) == {}
    assert autoencoder.seen == 0


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_all_samples_between_them(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr("diptych.distributed.world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr("diptych.distributed.rank", lambda rank=rank: rank)
        method = ToyMethod()
        encode_share(method)
        seen += [pick[1:] for pick in method.built]
    assert sorted(seen) == [(source, index) for source, count in enumerate((11, 7)) for index in range(count)]


def test_bad_samples_are_skipped_and_counted() -> None:
    method = ToyMethod(broken=[(0, 4), (1, 2)])
    assert encode_share(method) == {"broken": 2}
    assert len({pick[1:] for pick in method.built}) == 16


def test_a_kill_costs_one_shard_at_most_and_nothing_of_the_result(tmp_path: Path) -> None:
    """8 kills at random moments of encoding 48 images in shards of 4, then a session that ends."""
    roots = (Path(diptych.__file__).parents[1], Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))}
    command = [sys.executable, str(Path(__file__).with_name("encode_trial.py")), str(tmp_path), "8"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    print(found)
    assert found["codes"] == [0, 0, 0]
    assert found["kills"] >= 5, "the others came after the end"
    assert found["encoded before the last session"] > 0
    assert found["encoded in one"] == 48
    assert found["same images"]
    assert found["encoded again"] <= 4 * found["kills"]
    assert found["encoded where all was there"] == 0
    assert all(count >= 48 for count in found["caches"].values()), "latents, and states of 48 texts"
    assert found["equal"]
