"""Layers of a pretrained diffusion transformer in the shape of a decoder's, so that a vision tower can be made of them.

They are DiT's (arXiv 2212.09748): LayerNorm without weights, attention without rotation, an MLP with GELU; shift, scale
and gate come from the time embedding, as everywhere under AdaLN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class DiffusionAttention(nn.Module):
    """Projections with biases; `qk_norm`: RMS norm of each head's queries and keys (SD3.5)."""

    use_rope = False

    def __init__(self, width: int, num_heads: int, *, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.head_dim = width // num_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.o_proj = nn.Linear(width, width)
        if qk_norm:
            self.q_norm = nn.RMSNorm(self.head_dim, eps=1e-6)
            self.k_norm = nn.RMSNorm(self.head_dim, eps=1e-6)


class DiffusionLayer(nn.Module):
    """Names as in a Hugging Face decoder layer: what nn/layer_parts.py calls."""

    def __init__(
        self, width: int, num_heads: int, mlp_width: int, *, bias: bool = True, qk_norm: bool = False, eps: float
    ) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.self_attn = DiffusionAttention(width, num_heads, bias=bias, qk_norm=qk_norm)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(approximate="tanh"), nn.Linear(mlp_width, width))


class DiffusionTime(nn.Module):
    """t in 0..1 -> what a pretrained transformer's modulations read: SiLU of its time embedding plus a fixed condition
    (no class, no text). `frequency_shift`: 1 in DiT, 0 in SD3."""

    frequencies: Tensor

    def __init__(self, width: int, *, frequency_shift: int) -> None:
        super().__init__()
        exponent = -math.log(10_000) * torch.arange(128) / (128 - frequency_shift)
        self.register_buffer("frequencies", 1000 * exponent.exp(), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Parameter(torch.zeros(width))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.frequencies.float()
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1)
        return nn.functional.silu(self.mlp(waves.to(self.condition.dtype)) + self.condition)


@dataclass(frozen=True)
class PretrainedTower:
    """A diffusion transformer taken apart. modulations: of each layer, weight [6 d, d] and bias; head_modulation:
    shift, then scale; patch and head: weights and biases in this project's order of a patch (channel, row, column)."""

    width: int
    num_heads: int
    mlp_width: int
    patch_size: int
    latent_channels: int
    latent_size: int
    layers: list[DiffusionLayer]
    modulations: list[nn.Linear]
    patch: nn.Linear
    position: Tensor
    time: DiffusionTime
    head_modulation: nn.Linear
    head: nn.Linear
    prediction: str
    schedule: str
