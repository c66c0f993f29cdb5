"""Reconstruction: an image through latents or visual tokens and back, which bounds all that is drawn from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.vision import ImageEncoder, load_image_encoder
from diptych.data.builders.data_card import CARD_NAME
from diptych.data.images import image_to_tensor, open_image
from diptych.data.recently_used import RecentlyUsed
from diptych.data.samples import Message
from diptych.evaluate.answering import Sampling
from diptych.evaluate.emoji_gallery import ENCODER, read_combinations
from diptych.evaluate.metrics.effnet_distance import effnet_distance
from diptych.evaluate.metrics.reference_statistics import find_images
from diptych.evaluate.suite import (
    Answer,
    Baselines,
    Example,
    Metric,
    MetricScore,
    Needs,
    Progress,
    Row,
    Scores,
    summarise_means,
)
from diptych.evaluate.suites.suite_data import EMOJI_ASSETS, find_emoji_set

MAX_PSNR = 100.0
"""Decibels that equal images are given."""
_WINDOW = 11
_AT_ONCE = 32
_MOST_COMPARED = 32
"""Examples, drawn by the hash of their ids, that the baselines are told of: each costs as much as a score."""
_BYTES_KEPT = 200_000_000
"""Of real images at the size that came out."""


class ImageReconstruction:
    """The pictures of an emoji set, or of any folder, encoded and decoded by the morph's autoencoder (X-Fusion) or
    pixel decoder (VPiT)."""

    name = "reconstruction"
    version = 3
    words = (
        "Each image goes through the morph's latents (X-Fusion) or visual tokens (VPiT) and back, and is compared with "
        "itself at the size that comes out: PSNR, SSIM (windows of 11 pixels), and EffNet distance: by the feature "
        f"maps of {ENCODER}, as LPIPS is by those of another network, with which it is not comparable. Majority: the "
        f"mean of all images in place of each. Chance: another image in its place. Both of {_MOST_COMPARED} at most."
    )
    metrics = (
        Metric("psnr", "PSNR", unit="dB"),
        Metric("ssim", "SSIM", unit=""),
        Metric("effnet_distance", "EffNet distance", unit="", higher_is_better=False),
    )

    def __init__(self, data: Path | None = None, *, encoder: ImageEncoder | None = None) -> None:
        """`encoder`: an EfficientNet-Lite0 in place of the embedded one."""
        assets = () if data is not None else EMOJI_ASSETS
        assets += () if encoder is not None else (ENCODER,)
        self.needs = Needs(("reconstructs",), assets, {"torchmetrics": "eval"})
        self._data = data
        self._encoder = encoder
        self._size = 0
        self._opened: RecentlyUsed[tuple[str, int], Tensor] = RecentlyUsed(
            10_000, max_total=_BYTES_KEPT, size_of=lambda image: image.nbytes
        )

    def load_examples(self, progress: Progress) -> list[Example]:
        if self._data is not None and not (self._data / CARD_NAME).is_file():
            return [_example(path.relative_to(self._data).as_posix(), path) for path in find_images(self._data)]
        combinations = read_combinations(find_emoji_set(self._data, progress))
        return [
            _example(f"{c.style}/{c.concept}", c.file, kind="held out" if c.held_out else "trained")
            for c in combinations
        ]

    def prepare(self, morph: Any, progress: Progress) -> None:
        if self._encoder is None:
            self._encoder = load_image_encoder(ENCODER).to(morph.device)

    def _compare(self, images: Tensor, real: Tensor) -> list[Scores]:
        if self._encoder is None:
            self._encoder = load_image_encoder(ENCODER)
        distances = effnet_distance(self._encoder, images, real).tolist()
        pairs = zip(compare_images(images, real), distances, strict=True)
        return [scores | {"effnet_distance": distance} for scores, distance in pairs]

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        images = [open_image(e.images[0]) for e in examples]
        drawn = morph.reconstruct(images, numbers=[0] * len(images), **sampling.options([e.id for e in examples]))
        return [Answer(images=(image,)) for image in drawn]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        drawn = torch.stack([image_to_tensor(answer.images[0], answer.images[0].width) for answer in answers])
        real = torch.stack([self._open(example, drawn.shape[-1]) for example in examples])
        return self._compare(drawn, real)

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        if not self._size or len(examples) < 2:
            return {}  # nothing came out yet, at whose size they would be compared; or there is no other image
        mean = torch.zeros(3, self._size, self._size)
        for example in examples:
            mean += self._open(example, self._size) / len(examples)
        drawn = sorted(examples, key=lambda e: hashlib.sha256(e.id.encode()).digest())
        others = {example.id: other for example, other in zip(drawn, [*drawn[1:], *drawn[:1]], strict=True)}
        compared = drawn[:_MOST_COMPARED]
        totals: dict[str, list[float]] = {}
        for start in range(0, len(compared), _AT_ONCE):
            some = compared[start : start + _AT_ONCE]
            real = torch.stack([self._open(example, self._size) for example in some])
            other = torch.stack([self._open(others[example.id], self._size) for example in some])
            for place, images in enumerate((mean.expand_as(real), other)):
                for scores in self._compare(images, real):
                    for name, value in scores.items():
                        totals.setdefault(name, [0.0, 0.0])[place] += value / len(compared)
        return {name: Baselines(*pair) for name, pair in totals.items()}

    def _open(self, example: Example, size: int) -> Tensor:
        if (image := self._opened.get((example.id, size))) is None:
            image = self._opened.put((example.id, size), image_to_tensor(open_image(example.images[0]), size))
        return image

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        with Image.open(folder / rows[0].images[0]) as image:
            self._size = image.width
        return summarise_means(self, examples, rows)


def compare_images(images: Tensor, real: Tensor) -> list[Scores]:
    """PSNR in decibels and SSIM of images [B, 3, S, S] in -1..1, each with its own. Raises ValueError for images
    smaller than SSIM's window."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    if images.shape[-1] < _WINDOW:
        raise ValueError(f"SSIM compares windows of {_WINDOW} pixels, and these images have {images.shape[-1]}")
    both: Any = ((images.clamp(-1, 1) + 1) / 2, (real.clamp(-1, 1) + 1) / 2)
    psnr = peak_signal_noise_ratio(*both, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim: Any = structural_similarity_index_measure(*both, data_range=1.0, reduction="none")
    return [
        {"psnr": float(decibels), "ssim": float(similarity)}
        for decibels, similarity in zip(psnr.clamp(max=MAX_PSNR), ssim.reshape(-1), strict=True)
    ]


def _example(id: str, path: Path, *, kind: str = "") -> Example:
    return Example(id, (Message("user", (0,)),), (path,), reference_image=path, kind=kind)
