"""Laws of what towers are made of: a map between widths norms in its own precision, and starts from the statistics."""

from __future__ import annotations

import warnings

import torch

from diptych.nn.towers.tower_parts import WidthMap


def test_states_of_another_precision_are_mapped_without_complaint() -> None:
    """Under autocast the states of two towers need not be of one dtype; torch warns of a norm that mixes them."""
    torch.manual_seed(0)
    mapped, states = WidthMap(64, 16), torch.randn(8, 64)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        narrow = mapped(states.bfloat16())
    torch.testing.assert_close(narrow.float(), mapped(states.bfloat16().float()), atol=0.05, rtol=0.05)


def test_standardised_states_have_mean_0_and_variance_1_in_each_dimension() -> None:
    torch.manual_seed(0)
    mapped = WidthMap(32, 32)
    states = torch.randn(500, 32) * torch.linspace(0.5, 2, 32) + torch.linspace(-3, 3, 32)
    mapped.standardise(states)
    seen = mapped.norm(states) + mapped.shift
    torch.testing.assert_close(seen.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(32), atol=1e-4, rtol=0)
