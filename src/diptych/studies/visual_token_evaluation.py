"""Scores of a VPiT morph before any pixel: are generated visual tokens those of the right picture, and how far beyond
what was trained on? Free running, that is, no real visual token is shown."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.data.builders.emoji import STYLE_WORDS, tags_prompt
from diptych.data.builders.emoji_paraphrases import PARAPHRASES
from diptych.data.samples import Sample, read_samples
from diptych.evaluate.retrieval import retrieval_ranks, retrieval_score
from diptych.evaluate.scores import Mean, Score, mean
from diptych.evaluate.suite import Progress
from diptych.models.encoded_images import image_features

KINDS = {
    "trained": "names that were trained on",
    "held_out": "names in a style never shown for the concept",
    "tags": "tags in place of the name, never trained on",
    "paraphrase": "descriptions without the name, never trained on",
    "unseen": "names of concepts never trained on",
}
BATCH_SIZE = 64


@dataclass(frozen=True)
class Request:
    """A prompt, and the picture that it asks for."""

    prompt: str
    concept: str
    style: str


@dataclass(frozen=True)
class VisualScore:
    """Mean cosine of generated to real visual tokens, and the share whose right picture is first, or among the first
    five, of all real pictures of the style."""

    cosine: Mean
    top1: Score
    top5: Score


def read_requests(data: Path) -> dict[str, list[Request]]:
    """Requests of every kind that the emoji set in the folder `data` can ask, by the names of KINDS."""
    named = {
        kind: [
            Request(_text(sample), sample.meta["concept"], sample.meta["style"])
            for sample in _drawings(data, file)
            if sample.meta["prompt_kind"] == "name"
        ]
        for kind, file in (("trained", "train"), ("held_out", "held_out"), ("unseen", "unseen"))
    }
    concepts = {entry["name"]: entry for entry in json.loads((data / "concepts.json").read_text(encoding="utf-8"))}
    trained = {(request.concept, request.style) for request in named["trained"]}
    prompts_of: dict[str, Callable[[str, str], str | None]] = {
        "tags": lambda concept, style: tags_prompt(concept, concepts[concept]["tags"], style),
        "paraphrase": lambda concept, style: (
            f"Draw {PARAPHRASES[concept]} in {STYLE_WORDS[style]} style." if concept in PARAPHRASES else None
        ),
    }
    others = {
        kind: [
            Request(prompt, concept, style)
            for concept, style in sorted(trained)
            if (prompt := make(concept, style)) is not None
        ]
        for kind, make in prompts_of.items()
    }
    found = named | others
    return {kind: found[kind] for kind in KINDS if found[kind]}


def evaluate_visual_tokens(
    data: Path, morph: Any, *, progress: Progress, num: int | None = None, seed: int = 0
) -> dict[str, VisualScore]:
    """Scores by kind of request, `num` of each at most, chosen by the seed. Raises ValueError if the data set is
    damaged."""
    requests = {
        kind: asked if num is None else random.Random(seed).sample(asked, min(num, len(asked)))
        for kind, asked in read_requests(data).items()
    }
    samples = [sample for file in ("train", "held_out", "unseen") for sample in _drawings(data, file)]
    encoded = image_features(morph.encoder, morph.recipe.vpit.num_image_tokens, cache_dir=None)
    pictures = {(s.meta["concept"], s.meta["style"]): str(data / s.images[0]) for s in samples}
    encoded.prepare(pictures.values())
    total, done = sum(map(len, requests.values())), 0
    scores: dict[str, VisualScore] = {}
    for kind, asked in requests.items():
        made: list[Tensor] = []
        for start in range(0, len(asked), BATCH_SIZE):
            batch: list[Any] = [[{"role": "user", "content": r.prompt}] for r in asked[start : start + BATCH_SIZE]]
            made += [answer[0] for answer in morph.answer(batch, generation_mode="image", max_batch_size=BATCH_SIZE)]
            done += len(batch)
            progress("predicting visual tokens", done, total)
        scores[kind] = _score(asked, torch.stack(made).cpu(), {key: encoded.load(p) for key, p in pictures.items()})
    return scores


def _score(asked: Sequence[Request], made: Tensor, real: dict[tuple[str, str], Tensor]) -> VisualScore:
    """made [R, n, F]; the similarity of two pictures is the mean over tokens of the cosine."""
    cosines, ranks = [0.0] * len(asked), [0] * len(asked)
    gallery_size = 0
    for style in {request.style for request in asked}:
        concepts = sorted(concept for concept, own in real if own == style)
        gallery = torch.stack([real[concept, style] for concept in concepts])
        gallery_size = max(gallery_size, len(concepts))
        rows = [i for i, request in enumerate(asked) if request.style == style]
        targets = [concepts.index(asked[i].concept) for i in rows]
        scale = gallery.shape[1] ** -0.5
        mine, theirs = (tokens.flatten(1) * scale for tokens in (made[rows], gallery))
        for row, target, rank in zip(rows, targets, retrieval_ranks(mine, theirs, targets), strict=True):
            ranks[row] = rank
            cosines[row] = float((made[row] * gallery[target]).sum(-1).mean())
    return VisualScore(
        cosine=mean(cosines),
        top1=retrieval_score(ranks, top=1, gallery_size=gallery_size),
        top5=retrieval_score(ranks, top=5, gallery_size=gallery_size),
    )


def _drawings(data: Path, file: str) -> list[Sample]:
    path = data / f"{file}_draw.jsonl"
    return read_samples(path) if path.is_file() and path.stat().st_size else []


def _text(sample: Sample) -> str:
    return "".join(part for part in sample.messages[0].parts if isinstance(part, str))
