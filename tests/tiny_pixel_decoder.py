"""Small pixel decoders of both kinds for tests, and the folders that their recipes name: nothing downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from diptych.backbones.autoencoder import fold_pixels
from diptych.backbones.vision import ImageEncoder, load_image_encoder
from diptych.config import Recipe, build_recipe
from diptych.data.images import image_to_tensor, open_image
from diptych.models.autoencoder_training import build_autoencoder, initialise_as_components
from diptych.models.pixel_decoder import PixelDecoder, build_pixel_decoder
from diptych.models.pixel_decoder_training import PixelDecoderTraining
from diptych.settings import AutoencoderTrainingConfig
from tiny_vpit import NUM_TOKENS, write_emblems, write_encoder

IMAGE_SIZE = 16


def write_parts(folder: Path) -> Path:
    """data/ (four emblems), encoder/, autoencoder/ and base/ (a Stable Diffusion without its text encoder)."""
    write_emblems(folder / "data")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        write_encoder(folder / "encoder")
        images = [image_to_tensor(open_image(path), IMAGE_SIZE) for path in sorted((folder / "data").glob("*.png"))]
        shape = AutoencoderTrainingConfig(channels=16, fold=4, latent_channels=4, num_decoder_blocks=(0,))
        network = build_autoencoder(shape)
        initialise_as_components(network, fold_pixels(torch.stack(images), 4))
        network.register_to_config(scaling_factor=3.0)
        network.save_pretrained(folder / "autoencoder")
        write_stable_diffusion(folder / "base")
    return folder


def write_stable_diffusion(folder: Path, *, scheduler: dict[str, Any] | None = None, **unet: Any) -> Path:
    """unet/, vae/ and scheduler/; 16 pixels become latents of 4 x 8 x 8. `unet`, `scheduler`: settings that differ."""
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    UNet2DConditionModel(**(settings | unet)).save_pretrained(folder / "unet")
    halving: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    AutoencoderKL(**halving).save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir(exist_ok=True)
    written = STABLE_DIFFUSION_SCHEDULER | (scheduler or {})
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(written))
    return folder


STABLE_DIFFUSION_SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
"""As Stable Diffusion 1.5 has it."""


def decoder_recipe(parts: Path, output_dir: Path | str = "nowhere", **settings: Any) -> Recipe:
    base: dict[str, Any] = {
        "method": "pixel_decoder",
        "output_dir": str(output_dir),
        "dtype": "float32",
        "autoencoder": str(parts / "autoencoder"),
        "image_size": IMAGE_SIZE,
        "cache_dir": str(parts / "cache"),
        "vpit": {"image_encoder": str(parts / "encoder"), "num_image_tokens": NUM_TOKENS},
        "pixel_decoder_training": {
            "hidden_size": 32,
            "num_layers": 2,
            "num_attention_heads": 2,
            "base": str(parts / "base"),
            "projector_hidden": 24,
        },
        "data": {"sources": [{"path": str(parts / "data" / "draw.jsonl")}]},
        "train": {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 1},
        "sample": {"num_inference_steps": 4, "guidance_scale": 2.0},
    }
    for key, value in settings.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    return build_recipe(base)


def load_encoder(recipe: Recipe) -> ImageEncoder:
    return load_image_encoder(recipe.vpit.image_encoder, layer=recipe.vpit.encoder_layer)


def build_decoder(recipe: Recipe) -> PixelDecoder:
    """With every weight moved off its start, so that zero gates and zero heads hide nothing."""
    decoder = build_pixel_decoder(recipe, load_encoder(recipe))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return decoder.eval()


def build_training(recipe: Recipe) -> PixelDecoderTraining:
    encoder = load_encoder(recipe)
    decoder = build_pixel_decoder(recipe, encoder)
    return PixelDecoderTraining(recipe, decoder, encoder, cache_dir=Path(recipe.cache_dir or "cache"))
