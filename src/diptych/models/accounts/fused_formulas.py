"""FLOPs of one step in the layer designs of nn/towers/fused_blocks.py, part by part, from sizes alone.

A pass is one layer over runs of tokens (`Run`): keys and values of all, queries and MLP of those that have groups. What
a token costs is said in flop_formulas.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from diptych.models.accounts.flop_formulas import (
    LayerSize,
    embedder_and_head_flops,
    linear_flops,
    measure_layer,
    pooling_flops,
)
from diptych.models.accounts.run_account import Flops
from diptych.models.fused import FusedXFusion
from diptych.nn.attention import Groups
from diptych.nn.towers.fused_blocks import FuseBlock, GatedBlock
from diptych.nn.visibility import RoutingPlan
from diptych.sequence import Batch

FROZEN, TRAINED = "language model's layers", "trained layers"
MAPS, ENDS, HEAD = "maps between towers", "image embedder, time and head", "language model head"


@dataclass(frozen=True)
class Run:
    """`num` tokens of a pass through a layer of `size`: who they meet (None: they are only read), how many images they
    are (`is_image`: image tokens), whether the layer is trained, whether a gradient is wanted of its input, whether a
    loss reads what comes out.
    """

    num: int
    size: LayerSize
    groups: Groups | None
    images: int = 0
    is_image: bool = False
    is_trained: bool = False
    has_gradient: bool = True
    is_used: bool = True


def fused_step_flops(model: FusedXFusion, batch: Batch, plan: RoutingPlan) -> dict[str, Flops]:
    """Forward and backward of one batch by part and kind of token, frozen text states given (cached)."""
    shared = [of_kind(part, is_image=is_image) for part in (FROZEN, TRAINED, MAPS) for is_image in (True, False)]
    total: dict[str, Flops] = {part: Flops() for part in (*shared, ENDS, HEAD)}
    vision: Any = model.vision_tower
    num_targets = int(batch.image_is_target.sum())
    num_contexts = batch.num_images - num_targets
    num_live = plan.live.numel()
    last = vision.layers[-1]
    for layer in range(vision.layers[0], model.text_tower.num_layers):
        index = model.block_at.get(layer)
        is_read = plan.supervised.numel() > 0 or (num_targets > 0 and layer < last)
        has_gradient = layer > vision.layers[0]
        text = measure_layer(model.text_tower.layers[layer])
        if index is None:
            if num_live:
                runs = [Run(plan.live_prefix.numel(), text, None, has_gradient=False)]
                runs.append(Run(num_live, text, plan.live_text_groups, is_used=is_read))
                _pass(total, FROZEN, runs)
            continue
        block = vision.blocks[index]
        clean = [
            _Kind(plan.prefix.numel(), None, 0, False, False, True),
            _Kind(num_live, plan.live_groups, 0, False, has_gradient, is_read),
            _Kind(
                plan.context.numel(),
                plan.context_groups if layer < last else None,
                num_contexts,
                True,
                True,
                num_targets > 0 or plan.supervised.numel() > 0,
            ),
        ]
        noised = [_Kind(plan.target.numel(), plan.target_groups, num_targets, True, True, True)]
        for kinds in (clean, noised):
            present = [kind for kind in kinds if kind.num]
            if present and (num_live or num_targets or layer < last):
                _add_block(total, model, block, text, present, has_targets=num_targets > 0)
        if not num_live and not num_targets and layer == last:
            break
    total[ENDS] = embedder_and_head_flops(model, batch)
    _add(total, of_kind(MAPS, is_image=False), pooling_flops(vision, plan))
    if num_live:
        head = model.text_tower.language_model.lm_head
        total[HEAD] = linear_flops(plan.supervised.numel(), head.weight.numel(), weight_gradient=False)
    return total


@dataclass(frozen=True)
class _Kind:
    num: int
    groups: Groups | None
    images: int
    is_image: bool
    has_gradient: bool
    is_used: bool

    def run(self, size: LayerSize, *, is_trained: bool, meets: bool = True) -> Run:
        wanted = self.has_gradient
        images = self.images if is_trained else 0
        # A trained layer's norm is trained, too, so that a gradient is wanted behind it whatever is before it.
        groups = self.groups if meets else None
        return Run(self.num, size, groups, images, self.is_image, is_trained, wanted or is_trained, self.is_used)


def _add_block(
    total: dict[str, Flops],
    model: FusedXFusion,
    block: Any,
    text: LayerSize,
    kinds: Sequence[_Kind],
    *,
    has_targets: bool,
) -> None:
    own = measure_layer(block.layer)
    modulation = block.modulation.linear if block.modulation is not None else None
    design = model.vision_tower.layer_design
    if design == "single":
        _pass(total, TRAINED, [kind.run(own, is_trained=True) for kind in kinds], modulation)
        return
    if design == "projection":
        runs = [kind.run(own if kind.is_image else text, is_trained=kind.is_image) for kind in kinds]
        of_image = [run for run, kind in zip(runs, kinds, strict=True) if kind.is_image]
        of_text = [run for run, kind in zip(runs, kinds, strict=True) if not kind.is_image]
        _pass(total, TRAINED, of_image, modulation)
        _pass(total, FROZEN, of_text)
        return
    if isinstance(block, GatedBlock):
        _pass(total, FROZEN, [kind.run(text, is_trained=False) for kind in kinds])
        _pass(total, TRAINED, [kind.run(own, is_trained=True) for kind in kinds], modulation)
        for kind in kinds:
            _map(total, kind, block.text_in)
            if kind.groups is not None:
                _map(total, kind, block.image_out)
        return
    assert isinstance(block, FuseBlock)
    in_text = [kind.run(text, is_trained=False, meets=block.fuses_image or not kind.is_image) for kind in kinds]
    if block.reads_text_keys or any(run.groups is not None for run in in_text):
        # Without X-Fuse of images, what is read here is read by text alone.
        is_read = block.reads_text_keys or any(run.groups is not None and run.is_used for run in in_text)
        _pass(total, FROZEN, in_text, is_read=is_read)
        for kind in kinds:
            if kind.is_image:
                _map(total, kind, block.image_out, is_used=is_read)
                if kind.groups is not None:
                    _map(total, kind, block.image_back)
    in_vision = [kind.run(own, is_trained=True, meets=block.fuses_text or kind.is_image) for kind in kinds]
    is_read = has_targets or any(run.groups is not None and run.is_used for run in in_vision)
    _pass(total, TRAINED, in_vision, modulation, is_read=is_read)
    for kind in kinds:
        if not kind.is_image:
            _map(total, kind, block.text_in, is_used=is_read)
            if kind.groups is not None:
                _map(total, kind, block.text_back)


def _pass(
    total: dict[str, Flops],
    part: str,
    runs: Sequence[Run],
    modulation: nn.Linear | None = None,
    *,
    is_read: bool = True,
) -> None:
    """`is_read`: whether a loss depends on the keys and values."""
    for run in runs:
        size, name = run.size, of_kind(part, is_image=run.is_image)
        wanted, trained = run.has_gradient and is_read, run.is_trained and is_read
        _add(total, name, linear_flops(run.num, size.key_value, input_gradient=wanted, weight_gradient=trained))
        if run.images and modulation is not None:
            used = is_read or (run.groups is not None and run.is_used)
            weights = modulation.weight.numel()
            _add(total, name, linear_flops(run.images, weights, input_gradient=used, weight_gradient=used))
        if run.groups is None:
            continue
        wanted, trained = run.has_gradient and run.is_used, run.is_trained and run.is_used
        _add(total, name, linear_flops(run.num, size.query, input_gradient=wanted, weight_gradient=trained))
        rest = linear_flops(run.num, size.output + size.mlp, input_gradient=run.is_used, weight_gradient=trained)
        attention = size.attention(run.groups)
        _add(total, name, rest + (attention if run.is_used else Flops(attention.forward)))


def _map(total: dict[str, Flops], kind: _Kind, mapping: Any, *, is_used: bool = True) -> None:
    """Its norm is trained, so the gradient passes the matrix too."""
    if mapping is not None:
        weights = mapping.linear.weight.numel()
        cost = linear_flops(kind.num, weights, input_gradient=is_used, weight_gradient=is_used)
        _add(total, of_kind(MAPS, is_image=kind.is_image), cost)


def of_kind(part: str, *, is_image: bool) -> str:
    return f"{part}, {'image' if is_image else 'text'} tokens"


def _add(total: dict[str, Flops], name: str, cost: Flops) -> None:
    total[name] = total[name] + cost
