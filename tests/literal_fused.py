"""The oracle of the other layer designs, read literally: every layer on all tokens under one dense mask, then merged.

Whole layers, nothing cached, nothing skipped. Slow on purpose.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diptych.models.fused import FusedXFusion
from diptych.nn.layer_parts import (
    attention_input,
    attention_output,
    mlp_input,
    mlp_output,
    project_key_value,
    project_query,
)
from diptych.nn.visibility import visible
from diptych.sequence import Batch
from literal_dual import embed_images

Rows = list[Tensor]
"""Shift, scale and gate of attention, then of the MLP, of every token [N, w]."""


def literal_forward(
    model: FusedXFusion, batch: Batch, noised: Tensor, t: Tensor, *, behind_blocks: list[Tensor] | None = None
) -> tuple[Tensor | None, Tensor]:
    """Velocity of the target images (None without one), logits at *every* text position [N, vocabulary].

    behind_blocks: takes the image states [N, w] behind each block.
    """
    text = model.text_tower
    vision: Any = model.vision_tower
    is_image, num = batch.is_image, batch.token_ids.numel()
    itself = torch.eye(num, dtype=torch.bool)
    mask = visible(batch) | itself
    text_only = mask & ~is_image[None] & ~is_image[:, None] | itself
    states = text.embed(batch.token_ids)
    images, time = _embed_images(model, batch, noised, t)
    met = ~is_image & behind_a_clean_image(batch)
    if not model.is_text_frozen:
        met = ~is_image
    for number, layer in enumerate(text.layers):
        index = model.block_at.get(number)
        if index is None:
            rope = text.rope(batch.positions, states.dtype)
            states = _whole_layer(layer, states, rope, text_only)
            continue
        states, images = _fused_layer(model, layer, vision.blocks[index], states, images, time, batch, mask, met)
        if behind_blocks is not None:
            behind_blocks.append(images)
    velocity = None
    if batch.image_is_target.any():
        rows = torch.isin(batch.image_ids, batch.image_is_target.nonzero()[:, 0])
        per_image = time[is_image].unflatten(0, (batch.num_images, -1))[:, 0]
        velocity = vision.velocity(images[rows], per_image[batch.image_is_target])
    return velocity, text.logits(states)


def behind_a_clean_image(batch: Batch) -> Tensor:
    found = torch.zeros_like(batch.is_image)
    for sample in range(batch.num_samples):
        seen = False
        for row in (batch.sample_ids == sample).nonzero()[:, 0].tolist():
            image = int(batch.image_ids[row])
            seen |= bool(batch.is_image[row]) and not bool(batch.image_is_target[image])
            found[row] = seen
    return found


def _fused_layer(
    model: FusedXFusion,
    layer: Any,
    block: Any,
    states: Tensor,
    images: Tensor,
    time: Tensor,
    batch: Batch,
    mask: Tensor,
    met: Tensor,
) -> tuple[Tensor, Tensor]:
    """One depth: text states [N, D] and image states [N, w], each right where its tokens stand."""
    vision: Any = model.vision_tower
    pick = batch.is_image[:, None]
    text_rope = model.text_tower.rope(batch.positions, states.dtype)
    vision_rope = vision.rope(batch.positions, states.dtype)
    rows = None if block.modulation is None else _modulation(block, time, batch.is_image)
    design = vision.layer_design
    if design == "single":
        out = _whole_layer(block.layer, torch.where(pick, images, states), text_rope, mask, rows)
        return out, out
    if design == "projection":
        return _joint_attention(layer, block, states, images, rows, text_rope, batch.is_image, mask)
    if design == "gated":
        merged = torch.where(pick, images, states)
        frozen = _whole_layer(layer, merged, text_rope, mask)
        narrow = merged if block.text_in is None else block.text_in(merged)
        trained = _whole_layer(block.layer, narrow, vision_rope, mask, rows)
        trained = trained if block.image_out is None else block.image_out(trained)
        both = frozen + block.gamma * trained
        return torch.where(met[:, None], both, frozen), both
    seen = images if block.image_out is None else block.image_out(images)
    of_text = _whole_layer(layer, torch.where(pick, seen, states), text_rope, mask)
    mapped = states if block.text_in is None else block.text_in(states)
    of_vision = _whole_layer(block.layer, torch.where(pick, images, mapped), vision_rope, mask, rows)
    new_states, new_images = of_text, of_vision
    if block.text_mix is not None:
        back = of_vision if block.text_back is None else block.text_back(of_vision)
        new_states = torch.where(met[:, None], block.text_mix[0] * of_text + block.text_mix[1] * back, of_text)
    if block.image_mix is not None:
        back = of_text if block.image_back is None else block.image_back(of_text)
        new_images = block.image_mix[0] * of_vision + block.image_mix[1] * back
    return new_states, new_images


def _embed_images(model: FusedXFusion, batch: Batch, noised: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Image states and time embeddings [N, w], where image tokens stand."""
    vision: Any = model.vision_tower
    num = batch.token_ids.numel()
    images, time = torch.zeros(num, vision.width), torch.zeros(num, vision.width)
    if batch.num_images:
        latents, times = batch.images.clone(), torch.zeros(batch.num_images)
        latents[batch.image_is_target], times[batch.image_is_target] = noised, t
        embedded, per_image = embed_images(model, batch, latents, times)
        where = (batch.is_image.nonzero()[:, 0],)
        images = images.index_put(where, embedded)
        time = time.index_put(where, per_image.repeat_interleave(vision.num_image_tokens, dim=0))
    return images, time


def _modulation(block: Any, time: Tensor, is_image: Tensor) -> Rows:
    """Text is not modulated: no shift, no scale, gates of 1."""
    own = block.modulation(time)
    return [
        torch.where(is_image[:, None], value, torch.full_like(value, 1.0 if place in (2, 5) else 0.0))
        for place, value in enumerate(own)
    ]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeat, dim=1).transpose(0, 1) for x in (key, value))
    scores = (query.transpose(0, 1) @ key.transpose(1, 2) * scaling).masked_fill(~mask, float("-inf"))
    return (torch.softmax(scores, dim=-1) @ value).transpose(0, 1)


def _whole_layer(layer: Any, hidden: Tensor, rope: Any, mask: Tensor, rows: Rows | None = None) -> Tensor:
    x = attention_input(layer, hidden)
    x = x if rows is None else x * (1 + rows[1]) + rows[0]
    attended = _attend(project_query(layer, x, rope), *project_key_value(layer, x, rope), mask, layer.self_attn.scaling)
    return _after_attention(layer, hidden, attention_output(layer, attended), rows)


def _after_attention(layer: Any, hidden: Tensor, attended: Tensor, rows: Rows | None) -> Tensor:
    hidden = hidden + (attended if rows is None else rows[2] * attended)
    x = mlp_input(layer, hidden)
    if rows is None:
        return hidden + mlp_output(layer, x)
    return hidden + rows[5] * mlp_output(layer, x * (1 + rows[4]) + rows[3])


def _joint_attention(
    layer: Any,
    block: Any,
    states: Tensor,
    images: Tensor,
    rows: Rows | None,
    rope: Any,
    is_image: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    pick = is_image[:, None, None]
    mine, theirs = attention_input(layer, states), attention_input(block.layer, images)
    theirs = theirs if rows is None else theirs * (1 + rows[1]) + rows[0]
    query = torch.where(pick, project_query(block.layer, theirs, rope), project_query(layer, mine, rope))
    pairs = zip(project_key_value(block.layer, theirs, rope), project_key_value(layer, mine, rope), strict=True)
    key, value = (torch.where(pick, of_image, of_text) for of_image, of_text in pairs)
    attended = _attend(query, key, value, mask, layer.self_attn.scaling)
    new_states = _after_attention(layer, states, attention_output(layer, attended), None)
    new_images = _after_attention(block.layer, images, attention_output(block.layer, attended), rows)
    return new_states, new_images
