"""Laws of packed training: a method knows the length of every pick, and packs train as their samples one by one do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.config import build_recipe
from diptych.models.vpit_training import VPiTTraining
from diptych.train.log import read_log
from diptych.train.loop import run_training
from tiny_vpit import build_training, vpit_recipe, write_emblems
from train.tiny_xfusion_runs import build_xfusion_training, write_samples, xfusion_recipe


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Beside the emblems, conversations of very unequal lengths."""
    folder = write_emblems(tmp_path / "emblems")
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "Say it. " * (1 + 3 * n)},
                    {"role": "assistant", "content": "It. " * (1 + n)},
                ],
                "images": [],
            }
        )
        for n in range(6)
    ]
    file = next(iter(sorted(folder.glob("*.jsonl"))))
    file.write_text(file.read_text() + "\n".join(lines) + "\n")
    return folder


def picks_of(method: Any) -> list[tuple[int, int, int]]:
    return [(3 * k + s, s, k) for s, count in enumerate(method.num_samples()) for k in range(count)]


def vpit(data: Path, **settings: Any) -> VPiTTraining:
    method = build_training(vpit_recipe("nowhere", data, **settings))
    method.eval()
    return method


def test_vpit_knows_how_long_a_sample_is(data: Path) -> None:
    method = vpit(data, vpit={"text_cond_dropout_prob": 0.5})
    for pick in picks_of(method):
        batch = method.build_batch([pick], seed=2).batch
        assert method.num_tokens(pick, seed=2) == len(batch.token_ids)


def test_x_fusion_knows_how_long_a_sample_is(tmp_path: Path) -> None:
    write_samples(tmp_path / "data")
    method = build_xfusion_training(xfusion_recipe(tmp_path / "out", tmp_path / "data", batch_size=2))
    for pick in picks_of(method):
        assert method.num_tokens(pick, seed=2) == len(method.build_batch([pick], seed=2).batch.token_ids)


def test_a_pack_of_unequal_samples_has_the_losses_and_gradients_of_each_alone(data: Path) -> None:
    method = vpit(data)
    assert method.longest_by_rows > 0
    picks = picks_of(method)
    whole = method.build_batch(picks, seed=1)
    assert whole.rows.groups is not None, "the longest is far longer than the rest"
    trained = method.trainable_parameters()

    def gradients(batches: list[Any]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        totals: dict[str, float] = {}
        for batch in batches:
            losses = method(batch)
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + float(loss.total.detach())
            torch.stack([loss.total for loss in losses.values()]).sum().backward()
        found = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
        for parameter in trained.values():
            parameter.grad = None
        return totals, found

    together, alone = gradients([whole]), gradients([method.build_batch([pick], seed=1) for pick in picks])
    assert together[0] == pytest.approx(alone[0], rel=1e-4)
    assert together[1].keys() == alone[1].keys()
    for name, gradient in together[1].items():
        torch.testing.assert_close(gradient, alone[1][name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"train": {"gradient_checkpointing": True}}], ids=["plain", "recomputed"])
def test_packed_vpit_trains_and_learns(tmp_path: Path, data: Path, settings: dict[str, Any]) -> None:
    train = {"max_steps": 12, "packing_length": 400, "logging_steps": 1, "learning_rate": 3e-3}
    recipe = vpit_recipe(tmp_path / "run", data, train=train | settings.get("train", {}))
    result = run_training(recipe, build_training(recipe))
    assert result.step == 12
    assert result.samples_per_second > 0
    losses = [row["loss"] for row in read_log(tmp_path / "run" / "log.jsonl")]
    assert losses[-1] < losses[0]


def test_packed_x_fusion_trains(tmp_path: Path) -> None:
    write_samples(tmp_path / "data")
    settings = xfusion_recipe(tmp_path / "run", tmp_path / "data", batch_size=2).model_dump()
    settings["train"] |= {"max_steps": 4, "packing_length": 120}
    settings["data"] |= {"max_length": 120}
    packed = build_recipe(settings)
    assert run_training(packed, build_xfusion_training(packed)).step == 4
