"""The plain way to run X-Fusion's dual tower, written well: both towers on all tokens, then a selection per layer.

Not the tests' oracle, which is slow on purpose: whole layers over [S, L, D], fused attention, one dense mask.
For samples of one shape and a symmetric tower with time added to the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from diptych.models.xfusion import XFusion
from diptych.nn.visibility import visible
from diptych.sequence import IGNORE_INDEX, Batch


class BothTowers:
    """`forward` gives what `XFusion.forward` gives. Mask and rotary angles are made once."""

    def __init__(self, model: XFusion, batch: Batch) -> None:
        self.model, self.batch = model, batch
        samples = batch.num_samples
        self.shape = (samples, batch.token_ids.numel() // samples)
        length = self.shape[1]
        blocks = visible(batch).unflatten(1, self.shape).unflatten(0, self.shape)
        self.mask = torch.stack([blocks[s, :, s] for s in range(samples)])[:, None]
        self.mask |= torch.eye(length, dtype=torch.bool)
        self.is_image = batch.is_image.view(*self.shape, 1)
        weight = model.text_tower.language_model.model.embed_tokens.weight
        positions = torch.arange(length)[None]
        self.rope = model.text_tower.language_model.model.rotary_emb(weight, positions)
        self.supervised = batch.labels != IGNORE_INDEX

    def forward(self, noised: Tensor, t: Tensor) -> tuple[Tensor | None, Tensor | None]:
        text, vision, batch = self.model.text_tower, self.model.vision_tower, self.batch
        times = torch.zeros(batch.num_images)
        latents = batch.images
        if batch.image_is_target.any():
            times = times.masked_scatter(batch.image_is_target, t)
            latents = latents.masked_scatter(batch.image_is_target[:, None, None, None], noised)
        embedded, time = vision.embed(latents, times)
        states = (
            text.embed(batch.token_ids).index_copy(0, batch.is_image.nonzero()[:, 0], embedded).view(*self.shape, -1)
        )
        for layer, block in zip(text.layers, vision.blocks, strict=True):
            states = torch.where(self.is_image, self._layer(block.layer, states), self._layer(layer, states))
        flat = states.flatten(0, 1)
        velocity = vision.velocity(flat[batch.is_image], time) if batch.image_is_target.any() else None
        logits = text.logits(flat[self.supervised]) if self.supervised.any() else None
        return velocity, logits

    def _layer(self, layer: Any, states: Tensor) -> Tensor:
        attention = layer.self_attn
        x = layer.input_layernorm(states)
        heads = (*self.shape, -1, attention.head_dim)
        query = _rotate(attention.q_proj(x).view(heads).transpose(1, 2), self.rope)
        key = _rotate(attention.k_proj(x).view(heads).transpose(1, 2), self.rope)
        value = attention.v_proj(x).view(heads).transpose(1, 2)
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=self.mask, scale=attention.scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        states = states + attention.o_proj(out.transpose(1, 2).flatten(2))
        return states + layer.mlp(layer.post_attention_layernorm(states))


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rope[0][:, None], rope[1][:, None]
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin
