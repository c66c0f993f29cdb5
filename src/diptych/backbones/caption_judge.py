"""The carried judge of captions: how well words fit a picture of an emoji, as a CLIP's score does.

Two maps into one space, from the features of the embedded image encoder (vision.py) and the embeddings of the embedded
sentence encoder (sentence_encoder.py), both frozen. Trained by bench/caption_judge.py; encoders and judge are put
together in evaluate/caption_scoring.py. No part of any morph: what X-Fusion aligns is nn/alignment.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from diptych.backbones.weight_hash import hash_folder

CARRIED = Path(__file__).parent / "weights" / "emoji-captions"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SETTINGS = ("image_dim", "text_dim", "width", "image_size", "image_encoder", "sentence_encoder")


class CaptionJudge(nn.Module):
    """`image_dim`, `text_dim`: widths of the encoders' outputs; `width` of the space in which both meet.

    `image_size`: pixels of a picture's side, before the image encoder brings it to its own size. `image_encoder`,
    `sentence_encoder`: hashes of those that the judge was trained with. `hash`: of the folder it was loaded from.
    """

    def __init__(
        self,
        *,
        image_dim: int = 1280,
        text_dim: int = 384,
        width: int = 256,
        image_size: int = 64,
        image_encoder: str = "",
        sentence_encoder: str = "",
        dropout: float = 0.0,
        hash: str = "",
    ) -> None:
        super().__init__()
        self.image_dim, self.text_dim, self.width, self.image_size = image_dim, text_dim, width, image_size
        self.image_encoder, self.sentence_encoder, self.hash = image_encoder, sentence_encoder, hash
        self.image_mean: Tensor
        self.image_std: Tensor
        self.register_buffer("image_mean", torch.zeros(image_dim))
        self.register_buffer("image_std", torch.ones(image_dim))
        self.dropout = nn.Dropout(dropout)
        self.image_map = nn.Linear(image_dim, width)
        self.text_map = nn.Linear(text_dim, width)

    def place_pictures(self, features: Tensor) -> Tensor:
        """Pooled features [..., image_dim] as the image encoder gives them -> [..., width], of length 1."""
        return normalize(self.image_map(self.dropout((features - self.image_mean) / self.image_std)), dim=-1)

    def place_texts(self, embeddings: Tensor) -> Tensor:
        """The sentence encoder's embeddings [..., text_dim], of length 1 -> [..., width], of length 1."""
        return normalize(self.text_map(self.dropout(embeddings * math.sqrt(self.text_dim))), dim=-1)

    def forward(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """The score of each text for each picture: [P, image_dim], [T, text_dim] -> cosines [T, P]."""
        return self.place_texts(embeddings) @ self.place_pictures(features).T

    def save(self, folder: Path, **more: Any) -> None:
        """Writes config.json, with `more` in it, and weights in bfloat16."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {key: getattr(self, key) for key in SETTINGS} | more
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        narrow = {name: tensor.bfloat16().contiguous() for name, tensor in self.state_dict().items()}
        save_file(narrow, folder / WEIGHTS)


def load_caption_judge(folder: Path = CARRIED) -> CaptionJudge:
    """The carried judge, or another that was trained. Raises ValueError, naming the folder, if there is none or it is
    damaged."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        judge = CaptionJudge(**{key: config[key] for key in SETTINGS}, hash=hash_folder(folder))
        judge.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"judge of captions {folder} cannot be read ({error}); train one: python bench/caption_judge.py train"
        ) from error
    return judge.eval().requires_grad_(False)
