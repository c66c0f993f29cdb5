"""Tiny random diffusion transformers of two blocks, as diffusers has them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

from tiny_xfusion import CHANNELS, SIZE

SIZES: dict[str, Any] = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": CHANNELS}


def build_dit(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings: Any = {"sample_size": SIZE, "patch_size": 2, "num_embeds_ada_norm": 10, "out_channels": 2 * CHANNELS}
    network: Any = DiTTransformer2DModel(**SIZES | settings | changes)
    first = network.transformer_blocks[0].norm1.emb.state_dict()
    for block in network.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return stir(network)


def build_sd3(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings: Any = {
        "sample_size": 8,
        "patch_size": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 10,
        "out_channels": CHANNELS,
        "pos_embed_max_size": 6,
    }
    return stir(SD3Transformer2DModel(**SIZES | settings | changes))


def stir(network: Any) -> Any:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".emb." not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()
