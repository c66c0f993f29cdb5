"""The plain way to run X-Fusion's designs, written well: both towers on all tokens, then a selection per layer.

Not the tests' oracle, which is slow on purpose: whole layers over [S, L, D], fused attention, one dense mask.
For samples of one shape and a symmetric tower with time added to the tokens; of every design but the single tower,
which has only one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from diptych.models.xfusion_building import XFusionModel
from diptych.nn.visibility import visible
from diptych.sequence import IGNORE_INDEX, Batch


class BothTowers:
    """`forward` gives what the model's own gives. Mask and rotary angles are made once."""

    def __init__(self, model: XFusionModel, batch: Batch) -> None:
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
        behind = batch.is_image.view(self.shape).cumsum(dim=1)[..., None] > 0
        self.is_behind = behind & ~self.is_image

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
            states = self._both(layer, block, states)
        flat = states.flatten(0, 1)
        velocity = vision.velocity(flat[batch.is_image], time) if batch.image_is_target.any() else None
        logits = text.logits(flat[self.supervised]) if self.supervised.any() else None
        return velocity, logits

    def _both(self, layer: Any, block: Any, states: Tensor) -> Tensor:
        design, x_fuse = self.model.vision_tower.layer_design, self.model.vision_tower.x_fuse
        if design == "projection":
            return self._joint(layer, block.layer, states)
        of_vision, of_text = self._layer(block.layer, states), self._layer(layer, states)
        if design == "gated":
            return torch.where(self.is_image | self.is_behind, of_text + block.gamma * of_vision, of_text)
        own_image, own_text = of_vision, of_text
        if x_fuse in ("image", "both"):
            own_image = block.image_mix[0] * of_vision + block.image_mix[1] * of_text
        if x_fuse in ("text", "both"):
            mixed = block.text_mix[0] * of_text + block.text_mix[1] * of_vision
            own_text = torch.where(self.is_behind, mixed, of_text)
        return torch.where(self.is_image, own_image, own_text)

    def _layer(self, layer: Any, states: Tensor) -> Tensor:
        attended = self._attend(layer, *self._project(layer, states))
        states = states + layer.self_attn.o_proj(attended)
        return states + layer.mlp(layer.post_attention_layernorm(states))

    def _joint(self, text: Any, vision: Any, states: Tensor) -> Tensor:
        """Every projection of both, the right one chosen, one attention."""
        pairs = zip(self._project(vision, states), self._project(text, states), strict=True)
        is_image = self.is_image[:, None]
        attended = self._attend(text, *(torch.where(is_image, a, b) for a, b in pairs))
        states = states + torch.where(self.is_image, vision.self_attn.o_proj(attended), text.self_attn.o_proj(attended))
        of_vision, of_text = (layer.mlp(layer.post_attention_layernorm(states)) for layer in (vision, text))
        return states + torch.where(self.is_image, of_vision, of_text)

    def _project(self, layer: Any, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = layer.self_attn
        x = layer.input_layernorm(states)
        heads = (*self.shape, -1, attention.head_dim)
        query, key, value = (
            projection(x).view(heads).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return _rotate(query, self.rope), _rotate(key, self.rope), value

    def _attend(self, layer: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped, scale = query.shape[1] != key.shape[1], layer.self_attn.scaling
        out = scaled_dot_product_attention(query, key, value, attn_mask=self.mask, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(2)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rope[0][:, None], rope[1][:, None]
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin
