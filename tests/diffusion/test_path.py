"""Laws of the path between data (t = 0) and noise (t = 1)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diptych.diffusion.path import (
    add_noise,
    data_from_velocity,
    noise_from_velocity,
    sample_times,
    shift_time,
    time_grid,
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


def test_the_velocity_is_the_paths_derivative() -> None:
    data, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    t, h = torch.tensor([0.3, 0.8], dtype=torch.float64), 1e-6
    slope = (add_noise(data, noise, t + h) - add_noise(data, noise, t - h)) / (2 * h)
    torch.testing.assert_close(slope, velocity_target(data, noise))


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
