"""A pixel decoder as the train loop sees it: images alone, as latents and visual tokens that are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from diptych.backbones.vision import load_image_encoder
from diptych.config import Recipe
from diptych.data.contact_sheet import draw_image_grid
from diptych.data.images import image_to_tensor, tensor_to_image
from diptych.data.packing import Pick
from diptych.data.references import open_reference
from diptych.data.samples import RecordError
from diptych.distributed import compute_device
from diptych.models.encoded_images import encoded_folder, image_features, image_latents
from diptych.models.method import LossSum
from diptych.models.pixel_decoder import PixelDecoder, build_pixel_decoder
from diptych.models.training_sources import TrainingSources, some_usable, usable
from diptych.nn.connector import noised_tokens, reduce_tokens

NUM_SHOWN = 8
NUM_STANDARDISED = 2048


@dataclass(frozen=True)
class PixelDecoderBatch:
    """Latents and noise [I, C, h, w], visual tokens [I, n, F], times [I]; `dropped` [I]: learnt without the tokens."""

    latents: Tensor
    features: Tensor
    noise: Tensor
    t: Tensor
    dropped: Tensor

    def to(self, device: torch.device | str) -> PixelDecoderBatch:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


class PixelDecoderTraining(nn.Module):
    """Trains the denoiser of a pixel decoder; encoder and autoencoder stay as they are. Implements `Method`.

    A sample is an image of a source; one that a source names several times counts once in it. Of a large source, whose
    records are not all read before, a sample is an image of a record. Raises ValueError for a source without images,
    and where none of the images can be read. `shown`: what the grid and the measure are of, images of the first source
    (of any, where none of its can be read).
    """

    def __init__(self, recipe: Recipe, decoder: PixelDecoder, encoder: Any, *, cache_dir: Path | None) -> None:
        super().__init__()
        self.recipe = recipe
        self.decoder = decoder
        self.encoder = encoder
        self.loss_weights = {decoder.denoiser.loss_name: 1.0}
        self.data = TrainingSources(recipe, cache_dir=cache_dir)
        self.images = None if self.data.images is None else [list(dict.fromkeys(own)) for own in self.data.images]
        some = self.images or [
            self.data.some_images(NUM_STANDARDISED, source) for source in range(len(self.data.samples))
        ]
        for source, images in zip(recipe.data.sources, some, strict=True):
            if not images:
                raise ValueError(f"{source.path} names no images, and a pixel decoder learns from nothing else")
        everything = sorted({image for images in some for image in images})
        self.latents = image_latents(decoder.autoencoder, recipe.image_size, cache_dir=cache_dir)
        self.features = image_features(encoder, recipe.vpit.num_image_tokens, cache_dir=cache_dir)
        self.data.encode_with(self.latents, self.features)
        seen = everything[:: max(1, len(everything) // NUM_STANDARDISED)]
        known = some_usable(seen, self.features.load)
        decoder.denoiser.standardise(torch.stack([own for _, own in known]).to(decoder.device))
        shown, _ = usable(some[0][:: max(1, len(some[0]) // NUM_SHOWN)][:NUM_SHOWN], self.features.load)
        self.shown = [image for image, _ in shown or known[:NUM_SHOWN]]
        if recipe.train.gradient_checkpointing:
            decoder.denoiser.checkpoint_gradients()
        self.train()

    def num_samples(self) -> tuple[int, ...]:
        return self.data.num_samples() if self.images is None else tuple(map(len, self.images))

    def build_batch(self, picks: Sequence[tuple[int, int, int]], *, seed: int) -> PixelDecoderBatch:
        dropout = self.recipe.pixel_decoder_training.dropout_prob
        latents, features, noise, times, dropped = [], [], [], [], []
        for draw, image in self._chosen(picks, seed):
            generator = torch.Generator().manual_seed((seed * 1_000_003 + draw) % 2**63)
            latents.append(self.latents.load(image))
            features.append(self.features.load(image))
            dropped.append(torch.rand((), generator=generator) < dropout)
            times.append(self.decoder.denoiser.sample_time(generator))
            noise.append(torch.randn(latents[-1].shape, generator=generator))
            features[-1] = self._as_predicted(features[-1], generator)
        columns = (latents, features, noise, times, dropped)
        return PixelDecoderBatch(*(torch.stack(column) for column in columns))

    def _chosen(self, picks: Sequence[Pick], seed: int) -> list[tuple[int, str]]:
        """(draw, image) of each pick; of a record with several images one, by the draw. Raises RecordError for a record
        without any, and for an image that cannot be read."""
        chosen = []
        for draw, source, index in picks:
            if self.images is not None:
                chosen.append((draw, self.images[source][index]))
            elif images := self.data.samples[source][index].images:
                chosen.append((draw, images[(seed + draw) % len(images)]))
            else:
                raise RecordError("no image", f"{self.data.samples[source].where(index)} names no image")
        self.data.encode([image for _, image in chosen])
        return chosen

    def _as_predicted(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Visual tokens [n, F] with noise of a strength between none and the recipe's, of length 1 again."""
        most = self.recipe.pixel_decoder_training.condition_noise
        if not most:
            return features
        return noised_tokens(features, most * torch.rand((), generator=generator), generator)

    def num_tokens(self, pick: Pick, *, seed: int) -> int:
        """An image is one: all have as many patches."""
        del pick, seed
        return 1

    def loss_counts(self, batch: PixelDecoderBatch) -> dict[str, float]:
        return {self.decoder.denoiser.loss_name: float(batch.latents.numel())}

    def forward(self, batch: PixelDecoderBatch) -> dict[str, LossSum]:
        total = self.decoder.denoiser(batch.latents, batch.features, batch.noise, batch.t, batch.dropped)
        return {name: LossSum(total, count) for name, count in self.loss_counts(batch).items()}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.decoder.denoiser.named_parameters())

    def shard_modules(self) -> Iterable[nn.Module]:
        return self.decoder.denoiser.shard_modules()

    def frozen_hashes(self) -> dict[str, str]:
        return self.decoder.frozen_hashes()

    def sample_grid(self, *, seed: int) -> Image.Image | None:
        """Real images above their reconstructions."""
        size = self.recipe.image_size
        pictures = [tensor_to_image(image_to_tensor(open_reference(path), size)) for path in self.shown]
        pictures += [tensor_to_image(image) for image in self._reconstruct(seed)]
        shown = len(pictures) // 2
        return draw_image_grid(pictures, ["real"] * shown + ["reconstructed"] * shown, columns=shown)

    def measure(self, *, seed: int) -> dict[str, float]:
        """`reconstruction_cosine`: visual tokens of reconstructions against those that they were drawn from."""
        drawn = self.encoder.features(self._reconstruct(seed))
        real = self._shown_features().to(drawn.device)
        return {"reconstruction_cosine": float(cosine_similarity(reduce_tokens(drawn, real.shape[1]), real, -1).mean())}

    def save_pretrained(self, folder: str, *, weights: dict[str, Tensor] | None = None) -> None:
        self.decoder.save_pretrained(folder, weights=weights)
        self.flush()

    def encode(self, picks: Sequence[Pick]) -> None:
        self._chosen(picks, self.recipe.seed)

    def flush(self) -> None:
        self.data.flush()

    def _shown_features(self) -> Tensor:
        return torch.stack([self.features.load(path) for path in self.shown])

    def _reconstruct(self, seed: int) -> Tensor:
        return self.decoder.decode(self._shown_features(), seed=seed)


def build_pixel_decoder_training(recipe: Recipe) -> PixelDecoderTraining:
    """Builds what the recipe trains, with its data. Raises ValueError for whatever is missing or does not fit."""
    config = recipe.vpit
    encoder = load_image_encoder(config.image_encoder, layer=config.encoder_layer, image_size=config.encoder_image_size)
    encoder.to(compute_device())
    decoder = build_pixel_decoder(recipe, encoder)
    cache_dir = encoded_folder(recipe)
    return PixelDecoderTraining(recipe, decoder, encoder, cache_dir=cache_dir)
