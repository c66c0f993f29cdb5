"""Laws of the visual losses: sums over tokens, lowest at the target, and each in its closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.nn.visual_losses import VISUAL_LOSSES, visual_loss


def unit(rows: int, *, seed: int) -> Tensor:
    return normalize(torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("kind", VISUAL_LOSSES)
def test_the_target_itself_loses_least_and_has_no_gradient(kind: str) -> None:
    target = unit(5, seed=0)
    at_target = visual_loss(target, target, kind=kind)
    for seed in range(1, 6):
        assert visual_loss(normalize(target + 0.2 * unit(5, seed=seed), dim=-1), target, kind=kind) > at_target
    if kind != "infonce":
        assert at_target.abs() < 1e-9
    target.requires_grad_()
    visual_loss(unit(5, seed=7).requires_grad_(), target, kind=kind).backward()
    assert target.grad is None


@pytest.mark.parametrize("kind", ["cosine", "l1", "smooth_l1"])
def test_losses_of_single_tokens_add_up(kind: str) -> None:
    predicted, target = unit(6, seed=0), unit(6, seed=1)
    alone = sum(visual_loss(predicted[k : k + 1], target[k : k + 1], kind=kind) for k in range(6))
    torch.testing.assert_close(visual_loss(predicted, target, kind=kind), alone)


def test_cosine_has_the_gradient_of_the_paper_s_negative_cosine() -> None:
    predicted, target = unit(4, seed=0).requires_grad_(), unit(4, seed=1)
    loss = visual_loss(predicted, target, kind="cosine")
    paper = -torch.nn.functional.cosine_similarity(predicted, target, dim=-1).sum()
    torch.testing.assert_close(loss, paper + 4)


def test_l1_and_smooth_l1_in_closed_form() -> None:
    predicted, target = unit(1, seed=0), unit(1, seed=1)
    difference = (predicted - target).abs()[0].tolist()
    torch.testing.assert_close(visual_loss(predicted, target, kind="l1").item(), sum(difference) / 6)
    smooth = sum(d**2 / 0.2 if d < 0.1 else d - 0.05 for d in difference) / 6
    torch.testing.assert_close(visual_loss(predicted, target, kind="smooth_l1").item(), smooth)


def test_infonce_against_all_other_tokens_in_closed_form() -> None:
    predicted, target, temperature = unit(3, seed=0), unit(3, seed=1), 0.07
    expected = 0.0
    for k in range(3):
        similarities = [float(predicted[k] @ target[j]) / temperature for j in range(3)]
        expected += math.log(sum(math.exp(s) for s in similarities)) - similarities[k]
    torch.testing.assert_close(visual_loss(predicted, target, kind="infonce", temperature=temperature).item(), expected)


@pytest.mark.parametrize("kind", VISUAL_LOSSES)
def test_no_tokens_lose_nothing_and_give_finite_gradients(kind: str) -> None:
    predicted = torch.zeros(0, 6, requires_grad=True)
    loss = visual_loss(predicted, torch.zeros(0, 6), kind=kind)
    loss.backward()
    assert loss.item() == 0


def test_an_unknown_loss_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"unknown visual loss 'mse'; choose one of: cosine, l1, smooth_l1, infonce"):
        visual_loss(unit(1, seed=0), unit(1, seed=1), kind="mse")


def test_infonce_knows_the_tokens_given_at_once_and_no_others() -> None:
    """Halves are easier than the whole; and a token that stands twice cannot be told from itself."""
    predicted, target = unit(6, seed=0), unit(6, seed=1)
    whole = visual_loss(predicted, target, kind="infonce")
    assert sum(visual_loss(predicted[half], target[half], kind="infonce") for half in (slice(3), slice(3, 6))) < whole
    twice = target[[0, 0]]
    assert visual_loss(twice, twice, kind="infonce").item() == pytest.approx(2 * math.log(2))
