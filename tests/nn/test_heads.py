"""Laws of where latents enter and leave."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diptych.nn.heads import ImageEmbedder, TimeEmbedding, VelocityHead, modulate, patchify, unpatchify


@given(images=st.integers(1, 3), channels=st.integers(1, 4), side=st.integers(1, 4), patch=st.integers(1, 3))
def test_patchify_round_trips(images: int, channels: int, side: int, patch: int) -> None:
    latents = torch.randn(images, channels, side * patch, side * patch)
    tokens = patchify(latents, patch)
    assert tokens.shape == (images, side**2, channels * patch**2)
    assert torch.equal(unpatchify(tokens, channels=channels, size=side * patch, patch_size=patch), latents)


def test_patches_stand_row_by_row() -> None:
    latents = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert patchify(latents, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def _embedder(boundary: bool, latent_size: int = 4) -> ImageEmbedder:
    return ImageEmbedder(latent_channels=3, latent_size=latent_size, patch_size=2, width=8, boundary_tokens=boundary)


def test_boundary_tokens_wrap_each_image_and_hold_nothing_of_it() -> None:
    embedder = _embedder(True)
    assert embedder.boundary is not None
    out = embedder(torch.randn(2, 3, 4, 4))
    assert out.shape == (2, embedder.num_tokens, 8) == (2, 6, 8)
    assert torch.equal(out[:, 0], embedder.boundary[0].expand(2, -1))
    assert torch.equal(out[:, -1], embedder.boundary[1].expand(2, -1))


@pytest.mark.parametrize("adaln", [True, False])
@pytest.mark.parametrize("boundary", [True, False])
def test_the_velocity_head_starts_at_zero_and_gives_the_latents_shape(adaln: bool, boundary: bool) -> None:
    embedder = _embedder(boundary)
    head = VelocityHead(embedder, width=8, adaln=adaln)
    out = head(torch.randn(2 * embedder.num_tokens, 8), torch.randn(2, 8))
    assert out.shape == (2, 3, 4, 4)
    assert not out.any()


def test_modulation_is_per_image() -> None:
    x = torch.ones(4, 2)
    factor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert modulate(x, gate=factor).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert modulate(x, scale=factor, shift=factor).tolist() == [[3, 5], [3, 5], [7, 9], [7, 9]]


def test_times_are_told_apart() -> None:
    embedded = TimeEmbedding(8)(torch.tensor([0.0, 0.01, 0.5, 1.0])).detach()
    distances = torch.cdist(embedded, embedded) + torch.eye(4)
    assert float(distances.min()) > 1e-3


def test_a_patch_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="patch_size 2 does not divide the latent size 5"):
        _embedder(True, latent_size=5)
