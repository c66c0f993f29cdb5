"""Reading: questions about pictures, answered in words and scored by exact match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diptych.data.builders.concept_splits import HELD_OUT
from diptych.data.samples import Sample
from diptych.evaluate.answering import Sampling, answer_in_text
from diptych.evaluate.naming import is_named
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
from diptych.evaluate.suites.suite_data import (
    CLIP_ASSETS,
    EASY_VQA_ASSETS,
    EMOJI_ASSETS,
    find_easy_vqa,
    find_image_qa,
    find_video_qa,
    read_questions,
)


class VisualQuestions:
    """Questions of some splits of a built set. `find`: where the set lies, given the user's folder or None; `kind_of`:
    the kind of a question."""

    version = 1
    metrics = (Metric("exact", "exact answers"),)

    def __init__(
        self,
        name: str,
        *,
        words: str,
        splits: tuple[str, ...],
        find: Callable[[Path | None, Progress], Path],
        kind_of: Callable[[Sample], str],
        assets: tuple[str, ...],
        data: Path | None,
    ) -> None:
        self.name = name
        self.words = words
        self.needs = Needs(("reads",), () if data is not None else assets)
        self._splits, self._find, self._kind_of, self._data = splits, find, kind_of, data
        self._all: list[Example] = []

    def load_examples(self, progress: Progress) -> list[Example]:
        self._all = read_questions(self._find(self._data, progress), self._splits, self._kind_of)
        return self._all

    def prepare(self, morph: Any, progress: Progress) -> None:
        pass

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        del sampling  # the likeliest answer
        return [Answer(text) for text in answer_in_text(morph, [e.conversation() for e in examples])]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        pairs = zip(examples, answers, strict=True)
        return [{"exact": float(is_named(answer.text, example.reference))} for example, answer in pairs]

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        return {"exact": answer_baselines(examples, among=self._all)}

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        return summarise_means(self, examples, rows)


def emoji_vqa(data: Path | None) -> VisualQuestions:
    return VisualQuestions(
        "emoji-vqa",
        words=(
            "Questions on emoji and scenes of them: names, kinds, keywords, counting, presence, position; of concepts, "
            "of a style and of combinations that the training files of the six types never show (the emoji set, of "
            "which emoji-dual was made, does). An answer is right if it is the right one but for case, punctuation and "
            "articles."
        ),
        splits=HELD_OUT,
        find=find_image_qa,
        kind_of=lambda sample: str(sample.meta["task"]),
        assets=EMOJI_ASSETS,
        data=data,
    )


def easy_vqa(data: Path | None) -> VisualQuestions:
    return VisualQuestions(
        "easy-vqa",
        words=(
            "easy-VQA's test split: questions on the shape and colour of one figure. An answer is right if it is the "
            "right one but for case, punctuation and articles."
        ),
        splits=("held_out_test",),
        find=find_easy_vqa,
        kind_of=_easy_kind,
        assets=EASY_VQA_ASSETS,
        data=data,
    )


def video_qa(data: Path | None) -> VisualQuestions:
    return VisualQuestions(
        "video-qa",
        words=(
            "Questions on clips of animated emoji, shown as frames: what it is, what kind of thing, and which of three "
            "pictures comes next; of things, of colours and of combinations that the training files of the six types "
            "never show. An answer is right if it is the right one but for case, punctuation and articles."
        ),
        splits=HELD_OUT,
        find=find_video_qa,
        kind_of=lambda sample: str(sample.meta["task"]),
        assets=CLIP_ASSETS,
        data=data,
    )


def _easy_kind(sample: Sample) -> str:
    question, answer = (str(message.parts[0]) for message in sample.messages)
    if answer in ("yes", "no"):
        return "yes or no"
    return "colour" if "color" in question else "shape"
