"""How well captions fit pictures: the embedded encoders and the carried judge of captions, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.caption_judge import CARRIED, CaptionJudge, load_caption_judge
from diptych.backbones.sentence_encoder import SENTENCE_ENCODER, SentenceEncoder, load_sentence_encoder
from diptych.evaluate.emoji_gallery import ENCODER
from diptych.evaluate.picture_judge import PictureJudge
from diptych.evaluate.suite import Progress


class CaptionScoring(Protocol):
    """What suites ask: pictures and captions in one space, unit vectors [N, W], whose cosine is the score. `assets`:
    embedded ones that it needs. The size of pictures is the judge's own."""

    @property
    def assets(self) -> tuple[str, ...]: ...

    def find(self) -> Mapping[str, str]:
        """Loads it; the hashes of its parts by name, for the stamp."""
        ...

    def place_files(self, files: Sequence[Path], progress: Progress) -> Tensor: ...

    def place_pictures(self, pictures: Sequence[Image.Image]) -> Tensor: ...

    def place_captions(self, captions: Sequence[str]) -> Tensor: ...


class CaptionScorer:
    """By a judge of captions: the carried one, or that of another folder."""

    assets = (ENCODER, SENTENCE_ENCODER)

    def __init__(self, folder: Path = CARRIED) -> None:
        self._folder = folder
        self._loaded: tuple[CaptionJudge, SentenceEncoder, PictureJudge] | None = None

    def find(self) -> Mapping[str, str]:
        """Raises ValueError for encoders that are not those which the judge was trained with."""
        judge, sentences, _ = self._load()
        return {"caption_judge": judge.hash, "sentence_encoder": sentences.hash, "image_encoder": judge.image_encoder}

    def place_files(self, files: Sequence[Path], progress: Progress) -> Tensor:
        """Their features are kept in the cache."""
        judge, _, pictures = self._load()
        return _place_singly(judge, pictures.embed_files(files, size=judge.image_size, progress=progress))

    def place_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        judge, _, own = self._load()
        return _place_singly(judge, own.embed(pictures))

    def place_captions(self, captions: Sequence[str]) -> Tensor:
        judge, sentences, _ = self._load()
        return judge.place_texts(sentences.embed(captions))

    def _load(self) -> tuple[CaptionJudge, SentenceEncoder, PictureJudge]:
        if self._loaded is None:
            judge, sentences = load_caption_judge(self._folder), load_sentence_encoder()
            pictures = PictureJudge(size=judge.image_size)
            for what, found, known in (
                ("image encoder", pictures.load().hash, judge.image_encoder),
                ("sentence encoder", sentences.hash, judge.sentence_encoder),
            ):
                if found != known:
                    raise ValueError(
                        f"judge of captions {self._folder} was trained with {what} {known[:16]}, and the embedded one "
                        f"is {found[:16]}; train another: python bench/caption_judge.py train"
                    )
            self._loaded = judge, sentences, pictures
        return self._loaded


def _place_singly(judge: CaptionJudge, features: Tensor) -> Tensor:
    """A picture has the same place, bit for bit, whatever it is judged with."""
    return torch.cat([judge.place_pictures(one) for one in features.split(1)])


def measure_judge(pictures: Tensor, captions: Tensor) -> dict[str, float]:
    """Of the right caption of each of N pictures, both [N, W] and of length 1, all of one style: whether the picture is
    `first` or `among_five` of all N for its caption; `told_apart`, the share of the other captions that the picture's
    own beats; mean scores. `chance` is that of `first`; ties are wrong."""
    num = len(pictures)
    scores = captions @ pictures.T
    own = scores.diagonal()
    place = (scores >= own[:, None]).sum(dim=1) - 1
    others = max(num - 1, 1)
    return {
        "first": float((place < 1).float().mean()),
        "among_five": float((place < 5).float().mean()),
        "chance": 1 / num,
        "told_apart": float((scores < own).sum() / (num * others)),
        "score_of_right": float(own.mean()),
        "score_of_others": float((scores.sum() - own.sum()) / (num * others)),
        "num": num,
    }
