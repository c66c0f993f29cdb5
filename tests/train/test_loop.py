"""Laws of the train loop: accumulation, resume, interruption, what may not be finite, what stays frozen."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diptych.config import load_recipe
from diptych.data.mixture import Mixture
from diptych.models.method import LossSum
from diptych.train import loop
from diptych.train.log import read_log
from diptych.train.loop import NonFiniteError, TrainResult, run_training
from train.toy_method import HookedMethod, ToyBatch, ToyMethod, toy_recipe

CLOCKED = ("train_seconds", "samples_per_second", "loader_wait")


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in CLOCKED} for row in rows]


def final_state(output: Path) -> dict[str, Any]:
    """Everything that must be equal bit for bit: hashes of all tensors, all JSON but the clock, the log, the morph."""
    newest = sorted((output / "checkpoints").glob("step-*"))[-1]
    state = json.loads((newest / "state.json").read_text())
    state["recipe"]["train"]["resume_from_checkpoint"] = None
    state["recipe"]["output_dir"] = None
    del state["train_seconds"]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in newest.glob("*.safetensors")}
    assert len(hashes) == 3
    morph = hashlib.sha256((output / "morph" / "trained.safetensors").read_bytes()).hexdigest()
    return {"state": state, "hashes": hashes, "log": timeless(read_log(output / "log.jsonl")), "morph": morph}


def test_time_left_is_told_from_the_first_step_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = HookedMethod(lambda done: time.sleep(0.6))
    run_training(toy_recipe(tmp_path, max_steps=3, logging_steps=1), method)
    told = [line.rpartition("left ")[2] for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert told[0] != "0s"
    assert told[-1] == "0s"


def run_until(output: Path, passes: int, options: dict[str, Any], **train: Any) -> TrainResult:
    """A session that is asked to stop during a forward pass."""
    stop = threading.Event()
    method = HookedMethod(lambda done: stop.set() if done == passes else None, **options)
    return run_training(toy_recipe(output, **train), method, stop=stop)


RESUMABLE = {
    "gradient_accumulation_steps": 3,
    "logging_steps": 4,
    "sample_every": 5,
    "max_steps": 14,
    "resume_from_checkpoint": "latest",
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("uninterrupted")
    run_training(toy_recipe(output, **RESUMABLE), ToyMethod(noise=0.1))
    return final_state(output)


@pytest.mark.parametrize("passes", [0, 4, 17, 25, 41], ids=lambda passes: f"stopped-in-pass-{passes}")
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, uninterrupted: dict[str, Any], passes: int
) -> None:
    """With accumulation (a stop falls within a step), global randomness, sampling, averages and log windows."""
    first = run_until(tmp_path, passes, {"noise": 0.1}, **RESUMABLE)
    assert first.interrupted == (passes < 39)
    assert first.step == min(passes // 3 + 1, 14)
    torch.manual_seed(99)
    random.seed(99)
    second = run_training(toy_recipe(tmp_path, **RESUMABLE), ToyMethod(noise=0.1))
    assert (second.step, second.interrupted, second.exit_code) == (14, False, 0)
    assert final_state(tmp_path) == uninterrupted


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_crashed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, uninterrupted: dict[str, Any], asynchronous: bool
) -> None:
    def crash(done: int) -> None:
        if done == 34:
            raise RuntimeError("crash")

    options = {**RESUMABLE, "save_every": 4, "async_save": asynchronous}
    with pytest.raises(RuntimeError, match="crash"):
        run_training(toy_recipe(tmp_path, **options), HookedMethod(crash, noise=0.1))
    result = run_training(toy_recipe(tmp_path, **options), ToyMethod(noise=0.1))
    assert result.step == 14
    ended = final_state(tmp_path)
    ended["state"]["recipe"]["train"] |= {key: uninterrupted["state"]["recipe"]["train"][key] for key in options}
    ended["state"]["recipe"]["train"]["resume_from_checkpoint"] = None
    assert ended == uninterrupted


def test_a_run_resumed_between_two_rows_of_the_log_with_nothing_left_to_do_ends_well(tmp_path: Path) -> None:
    run_training(toy_recipe(tmp_path, logging_steps=4, max_steps=3), ToyMethod())
    rows = (tmp_path / "log.jsonl").read_text()
    options = {"logging_steps": 4, "max_steps": 3, "resume_from_checkpoint": "latest"}
    result = run_training(toy_recipe(tmp_path, **options), ToyMethod())
    assert (result.step, result.interrupted) == (3, False)
    assert (tmp_path / "log.jsonl").read_text() == rows


def test_the_first_step_of_a_resumed_run_may_be_skipped(tmp_path: Path) -> None:
    stopped = run_until(tmp_path, 3, {}, logging_steps=8, max_steps=8)
    assert stopped.interrupted
    draw = stopped.step * 2
    options = {"logging_steps": 8, "max_steps": stopped.step + 1, "max_skipped_steps": 1}
    poisoned = ToyMethod(poison={draw: "gradient"})
    result = run_training(toy_recipe(tmp_path, resume_from_checkpoint="latest", **options), poisoned)
    assert (result.step, result.skipped_steps) == (stopped.step + 1, 1)


def test_a_finished_run_resumed_does_nothing_and_may_be_prolonged(tmp_path: Path) -> None:
    run_training(toy_recipe(tmp_path), ToyMethod())
    before = final_state(tmp_path)
    method = ToyMethod()
    again = run_training(toy_recipe(tmp_path, resume_from_checkpoint="latest"), method)
    assert (again.step, method.built) == (12, [])
    assert final_state(tmp_path) == before
    longer = run_training(toy_recipe(tmp_path, resume_from_checkpoint="latest", max_steps=15), method)
    assert longer.step == 15
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == list(range(1, 16))


def test_every_sample_of_the_stream_is_built_once_in_order(tmp_path: Path) -> None:
    stop, first, second = threading.Event(), ToyMethod(), ToyMethod()
    halting = HookedMethod(lambda done: stop.set() if done == 6 else None)
    halting.built = first.built
    options = {"gradient_accumulation_steps": 2, "resume_from_checkpoint": "latest"}
    ended = run_training(toy_recipe(tmp_path, **options), halting, stop=stop).step
    run_training(toy_recipe(tmp_path, **options), second)
    draws = [draw for draw, _, _ in first.built[: ended * 4]] + [draw for draw, _, _ in second.built]
    assert draws == list(range(48))


@pytest.mark.parametrize("kinds", ["mixed", "text"])
def test_accumulation_changes_nothing(tmp_path: Path, kinds: str) -> None:
    """1 x 8 equals 2 x 4 equals 8 x 1, with losses of varying counts."""
    finals = []
    for micro, accumulation in ((8, 1), (2, 4), (1, 8)):
        output = tmp_path / str(micro)
        options = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
        run_training(toy_recipe(output, **options), ToyMethod(kinds=kinds))
        losses = torch.tensor([row["loss"] for row in read_log(output / "log.jsonl")])
        finals.append((losses, load_file(output / "morph" / "trained.safetensors")))
    (losses, weights), *others = finals
    for other_losses, other_weights in others:
        torch.testing.assert_close(other_losses, losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other_weights, weights, rtol=1e-4, atol=1e-5)


def test_a_loss_is_the_mean_over_the_whole_step(tmp_path: Path) -> None:
    options = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    run_training(toy_recipe(tmp_path, **options), ToyMethod())
    method = ToyMethod()
    batch = method.build_batch([(d, s, i) for d, s, i in _picks(range(6))], seed=3)
    row = read_log(tmp_path / "log.jsonl")[0]
    for name, loss in method(batch).items():
        assert row["losses"][name] == pytest.approx(float(loss.total.detach()) / loss.count, rel=1e-5)
    assert row["loss"] == pytest.approx(0.2 * row["losses"]["text"] + row["losses"]["image"])


def _picks(draws: range) -> list[tuple[int, int, int]]:
    mixture = Mixture((11, 7), (2, 1), 3)
    return [mixture.pick(draw) for draw in draws]


@pytest.mark.parametrize("site", ["text", "image", "gradient"])
def test_what_is_not_finite_stops_the_run_before_the_update(tmp_path: Path, site: str) -> None:
    poisoned = 4 * 2 + 1  # a draw of step 5
    method = ToyMethod(poison={poisoned: site})
    before: dict[str, torch.Tensor] = {}

    def watch(done: int) -> None:
        if done == 4:
            before.update({name: value.detach().clone() for name, value in method.trainable_parameters().items()})

    method.register_forward_pre_hook(lambda *_: watch(len(read_log(tmp_path / "log.jsonl"))))
    named = "norm of the gradient" if site == "gradient" else f"loss '{site}' is nan"
    with pytest.raises(NonFiniteError, match=rf"step 5: .*{named}.*samples 8 to 9.*max_skipped_steps"):
        run_training(toy_recipe(tmp_path, save_every=2), method)
    assert before
    for name, value in method.trainable_parameters().items():
        assert torch.equal(value, before[name]), name
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    assert not (tmp_path / "morph").exists()


@pytest.mark.parametrize("site", ["text", "image", "gradient"])
def test_what_is_not_finite_may_be_skipped(tmp_path: Path, site: str) -> None:
    """The skipped step changes no weight; the count survives a resume; one more than allowed stops."""
    options = {"max_skipped_steps": 1, "resume_from_checkpoint": "latest"}
    result = run_training(toy_recipe(tmp_path, **options), ToyMethod(poison={9: site}))
    assert (result.step, result.skipped_steps) == (12, 1)
    rows = read_log(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, *range(6, 13)]  # nothing to tell of step 5
    assert all(math.isfinite(row["loss"]) for row in rows)
    with pytest.raises(NonFiniteError, match="step 14"):
        run_training(toy_recipe(tmp_path, max_steps=15, **options), ToyMethod(poison={27: site}))


def test_frozen_bytes_stay(tmp_path: Path) -> None:
    method = ToyMethod()
    before = method.frozen_hashes()
    run_training(toy_recipe(tmp_path, max_steps=100, logging_steps=50), method)
    assert method.frozen_hashes() == before
    assert all(parameter.grad is None for parameter in method.base.parameters())
    stored = [name for path in (tmp_path / "checkpoints").rglob("*.safetensors") for name in load_file(path)]
    assert stored
    assert not any("base" in name for name in stored)
    trained = load_file(tmp_path / "checkpoints" / "step-000100" / "trained.safetensors")
    assert not torch.equal(trained["image_block.0.weight"], ToyMethod().trainable_parameters()["image_block.0.weight"])


@pytest.mark.slow
def test_50_interrupted_runs_resume_exactly(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    choice = random.Random(0)
    for run in range(50):
        for _ in range(50):
            at = choice.randrange(25)
            method = HookedMethod(lambda done, at=at: os.kill(os.getpid(), 15) if done == at else None, noise=0.1)
            if not run_training(toy_recipe(tmp_path / str(run), **RESUMABLE), method).interrupted:
                break
        assert final_state(tmp_path / str(run)) == uninterrupted


class TickingTime:
    """A clock that goes 10 ms ahead whenever it is read; the loop reads it three times a step."""

    now = 100.0

    def perf_counter(self) -> float:
        self.now += 0.01
        return self.now


def test_training_stops_by_the_clock_and_resumed_time_counts_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "time", TickingTime())
    options = {"max_steps": 10_000, "max_train_minutes": 1 / 60, "resume_from_checkpoint": "latest"}
    first = run_until(tmp_path, 9, {}, **options)
    assert (first.interrupted, first.step) == (True, 10)
    assert first.train_seconds == pytest.approx(0.3)
    second = run_training(toy_recipe(tmp_path, **options), ToyMethod())
    assert not second.interrupted
    assert 32 <= second.step <= 34
    assert 1.0 <= second.train_seconds + 0.03 <= 1.06
    rates = [row["learning_rate"] for row in read_log(tmp_path / "log.jsonl")]
    assert rates[-1] < 0.02 * max(rates)
    assert run_training(toy_recipe(tmp_path, **options), ToyMethod()).step <= second.step + 1


def test_grids_are_drawn_with_the_averaged_weights_and_change_nothing(tmp_path: Path) -> None:
    run_training(toy_recipe(tmp_path / "with", sample_every=5), ToyMethod(noise=0.1))
    run_training(toy_recipe(tmp_path / "without"), ToyMethod(noise=0.1))
    drawn = sorted(path.name for path in (tmp_path / "with" / "samples").iterdir())
    assert drawn == ["step-000005.png", "step-000010.png", "step-000012.png"]
    grids = [final_state(tmp_path / name)["hashes"] for name in ("with", "without")]
    assert grids[0] == grids[1]
    method = ToyMethod()
    method.load_state_dict(load_file(tmp_path / "with" / "morph" / "trained.safetensors"), strict=False)
    with Image.open(tmp_path / "with" / "samples" / "step-000012.png") as image, torch.no_grad():
        assert image.getpixel((0, 0)) == method.sample_grid(seed=0).getpixel((0, 0))


def test_a_failure_that_is_no_samples_fault_stops_the_run_with_its_own_error(tmp_path: Path) -> None:
    method = ToyMethod()
    build = method.build_batch

    def broken(picks: Any, *, seed: int) -> ToyBatch:
        if picks[0][0] == 8:
            raise OSError("the disk is gone")
        return build(picks, seed=seed)

    method.build_batch = broken
    with pytest.raises(OSError, match="the disk is gone"):
        run_training(toy_recipe(tmp_path), method)
    assert len(read_log(tmp_path / "log.jsonl")) == 4


def test_methods_that_break_their_word_are_refused(tmp_path: Path) -> None:
    class Wrong(ToyMethod):
        def loss_counts(self, batch: ToyBatch) -> dict[str, float]:
            return {**super().loss_counts(batch), "image": 1e6}

    with pytest.raises(ValueError, match=r"other counts than loss_counts promised: image: .* instead of 1000000"):
        run_training(toy_recipe(tmp_path / "a"), Wrong())
    loose = ToyMethod()
    loose.trainable_parameters = lambda: {"scale": loose.scale}
    with pytest.raises(ValueError, match="take gradients but are not among those trained: unused, text_block"):
        run_training(toy_recipe(tmp_path / "b"), loose)
    nothing = ToyMethod().requires_grad_(False)
    with pytest.raises(ValueError, match="trains nothing"):
        run_training(toy_recipe(tmp_path / "c"), nothing)


def test_the_recipe_is_written_so_that_it_can_be_run_again(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, max_steps=2)
    run_training(recipe, ToyMethod())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_loading_hides_behind_training(tmp_path: Path) -> None:
    class Slow(HookedMethod):
        def build_batch(self, picks: Any, *, seed: int) -> ToyBatch:
            time.sleep(0.01)
            return super().build_batch(picks, seed=seed)

    result = run_training(toy_recipe(tmp_path, max_steps=15), Slow(lambda _: time.sleep(0.05)))
    assert result.loader_wait <= 0.1  # else it were 0.2


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    losses = []
    for dtype in ("float32", "bfloat16"):
        method = ToyMethod()
        run_training(toy_recipe(tmp_path / dtype).model_copy(update={"dtype": dtype}), method)
        assert {parameter.dtype for parameter in method.parameters()} == {torch.float32}
        losses.append([row["loss"] for row in read_log(tmp_path / dtype / "log.jsonl")])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_global_generators_are_restored(tmp_path: Path) -> None:
    """A resumed run draws from numpy and python what the uninterrupted one would have drawn."""

    class Gambler(ToyMethod):
        def forward(self, batch: ToyBatch) -> dict[str, LossSum]:
            chance = 1 + 0.1 * random.random() + 0.1 * float(np.random.rand()) + 0.01 * random.gauss(0, 1)
            losses = super().forward(batch)
            return {name: LossSum(loss.total * chance, loss.count) for name, loss in losses.items()}

    options = {"save_every": 5, "resume_from_checkpoint": "latest", "save_total_limit": 5}
    run_training(toy_recipe(tmp_path / "a", max_steps=12, **options), Gambler())
    run_training(toy_recipe(tmp_path / "b", max_steps=12, **options), Gambler())
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-000012")
    run_training(toy_recipe(tmp_path / "b", max_steps=12, **options), Gambler())
    assert final_state(tmp_path / "a") == final_state(tmp_path / "b")
