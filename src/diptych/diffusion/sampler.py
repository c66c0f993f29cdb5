"""Integrates a velocity field from noise (t = 1) to data (t = 0). Any `f(x, t)` will do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diptych.diffusion.path import time_grid

Velocity = Callable[[Tensor, Tensor], Tensor]
"""f(x [I, ...], t [I]) -> dx/dt [I, ...]."""


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): scale 1 is the conditional field, 0 the unconditional one."""
    return unconditional + scale * (conditional - unconditional)


def sample_euler(
    velocity: Velocity, noise: Tensor, *, num_steps: int, shift: float = 1.0, start: float = 1.0
) -> Tensor:
    """First order: one evaluation a step."""
    x, times = noise, time_grid(num_steps, shift=shift, start=start).tolist()
    for now, then in pairwise(times):
        x = x + (then - now) * velocity(x, _at(now, x))
    return x


def sample_heun(velocity: Velocity, noise: Tensor, *, num_steps: int, shift: float = 1.0, start: float = 1.0) -> Tensor:
    """Second order: two evaluations a step, one in the last."""
    x, times = noise, time_grid(num_steps, shift=shift, start=start).tolist()
    for now, then in pairwise(times):
        slope = velocity(x, _at(now, x))
        guess = x + (then - now) * slope
        if then > 0:
            slope = (slope + velocity(guess, _at(then, x))) / 2
            guess = x + (then - now) * slope
        x = guess
    return x


SAMPLERS = {"euler": sample_euler, "heun": sample_heun}


def _at(t: float, x: Tensor) -> Tensor:
    return torch.full((x.shape[0],), t, dtype=x.dtype, device=x.device)


def starting_noise(images: Sequence[int], shape: tuple[int, ...], *, seed: int | Sequence[int]) -> Tensor:
    """Standard normal noise [I, *shape], that of image k from (seed, k) alone. `seed`: of all, or one for each."""
    seeds = [seed] * len(images) if isinstance(seed, int) else seed
    generators = [
        torch.Generator().manual_seed((own * 1_000_003 + k) % 2**63) for own, k in zip(seeds, images, strict=True)
    ]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
