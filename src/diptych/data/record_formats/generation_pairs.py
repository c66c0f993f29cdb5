"""Image-text pairs as MetaMorph learns to draw from them: a wish, then a short sentence and the image.

For MetaCLIP-like pairs (MetaMorph's generation data, 5 million). MetaCLIP's own pairs are not given out: its repository
(facebookresearch/MetaCLIP) holds the code and metadata that make such a set from Common Crawl. So this reads pairs in
the form that img2dataset writes (`NNNNN.tar` of `KEY.jpg`, `KEY.txt`, `KEY.json`), or any other store of `image` and
`caption`. The paper states the wish ("Generate an image of ...") and that a short sentence leads in, not its words.

It has the fields of `captions`, so it is named in the recipe and never recognised.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diptych.data.record_formats.captions import parse_caption
from diptych.data.record_formats.record_shape import RecordSettings, choose
from diptych.data.samples import Message, Sample

LEAD_INS = (
    "Here is an image of it.",
    "Sure, here is the image.",
    "This is what it looks like:",
    "Here you are.",
)


def parse_generation(record: dict[str, Any], number: int, settings: RecordSettings) -> Sample:
    """Raises RecordError as `parse_caption` does."""
    sample = parse_caption(record, number, replace(settings, task="draw"))
    wish, drawn = sample.messages
    # The number picks the wish as well: shifted, so that not each wish has one lead-in of its own.
    return replace(sample, messages=(wish, Message(drawn.role, (f"{choose(LEAD_INS, number + 1)}\n", *drawn.parts))))
