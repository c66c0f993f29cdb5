"""MetaMorph's qualitative questions as sets of prompts: who draws the right thing must know it, not only its name.

Each prompt describes an emoji without naming it; what is drawn is looked up among the real images of all emoji.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from diptych.data.samples import Message
from diptych.evaluate.answering import Sampling, answer_in_images
from diptych.evaluate.emoji_gallery import ENCODER, Combination, hash_gallery, read_combinations
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
    summarise_means,
)
from diptych.evaluate.suites.suite_data import EMOJI_ASSETS, find_emoji_set

TOPS = (1, 5)


@dataclass(frozen=True)
class ConceptPrompt:
    """`right`: concepts of the emoji set, any of which may be drawn; `others`: those that it is to be told from."""

    prompt: str
    right: tuple[str, ...]
    others: tuple[str, ...] = ()


class ConceptPrompts:
    """Prompts that ask for a concept; kinds: none. A drawing may have any style."""

    version = 1

    def __init__(
        self,
        name: str,
        prompts: Sequence[ConceptPrompt],
        *,
        words: str,
        data: Path | None = None,
        encoder: Any = None,
    ) -> None:
        """`data`: a built emoji set that holds all concepts asked for. `encoder`: what judges, in place of ENCODER."""
        self.name = name
        self.words = (
            f"{words} What is drawn is compared with the real images of all emoji, by the cosine of {ENCODER} features "
            "at the size that the morph draws; an emoji is as near as the nearest of its styles."
        )
        self.metrics = tuple(
            metric
            for metric in (
                Metric("retrieval_top1", "right thing first"),
                Metric("retrieval_top5", "right thing among the first five"),
                Metric("told_apart", "nearer to the right thing than to those like it"),
            )
            if metric.name != "told_apart" or any(prompt.others for prompt in prompts)
        )
        self._judge = PictureJudge(encoder)
        self.needs = Needs(("draws",), (*self._judge.assets, *(() if data is not None else EMOJI_ASSETS)))
        self._prompts = {f"{number:03d}": prompt for number, prompt in enumerate(prompts)}
        self._data = data
        self.judge_hashes: Mapping[str, str] = {}
        self._gallery: list[Combination] = []
        self._real = torch.zeros(0)

    def load_examples(self, progress: Progress) -> list[Example]:
        folder = find_emoji_set(self._data, progress)
        self._gallery = read_combinations(folder)
        files = {c.concept: c.file for c in self._gallery}
        self.judge_hashes = {"gallery": hash_gallery(self._gallery)}
        named = {name for prompt in self._prompts.values() for name in (*prompt.right, *prompt.others)}
        if missing := sorted(named - files.keys()):
            raise ValueError(
                f"the emoji set in {folder} lacks {', '.join(missing[:5])}{' ...' if missing[5:] else ''}, which suite "
                f"{self.name} asks for; build it with all concepts (diptych data build emoji)"
            )
        return [
            Example(
                id=id,
                messages=(Message("user", (prompt.prompt,)),),
                reference=" or ".join(prompt.right),
                reference_image=files[prompt.right[0]],
            )
            for id, prompt in self._prompts.items()
        ]

    def prepare(self, morph: Any, progress: Progress) -> None:
        self._real = normalize(self._judge.prepare(morph, [c.file for c in self._gallery], progress), dim=-1)

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        drawn = answer_in_images(morph, [e.conversation() for e in examples], sampling, ids=[e.id for e in examples])
        return [Answer(images=(image,)) for image in drawn]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        mine = normalize(self._judge.embed([answer.images[0] for answer in answers]), dim=-1)
        nearness = [self._by_concept(row) for row in (mine @ self._real.T).tolist()]
        return [
            score_nearness(near, self._prompts[example.id]) for example, near in zip(examples, nearness, strict=True)
        ]

    def _by_concept(self, similarities: list[float]) -> dict[str, float]:
        nearest: dict[str, float] = {}
        for combination, similarity in zip(self._gallery, similarities, strict=True):
            nearest[combination.concept] = max(similarity, nearest.get(combination.concept, -1.0))
        return nearest

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        """Who always draws what is asked for most often, and who draws any emoji; to be told apart from those like it,
        any of the right and the others."""
        asked = [self._prompts[example.id] for example in examples]
        num = len({c.concept for c in self._gallery})
        commonest = [name for name, _ in Counter(name for prompt in asked for name in prompt.right).most_common()]
        found: dict[str, Baselines] = {}
        for top in TOPS:
            majority = sum(not set(commonest[:top]).isdisjoint(prompt.right) for prompt in asked) / len(asked)
            missed = sum(comb(num - len(p.right), top) / comb(num, top) for p in asked) / len(asked)
            found[f"retrieval_top{top}"] = Baselines(majority, 1 - missed)
        if alike := [len(p.right) / len(p.right + p.others) for p in asked if p.others]:
            found["told_apart"] = Baselines(chance=sum(alike) / len(alike))
        return found

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        return summarise_means(self, examples, rows)


def score_nearness(nearness: dict[str, float], prompt: ConceptPrompt) -> Scores:
    """By the cosine of each concept to what was drawn. Ties count against the drawing."""
    best = max(nearness[name] for name in prompt.right)
    rank = sum(near >= best for name, near in nearness.items() if name not in prompt.right)
    scores = {f"retrieval_top{top}": float(rank < top) for top in TOPS}
    if prompt.others:
        scores["told_apart"] = float(best > max(nearness[name] for name in prompt.others))
    return scores


def read_prompts(name: str) -> list[ConceptPrompt]:
    """Of a file beside this module."""
    entries = json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return [ConceptPrompt(e["prompt"], tuple(e["right"]), tuple(e.get("not", ()))) for e in entries]


def world_knowledge(data: Path | None) -> ConceptPrompts:
    words = "Things asked for by what is known of them, or by a rarer name: a mountain, a flower, an inventor."
    return ConceptPrompts("world-knowledge", read_prompts("world_knowledge.json"), words=words, data=data)


def semantic_nuance(data: Path | None) -> ConceptPrompts:
    words = "One of several things that are alike but for a word: open or closed, with or without, the first or second."
    return ConceptPrompts("semantic-nuance", read_prompts("semantic_nuance.json"), words=words, data=data)


def implicit_reasoning(data: Path | None) -> ConceptPrompts:
    words = "Things that the prompt only leads to, by a step of thought: what a caterpillar turns into."
    return ConceptPrompts("implicit-reasoning", read_prompts("implicit_reasoning.json"), words=words, data=data)
