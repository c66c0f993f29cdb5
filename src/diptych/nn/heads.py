"""Where pixels' latents enter and leave the vision tower: patchify, positions, time, velocity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """[I, C, h, w] -> [I, (h / p) (w / p), C p p], row by row."""
    images, channels, height, width = latents.shape
    p = patch_size
    x = latents.reshape(images, channels, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(images, (height // p) * (width // p), channels * p * p)


def unpatchify(tokens: Tensor, *, channels: int, size: int, patch_size: int) -> Tensor:
    """The inverse of `patchify` for square latents of `size`."""
    p, side = patch_size, size // patch_size
    x = tokens.reshape(-1, side, side, channels, p, p)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, size, size)


def image_tokens(latent_size: int, patch_size: int, *, boundary_tokens: bool) -> int:
    """How many tokens an image is."""
    return (latent_size // patch_size) ** 2 + (2 if boundary_tokens else 0)


class ImageEmbedder(nn.Module):
    """Linear patchify (X-Fusion section 3, tokens), a learned position per patch, learned [BOI] and [EOI] around."""

    def __init__(
        self, *, latent_channels: int, latent_size: int, patch_size: int, width: int, boundary_tokens: bool
    ) -> None:
        super().__init__()
        if latent_size % patch_size:
            raise ValueError(
                f"vision_tower.patch_size {patch_size} does not divide the latent size {latent_size}; "
                "change image_size or patch_size"
            )
        self.latent_channels = latent_channels
        self.latent_size = latent_size
        self.patch_size = patch_size
        self.num_patches = (latent_size // patch_size) ** 2
        self.patch_width = latent_channels * patch_size**2
        self.num_tokens = image_tokens(latent_size, patch_size, boundary_tokens=boundary_tokens)
        self.linear = nn.Linear(self.patch_width, width)
        self.position = nn.Parameter(torch.randn(self.num_patches, width) * 0.02)
        self.boundary = nn.Parameter(torch.randn(2, width) * 0.02) if boundary_tokens else None

    def forward(self, latents: Tensor) -> Tensor:
        """[I, C, h, w] -> [I, n, d]."""
        tokens = self.linear(patchify(latents, self.patch_size)) + self.position
        return add_boundary(tokens, self.boundary)


def add_boundary(tokens: Tensor, boundary: Tensor | None) -> Tensor:
    """[I, n, d] -> [I, n + 2, d] between the two rows of `boundary` [2, d]; as it is where there is none."""
    if boundary is None:
        return tokens
    first, last = boundary[:, None].expand(2, len(tokens), -1).unsqueeze(2)
    return torch.cat((first, tokens, last), dim=1)


class FeatureEmbedder(nn.Module):
    """An image encoder's features where patches of latents would stand: a linear map, then as in `ImageEmbedder`."""

    with_latents = False

    def __init__(self, feature_dim: int, *, num_patches: int, width: int, boundary_tokens: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_dim, width)
        self.position = nn.Parameter(torch.randn(num_patches, width) * 0.02)
        self.boundary = nn.Parameter(torch.randn(2, width) * 0.02) if boundary_tokens else None
        # Features are of length 1; the tower's patches are of unit variance.
        nn.init.normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[I, patches, F] -> [I, n, d]."""
        return add_boundary(self.linear(features) + self.position, self.boundary)


class FeatureAdder(nn.Module):
    """An image encoder's features, added to the patches of the same image's latents: a linear map, zero at first."""

    with_latents = True

    def __init__(self, feature_dim: int, *, width: int, boundary_tokens: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_dim, width)
        self.num_boundary = int(boundary_tokens)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[I, patches, F], each of length 1 -> [I, n, d]; nothing is added to boundary tokens."""
        added = self.linear(features)
        return nn.functional.pad(added, (0, 0, self.num_boundary, self.num_boundary))


class TextMatcher(nn.Module):
    """What the patches of an image that is read have in common with the words before it, added to them from zero on.

    Patches and words are each mapped and multiplied, feature by feature (a low-rank bilinear form): attention has to
    learn to compare two things and to use what it compared at once, and neither is worth anything alone. `seen`: the
    width of what patches are compared by: an image encoder's features if the tower reads them, else its own tokens.
    """

    def __init__(self, width: int, *, seen: int) -> None:
        super().__init__()
        self.patches = nn.Linear(seen, width, bias=False)
        self.words = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, patches: Tensor, words: Tensor) -> Tensor:
        """What is seen of the patches [I, n, seen] and the words of each image [I, d] -> [I, n, d]."""
        patches, words = (nn.functional.rms_norm(x, x.shape[-1:]) for x in (patches, words))
        return self.out(self.patches(patches) * self.words(words)[:, None])


class TimeEmbedding(nn.Module):
    """Sinusoids of t in 0..1 and a two-layer MLP: [I] -> [I, d]."""

    frequencies: Tensor

    def __init__(self, width: int, num_frequencies: int = 128) -> None:
        super().__init__()
        frequencies = torch.exp(-math.log(10_000) * torch.arange(num_frequencies) / num_frequencies) * 1000
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.frequencies.float()
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))


def modulate(
    x: Tensor, *, shift: Tensor | None = None, scale: Tensor | None = None, gate: Tensor | None = None
) -> Tensor:
    """x [I * n, d], changed image by image: gate * x, or x * (1 + scale) + shift, each factor [I, d]."""
    factor = gate if gate is not None else 1 + scale  # type: ignore[operator]
    x = x.unflatten(0, (factor.shape[0], -1)) * factor[:, None]
    return (x if shift is None else x + shift[:, None]).flatten(0, 1)


class VelocityHead(nn.Module):
    """Norm (modulated by time under AdaLN) and linear to patches; starts at zero."""

    def __init__(self, embedder: ImageEmbedder, *, width: int, adaln: bool) -> None:
        super().__init__()
        self.channels, self.size = embedder.latent_channels, embedder.latent_size
        self.patch_size, self.num_patches = embedder.patch_size, embedder.num_patches
        self.num_tokens = embedder.num_tokens
        self.norm: nn.Module = nn.RMSNorm(width, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width) if adaln else None
        self.linear = nn.Linear(width, embedder.patch_width)
        for module in (self.modulation, self.linear):
            if module is not None:
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, states: Tensor, time: Tensor) -> Tensor:
        """States [I * n, d], time embeddings [I, d] -> [I, C, h, w]."""
        x = self.norm(states)
        if self.modulation is not None:
            shift, scale = self.modulation(time).chunk(2, dim=-1)
            x = modulate(x, shift=shift, scale=scale)
        x = self.linear(x).unflatten(0, (-1, self.num_tokens))
        if self.num_tokens != self.num_patches:
            x = x[:, 1:-1]
        return unpatchify(x, channels=self.channels, size=self.size, patch_size=self.patch_size)
