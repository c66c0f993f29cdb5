"""Paths between data (t = 0) and noise (t = 1), and what of a point on one a network may predict; said only here.

x_t = a(t) x_0 + s(t) e, by the schedule's a and s:
flow: 1 - t and t, straight (rectified flow; SD3, arXiv 2403.03206, section 2); ddpm_cosine: cos and sin of pi t / 2
(arXiv 2102.09672, without its offset); ddpm_linear: the continuous form of DDPM's linear betas, 0.1 to 20 (arXiv
2011.13456).

A prediction is of the velocity dx/dt = a' x_0 + s' e, of epsilon (the noise e), or of the data x_0. From any of them
and x_t follow the other two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BETA_START, BETA_END = 0.1, 20.0
SCHEDULES = ("flow", "ddpm_cosine", "ddpm_linear")
PREDICTIONS = ("velocity", "epsilon", "data")
EARLIEST = 1e-5


@dataclass(frozen=True)
class Place:
    """Where on a path: a(t), s(t) and their derivatives, each shaped to multiply images."""

    data: Tensor
    noise: Tensor
    data_slope: Tensor
    noise_slope: Tensor


def place_on_path(t: Tensor, like: Tensor, schedule: str = "flow") -> Place:
    """Times t [I], for images shaped as `like` [I, ...]. Derivatives of ddpm_linear are not defined at t = 0."""
    t = t.reshape(-1, *([1] * (like.ndim - 1))).to(like.dtype)
    if schedule == "flow":
        return Place(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
    if schedule == "ddpm_cosine":
        angle = math.pi / 2 * t
        return Place(angle.cos(), angle.sin(), -math.pi / 2 * angle.sin(), math.pi / 2 * angle.cos())
    if schedule == "ddpm_linear":
        slope = BETA_END - BETA_START
        log_a = -0.5 * (BETA_START * t + 0.5 * slope * t.square())
        a, s = log_a.exp(), (-torch.expm1(2 * log_a)).sqrt()
        a_slope = -0.5 * (BETA_START + slope * t) * a
        return Place(a, s, a_slope, -a * a_slope / s)
    raise ValueError(f"unknown schedule {schedule!r}; choose one of: {', '.join(SCHEDULES)}")


def add_noise(data: Tensor, noise: Tensor, t: Tensor, *, schedule: str = "flow") -> Tensor:
    """x_t of data and noise [I, ...] at times t [I]."""
    place = place_on_path(t, data, schedule)
    return place.data * data + place.noise * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """Of the straight path: the same at all times."""
    return noise - data


def prediction_target(
    data: Tensor, noise: Tensor, t: Tensor, *, prediction: str = "velocity", schedule: str = "flow"
) -> Tensor:
    """What a network is to predict of data and noise [I, ...] at times t [I]."""
    if prediction == "data":
        return data
    if prediction == "epsilon":
        return noise
    if prediction != "velocity":
        raise ValueError(f"unknown prediction {prediction!r}; choose one of: {', '.join(PREDICTIONS)}")
    place = place_on_path(t, data, schedule)
    return place.data_slope * data + place.noise_slope * noise


def velocity_of(
    predicted: Tensor, x: Tensor, t: Tensor, *, prediction: str = "velocity", schedule: str = "flow"
) -> Tensor:
    """The velocity at x_t that a prediction means: what samplers follow. t above 0; of epsilon also below 1, where a
    schedule ends in pure noise, of which epsilon says nothing more."""
    if prediction == "velocity":
        return predicted
    place = place_on_path(t, x, schedule)
    if prediction == "data":
        data, noise = predicted, (x - place.data * predicted) / place.noise
    elif prediction == "epsilon":
        data, noise = (x - place.noise * predicted) / place.data, predicted
    else:
        raise ValueError(f"unknown prediction {prediction!r}; choose one of: {', '.join(PREDICTIONS)}")
    return place.data_slope * data + place.noise_slope * noise


def data_from_velocity(x: Tensor, velocity: Tensor, t: Tensor, *, schedule: str = "flow") -> Tensor:
    """The data that a velocity at x_t points back to."""
    place = place_on_path(t, x, schedule)
    return (place.noise_slope * x - place.noise * velocity) / _area(place)


def noise_from_velocity(x: Tensor, velocity: Tensor, t: Tensor, *, schedule: str = "flow") -> Tensor:
    place = place_on_path(t, x, schedule)
    return (place.data * velocity - place.data_slope * x) / _area(place)


def _area(place: Place) -> Tensor:
    return place.data * place.noise_slope - place.noise * place.data_slope


def latest_time(prediction: str, schedule: str) -> float:
    """Where sampling begins: at pure noise, or a little before it where epsilon is predicted and nothing is left."""
    return 0.99 if prediction == "epsilon" and schedule != "ddpm_linear" else 1.0


def shift_time(t: Tensor, shift: float) -> Tensor:
    """SD3's resolution shift: more of the density towards noise where shift > 1."""
    return shift * t / (1 + (shift - 1) * t)


def sample_times(num: int, *, density: str, shift: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Times in (0, 1): [num]. density: logit_normal (the sigmoid of a standard normal) or uniform.

    None is nearer to 0 than EARLIEST, since there a velocity may have no bounds.
    """
    if density == "logit_normal":
        t = torch.sigmoid(torch.randn(num, generator=generator))
    elif density == "uniform":
        t = torch.rand(num, generator=generator)
    else:
        raise ValueError(f"unknown timestep_sampling {density!r}; choose logit_normal or uniform")
    return shift_time(t.clamp_min(EARLIEST), shift)


def time_grid(num_steps: int, *, shift: float = 1.0, start: float = 1.0) -> Tensor:
    """num_steps + 1 times from `start` (1: noise) down to 0 (data)."""
    return start * shift_time(torch.linspace(1, 0, num_steps + 1), shift)
