"""Laws of the path between data (t = 0) and noise (t = 1)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diptych.diffusion.path import (
    EARLIEST,
    PREDICTIONS,
    SCHEDULES,
    add_noise,
    data_from_velocity,
    latest_time,
    noise_from_velocity,
    place_on_path,
    prediction_target,
    sample_times,
    shift_time,
    time_grid,
    velocity_of,
    velocity_target,
)


def test_t_0_is_data_and_t_1_is_noise() -> None:
    data, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(add_noise(data, noise, torch.zeros(2)), data)
    assert torch.equal(add_noise(data, noise, torch.ones(2)), noise)


@given(t=st.floats(0, 1), seed=st.integers(0, 99))
def test_conversions_round_trip(t: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    data, noise = (torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    times = torch.tensor([t, 1 - t], dtype=torch.float64)
    x, velocity = add_noise(data, noise, times), velocity_target(data, noise)
    torch.testing.assert_close(data_from_velocity(x, velocity, times), data)
    torch.testing.assert_close(noise_from_velocity(x, velocity, times), noise)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_velocity_is_the_paths_derivative(schedule: str) -> None:
    data, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    t, h = torch.tensor([0.3, 0.8], dtype=torch.float64), 1e-6
    ahead, behind = (add_noise(data, noise, t + step, schedule=schedule) for step in (h, -h))
    target = prediction_target(data, noise, t, schedule=schedule)
    torch.testing.assert_close((ahead - behind) / (2 * h), target)
    if schedule == "flow":
        assert torch.equal(target, velocity_target(data, noise))


@pytest.mark.parametrize("schedule", ["ddpm_cosine", "ddpm_linear"])
def test_variance_preserving_schedules_preserve_variance_and_lose_the_data(schedule: str) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    place = place_on_path(t, t, schedule)
    torch.testing.assert_close(place.data.square() + place.noise.square(), torch.ones_like(t))
    assert (place.data.diff() < 0).all()
    assert place.data[0] == 1
    assert place.data[-1] < 0.01


def test_ddpm_linear_is_the_limit_of_a_thousand_linear_betas() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = (1 - betas).cumprod(0).sqrt()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert float((place_on_path(t, t, "ddpm_linear").data - kept).abs().max()) < 2e-3


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_means_the_same_velocity(prediction: str, schedule: str) -> None:
    data, noise = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    x = add_noise(data, noise, t, schedule=schedule)
    told = prediction_target(data, noise, t, prediction=prediction, schedule=schedule)
    velocity = velocity_of(told, x, t, prediction=prediction, schedule=schedule)
    torch.testing.assert_close(velocity, prediction_target(data, noise, t, schedule=schedule))
    torch.testing.assert_close(data_from_velocity(x, velocity, t, schedule=schedule), data)
    torch.testing.assert_close(noise_from_velocity(x, velocity, t, schedule=schedule), noise)
    start = torch.full((3,), latest_time(prediction, schedule), dtype=torch.float64)
    x = add_noise(data, noise, start, schedule=schedule)
    assert velocity_of(told, x, start, prediction=prediction, schedule=schedule).isfinite().all()


@pytest.mark.parametrize("name", ["schedule", "prediction"])
def test_an_unknown_name_is_refused_with_those_that_exist(name: str) -> None:
    options = {name: "odd"}
    with pytest.raises(ValueError, match=f"unknown {name} 'odd'; choose one of: "):
        prediction_target(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1), **options)


@given(shift=st.floats(0.2, 8))
def test_the_shift_keeps_the_ends_and_the_order(shift: float) -> None:
    grid = time_grid(16, shift=shift)
    assert float(grid[0]) == pytest.approx(1)
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()
    t = torch.linspace(0.05, 0.95, 9)
    assert ((shift_time(t, shift) > t) == (torch.tensor(shift) > 1)).all() or abs(shift - 1) < 1e-3


@pytest.mark.parametrize(("density", "mean_logit", "std_logit"), [("logit_normal", 0.0, 1.0), ("uniform", 0.0, 1.81)])
def test_times_have_the_density_that_is_named(density: str, mean_logit: float, std_logit: float) -> None:
    t = sample_times(20_000, density=density, generator=torch.Generator().manual_seed(0))
    assert float(t.min()) > 0
    assert float(t.max()) < 1
    logit = torch.logit(t.double(), eps=1e-7)
    assert abs(float(logit.mean()) - mean_logit) < 0.05
    assert abs(float(logit.std()) - std_logit) < 0.05


def test_an_unknown_density_is_refused() -> None:
    with pytest.raises(ValueError, match="cosine"):
        sample_times(1, density="cosine")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_targets_are_numbers_at_the_earliest_time(prediction: str, schedule: str) -> None:
    """ddpm_linear's velocity grows without bounds towards t = 0, where float32 loses 1 - a^2."""
    data, noise, t = torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([EARLIEST])
    target = prediction_target(data, noise, t, prediction=prediction, schedule=schedule)
    exact = prediction_target(data.double(), noise.double(), t.double(), prediction=prediction, schedule=schedule)
    torch.testing.assert_close(target.double(), exact, rtol=1e-4, atol=1e-6)


def test_no_time_is_earlier_than_the_earliest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda num, generator: torch.zeros(num))
    assert sample_times(3, density="uniform").tolist() == [pytest.approx(EARLIEST)] * 3
