"""Laws of what a VPiT image passes through: a grid keeps its places, tokens have length 1, and are finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.nn.connector import Connector, VisualHead, reduce_tokens


@given(side=st.integers(1, 9), target=st.integers(1, 9), images=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_token_has_length_one(side: int, target: int, images: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, side**2, 5, generator=generator)
    reduced = reduce_tokens(features, target**2)
    assert reduced.shape == (images, target**2, 5)
    torch.testing.assert_close(reduced.norm(dim=-1), torch.ones(images, target**2))


def test_a_grid_of_the_same_size_is_only_brought_to_length_one() -> None:
    features = torch.randn(2, 16, 5) * 7
    expected = features / features.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(reduce_tokens(features, 16), expected)


def test_halving_a_grid_is_the_mean_of_four_neighbours() -> None:
    """Bilinear with corners not aligned: each new cell's centre lies in the middle of four old ones."""
    features = torch.randn(1, 36, 4)
    grid = features.view(6, 6, 4)
    means = torch.stack([grid[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((0, 1)) for r in range(3) for c in range(3)])
    torch.testing.assert_close(reduce_tokens(features, 9)[0], torch.nn.functional.normalize(means, dim=-1))


def test_siglip_s_27_by_27_becomes_8_by_8_without_antialiasing() -> None:
    """MetaMorph's reduction: only the four cells around each sampled point count, however far apart the points are."""
    features = torch.randn(1, 729, 3)
    grid = features.view(27, 27, 3)
    reduced = reduce_tokens(features, 64)[0].view(8, 8, 3)
    for row, column in ((0, 0), (3, 5), (7, 7)):
        y, x = ((k + 0.5) * 27 / 8 - 0.5 for k in (row, column))
        top, left = int(y), int(x)
        down, right = y - top, x - left
        expected = (
            grid[top, left] * (1 - down) * (1 - right)
            + grid[top, left + 1] * (1 - down) * right
            + grid[top + 1, left] * down * (1 - right)
            + grid[top + 1, left + 1] * down * right
        )
        torch.testing.assert_close(reduced[row, column], expected / expected.norm(), atol=1e-5, rtol=1e-5)


def test_half_precision_features_are_reduced_in_float32() -> None:
    features = torch.randn(1, 16, 8).bfloat16()
    reduced = reduce_tokens(features, 4)
    assert reduced.dtype == torch.float32
    torch.testing.assert_close(reduced, reduce_tokens(features.float(), 4))


@pytest.mark.parametrize(("given_", "wanted"), [(12, 4), (16, 8)])
def test_what_is_no_square_is_refused_with_both_counts(given_: int, wanted: int) -> None:
    with pytest.raises(ValueError, match=f"{given_} features cannot become {wanted} tokens: both must be squares"):
        reduce_tokens(torch.randn(1, given_, 3), wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    features = torch.randn(2, 16, 3)
    features[1, 5, 0] = value
    with pytest.raises(ValueError, match="features that are not finite"):
        reduce_tokens(features, 16)


def test_the_connector_is_two_layers_with_a_gelu_or_one() -> None:
    two, one = Connector(6, 10), Connector(6, 10, kind="linear")
    x = torch.randn(3, 4, 6)
    weights = dict(two.layers.named_parameters())
    hidden = torch.nn.functional.gelu(x @ weights["0.weight"].T + weights["0.bias"])
    expected = hidden @ weights["2.weight"].T + weights["2.bias"]
    torch.testing.assert_close(two(x), expected)
    assert sum(p.numel() for p in two.parameters()) == 6 * 10 + 10 + 10 * 10 + 10
    assert sum(p.numel() for p in one.parameters()) == 6 * 10 + 10


def test_an_unknown_connector_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"unknown connector 'mlp3x'; choose one of: mlp2x_gelu, linear"):
        Connector(6, 10, kind="mlp3x")


def test_predicted_tokens_have_length_one_in_float32() -> None:
    head = VisualHead(10, 6).bfloat16()
    predicted = head(torch.randn(7, 10).bfloat16())
    assert predicted.dtype == torch.float32
    torch.testing.assert_close(predicted.norm(dim=-1), torch.ones(7))


def test_a_standardised_connector_gives_embeddings_like_the_language_model_s() -> None:
    features, embeddings = reduce_tokens(torch.randn(40, 4, 16) + 1, 4).flatten(0, 1), 0.2 * torch.randn(300, 12) + 0.05
    for kind in ("mlp2x_gelu", "linear"):
        connector = Connector(16, 12, kind=kind)
        connector.standardise(features, embeddings)
        made = connector(features)
        torch.testing.assert_close(made.std(dim=0), embeddings.std().expand(12), atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(made.mean(dim=0), embeddings.mean(dim=0), atol=1e-4, rtol=1e-3)


def test_a_visual_head_starts_near_the_mean_of_the_features() -> None:
    features = reduce_tokens(torch.randn(40, 4, 16) + 1, 4).flatten(0, 1)
    torch.manual_seed(0)
    head = VisualHead(12, 16)
    mean = torch.nn.functional.normalize(features.mean(dim=0), dim=0)
    states = torch.randn(50, 12)
    with torch.no_grad():
        before = float((head(states) @ mean).mean())
        head.start_at(features)
        assert float((head(states) @ mean).mean()) > before + 0.5


def test_a_hidden_token_is_known_by_its_place_alone() -> None:
    connector = Connector(6, 10, num_hidden=4)
    features = torch.nn.functional.normalize(torch.randn(3, 4, 6), dim=-1)
    features[0, 1] = features[2, 3] = 0
    made = connector(features)
    assert connector.hidden is not None
    torch.testing.assert_close(made[0, 1], connector.hidden[1])
    torch.testing.assert_close(made[2, 3], connector.hidden[3])
    torch.testing.assert_close(made[1], connector.layers(features[1]))
    one_by_one = [connector(features[:, k], torch.full((3,), k)) for k in range(4)]
    torch.testing.assert_close(torch.stack(one_by_one, dim=1), made)
