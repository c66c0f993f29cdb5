"""Laws of naming: the exact name counts, whatever its case, punctuation and articles; nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from diptych.evaluate.naming import ask_about_images, is_named, normalise_answer

NAMES = ["red apple", "T-rex", "mouse", "water buffalo", "fox"]


class Knowing:
    """A fake morph that knows each image by its width, and counts the calls."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.asked: list[Any] = []

    def generate_batch(self, conversations: list[Any], **options: Any) -> list[list[Any]]:
        assert options["generation_mode"] == "text"
        self.sizes.append(len(conversations))
        self.asked += conversations
        images = [next(p for p in c[0]["content"] if isinstance(p, Image.Image)) for c in conversations]
        return [[f"A {NAMES[image.width - 1].upper()}."] for image in images]


IMAGES = [Image.new("RGB", (place + 1, 1)) for place in range(len(NAMES))]


def test_one_who_always_answers_right_names_everything() -> None:
    morph, seen = Knowing(), []
    answers = ask_about_images(
        morph, IMAGES, "What is this?", batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert all(is_named(answer, name) for answer, name in zip(answers, NAMES, strict=True))
    assert morph.sizes == [2, 2, 1]
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_the_question_stands_where_training_put_it() -> None:
    """As the emoji set asks: the question and a new line, then the image."""
    morph = Knowing()
    ask_about_images(morph, IMAGES[:1], "What is this?")
    assert morph.asked == [[{"role": "user", "content": ["What is this?\n", IMAGES[0]]}]]


@pytest.mark.parametrize("answer", ["Red apple", "a red-apple!", "the  RED\nApple", "“red apple”"])
def test_case_punctuation_articles_and_spaces_do_not_count(answer: str) -> None:
    assert is_named(answer, "red apple")


@pytest.mark.parametrize("answer", ["apple", "red apples", "red apple red apple", "", "...", "The"])
def test_whatever_is_not_the_name_is_wrong(answer: str) -> None:
    assert not is_named(answer, "red apple")


def test_an_empty_answer_names_nothing() -> None:
    assert not is_named("", "?")


def test_articles_within_words_stay() -> None:
    assert normalise_answer("Theatre, an ant") == "theatre ant"


def test_the_letter_a_is_an_answer() -> None:
    assert is_named("A", "A")
    assert is_named("a.", "A")
    assert not is_named("B", "A")
    assert not is_named("", "A")
    assert not is_named("the", "A")
