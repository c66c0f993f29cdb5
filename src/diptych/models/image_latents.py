"""Latents of image files, encoded once: kept in memory, and on disk by the content of the file and of the encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.data.images import image_to_tensor, open_image
from diptych.data.tensor_cache import TensorCache


class ImageLatents:
    """`load(path)` gives the clean latent [C, h, w] of an image file, resized to `image_size` pixels."""

    def __init__(self, autoencoder: Any, image_size: int, *, cache_dir: Path | None, batch_size: int = 64) -> None:
        self.autoencoder = autoencoder
        self.image_size = image_size
        self.batch_size = batch_size
        key = f"latents-{autoencoder.hash[:16]}-{image_size}"
        self.cache = TensorCache(cache_dir, key=key) if cache_dir is not None else None
        self._latents: dict[str, Tensor] = {}

    def prepare(self, paths: Iterable[str]) -> None:
        """Encodes, in batches, the files that are not encoded yet."""
        missing: list[tuple[str, str]] = []
        for path in sorted(set(paths) - self._latents.keys()):
            name = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            kept = self.cache.get(name) if self.cache is not None else None
            if kept is None:
                missing.append((path, name))
            else:
                self._latents[path] = kept["latent"]
        for start in range(0, len(missing), self.batch_size):
            chunk = missing[start : start + self.batch_size]
            images = torch.stack([image_to_tensor(open_image(path), self.image_size) for path, _ in chunk])
            for (path, name), latent in zip(chunk, self.autoencoder.encode(images).cpu(), strict=True):
                self._latents[path] = latent.clone()
                if self.cache is not None:
                    self.cache.put(name, {"latent": self._latents[path]})
        if missing and self.cache is not None:
            self.cache.flush()

    def load(self, path: str) -> Tensor:
        if path not in self._latents:
            self.prepare([path])
        return self._latents[path]
