"""X-Fusion in the layer designs whose towers meet in more than the image's keys: X-Fuse, gated, projection, single.

The same two stages as in xfusion.py: `prefill` runs everything clean, `denoise` the noised images upon it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diptych.models.text_states import FrozenText, TextStates
from diptych.models.xfusion import Outputs
from diptych.nn.towers.fused_blocks import FusedBlock, KeyValues, Tokens
from diptych.nn.towers.text import TextTower
from diptych.nn.towers.tower_parts import KeyValue
from diptych.nn.towers.vision_tower import VisionTower
from diptych.nn.visibility import RoutingPlan, build_plan
from diptych.sequence import Batch


@dataclass(frozen=True)
class FusedPrefilled:
    """What the clean part leaves behind. key_values: of each block, of (prefix, live, context). plain: of layers that
    have no block, by layer, of (prefix, live). live [Nl, D]: after the last layer. pooled [It, d]: see `pool_text`.
    aligned [Nc, d]: context images behind the block that is aligned, if one is."""

    key_values: list[KeyValues]
    plain: dict[int, KeyValue]
    live: Tensor | None
    pooled: Tensor | None = None
    aligned: Tensor | None = None


class FusedXFusion(nn.Module):
    """Like `XFusion`, in another layer design. The language model is held, not owned, but for the single tower."""

    def __init__(self, text_tower: TextTower, vision_tower: VisionTower, text_states: TextStates) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.text_tower = text_tower
        self.text_states = text_states
        self.block_at = {layer: index for index, layer in enumerate(vision_tower.layers)}

    @property
    def is_text_frozen(self) -> bool:
        return self.vision_tower.layer_design != "single"

    def plan(self, batch: Batch) -> RoutingPlan:
        """Who computes what of a batch. Errors: see `build_plan`."""
        return build_plan(batch, window=self.text_tower.window, joint=True, is_text_frozen=self.is_text_frozen)

    def prefill(
        self,
        batch: Batch,
        plan: RoutingPlan,
        frozen: FrozenText | None = None,
        *,
        context_t: Tensor | None = None,
        context_features: Tensor | None = None,
        keep_text: bool = False,
    ) -> FusedPrefilled:
        """Runs clean images and live text through the layers. `frozen`: given states; None: from `text_states`.

        context_t [Ic]: times that the context images, in their order, are noised to; None: they are clean.
        context_features [Ic, patches, F]: of a tower that reads features.
        """
        del keep_text  # kept anyway
        frozen = self.text_states.gather(batch, plan) if frozen is None else frozen
        vision, text = self.vision_tower, self.text_tower
        positions = batch.positions
        live = frozen.live if plan.live.numel() else None
        num_targets = int(batch.image_is_target.sum())
        first = frozen.prefix[0] if live is None else torch.cat((frozen.prefix[0], live[plan.live_read]))
        pooled = vision.pool_text(first[plan.pooled_rows], plan.pooled_images, num_targets) if num_targets else None
        image = time = None
        if plan.context.numel():
            latents = batch.images[~batch.image_is_target]
            words = vision.match_text(first[plan.matched_rows], plan.matched_images, len(latents))
            image, time = vision.embed_context(latents, context_t, context_features, words)
        dtype = frozen.live.dtype
        ropes = [
            (text.rope(positions[rows], dtype), vision.rope(positions[rows], dtype))
            for rows in (plan.prefix, plan.live, plan.context)
        ]
        last = len(vision.blocks) - 1
        aligned = None
        key_values: list[KeyValues] = []
        plain: dict[int, KeyValue] = {}
        for layer in range(vision.layers[0], text.num_layers):
            index = self.block_at.get(layer)
            before = frozen.live_prefix[layer - vision.layers[0]]
            if index is None:
                if live is not None:
                    assert plan.live_text_groups is not None
                    front = text.key_value(layer, before, ropes[0][0]) if before.shape[0] else None
                    live, plain[layer] = text.run_layer(layer, live, ropes[1][0], plan.live_text_groups, before=front)
                continue
            tokens = []
            if before.shape[0]:
                tokens.append(Tokens(before, *ropes[0]))
            if live is not None:
                tokens.append(Tokens(live, *ropes[1], groups=plan.live_groups))
            if image is not None:
                groups = plan.context_groups if index < last else None
                tokens.append(Tokens(image, *ropes[2], groups=groups, time=time, is_image=True))
            outs, read = self._block(index)(text.layers[layer], tokens)
            key_values.append(read)
            if image is not None:
                image = outs[-1]
                if index == vision.aligned_block:
                    aligned = image
            if live is not None:
                live = outs[-1 if image is None else -2]
            elif index == last:
                break
        return FusedPrefilled(key_values, plain, live, pooled, aligned)

    def _block(self, index: int) -> FusedBlock:
        block = self.vision_tower.blocks[index]
        assert isinstance(block, FusedBlock)
        return block

    def denoise(self, latents: Tensor, t: Tensor, batch: Batch, plan: RoutingPlan, prefilled: FusedPrefilled) -> Tensor:
        """Velocity of noised images: latents [It, C, h, w] at times t [It] -> the same shape."""
        return self._denoise(latents, t, batch, plan, prefilled)[0]

    def _denoise(
        self, latents: Tensor, t: Tensor, batch: Batch, plan: RoutingPlan, prefilled: FusedPrefilled
    ) -> tuple[Tensor, Tensor | None]:
        """And the images behind the block that is aligned, if one is."""
        vision, text, aligned = self.vision_tower, self.text_tower, None
        image, time = vision.embed(latents, t, prefilled.pooled)
        positions = batch.positions[plan.target]
        ropes = text.rope(positions, image.dtype), vision.rope(positions, image.dtype)
        for index, (layer, before) in enumerate(zip(vision.layers, prefilled.key_values, strict=True)):
            tokens = Tokens(image, *ropes, groups=plan.target_groups, time=time, is_image=True)
            (image,), _ = self._block(index)(text.layers[layer], [tokens], before)
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
