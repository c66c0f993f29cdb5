"""Laws of the learning rate, clipping, weight decay and averages."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.settings import TrainConfig
from diptych.train.optim import (
    AveragedWeights,
    build_optimizer,
    clip_gradients,
    learning_rate,
    optimizer_moments,
    set_learning_rate,
    squared_norm,
    training_progress,
)


def config(**values: Any) -> TrainConfig:
    return TrainConfig(**{"learning_rate": 1.0, "max_steps": 100, "warmup_ratio": 0.1, **values})


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_rate_warms_up_and_falls(kind: str) -> None:
    rates = [learning_rate(step, 0.0, config(lr_scheduler_type=kind)) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[5] == pytest.approx(0.55)
    assert all(0 < rate <= 1 for rate in rates)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] == 1.0 if kind == "constant" else rates[-1] < 0.01
    if kind == "cosine":
        assert rates[54] == pytest.approx(0.5, abs=0.01)


def test_the_clock_ends_a_run_as_well_as_steps_do() -> None:
    timed = config(max_train_minutes=10.0)
    assert training_progress(5, 300.0, timed) == 0.5
    assert training_progress(70, 300.0, timed) == 0.7
    assert training_progress(5, 601.0, timed) == 1.0
    assert learning_rate(5, 330.0, timed) == pytest.approx(0.5)
    assert learning_rate(5, 601.0, timed) == 0.0
    assert training_progress(5, 1e9, config()) == 0.05


@settings(max_examples=200)
@given(st.integers(0, 99), st.floats(0, 1e6), st.sampled_from(["cosine", "linear", "constant"]), st.floats(0, 0.9))
def test_a_rate_is_never_negative_nor_above_its_peak(step: int, seconds: float, kind: Any, warmup: float) -> None:
    rate = learning_rate(step, seconds, config(lr_scheduler_type=kind, warmup_ratio=warmup, max_train_minutes=3.0))
    assert 0 <= rate <= 1
    assert math.isfinite(rate)


def test_clipping_equals_torch() -> None:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2, 2))]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 10
    gradients = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(squared_norm(gradients))
    clip_gradients(gradients, norm, 1.5)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(parameters, 1.5)))
    for gradient, parameter in zip(gradients, parameters, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    before = [gradient.clone() for gradient in gradients]
    clip_gradients(gradients, 1.5, 2.0)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_does_not_hide_what_is_not_finite(value: float) -> None:
    assert not math.isfinite(squared_norm([torch.ones(3), torch.tensor([1.0, value])]))


def test_only_matrices_decay_and_the_state_is_whole_from_the_start() -> None:
    parameters = {"matrix": torch.nn.Parameter(torch.ones(2, 3)), "vector": torch.nn.Parameter(torch.ones(3))}
    optimizer = build_optimizer(parameters, config(weight_decay=0.1))
    moments = optimizer_moments(optimizer, parameters)
    assert sorted(moments) == ["exp_avg.matrix", "exp_avg.vector", "exp_avg_sq.matrix", "exp_avg_sq.vector"]
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(parameters["matrix"], torch.tensor(0.9))
    assert torch.equal(parameters["vector"].detach(), torch.ones(3))


def test_the_optimiser_equals_plain_adamw() -> None:
    torch.manual_seed(0)
    ours = {"a": torch.nn.Parameter(torch.randn(4, 3))}
    theirs = torch.nn.Parameter(ours["a"].detach().clone())
    settings_ = config(weight_decay=0.01, learning_rate=0.01)
    optimizer = build_optimizer(ours, settings_)
    plain = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, foreach=False)
    for _ in range(20):
        gradient = torch.randn(4, 3)
        ours["a"].grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        plain.step()
    torch.testing.assert_close(ours["a"], theirs)


def test_averages_follow_the_formula() -> None:
    parameter = torch.nn.Parameter(torch.tensor([[1.0]]))
    average = AveragedWeights({"p": parameter}, 0.5)
    expected = 1.0
    for update in range(20):
        with torch.no_grad():
            parameter.add_(1)
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * float(parameter.detach())
    assert float(average.tensors["p"]) == pytest.approx(expected)
    assert average.updates == 20


def test_rates_differ_by_the_beginning_of_a_name_and_keep_their_ratio() -> None:
    parameters = {
        name: torch.nn.Parameter(torch.ones(2, 2)) for name in ("head.a", "head.deep.b", "tower.c", "tower.bias")
    }
    own = config(learning_rate=0.1, learning_rates={"head": 0.3, "head.deep": 0.5})
    optimizer = build_optimizer(parameters, own)
    set_learning_rate(optimizer, 0.01)
    rate_of = {id(member): group["lr"] for group in optimizer.param_groups for member in group["params"]}
    rates = {name: pytest.approx(rate_of[id(parameter)]) for name, parameter in parameters.items()}
    assert rates == {"head.a": 0.03, "head.deep.b": 0.05, "tower.c": 0.01, "tower.bias": 0.01}


def test_a_rate_for_nothing_is_refused() -> None:
    parameters = {"head.a": torch.nn.Parameter(torch.ones(2, 2))}
    with pytest.raises(ValueError, match=r"names haed, but no trained parameter begins so; they begin with: head"):
        build_optimizer(parameters, config(learning_rates={"haed": 0.3}))
