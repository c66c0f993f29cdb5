"""easy-VQA as canonical samples: its own pictures of one shape, its own questions, its own train and test split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.builders.data_card import Licence
from diptych.data.builders.emoji import BuiltSet, Progress
from diptych.data.builders.set_writing import Draft, SetPlan, build_set
from diptych.data.images import open_image

SPLITS = {"train": "train", "held_out_test": "test"}


def build_easy_vqa(
    out: str | Path, *, easy_vqa_folder: str | Path, version: str = "1.0", progress: Progress | None = None
) -> BuiltSet:
    """Builds the set in `out` from the unpacked PyPI wheel easy-vqa.

    Pictures of the test split never stand in training: training questions on a picture that the test has too, pixel by
    pixel, are left out and counted. Raises ValueError that names what is missing or damaged in the package.
    """
    data = Path(easy_vqa_folder) / "easy_vqa" / "data"
    plan = SetPlan(
        name="easy-vqa",
        description="Pictures of one coloured shape, and questions about its shape and colour (easy-VQA).",
        settings={"builder": "easy-vqa", "builder_version": 1, "sources": {"easy-VQA": version}},
        splits={"train": "easy-VQA's training split", "held_out_test": "easy-VQA's test split"},
        licences=(
            Licence("easy-VQA", version, "MIT", "https://github.com/vzhou842/easy-VQA", "pictures, questions, answers"),
        ),
    )
    shared = 0

    def drafts() -> Iterator[tuple[str, Draft]]:
        nonlocal shared
        pictures = {split: _Pictures(data / folder / "images") for split, folder in SPLITS.items()}
        questions = {split: _questions(data / folder / "questions.json") for split, folder in SPLITS.items()}
        of_test = {pictures["held_out_test"].read(number).tobytes() for _, _, number in questions["held_out_test"]}
        for split, asked in questions.items():
            for question, answer, number in asked:
                picture = pictures[split].read(number)
                if split == "train" and picture.tobytes() in of_test:
                    shared += 1
                    continue
                yield split, Draft((f"{question}\n", picture), (answer,), {"picture": number})

    return build_set(
        out,
        plan,
        drafts,
        counts=lambda: {"training questions left out, their picture is a test's": shared},
        progress=progress,
    )


def _questions(path: Path) -> list[tuple[str, str, int]]:
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
        return [(str(question), str(answer), int(number)) for question, answer, number in entries]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); is it the unpacked package easy-vqa?") from error


class _Pictures:
    """Each read once: there are ten questions on each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[int, Image.Image] = {}

    def read(self, number: int) -> Image.Image:
        if number not in self._read:
            self._read[number] = open_image(self._folder / f"{number}.png")
        return self._read[number]
