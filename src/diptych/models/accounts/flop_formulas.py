"""FLOPs of one X-Fusion step, part by part, from sizes alone (a multiply and an add are two).

With N a part's matrix weights, a token costs 2 N forward. Backward adds 2 N for the gradient of its input and 2 N for
the gradient of its weights: 4 N where trained, 2 N where frozen but downstream of something trained, 0 where nothing
trained is upstream.
Attention costs 4 (query, key) pairs times its width forward and twice that backward, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diptych.models.accounts.run_account import Flops
from diptych.models.xfusion import XFusion
from diptych.models.xfusion_building import XFusionModel
from diptych.nn.attention import Groups
from diptych.nn.visibility import RoutingPlan
from diptych.sequence import Batch


def linear_flops(tokens: float, weights: int, *, input_gradient: bool = True, weight_gradient: bool = True) -> Flops:
    """Of matrices with that many weights, applied to that many tokens."""
    forward = 2.0 * tokens * weights
    return Flops(forward, forward * (input_gradient + weight_gradient))


@dataclass(frozen=True)
class LayerSize:
    """Matrix weights of a decoder layer. `attention_width`: heads * head_dim."""

    query: int
    key_value: int
    output: int
    mlp: int
    attention_width: int

    @property
    def total(self) -> int:
        return self.query + self.key_value + self.output + self.mlp

    def attention(self, groups: Groups | None) -> Flops:
        if groups is None:
            return Flops()
        num_groups, num_queries = groups.queries.shape
        forward = 4.0 * num_groups * num_queries * groups.keys.shape[1] * self.attention_width
        return Flops(forward, 2 * forward)


def measure_layer(layer: Any) -> LayerSize:
    """Sizes of a Hugging Face decoder layer."""
    attention = layer.self_attn
    return LayerSize(
        query=attention.q_proj.weight.numel(),
        key_value=attention.k_proj.weight.numel() + attention.v_proj.weight.numel(),
        output=attention.o_proj.weight.numel(),
        mlp=sum(module.weight.numel() for module in layer.mlp.modules() if isinstance(module, nn.Linear)),
        attention_width=attention.q_proj.out_features,
    )


def step_flops(model: XFusion, batch: Batch, plan: RoutingPlan) -> dict[str, Flops]:
    """Forward and backward of one batch by part, frozen text states given (cached). Parts that do nothing are zero."""
    return {
        "vision tower, image tokens": _vision_blocks(model, batch, plan),
        "vision tower, text it reads": _text_read_by_vision(model, plan),
        "image embedder, time and head": embedder_and_head_flops(model, batch),
        "text tower, text after an image": _live_text(model, plan),
        "text tower, images it reads": _images_read_by_live_text(model, plan),
        "text tower, text it reads": _text_read_by_live_text(model, plan),
        "language model head": _language_head(model, plan),
    }


def frozen_text_flops(model: XFusionModel, batch: Batch, plan: RoutingPlan) -> Flops:
    """Of the frozen text states of a batch, computed with no gradient when they are not in the cache.

    Attention is reckoned as for one sample after the other, each over itself.
    """
    layer = measure_layer(model.text_tower.layers[0])
    first, last = model.vision_tower.layers[0], model.vision_tower.layers[-1]
    samples = batch.sample_ids
    total = Flops()
    with_live = torch.isin(samples[plan.live_prefix], samples[plan.live])
    before_live = torch.cat((plan.live_prefix[with_live], plan.live))
    # What live text reads of a sample holds what images read of it, where both read the same.
    both = [
        sample
        for sample in samples[plan.prefix].unique().tolist()
        if torch.equal(
            plan.prefix[samples[plan.prefix] == sample], plan.live_prefix[samples[plan.live_prefix] == sample]
        )
    ]
    others = plan.prefix[~torch.isin(samples[plan.prefix], torch.tensor(both, device=samples.device))]
    depths = ((others, last), (plan.live_prefix, model.text_tower.num_layers - 1), (before_live, first))
    for rows, depth in depths:
        if rows.numel():
            pairs = float(samples[rows].unique(return_counts=True)[1].square().sum())
            total += Flops(depth * (2.0 * rows.numel() * layer.total + 4 * pairs * layer.attention_width))
    return total


def _vision_blocks(model: XFusion, batch: Batch, plan: RoutingPlan) -> Flops:
    """Image tokens through the blocks: context images (their last block only gives keys and values), then targets."""
    vision: Any = model.vision_tower
    num_targets = int(batch.image_is_target.sum())
    num_contexts = batch.num_images - num_targets
    total = Flops()
    for index, block in enumerate(vision.blocks):
        size = measure_layer(block.layer)
        modulation = block.modulation.linear.weight.numel() if block.modulation is not None else 0
        is_last = index == len(vision.blocks) - 1
        if plan.context.numel():
            tokens = plan.context.numel()
            # Of the last block's clean keys and values only a target image makes use.
            used = not is_last or num_targets > 0
            total += _trained(tokens, size.key_value, used=used)
            total += _trained(num_contexts, modulation, used=used)
            if not is_last:
                total += _trained(tokens, size.query + size.output + size.mlp) + size.attention(plan.context_groups)
        if plan.target.numel():
            total += _trained(plan.target.numel(), size.total) + size.attention(plan.target_groups)
            total += _trained(num_targets, modulation)
    return total


def _text_read_by_vision(model: XFusion, plan: RoutingPlan) -> Flops:
    """Each block's own keys and values of text: prefix text, and live text that a later image reads."""
    vision: Any = model.vision_tower
    tokens = plan.prefix.numel() + plan.live_read.numel()
    total = Flops()
    for index, block in enumerate(vision.blocks):
        used = plan.target.numel() > 0 or (plan.context.numel() > 0 and index < len(vision.blocks) - 1)
        total += _trained(tokens, measure_layer(block.layer).key_value, used=used)
        if block.text_in is not None:
            # Its norm is trained, so the gradient passes the matrix too.
            total += _trained(tokens, block.text_in.linear.weight.numel(), used=used)
    return total + pooling_flops(vision, plan)


def pooling_flops(vision: Any, plan: RoutingPlan) -> Flops:
    """Of the text before images that is pooled: before images to draw and, of a tower that compares, those it reads."""
    if vision.text_pool is None:
        return Flops()
    read = 0 if vision.text_matcher is None else plan.matched_rows.numel()
    return _trained(plan.pooled_rows.numel() + read, vision.text_pool.linear.weight.numel())


def embedder_and_head_flops(model: XFusionModel, batch: Batch) -> Flops:
    """Of what stands before the blocks and behind them, in every layer design."""
    vision: Any = model.vision_tower
    embedder, head = vision.embedder, vision.head
    num_targets = int(batch.image_is_target.sum())
    num_latents, features = batch.num_images, vision.feature_embedder
    total, num_read = Flops(), batch.num_images - num_targets
    if features is not None:
        num_latents -= 0 if vision.reads_latents else num_read
        weights = features.linear.weight.numel()
        total += linear_flops(num_read * embedder.num_patches, weights, input_gradient=False)
    total += linear_flops(num_latents * embedder.num_patches, embedder.linear.weight.numel(), input_gradient=False)
    if (matcher := vision.text_matcher) is not None:
        compared = num_read * (vision.num_image_tokens if features is None else embedder.num_patches)
        total += linear_flops(compared, matcher.patches.weight.numel(), input_gradient=features is None)
        total += _trained(compared, matcher.out.weight.numel())
        total += _trained(num_read, matcher.words.weight.numel())
    if vision.alignment is not None:
        weights = sum(module.weight.numel() for module in vision.alignment.modules() if isinstance(module, nn.Linear))
        total += _trained(batch.num_images * embedder.num_patches, weights)
    first, second = (module for module in vision.time.mlp if isinstance(module, nn.Linear))
    total += linear_flops(batch.num_images, first.weight.numel(), input_gradient=False)
    total += _trained(batch.num_images, second.weight.numel())
    total += _trained(num_targets * vision.num_image_tokens, head.linear.weight.numel())
    if head.modulation is not None:
        total += _trained(num_targets, head.modulation.weight.numel())
    return total


def _live_text(model: XFusion, plan: RoutingPlan) -> Flops:
    """Live text through the frozen layers from the first vision block's on; gradients pass, and train nothing there."""
    text, first = model.text_tower, model.vision_tower.layers[0]
    tokens = plan.live.numel()
    total = Flops()
    if not tokens:
        return total
    for index in range(first, text.num_layers):
        size, used = measure_layer(text.layers[index]), _live_is_used(model, plan, index)
        # Nothing trained is upstream of the first layer's own queries, keys and values.
        projections = size.query + size.key_value
        total += linear_flops(tokens, projections, input_gradient=used and index > first, weight_gradient=False)
        total += linear_flops(tokens, size.output + size.mlp, input_gradient=used, weight_gradient=False)
        attention = size.attention(plan.live_groups if index in model.block_at else plan.live_text_groups)
        total += attention if used else Flops(attention.forward)
    return total


def _text_read_by_live_text(model: XFusion, plan: RoutingPlan) -> Flops:
    """Keys and values that live text reads of the cached prefix."""
    text, total = model.text_tower, Flops()
    for index in range(model.vision_tower.layers[0], text.num_layers) if plan.live.numel() else ():
        weights = measure_layer(text.layers[index]).key_value
        total += linear_flops(plan.live_prefix.numel(), weights, input_gradient=False, weight_gradient=False)
    return total


def _images_read_by_live_text(model: XFusion, plan: RoutingPlan) -> Flops:
    """Keys and values that live text reads of image states, which are mapped to the text's width."""
    text = model.text_tower
    vision: Any = model.vision_tower
    total = Flops()
    if not plan.live.numel():
        return total
    for index in range(vision.layers[0], text.num_layers):
        key_value, used = measure_layer(text.layers[index]).key_value, _live_is_used(model, plan, index)
        if index in model.block_at:
            tokens = plan.context_read.numel()
            total += linear_flops(tokens, key_value, input_gradient=used, weight_gradient=False)
            mapping = vision.blocks[model.block_at[index]].image_out
            if mapping is not None:
                total += _trained(tokens, mapping.linear.weight.numel(), used=used)
    return total


def _live_is_used(model: XFusion, plan: RoutingPlan, layer: int) -> bool:
    """Whether a loss depends on what this layer makes of live text: through the head, or through a later block."""
    return plan.supervised.numel() > 0 or (plan.live_read.numel() > 0 and layer < model.vision_tower.layers[-1])


def _language_head(model: XFusion, plan: RoutingPlan) -> Flops:
    if not plan.live.numel():
        return Flops()
    weights = model.text_tower.language_model.lm_head.weight.numel()
    return linear_flops(plan.supervised.numel(), weights, weight_gradient=False)


def _trained(tokens: float, weights: int, *, used: bool = True) -> Flops:
    return linear_flops(tokens, weights, input_gradient=used, weight_gradient=used)
