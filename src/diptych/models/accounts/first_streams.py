"""The sequences that the first steps of a run will see: their lengths are what a step costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from diptych.backbones.assets import find_asset
from diptych.backbones.language import EMBEDDED_LANGUAGE_MODELS, load_tokenizer
from diptych.config import Recipe
from diptych.data.mixture import build_mixture
from diptych.data.samples import Sample
from diptych.data.sources import is_there, open_sources
from diptych.data.tokenize import build_sequence
from diptych.sequence import ImageSpan, Sequence, TextSpan

NOMINAL_TEXT_TOKENS = 24
Nominal = Literal["drawing", "reading"]
NOMINAL: dict[Nominal, str] = {
    "drawing": f"{NOMINAL_TEXT_TOKENS} text tokens, then an image to draw",
    "reading": f"an image, then {NOMINAL_TEXT_TOKENS} text tokens to write",
}
"""Samples of lengths that are assumed."""
NUM_LOOKED_AT = 256


@dataclass(frozen=True)
class FirstStreams:
    """Streams in the order of the run, a multiple of the micro-batch, and what of them had to be assumed. num_samples:
    of all sources; None where they are not there."""

    streams: list[Sequence]
    micro_batch: int
    assumed: str | None
    num_samples: int | None = None

    def batches(self) -> list[list[Sequence]]:
        return [self.streams[i : i + self.micro_batch] for i in range(0, len(self.streams), self.micro_batch)]


def find_tokenizer(recipe: Recipe) -> Any:
    """The recipe's tokenizer if that needs no download; None otherwise."""
    name = recipe.language_model
    here = find_asset(name).is_fetched if name in EMBEDDED_LANGUAGE_MODELS else any(Path(name).glob("*.safetensors"))
    return load_tokenizer(name, trust_remote_code=recipe.trust_remote_code) if here else None


def first_streams(
    recipe: Recipe,
    tokenizer: Any,
    *,
    num_image_tokens: int,
    image: Tensor,
    boundary_ids: tuple[int, int] | None = None,
    nominal: Nominal | None = None,
) -> FirstStreams:
    """`image` stands for every image. `nominal`: this sample alone, again and again; without a tokenizer or data it is
    the drawing."""
    micro = recipe.train.per_device_train_batch_size
    reason = None if nominal is not None else _what_lacks(recipe, tokenizer)
    if nominal is not None or reason is not None:
        nominal = nominal or "drawing"
        sequence = _build_nominal(nominal, num_image_tokens, image, boundary_ids)
        assumed = NOMINAL[nominal] + ("" if reason is None else f", since {reason}")
        return FirstStreams([replace(sequence, draw=draw) for draw in range(micro)], micro, assumed)
    sources = open_sources(recipe.data)
    build = _builder(recipe, tokenizer, num_image_tokens, image, boundary_ids)
    mixture = build_mixture(
        recipe, tuple(map(len, sources)), num_tokens=lambda pick: len(build(sources[pick[1]][pick[2]], pick[0]))
    )
    length = recipe.train.packing_length
    several = micro * max(1, NUM_LOOKED_AT // micro) if length is None else NUM_LOOKED_AT
    num_draws = mixture.round_length if mixture.run_length > 1 else several
    streams, first_error = [], None
    for draw, source, index in map(mixture.pick, range(num_draws)):
        try:
            streams.append(build(sources[source][index], draw))
        except ValueError as error:  # training leaves it out as well
            first_error = first_error or error
    if not streams:
        raise first_error or ValueError("the recipe's sources hold no samples")
    if length is not None:
        micro = max(1, round(length * len(streams) / sum(map(len, streams))))
    return FirstStreams(streams, micro, None, sum(map(len, sources)))


def _what_lacks(recipe: Recipe, tokenizer: Any) -> str | None:
    for source in recipe.data.sources:
        if not is_there(source):
            return f"{source.path} is not there"
    return f"{recipe.language_model} is not fetched" if tokenizer is None else None


def _build_nominal(
    nominal: Nominal, num_image_tokens: int, image: Tensor, boundary_ids: tuple[int, int] | None
) -> Sequence:
    is_drawn = nominal == "drawing"
    text = TextSpan((0,) * NOMINAL_TEXT_TOKENS, (not is_drawn,) * NOMINAL_TEXT_TOKENS)
    spans: tuple[TextSpan | ImageSpan, ...] = (ImageSpan(image, num_image_tokens, is_target=is_drawn),)
    if boundary_ids is not None:
        start, end = (TextSpan((token,), (is_drawn,)) for token in boundary_ids)
        spans = (start, *spans, end)
    return Sequence((text, *spans) if is_drawn else (*spans, text))


def _builder(
    recipe: Recipe, tokenizer: Any, num_image_tokens: int, image: Tensor, boundary_ids: tuple[int, int] | None
) -> Callable[[Sample, int], Sequence]:
    def build(sample: Sample, draw: int) -> Sequence:
        return build_sequence(
            sample,
            tokenizer=tokenizer,
            template=recipe.template,
            load_image=lambda _: image,
            num_image_tokens=num_image_tokens,
            draw=draw,
            max_length=recipe.data.max_length,
            boundary_ids=boundary_ids,
        )

    return build
