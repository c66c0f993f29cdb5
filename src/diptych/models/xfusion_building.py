"""From a recipe to the parts of an X-Fusion morph: widths, layers, towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diptych.backbones.diffusion_transformer import build_transformer_skeleton, read_transformer_config
from diptych.backbones.skeletons import build_autoencoder_skeleton, build_encoder_skeleton
from diptych.config import Recipe
from diptych.data.tensor_cache import TensorCache
from diptych.models.fused import FusedXFusion
from diptych.models.text_states import TEXT_BYTES_KEPT, TextStates
from diptych.models.xfusion import XFusion
from diptych.nn.towers.diffusion_layers import PretrainedTower
from diptych.nn.towers.text import TextTower
from diptych.nn.towers.vision_tower import VisionTower
from diptych.settings import AlignmentConfig, ImageInputConfig
from diptych.tower_settings import VisionTowerConfig

XFusionModel = XFusion | FusedXFusion


WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
"""Of a tower's layers, by the names that settings and the language model's config have for them."""


def is_copied(tower: VisionTowerConfig, config: Any) -> bool:
    """Whether such a tower's layers start as copies of those of a language model of this config: where no other width
    is given than the language model's own. (The single tower's are the language model's themselves.)"""
    if tower.diffusion_transformer is not None:
        return False
    return all(getattr(tower, name) in (None, getattr(config, name)) for name in WIDTHS)


def tower_widths(tower: VisionTowerConfig, config: Any) -> dict[str, int]:
    """The WIDTHS of such a tower, beside a language model of this config: its own for a tower that is copied from it.

    Raises ValueError for sizes that do not divide.
    """
    own = {name: int(getattr(config, name)) for name in WIDTHS}
    if is_copied(tower, config):
        return own
    hidden = tower.hidden_size or own["hidden_size"]
    sizes = {"hidden_size": hidden, "intermediate_size": tower.intermediate_size or 4 * hidden}
    if tower.layer_design == "projection":  # one attention over both towers
        return own | sizes
    heads = tower.num_attention_heads or max(1, hidden // 64)
    key_value_heads = tower.num_key_value_heads or heads
    if hidden % heads or heads % key_value_heads or (hidden // heads) % 2:
        raise ValueError(
            f"vision_tower.hidden_size {hidden} must be an even multiple of num_attention_heads {heads}, and the heads "
            f"a multiple of num_key_value_heads {key_value_heads}"
        )
    return sizes | {"num_attention_heads": heads, "num_key_value_heads": key_value_heads}


def measure_head_dim(config: Any) -> int:
    """Width of one attention head of a language model."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def build_xfusion(
    recipe: Recipe,
    language_model: Any,
    *,
    latent_channels: int,
    downsampling: int,
    language_hash: str = "",
    cache_dir: Path | None = None,
    pretrained: PretrainedTower | None = None,
    aligned_width: int | None = None,
) -> XFusionModel:
    """Builds the model around a frozen language model. Widths that the recipe leaves out are the language model's.

    pretrained: the diffusion transformer that the recipe names, taken apart; it has its own widths.
    aligned_width: of the features that `alignment` aligns to; None: its encoder's config is read.
    cache_dir: where frozen text states are kept, up to the recipe's `text_cache_gb`; None: computed anew for every
    batch.
    Raises ValueError for a family that cannot be routed, layers that do not exist, and sizes that do not divide.
    """
    assert recipe.vision_tower.match is None, "match_widths comes first (models/accounts/width_matching.py)"
    text_tower = TextTower(language_model)
    config, tower = language_model.config, recipe.vision_tower
    layers = tower.layers if tower.layers is not None else tuple(range(text_tower.num_layers))
    if layers[-1] >= text_tower.num_layers:
        raise ValueError(
            f"vision_tower.layers names layer {layers[-1]}, but {recipe.language_model} has layers 0 to "
            f"{text_tower.num_layers - 1}"
        )
    if recipe.image_size % (downsampling * tower.patch_size):
        raise ValueError(
            f"image_size {recipe.image_size} is not a multiple of {downsampling * tower.patch_size} "
            f"(the autoencoder's {downsampling} times vision_tower.patch_size {tower.patch_size})"
        )
    if pretrained is None:
        widths = tower_widths(tower, config)
    else:
        _check_pretrained(pretrained, tower, num_layers=len(layers), latent_channels=latent_channels)
        sizes = (pretrained.width, pretrained.mlp_width, pretrained.num_heads, pretrained.num_heads)
        widths = dict(zip(WIDTHS, sizes, strict=True))
    vision_tower = VisionTower(
        language_model,
        layers=layers,
        latent_channels=latent_channels,
        latent_size=recipe.image_size // downsampling,
        patch_size=tower.patch_size,
        **widths,
        adaln=tower.time_conditioning == "adaln",
        boundary_tokens=tower.boundary_tokens,
        copy_layers=is_copied(tower, config),
        text_pooling=tower.text_pooling,
        text_matching=tower.text_matching,
        layer_design=tower.layer_design,
        x_fuse=tower.x_fuse,
        head_dim=measure_head_dim(config) if tower.layer_design == "projection" else None,
        pretrained=pretrained,
    )
    if recipe.image_input is not None:
        read = recipe.image_input
        vision_tower.read_features(_feature_dim(read), with_latents=read.with_latents)
    if recipe.alignment is not None:
        wanted = recipe.alignment
        vision_tower.align(wanted.layer, aligned_width or _feature_dim(wanted), projector=wanted.projector)
    cache = None
    if cache_dir is not None and recipe.text_cache_gb:
        key = f"text-{language_hash[:16]}-{text_tower.language_model.dtype}".replace(".", "-")
        limit = int(recipe.text_cache_gb * 1e9)
        cache = TensorCache(cache_dir, key=key, memory_bytes=TEXT_BYTES_KEPT, disk_bytes=limit)
    kind = FusedXFusion if vision_tower.is_fused else XFusion
    return kind(text_tower, vision_tower, TextStates(text_tower, layers, cache))


def build_xfusion_skeleton(recipe: Recipe, language: Any) -> tuple[XFusionModel, Any]:
    """The recipe's model around a language model's skeleton, on the meta device, and its autoencoder's skeleton.

    Only configs are read. Raises ValueError for whatever `build_xfusion` would refuse.
    """
    autoencoder = build_autoencoder_skeleton(recipe.autoencoder)
    pretrained = None
    if (name := recipe.vision_tower.diffusion_transformer) is not None:
        size = recipe.image_size // autoencoder.downsampling
        pretrained = build_transformer_skeleton(read_transformer_config(name), latent_size=size)
    with torch.device("meta"):
        model = build_xfusion(
            recipe,
            language,
            latent_channels=autoencoder.latent_channels,
            downsampling=autoencoder.downsampling,
            pretrained=pretrained,
        )
    return model, autoencoder


def _check_pretrained(
    pretrained: PretrainedTower, tower: VisionTowerConfig, *, num_layers: int, latent_channels: int
) -> None:
    for what, own, wanted in (
        ("blocks, so vision_tower.layers must name as many layers", len(pretrained.layers), num_layers),
        ("latent channels, as the autoencoder must have", pretrained.latent_channels, latent_channels),
        ("pixels of latent to a patch: set vision_tower.patch_size", pretrained.patch_size, tower.patch_size),
    ):
        if own != wanted:
            raise ValueError(f"diffusion transformer {tower.diffusion_transformer!r} has {own} {what}; got {wanted}")


def _feature_dim(wanted: AlignmentConfig | ImageInputConfig) -> int:
    encoder = build_encoder_skeleton(
        wanted.image_encoder, layer=wanted.encoder_layer, image_size=wanted.encoder_image_size
    )
    return encoder.feature_dim
