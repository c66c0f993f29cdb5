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
from diptych.data.images import image_to_tensor
from diptych.evaluate.emoji_gallery import ENCODER
from diptych.evaluate.retrieval import pooled_features
from diptych.evaluate.suite import Progress
from diptych.models.encoded_images import EncodedImages

_AT_ONCE = 128


class PictureJudge:
    """Features [N, D] as the encoder gives them, of any length. Pictures are compared at the size that a morph draws:
    a sharper original is still the same thing."""

    def __init__(self, encoder: Any = None, *, size: int = 0) -> None:
        """`encoder`: in place of ENCODER; then nothing is kept in the cache. `size`: of pictures, where no file is
        embedded before them."""
        self._given = encoder
        self._encoder = encoder
        self._size = size

    @property
    def assets(self) -> tuple[str, ...]:
        return (ENCODER,) if self._given is None else ()

    def prepare(self, morph: Any, files: Sequence[Path], progress: Progress) -> Tensor:
        """Features of files, at the size that the morph draws."""
        if self._encoder is None:
            self._encoder = load_image_encoder(ENCODER).to(morph.device)
        size = (getattr(morph, "pixel_decoder", None) or morph).recipe.image_size
        return self.embed_files(files, size=size, progress=progress)

    def load(self) -> Any:
        """The encoder."""
        if self._encoder is None:
            self._encoder = load_image_encoder(ENCODER)
        return self._encoder

    def embed_files(self, files: Sequence[Path], *, size: int, progress: Progress) -> Tensor:
        """Features of files at `size`, the size of all that `embed` is given from now on."""
        encoder = self.load()
        self._size = size
        is_kept = self._given is None
        encoded = EncodedImages(
            self._features,
            key=f"pooled-features-{encoder.cache_key[:16] if is_kept else 'given'}-{size}",
            image_size=size,
            cache_dir=cache_root() / "tensors" if is_kept else None,
        )
        names = [str(file) for file in files]
        for start in range(0, len(names), _AT_ONCE):
            encoded.prepare(names[start : start + _AT_ONCE])
            progress("embedding real images", min(start + _AT_ONCE, len(names)), len(names))
        encoded.flush()
        return torch.stack([encoded.load(name) for name in names])

    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features of what was drawn. `prepare`, `embed_files` or `load` comes first."""
        assert self._size, "prepare comes first"
        return self._features(torch.stack([image_to_tensor(picture, self._size) for picture in pictures]))

    def _features(self, pixels: Tensor) -> Tensor:
        """One by one: a drawing has the same features, bit for bit, in its batch and when it is read again."""
        return pooled_features(self._encoder, pixels, batch_size=1)
