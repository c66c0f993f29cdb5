"""A judge of captions that knows a built emoji set by heart: each picture and its captions stand in one place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from diptych.data.builders.emoji import STYLE_WORDS
from diptych.data.images import image_to_tensor, open_image
from diptych.evaluate.emoji_gallery import read_combinations
from diptych.evaluate.naming import normalise_answer
from diptych.evaluate.suite import Progress


class KnownCaptions:
    """Pictures stand where 4 x 4 mean colours put them, prompts and captions where their pictures do, and what is no
    caption of the set has no place."""

    assets = ()

    def __init__(self, emoji: Path) -> None:
        combinations = read_combinations(emoji)
        self._mean = torch.zeros(48)
        places = torch.stack([self._look(c.real) for c in combinations])
        self._mean = places.mean(dim=0)
        self._known: dict[str, Tensor] = {}
        for c in combinations:
            place = self.place_pictures([c.real])[0]
            for text in (c.prompt, f"{c.concept} in {STYLE_WORDS[c.style]} style"):
                self._known[normalise_answer(text)] = place

    def find(self) -> dict[str, str]:
        return {"caption_judge": "1" * 64}

    def place_files(self, files: Sequence[Path], progress: Progress) -> Tensor:
        return self.place_pictures([open_image(file) for file in files])

    def place_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        return normalize(torch.stack([self._look(picture) - self._mean for picture in pictures]), dim=-1)

    def place_captions(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self._known.get(normalise_answer(caption), torch.zeros(48)) for caption in captions])

    @staticmethod
    def _look(picture: Image.Image) -> Tensor:
        return adaptive_avg_pool2d(image_to_tensor(picture, 32), 4).flatten()
