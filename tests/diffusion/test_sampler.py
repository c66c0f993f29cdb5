"""Laws of the samplers: exact on closed-form fields, of their named order, indifferent to batching."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diptych.diffusion.path import velocity_target
from diptych.diffusion.sampler import SAMPLERS, guide

DATA, NOISE = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_straight_field_is_followed_exactly_in_any_number_of_steps(name: str, num_steps: int, shift: float) -> None:
    out = SAMPLERS[name](lambda x, t: velocity_target(DATA, NOISE), NOISE, num_steps=num_steps, shift=shift)
    torch.testing.assert_close(out, DATA)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_field_that_points_at_one_datum_arrives_there_exactly(name: str) -> None:
    """The exact field of a data set of one image: v = (x - data) / t, straight along every path."""

    def field(x: Tensor, t: Tensor) -> Tensor:
        return (x - DATA) / t[:, None]

    torch.testing.assert_close(SAMPLERS[name](field, NOISE, num_steps=5), DATA)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_on_a_linear_field_shrinks_with_the_samplers_order(name: str, order: int) -> None:
    """dx/dt = x, so x(0) = x(1) / e."""
    exact = NOISE / math.e
    errors = [float((SAMPLERS[name](lambda x, t: x, NOISE, num_steps=n) - exact).abs().max()) for n in (64, 128, 256)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(1 if order == 1 else 2, abs=0.15)


@pytest.mark.parametrize("name", SAMPLERS)
def test_time_runs_from_noise_down_and_every_image_is_at_the_same_time(name: str) -> None:
    seen: list[float] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        assert (t == t[0]).all()
        assert t[0] > 0, "the field is never asked at t = 0, where a target's field is not defined"
        seen.append(float(t[0]))
        return torch.zeros_like(x)

    SAMPLERS[name](field, NOISE, num_steps=4)
    assert seen[0] == 1
    assert seen == sorted(seen, reverse=True)


def test_guidance_of_1_is_the_conditional_field_and_0_the_unconditional() -> None:
    conditional, unconditional = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, 3.0), 3 * conditional - 2 * unconditional)
