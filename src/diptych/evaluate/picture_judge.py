"""What judges drawings: an image encoder's features of pictures, those of files kept in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.assets import cache_root
from diptych.backbones.vision import load_image_encoder
from diptych.evaluate.emoji_gallery import ENCODER, embed_pictures
from diptych.evaluate.retrieval import embed_images
from diptych.evaluate.suite import Progress
from diptych.models.encoded_images import EncodedImages

_AT_ONCE = 128


class PictureJudge:
    """Pictures are compared at the size that a morph draws: a sharper original is still the same thing."""

    def __init__(self, encoder: Any = None) -> None:
        """`encoder`: in place of ENCODER; then nothing is kept in the cache."""
        self._given = encoder
        self._encoder = encoder
        self._size = 0

    @property
    def assets(self) -> tuple[str, ...]:
        return (ENCODER,) if self._given is None else ()

    def prepare(self, morph: Any, files: Sequence[Path], progress: Progress) -> Tensor:
        """Unit features [N, D] of files, at the size that the morph draws."""
        self._size = (getattr(morph, "pixel_decoder", None) or morph).recipe.image_size
        cache_dir, key = None, "given"
        if self._given is None:
            encoder = self._encoder = self._encoder or load_image_encoder(ENCODER).to(morph.device)
            cache_dir, key = cache_root() / "tensors", encoder.cache_key[:16]
        encoded = EncodedImages(
            lambda images: embed_images(self._encoder, images),
            key=f"pooled-{key}-{self._size}",
            image_size=self._size,
            cache_dir=cache_dir,
        )
        names = [str(file) for file in files]
        for start in range(0, len(names), _AT_ONCE):
            encoded.prepare(names[start : start + _AT_ONCE])
            progress("embedding real images", min(start + _AT_ONCE, len(names)), len(names))
        encoded.flush()
        return torch.stack([encoded.load(name) for name in names])

    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit features [N, D] of what was drawn. `prepare` comes first."""
        assert self._size, "prepare comes first"
        return embed_pictures(self._encoder, pictures, size=self._size)
