"""How a morph is asked in evaluation: conversations in, one text or one image each out, by its public calls alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from diptych.models.conversation import Conversation


@dataclass(frozen=True)
class Sampling:
    """How images are sampled; None: as the morph was trained to be."""

    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    sampler: str | None = None
    seed: int = 0

    def options(self, ids: Sequence[str]) -> dict[str, Any]:
        """As a morph's calls take them. Whatever is asked beside it, what is asked under an id has a noise of its own:
        scores hang neither on a single noise nor on the size of batches."""
        return {
            "guidance_scale": self.guidance_scale,
            "num_inference_steps": self.num_inference_steps,
            "sampler": self.sampler,
            "seed": [self._seed(id) for id in ids],
        }

    def _seed(self, id: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{id}".encode()).digest()[:5])


def answer_in_text(morph: Any, conversations: Sequence[Conversation], *, max_new_tokens: int = 16) -> list[str]:
    """The greedy answer to each conversation, in one batch."""
    made = morph.generate_batch(conversations, generation_mode="text", max_new_tokens=max_new_tokens)
    return ["".join(part for part in parts if isinstance(part, str)) for parts in made]


def answer_in_images(
    morph: Any, conversations: Sequence[Conversation], sampling: Sampling, *, ids: Sequence[str]
) -> list[Image.Image]:
    """One image for each conversation, in one batch; `ids`: see `Sampling.options`. Raises ValueError where a morph
    answers with none."""
    return [image for (image,) in answer_in_several_images(morph, conversations, sampling, ids=ids, num_images=1)]


def answer_in_several_images(
    morph: Any, conversations: Sequence[Conversation], sampling: Sampling, *, ids: Sequence[str], num_images: int
) -> list[list[Image.Image]]:
    """So many images for each conversation, each of a noise of its own. Raises ValueError where a morph gives fewer."""
    options = sampling.options(ids) | ({"num_images": num_images} if num_images > 1 else {})
    made = morph.generate_batch(conversations, generation_mode="image", **options)
    drawn = [[part for part in parts if isinstance(part, Image.Image)] for parts in made]
    if any(len(images) != num_images for images in drawn):
        wanted = "one image" if num_images == 1 else f"{num_images} images"
        raise ValueError(f"asked for {wanted} each, the morph gave {sorted({len(images) for images in drawn})}")
    return drawn
