"""Drawings among the real images of an emoji set: is the right concept nearest, and is the style right?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.cache_folder import hash_file
from diptych.data.builders.data_card import read_card
from diptych.data.images import image_to_tensor, open_image
from diptych.data.samples import Message, Sample, read_samples
from diptych.evaluate.retrieval import PooledEncoder, embed_images, retrieval_ranks
from diptych.evaluate.suite import Progress

ENCODER = "efficientnet-lite0"
"""What judges drawings."""
BATCH_SIZE = 50


@dataclass(frozen=True)
class Combination:
    """One concept in one style: its prompt and its real image. `messages`: the prompt as a turn of a conversation."""

    concept: str
    style: str
    prompt: str
    file: Path
    held_out: bool
    messages: tuple[Message, ...] = field(default=(), repr=False)

    @property
    def real(self) -> Image.Image:
        return open_image(self.file)


def read_combinations(data: Path) -> list[Combination]:
    """Trained combinations, then held-out ones, of a built emoji set: those that are asked for by name.

    Raises ValueError where a style lacks a concept: ranks would not mean the same.
    """
    counts = read_card(data).num_samples
    combinations = []
    for name in ("train_draw.jsonl", "held_out_draw.jsonl"):
        if counts.get(name):
            samples = [sample for sample in read_samples(data / name) if sample.meta["prompt_kind"] == "name"]
            combinations += [_combination(data, sample) for sample in samples]
    by_style: dict[str, set[str]] = {}
    for combination in combinations:
        by_style.setdefault(combination.style, set()).add(combination.concept)
    if not combinations or any(concepts != {c.concept for c in combinations} for concepts in by_style.values()):
        raise ValueError(
            f"the data set in {data} does not hold every concept in every style; delete and build it again"
        )
    return combinations


def hash_gallery(gallery: Sequence[Combination]) -> str:
    """SHA-256 over what is in it and the bytes of its real images: ranks among others are other ranks."""
    entries = sorted([c.concept, c.style, hash_file(c.file)] for c in gallery)
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def compare_with_gallery(
    encoder: PooledEncoder,
    gallery: Sequence[Combination],
    combinations: Sequence[Combination],
    drawn: Sequence[Image.Image],
    *,
    size: int,
    progress: Progress,
) -> tuple[list[int], list[bool]]:
    """Ranks, and whether the style is right. All images are brought to `size` first, the size that the morph draws at:
    a sharper original is still the same thing."""
    features = []
    images = [*drawn, *(c.real for c in gallery)]
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        features.append(embed_images(encoder, torch.stack([image_to_tensor(image, size) for image in batch])))
        progress("comparing drawn with real images", start + len(batch), len(images))
    mine, real = torch.cat(features).split((len(combinations), len(gallery)))
    return place_in_gallery(mine, real, gallery, combinations)


def place_in_gallery(
    mine: Tensor, real: Tensor, gallery: Sequence[Combination], combinations: Sequence[Combination]
) -> tuple[list[int], list[bool]]:
    """Of drawings of `combinations` with unit features mine [N, D], among real ones [G, D]: the place (0 is first) of
    the right concept among the images of its style; whether the nearest of any style has that style."""
    nearest = (mine @ real.T).argmax(dim=1).tolist()
    ranks = [0] * len(combinations)
    for style in {c.style for c in combinations}:
        rows = [i for i, c in enumerate(combinations) if c.style == style]
        of_style = [i for i, c in enumerate(gallery) if c.style == style]
        places = {gallery[i].concept: place for place, i in enumerate(of_style)}
        targets = [places[combinations[i].concept] for i in rows]
        for row, rank in zip(rows, retrieval_ranks(mine[rows], real[of_style], targets), strict=True):
            ranks[row] = rank
    return ranks, [gallery[near].style == c.style for near, c in zip(nearest, combinations, strict=True)]


def _combination(data: Path, sample: Sample) -> Combination:
    prompt = "".join(part for part in sample.messages[0].parts if isinstance(part, str))
    meta = sample.meta
    held_out = bool(meta["held_out"])
    return Combination(meta["concept"], meta["style"], prompt, data / sample.images[0], held_out, sample.messages[:-1])
