"""Laws of resuming: kills, damage, other runs, other models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import diptych
from diptych.train.checkpoint import CheckpointError, find_checkpoint, find_latest, write_checkpoint
from diptych.train.durable import MANIFEST, only_writer, write_manifest
from diptych.train.loop import run_training
from train.toy_method import ToyMethod, make_snapshot, toy_recipe


def check_kills(folder: Path, kills: int) -> None:
    roots = (Path(diptych.__file__).parents[1], Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))}
    command = [sys.executable, str(Path(__file__).with_name("kill_trial.py")), str(folder), str(kills)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    reports = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [report["mode"] for report in reports] == ["sync", "async"]
    for report in reports:
        print(report)
        assert report["bad"] == []
        assert report["codes"] == [0, 0]
        assert report["equal"], "the killed run differs from the one that was left alone"
        assert report["left"] == []
        assert report["killed_while_writing"] > kills / 5


def test_15_kills_lose_at_most_the_checkpoint_being_written(tmp_path: Path) -> None:
    """15 with saving in the foreground, 15 with saving in the background."""
    check_kills(tmp_path, 15)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_200_kills_lose_at_most_the_checkpoint_being_written(tmp_path: Path) -> None:
    check_kills(tmp_path, 200)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at steps 4, 8 and 12."""
    output = tmp_path_factory.mktemp("finished")
    run_training(toy_recipe(output, save_every=4, save_total_limit=3), ToyMethod())
    return output


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def flip(path: Path, where: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run: Path) -> None:
    """safetensors alone would load this flipped bit."""
    damaged = run / "checkpoints" / "step-000012" / "trained.safetensors"
    flip(damaged, damaged.stat().st_size - 5)
    load_file(damaged)
    (run / "checkpoints" / "step-000008" / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="falling back") as caught:
        checkpoint = find_checkpoint("latest", run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.path.name == "step-000004"
    messages = [str(each.message) for each in caught]
    assert any("step-000012/trained.safetensors is corrupt: its SHA-256" in message for message in messages)
    assert any("step-000008/manifest.json cannot be read" in message for message in messages)


def test_a_run_goes_on_over_a_damaged_checkpoint_and_replaces_it(run: Path, finished: Path) -> None:
    flip(run / "checkpoints" / "step-000012" / "optimizer.safetensors")
    with pytest.warns(UserWarning, match=r"step-000012/optimizer\.safetensors is corrupt"):
        result = run_training(toy_recipe(run, save_every=4, resume_from_checkpoint="latest"), ToyMethod())
    assert result.step == 12
    ends = [root / "checkpoints" / "step-000012" / "trained.safetensors" for root in (run, finished)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    latest = find_latest(run / "checkpoints")
    assert latest is not None
    assert latest.path.name == "step-000012"


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_saved_after_a_fall_back_is_not_removed_for_the_damaged_one(tmp_path: Path, keep: int) -> None:
    """A damaged step-000012 is newer than all that follows until the run has passed it, and must not push it out."""
    recipe = {"save_every": 4, "save_total_limit": 3}
    run_training(toy_recipe(tmp_path, **recipe), ToyMethod())
    flip(tmp_path / "checkpoints" / "step-000012" / "optimizer.safetensors")
    shutil.rmtree(tmp_path / "checkpoints" / "step-000008")
    recipe = {"save_every": 2, "save_total_limit": keep, "max_steps": 6, "resume_from_checkpoint": "latest"}
    with pytest.warns(UserWarning, match="step-000012"):
        run_training(toy_recipe(tmp_path, **recipe), ToyMethod())
    with pytest.warns(UserWarning, match="step-000012"):
        latest = find_latest(tmp_path / "checkpoints")
    assert latest is not None
    assert latest.path.name == "step-000006"
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-000004", "step-000006", "step-000012"][2 - keep :]


def test_latest_of_nothing_but_damage_is_refused_with_every_file(run: Path) -> None:
    log = (run / "log.jsonl").read_bytes()
    for folder in (run / "checkpoints").glob("step-*"):
        flip(folder / "trained.safetensors")
    with pytest.warns(UserWarning, match="corrupt"), pytest.raises(CheckpointError) as caught:
        run_training(toy_recipe(run, resume_from_checkpoint="latest"), ToyMethod())
    for name in ("step-000004", "step-000008", "step-000012", "trained.safetensors is corrupt", "output_dir"):
        assert name in str(caught.value)
    assert (run / "log.jsonl").read_bytes() == log


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with (
        only_writer(tmp_path),
        pytest.raises(ValueError, match=f"another run is writing into output_dir {tmp_path}"),
    ):
        run_training(toy_recipe(tmp_path, max_steps=2), ToyMethod())
    assert run_training(toy_recipe(tmp_path, max_steps=2), ToyMethod()).step == 2


def test_a_damaged_checkpoint_asked_for_by_path_is_refused_by_file(run: Path) -> None:
    damaged = run / "checkpoints" / "step-000012"
    flip(damaged / "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json is corrupt"):
        run_training(toy_recipe(run, resume_from_checkpoint=str(damaged)), ToyMethod())
    with pytest.raises(CheckpointError, match=r"there is no checkpoint folder .*nowhere"):
        run_training(toy_recipe(run, resume_from_checkpoint=str(run / "nowhere")), ToyMethod())


def test_latest_of_nothing_is_a_fresh_start(tmp_path: Path) -> None:
    assert find_checkpoint("latest", tmp_path / "none") is None
    assert find_checkpoint(None, tmp_path / "none") is None


def test_a_fresh_run_does_not_overwrite_another(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"already holds step-000012; continue with .*=latest"):
        run_training(toy_recipe(run), ToyMethod())


def test_an_older_checkpoint_resumes_only_into_another_folder(run: Path, tmp_path: Path) -> None:
    older = str(run / "checkpoints" / "step-000004")
    with pytest.raises(CheckpointError, match="newer than step-000004: step-000008, step-000012"):
        run_training(toy_recipe(run, resume_from_checkpoint=older), ToyMethod())
    run_training(toy_recipe(tmp_path / "branch", resume_from_checkpoint=older), ToyMethod())
    ends = [root / "morph" / "trained.safetensors" for root in (run, tmp_path / "branch")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_another_run_is_refused_with_every_difference(run: Path) -> None:
    base: dict[str, Any] = {"resume_from_checkpoint": "latest"}
    with pytest.raises(CheckpointError, match="seed: 3 in the checkpoint, 4 now"):
        run_training(toy_recipe(run, seed=4, **base), ToyMethod())
    with pytest.raises(CheckpointError) as caught:
        run_training(toy_recipe(run, per_device_train_batch_size=4, ema=0.0, **base), ToyMethod())
    assert "samples per step: 2 in the checkpoint, 4 now" in str(caught.value)
    assert "averaged weights: True in the checkpoint, False now" in str(caught.value)
    recipe = toy_recipe(run, **base)
    tower = recipe.vision_tower.model_copy(update={"hidden_size": 64})
    with pytest.raises(CheckpointError, match="vision_tower: hidden_size None in the checkpoint, hidden_size 64 now"):
        run_training(recipe.model_copy(update={"vision_tower": tower}), ToyMethod())
    method = ToyMethod()
    with torch.no_grad():
        method.base.weight.add_(1)
    with pytest.raises(CheckpointError, match=r"base: [0-9a-f]{64} in the checkpoint, [0-9a-f]{64} now"):
        run_training(toy_recipe(run, **base), method)


def test_the_same_samples_per_step_may_be_split_otherwise(run: Path) -> None:
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 13}
    assert run_training(toy_recipe(run, resume_from_checkpoint="latest", **options), ToyMethod()).step == 13


def test_another_model_is_refused_with_every_name(run: Path) -> None:
    class Other(ToyMethod):
        def __init__(self) -> None:
            super().__init__()
            del self.unused
            self.added = torch.nn.Parameter(torch.ones(2))
            self.scale = torch.nn.Parameter(torch.ones(4))

    with pytest.raises(CheckpointError) as caught:
        run_training(toy_recipe(run, resume_from_checkpoint="latest"), Other())
    for part in ("trained.safetensors", "missing added", "extra unused", "scale has shape [3] instead of [4]"):
        assert part in str(caught.value)


def rewrite(checkpoint: Path, group: str, change: str, name: str) -> None:
    """Changes one tensor and makes the manifest agree, as if the model had been another."""
    path = checkpoint / f"{group}.safetensors"
    tensors = load_file(path)
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors[name + ".more"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(*tensors[name].shape, 2)
    save_file(tensors, path)
    files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    data = path.read_bytes()
    files[path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, files)


def test_every_key_is_checked_and_nothing_is_loaded_before(finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "checkpoints" / "step-000012"
    keys = [(path.stem, name) for path in sorted(checkpoint.glob("*.safetensors")) for name in load_file(path)]
    assert len(keys) == 4 * len(ToyMethod().trainable_parameters())
    for number, (group, name) in enumerate(keys):
        change = ("missing", "extra", "shape")[number % 3]
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(checkpoint, tmp_path / "copy")
        rewrite(tmp_path / "copy", group, change, name)
        method = ToyMethod()
        recipe = toy_recipe(tmp_path / "out", resume_from_checkpoint=str(tmp_path / "copy"))
        with pytest.raises(CheckpointError) as caught:
            run_training(recipe, method)
        assert f"{group}.safetensors does not fit" in str(caught.value)
        assert name in str(caught.value)
        fresh = ToyMethod().trainable_parameters()
        assert all(torch.equal(value, fresh[key]) for key, value in method.trainable_parameters().items())


def test_old_checkpoints_go_only_after_the_new_one_stands(tmp_path: Path) -> None:
    for step in range(1, 7):
        write_checkpoint(tmp_path, make_snapshot(step), keep=2)
        kept = sorted(path.name for path in tmp_path.iterdir())
        assert kept == [f"step-{number:06d}" for number in range(max(1, step - 1), step + 1)]


def test_nothing_that_executes_is_in_a_checkpoint(finished: Path) -> None:
    names = {path.name for path in (finished / "checkpoints" / "step-000012").iterdir()}
    assert names == {"trained.safetensors", "optimizer.safetensors", "average.safetensors", "state.json", MANIFEST}
