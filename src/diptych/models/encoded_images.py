"""Images as latents or features, encoded once: some kept in memory, all on disk by the content of image and encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.backbones.assets import cache_root
from diptych.backbones.cache_folder import report_to_stderr
from diptych.config import Recipe
from diptych.data.images import Fit, Interpolation, image_to_tensor
from diptych.data.recently_used import RecentlyUsed
from diptych.data.references import content_hash, memory_key, open_reference
from diptych.data.tensor_cache import TensorCache
from diptych.nn.connector import reduce_tokens

PIXELS_AT_ONCE = 1_000_000
"""Of a batch of images: what an encoder or a large autoencoder makes of them fits into memory."""
BYTES_KEPT = 1_000_000_000
ITEMS_KEPT = 262_144
"""Of what is made of images, in memory; the cache on disk gives the rest."""


SECONDS_SILENT = 10.0
"""Between two words about a long preparation."""
SAVED_AT_ONCE = 1024
"""Images that are encoded before they reach the disk as one shard; a kill loses as many at most."""


def encoded_folder(recipe: Recipe) -> Path:
    """Where what a recipe encodes is kept."""
    return Path(recipe.cache_dir) if recipe.cache_dir else cache_root() / "tensors"


class EncodedImages:
    """`load(reference)` gives what `encode` makes of an image (`references.py`) resized to `image_size` pixels.

    `encode`: images [B, 3, S, S] in -1..1 -> one tensor per image. `key`: names all that the result depends on. fit and
    interpolation: see `image_to_tensor`.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        *,
        key: str,
        image_size: int,
        cache_dir: Path | None,
        batch_size: int | None = None,
        fit: Fit = "crop",
        interpolation: Interpolation = "bicubic",
    ) -> None:
        self.encode = encode
        self.image_size = image_size
        self._read = partial(image_to_tensor, size=image_size, fit=fit, interpolation=interpolation)
        self.batch_size = batch_size or max(1, min(64, PIXELS_AT_ONCE // image_size**2))
        self.cache = TensorCache(cache_dir, key=key, memory_bytes=BYTES_KEPT) if cache_dir is not None else None
        self._num_unsaved = 0
        self._encoded: RecentlyUsed[str, Tensor] = RecentlyUsed(
            ITEMS_KEPT, max_total=BYTES_KEPT, size_of=lambda encoded: encoded.nbytes
        )

    def prepare(self, references: Iterable[str]) -> None:
        """Encodes, in batches, the images that are not encoded yet. Raises ValueError, naming the image, for one of
        which nothing can be made."""
        missing: list[tuple[str, str]] = []
        for path in sorted(path for path in set(references) if memory_key(path) not in self._encoded):
            name = content_hash(path)
            kept = self.cache.get(name) if self.cache is not None else None
            if kept is None:
                missing.append((path, name))
            else:
                self._encoded.put(memory_key(path), kept["latent"])
        said = time.monotonic()
        for start in range(0, len(missing), self.batch_size):
            chunk = missing[start : start + self.batch_size]
            images = torch.stack([self._read(open_reference(path)) for path, _ in chunk])
            for (path, name), encoded in zip(chunk, self._encode(images, [path for path, _ in chunk]), strict=True):
                own = self._encoded.put(memory_key(path), encoded.clone())
                if self.cache is not None:
                    self.cache.put(name, {"latent": own})
            self._num_unsaved += len(chunk)
            if self._num_unsaved >= SAVED_AT_ONCE and self.cache is not None:
                self.cache.flush_or_warn()
                self._num_unsaved = 0
            if time.monotonic() - said >= SECONDS_SILENT:
                said = time.monotonic()
                report_to_stderr(f"encoding images, once: {start + len(chunk)} of {len(missing)}")

    def flush(self) -> None:
        """Brings what was encoded to the disk. Raises ValueError if it cannot be written."""
        if self.cache is not None:
            self.cache.flush()
        self._num_unsaved = 0

    def _encode(self, images: Tensor, paths: list[str]) -> Tensor:
        """`encode`, whose ValueError is raised again with the name of the file that is to blame."""
        try:
            return self.encode(images).cpu()
        except ValueError as error:
            for path, image in zip(paths, images, strict=True):
                try:
                    self.encode(image[None])
                except ValueError as own:
                    raise ValueError(f"{path}: {own}") from error
            raise

    def load(self, reference: str) -> Tensor:
        key = memory_key(reference)
        while (encoded := self._encoded.get(key)) is None:
            self.prepare([reference])
        return encoded


def image_latents(autoencoder: Any, image_size: int, *, cache_dir: Path | None) -> EncodedImages:
    """Clean latents [C, h, w] of an autoencoder."""
    key = f"latents-{autoencoder.hash[:16]}-{image_size}"
    return EncodedImages(autoencoder.encode, key=key, image_size=image_size, cache_dir=cache_dir)


def read_fit(encoder: Any, tower: Any) -> Fit:
    """How the images that a vision tower reads become squares for its image encoder: as the encoder has it, or as
    latents have it where features are added to these."""
    return "crop" if tower.reads_latents else encoder.preprocessing.fit


def image_features(encoder: Any, num_tokens: int, *, cache_dir: Path | None, fit: Fit | None = None) -> EncodedImages:
    """Visual tokens [n, F] of an image encoder: `num_tokens` of its features' grid, each of length 1.

    `fit`: in place of the encoder's own, for features that must lie where those of something else do.
    """
    own = encoder.preprocessing
    other = "" if fit in (None, own.fit) else f"-{fit}"
    return EncodedImages(
        lambda images: reduce_tokens(encoder.features(images), num_tokens),
        key=f"features-{encoder.cache_key[:16]}-{num_tokens}{other}",
        image_size=own.image_size,
        cache_dir=cache_dir,
        fit=fit or own.fit,
        interpolation=own.interpolation,
    )
