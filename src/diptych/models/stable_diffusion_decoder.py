"""Visual tokens to latents by a Stable Diffusion UNet that reads them in place of text (MetaMorph, pixel decoder).

The projector and the UNet are trained, the base's VAE is frozen, its text encoder is never loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import pad

from diptych.backbones.autoencoder import Autoencoder, load_autoencoder
from diptych.backbones.hub_loading import find_folder, quiet_diffusers
from diptych.backbones.skeletons import autoencoder_from_config, diffusion_configs
from diptych.config import Recipe
from diptych.diffusion.sampler import guide

CONTEXT_LENGTH = 77
"""Tokens of the text that Stable Diffusion was trained on: its UNet goes on seeing that many."""
SCHEDULERS = {
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}
"""Samplers by name, in diffusers; none of them draws noise of its own on the way."""


class Projector(nn.Sequential):
    """Visual tokens [..., F] -> context of the UNet [..., D]."""

    def __init__(self, feature_dim: int, hidden: int, context_dim: int) -> None:
        super().__init__(
            nn.Linear(feature_dim, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, context_dim),
            nn.LayerNorm(context_dim),
        )


class StableDiffusionDenoiser(nn.Module):
    """Implements `Denoiser`. Without its condition an image sees a context of zeros, and so does guidance's other side.

    `scheduler`: config of the base's diffusers scheduler, which also says how training noises. Raises ValueError for a
    UNet or a scheduler that is no plain Stable Diffusion 1 or 2, and for more visual tokens than the context holds.
    """

    loss_name = "epsilon"
    samplers = tuple(SCHEDULERS)

    def __init__(
        self,
        unet: Any,
        scheduler: dict[str, Any],
        *,
        feature_dim: int,
        num_image_tokens: int,
        latent_size: int,
        projector_hidden: int,
    ) -> None:
        super().__init__()
        _check_unet(unet.config, latent_size)
        if num_image_tokens > CONTEXT_LENGTH:
            raise ValueError(
                f"Stable Diffusion's context holds {CONTEXT_LENGTH} tokens, but vpit.num_image_tokens is "
                f"{num_image_tokens}; choose 64 or fewer"
            )
        self.default_sampler = _sampler_name(scheduler)
        self.scheduler = scheduler
        self.unet = unet
        self.projector = Projector(feature_dim, projector_hidden, unet.config.cross_attention_dim)
        self.latent_shape = (int(unet.config.in_channels), latent_size, latent_size)
        self._kept = self._build_scheduler("ddim").alphas_cumprod  # share of the data's variance left, by timestep
        self.num_train_timesteps = len(self._kept)

    def standardise(self, features: Tensor) -> None:
        """Nothing to do: the projector's norms see to it."""

    def sample_time(self, generator: torch.Generator) -> Tensor:
        return torch.randint(self.num_train_timesteps, (), generator=generator)

    def context(self, features: Tensor, dropped: Tensor) -> Tensor:
        """Visual tokens [I, n, F], dropped bool [I] -> [I, 77, D], zeros behind the tokens and where dropped."""
        projected = torch.where(dropped[:, None, None], 0.0, self.projector(features))
        return pad(projected, (0, 0, 0, CONTEXT_LENGTH - features.shape[1]))

    def forward(self, latents: Tensor, features: Tensor, noise: Tensor, t: Tensor, dropped: Tensor) -> Tensor:
        kept = self._kept.to(latents.device)[t][:, None, None, None]
        noised = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        predicted = self.unet(noised, t, self.context(features, dropped)).sample
        return (predicted.float() - noise).square().sum()

    def sample(
        self, features: Tensor, noise: Tensor, *, guidance_scale: float, num_inference_steps: int, sampler: str
    ) -> Tensor:
        if num_inference_steps > self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps {num_inference_steps} is more than the {self.num_train_timesteps} of training"
            )
        guided = guidance_scale != 1.0
        context = self.context(features, torch.zeros(len(features), dtype=torch.bool, device=features.device))
        if guided:
            context = torch.cat((context, torch.zeros_like(context)))
        scheduler = self._build_scheduler(sampler)
        scheduler.set_timesteps(num_inference_steps, device=noise.device)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x_in = scheduler.scale_model_input(x, t)
            predicted = self.unet(torch.cat((x_in, x_in)) if guided else x_in, t, context).sample.float()
            if guided:
                conditional, unconditional = predicted.chunk(2)
                predicted = guide(conditional, unconditional, guidance_scale)
            x = scheduler.step(predicted, t, x).prev_sample
        return x

    def shard_modules(self) -> Iterable[nn.Module]:
        return [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]

    def checkpoint_gradients(self) -> None:
        self.unet.enable_gradient_checkpointing()

    def description(self) -> dict[str, Any]:
        return {"unet": json.loads(self.unet.to_json_string()), "scheduler": self.scheduler}

    def _build_scheduler(self, sampler: str) -> Any:
        config = {**self.scheduler, "clip_sample": False}  # some clip to -1..1 unless told not to; latents are wider
        with quiet_diffusers():
            return getattr(diffusers, SCHEDULERS[sampler]).from_config(config)


def build_stable_diffusion(
    recipe: Recipe, *, feature_dim: int, num_image_tokens: int, description: dict[str, Any] | None
) -> tuple[StableDiffusionDenoiser, Autoencoder]:
    """The denoiser and the base's VAE. `description`: of a trained one, whose weights come next; so only the VAE is
    taken from the base. Raises ValueError, naming the base, for what is missing, damaged or of another kind."""
    config = recipe.pixel_decoder_training
    parts = ("vae",) if description is not None else ("vae", "unet", "scheduler")
    folder = find_base(config.base, parts)
    if description is None:
        unet = _load_unet(folder / "unet", config.base)
        scheduler = _read_json(folder / "scheduler" / "scheduler_config.json", config.base)
    else:
        with quiet_diffusers():
            unet: Any = UNet2DConditionModel.from_config(description["unet"])
        scheduler = description["scheduler"]
    autoencoder = load_autoencoder(str(folder / "vae"))
    return _assemble(recipe, unet, scheduler, autoencoder, feature_dim, num_image_tokens), autoencoder


def build_stable_diffusion_skeleton(
    recipe: Recipe, *, feature_dim: int, num_image_tokens: int
) -> tuple[StableDiffusionDenoiser, Autoencoder]:
    """The same on the meta device, from the base's configs alone."""
    base = recipe.pixel_decoder_training.base
    configs = diffusion_configs(base, ("unet", "vae", "scheduler"))
    autoencoder = autoencoder_from_config(configs["vae"], name=base)
    with torch.device("meta"), quiet_diffusers():
        unet = UNet2DConditionModel.from_config(configs["unet"])
        denoiser = _assemble(recipe, unet, configs["scheduler"], autoencoder, feature_dim, num_image_tokens)
    return denoiser, autoencoder


def _assemble(
    recipe: Recipe,
    unet: Any,
    scheduler: dict[str, Any],
    autoencoder: Autoencoder,
    feature_dim: int,
    num_image_tokens: int,
) -> StableDiffusionDenoiser:
    config = recipe.pixel_decoder_training
    if recipe.image_size % autoencoder.downsampling or unet.config.in_channels != autoencoder.latent_channels:
        raise ValueError(
            f"Stable Diffusion {config.base!r}: its VAE makes images {autoencoder.downsampling} times smaller, with "
            f"{autoencoder.latent_channels} channels; that does not fit image_size {recipe.image_size} "
            f"and a UNet of {unet.config.in_channels} channels"
        )
    return StableDiffusionDenoiser(
        unet,
        scheduler,
        feature_dim=feature_dim,
        num_image_tokens=num_image_tokens,
        latent_size=recipe.image_size // autoencoder.downsampling,
        projector_hidden=config.projector_hidden,
    )


def find_base(name: str, parts: tuple[str, ...]) -> Path:
    """The folder of a Stable Diffusion with these subfolders: `name` itself, or the Hub's snapshot of that id, fetched.

    Raises ValueError that says what was looked for where.
    """
    what = "pixel_decoder_training.base"
    weights = ("config.json", "*_config.json", "diffusion_pytorch_model.safetensors")
    folder = find_folder(name, what=what, patterns=tuple(f"{part}/{file}" for part in parts for file in weights))
    if lacking := [part for part in parts if not (folder / part).is_dir()]:
        raise ValueError(
            f"{what} {name!r}: {folder} has no {', '.join(lacking)}; give a diffusers Stable Diffusion 1.x or 2.x"
        )
    return folder


def _load_unet(folder: Path, name: str) -> Any:
    kind = _read_json(folder / "config.json", name).get("_class_name")
    if kind != "UNet2DConditionModel":
        raise ValueError(f"Stable Diffusion {name!r}: its unet is a {kind}; give one with a UNet2DConditionModel")
    try:
        with quiet_diffusers():
            loaded: Any = UNet2DConditionModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                torch_dtype=torch.float32,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"Stable Diffusion {name!r}: {folder} could not be loaded: {error}") from error
    unet, info = loaded
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])}):
        raise ValueError(f"Stable Diffusion {name!r}: weights in {folder} do not fit its config: {', '.join(wrong)}")
    return unet


def _check_unet(config: Any, latent_size: int) -> None:
    downsampling = 2 ** (len(config.block_out_channels) - 1)
    problems = [
        f"{key} is {config.get(key)}"
        for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type")
        if config.get(key) is not None
    ]
    if not isinstance(config.cross_attention_dim, int):
        problems.append(f"cross_attention_dim is {config.cross_attention_dim}")
    if config.in_channels != config.out_channels:
        problems.append(f"it reads {config.in_channels} channels and writes {config.out_channels}")
    if problems:
        raise ValueError(
            f"this UNet is conditioned on more than a text ({'; '.join(problems)}); take Stable Diffusion 1.x or 2.x"
        )
    if latent_size % downsampling:
        raise ValueError(
            f"latents of {latent_size} x {latent_size} do not fit this UNet: use multiples of {downsampling}"
        )


def _sampler_name(scheduler: dict[str, Any]) -> str:
    """The base's own sampler. Raises ValueError for one that is unknown, or that predicts anything but the noise."""
    kind = scheduler.get("_class_name")
    name = next((name for name, known in SCHEDULERS.items() if known == kind), None)
    if name is None or scheduler.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(
            f"the base's scheduler is a {kind} that predicts {scheduler.get('prediction_type', 'epsilon')}; "
            f"take a base that predicts epsilon, with one of: {', '.join(SCHEDULERS.values())}"
        )
    return name


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Stable Diffusion {name!r}: {path} cannot be read: {error}") from error
