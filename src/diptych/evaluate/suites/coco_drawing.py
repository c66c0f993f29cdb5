"""COCO-30K: captions drawn, and the drawings as a set compared with real images, by FID and KID."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.backbones.cache_folder import hash_file
from diptych.data.images import open_image
from diptych.evaluate.answering import Sampling, answer_in_images
from diptych.evaluate.metrics.feature_networks import EMBEDDED, INCEPTION, FeatureNetwork, load_feature_network
from diptych.evaluate.metrics.reference_statistics import Reference, read_reference
from diptych.evaluate.metrics.set_distances import FEWEST, estimate_kid, frechet_distance
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
from diptych.evaluate.suites.prompt_files import NUM_COCO, read_coco_prompts
from diptych.evaluate.suites.prompt_judges import CLIP_SCORE, NO_JUDGES, Judges, PromptScorer

NAMES = {INCEPTION: ("fid", "kid"), EMBEDDED: ("fd_efflite0", "kid_efflite0")}
"""Of the Fréchet distance and the kernel distance, by network: those of another network are not called FID and KID."""


class CocoDrawing:
    """The user's folder holds captions and the statistics of real images (see docs/evaluation.md)."""

    name = "coco-30k"
    version = 1
    words = (
        f"Captions of COCO ({NUM_COCO:,} of them, or those of prompts.jsonl), one drawing each, compared as a set with "
        "the real images of the reference file. FID and KID: by Inception's features, where --inception gives its "
        "weights; otherwise by those of the embedded EfficientNet-Lite0, and then named FD-EffLite0 and KID-EffLite0, "
        "which are not comparable with FID and KID. A Fréchet distance falls with the number of images, has no "
        "interval, and is told only of more drawings than features. CLIP score, where --clip gives a CLIP: 100 "
        "times the cosine of image and caption."
    )
    metrics = (
        Metric("fid", "FID", unit="", higher_is_better=False),
        Metric("fd_efflite0", "FD-EffLite0", unit="", higher_is_better=False),
        Metric("kid", "KID", unit="", higher_is_better=False),
        Metric("kid_efflite0", "KID-EffLite0", unit="", higher_is_better=False),
        CLIP_SCORE,
    )

    def __init__(self, data: Path | None = None, judges: Judges = NO_JUDGES) -> None:
        assets = () if judges.inception is not None else (EMBEDDED,)
        self.needs = Needs(("draws",), assets, {"torchmetrics": "eval"})
        self.judge_hashes: Mapping[str, str] = {}
        self._data, self._inception = data, judges.inception
        self._scorer = PromptScorer(judges.clip)
        self._network: FeatureNetwork | None = None
        self._reference: Reference | None = None
        self._drawn: dict[str, Tensor] = {}  # features [D] by id, of what was drawn in this process

    def load_examples(self, progress: Progress) -> list[Example]:
        if self._data is None:
            raise ValueError(
                "suite coco-30k draws captions and compares with real images: give --data coco-30k=DIR with "
                "captions_val2014.json (cocodataset.org) or prompts.jsonl, and reference.safetensors, made of the real "
                "images by: diptych eval-reference FOLDER --out DIR/reference.safetensors"
            )
        examples = read_coco_prompts(self._data)
        found = [self._data / f"reference.{suffix}" for suffix in ("safetensors", "npz")]
        found = [path for path in found if path.is_file()]
        if len(found) != 1:
            raise ValueError(
                f"{self._data} must hold either reference.safetensors or reference.npz; make one of the real images: "
                f"diptych eval-reference FOLDER --out {self._data / 'reference.safetensors'}"
            )
        self._reference = read_reference(found[0])
        self._network = load_feature_network(self._inception)
        self._check_network(found[0], self._reference, self._network)
        hashes = {self._network.name: self._network.hash, "reference": hash_file(found[0])}
        self.judge_hashes = hashes | self._scorer.find()
        return examples

    def _check_network(self, path: Path, reference: Reference, network: FeatureNetwork) -> None:
        if reference.network != network.name:
            remedy = "give its weights by --inception" if reference.network == INCEPTION else "leave --inception out"
            raise ValueError(
                f"{path} is of {reference.network}, and drawings would be judged by {network.name}; {remedy}"
            )
        if reference.network_hash not in ("", network.hash):
            raise ValueError(f"{path} is of other weights of {network.name}; make it again: diptych eval-reference")

    def prepare(self, morph: Any, progress: Progress) -> None:
        self._network = load_feature_network(self._inception, device=morph.device)
        self._scorer.load(morph)

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        drawn = answer_in_images(morph, [e.conversation() for e in examples], sampling, ids=[e.id for e in examples])
        return [Answer(images=(image,)) for image in drawn]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        assert self._network is not None, "examples come first"
        features = self._network.features([answer.images[0] for answer in answers])
        self._drawn |= {example.id: own for example, own in zip(examples, features, strict=True)}
        return self._scorer.score(examples, answers)

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        return {}

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        assert self._network is not None, "examples come first"
        assert self._reference is not None
        summary = summarise_means(self, examples, rows)
        drawn = torch.stack([self._features_of(row, folder, self._network) for row in rows])
        frechet, kernel = NAMES[self._network.name]
        if len(drawn) > drawn.shape[1]:
            distance = frechet_distance(drawn, self._reference.mean, self._reference.covariance)
            summary[frechet] = MetricScore(distance, None, len(drawn), Baselines())
        real = self._reference.features
        if real is not None and min(len(drawn), len(real)) >= FEWEST:
            found = estimate_kid(drawn, real, are_pairs=False)
            summary[kernel] = MetricScore.of(found)
        return summary

    def _features_of(self, row: Row, folder: Path, network: FeatureNetwork) -> Tensor:
        if row.id not in self._drawn:
            (self._drawn[row.id],) = network.features([open_image(folder / row.images[0])])
        return self._drawn[row.id]
