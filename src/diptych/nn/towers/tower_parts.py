"""What towers of every design are made of besides layers: maps between widths, and what the time does to a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]
"""Keys and values, each [N, kv_heads, head_dim]."""


class WidthMap(nn.Module):
    """States of one tower for the other where widths differ: RMS norm, scale and shift, then linear.

    Most of what a language model's states hold is the same for every token. `standardise` starts scale and shift such
    that this part is gone: what tells one text from another then stands out from the first step on.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width_in, eps=1e-6)
        self.shift = nn.Parameter(torch.zeros(width_in))
        self.linear = nn.Linear(width_in, width_out, bias=False)
        nn.init.normal_(self.linear.weight, std=width_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.to(self.norm.weight.dtype)) + self.shift)

    @torch.no_grad()
    def standardise(self, x: Tensor) -> None:
        """Starts from the statistics of states x [N, width_in]: each dimension then has mean 0 and variance 1."""
        normed = nn.functional.rms_norm(x.float(), x.shape[-1:], eps=1e-6)
        spread = normed.std(dim=0).clamp_min(1e-3)
        self.norm.weight.copy_(1 / spread)
        self.shift.copy_(-normed.mean(dim=0) / spread)


class Modulation(nn.Module):
    """AdaLN-zero: shift, scale and gate of attention and MLP from the time embedding; gates start at zero.

    `width`: of the layer that is modulated; `time_width`: of the time embedding, the same if left out.
    """

    def __init__(self, width: int, time_width: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(time_width or width, 6 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        """Time embeddings [I, dt] -> six of [I, d]: attention shift, scale, gate, then the MLP's."""
        return self.linear(time).chunk(6, dim=-1)
