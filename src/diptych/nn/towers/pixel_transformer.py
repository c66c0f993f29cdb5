"""A small transformer that turns visual tokens into an image's latents, by flow matching: no language model in it.

Latent patches see each other, and each is given what the visual tokens hold at its own place: in as many minutes that
learns several times what tokens in the stream do, which must first be searched. Time enters as AdaLN-zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from diptych.nn.heads import ImageEmbedder, TimeEmbedding, VelocityHead, modulate
from diptych.nn.towers.tower_parts import Modulation, WidthMap

MLP_RATIO = 4


class PixelBlock(nn.Module):
    """Attention of every token of an image with every other, then an MLP; starts as the identity."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.head_norm = nn.RMSNorm(width // num_heads, eps=1e-6, elementwise_affine=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width))
        self.modulation = Modulation(width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """States [I * m, d] of the m tokens of each image, time embeddings [I, d] -> states [I * m, d]."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(time)
        y = modulate(self.attention_norm(x), shift=shift, scale=scale)
        parts = self.query_key_value(y).view(len(time), -1, 3, self.num_heads, x.shape[1] // self.num_heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(self.head_norm(query), self.head_norm(key), value)
        x = x + modulate(self.output(y.transpose(1, 2).reshape(x.shape)), gate=gate)
        y = modulate(self.mlp_norm(x), shift=mlp_shift, scale=mlp_scale)
        return x + modulate(self.mlp(y), gate=mlp_gate)


def grid_positions(num_cells: int, width: int) -> Tensor:
    """Sinusoids [num_cells, width] of the centres of a square grid's cells, row by row, amplitude 0.5: cells near each
    other have nearly the same. `width`: a multiple of 4."""
    side = math.isqrt(num_cells)
    centres = (torch.arange(side, device="cpu") + 0.5) / side  # as linspace: not always meta in a meta context
    angles = centres[:, None] * math.pi * 2 ** torch.linspace(0, 3, width // 4, device="cpu")
    waves = 0.5 * torch.cat((angles.sin(), angles.cos()), dim=-1)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1).to(torch.get_default_device())


def cells_by_patch(num_cells: int, num_patches: int) -> Tensor:
    """The matrix [num_patches * k * k, num_cells] that gives each patch, row by row, the k x k cells of a square grid
    that lie in it. A grid that the patches do not divide is first interpolated (bilinear) to the next finer one that
    they do: nothing that its cells hold is lost."""
    side, patches = math.isqrt(num_cells), math.isqrt(num_patches)
    k = math.ceil(side / patches)
    basis = torch.eye(num_cells).view(num_cells, 1, side, side)
    fine = interpolate(basis, (patches * k, patches * k), mode="bilinear", align_corners=False)
    return fine.view(num_cells, patches, k, patches, k).transpose(2, 3).flatten(1).T.contiguous()


class PixelTransformer(nn.Module):
    """The velocity of latents, given visual tokens. An image without its condition gets a learned state in place of
    what these held, so nothing of it is seen.

    Positions are learned, and start as sinusoids of where in the image a patch lies.
    Raises ValueError if the patches do not divide the latents, or the heads and 4 do not divide the width.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        latent_size: int,
        patch_size: int,
        feature_dim: int,
        num_image_tokens: int,
        width: int,
        num_layers: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        if latent_size % patch_size or width % num_heads or width % 4:
            raise ValueError(
                f"pixel_decoder_training: patch_size {patch_size} must divide the latent size {latent_size} (change "
                f"image_size or patch_size), num_attention_heads {num_heads} and 4 the hidden_size {width}"
            )
        self.latent_shape = (latent_channels, latent_size, latent_size)
        self.embedder = ImageEmbedder(
            latent_channels=latent_channels,
            latent_size=latent_size,
            patch_size=patch_size,
            width=width,
            boundary_tokens=False,
        )
        self.embedder.position = nn.Parameter(grid_positions(self.embedder.num_patches, width))
        self.place_map: Tensor
        place_map = cells_by_patch(num_image_tokens, self.embedder.num_patches)
        self.register_buffer("place_map", place_map, persistent=False)
        self.condition = WidthMap(feature_dim * len(place_map) // self.embedder.num_patches, width)
        self.no_condition = nn.Parameter(torch.randn(width) * 0.02)
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(PixelBlock(width, num_heads) for _ in range(num_layers))
        self.head = VelocityHead(self.embedder, width=width, adaln=True)
        self.gradient_checkpointing = False

    def standardise(self, features: Tensor) -> None:
        """Starts the map of visual tokens from the statistics of some of them, [N, n, F]."""
        self.condition.standardise(self.by_patch(features).flatten(0, 1))

    def by_patch(self, features: Tensor) -> Tensor:
        """Visual tokens [I, n, F] -> [I, patches, k k F], what they hold at the place of each patch."""
        kind = features.device.type
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):  # the meta device knows no autocast
            return (self.place_map @ features.float()).view(len(features), self.embedder.num_patches, -1)

    def forward(self, x: Tensor, t: Tensor, features: Tensor, dropped: Tensor) -> Tensor:
        """Noised latents [I, C, h, w], times [I], visual tokens [I, n, F] -> velocity [I, C, h, w].

        dropped: bool [I], the images that are drawn without their condition.
        """
        condition = self.condition(self.by_patch(features))
        states = self.embedder(x) + torch.where(dropped[:, None, None], self.no_condition, condition)
        states, time = states.flatten(0, 1), self.time(t)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                states = checkpoint(block, states, time, use_reentrant=False)
            else:
                states = block(states, time)
        return self.head(states, time)
