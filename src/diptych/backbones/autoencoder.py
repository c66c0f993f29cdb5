"""Image autoencoders: the project's own small one, or any diffusers `AutoencoderKL` / `AutoencoderTiny`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from diptych.backbones.hub_loading import find_folder, quiet_diffusers
from diptych.backbones.weight_hash import hash_folder

EMBEDDED = {"emoji-tiny": Path(__file__).parent / "weights" / "emoji-tiny"}
"""The project's own, trained by recipes/autoencoder.yaml, its decoder by recipes/autoencoder-decoder.yaml."""
PIXELS = "pixels"
"""The name of no autoencoder at all."""


class Autoencoder:
    """Pixels to latents and back, frozen. Latents are normalised: about zero mean and unit variance overall.

    A network whose input has 3 f^2 channels sees pixels folded f by f into channels (the embedded one: f = 8); what it
    gives is unfolded by its own number of channels.
    """

    def __init__(self, network: Any, *, name: str, hash: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.hash = hash
        config = network.config
        self.fold = int((config.in_channels // 3) ** 0.5)
        if 3 * self.fold**2 != config.in_channels:
            raise ValueError(
                f"autoencoder {name!r} reads {config.in_channels} channels, which are no folded RGB pixels"
            )
        self._unfold = int((config.out_channels // 3) ** 0.5)
        self.latent_channels = int(config.latent_channels)
        stages = config.get("encoder_block_out_channels") or config.block_out_channels
        self.downsampling = self.fold * 2 ** (len(stages) - 1)
        self._scale = float(config.get("scaling_factor") or 1.0)
        self._shift = float(config.get("shift_factor") or 0.0)

    def to(self, device: torch.device | str) -> Autoencoder:
        self.network.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in -1..1 -> latents [B, C, H / f, W / f]. Variational ones give the posterior's mean.

        Raises ValueError if H or W is not a multiple of `downsampling`.
        """
        if images.shape[-1] % self.downsampling or images.shape[-2] % self.downsampling:
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels do not fit autoencoder {self.name!r}: "
                f"both sides must be multiples of {self.downsampling}"
            )
        encoded = self.network.encode(fold_pixels(images.to(self.network.device), self.fold))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (latents - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, h f, w f] in -1..1 (cut there)."""
        decoded = self.network.decode(latents.to(self.network.device) / self._scale + self._shift).sample
        return unfold_pixels(decoded, self._unfold).clamp(-1, 1)


class PixelSpace:
    """Pixels in place of latents, behind the same interface: nothing is encoded, and nothing lost."""

    name, hash = PIXELS, hashlib.sha256(PIXELS.encode()).hexdigest()
    latent_channels, downsampling = 3, 1

    def __init__(self) -> None:
        self.network = nn.Identity()

    def to(self, device: torch.device | str) -> PixelSpace:
        self.network.to(device)
        return self

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in -1..1, as they are."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 3, H, W] -> images cut to -1..1."""
        return latents.clamp(-1, 1)


def fold_pixels(images: Tensor, factor: int) -> Tensor:
    """[B, 3, H, W] -> [B, 3 f^2, H / f, W / f]."""
    return pixel_unshuffle(images, factor) if factor > 1 else images


def unfold_pixels(folded: Tensor, factor: int) -> Tensor:
    """The inverse of `fold_pixels`."""
    return pixel_shuffle(folded, factor) if factor > 1 else folded


HUB_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def find_autoencoder(name: str) -> Path:
    """The folder of an autoencoder: embedded, a folder, or of a Hugging Face id, fetched. Of a whole diffusers pipeline
    such as Stable Diffusion it is the `vae` folder. Raises ValueError, naming it, if there is none."""
    if name in EMBEDDED:
        return EMBEDDED[name]
    patterns = (*HUB_FILES, *(f"vae/{file}" for file in HUB_FILES))
    folder = find_folder(name, what="autoencoder", embedded=tuple(EMBEDDED), patterns=patterns)
    found = next((path for path in (folder / "vae", folder) if (path / "config.json").is_file()), None)
    if found is None or not any(found.glob("*.safetensors")):
        raise ValueError(
            f"autoencoder {name!r}: neither {folder} nor a vae folder in it has config.json and *.safetensors; "
            "save one there with save_pretrained"
        )
    return found


def load_image_space(name: str) -> Autoencoder | PixelSpace:
    """What `load_autoencoder` loads, or for "pixels" none at all."""
    return PixelSpace() if name == PIXELS else load_autoencoder(name)


def load_autoencoder(name: str) -> Autoencoder:
    """Loads "emoji-tiny" (embedded), or an `AutoencoderKL` / `AutoencoderTiny` by folder or Hugging Face id.

    Raises ValueError, naming it, if it is not there, is another kind of model, or is damaged.
    """
    import diffusers

    folder = find_autoencoder(name)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"autoencoder {name!r}: {folder / 'config.json'} is damaged: {error}") from error
    kind = config.get("_class_name")
    if kind not in ("AutoencoderKL", "AutoencoderTiny"):
        raise ValueError(f"autoencoder {name!r} is a {kind}; give an AutoencoderKL or an AutoencoderTiny")
    try:
        with quiet_diffusers():
            network, info = getattr(diffusers, kind).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"autoencoder {name!r} could not be loaded from {folder}: {error}") from error
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])}):
        raise ValueError(f"autoencoder {name!r}: weights in {folder} do not fit its config: {', '.join(wrong)}")
    return Autoencoder(network.float(), name=name, hash=hash_folder(folder))
