"""Text to image: prompts of names and tags in several wordings, answered by a lead-in sentence and the picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from diptych.data.builders.concept_gallery import STYLE_NAMES, GallerySource, Pool
from diptych.data.builders.emoji import BuiltSet
from diptych.data.builders.gallery_sets import build_gallery_set
from diptych.data.builders.set_writing import Draft

TEMPLATES = (
    "Generate an image of {caption}.",
    "Draw {caption}.",
    "Please draw a picture of {caption}.",
    "I would like to see {caption}. Can you draw it?",
    "Make an image that shows {caption}.",
    "Show me {caption}.",
)
LEADS = ("Here it is:", "Here is the picture:", "This is what you asked for:", "Sure, here is the image:")
_NUM_TAGS = 3


def build_generation(out: str | Path, source: GallerySource, *, num_samples: int = 4000) -> BuiltSet:
    """Builds the set in the folder `out`: `num_samples` for training, a tenth as many for each held-out file."""
    return build_gallery_set(
        out,
        source,
        make_draft,
        name="generation",
        description="Emoji to be drawn from their CLDR names and tags, in several wordings.",
        num_samples=num_samples,
    )


def make_draft(pool: Pool, chance: random.Random) -> Draft | None:
    """A prompt and its picture; None where tags were drawn for a concept that others share all of them with."""
    name = chance.choice(pool.names)
    kind = chance.choice(("name", "tags"))
    words = name
    if kind == "tags":
        tags = pool.gallery.tags(name)
        chosen = chance.sample(tags, min(_NUM_TAGS, len(tags)))
        if not chosen or not is_only_one(name, chosen, pool):
            return None
        words = ", ".join(chosen)
    caption = f"{words} in {STYLE_NAMES[pool.style]} style"
    prompt = chance.choice(TEMPLATES).format(caption=caption)
    meta = {"concept": name, "prompt_kind": kind}
    return Draft((prompt,), (f"{chance.choice(LEADS)}\n", pool.picture(name)), meta)


def is_only_one(name: str, tags: Sequence[str], pool: Pool) -> bool:
    """Whether no other concept of the gallery has all these tags."""
    others = (concept for concept in pool.gallery.concepts.values() if concept.name != name)
    return not any(set(tags) <= set(concept.tags) for concept in others)
