"""Captions: a picture described in words, scored by CIDEr-D and BLEU of coco-caption (pycocoevalcap)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.data.builders.emoji import STYLE_WORDS
from diptych.data.samples import Message
from diptych.evaluate.answering import Sampling, answer_in_text
from diptych.evaluate.bootstrap import Estimate, resample_sums
from diptych.evaluate.caption_scoring import CaptionScorer, CaptionScoring
from diptych.evaluate.emoji_gallery import read_combinations
from diptych.evaluate.naming import is_named, normalise_answer
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

QUESTION = "Give this picture a caption, such as: rocket in 3D style.\n"
MAX_NEW_TOKENS = 32


class Captioning:
    """Every picture of the emoji set, in both styles; kinds: `trained`, `held out`, as the set splits them."""

    name = "captioning"
    version = 2
    words = (
        "Emoji in two styles are to be described as they are asked for in training sets: rocket in 3D style. One right "
        "caption each; case, punctuation and articles do not count. CIDEr-D (10 at most): words and n-grams weighted "
        "by how rare they are in all captions of the set. BLEU-4: of all captions together. Majority: always the "
        "caption that is commonest (of equals, the first in the alphabet); chance: the caption of another picture. "
        "Alignment: the cosine of the picture and the caption that was given, in the space of the carried judge of "
        "captions, which knows emoji only; the right caption's stands beside it."
    )
    metrics = (
        Metric("cider_d", "CIDEr-D", unit=""),
        Metric("bleu4", "BLEU-4", unit=""),
        Metric("names_thing", "caption holds the right name"),
        Metric("exact", "exact captions"),
        Metric("alignment", "alignment of picture and caption", unit=""),
        Metric("alignment_of_right", "alignment of picture and right caption", unit=""),
    )

    def __init__(self, data: Path | None = None, *, captions: CaptionScoring | None = None) -> None:
        """`captions`: what scores alignment, in place of the carried judge of captions."""
        self._captions = CaptionScorer() if captions is None else captions
        self.judge_hashes: Mapping[str, str] = {}
        assets = (*self._captions.assets, *(() if data is not None else EMOJI_ASSETS))
        self.needs = Needs(("reads",), assets, {"pycocoevalcap": "eval"})
        self._data = data
        self._files: dict[str, Path] = {}
        self._pictures_placed: dict[str, Tensor] = {}  # by id, where the judge of captions places them
        self._right_placed: dict[str, Tensor] = {}  # by caption, those of a run
        self._concepts: dict[str, str] = {}
        self._references: dict[str, str] = {}

    def load_examples(self, progress: Progress) -> list[Example]:
        combinations = {f"{c.style}/{c.concept}": c for c in read_combinations(find_emoji_set(self._data, progress))}
        self._files = {id: c.file for id, c in combinations.items()}
        self.judge_hashes = self._captions.find()
        self._concepts = {id: c.concept for id, c in combinations.items()}
        self._references = {id: f"{c.concept} in {STYLE_WORDS[c.style]} style" for id, c in combinations.items()}
        return [
            Example(
                id=id,
                messages=(Message("user", (QUESTION, 0)),),
                images=(c.file,),
                reference=self._references[id],
                kind="held out" if c.held_out else "trained",
            )
            for id, c in combinations.items()
        ]

    def prepare(self, morph: Any, progress: Progress) -> None:
        pass

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        del sampling  # the likeliest answer
        asked = [e.conversation() for e in examples]
        return [Answer(text) for text in answer_in_text(morph, asked, max_new_tokens=MAX_NEW_TOKENS)]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        """Alignment is with the example's own picture, whatever was shown: a control that shuffles images is told."""
        given = [answer.text for answer in answers]
        right = [self._references[example.id] for example in examples]
        placed = self._captions.place_captions([*given, *right]).split(len(given))
        pictures = self._place_pictures(examples)
        aligned = [(captions * pictures).sum(dim=1).tolist() for captions in placed]
        return [
            scores | {"alignment": own, "alignment_of_right": of_right}
            for scores, own, of_right in zip(self._score_words(examples, given), *aligned, strict=True)
        ]

    def _place_pictures(self, examples: Sequence[Example]) -> Tensor:
        if missing := [example.id for example in examples if example.id not in self._pictures_placed]:
            placed = self._captions.place_files([self._files[id] for id in missing], lambda what, done, total: None)
            self._pictures_placed |= dict(zip(missing, placed, strict=True))
        return torch.stack([self._pictures_placed[example.id] for example in examples])

    def _score_words(self, examples: Sequence[Example], given: Sequence[str]) -> list[Scores]:
        captions = {example.id: caption for example, caption in zip(examples, given, strict=True)}
        cider = score_cider(captions, self._references)
        return [
            {
                "cider_d": cider[id],
                "names_thing": float(_holds(caption, self._concepts[id])),
                "exact": float(is_named(caption, self._references[id])),
            }
            for id, caption in captions.items()
        ]

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        right = [example.reference for example in examples]
        counts = Counter(right)
        commonest = min(counts, key=lambda caption: (-counts[caption], caption))
        drawn = sorted(range(len(right)), key=lambda place: hashlib.sha256(examples[place].id.encode()).digest())
        others = dict(zip(drawn, [*drawn[1:], *drawn[:1]], strict=True))
        of_majority = self._means(examples, [commonest] * len(right))
        of_chance = self._means(examples, [right[others[place]] for place in range(len(right))])
        return {name: Baselines(of_majority[name], of_chance[name]) for name in of_majority}

    def _means(self, examples: Sequence[Example], captions: Sequence[str]) -> Scores:
        scored = self._score_words(examples, captions)
        means = {name: sum(one[name] for one in scored) / len(scored) for name in scored[0]}
        if missing := sorted(set(captions) - self._right_placed.keys()):
            self._right_placed |= dict(zip(missing, self._captions.place_captions(missing), strict=True))
        placed = torch.stack([self._right_placed[caption] for caption in captions])
        means["alignment"] = float((placed * self._place_pictures(examples)).sum(dim=1).mean())
        return means | {"bleu4": score_bleu(captions, [example.reference for example in examples])}

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        scores = summarise_means(self, examples, rows)
        bleu = estimate_bleu([row.answer for row in rows], [example.reference for example in examples])
        return scores | {"bleu4": MetricScore.of(bleu, self.baselines(examples)["bleu4"])}


def score_cider(captions: Mapping[str, str], references: Mapping[str, str]) -> dict[str, float]:
    """CIDEr-D of captions by id. How rare a word is, is told by all `references`, so that it does not hang on how many
    captions are scored at once."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer()
    for id, reference in references.items():
        scorer += (normalise_answer(captions.get(id, "")), [normalise_answer(reference)])
    _, scores = scorer.compute_score()
    return {id: float(score) for id, score in zip(references, scores, strict=True) if id in captions}


def score_bleu(captions: Sequence[str], references: Sequence[str]) -> float:
    """BLEU-4 of all captions together."""
    return _bleu(_bleu_scorer(captions, references))


def estimate_bleu(captions: Sequence[str], references: Sequence[str]) -> Estimate:
    """BLEU-4 of all captions together, and of resamples of them: it is made of sums over captions."""
    scorer = _bleu_scorer(captions, references)
    mean = _bleu(scorer)
    rows = np.array([[c["testlen"], c["reflen"][0], *c["guess"], *c["correct"]] for c in scorer.ctest])
    resampled = []
    for length, wanted, *counts in resample_sums(rows).tolist():
        both = {"testlen": length, "reflen": [wanted], "guess": counts[:4], "correct": counts[4:]}
        scorer.ctest = [both]  # one caption with the sums of all has their score
        resampled.append(_bleu(scorer))
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(mean, (float(low), float(high)), len(captions))


def _bleu_scorer(captions: Sequence[str], references: Sequence[str]) -> Any:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for caption, reference in zip(captions, references, strict=True):
        scorer += (normalise_answer(caption), [normalise_answer(reference)])
    return scorer


def _bleu(scorer: Any) -> float:
    bleu, _ = scorer.recompute_score(option="closest", verbose=0)
    return float(bleu[3])


def _holds(caption: str, name: str) -> bool:
    return f" {normalise_answer(name)} " in f" {normalise_answer(caption)} "
