"""The accounts of what is trained on images alone: the autoencoder, and pixel decoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diptych.backbones.skeletons import build_autoencoder_skeleton, build_encoder_skeleton
from diptych.config import Recipe
from diptych.distributed import compute_device, resolve_dtype
from diptych.models.accounts.meta_counting import (
    count_encoder_flops,
    count_encoding_flops,
    count_flops,
    count_parameters,
)
from diptych.models.accounts.run_account import Flops, PartCost, RunAccount
from diptych.models.autoencoder_training import build_autoencoder
from diptych.models.pixel_decoder import VisualTokens, build_flow_denoiser


def account_autoencoder(recipe: Recipe) -> RunAccount:
    """See `account_recipe`."""
    settings = recipe.autoencoder_training
    count = recipe.train.per_device_train_batch_size
    side = recipe.image_size // settings.fold
    with torch.device("meta"):
        network = build_autoencoder(settings)
        pixels = torch.zeros(count, 3 * settings.fold**2, side, side)
        latents = torch.zeros(count, settings.latent_channels, side, side, requires_grad=True)
    trained, frozen = {"encoder": network.encoder, "decoder": network.decoder}, {}
    if settings.encoder_from is not None:
        frozen = {f"encoder of {settings.encoder_from}": trained.pop("encoder").requires_grad_(False)}
        latents.requires_grad_(False)
    costs = {
        "encoder": count_flops(lambda: network.encoder(pixels)),
        "decoder": count_flops(lambda: network.decoder(latents)),
    }
    return _account(recipe, trained=trained, costs=costs, frozen=frozen)


def account_pixel_decoder(recipe: Recipe) -> RunAccount:
    """See `account_recipe`."""
    config, micro = recipe.vpit, recipe.train.per_device_train_batch_size
    encoder = build_encoder_skeleton(
        config.image_encoder, layer=config.encoder_layer, image_size=config.encoder_image_size
    )
    visual_tokens = VisualTokens.of(encoder, config.num_image_tokens)
    denoiser, autoencoder = _denoiser(recipe, visual_tokens)
    if recipe.train.gradient_checkpointing:
        denoiser.train()
        denoiser.checkpoint_gradients()
    with torch.device("meta"):
        latents = torch.zeros(micro, *denoiser.latent_shape)
        features = torch.zeros(micro, visual_tokens.num_image_tokens, visual_tokens.feature_dim)
        is_flow = denoiser.loss_name == "flow"
        t = torch.zeros(micro) if is_flow else torch.zeros(micro, dtype=torch.long)
        dropped = torch.zeros(micro, dtype=torch.bool)
        cost = count_flops(lambda: denoiser(latents, features, latents, t, dropped))
        once = {
            "visual tokens": Flops(count_encoder_flops(encoder)) * _per_step(recipe),
            "latents": Flops(count_encoding_flops(autoencoder, recipe.image_size)) * _per_step(recipe),
        }
    return _account(
        recipe,
        trained={"denoiser": denoiser},
        costs={"denoiser": cost},
        frozen={f"image encoder {encoder.name}": encoder, "autoencoder": autoencoder.network},
        once=once,
        cached={
            "visual tokens": (4 * visual_tokens.num_image_tokens * visual_tokens.feature_dim, "per image"),
            "latents": (4 * latents[0].numel(), "per image"),
        },
    )


def _denoiser(recipe: Recipe, visual_tokens: VisualTokens) -> tuple[Any, Any]:
    config = recipe.pixel_decoder_training
    if config.kind == "stable_diffusion":
        from diptych.models.stable_diffusion_decoder import build_stable_diffusion_skeleton

        return build_stable_diffusion_skeleton(
            recipe, feature_dim=visual_tokens.feature_dim, num_image_tokens=visual_tokens.num_image_tokens
        )
    autoencoder = build_autoencoder_skeleton(recipe.autoencoder)
    with torch.device("meta"):
        return build_flow_denoiser(recipe, visual_tokens, autoencoder), autoencoder


def _account(
    recipe: Recipe,
    *,
    trained: dict[str, nn.Module],
    costs: dict[str, Flops],
    frozen: dict[str, nn.Module] | None = None,
    **settings: Any,
) -> RunAccount:
    """`costs`: of one micro-batch."""
    steps = recipe.train.gradient_accumulation_steps
    return RunAccount(
        recipe=recipe,
        dtype=resolve_dtype(recipe.dtype, compute_device()),
        trained={name: count_parameters(module) for name, module in trained.items()},
        frozen={name: count_parameters(module) for name, module in (frozen or {}).items()},
        parts=tuple(PartCost(name, cost * steps, _per_step(recipe), "image") for name, cost in costs.items()),
        samples_per_step=_per_step(recipe),
        **settings,
    )


def _per_step(recipe: Recipe) -> int:
    return recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
