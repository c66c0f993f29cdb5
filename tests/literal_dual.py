"""The oracle: X-Fusion's dual tower read literally. Both towers run on all tokens, then the right half is selected.

Dense masks, whole Hugging Face layer forwards, nothing cached, nothing skipped. Slow on purpose.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diptych.models.fused import FusedXFusion
from diptych.models.xfusion import XFusion
from diptych.nn.heads import modulate
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


def _attention(layer, x: Tensor, rope, mask: Tensor) -> Tensor:
    query = project_query(layer, x, rope)
    key, value = project_key_value(layer, x, rope)
    repeat = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(repeat, dim=1).transpose(0, 1) for t in (key, value))
    scores = query.transpose(0, 1) @ key.transpose(1, 2) * layer.self_attn.scaling
    scores = scores.masked_fill(~mask, float("-inf"))
    return (torch.softmax(scores, dim=-1) @ value).transpose(0, 1)


def literal_forward(
    model: XFusion, batch: Batch, noised: Tensor, t: Tensor, *, behind_blocks: list[Tensor] | None = None
) -> tuple[Tensor | None, Tensor]:
    """Velocity of the target images (None without one), logits at *every* text position [N, vocabulary].

    behind_blocks: takes the image states [N, w] behind each block.
    """
    text = model.text_tower
    vision: Any = model.vision_tower
    is_image, num = batch.is_image, batch.token_ids.numel()
    mask = visible(batch) | torch.eye(num, dtype=torch.bool)
    text_only = mask & ~is_image[None] & ~is_image[:, None] | torch.eye(num, dtype=torch.bool)
    text_states = text.embed(batch.token_ids)
    image_states = torch.zeros(num, vision.width)
    image_time = torch.zeros(num, vision.width)
    time = image_time
    if batch.num_images:
        latents = batch.images.clone()
        times = torch.zeros(batch.num_images)
        latents[batch.image_is_target] = noised
        times[batch.image_is_target] = t
        embedded, time = embed_images(model, batch, latents, times)
        image_states = image_states.index_put((is_image.nonzero()[:, 0],), embedded)
        per_token = time.repeat_interleave(vision.num_image_tokens, dim=0)
        image_time = image_time.index_put((is_image.nonzero()[:, 0],), per_token)
    text_rope = text.rope(batch.positions, text_states.dtype)
    image_rope = vision.rope(batch.positions, image_states.dtype)
    for number, layer in enumerate(text.layers):
        index = model.block_at.get(number)
        seen = torch.zeros_like(text_states) if index is None else vision.blocks[index].for_text(image_states)
        merged = torch.where(is_image[:, None], seen, text_states)
        attended = _attention(layer, attention_input(layer, merged), text_rope, text_only if index is None else mask)
        out = merged + attention_output(layer, attended)
        out = out + mlp_output(layer, mlp_input(layer, out))
        if index is not None:
            block = vision.blocks[index]
            mapped = text_states if block.text_in is None else block.text_in(text_states)
            both = torch.where(is_image[:, None], image_states, mapped)
            image_states = torch.where(
                is_image[:, None], _vision_layer(block, both, image_time, image_rope, mask, is_image), 0.0
            )
            if behind_blocks is not None:
                behind_blocks.append(image_states)
        text_states = torch.where(is_image[:, None], 0.0, out)
    velocity = None
    if batch.image_is_target.any():
        rows = torch.isin(batch.image_ids, batch.image_is_target.nonzero()[:, 0])
        velocity = vision.velocity(image_states[rows], time[batch.image_is_target])
    return velocity, text.logits(text_states)


def embed_images(model: XFusion | FusedXFusion, batch: Batch, latents: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Image tokens and times: the pooled text before an image is added to the time of one that is drawn, and multiplied
    into the patches of one that is read."""
    vision: Any = model.vision_tower
    if vision.text_pool is None:
        return vision.embed(latents, times)
    words, is_target = pooled_text(model, batch), batch.image_is_target
    embedded, time = vision.embed(latents, times, torch.where(is_target[:, None], words, 0.0))
    if (matcher := vision.text_matcher) is None:
        return embedded, time
    added = []
    for image, tokens in enumerate(vision.embedder(latents)):
        row, size = words[image], vision.width
        unit = row * (size / (row @ row + size * torch.finfo(row.dtype).eps)) ** 0.5
        for token in tokens:
            own = token * (size / (token @ token + size * torch.finfo(token.dtype).eps)) ** 0.5
            common = matcher.out.weight @ ((matcher.patches.weight @ own) * (matcher.words.weight @ unit))
            added.append(torch.zeros(size) if is_target[image] else common + matcher.out.bias)
    return embedded + torch.stack(added), time


def pooled_text(model: XFusion | FusedXFusion, batch: Batch) -> Tensor:
    """The pooled text before each image [I, w]."""
    vision: Any = model.vision_tower
    text = model.text_tower
    mask = visible(batch) & ~batch.is_image[None] | torch.eye(batch.token_ids.numel(), dtype=torch.bool)
    states = text.embed(batch.token_ids)
    rope = text.rope(batch.positions, states.dtype)
    for layer in list(text.layers)[: vision.layers[0]]:
        states = states + attention_output(layer, _attention(layer, attention_input(layer, states), rope, mask))
        states = states + mlp_output(layer, mlp_input(layer, states))
    rows = []
    for image in range(batch.num_images):
        start = int((batch.image_ids == image).nonzero()[0])
        same = batch.sample_ids == batch.image_samples[image]
        before = same & ~batch.is_image & (torch.arange(len(same)) < start)
        rows.append(vision.text_pool(states[before]).sum(0) / max(1, int(before.sum())) ** 0.5)
    return torch.stack(rows)


def _vision_layer(block, both: Tensor, time: Tensor, rope, mask: Tensor, is_image: Tensor) -> Tensor:
    """The whole block on all tokens; time modulates image tokens only."""
    layer = block.layer
    if block.modulation is None:
        attended = _attention(layer, attention_input(layer, both), rope, mask)
        out = both + attention_output(layer, attended)
        return out + mlp_output(layer, mlp_input(layer, out))
    gates = block.modulation(time)
    x = attention_input(layer, both)
    x = torch.where(is_image[:, None], modulate(x, shift=gates[0], scale=gates[1]), x)
    out = both + gates[2] * attention_output(layer, _attention(layer, x, rope, mask))
    x = modulate(mlp_input(layer, out), shift=gates[3], scale=gates[4])
    return out + gates[5] * mlp_output(layer, x)
