"""From visual tokens to pixels: one interface over two denoisers, and its files.

A pixel decoder never sees the language model. It is trained on images alone (pixel_decoder_training.py) and reads
the visual tokens of one image encoder: those of real images, or those that a VPiT morph predicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.backbones.autoencoder import load_autoencoder
from diptych.backbones.vision import ImageEncoder, load_image_encoder
from diptych.config import Recipe
from diptych.data.images import image_to_tensor, tensor_to_image
from diptych.diffusion.sampler import starting_noise
from diptych.distributed import compute_device
from diptych.models.conversation import Ability
from diptych.models.flow_decoder import FlowDenoiser
from diptych.models.morph_files import (
    CONFIG,
    WEIGHTS,
    check_hashes,
    find_morph,
    load_tensors,
    read_config,
    read_recipe,
    write_morph_files,
)
from diptych.models.token_choice import conversation_seeds
from diptych.nn.connector import reduce_tokens
from diptych.nn.towers.pixel_transformer import PixelTransformer
from diptych.settings import check_guidance

OWN_FOLDER = "pixel_decoder"
"""Where in a VPiT morph's folder its pixel decoder lies."""


@dataclass(frozen=True)
class VisualTokens:
    """Which visual tokens a pixel decoder reads: a grid of one encoder's features, each of length 1."""

    image_encoder: str
    encoder_hash: str
    encoder_layer: int | None
    encoder_image_size: int
    num_image_tokens: int
    feature_dim: int

    @classmethod
    def of(cls, encoder: Any, num_image_tokens: int) -> VisualTokens:
        return cls(
            image_encoder=encoder.name,
            encoder_hash=encoder.hash,
            encoder_layer=encoder.layer,
            encoder_image_size=encoder.preprocessing.image_size,
            num_image_tokens=num_image_tokens,
            feature_dim=encoder.feature_dim,
        )

    def differences(self, other: VisualTokens) -> list[str]:
        """What these are and the others are not, in words; the encoder counts by its weights, not its name."""
        mine, theirs = asdict(self), asdict(other)
        found = [key for key in mine if mine[key] != theirs[key] and key not in ("image_encoder", "encoder_hash")]
        texts = [f"{key} is {mine[key]}, not {theirs[key]}" for key in found]
        if self.encoder_hash != other.encoder_hash:
            texts.insert(
                0,
                f"image_encoder is {self.image_encoder!r} with hash {self.encoder_hash[:16]}, "
                f"not {other.image_encoder!r} with {other.encoder_hash[:16]}",
            )
        return texts


class Denoiser(Protocol):
    """What a pixel decoder asks of its network; also an `nn.Module`, all of whose parameters are trained.

    loss_name: of the training loss. latent_shape: (C, h, w). samplers: names that `sample` takes.
    """

    loss_name: str
    latent_shape: tuple[int, int, int]
    samplers: tuple[str, ...]
    default_sampler: str

    def standardise(self, features: Tensor) -> None:
        """Sees visual tokens [N, n, F] of training images, once before training."""
        ...

    def sample_time(self, generator: torch.Generator) -> Tensor:
        """The time [] that an image is noised to in training."""
        ...

    def forward(self, latents: Tensor, features: Tensor, noise: Tensor, t: Tensor, dropped: Tensor) -> Tensor:
        """The loss [] as a sum over all elements: latents and noise [I, C, h, w], visual tokens [I, n, F], times [I],
        dropped bool [I]: images learnt without their visual tokens."""
        ...

    def sample(
        self, features: Tensor, noise: Tensor, *, guidance_scale: float, num_inference_steps: int, sampler: str
    ) -> Tensor:
        """Latents [I, C, h, w] from standard normal noise of that shape. Scale 1: the condition alone, not guided."""
        ...

    def shard_modules(self) -> Iterable[nn.Module]: ...

    def checkpoint_gradients(self) -> None: ...

    def description(self) -> dict[str, Any]:
        """What besides the recipe is needed to build it again, as JSON."""
        ...


class PixelDecoder(nn.Module):
    """Visual tokens to images. Built by `build_pixel_decoder` (untrained) and `load_pixel_decoder`."""

    def __init__(self, denoiser: Denoiser, autoencoder: Any, *, visual_tokens: VisualTokens, recipe: Recipe) -> None:
        super().__init__()
        self.denoiser = cast(Any, denoiser)
        self.autoencoder = autoencoder
        self.visual_tokens = visual_tokens
        self.recipe = recipe
        self._check_guidance(recipe.sample.guidance_scale)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def frozen_hashes(self) -> dict[str, str]:
        return {"image_encoder": self.visual_tokens.encoder_hash, "autoencoder": self.autoencoder.hash}

    def check_encoder(self, encoder: Any, *, num_image_tokens: int) -> None:
        """Raises ValueError, naming each difference, if these are not the visual tokens that this decoder reads."""
        found = self.visual_tokens.differences(VisualTokens.of(encoder, num_image_tokens))
        if found:
            raise ValueError(
                f"this pixel decoder reads other visual tokens: its {'; its '.join(found)}. Train one for these "
                "(vpit: in its recipe), or use the encoder, layer, size and grid that it was trained with"
            )

    def load_encoder(self) -> ImageEncoder:
        """The image encoder whose visual tokens it reads. Raises ValueError if that cannot be had any more."""
        config = self.recipe.vpit
        encoder = load_image_encoder(
            config.image_encoder, layer=config.encoder_layer, image_size=config.encoder_image_size
        )
        self.check_encoder(encoder, num_image_tokens=config.num_image_tokens)
        return encoder.to(self.device)

    @cached_property
    def _loaded_encoder(self) -> ImageEncoder:
        return self.load_encoder()  # loaded once, and no submodule: it is no part of what is trained or saved

    @torch.no_grad()
    def decode(
        self,
        features: Tensor,
        *,
        numbers: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        seed: int | Sequence[int] = 0,
        max_batch_size: int = 64,
    ) -> Tensor:
        """Visual tokens [I, n, F] -> images [I, 3, H, W] in -1..1 on the CPU.

        Options left out are the recipe's `sample:`; scale 1 is no guidance. seed: of all, or one for each; the noise of
        image k derives from (seed, numbers[k]) alone (None: from k itself), so that batching changes nothing. Raises
        ValueError for tokens of another shape or that are not finite (it names the image), for options out of range and
        an unknown sampler.
        """
        self._check_features(features)
        defaults, denoiser = self.recipe.sample, self.denoiser
        scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
        num_steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        sampler = denoiser.default_sampler if sampler is None else sampler
        self._check_guidance(scale)
        if num_steps < 1:
            raise ValueError(f"num_inference_steps must be 1 or more, got {num_steps}")
        if sampler not in denoiser.samplers:
            raise ValueError(f"unknown sampler {sampler!r}; choose one of: {', '.join(denoiser.samplers)}")
        numbers = range(len(features)) if numbers is None else numbers
        seeds = conversation_seeds(seed, len(features))
        images = [torch.zeros(0, 3, self.recipe.image_size, self.recipe.image_size)]
        for start in range(0, len(features), max_batch_size):
            chunk = features[start : start + max_batch_size].to(self.device, torch.float32)
            own = slice(start, start + len(chunk))
            noise = starting_noise(numbers[own], denoiser.latent_shape, seed=seeds[own]).to(self.device)
            latents = denoiser.sample(
                chunk, noise, guidance_scale=scale, num_inference_steps=num_steps, sampler=sampler
            )
            images.append(self.autoencoder.decode(latents).float().cpu())
        return torch.cat(images)

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({"reconstructs"})

    @torch.no_grad()
    def reconstruct(self, images: Sequence[Image.Image], *, encoder: Any = None, **sampling: Any) -> list[Image.Image]:
        """Images drawn again from their visual tokens alone. `encoder`: the one whose visual tokens it reads, if it is
        loaded already; `sampling`: options of `decode`."""
        encoder = encoder or self._loaded_encoder
        own = encoder.preprocessing
        read = partial(image_to_tensor, size=own.image_size, fit=own.fit, interpolation=own.interpolation)
        features = encoder.features(torch.stack([read(image) for image in images]))
        tokens = reduce_tokens(features, self.visual_tokens.num_image_tokens)
        return [tensor_to_image(image) for image in self.decode(tokens, **sampling)]

    def save_pretrained(self, folder: str | Path, *, weights: dict[str, Tensor] | None = None) -> None:
        """Writes all trained tensors and the config. `weights`: these (averaged ones, say) in place of the present."""
        write_morph_files(
            folder,
            weights if weights is not None else dict(self.denoiser.named_parameters()),
            recipe=self.recipe,
            hashes=self.frozen_hashes(),
            visual_tokens=asdict(self.visual_tokens),
            denoiser=self.denoiser.description(),
        )

    def _check_features(self, features: Tensor) -> None:
        wanted = (self.visual_tokens.num_image_tokens, self.visual_tokens.feature_dim)
        if features.ndim != 3 or tuple(features.shape[1:]) != wanted or not features.is_floating_point():
            raise ValueError(
                f"this pixel decoder reads visual tokens [images, {wanted[0]}, {wanted[1]}], "
                f"got {features.dtype} {list(features.shape)}"
            )
        finite = torch.isfinite(features).all(dim=2).all(dim=1)
        if not bool(finite.all()):
            broken = (~finite).nonzero().flatten().tolist()
            raise ValueError(
                f"the visual tokens of image {', '.join(map(str, broken[:8]))} are not finite; look at the encoder, "
                "or at the morph that predicted them"
            )

    def _check_guidance(self, scale: float) -> None:
        is_trained = self.recipe.pixel_decoder_training.dropout_prob > 0
        check_guidance("guidance_scale", scale, is_trained=is_trained, needs="condition_dropout_prob")


def build_pixel_decoder(recipe: Recipe, encoder: Any, *, autoencoder: Any = None) -> PixelDecoder:
    """An untrained pixel decoder of this recipe (kind stable_diffusion: its UNet as the base's).

    `autoencoder`: in place of the one that the recipe names. Raises ValueError for what is missing or does not fit.
    """
    visual_tokens = VisualTokens.of(encoder, recipe.vpit.num_image_tokens)
    return _assemble(recipe, visual_tokens, autoencoder=autoencoder, description=None)


def load_pixel_decoder(path: str | Path) -> PixelDecoder:
    """Loads a trained pixel decoder: a folder written by `diptych train` or of a VPiT morph that has one, or a Hub id.

    Raises ValueError, naming the thing and the remedy: nothing there, another kind of model, a morph without a pixel
    decoder, a broken file, tensors that do not fit (all of them), an autoencoder with another hash.
    """
    folder, config, recipe = find_pixel_decoder(path)
    try:
        visual_tokens, description = VisualTokens(**config["visual_tokens"]), dict(config["denoiser"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error!r}); copy the pixel decoder again") from error
    decoder = _assemble(recipe, visual_tokens, autoencoder=None, description=description)
    names = {"image_encoder": recipe.vpit.image_encoder, "autoencoder": decoder.autoencoder.name}
    check_hashes(folder, config["hashes"], decoder.frozen_hashes(), names)
    own = dict(decoder.denoiser.named_parameters())
    load_tensors(own, folder / WEIGHTS, sha256=config["weights_sha256"])
    return decoder.eval().requires_grad_(False)


def find_pixel_decoder(path: str | Path) -> tuple[Path, dict[str, Any], Recipe]:
    """The folder of a trained pixel decoder, its config and the recipe in it; no weights are read. Errors: see
    `load_pixel_decoder`."""
    folder = find_morph(path)
    config = read_config(folder / CONFIG)
    recipe = read_recipe(folder, config)
    if recipe.method == "vpit":
        return find_pixel_decoder(_decoder_of_morph(folder, recipe))
    if recipe.method != "pixel_decoder":
        raise ValueError(f"{folder} is of method {recipe.method}, not a pixel decoder; {HOW_TO_GET_ONE}")
    return folder, config, recipe


HOW_TO_GET_ONE = "train one (diptych train recipes/emoji-pixel-decoder.yaml) and give its morph folder"


def _decoder_of_morph(folder: Path, recipe: Recipe) -> str | Path:
    if (folder / OWN_FOLDER / CONFIG).is_file():
        return folder / OWN_FOLDER
    if recipe.vpit.pixel_decoder is None:
        raise ValueError(f"the morph {folder} has no pixel decoder; {HOW_TO_GET_ONE}, or name it in vpit.pixel_decoder")
    return recipe.vpit.pixel_decoder


def _assemble(
    recipe: Recipe, visual_tokens: VisualTokens, *, autoencoder: Any, description: dict[str, Any] | None
) -> PixelDecoder:
    """`description`: of a trained decoder whose weights come next; None: the recipe's start."""
    torch.manual_seed(recipe.seed)
    if recipe.pixel_decoder_training.kind == "stable_diffusion":
        from diptych.models.stable_diffusion_decoder import build_stable_diffusion

        denoiser, autoencoder = build_stable_diffusion(
            recipe,
            feature_dim=visual_tokens.feature_dim,
            num_image_tokens=visual_tokens.num_image_tokens,
            description=description,
        )
    else:
        autoencoder = autoencoder or load_autoencoder(recipe.autoencoder)
        denoiser = build_flow_denoiser(recipe, visual_tokens, autoencoder)
    device = compute_device()
    autoencoder.to(device)
    return PixelDecoder(denoiser, autoencoder, visual_tokens=visual_tokens, recipe=recipe).to(device)


def build_flow_denoiser(recipe: Recipe, visual_tokens: VisualTokens, autoencoder: Any) -> FlowDenoiser:
    """An untrained denoiser in the autoencoder's latents. Raises ValueError for an image size that does not fit."""
    config = recipe.pixel_decoder_training
    if recipe.image_size % autoencoder.downsampling:
        raise ValueError(
            f"image_size {recipe.image_size} must be a multiple of {autoencoder.downsampling}, "
            f"by which autoencoder {autoencoder.name!r} makes images smaller"
        )
    network = PixelTransformer(
        latent_channels=autoencoder.latent_channels,
        latent_size=recipe.image_size // autoencoder.downsampling,
        patch_size=config.patch_size,
        feature_dim=visual_tokens.feature_dim,
        num_image_tokens=visual_tokens.num_image_tokens,
        width=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_attention_heads,
    )
    return FlowDenoiser(
        network,
        sampler=recipe.sample.sampler,
        timestep_sampling=recipe.objective.timestep_sampling,
        timestep_shift=recipe.objective.timestep_shift,
    )
