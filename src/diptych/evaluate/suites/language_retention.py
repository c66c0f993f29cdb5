"""Language retention: what a method that trains the language model itself (VPiT, single tower) does to its text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diptych.backbones.assets import asset_path
from diptych.data.samples import Message
from diptych.evaluate.answering import Sampling
from diptych.evaluate.bootstrap import estimate_ratio
from diptych.evaluate.language_check import PROMPTS, find_base
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
from diptych.evaluate.text_scoring import compare_texts

NOVEL = "moby-dick"
PASSAGE_LETTERS = 1000
"""Of each text of a folder: its beginning, cut behind a word."""


class LanguageRetention:
    """`kl`, `same_choice` and `nll` of each text; perplexities of all tokens together."""

    name = "language-retention"
    version = 1
    words = (
        f"The beginnings of the chapters of Moby-Dick (kind passages) and {len(PROMPTS)} short texts (kind prompts), "
        "which no training of Diptych shows, though the base language model may have read the novel. KL: of the "
        "morph's next-token distribution from the base's, in nats a token, mean over texts. Perplexity: over all "
        "tokens but the first of each text; chance is a guess among all tokens. A frozen language model has KL 0."
    )
    metrics = (
        Metric("kl", "KL from the base, nats a token", unit="", higher_is_better=False),
        Metric("same_choice", "same likeliest token as the base"),
        Metric("perplexity", "perplexity", unit="", higher_is_better=False),
        Metric("base_perplexity", "perplexity of the base", unit="", higher_is_better=False),
        Metric("nll", "surprise, nats a token", unit="", higher_is_better=False),
    )

    def __init__(self, data: Path | None = None, *, base: Any = None) -> None:
        """`data`: a folder of .txt files in place of the novel. `base`: a fresh load of the morph's base LLM."""
        self.needs = Needs(("writes",), () if data is not None else (NOVEL,))
        self._data = data
        self._base = base

    def load_examples(self, progress: Progress) -> list[Example]:
        folder = asset_path(NOVEL) / "data" if self._data is None else self._data
        passages = {path.stem: read_passage(path) for path in sorted(folder.glob("*.txt"))}
        if not passages:
            raise ValueError(f"{folder} holds no .txt files; give another folder (--data), or none for the novel")
        prompts = {f"{number:03d}": prompt for number, prompt in enumerate(PROMPTS)}
        return [
            Example(f"{kind}/{name}", (Message("user", (text,)),), kind=kind)
            for kind, texts in (("passages", passages), ("prompts", prompts))
            for name, text in texts.items()
        ]

    def prepare(self, morph: Any, progress: Progress) -> None:
        self._base = find_base(morph, self._base)

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """What was measured, as JSON: logits themselves are too many to keep."""
        found = compare_texts(
            [example.question() for example in examples],
            self._base.tokenizer,
            logits_of=morph.text_logits,
            base_logits_of=lambda ids: self._base.model(input_ids=ids.to(morph.device)).logits,
        )
        return [Answer(json.dumps(asdict(one))) for one in found]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        return [self._score(json.loads(answer.text)) for answer in answers]

    def _score(self, found: dict[str, Any]) -> Scores:
        num = found["num_tokens"]
        if not num:
            return {}  # a single token predicts nothing
        return {"kl": found["kl"] / num, "same_choice": found["num_same"] / num, "nll": found["nll"] / num}

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        return {}

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        found = [one for row in rows if (one := json.loads(row.answer))["num_tokens"]]
        scores = summarise_means(self, examples, rows)
        if found:
            chance = Baselines(chance=float(found[0]["vocabulary"]))
            counts = [one["num_tokens"] for one in found]
            for name, key in (("perplexity", "nll"), ("base_perplexity", "base_nll")):
                ratio = estimate_ratio([one[key] for one in found], counts)
                low, high = ratio.interval
                scores[name] = MetricScore(math.exp(ratio.mean), (math.exp(low), math.exp(high)), ratio.num, chance)
        return scores


def read_passage(path: Path) -> str:
    """The beginning of a text file, cut behind a word. Raises ValueError for one that is empty or no text."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text ({error})") from error
    if not text:
        raise ValueError(f"{path} is empty; delete it, or give another folder")
    return text if len(text) <= PASSAGE_LETTERS else text[:PASSAGE_LETTERS].rsplit(None, 1)[0]
