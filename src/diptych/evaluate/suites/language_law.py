"""The law of language: a frozen language model's weights and text-only logits are bit for bit the base's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.backbones.weight_hash import hash_module
from diptych.data.samples import Message
from diptych.evaluate.answering import Sampling
from diptych.evaluate.language_check import PROMPTS, compare_logits, find_base
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

WEIGHTS = "weights"
_ASKED_OF_WEIGHTS = "SHA-256 of all weights of the language model, in memory"


class LanguageLaw:
    """`identical`: of each prompt, whether all logits are bit for bit the base's; of the weights, whether their hash
    is. A method that trains the language model (VPiT) breaks the law by design, and is scored all the same."""

    name = "language"
    version = 1
    words = (
        f"{len(PROMPTS)} texts go through the morph and through its base language model, loaded afresh: are all logits "
        "bit for bit the same? Kind weights: is the hash of all weights the base's? Methods that train the language "
        "model itself (VPiT) promise neither."
    )
    metrics = (
        Metric("identical", "bit for bit the same"),
        Metric("max_abs_diff", "largest difference of a logit", unit="", higher_is_better=False),
    )
    needs = Needs(("writes",))

    def __init__(self, data: Path | None = None, *, base: Any = None) -> None:
        """`base`: a fresh load of the morph's base LLM (`.model`, `.tokenizer`), in place of one loaded here."""
        if data is not None:
            raise ValueError("suite language asks its own prompts, and takes no --data")
        self._base = base

    def load_examples(self, progress: Progress) -> list[Example]:
        prompts = [
            Example(f"prompt/{number:03d}", _said(prompt), reference="identical, 0.0", kind="prompts")
            for number, prompt in enumerate(PROMPTS)
        ]
        return [*prompts, Example(WEIGHTS, _said(_ASKED_OF_WEIGHTS), reference="the base's hash", kind=WEIGHTS)]

    def prepare(self, morph: Any, progress: Progress) -> None:
        self._base = find_base(morph, self._base)

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """The largest difference, or the hash, in words: logits themselves are too many to keep."""
        return [Answer(self._answer(morph, example)) for example in examples]

    def _answer(self, morph: Any, example: Example) -> str:
        if example.id == WEIGHTS:
            return hash_module(morph.language_model)
        check = compare_logits(morph, self._base, example.question())
        return f"{'identical' if check.is_identical else 'other'}, {check.max_abs_diff!r}"

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        return [self._score(example, answer.text) for example, answer in zip(examples, answers, strict=True)]

    def _score(self, example: Example, text: str) -> Scores:
        if example.id == WEIGHTS:
            return {"identical": float(text == hash_module(self._base.model))}
        word, difference = text.split(", ")
        return {"identical": float(word == "identical"), "max_abs_diff": float(difference)}

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        return {}

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        return summarise_means(self, examples, rows)


def _said(prompt: str) -> tuple[Message, ...]:
    return (Message("user", (prompt,)),)
