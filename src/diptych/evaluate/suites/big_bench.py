"""BIG-bench tasks of multiple choice, read from their task.json and scored as BIG-bench does; for evaluation alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diptych.backbones.assets import asset_path
from diptych.backbones.weight_hash import hash_module
from diptych.data.samples import Message
from diptych.evaluate.answering import Sampling
from diptych.evaluate.language_check import find_base
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
from diptych.evaluate.text_scoring import score_choices

ASSET = "bigbench"
_SEED = 42
"""BIG-bench's own, for the order in which choices are listed in a question."""
_BASE = "\nbase: "


class BigBench:
    """Kinds: tasks. The choice that is likeliest behind the question is the answer, of the morph and of its base."""

    name = "bigbench"
    version = 1
    words = (
        "Tasks of BIG-bench, without examples in the prompt: the answer is the choice with the highest log-likelihood "
        "behind the question, and scores as its task says (multiple_choice_grade). Only the language model is asked, "
        "the morph's and its base (once, where their weights are the same): what a method that trains the language "
        "model costs is the difference."
    )
    metrics = (
        Metric("grade", "multiple_choice_grade"),
        Metric("base_grade", "multiple_choice_grade of the base"),
        Metric("same_choice", "same choice as the base"),
    )

    def __init__(self, data: Path | None = None, *, base: Any = None) -> None:
        """`data`: a folder of folders with a task.json each. `base`: a fresh load of the morph's base LLM."""
        self.needs = Needs(("writes",), () if data is not None else (ASSET,))
        self._data = data
        self.judge_hashes: Mapping[str, str] = {}
        self._base = base
        self._is_base = False
        self._grades: dict[str, dict[str, float]] = {}

    def load_examples(self, progress: Progress) -> list[Example]:
        folder = asset_path(ASSET) / "bigbench" / "benchmark_tasks" if self._data is None else self._data
        paths = sorted(folder.glob("*/task.json"))
        if not paths:
            raise ValueError(f"{folder} holds no */task.json; give another folder (--data), or none for the asset's")
        asked = [question for path in paths for question in read_task(path)]
        self._grades = {example.id: grades for example, grades in asked}
        self.judge_hashes = {"grades": hashlib.sha256(json.dumps(sorted(self._grades.items())).encode()).hexdigest()}
        return [example for example, _ in asked]

    def prepare(self, morph: Any, progress: Progress) -> None:
        self._base = find_base(morph, self._base)
        self._is_base = hash_module(morph.language_model) == hash_module(self._base.model)

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """The morph's choice, and the base's."""
        asked, choices, base = [e.question() for e in examples], [e.choices for e in examples], self._base

        def logits_of_base(ids: Tensor) -> Tensor:
            return base.model(input_ids=ids.to(morph.device)).logits

        mine = theirs = score_choices(asked, choices, base.tokenizer, logits_of=morph.text_logits)
        if not self._is_base:
            theirs = score_choices(asked, choices, base.tokenizer, logits_of=logits_of_base)
        return [
            Answer(_BASE.join(example.choices[int(np.argmax(scores))] for scores in both))
            for example, *both in zip(examples, mine, theirs, strict=True)
        ]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        scored = []
        for example, answer in zip(examples, answers, strict=True):
            mine, theirs = answer.text.split(_BASE)
            grades = self._grades[example.id]
            scored.append({"grade": grades[mine], "base_grade": grades[theirs], "same_choice": float(mine == theirs)})
        return scored

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        """Who always gives the answer that scores most in a task, and who guesses a choice of each question."""
        majority = chance = 0.0
        for kind in {example.kind for example in examples}:
            grades = [self._grades[example.id] for example in examples if example.kind == kind]
            of_answers: Counter[str] = Counter()
            for own in grades:
                of_answers.update(own)
                chance += sum(own.values()) / len(own)
            majority += max(of_answers.values())
        return dict.fromkeys(("grade", "base_grade"), Baselines(majority / len(examples), chance / len(examples)))

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        return summarise_means(self, examples, rows)


def read_task(path: Path) -> Iterator[tuple[Example, dict[str, float]]]:
    """Questions of a task.json, worded as BIG-bench words them, and what each of their choices scores.

    Raises ValueError for a file that is no task of multiple choice, and a question without a best choice.
    """
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
        if "multiple_choice_grade" not in task["metrics"]:
            raise ValueError("it is not scored by multiple_choice_grade")
        seen = set()
        for number, entry in enumerate(task["examples"]):
            if (key := json.dumps(entry)) in seen:
                continue  # as BIG-bench passes them over
            seen.add(key)
            grades = {choice: float(grade) for choice, grade in entry["target_scores"].items()}
            if max(grades.values()) <= min(grades.values()):
                raise ValueError(f"no choice of example {number} is better than the others")
            example = Example(
                id=f"{path.parent.name}/{number:04d}",
                messages=(Message("user", (_word(task, entry["input"], list(grades)),)),),
                reference=max(grades, key=lambda choice: grades[choice]),
                kind=path.parent.name,
                choices=tuple(grades),
            )
            yield example, grades
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no task of BIG-bench that can be asked here: {error!r}") from error


def _word(task: dict[str, Any], asked: str, choices: list[str]) -> str:
    if task.get("append_choices_to_input", True):
        prefix = task.get("choice_prefix", "\n  choice: ")
        listed = np.random.RandomState(seed=_SEED).permutation(sorted(choices))
        asked += prefix + prefix.join(listed)
    before, behind = task.get("example_input_prefix", "\nQ: "), task.get("example_output_prefix", "\nA: ")
    return f"{task.get('task_prefix', '')}{before}{asked}{behind}"
