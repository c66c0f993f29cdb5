"""Does the model name what it is shown? Exact match, after the same normalising of answer and truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from diptych.evaluate.answering import answer_in_text

ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces. The letter A alone is an answer, and stays."""
    text = re.sub(r"[^\w\s]", " ", text.lower().replace("_", " "))
    return " ".join(ARTICLES.sub(" ", text).split() or text.split())


def ask_about_images(
    morph: Any,
    images: Sequence[Image.Image],
    question: str,
    *,
    batch_size: int = 50,
    max_new_tokens: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """The greedy answer to `question` about each image, asked as the emoji set asks: the question, then the image."""
    answers: list[str] = []
    for start in range(0, len(images), batch_size):
        chunk = [
            [{"role": "user", "content": [f"{question}\n", image]}] for image in images[start : start + batch_size]
        ]
        answers += answer_in_text(morph, chunk, max_new_tokens=max_new_tokens)
        if progress is not None:
            progress(len(answers), len(images))
    return answers


def is_named(answer: str, name: str) -> bool:
    """Whether the answer is exactly the name. An answer of nothing is wrong, whatever the name."""
    return bool(normalise_answer(answer)) and normalise_answer(answer) == normalise_answer(name)
