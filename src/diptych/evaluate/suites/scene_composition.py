"""Composition: are the things that were asked for there, so many, so coloured, and in their places?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.backbones.scene_detector import SceneDetector, load_scene_detector
from diptych.data.builders.scene_prompts import ASKED, SceneRequest, request_of
from diptych.data.images import open_image
from diptych.data.samples import Sample, read_samples
from diptych.evaluate.answering import Sampling, answer_in_images
from diptych.evaluate.scene_judging import Found, describe_things, find_things, is_fulfilled, is_shown, verdicts
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
from diptych.evaluate.suites.suite_data import EMOJI_ASSETS, find_emoji_scenes

CHECKS: dict[str, Callable[[SceneRequest, Sequence[Found]], bool]] = {
    "as_asked": is_fulfilled,
    "things_there": is_shown,
}


class SceneComposition:
    """Scenes of emoji by five kinds of prompts: `one object`, `two objects`, `count`, `colour`, `position`."""

    name = "t2i-compositional"
    version = 1
    words = (
        "Scenes of emoji drawn from words, as GenEval asks for photographs: one thing, two things, two to four of one, "
        "one in a colour, one beside another. But for one thing, no training scene of diptych data build emoji-scenes "
        "was asked for in these words, nor has those two things together, so many of it, or it in that colour, unless "
        "it is its own. A carried detector of 36 things says what stands in a drawing; a number must be exact, other "
        "things may be there. How far to trust it stands in the same table: the share of real scenes that pass, and, "
        "as chance and majority, what passes of the kind's real scenes if one is shown for every prompt: any one made "
        "for another prompt, and the one that passes most often."
    )
    metrics = (
        Metric("as_asked", "drawn as asked"),
        Metric("things_there", "all things asked for are there"),
        Metric("detector_on_real", "the detector passes the real scene"),
    )

    def __init__(self, data: Path | None = None, *, detector: SceneDetector | None = None) -> None:
        """`detector`: what judges, in place of the carried one."""
        self.needs = Needs(("draws",), () if data is not None else EMOJI_ASSETS)
        self._data, self._detector = data, detector
        self._requests: dict[str, SceneRequest] = {}
        self._scenes: dict[str, Path] = {}
        self._real: dict[str, list[Found]] = {}

    def load_examples(self, progress: Progress) -> list[Example]:
        folder = find_emoji_scenes(self._data, progress)
        examples = []
        for split in ASKED:
            if not (folder / f"{split}.jsonl").is_file():
                raise ValueError(
                    f"{folder} holds no {split}.jsonl; give a folder made by diptych data build emoji-scenes (--data), "
                    "or none to have it built"
                )
            examples += [self._example(folder, sample) for sample in read_samples(folder / f"{split}.jsonl")]
        self._real = {}
        return examples

    def _example(self, folder: Path, sample: Sample) -> Example:
        request = request_of(sample)
        id = f"{request.kind}/{request.caption}/{request.style}"
        self._requests[id], self._scenes[id] = request, folder / sample.images[0]
        return Example(
            id=id,
            messages=sample.messages[:-1],
            reference=request.caption,
            reference_image=self._scenes[id],
            kind=request.kind,
        )

    def prepare(self, morph: Any, progress: Progress) -> None:
        """Refuses a detector that does not know a thing or a colour that is asked for."""
        detector = self._judge()
        for known, asked in (
            (detector.names, {thing for request in self._requests.values() for thing in request.things}),
            (detector.colours, {request.colour for request in self._requests.values()} - {""}),
        ):
            if unknown := sorted(asked - set(known)):
                raise ValueError(f"the detector of {self.name} does not know {', '.join(unknown)}; give other scenes")

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """The drawing, and in words what the detector finds in it."""
        drawn = answer_in_images(morph, [e.conversation() for e in examples], sampling, ids=[e.id for e in examples])
        found = find_things(self._judge(), drawn)
        return [Answer(describe_things(things), (image,)) for image, things in zip(drawn, found, strict=True)]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        found = find_things(self._judge(), [answer.images[0] for answer in answers])
        real = self._find_in_real()
        scores = []
        for example, things in zip(examples, found, strict=True):
            request = self._requests[example.id]
            own = {name: float(check(request, things)) for name, check in CHECKS.items()}
            scores.append(own | {"detector_on_real": float(is_fulfilled(request, real[example.id]))})
        return scores

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        """Of who draws one real scene of the kind, for other prompts than its own (chance: any; majority: the one that
        passes most often)."""
        return {name: self._of_other_scenes(examples, check) for name, check in CHECKS.items()}

    def _of_other_scenes(
        self, examples: Sequence[Example], check: Callable[[SceneRequest, Sequence[Found]], bool]
    ) -> Baselines:
        real = self._find_in_real()
        majority = chance = 0.0
        for kind in {example.kind for example in examples}:
            asked = [example.id for example in examples if example.kind == kind]
            scenes = [id for id, request in self._requests.items() if request.kind == kind]
            passed = verdicts([self._requests[id] for id in asked], [real[id] for id in scenes], check)
            others = np.array([[id != scene for scene in scenes] for id in asked])
            if len(scenes) < 2:
                return Baselines()
            majority += float(passed.sum(axis=0).max())
            chance += float(((passed & others).sum(axis=1) / others.sum(axis=1)).sum())
        return Baselines(majority / len(examples), chance / len(examples))

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        return summarise_means(self, examples, rows)

    def _judge(self) -> SceneDetector:
        if self._detector is None:
            self._detector = load_scene_detector()
        return self._detector

    def _find_in_real(self) -> dict[str, list[Found]]:
        if not self._real:
            found = find_things(self._judge(), [open_image(path) for path in self._scenes.values()])
            self._real = dict(zip(self._scenes, found, strict=True))
        return self._real
