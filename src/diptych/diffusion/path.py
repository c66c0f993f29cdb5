"""The straight path between data (t = 0) and noise (t = 1); said only here.

x_t = (1 - t) x_0 + t e, so the velocity dx/dt is e - x_0 (rectified flow; SD3, arXiv 2403.03206, section 2).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _like(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(-1, *([1] * (x.ndim - 1))).to(x.dtype)


def add_noise(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t of data and noise [I, ...] at times t [I]."""
    t = _like(t, data)
    return (1 - t) * data + t * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    return noise - data


def data_from_velocity(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The data that a velocity at x_t points back to."""
    return x - _like(t, x) * velocity


def noise_from_velocity(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    return x + (1 - _like(t, x)) * velocity


def shift_time(t: Tensor, shift: float) -> Tensor:
    """SD3's resolution shift: more of the density towards noise where shift > 1."""
    return shift * t / (1 + (shift - 1) * t)


def sample_times(num: int, *, density: str, shift: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Times in (0, 1): [num]. density: logit_normal (the sigmoid of a standard normal) or uniform."""
    if density == "logit_normal":
        t = torch.sigmoid(torch.randn(num, generator=generator))
    elif density == "uniform":
        t = torch.rand(num, generator=generator)
    else:
        raise ValueError(f"unknown timestep_sampling {density!r}; choose logit_normal or uniform")
    return shift_time(t, shift)


def time_grid(num_steps: int, *, shift: float = 1.0) -> Tensor:
    """num_steps + 1 times from 1 (noise) down to 0 (data)."""
    return shift_time(torch.linspace(1, 0, num_steps + 1), shift)
