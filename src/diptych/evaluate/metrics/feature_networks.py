"""The networks whose features FID and KID are taken of: Inception where the user has its weights, else the embedded
EfficientNet-Lite0, whose scores bear its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.cache_folder import hash_file
from diptych.backbones.vision import load_image_encoder
from diptych.data.images import image_to_tensor
from diptych.evaluate.retrieval import pooled_features

EMBEDDED = "efficientnet-lite0"
INCEPTION = "inception"
INCEPTION_DIM, INCEPTION_SIZE = 2048, 299
INCEPTION_REMEDY = (
    "give inception-2015-12-05.pt (TorchScript, 96 MB), the file that StyleGAN and clean-fid take: "
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
)


@dataclass(frozen=True)
class FeatureNetwork:
    """`pooled`: images [B, 3, S, S] in -1..1, S = `image_size`, to features [B, D]. `hash`: SHA-256 of its weights."""

    name: str
    hash: str
    image_size: int
    pooled: Callable[[Tensor], Tensor]

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, D] on the CPU, of images cropped to their centre squares and resized by Pillow with antialiasing; one by
        one, so that they are the same bit for bit whatever an image stands beside."""
        pixels = torch.stack([image_to_tensor(image, self.image_size) for image in images])
        return pooled_features(self, pixels, batch_size=1)


def load_feature_network(inception: Path | None, *, device: torch.device | str = "cpu") -> FeatureNetwork:
    """Inception from that file; None: the embedded network. Errors: see `load_inception`."""
    if inception is not None:
        return load_inception(inception, device=device)
    encoder: Any = load_image_encoder(EMBEDDED).to(device)
    return FeatureNetwork(EMBEDDED, encoder.hash, encoder.preprocessing.image_size, encoder.pooled)


def load_inception(file: Path, *, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The Inception-v3 of FID (Heusel et al. 2017) as a TorchScript file, without the resizing inside it: images come
    at 299 pixels, resized before, as Parmar et al. 2022 ask. Raises ValueError for a file that is no such network."""
    if not file.is_file():
        raise ValueError(f"Inception's weights: {file} is no file; {INCEPTION_REMEDY}")
    try:
        layers: Any = torch.jit.load(str(file), map_location=device).eval().layers
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"Inception's weights: {file} is none of TorchScript; {INCEPTION_REMEDY}") from error

    @torch.no_grad()
    def pooled(images: Tensor) -> Tensor:
        pixels = ((images.to(device) + 1) * 127.5).round()
        features = layers((pixels - 128) / 128).flatten(1)
        if features.shape[1] != INCEPTION_DIM:
            raise ValueError(f"Inception's weights: {file} gives {features.shape[1]} features; {INCEPTION_REMEDY}")
        return features

    return FeatureNetwork(INCEPTION, hash_file(file), INCEPTION_SIZE, pooled)
