"""Trains the project's own autoencoder: a diffusers `AutoencoderTiny` over folded pixels, small, seamless, forgiving.

It starts as the principal components of the pixels' blocks, which is already the best linear code, and learns from
there. Noise on the latents in training makes the decoder forgive what a denoiser gets slightly wrong.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny  # pyright: ignore[reportPrivateImportUsage]
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad

from diptych.backbones.autoencoder import Autoencoder, fold_pixels, load_autoencoder, unfold_pixels
from diptych.backbones.weight_hash import hash_module
from diptych.config import Recipe
from diptych.data.contact_sheet import draw_image_grid
from diptych.data.images import image_to_tensor, tensor_to_image
from diptych.data.packing import Pick
from diptych.data.references import names_part_of_a_file, open_reference
from diptych.models.method import LossSum
from diptych.models.training_sources import TrainingSources, usable
from diptych.settings import AutoencoderTrainingConfig

LATENT_SCALE = 0.3
"""Standard deviation of what the decoder reads, so that its tanh(x / 3) input stage stays straight."""
NUM_SHIFTS = 5
NUM_LOADED = 100_000
"""Images at most: all of them are in memory, as bytes. Of a larger set these are of records evenly over each source."""


@dataclass(frozen=True)
class PixelBatch:
    """Augmented images [B, 3, H, W] in -1..1 and noise for their latents [B, C, h, w]."""

    images: Tensor
    noise: Tensor

    def to(self, device: torch.device | str) -> PixelBatch:
        return PixelBatch(self.images.to(device), self.noise.to(device))


class AutoencoderTraining(nn.Module):
    """Implements `Method`. Every tenth picture's concept (by the hash of its file's name) is held out.

    Pictures that cannot be read are left out here, where all are read: no draw meets them, so that `max_bad_fraction`
    is judged here. Raises ValueError for more of them, and for too few pictures.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.settings = recipe.autoencoder_training
        if recipe.image_size % self.settings.fold:
            raise ValueError(
                f"image_size {recipe.image_size} is not a multiple of autoencoder_training.fold {self.settings.fold}"
            )
        self.loss_weights = {"squared": 4.0, "absolute": 0.5, "edges": 0.5, "size": 0.01}
        paths = sorted(set(TrainingSources(recipe, cache_dir=None).some_images(NUM_LOADED)))[:NUM_LOADED]
        loaded = _load(paths, recipe.image_size, max_bad_fraction=recipe.data.max_bad_fraction)
        trained = [pixels for path, pixels in loaded if not is_held_out(path)]
        held_out = [pixels for path, pixels in loaded if is_held_out(path)]
        if not trained or not held_out:
            raise ValueError(
                f"{len(loaded)} images are too few to train an autoencoder and hold a tenth out; add images"
            )
        self.images, self.held_out = torch.stack(trained), torch.stack(held_out)
        torch.manual_seed(recipe.seed)
        self.network = build_autoencoder(self.settings)
        self.base = None if self.settings.encoder_from is None else load_autoencoder(self.settings.encoder_from)
        if self.base is not None:
            _take_encoder(self.network, self.base)
            del self.loss_weights["size"]
        elif len(self.settings.num_decoder_blocks) == 1 and self.settings.decoder_channels is None:
            sample = self.images[torch.randperm(len(self.images))[:2500]]
            initialise_as_components(self.network, fold_pixels(_unit(sample), self.settings.fold))

    @property
    def unfold(self) -> int:
        return _unfold(self.settings)

    @property
    def spread(self) -> float:
        """Standard deviation of the kept encoder's latents."""
        assert self.base is not None
        return 1.0 / float(self.base.network.config.scaling_factor)

    def num_samples(self) -> tuple[int, ...]:
        return (len(self.images),) * len(self.recipe.data.sources)

    def build_batch(self, picks: Sequence[tuple[int, int, int]], *, seed: int) -> PixelBatch:
        images, noise = [], []
        side = self.recipe.image_size // self.settings.fold
        for draw, _, index in picks:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + draw) % 2**63)
            images.append(_augment(_unit(self.images[index]), generator))
            level = self.settings.latent_noise * torch.rand((), generator=generator)
            noise.append(level * torch.randn(self.settings.latent_channels, side, side, generator=generator))
        return PixelBatch(torch.stack(images), torch.stack(noise))

    def num_tokens(self, pick: Pick, *, seed: int) -> int:
        del pick, seed
        return 1

    def encode(self, picks: Sequence[Pick]) -> None:
        raise ValueError("an autoencoder learns from pixels as they are; there is nothing to encode before")

    def flush(self) -> None:
        """Nothing is kept."""

    def loss_counts(self, batch: PixelBatch) -> dict[str, float]:
        count = float(len(batch.images))
        return dict.fromkeys(self.loss_weights, count)

    def forward(self, batch: PixelBatch) -> dict[str, LossSum]:
        latents = self.network.encoder(_channels_last(fold_pixels(batch.images, self.settings.fold)))
        scale = LATENT_SCALE if self.base is None else self.spread
        decoded = self.network.decoder(latents + batch.noise * scale)
        error = unfold_pixels(decoded, self.unfold) - batch.images
        edges = _mean(error.diff(dim=-1).abs()) + _mean(error.diff(dim=-2).abs())
        losses = {
            "squared": _mean(error.square()),
            "absolute": _mean(error.abs()),
            "edges": edges,
            "size": _mean((latents / LATENT_SCALE).square()),
        }
        count = float(len(batch.images))
        return {name: LossSum(losses[name].sum(), count) for name in self.loss_weights}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.network.named_parameters() if parameter.requires_grad}

    def shard_modules(self) -> Iterable[nn.Module]:
        return [self.network.encoder, self.network.decoder]

    def frozen_hashes(self) -> dict[str, str]:
        return {} if self.base is None else {"encoder": hash_module(self.network.encoder)}

    def sample_grid(self, *, seed: int) -> Image.Image | None:
        device = next(self.network.parameters()).device
        images = _unit(self.held_out[:: max(1, len(self.held_out) // 8)][:8]).to(device)
        with torch.no_grad():
            latents = self.network.encoder(fold_pixels(images, self.settings.fold))
            decoded = unfold_pixels(self.network.decoder(latents), self.unfold)
        pictures = [tensor_to_image(image) for image in torch.cat((images, decoded))]
        return draw_image_grid(pictures, ["held out"] * len(images) + ["decoded"] * len(images), columns=len(images))

    def measure(self, *, seed: int) -> dict[str, float]:
        del seed
        return {}

    def save_pretrained(self, folder: str, *, weights: dict[str, Tensor] | None = None) -> None:
        """Writes a diffusers folder in bf16, its latents normalised over the training images, and its held-out PSNR."""
        network = build_autoencoder(self.settings)
        source = dict(self.network.named_parameters()) | (weights or {})
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(source[name])
        spread = self.spread if self.base is not None else _spread(network, self.images, self.settings.fold)
        network.register_to_config(scaling_factor=1.0 / spread)
        network.to(torch.bfloat16).save_pretrained(folder)
        stored = Autoencoder(AutoencoderTiny.from_pretrained(folder).float(), name=folder, hash="")
        scores = {
            "held_out_psnr_db": reconstruction_psnr(stored, _unit(self.held_out)),
            "held_out_psnr_db_noise_0.2": reconstruction_psnr(stored, _unit(self.held_out), noise=0.2),
            "num_held_out": len(self.held_out),
            "num_trained": len(self.images),
            "image_size": self.recipe.image_size,
        }
        Path(folder, "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


def build_autoencoder(settings: AutoencoderTrainingConfig) -> Any:
    """One encoder block at latent resolution and a few decoder blocks: `fold` is the whole downsampling. Raises
    ValueError if the decoder's stages are more than the fold has room for."""
    stages, unfold = settings.num_decoder_blocks, _unfold(settings)
    network: Any = AutoencoderTiny(
        in_channels=3 * settings.fold**2,
        out_channels=3 * unfold**2,
        encoder_block_out_channels=(settings.channels,),
        decoder_block_out_channels=(settings.decoder_channels or settings.channels,) * len(stages),
        num_encoder_blocks=(1,),
        num_decoder_blocks=stages,
        latent_channels=settings.latent_channels,
    )
    return network.to(memory_format=torch.channels_last)


def _unfold(settings: AutoencoderTrainingConfig) -> int:
    """Pixels to a side that one position of the decoder's last stage stands for."""
    times = 2 ** (len(settings.num_decoder_blocks) - 1)
    if settings.fold % times:
        raise ValueError(
            f"autoencoder_training.num_decoder_blocks names {len(settings.num_decoder_blocks)} stages, of {times} "
            f"times the latents' resolution, which fold {settings.fold} cannot be divided by; name fewer"
        )
    return settings.fold // times


def _take_encoder(network: Any, base: Autoencoder) -> None:
    """Puts the encoder of a trained autoencoder in place, frozen."""
    try:
        network.encoder.load_state_dict(base.network.encoder.state_dict())
    except (AttributeError, RuntimeError) as error:
        raise ValueError(
            f"autoencoder_training.encoder_from {base.name!r} has another encoder than fold, channels and "
            f"latent_channels of this recipe say: {error}"
        ) from error
    network.encoder.requires_grad_(False)


def reconstruction_psnr(autoencoder: Autoencoder, images: Tensor, *, noise: float = 0.0) -> float:
    """Mean PSNR in dB of images [N, 3, H, W] in -1..1; `noise`: standard deviation added to the latents."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for chunk in images.split(64):
        latents = autoencoder.encode(chunk)
        latents = latents + noise * torch.randn(latents.shape, generator=generator)
        squared = (autoencoder.decode(latents) - chunk).square().mean(dim=(1, 2, 3)).clamp_min(1e-8)
        values.append(10 * torch.log10(4 / squared))
    return float(torch.cat(values).mean())


def is_held_out(path: str) -> bool:
    """A tenth of all concepts, by the hash of the file's name: both styles of a concept go together, and so do
    the frames of a clip. Of what lies in a tar or a table, by its place there."""
    clip = path.partition("#frame=")[0]
    name = clip if names_part_of_a_file(clip) else Path(clip).stem
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 10 == 0


@torch.no_grad()
def initialise_as_components(network: Any, folded: Tensor) -> None:
    """Sets the network to the linear code of the folded pixels' principal components, [B, 3 f^2, h, w] in -1..1.

    A component c travels through the ReLUs as the pair (c, -c). Blocks start as the identity. The code's scale is
    uneven on purpose: the variance of component k is its own to the power 1/2, so that what matters to the eye
    matters to a denoiser, only less so.
    """
    blocks = [module for module in network.modules() if type(module).__name__ == "AutoencoderTinyBlock"]
    for block in blocks:
        block.conv[4].weight.zero_()
        block.conv[4].bias.zero_()
    first, last = network.encoder.layers[0], network.encoder.layers[-1]
    inner, outer = network.decoder.layers[0], network.decoder.layers[-1]
    latent, pairs = last.out_channels, first.out_channels // 2
    if pairs < latent:
        raise ValueError(
            f"{first.out_channels} channels cannot carry {latent} latent channels in pairs; use {2 * latent} or more"
        )
    pixels = (folded.permute(0, 2, 3, 1).flatten(0, 2) + 1) / 2  # diffusers' layers see 0..1
    mean = pixels.mean(0)
    centred = pixels - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(pixels))
    values, vectors = values.flip(0).clamp_min(1e-8), vectors.flip(1)
    scale = values[:latent] ** -0.25
    scale = scale * LATENT_SCALE / (scale.square() * values[:latent]).mean().sqrt()
    for convolution in (first, last, inner, outer):
        convolution.weight.mul_(0.1)
        convolution.bias.zero_()
    pairs = min(pairs, vectors.shape[1])
    directions = vectors[:, :pairs].T
    offset = directions @ mean
    first.weight[:pairs, :, 1, 1], first.weight[pairs : 2 * pairs, :, 1, 1] = directions, -directions
    first.bias[:pairs], first.bias[pairs : 2 * pairs] = -offset, offset
    last.weight[:, :, 1, 1] = 0
    inner.weight[: 2 * pairs, :, 1, 1] = 0
    outer.weight[:, :, 1, 1] = 0
    outer.bias.copy_(mean)
    for k in range(latent):
        last.weight[k, k, 1, 1], last.weight[k, pairs + k, 1, 1] = scale[k], -scale[k]
        inner.weight[k, k, 1, 1], inner.weight[pairs + k, k, 1, 1] = 1 / scale[k], -1 / scale[k]
        outer.weight[:, k, 1, 1], outer.weight[:, pairs + k, 1, 1] = vectors[:, k], -vectors[:, k]


def _spread(network: Any, images: Tensor, fold: int) -> float:
    with torch.no_grad():
        latents = [network.encoder(fold_pixels(_unit(chunk), fold)) for chunk in images.split(64)]
    return float(torch.cat(latents).std())


def _augment(image: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors, shifts on white, or swaps colours, each for some of the images."""
    flip, shift, colour = torch.rand(3, generator=generator).tolist()
    if flip < 0.5:
        image = image.flip(-1)
    if shift < 0.5:
        top, left = torch.randint(0, 2 * NUM_SHIFTS + 1, (2,), generator=generator).tolist()
        padded = pad(image, (NUM_SHIFTS,) * 4, value=1.0)
        image = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
    if colour < 0.3:
        image = image[torch.randperm(3, generator=generator)]
    return image


def _unit(pixels: Tensor) -> Tensor:
    """uint8 -> -1..1."""
    return pixels.float() / 127.5 - 1.0


def _mean(per_pixel: Tensor) -> Tensor:
    return per_pixel.flatten(1).mean(dim=1)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _load(paths: list[str], size: int, *, max_bad_fraction: float) -> list[tuple[str, Tensor]]:
    """Each path with its image as uint8 [3, size, size]; a warning for those that cannot be read. Raises ValueError if
    these are more than `max_bad_fraction`, or all."""
    loaded, errors = usable(paths, lambda path: _to_bytes(image_to_tensor(open_reference(path), size)))
    if errors:
        summary = f"{len(errors)} of {len(paths)} images cannot be read; the first: {errors[0]}"
        if len(errors) > max_bad_fraction * len(paths) or not loaded:
            raise ValueError(f"{summary}; replace them, or raise data.max_bad_fraction (now {max_bad_fraction:g})")
        warnings.warn(f"{summary}; they are left out", stacklevel=3)
    return loaded


def _to_bytes(image: Tensor) -> Tensor:
    """-1..1 -> uint8."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
