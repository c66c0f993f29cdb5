"""Laws of whole X-Fusion runs in every layer design: resuming changes no bit, each loss has the weight it is given."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.data.mixture import build_mixture
from diptych.train.log import read_log
from diptych.train.loop import run_training
from diptych.train.run_state import describe_run
from tiny_xfusion import tiny_recipe
from train.tiny_xfusion_runs import DESIGNS, build_xfusion_training, write_samples, xfusion_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "data"
    write_samples(folder)
    return folder


@pytest.mark.parametrize("design", DESIGNS)
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    design: str, data: Path, tmp_path: Path
) -> None:
    """The stop falls within the third of six steps."""
    whole = xfusion_recipe(tmp_path / "whole", data, batch_size=2, design=design)
    run_training(whole, build_xfusion_training(whole))
    halves = xfusion_recipe(tmp_path / "halves", data, batch_size=2, design=design, resume_from_checkpoint="latest")
    stop, passes = threading.Event(), list[int]()
    method = build_xfusion_training(halves)

    def count(*_: object) -> None:
        passes.append(1)
        if len(passes) == 5:
            stop.set()

    method.register_forward_hook(count)
    first = run_training(halves, method, stop=stop)
    assert (first.step, first.interrupted) == (3, True)
    second = run_training(halves, build_xfusion_training(halves))
    assert (second.step, second.interrupted) == (6, False)
    for name in ("trained", "optimizer", "average"):
        ends = [tmp_path / run / f"checkpoints/step-000006/{name}.safetensors" for run in ("whole", "halves")]
        assert ends[0].read_bytes() == ends[1].read_bytes(), name


@pytest.mark.parametrize("other", [{"with_latents": True}, {"encoder_image_size": 112}, {"encoder_layer": 3}], ids=str)
def test_a_run_that_reads_other_features_is_another_run(other: dict[str, Any]) -> None:
    """Though every tensor fits. Where the encoder lies may change: its weights are compared by their hash."""

    def describe(**image_input: Any) -> dict[str, Any]:
        recipe = tiny_recipe(image_input=image_input)
        return describe_run(recipe, mixture=build_mixture(recipe, (3,), num_tokens=lambda _: 1), batches={})

    assert describe() == describe(image_encoder="moved/to")
    assert describe() != describe(**other)


@pytest.mark.parametrize("ce_weight", [0.0, 0.2, 0.5, 3.0])
def test_the_gradient_of_a_step_is_ce_weight_times_that_of_ce_plus_that_of_flow(
    ce_weight: float, data: Path, tmp_path: Path
) -> None:
    """Each of the mean over the step; with these two known, the norm is a closed form of ce_weight."""
    recipe = xfusion_recipe(tmp_path, data, batch_size=3, ce_weight=ce_weight, max_steps=1, sample_every=None)
    method = build_xfusion_training(recipe)
    mixture = build_mixture(
        recipe, method.num_samples(), num_tokens=lambda pick: method.num_tokens(pick, seed=recipe.seed)
    )
    losses = method(method.build_batch([mixture.pick(draw) for draw in range(6)], seed=recipe.seed))
    parameters = list(method.trainable_parameters().values())

    def gradient(name: str) -> Tensor:
        mean = losses[name].total / losses[name].count
        parts = torch.autograd.grad(mean, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    ce, flow = gradient("ce"), gradient("flow")
    assert min(ce.norm(), flow.norm()) > 0
    run_training(recipe, method)
    (row,) = read_log(tmp_path / "log.jsonl")
    assert row["grad_norm"] == pytest.approx(float((ce_weight * ce + flow).norm()), rel=1e-4)
