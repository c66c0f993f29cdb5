"""From an image encoder's width to the language model's, and fewer tokens: what a VPiT input image passes through."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

CONNECTORS = ("mlp2x_gelu", "linear")


def reduce_tokens(features: Tensor, num_tokens: int) -> Tensor:
    """Features [I, n, F] of a square grid, row by row, interpolated to `num_tokens` of a smaller (or larger) square.

    Bilinear in float32, corners not aligned, no antialiasing; then every token is brought to length 1 (MetaMorph,
    architecture). Raises ValueError if either count is no square, or a feature is not finite.
    """
    side, target = math.isqrt(features.shape[1]), math.isqrt(num_tokens)
    if side**2 != features.shape[1] or target**2 != num_tokens:
        raise ValueError(f"{features.shape[1]} features cannot become {num_tokens} tokens: both must be squares")
    grid = features.float().transpose(1, 2).unflatten(2, (side, side))
    if side != target:
        grid = interpolate(grid, (target, target), mode="bilinear", align_corners=False, antialias=False)
    reduced = normalize(grid.flatten(2).transpose(1, 2), dim=-1)
    if not bool(torch.isfinite(reduced).all()):
        raise ValueError(
            "the image encoder gave features that are not finite; look at the image and the encoder's dtype"
        )
    return reduced


def noised_tokens(features: Tensor, strength: float | Tensor, generator: torch.Generator) -> Tensor:
    """Visual tokens [..., F] with normal noise of that standard deviation over their norm, of length 1 again."""
    noise = torch.randn(features.shape, generator=generator) / features.shape[-1] ** 0.5
    return normalize(features + strength * noise, dim=-1)


class Connector(nn.Module):
    """Visual tokens [..., F] -> embeddings of the language model [..., D]: two layers with a GELU, or one layer.

    With `num_hidden` rows of its own, a visual token of zeros is a hidden one, and the row of its place in the image
    stands for it: as in masked autoencoders, the model is told where it is, and nothing else.
    """

    def __init__(self, feature_dim: int, width: int, *, kind: str = "mlp2x_gelu", num_hidden: int = 0) -> None:
        super().__init__()
        if kind not in CONNECTORS:
            raise ValueError(f"unknown connector {kind!r}; choose one of: {', '.join(CONNECTORS)}")
        layers: list[nn.Module] = [nn.Linear(feature_dim, width)]
        if kind == "mlp2x_gelu":
            layers += [nn.GELU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)
        self.hidden = nn.Parameter(torch.randn(num_hidden, width)) if num_hidden else None

    @torch.no_grad()
    def standardise(self, features: Tensor, embeddings: Tensor) -> None:
        """Starts where features [N, F] give embeddings with the mean and the spread of the language model's [V, D]."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        made = self.layers(features)
        mean, spread = embeddings.float().mean(dim=0), embeddings.float().std()
        scale = spread / made.std(dim=0).clamp_min(1e-6)
        last.weight.mul_(scale[:, None])
        last.bias.copy_((last.bias - made.mean(dim=0)) * scale + mean)

    @torch.no_grad()
    def start_hidden(self, embeddings: Tensor) -> None:
        """Starts the rows of hidden tokens with the mean and the spread of the language model's embeddings [V, D]."""
        if self.hidden is not None:
            self.hidden.mul_(embeddings.float().std()).add_(embeddings.float().mean(dim=0))

    def forward(self, features: Tensor, places: Tensor | None = None) -> Tensor:
        """Features [..., F] of tokens at `places` [...] of their images; [..., n, F] of whole images without."""
        made = self.layers(features)
        if self.hidden is None:
            return made
        rows = self.hidden if places is None else self.hidden[places]
        return torch.where((features != 0).any(dim=-1, keepdim=True), made, rows.to(made.dtype))


class VisualHead(nn.Module):
    """Final states of the language model [..., D] -> predicted visual tokens [..., F] of length 1."""

    def __init__(self, width: int, feature_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, feature_dim))

    @torch.no_grad()
    def start_at(self, features: Tensor) -> None:
        """Starts at the mean of features [N, F], which says more than nothing of every image."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_(features.mean(dim=0))

    def forward(self, states: Tensor) -> Tensor:
        return normalize(self.layers(states).float(), dim=-1)
