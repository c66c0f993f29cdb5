"""X-Fusion (arXiv 2504.20996): a frozen text tower for text tokens, a trained vision tower for image tokens.

The forward pass has two stages. `prefill` runs everything clean: text states, clean images, the keys and values
that later tokens read. `denoise` runs the noised images upon it. Training does each once; sampling does the first
once and the second in every denoising step. What is frozen comes from `TextStates`, cached.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diptych.models.text_states import FrozenText, TextStates
from diptych.nn.towers.text import TextTower
from diptych.nn.towers.tower_parts import KeyValue
from diptych.nn.towers.vision_tower import VisionTower
from diptych.nn.visibility import RoutingPlan, build_plan
from diptych.sequence import Batch


@dataclass(frozen=True)
class Prefilled:
    """What the clean part leaves behind: each block's keys and values, and live text after the last layer [Nl, D].

    text_key_values: for each layer from the first vision block's on, the keys and values of (live_prefix, live,
    context image) as the text tower reads them; kept only on request, for decoding. pooled [It, d]: see `pool_text`.
    aligned [Nc, d]: context images behind the block that is aligned, if one is.
    """

    key_values: list[KeyValue | None]
    live: Tensor | None
    text_key_values: list[KeyValue]
    pooled: Tensor | None = None
    aligned: Tensor | None = None


@dataclass(frozen=True)
class Outputs:
    """velocity [It, C, h, w] of target images, logits at supervised tokens; image states behind the aligned block, of
    context [Nc, d] and of target images [Nt, d]. None where absent."""

    velocity: Tensor | None
    logits: Tensor | None
    context_states: Tensor | None
    target_states: Tensor | None


class XFusion(nn.Module):
    """Dual tower. The language model is held, not owned: `parameters()` are exactly the trained ones."""

    def __init__(self, text_tower: TextTower, vision_tower: VisionTower, text_states: TextStates) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.text_tower = text_tower
        self.text_states = text_states
        self.block_at = {layer: index for index, layer in enumerate(vision_tower.layers)}

    def plan(self, batch: Batch) -> RoutingPlan:
        """Who computes what of a batch. Errors: see `build_plan`."""
        return build_plan(batch, window=self.text_tower.window)

    def prefill(
        self,
        batch: Batch,
        plan: RoutingPlan,
        frozen: FrozenText | None = None,
        *,
        context_t: Tensor | None = None,
        context_features: Tensor | None = None,
        keep_text: bool = False,
    ) -> Prefilled:
        """Runs clean images and live text through the layers. `frozen`: given states; None: from `text_states`.

        context_t [Ic]: times that the context images, in their order, are noised to; None: they are clean.
        context_features [Ic, patches, F]: of a tower that reads features.
        """
        frozen = self.text_states.gather(batch, plan) if frozen is None else frozen
        vision, text = self.vision_tower, self.text_tower
        positions = batch.positions
        dtype = frozen.live.dtype
        live = frozen.live if plan.live.numel() else None
        first = frozen.prefix[0] if live is None else torch.cat((frozen.prefix[0], live[plan.live_read]))
        num_targets = int(batch.image_is_target.sum())
        pooled = vision.pool_text(first[plan.pooled_rows], plan.pooled_images, num_targets) if num_targets else None
        image = time = image_rope = None
        if plan.context.numel():
            latents = batch.images[~batch.image_is_target]
            words = vision.match_text(first[plan.matched_rows], plan.matched_images, len(latents))
            image, time = vision.embed_context(latents, context_t, context_features, words)
            image_rope = vision.rope(positions[plan.context], image.dtype)
        read_text = torch.cat((plan.prefix, plan.live[plan.live_read]))
        read_rope = vision.rope(positions[read_text], dtype)
        live_rope = text.rope(positions[plan.live], dtype)
        front_rope = text.rope(positions[plan.live_prefix], dtype)
        seen_rope = text.rope(positions[plan.context[plan.context_read]], dtype)
        last = len(vision.blocks) - 1
        aligned = None
        key_values: list[KeyValue | None] = []
        text_key_values: list[KeyValue] = []
        for layer in range(vision.layers[0], text.num_layers):
            index = self.block_at.get(layer)
            seen = None
            if index is not None:
                states = frozen.prefix[index]
                if live is not None and plan.live_read.numel():
                    states = torch.cat((states, live[plan.live_read]))
                image, key_value, seen = vision.blocks[index](
                    image,
                    image_rope=image_rope,
                    time=time,
                    groups=plan.context_groups if index < last else None,
                    text=states,
                    text_rope=read_rope,
                    read=plan.context_read if live is not None else None,
                )
                key_values.append(key_value)
                if index == vision.aligned_block:
                    aligned = image
            if live is not None:
                before = None
                if plan.live_prefix.numel():
                    before = text.key_value(layer, frozen.live_prefix[layer - vision.layers[0]], front_rope)
                seen_key_value = None if seen is None else text.key_value(layer, seen, seen_rope)
                groups = plan.live_text_groups if seen is None else plan.live_groups
                assert groups is not None
                live, kept = text.run_layer(layer, live, live_rope, groups, before=before, image=seen_key_value)
                if keep_text:
                    text_key_values.append(kept)
            elif index == last:
                break
        return Prefilled(key_values, live, text_key_values, pooled, aligned)

    def denoise(self, latents: Tensor, t: Tensor, batch: Batch, plan: RoutingPlan, prefilled: Prefilled) -> Tensor:
        """Velocity of noised images: latents [It, C, h, w] at times t [It] -> the same shape."""
        return self._denoise(latents, t, batch, plan, prefilled)[0]

    def _denoise(
        self, latents: Tensor, t: Tensor, batch: Batch, plan: RoutingPlan, prefilled: Prefilled
    ) -> tuple[Tensor, Tensor | None]:
        """And the images behind the block that is aligned, if one is."""
        vision, aligned = self.vision_tower, None
        image, time = vision.embed(latents, t, prefilled.pooled)
        rope = vision.rope(batch.positions[plan.target], image.dtype)
        for index, (block, before) in enumerate(zip(vision.blocks, prefilled.key_values, strict=True)):
            image, _, _ = block(image, image_rope=rope, time=time, groups=plan.target_groups, before=before)
            if index == vision.aligned_block:
                aligned = image
        return vision.velocity(image, time), aligned

    def forward(
        self,
        batch: Batch,
        plan: RoutingPlan,
        noised: Tensor,
        t: Tensor,
        frozen: FrozenText | None = None,
        *,
        context_t: Tensor | None = None,
        context_features: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Velocity of target images [It, C, h, w], logits at supervised tokens [.., vocabulary]; None where absent."""
        out = self.outputs(batch, plan, noised, t, frozen, context_t=context_t, context_features=context_features)
        return out.velocity, out.logits

    def outputs(
        self,
        batch: Batch,
        plan: RoutingPlan,
        noised: Tensor,
        t: Tensor,
        frozen: FrozenText | None = None,
        *,
        context_t: Tensor | None = None,
        context_features: Tensor | None = None,
    ) -> Outputs:
        """What `forward` gives, and the image states that are aligned."""
        prefilled = self.prefill(batch, plan, frozen, context_t=context_t, context_features=context_features)
        velocity = logits = aligned = None
        if plan.target.numel():
            velocity, aligned = self._denoise(noised, t, batch, plan, prefilled)
        if prefilled.live is not None and plan.supervised.numel():
            logits = self.text_tower.logits(prefilled.live[plan.supervised])
        return Outputs(velocity, logits, prefilled.aligned, aligned)
