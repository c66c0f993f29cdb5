"""Scores of the tasks made from emoji (data/builders/emoji_tasks.py): the right answer of every sample is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diptych.data.builders.emoji_tasks import NAMES_APART, box_overlap, parse_box
from diptych.data.images import image_to_tensor, open_image, tensor_to_image
from diptych.data.samples import Sample, read_samples
from diptych.evaluate.answering import answer_in_text
from diptych.evaluate.naming import is_named
from diptych.evaluate.retrieval import PooledEncoder, embed_images, retrieval_ranks, retrieval_score
from diptych.evaluate.scores import Score, share
from diptych.evaluate.suite import Progress

ANSWER_TOKENS = 60
"""Room for the names of four things."""


@dataclass(frozen=True)
class TaskScores:
    """`shares` by name; `means` by name: what was reached, and what doing nothing gives (None: nothing to compare)."""

    shares: dict[str, Score]
    means: dict[str, tuple[float, float | None]]
    pictures: list[tuple[str, list[Image.Image]]]
    """Of edits and paintings: the request, with what was shown, what was drawn and the right answer."""


def score_tasks(
    morph: Any,
    data: Path,
    encoder: PooledEncoder,
    *,
    split: str = "held_out",
    num: int = 200,
    batch_size: int = 50,
    progress: Progress = lambda what, done, total: None,
    **drawing: Any,
) -> TaskScores:
    """Over the first `num` samples of each task of a split ("train", "test", "held_out"). `drawing`: of generation.

    An edit is right if, among the right answers of all edits of its kind, its own is nearest by the encoder's features;
    it is made if it is nearer in pixels to the right answer than to what was shown. Paintings: PSNR. A box is right if
    it overlaps the true one by more than a half (intersection over union). Of the things in a picture each one counts.
    """
    shares: dict[str, Score] = {}
    means: dict[str, tuple[float, float | None]] = {}
    pictures: list[tuple[str, list[Image.Image]]] = []
    for task in ("edit", "paint"):
        samples = read_samples(data / f"{split}_{task}.jsonl")[:num]
        drawn = _draw(morph, data, samples, task, batch_size, progress, drawing)
        size = morph.recipe.image_size
        shown, answers = (_load(data, samples, number, size) for number in (0, 1))
        for kind in sorted({str(sample.meta["kind"]) for sample in samples}):
            rows = [row for row, sample in enumerate(samples) if sample.meta["kind"] == kind]
            name = f"{task}, {kind}"
            means[f"{name}: PSNR"] = _psnr(drawn[rows], answers[rows]), _psnr(shown[rows], answers[rows])
            if task == "edit":
                gallery, targets = _distinct(answers[rows])
                features = [embed_images(encoder, images) for images in (drawn[rows], gallery)]
                ranks = retrieval_ranks(*features, targets=targets)
                shares[f"{name}: right answer first"] = retrieval_score(ranks, top=1, gallery_size=len(gallery))
                gap_before = (drawn[rows] - shown[rows]).square().mean(dim=(1, 2, 3))
                gap_after = (drawn[rows] - answers[rows]).square().mean(dim=(1, 2, 3))
                shares[f"{name}: made"] = share((gap_after < gap_before).tolist(), chance=0.5)
        pictures += _pictures(data, samples, drawn)
    boxes = read_samples(data / f"{split}_locate.jsonl")[:num]
    found = [parse_box(answer) for answer in _ask(morph, data, boxes, "locate", batch_size, progress)]
    true = [[edge / 100 for edge in sample.meta["box"]] for sample in boxes]
    mean_box = [fmean(edges) for edges in zip(*true, strict=True)]
    overlaps = [0.0 if box is None else box_overlap(box, own) for box, own in zip(found, true, strict=True)]
    guessed = [box_overlap(mean_box, own) for own in true]
    means["locate: overlap"] = fmean(overlaps), fmean(guessed)
    chance = fmean(overlap > 0.5 for overlap in guessed)
    shares["locate: overlap above a half"] = share([overlap > 0.5 for overlap in overlaps], chance=chance)
    questions = read_samples(data / f"{split}_ask.jsonl")[:num]
    answers = _ask(morph, data, questions, "ask", batch_size, progress)
    for kind in sorted({str(sample.meta["kind"]) for sample in questions}):
        pairs = [(a, _words(s)) for a, s in zip(answers, questions, strict=True) if s.meta["kind"] == kind]
        commonest = max(sum(own == other for _, other in pairs) for _, own in pairs)
        shares[f"ask, {kind}"] = share([is_named(*pair) for pair in pairs], chance=commonest / len(pairs))
    pictured = read_samples(data / f"{split}_name.jsonl")[:num]
    answers = _ask(morph, data, pictured, "name", batch_size, progress)
    for kind in sorted({str(sample.meta["kind"]) for sample in pictured}):
        lists = [
            (answer.strip().split(NAMES_APART), _words(sample).split(NAMES_APART))
            for answer, sample in zip(answers, pictured, strict=True)
            if sample.meta["kind"] == kind
        ]
        own = [name for _, names in lists for name in names]
        commonest = max(map(own.count, own)) / len(own)
        # No more names count than there are things: to tell every name there is finds nothing.
        found = [name in told[: len(names)] for told, names in lists for name in names]
        shares[f"name, {kind}"] = share(found, chance=commonest)
        if kind == "scene":
            shares["name, scene: all, in order, no others"] = share([told == names for told, names in lists], chance=0)
    return TaskScores(shares, means, pictures)


def _conversation(data: Path, sample: Sample) -> list[dict[str, Any]]:
    user = sample.messages[0]
    parts = [part if isinstance(part, str) else open_image(data / sample.images[part]) for part in user.parts]
    return [{"role": "user", "content": parts}]


def _draw(
    morph: Any,
    data: Path,
    samples: Sequence[Sample],
    task: str,
    batch_size: int,
    progress: Progress,
    drawing: dict[str, Any],
) -> Tensor:
    drawn: list[Tensor] = []
    for start in range(0, len(samples), batch_size):
        chunk = [_conversation(data, sample) for sample in samples[start : start + batch_size]]
        for (picture,) in morph.generate_batch(chunk, generation_mode="image", **drawing):
            drawn.append(image_to_tensor(picture, morph.recipe.image_size))
        progress(f"drawing {task}", len(drawn), len(samples))
    return torch.stack(drawn)


def _ask(
    morph: Any, data: Path, samples: Sequence[Sample], task: str, batch_size: int, progress: Progress
) -> list[str]:
    answers: list[str] = []
    for start in range(0, len(samples), batch_size):
        chunk = [_conversation(data, sample) for sample in samples[start : start + batch_size]]
        answers += answer_in_text(morph, chunk, max_new_tokens=ANSWER_TOKENS)
        progress(f"asking {task}", len(answers), len(samples))
    return answers


def _words(sample: Sample) -> str:
    return str(sample.messages[1].parts[0])


def _load(data: Path, samples: Sequence[Sample], number: int, size: int) -> Tensor:
    return torch.stack([image_to_tensor(open_image(data / sample.images[number]), size) for sample in samples])


def _distinct(images: Tensor) -> tuple[Tensor, list[int]]:
    """Images without repeats, and where each of the given ones is among them."""
    places: dict[bytes, int] = {}
    targets = [places.setdefault(image.numpy().tobytes(), len(places)) for image in images]
    return torch.stack([images[targets.index(place)] for place in range(len(places))]), targets


def _psnr(images: Tensor, real: Tensor) -> float:
    """Decibels, the mean over images in -1..1."""
    error = (images - real).square().mean(dim=(1, 2, 3)).clamp_min(1e-10) / 4
    return float((-10 * error.log10()).mean())


def _pictures(data: Path, samples: Sequence[Sample], drawn: Tensor) -> list[tuple[str, list[Image.Image]]]:
    return [
        (
            str(sample.messages[0].parts[0]).strip(),
            [open_image(data / sample.images[0]), tensor_to_image(made), open_image(data / sample.images[1])],
        )
        for sample, made in zip(samples, drawn, strict=True)
    ]
