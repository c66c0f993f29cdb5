"""A recipe's samples as the token sequences that its training makes of them; no weights are loaded for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diptych.backbones.language import load_tokenizer
from diptych.backbones.skeletons import build_language_skeleton
from diptych.config import Recipe
from diptych.data.packing import too_long_to_pack
from diptych.data.samples import Sample
from diptych.data.tokenize import build_sequence
from diptych.models.accounts.width_matching import match_widths
from diptych.models.training_sources import NO_IMAGE
from diptych.models.xfusion_building import build_xfusion_skeleton
from diptych.nn.boundary_tokens import add_boundary_tokens
from diptych.sequence import ImageSpan, Sequence, TextSpan


def stream_builder(recipe: Recipe) -> tuple[Callable[[Sample], Sequence], Any] | None:
    """(sample -> sequence without pixels, tokenizer); None for a method that learns from images alone.

    Raises ValueError as training would, for what the recipe names and for a sample that it cannot use.
    """
    if recipe.method not in ("xfusion", "vpit"):
        return None
    tokenizer = load_tokenizer(recipe.language_model, trust_remote_code=recipe.trust_remote_code)
    boundary_ids = None
    if recipe.method == "vpit":
        num_image_tokens = recipe.vpit.num_image_tokens
        boundary_ids = add_boundary_tokens(tokenizer, recipe.vpit.image_start, recipe.vpit.image_end)
    else:
        language = build_language_skeleton(recipe.language_model, trust_remote_code=recipe.trust_remote_code)
        model, _ = build_xfusion_skeleton(match_widths(recipe), language)
        num_image_tokens = model.vision_tower.num_image_tokens

    length = recipe.train.packing_length

    def build(sample: Sample) -> Sequence:
        stream = build_sequence(
            sample,
            tokenizer=tokenizer,
            template=recipe.template,
            load_image=lambda _: NO_IMAGE,
            num_image_tokens=num_image_tokens,
            max_length=recipe.data.max_length,
            boundary_ids=boundary_ids,
        )
        if length is not None and len(stream) > length:
            raise too_long_to_pack(len(stream), length)
        return stream

    return build, tokenizer


def describe_tokens(stream: Sequence, tokenizer: Any) -> list[tuple[bool, str]]:
    """A sequence in words: (does it carry loss, the text of the tokens or what the image is), run by run."""
    lines: list[tuple[bool, str]] = []
    for span in stream.spans:
        if isinstance(span, ImageSpan):
            kind = "target image" if span.is_target else "its clean copy" if span.is_copy else "context image"
            lines.append((span.is_target, f"[{kind}, {len(span)} tokens: {span.source or 'unnamed'}]"))
            continue
        lines += _text_runs(span, tokenizer)
    return lines


def _text_runs(span: TextSpan, tokenizer: Any) -> list[tuple[bool, str]]:
    runs: list[tuple[bool, list[int]]] = []
    for token, loss in zip(span.token_ids, span.loss, strict=True):
        if not runs or runs[-1][0] != loss:
            runs.append((loss, []))
        runs[-1][1].append(token)
    return [(loss, repr(tokenizer.decode(ids))) for loss, ids in runs]
