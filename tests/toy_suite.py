"""A suite of plain colours, and morphs that answer it by rule: what the harness does is known beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.config import build_recipe
from diptych.data.samples import Message
from diptych.evaluate.answering import Sampling, answer_in_images, answer_in_text
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

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
STAMP = {"morph": "fake", "morph_hash": "0" * 64, "seed": 0, "recipe": {"method": "none"}}


class ColourSuite:
    """What colour is this, and is it red? `num` pictures, a pixel larger each; every fifth is red, the others by turns.

    With `draws`: the picture is to be drawn instead, and scores how near its colour is.
    """

    version = 1
    words = "Plain colours."

    def __init__(self, folder: Path, num: int = 20, *, draws: bool = False, name: str = "colours") -> None:
        self.folder, self.num, self.draws, self.name = folder, num, draws, name
        self.needs = Needs(("draws",) if draws else ("reads",))
        self.metrics = (Metric("nearness", "near in colour") if draws else Metric("exact", "exact answers"),)
        self.num_prepared = 0
        self.all: list[Example] = []

    def load_examples(self, progress: Progress) -> list[Example]:
        names = [list(COLOURS)[0 if k % 5 == 0 else k % 4] for k in range(self.num)]
        examples = []
        for number, name in enumerate(names):
            path = self.folder / f"{number}.png"
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8 + number % 8, 8), COLOURS[name]).save(path)
            if self.draws:
                asked = (Message("user", (f"Draw {name} number {number}.",)),)
                examples.append(Example(f"draw/{number}", asked, reference=name, reference_image=path))
                continue
            asked = (Message("user", ("What colour is this?\n", 0)),)
            examples.append(Example(f"colour/{number}", asked, (path,), reference=name, kind="colour"))
            asked, answer = (Message("user", ("Is this red?\n", 0)),), "yes" if name == "red" else "no"
            examples.append(Example(f"red/{number}", asked, (path,), reference=answer, kind="red"))
        self.all = examples
        return examples

    def prepare(self, morph: Any, progress: Progress) -> None:
        self.num_prepared += 1

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        asked = [example.conversation() for example in examples]
        if self.draws:
            return [
                Answer(images=(image,))
                for image in answer_in_images(morph, asked, sampling, ids=[e.id for e in examples])
            ]
        return [Answer(text) for text in answer_in_text(morph, asked)]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        pairs = list(zip(examples, answers, strict=True))
        if not self.draws:
            return [{"exact": float(is_named(answer.text, example.reference))} for example, answer in pairs]
        return [{"nearness": float(colour_of(a.images[0]) == e.reference)} for e, a in pairs]

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        return {self.metrics[0].name: answer_baselines(examples, among=self.all)}

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        return summarise_means(self, examples, rows)


def colour_of(image: Image.Image) -> str:
    pixel = image.convert("RGB").getpixel((0, 0))
    return next(name for name, rgb in COLOURS.items() if rgb == pixel)


class FakeMorph:
    """Answers by a rule that is given the question and the images; counts conversations and notes what it was told.

    `fails_at`: raises KeyboardInterrupt in place of answering this conversation (from 0), as if it were stopped.
    """

    abilities = frozenset({"reads", "draws"})
    recipe = build_recipe({"output_dir": "none", "language_model": "./none", "data": {"sources": [{"path": "none"}]}})
    device = "cpu"

    def __init__(self, rule: Callable[[str, list[Image.Image]], Any], *, fails_at: int | None = None) -> None:
        self.rule, self.fails_at = rule, fails_at
        self.num_answered = 0
        self.batches: list[list[str]] = []
        self.options: list[dict[str, Any]] = []

    def generate_batch(self, conversations: Sequence[Any], **options: Any) -> list[list[Any]]:
        answers = []
        self.options.append(options)
        self.batches.append([])
        for conversation in conversations:
            if self.num_answered == self.fails_at:
                raise KeyboardInterrupt
            content = conversation[-1]["content"]
            question = "".join(part for part in content if isinstance(part, str)).strip()
            self.batches[-1].append(question)
            answers.append([self.rule(question, [part for part in content if isinstance(part, Image.Image)])])
            self.num_answered += 1
        return answers


def look(question: str, images: list[Image.Image]) -> str:
    """Right, from the pixels."""
    colour = colour_of(images[0])
    return colour if "What" in question else ("yes" if colour == "red" else "no")


def always_commonest(question: str, images: list[Image.Image]) -> str:
    return "red" if "What" in question else "no"


def draw(question: str, images: list[Image.Image]) -> Image.Image:
    return Image.new("RGB", (8, 8), COLOURS[question.split()[1]])


def another_stamp(**changes: Any) -> dict[str, Any]:
    return STAMP | changes


def renamed(example: Example, id: str) -> Example:
    return dataclasses.replace(example, id=id)
