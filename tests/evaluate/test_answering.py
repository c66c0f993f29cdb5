"""Laws of asking: options reach the morph as they are, texts are joined, and an image that is missing is no image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from diptych.evaluate.answering import Sampling, answer_in_images, answer_in_text

IMAGE = Image.new("RGB", (2, 2))
ASKED: list[Any] = [[{"role": "user", "content": "?"}]] * 2


class Parts:
    """Answers each conversation with the same parts, and keeps what it was told."""

    def __init__(self, *parts: Any) -> None:
        self.parts, self.options = list(parts), {}

    def generate_batch(self, conversations: list[Any], **options: Any) -> list[list[Any]]:
        self.options = options
        return [self.parts for _ in conversations]


def test_texts_are_joined_and_images_passed_over() -> None:
    morph = Parts("It is", IMAGE, " a cat.")
    assert answer_in_text(morph, ASKED, max_new_tokens=5) == ["It is a cat."] * 2
    assert morph.options == {"generation_mode": "text", "max_new_tokens": 5}


def test_sampling_reaches_the_morph_and_each_id_has_its_seed() -> None:
    morph = Parts("Here:", IMAGE)
    sampling = Sampling(guidance_scale=2.0, num_inference_steps=4, sampler="heun", seed=10)
    assert answer_in_images(morph, ASKED, sampling, ids=["a", "b"]) == [IMAGE] * 2
    one, other = morph.options.pop("seed")
    assert one != other
    assert sampling.options(["b", "c", "a"])["seed"][::2] == [other, one], "whatever is asked beside it"
    assert replace(sampling, seed=11).options(["a"])["seed"] != [one]
    assert morph.options == {
        "generation_mode": "image",
        "guidance_scale": 2.0,
        "num_inference_steps": 4,
        "sampler": "heun",
    }


@pytest.mark.parametrize("parts", [(), ("no",), (IMAGE, IMAGE)])
def test_other_than_one_image_is_refused(parts: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="asked for one image each"):
        answer_in_images(Parts(*parts), ASKED, Sampling(), ids=["a", "b"])
