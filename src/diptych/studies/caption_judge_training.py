"""Training of the judge of captions: each text with all pictures that it fits, against all others of a batch."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.backbones.caption_judge import CaptionJudge
from diptych.data.builders.concept_splits import is_held_out
from diptych.data.builders.concept_words import usable_tags
from diptych.data.builders.emoji import STYLE_WORDS, draw_prompt
from diptych.studies.detector_training import RoundTrip, change_images

STYLES = tuple(STYLE_WORDS)
SPLIT_SEED = 0
"""Of `is_held_out`: the concepts that the sets of the six data types hold out by default."""
_MOST_SHIFT = 6
_CODED = 0.6
"""So many of the changed pictures go through the autoencoder."""
_HIGHEST_SCALE = 30.0


@dataclass(frozen=True)
class CaptionedConcept:
    """One concept with its pictures' files by style. `tags`: words that fit it, and name no other concept."""

    name: str
    tags: tuple[str, ...]
    files: Mapping[str, Path]
    held_out: bool


def read_captioned(folder: Path) -> list[CaptionedConcept]:
    """All concepts of a built emoji set. One word in ten, and every name that has it, is held out (`concept_splits`).
    Raises ValueError where the folder holds no such set."""
    try:
        entries = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
        tags = usable_tags({entry["name"]: entry["tags"] for entry in entries})
        return [
            CaptionedConcept(
                name=(name := entry["name"]),
                tags=tags[name],
                files={style: folder / entry["images"][style] for style in STYLES},
                held_out=is_held_out(name, seed=SPLIT_SEED),
            )
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no emoji set ({error!r}); make one: diptych data build emoji") from error


def caption(name: str, style: str) -> str:
    """As captions are asked for and scored."""
    return f"{name} in {STYLE_WORDS[style]} style"


@dataclass(frozen=True)
class FittingTexts:
    """Texts that training draws from. `style_of`: [T] the style that a text names, -1: none. `concepts_of`: [T, C]
    which concepts it fits. By concept, numbers of texts: `named` with its name and no style, `styled` with each style,
    `tagged` its tags."""

    texts: list[str]
    style_of: Tensor
    concepts_of: Tensor
    named: list[list[int]]
    styled: list[list[list[int]]]
    tagged: list[list[int]]


def collect_texts(concepts: Sequence[CaptionedConcept]) -> FittingTexts:
    """Of concepts that are not held out, and no tag with a held-out word."""
    texts: dict[str, int] = {}
    fits: list[tuple[int, int, int]] = []

    def add(text: str, concept: int, style: int = -1) -> int:
        number = texts.setdefault(text, len(texts))
        fits.append((number, concept, style))
        return number

    named, styled, tagged = [], [], []
    for place, concept in enumerate(concepts):
        shown = not concept.held_out
        name = concept.name
        named.append([add(text, place) for text in (name, f"a picture of {name}")] if shown else [])
        styled.append(
            [
                [add(text, place, number) for text in (caption(name, style), draw_prompt(name, style))] if shown else []
                for number, style in enumerate(STYLES)
            ]
        )
        tags = [tag for tag in concept.tags if shown and not is_held_out(tag, seed=SPLIT_SEED)]
        tagged.append([add(tag, place) for tag in tags])
    style_of, concepts_of = torch.full((len(texts),), -1), torch.zeros(len(texts), len(concepts), dtype=torch.bool)
    for number, concept, style in fits:
        style_of[number] = style
        concepts_of[number, concept] = True
    return FittingTexts(list(texts), style_of, concepts_of, named, styled, tagged)


def change_pictures(images: Tensor, generator: torch.Generator, round_trip: RoundTrip | None = None) -> Tensor:
    """Images [B, 3, S, S] in -1..1 on white, each shifted, most of them through the autoencoder with noise on their
    latents, some blurred, paler, noised: as drawings differ from real images. None is mirrored: names tell left from
    right."""
    size, most = images.shape[-1], _MOST_SHIFT * images.shape[-1] // 64
    padded = nn.functional.pad(images, (most,) * 4, value=1.0)
    corners = torch.randint(0, 2 * most + 1, (len(images), 2), generator=generator).tolist()
    shifted = [image[:, y : y + size, x : x + size] for image, (x, y) in zip(padded, corners, strict=True)]
    changed = torch.stack(shifted)
    if round_trip is not None:
        coded = torch.rand(len(images), generator=generator) < _CODED
        strength = 0.6 * float(torch.rand((), generator=generator))
        if bool(coded.any()):
            changed[coded] = round_trip(changed[coded], strength)
    return change_images(changed, generator)


def train_caption_judge(
    judge: CaptionJudge,
    concepts: Sequence[CaptionedConcept],
    features: Tensor,
    texts: FittingTexts,
    embeddings: Tensor,
    *,
    num_steps: int,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    weight_decay: float = 2.0,
    tag_share: float = 0.35,
    style_share: float = 0.65,
    seed: int = 0,
    progress: Callable[[int, Mapping[str, float]], None] = lambda step, losses: None,
) -> None:
    """Trains the judge in place (AdamW, one cycle of the learning rate) by InfoNCE both ways, where a text has several
    right pictures and a picture several right texts; the same arguments, the same weights.

    `features`: [K, styles, C, image_dim], K copies of each picture, changed as drawings are; those of held-out concepts
    are not read. `embeddings`: [T, text_dim] of `texts`. Of the texts of a batch `tag_share` are tags, the others
    names, `style_share` of these with the style. Raises ValueError where no concept is left to train with.
    """
    shown = torch.tensor([place for place, concept in enumerate(concepts) if not concept.held_out])
    if not len(shown):
        raise ValueError("every concept is held out, so there is nothing to train with; give a larger emoji set")
    seen = features[:, :, shown].reshape(-1, judge.image_dim)
    judge.image_mean.copy_(seen.mean(dim=0))
    judge.image_std.copy_(seen.std(dim=0).clamp_min(1e-2))
    scale = nn.Parameter(torch.tensor(math.log(20.0)))
    optimiser = torch.optim.AdamW([*judge.parameters(), scale], lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=num_steps, pct_start=0.1, cycle_momentum=False
    )
    generator, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    judge.train().requires_grad_(True)
    started = time.monotonic()

    def draw(high: int) -> Tensor:
        return torch.randint(0, high, (batch_size,), generator=generator)

    for step in range(num_steps):
        concept, style, copy = shown[draw(len(shown))], draw(len(STYLES)), draw(len(features))
        said = torch.tensor(
            [
                _draw_text(texts, *picture, chance, tag_share, style_share)
                for picture in zip(concept.tolist(), style.tolist(), strict=True)
            ]
        )
        fits = fitting_pairs(texts, said, concept, style)
        logits = scale.exp().clamp(max=_HIGHEST_SCALE) * judge(features[copy, style, concept], embeddings[said])
        losses = {"by text": contrastive_loss(logits, fits), "by picture": contrastive_loss(logits.T, fits.T)}
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        told = {name: float(loss.detach()) for name, loss in losses.items()}
        progress(step + 1, told | {"seconds": time.monotonic() - started})
    judge.eval().requires_grad_(False)


def fitting_pairs(texts: FittingTexts, said: Tensor, concept: Tensor, style: Tensor) -> Tensor:
    """[T, P] whether each of the texts `said` [T] fits each picture, of that concept [P] in that style [P]."""
    named = texts.style_of[said][:, None]
    return texts.concepts_of[said][:, concept] & ((named < 0) | (named == style))


def contrastive_loss(logits: Tensor, fits: Tensor) -> Tensor:
    """Cross-entropy of each row of [N, M] against all that is right in it, in equal parts; each row has something."""
    right = fits / fits.sum(dim=1, keepdim=True)
    return -(right * logits.log_softmax(dim=1)).sum(dim=1).mean()


def _draw_text(
    texts: FittingTexts, concept: int, style: int, chance: random.Random, tag_share: float, style_share: float
) -> int:
    if chance.random() < tag_share and texts.tagged[concept]:
        return chance.choice(texts.tagged[concept])
    if chance.random() < style_share:
        return chance.choice(texts.styled[concept][style])
    return chance.choice(texts.named[concept])
