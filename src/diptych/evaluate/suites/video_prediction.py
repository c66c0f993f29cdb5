"""Video: frames of a clip in, the frames around them out, as the pure-video set asks; and how far frames lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.data.builders.concept_splits import HELD_OUT
from diptych.data.samples import Sample
from diptych.evaluate.answering import Sampling, answer_in_images, answer_in_text
from diptych.evaluate.emoji_gallery import ENCODER
from diptych.evaluate.naming import is_named
from diptych.evaluate.picture_judge import PictureJudge
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
    answer_baselines,
    summarise_means,
)
from diptych.evaluate.suites.suite_data import CLIP_ASSETS, find_pure_video, read_splits


class VideoPrediction:
    """Kinds: the tasks of builders/pure_video.py. Of several frames that are asked for, the first is drawn."""

    name = "video"
    version = 1
    words = (
        "Frames of animated emoji, and the frames later, before or between them, or in their order; of things, of "
        "colours and of combinations that the training files of the six types never show. Of several frames that "
        "are asked for, the first is drawn and compared, by the cosine of "
        f"{ENCODER} features at the size that the morph draws. Right frame: the nearest of all frames of its sample, "
        "those shown and those asked for; majority: the last frame shown, drawn again. Right clip: the nearest of the "
        "right frames of all samples shows the same thing. How many seconds lie between frames is answered in words."
    )
    metrics = (
        Metric("frame_right", "right frame"),
        Metric("clip_right", "right clip"),
        Metric("exact", "exact answers"),
    )

    def __init__(self, data: Path | None = None, *, encoder: Any = None) -> None:
        """`data`: a built pure-video set. `encoder`: what judges, in place of ENCODER."""
        self._judge = PictureJudge(encoder)
        self.needs = Needs(("reads", "draws"), (*self._judge.assets, *(() if data is not None else CLIP_ASSETS)))
        self._data = data
        self._all: list[Example] = []
        self._frames: dict[str, tuple[Path, ...]] = {}
        self._things: dict[str, str] = {}
        self._right: list[tuple[Path, str]] = []
        self._features: dict[Path, Tensor] = {}
        self._right_features = torch.zeros(0)

    def load_examples(self, progress: Progress) -> list[Example]:
        folder = find_pure_video(self._data, progress)
        self._all, self._frames, self._things, self._right = [], {}, {}, []
        for id, sample in read_splits(folder, HELD_OUT):
            example = _example(folder, id, sample)
            self._all.append(example)
            if example.reference_image is not None:
                self._things[id] = str(sample.meta["concept"])
                self._right.append((example.reference_image, self._things[id]))
                self._frames[id] = tuple(dict.fromkeys(folder / image for image in sample.images))
        return self._all

    def prepare(self, morph: Any, progress: Progress) -> None:
        files = sorted({file for frames in self._frames.values() for file in frames})
        features = normalize(self._judge.prepare(morph, files, progress), dim=-1)
        self._features = dict(zip(files, features, strict=True))
        self._right_features = torch.stack([self._features[file] for file, _ in self._right])

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        drawn = [e for e in examples if e.reference_image is not None]
        told = [e for e in examples if e.reference_image is None]
        answers: dict[str, Answer] = {}
        if drawn:
            images = answer_in_images(morph, [e.conversation() for e in drawn], sampling, ids=[e.id for e in drawn])
            answers |= {e.id: Answer(images=(image,)) for e, image in zip(drawn, images, strict=True)}
        if told:
            texts = answer_in_text(morph, [e.conversation() for e in told])
            answers |= {e.id: Answer(text) for e, text in zip(told, texts, strict=True)}
        return [answers[e.id] for e in examples]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        return [self._score(example, answer) for example, answer in zip(examples, answers, strict=True)]

    def _score(self, example: Example, answer: Answer) -> Scores:
        if example.reference_image is None:
            return {"exact": float(is_named(answer.text, example.reference))}
        mine = normalize(self._judge.embed(answer.images), dim=-1)[0]
        near = {file: float(mine @ self._features[file]) for file in self._frames[example.id]}
        right = near.pop(example.reference_image)
        thing = self._things[example.id]
        same, foreign = [], [-1.0]
        for (_, other), cosine in zip(self._right, (self._right_features @ mine).tolist(), strict=True):
            (same if other == thing else foreign).append(cosine)
        return {
            "frame_right": float(all(right > other for other in near.values())),
            "clip_right": float(max(same) > max(foreign)),
        }

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        found: dict[str, Baselines] = {}
        if drawn := [e for e in examples if e.reference_image is not None]:
            again = sum(e.images[-1] == e.reference_image for e in drawn) / len(drawn)
            chance = sum(1 / len(self._frames[e.id]) for e in drawn) / len(drawn)
            things = list(self._things.values())
            found["frame_right"] = Baselines(again, chance)
            found["clip_right"] = Baselines(
                chance=sum(things.count(self._things[e.id]) for e in drawn) / len(things) / len(drawn)
            )
        if told := [e for e in examples if e.reference_image is None]:
            found["exact"] = answer_baselines(told, among=[e for e in self._all if e.reference_image is None])
        return found

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        return summarise_means(self, examples, rows)


def _example(folder: Path, id: str, sample: Sample) -> Example:
    """The request alone; its images are those that it shows, in their order."""
    (request, answer) = sample.messages
    shown = [part for part in request.parts if isinstance(part, int)]
    asked = [part for part in answer.parts if isinstance(part, int)]
    places = iter(range(len(shown)))
    parts = tuple(next(places) if isinstance(part, int) else part for part in request.parts)
    return Example(
        id=id,
        messages=(replace(request, parts=parts),),
        images=tuple(folder / sample.images[part] for part in shown),
        reference="" if asked else str(answer.parts[0]),
        reference_image=folder / sample.images[asked[0]] if asked else None,
        kind=str(sample.meta["task"]),
    )
