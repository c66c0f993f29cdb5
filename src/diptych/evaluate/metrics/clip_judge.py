"""CLIP score: how well images fit their prompts, by any Hugging Face CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor

from diptych.backbones.hub_loading import load_pretrained, resolve_folder
from diptych.backbones.weight_hash import hash_folder

_WHAT = "CLIP"


def find_clip(name: str) -> tuple[Path, str]:
    """The folder of a CLIP (or that of the Hub's id, fetched), and the SHA-256 of its weights.

    Raises ValueError for a model that is none: the score of another one (SigLIP ...) would not be CLIP's.
    """
    folder = resolve_folder(name, what=_WHAT)
    config = load_pretrained(AutoConfig, folder, name=name, what=_WHAT)
    if "clip" not in config.model_type or not hasattr(config, "text_config"):
        raise ValueError(
            f"{_WHAT} {name!r} is of type {config.model_type!r}; give a CLIP, such as openai/clip-vit-large-patch14"
        )
    return folder, hash_folder(folder)


class ClipJudge:
    """CLIP score (Hessel et al. 2021) as generation papers tell it: 100 times the cosine of image and prompt."""

    def __init__(self, folder: Path, *, device: torch.device | str = "cpu") -> None:
        """Errors: see `load_pretrained`."""
        name = str(folder)
        self._model: Any = load_pretrained(AutoModel, folder, name=name, what=_WHAT, dtype=torch.float32).to(device)
        self._model.eval()
        self._processor: Any = load_pretrained(AutoProcessor, folder, name=name, what=_WHAT)
        self._device = device

    @torch.no_grad()
    def score(self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> list[float]:
        """The mean score of each prompt's images. A prompt longer than CLIP reads (mostly 77 tokens) is cut."""
        longest = self._model.config.text_config.max_position_embeddings
        inputs = self._processor(
            text=list(prompts),
            images=[image for own in images for image in own],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=longest,
        ).to(self._device)
        output = self._model(**inputs)
        texts = output.text_embeds.repeat_interleave(torch.tensor([len(own) for own in images]).to(self._device), dim=0)
        cosines = torch.nn.functional.cosine_similarity(texts, output.image_embeds).cpu()
        return [100 * float(own.mean()) for own in cosines.split([len(own) for own in images])]
