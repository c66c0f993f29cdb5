"""Laws of the pixel transformer: it starts at rest, images do not meet, a dropped condition is not looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.nn.towers.pixel_transformer import PixelBlock, PixelTransformer, cells_by_patch, grid_positions

SETTINGS: dict[str, Any] = {
    "latent_channels": 4,
    "latent_size": 4,
    "patch_size": 2,
    "feature_dim": 6,
    "num_image_tokens": 9,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
}


def build(*, stirred: bool = True, **settings: Any) -> PixelTransformer:
    torch.manual_seed(0)
    network = PixelTransformer(**(SETTINGS | settings))
    if stirred:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return network


def inputs(num_images: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    dropped = torch.zeros(num_images, dtype=torch.bool)
    return torch.randn(num_images, 4, 4, 4), torch.rand(num_images), torch.randn(num_images, 9, 6), dropped


def test_it_starts_at_rest() -> None:
    assert torch.equal(build(stirred=False)(*inputs()), torch.zeros(3, 4, 4, 4))
    x = torch.randn(10, 16)
    assert torch.equal(PixelBlock(16, 2)(x, torch.randn(2, 16)), x)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_the_velocity_has_the_latents_shape(patch_size: int) -> None:
    assert build(patch_size=patch_size)(*inputs()).shape == (3, 4, 4, 4)


def test_one_batch_equals_one_by_one() -> None:
    network, (x, t, features, dropped) = build(), inputs()
    dropped[1] = True
    together = network(x, t, features, dropped)
    for k in range(3):
        alone = network(x[k : k + 1], t[k : k + 1], features[k : k + 1], dropped[k : k + 1])
        torch.testing.assert_close(alone[0], together[k], atol=1e-5, rtol=0)  # measured: 2e-6


def test_all_of_an_image_s_tokens_count_and_so_does_time() -> None:
    network, (x, t, features, dropped) = build(), inputs(1)
    before = network(x, t, features, dropped)
    for token in range(9):
        changed = features.clone()
        changed[0, token] += 1
        assert not torch.allclose(network(x, t, changed, dropped), before, atol=1e-5)
    swapped = features[:, torch.randperm(9)]
    assert not torch.allclose(network(x, t, swapped, dropped), before, atol=1e-5), "where a token lies counts"
    assert not torch.allclose(network(x, t + 0.5, features, dropped), before, atol=1e-5)


def test_a_dropped_condition_is_not_looked_at() -> None:
    """Whatever stands there, even what is no number; the other images of the batch keep theirs."""
    network, (x, t, features, dropped) = build(), inputs()
    dropped[1] = True
    before = network(x, t, features, dropped)
    features[1] = torch.nan
    assert torch.equal(network(x, t, features, dropped), before)
    assert not torch.allclose(network(x, t, features.nan_to_num(), ~dropped)[0], before[0])


def test_positions_start_nearest_to_those_of_their_neighbours() -> None:
    """No two patches are alike, and none is nearer to a patch's than those of the patches beside it."""
    positions = grid_positions(16, 32)
    apart = torch.cdist(positions, positions) + 9 * torch.eye(16)
    assert float(apart.min()) > 0.5
    for patch, nearest in enumerate(apart.argmin(dim=1).tolist()):
        assert abs(patch // 4 - nearest // 4) + abs(patch % 4 - nearest % 4) == 1


def test_standardised_visual_tokens_enter_with_mean_0_and_variance_1() -> None:
    network = build(stirred=False)
    features = torch.nn.functional.normalize(torch.randn(400, 9, 6) + 5 * torch.arange(6), dim=-1)
    network.standardise(features)
    condition = network.condition
    seen = (condition.norm(network.by_patch(features)) + condition.shift).flatten(0, 1)
    width = seen.shape[1]
    torch.testing.assert_close(seen.mean(0), torch.zeros(width), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(width), atol=1e-2, rtol=0)


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recomputed in (False, True):
        network = build()
        network.gradient_checkpointing = recomputed
        network(*inputs()).square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    plain, again = gradients
    assert set(plain) == set(again)
    for name in plain:
        torch.testing.assert_close(plain[name], again[name])
    dropless = {name for name, gradient in plain.items() if gradient is None or not bool(gradient.any())}
    assert dropless == {"no_condition"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"patch_size": 3}, "patch_size 3"),
        ({"num_heads": 3}, "attention_heads 3"),
        ({"width": 18}, "4 the hidden_size 18"),
    ],
)
def test_what_does_not_divide_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(**settings)


def test_each_patch_is_given_what_lies_at_its_own_place() -> None:
    assert torch.equal(cells_by_patch(16, 16), torch.eye(16))
    halves = cells_by_patch(4, 16)
    torch.testing.assert_close(halves.sum(dim=1), torch.ones(16))
    assert [int(halves[corner].argmax()) for corner in (0, 3, 12, 15)] == [0, 1, 2, 3]
    quarters = cells_by_patch(16, 4).view(4, 4, 16)
    assert quarters.argmax(dim=2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize(("num_cells", "num_patches"), [(9, 4), (9, 16), (16, 9), (64, 16), (81, 16)])
def test_nothing_that_visual_tokens_hold_is_lost(num_cells: int, num_patches: int) -> None:
    """Other tokens always give some patch something else: the map has full rank."""
    place_map = cells_by_patch(num_cells, num_patches)
    assert int(torch.linalg.matrix_rank(place_map)) == num_cells
    torch.testing.assert_close(place_map.sum(dim=1), torch.ones(len(place_map)))
