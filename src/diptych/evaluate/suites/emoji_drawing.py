"""Drawing: is what is drawn from a name nearest to the real image of that name, and in the style asked for?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.backbones.assets import cache_root
from diptych.backbones.vision import load_image_encoder
from diptych.evaluate.answering import Sampling, answer_in_images
from diptych.evaluate.emoji_gallery import ENCODER, Combination, embed_pictures, place_in_gallery, read_combinations
from diptych.evaluate.retrieval import embed_images
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
    summarise_means,
)
from diptych.evaluate.suites.suite_data import EMOJI_ASSETS, find_emoji_set
from diptych.models.encoded_images import EncodedImages

TOPS = (1, 5)
_AT_ONCE = 128


class EmojiDrawing:
    """Every combination of concept and style by name; kinds: `trained`, `held out`, as the emoji set splits them."""

    name = "emoji-t2i"
    version = 1
    words = (
        "Emoji drawn from their names in two styles. Each drawing is compared with the real images of all concepts in "
        f"its style, by the cosine of {ENCODER} features at the size that the morph draws: is the right concept "
        "first, or among the first five? Style right: the nearest real image of any style has the one asked for."
    )
    metrics = (
        Metric("retrieval_top1", "right concept first"),
        Metric("retrieval_top5", "right concept among the first five"),
        Metric("style_right", "style right"),
    )

    def __init__(self, data: Path | None = None, *, encoder: Any = None) -> None:
        """`encoder`: what judges, in place of ENCODER."""
        needed = () if encoder is not None else (ENCODER,)
        self.needs = Needs(("draws",), needed if data is not None else (*needed, *EMOJI_ASSETS))
        self._data = data
        self._encoder: Any = encoder
        self._gallery: list[Combination] = []
        self._by_id: dict[str, Combination] = {}
        self._real = torch.zeros(0)
        self._size = 0

    def load_examples(self, progress: Progress) -> list[Example]:
        self._gallery = read_combinations(find_emoji_set(self._data, progress))
        self._by_id = {f"{c.style}/{c.concept}": c for c in self._gallery}
        return [
            Example(
                id=id,
                messages=c.messages,
                reference=c.concept,
                reference_image=c.file,
                kind="held out" if c.held_out else "trained",
            )
            for id, c in self._by_id.items()
        ]

    def prepare(self, morph: Any, progress: Progress) -> None:
        """Embeds the real images; kept in the cache, by what they are and what judges them."""
        self._size = morph.recipe.image_size
        encoder, cache_dir, key = self._encoder, None, "given"
        if encoder is None:
            encoder = self._encoder = load_image_encoder(ENCODER).to(morph.device)
            cache_dir, key = cache_root() / "tensors", encoder.cache_key[:16]
        encoded = EncodedImages(
            lambda images: embed_images(encoder, images),
            key=f"pooled-{key}-{self._size}",
            image_size=self._size,
            cache_dir=cache_dir,
        )
        files = [str(c.file) for c in self._gallery]
        for start in range(0, len(files), _AT_ONCE):
            encoded.prepare(files[start : start + _AT_ONCE])
            progress("embedding real images", min(start + _AT_ONCE, len(files)), len(files))
        encoded.flush()
        self._real = torch.stack([encoded.load(file) for file in files])

    def answer(self, morph: Any, examples: Sequence[Example], sampling: Sampling) -> list[Answer]:
        drawn = answer_in_images(morph, [e.conversation() for e in examples], sampling)
        return [Answer(images=(image,)) for image in drawn]

    def score(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Scores]:
        mine: Tensor = embed_pictures(self._encoder, [answer.images[0] for answer in answers], size=self._size)
        asked = [self._by_id[example.id] for example in examples]
        ranks, styles = place_in_gallery(mine, self._real, self._gallery, asked)
        return [
            {f"retrieval_top{top}": float(rank < top) for top in TOPS} | {"style_right": float(style)}
            for rank, style in zip(ranks, styles, strict=True)
        ]

    def baselines(self, examples: Sequence[Example]) -> dict[str, Baselines]:
        """Who always draws the commonest concept or style of these examples, and who draws any of the set."""
        asked = [self._by_id[example.id] for example in examples]
        concepts, styles = ({getattr(c, what) for c in self._gallery} for what in ("concept", "style"))
        by_concept = [count for _, count in Counter(c.concept for c in asked).most_common(max(TOPS))]
        by_style = max(Counter(c.style for c in asked).values())
        retrieval = {
            f"retrieval_top{top}": Baselines(sum(by_concept[:top]) / len(asked), min(1.0, top / len(concepts)))
            for top in TOPS
        }
        return retrieval | {"style_right": Baselines(by_style / len(asked), 1 / len(styles))}

    def summarise(self, examples: Sequence[Example], rows: Sequence[Row], folder: Path) -> dict[str, MetricScore]:
        return summarise_means(self, examples, rows)
