"""The account of an X-Fusion recipe: from sizes alone, by the formulas beside it."""

from __future__ import annotations

from typing import Any

import torch

from diptych.backbones.skeletons import build_encoder_skeleton, build_language_skeleton
from diptych.config import Recipe
from diptych.distributed import compute_device, resolve_dtype
from diptych.models.accounts.first_streams import FirstStreams, Nominal, find_tokenizer, first_streams
from diptych.models.accounts.flop_formulas import frozen_text_flops, step_flops
from diptych.models.accounts.fused_formulas import FROZEN, MAPS, TRAINED, fused_step_flops, of_kind
from diptych.models.accounts.meta_counting import count_encoder_flops, count_encoding_flops, count_parameters
from diptych.models.accounts.run_account import Flops, PartCost, RunAccount
from diptych.models.fused import FusedXFusion
from diptych.models.xfusion_building import XFusionModel, build_xfusion_skeleton, is_copied
from diptych.nn.towers.vision_tower import VisionTower
from diptych.nn.visibility import RoutingPlan
from diptych.sequence import Batch, pack
from diptych.tower_settings import VisionTowerConfig

FROZEN_TEXT = "text tower, frozen text"
"""The part of a step that is only there where nothing of it is kept (`text_cache_gb: 0`)."""


def account_xfusion(
    recipe: Recipe, *, nominal: Nominal | None = None, language: Any = None, first: FirstStreams | None = None
) -> RunAccount:
    """See `account_recipe`. `language`: a skeleton that is at hand; `first`: sequences, of as many image tokens."""
    if language is None:
        language = build_language_skeleton(recipe.language_model, trust_remote_code=recipe.trust_remote_code)
    model, autoencoder = build_xfusion_skeleton(recipe, language)
    vision = model.vision_tower
    if first is None:
        size = recipe.image_size // autoencoder.downsampling
        latent = torch.zeros(autoencoder.latent_channels, size, size)
        first = first_streams(
            recipe,
            find_tokenizer(recipe),
            num_image_tokens=vision.num_image_tokens,
            image=latent,
            nominal=nominal,
        )
    samples_per_step = recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
    share = samples_per_step / len(first.streams)
    flops: dict[str, Flops] = {}
    spent: dict[str, tuple[float, str]] = {}
    once, features, num_latents = Flops(), Flops(), 0
    kept_bytes = num_text = 0
    encoders = {
        kind: build_encoder_skeleton(
            wanted.image_encoder, layer=wanted.encoder_layer, image_size=wanted.encoder_image_size
        )
        for kind, wanted in (("alignment", recipe.alignment), ("image_input", recipe.image_input))
        if wanted is not None
    }
    tokens = {"text token": 0.0, "image token": 0.0}
    for streams in first.batches():
        batch = pack(streams)
        plan = model.plan(batch)
        tokens["text token"] += share * int((~batch.is_image).sum())
        tokens["image token"] += share * int(batch.is_image.sum())
        for name, cost in _step_flops(model, batch, plan).items():
            flops[name] = flops.get(name, Flops()) + cost
        for name, (count, kind) in _tokens(batch, plan).items():
            spent[name] = (spent.get(name, (0.0, kind))[0] + count, kind)
        once += frozen_text_flops(model, batch, plan)
        kept_bytes += sum(size for _, size in model.text_states.kept_bytes(batch, plan))
        num_text += int((~batch.is_image).sum())
        num_latents += batch.num_images if vision.reads_latents else int(batch.image_is_target.sum())
        for kind, encoder in encoders.items():
            seen = batch.num_images if kind == "alignment" else int((~batch.image_is_target).sum())
            features += Flops(count_encoder_flops(encoder) * seen)
    if not recipe.text_cache_gb and once.total:
        flops[FROZEN_TEXT], once = once, Flops()
        spent[FROZEN_TEXT] = (num_text, "text token")
    latent_cost = Flops(count_encoding_flops(autoencoder, recipe.image_size)) if num_latents else Flops()
    return RunAccount(
        recipe=recipe,
        dtype=resolve_dtype(recipe.dtype, compute_device()),
        trained=_trained(vision),
        frozen={
            f"language model {recipe.language_model}": count_parameters(language) - _shared(model),
            "autoencoder": count_parameters(autoencoder.network),
            **{f"image encoder of {kind}": count_parameters(encoder) for kind, encoder in encoders.items()},
        },
        parts=tuple(
            PartCost(name, cost * share, spent[name][0] * share, spent[name][1]) for name, cost in flops.items()
        ),
        samples_per_step=samples_per_step,
        once=_spent({"frozen text": once, "latents": latent_cost * num_latents, "features of images": features}, share),
        cached={
            **_text_cache(recipe, first, kept_bytes, num_text),
            "keys and values, while drawing": (_read_bytes(model), "per token before the image"),
            "keys and values, while writing": (_decoding_bytes(model), "per token"),
        },
        keeps_language=vision.layer_design != "single",
        tower_start=_start_of(recipe.vision_tower, language.config),
        assumed=first.assumed,
        tokens=tokens,
    )


def _text_cache(recipe: Recipe, first: FirstStreams, kept_bytes: int, num_text: int) -> dict[str, tuple[int, str]]:
    """Frozen text states of the first streams, which have so many bytes and text tokens; and of all samples."""
    limit = recipe.text_cache_gb
    bound = f"{limit:g} GB of them at most" if limit else "none: computed anew for every batch"
    states = {"text states": (round(kept_bytes / max(1, num_text)), f"per text token (text_cache_gb: {bound})")}
    if first.num_samples is not None:
        whole = kept_bytes * first.num_samples // len(first.streams)
        states["text states, all samples"] = (whole, "less where samples have the same text")
    return states


def _trained(vision: VisionTower) -> dict[str, int]:
    projector = {} if vision.alignment is None else {"alignment projector": count_parameters(vision.alignment)}
    first: Any = vision.blocks[0]
    width = first.layer.self_attn.q_proj.in_features  # a gated tower's, say, may differ from that of image states
    blocks = {f"vision tower, {len(vision.blocks)} blocks of width {width}": count_parameters(vision.blocks)}
    ends = count_parameters(vision) - sum(blocks.values()) - sum(projector.values())
    return {**blocks, "image embedder, time and head": ends, **projector}


def _start_of(tower: VisionTowerConfig, config: Any) -> str:
    start = "copied from the language model" if is_copied(tower, config) else "new"
    if tower.layer_design == "single":
        start = "the language model's own"
    if tower.diffusion_transformer is not None:
        start = f"those of {tower.diffusion_transformer}"
    if tower.init_from is None:
        return start
    fresh = tower.fresh_attention
    where = "" if isinstance(fresh, bool) else f" beside {', '.join(map(str, fresh))}"
    return f"those of morph {tower.init_from}" + (f", attention{where} {start}" if fresh else "")


def _spent(costs: dict[str, Flops], share: float) -> dict[str, Flops]:
    return {name: cost * share for name, cost in costs.items() if cost.total}


def _shared(model: XFusionModel) -> int:
    """Parameters of the language model that the vision tower is made of: those of the single tower's layers, without
    what its blocks have beside them to learn the time."""
    blocks: Any = model.vision_tower.blocks
    if model.vision_tower.layer_design != "single":
        return 0
    return sum(count_parameters(block.layer) for block in blocks)


def _key_value_bytes(layer: Any) -> int:
    attention = layer.self_attn
    return 4 * (attention.k_proj.out_features + attention.v_proj.out_features)


def _decoding_bytes(model: XFusionModel) -> int:
    """Of one token while text is written: in every layer of the language model, and in blocks that run text."""
    vision: Any = model.vision_tower
    own = sum(map(_key_value_bytes, model.text_tower.layers))
    return own + (sum(_key_value_bytes(block.layer) for block in vision.blocks) if vision.blocks_run_text else 0)


def _read_bytes(model: XFusionModel) -> int:
    """Of one token that stands before a drawn image: in every block, and in the language model's layers where images go
    through those too."""
    vision: Any = model.vision_tower
    blocks = sum(_key_value_bytes(block.layer) for block in vision.blocks)
    both = vision.layer_design == "gated" or vision.x_fuse in ("image", "both")
    layers = model.text_tower.layers
    return blocks + (sum(_key_value_bytes(layers[layer]) for layer in vision.layers) if both else 0)


def _step_flops(model: XFusionModel, batch: Batch, plan: RoutingPlan) -> dict[str, Flops]:
    return fused_step_flops(model, batch, plan) if isinstance(model, FusedXFusion) else step_flops(model, batch, plan)


def _tokens(batch: Batch, plan: RoutingPlan) -> dict[str, tuple[float, str]]:
    """What each part of `step_flops` is spent on: how many tokens, and of which kind."""
    image_tokens = float(plan.context.numel() + plan.target.numel())
    read = float(plan.prefix.numel() + plan.live_read.numel())
    text_tokens = float(plan.prefix.numel() + plan.live.numel())
    return {
        "vision tower, image tokens": (image_tokens, "image token"),
        "vision tower, text it reads": (read, "text token"),
        "image embedder, time and head": (image_tokens, "image token"),
        "text tower, text after an image": (float(plan.live.numel()), "text token"),
        "text tower, images it reads": (float(plan.context_read.numel()), "image token"),
        "text tower, text it reads": (float(plan.live_prefix.numel()), "text token"),
        "language model head": (float(plan.supervised.numel()), "supervised token"),
        **{of_kind(part, is_image=True): (image_tokens, "image token") for part in (FROZEN, TRAINED, MAPS)},
        **{of_kind(part, is_image=False): (text_tokens, "text token") for part in (FROZEN, TRAINED, MAPS)},
    }
