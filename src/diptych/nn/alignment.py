"""Image states of a tower drawn to an image encoder's features (X-Fusion, alignment; REPA, arXiv 2410.06940)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

PROJECTORS = ("linear", "mlp3")


class AlignmentHead(nn.Module):
    """Image states [..., d] -> predicted features [..., F] of length 1: one layer, or three with SiLU between."""

    def __init__(self, width: int, feature_dim: int, *, projector: str) -> None:
        super().__init__()
        if projector not in PROJECTORS:
            raise ValueError(f"unknown projector {projector!r}; choose one of: {', '.join(PROJECTORS)}")
        self.feature_dim = feature_dim
        if projector == "linear":
            self.layers: nn.Module = nn.Linear(width, feature_dim)
        else:
            hidden = 4 * width
            first, second, third = nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, feature_dim)
            self.layers = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), third)

    def forward(self, states: Tensor) -> Tensor:
        return normalize(self.layers(states).float(), dim=-1)


def alignment_loss(predicted: Tensor, features: Tensor) -> Tensor:
    """The sum over tokens of 1 - cos, both [..., F] and of length 1."""
    return (1 - (predicted * features.detach().to(predicted.dtype)).sum(dim=-1)).sum()
