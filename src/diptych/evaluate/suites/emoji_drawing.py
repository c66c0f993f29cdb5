"""Drawing: is what is drawn from a name nearest to the real image of that name, and how do all drawings lie among the
real images?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.data.images import open_image
from diptych.evaluate.answering import Sampling, answer_in_images
from diptych.evaluate.caption_scoring import CaptionScorer, CaptionScoring
from diptych.evaluate.emoji_gallery import ENCODER, Combination, place_in_gallery, read_combinations
from diptych.evaluate.metrics.set_distances import FEWEST, estimate_diversity, estimate_kid
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


class EmojiDrawing:
    """Every combination of concept and style by name; kinds: `trained`, `held out`, as the emoji set splits them."""

    name = "emoji-t2i"
    version = 3
    words = (
        "Emoji drawn from their names in two styles. Each drawing is compared with the real images of all concepts in "
        f"its style, by the cosine of {ENCODER} features at the size that the morph draws: is the right concept "
        "first, or among the first five? Style right: the nearest real image of any style has the one asked for. "
        "Cosine: with the real image of the prompt; chance: that of another concept in the same style. Alignment: the "
        "cosine of drawing and prompt in the space of the carried judge of captions, which knows emoji only; beside it "
        "that of the real image; chance: the mean over real images of other concepts in the same style. KID-EffLite0: "
        "how far the drawings as a set lie from the real images of the same prompts, 0 if nowhere. Diversity: 1 - the "
        f"mean cosine of two different drawings. The last two are told of {FEWEST} drawings or more."
    )
    metrics = (
        Metric("retrieval_top1", "right concept first"),
        Metric("retrieval_top5", "right concept among the first five"),
        Metric("style_right", "style right"),
        Metric("cosine_to_real", "cosine to the real image", unit=""),
        Metric("alignment", "alignment of drawing and prompt", unit=""),
        Metric("alignment_of_real", "alignment of the real image and the prompt", unit=""),
        Metric("kid_efflite0", "KID-EffLite0", unit="", higher_is_better=False),
        Metric("diversity", "diversity of the drawings", unit=""),
        Metric("diversity_of_real", "diversity of the real images", unit=""),
    )

    def __init__(
        self, data: Path | None = None, *, encoder: Any = None, captions: CaptionScoring | None = None
    ) -> None:
        """`encoder`, `captions`: what judges, in place of ENCODER and of the carried judge of captions."""
        self._judge = PictureJudge(encoder)
        self._captions = CaptionScorer() if captions is None else captions
        self.judge_hashes: Mapping[str, str] = {}
        assets = (*self._judge.assets, *self._captions.assets, *(() if data is not None else EMOJI_ASSETS))
        self.needs = Needs(("draws",), assets, {"torchmetrics": "eval"})
        self._data = data
        self._gallery: list[Combination] = []
        self._by_id: dict[str, Combination] = {}
        self._real: dict[str, Tensor] = {}  # features [D] by id, of the whole gallery
        self._drawn: dict[str, Tensor] = {}  # of what was drawn in this process
        self._real_placed: dict[str, Tensor] = {}  # by id, where the judge of captions places the whole gallery
        self._prompts_placed: dict[str, Tensor] = {}  # and the prompts of a run

    def load_examples(self, progress: Progress) -> list[Example]:
        self._gallery = read_combinations(find_emoji_set(self._data, progress))
        self._by_id = {_id(c): c for c in self._gallery}
        self.judge_hashes = self._captions.find()
        return [
            Example(
                id=id,
                messages=c.messages,
                reference=c.concept,
                reference_image=c.file,
                kind="held out" if c.held_out else "trained",
            )
            for id, c in self._by_id.items()
        ]

    def prepare(self, morph: Any, progress: Progress) -> None:
        self._keep(self._judge.prepare(morph, self._files(), progress), progress)

    def _files(self) -> list[Path]:
        return [combination.file for combination in self._gallery]

    def _keep(self, features: Tensor, progress: Progress) -> None:
        self._real = dict(zip(self._by_id, features, strict=True))
        placed = self._captions.place_files(self._files(), progress)
        self._real_placed = dict(zip(self._by_id, placed, strict=True))

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        drawn = answer_in_images(morph, [e.conversation() for e in examples], sampling, ids=[e.id for e in examples])
        return [Answer(images=(image,)) for image in drawn]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        drawn = self._judge.embed([answer.images[0] for answer in answers])
        self._drawn |= {example.id: features for example, features in zip(examples, drawn, strict=True)}
        mine, real = normalize(drawn, dim=-1), self._unit(self._gallery)
        asked = [self._by_id[example.id] for example in examples]
        ranks, styles = place_in_gallery(mine, real, self._gallery, asked)
        cosines = (mine * self._unit(asked)).sum(dim=1).tolist()
        return [
            {f"retrieval_top{top}": float(rank < top) for top in TOPS}
            | {"style_right": float(style), "cosine_to_real": cosine}
            | aligned
            for rank, style, cosine, aligned in zip(
                ranks, styles, cosines, self._score_alignment(asked, answers), strict=True
            )
        ]

    def _score_alignment(self, asked: Sequence[Combination], answers: Sequence[Answer]) -> list[Scores]:
        prompts = self._captions.place_captions([c.prompt for c in asked])
        drawn = self._captions.place_pictures([answer.images[0] for answer in answers])
        real = torch.stack([self._real_placed[_id(c)] for c in asked])
        found = ((prompts * pictures).sum(dim=1).tolist() for pictures in (drawn, real))
        return [{"alignment": own, "alignment_of_real": of_real} for own, of_real in zip(*found, strict=True)]

    def _unit(self, combinations: Sequence[Combination]) -> Tensor:
        return normalize(torch.stack([self._real[_id(c)] for c in combinations]), dim=-1)

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        """Who always draws the commonest concept or style of these examples, and who draws any of the set."""
        asked = [self._by_id[example.id] for example in examples]
        concepts, styles = ({getattr(c, what) for c in self._gallery} for what in ("concept", "style"))
        by_concept = [count for _, count in Counter(c.concept for c in asked).most_common(max(TOPS))]
        by_style = max(Counter(c.style for c in asked).values())
        retrieval = {
            f"retrieval_top{top}": Baselines(sum(by_concept[:top]) / len(asked), min(1.0, top / len(concepts)))
            for top in TOPS
        }
        told = {"style_right": Baselines(by_style / len(asked), 1 / len(styles))}
        if self._real:
            told["cosine_to_real"] = Baselines(chance=self._chance_cosine(asked))
            told["alignment"] = Baselines(chance=self._chance_alignment(asked))
        return retrieval | told

    def _chance_cosine(self, asked: Sequence[Combination]) -> float:
        """The mean cosine of these real images with those of all other concepts in their style."""
        total = 0.0
        for style, num in Counter(c.style for c in asked).items():
            own, all_of_it = (self._unit([c for c in of if c.style == style]) for of in (asked, self._gallery))
            total += float((own @ all_of_it.sum(dim=0) - 1).sum()) / (len(all_of_it) - 1) if len(all_of_it) > 1 else num
        return total / len(asked)

    def _chance_alignment(self, asked: Sequence[Combination]) -> float:
        """The mean score of these prompts with the real images of all other concepts in their style."""
        missing = [c for c in asked if _id(c) not in self._prompts_placed]
        if missing:
            placed = self._captions.place_captions([c.prompt for c in missing])
            self._prompts_placed |= dict(zip(map(_id, missing), placed, strict=True))
        total = 0.0
        for style in {c.style for c in asked}:
            own = [c for c in asked if c.style == style]
            prompts = torch.stack([self._prompts_placed[_id(c)] for c in own])
            right = torch.stack([self._real_placed[_id(c)] for c in own])
            all_of_it = torch.stack([self._real_placed[_id(c)] for c in self._gallery if c.style == style])
            of_others = (prompts * (all_of_it.sum(dim=0) - right)).sum(dim=1) / max(len(all_of_it) - 1, 1)
            total += float(of_others.sum())
        return total / len(asked)

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        if not self._real:  # every row was there, so that nothing was prepared
            size = open_image(folder / rows[0].images[0]).width
            self._keep(self._judge.embed_files(self._files(), size=size, progress=_silent), _silent)
        summary = summarise_means(self, examples, rows)
        if len(rows) < FEWEST:
            return summary
        drawn = torch.stack([self._features_of(row, folder) for row in rows])
        real = torch.stack([self._real[example.id] for example in examples])
        of_set = {
            "kid_efflite0": estimate_kid(drawn, real, are_pairs=True),
            "diversity": estimate_diversity(drawn),
            "diversity_of_real": estimate_diversity(real),
        }
        return summary | {name: MetricScore.of(found) for name, found in of_set.items()}

    def _features_of(self, row: Row, folder: Path) -> Tensor:
        if row.id not in self._drawn:
            (self._drawn[row.id],) = self._judge.embed([open_image(folder / row.images[0])])
        return self._drawn[row.id]


def _silent(what: str, done: int, total: int) -> None:
    pass


def _id(combination: Combination) -> str:
    return f"{combination.style}/{combination.concept}"
