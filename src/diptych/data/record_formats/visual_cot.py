"""Visual CoT (deepcs233/Visual-CoT, arXiv 2403.16999): a question, the region that answers it cut out, the answer.

Layout of `viscot_363k.json`: one JSON array. An entry has `image`, a list of two: `cot/SET/NAME.jpg`, and it again with
`###[x1, y1, x2, y2]` behind it; and `conversations` of four turns in LLaVA's form: human (`<image>`, the question, and
a request for the box of the region that helps), gpt (the box as text, as shares of the padded square), human
(`<image>`), gpt (the answer). Images lie under the folders `cot/flickr30k`, `cot/docvqa`, `cot/gqa` and so on.

Known from: the set's card and file list on the Hub; its repository, README and `llava/train/train.py` (the form of a
region, crops that are squares around it); its issue 1 (the numbers behind `###` are pixels of the image as it is, those
of the turns are not); three converters in public repositories that agree on the turns. They also tell of a few entries
whose boxes are inverted or lie outside (of DUDE) and of a few without an answer: these are bad records here.
Never read from the real file.

As MetaMorph uses it: the image and the question -> a sentence that announces the look closer, the region, the answer.
The box as text is left out: the model looks, it does not write coordinates.
"""

from __future__ import annotations

import re
from typing import Any

from diptych.data.image_regions import crop_reference
from diptych.data.record_formats.record_shape import RecordSettings, choose, text_field
from diptych.data.samples import IMAGE_PLACEHOLDER, Message, RecordError, Sample, kind_of

ANNOUNCEMENTS = (
    "I will look closer at the part of the image that answers this.",
    "Let me zoom in on the part that matters.",
    "To answer, I first look at this part of the image more closely.",
    "Here is the part of the image that I need.",
)
_REGION = re.compile(r"(.+)###\s*\[\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\]", re.DOTALL)
_REQUEST = re.compile(r"\s*Please provide the bounding box coordinate.*", re.IGNORECASE | re.DOTALL)


def is_visual_cot(record: dict[str, Any]) -> bool:
    images = record.get("image")
    return isinstance(images, list) and any(isinstance(image, str) and "###[" in image for image in images)


def parse_visual_cot(record: dict[str, Any], number: int, settings: RecordSettings) -> Sample:
    """Raises RecordError for an entry of another form, and for a box that encloses nothing."""
    del settings
    images = record.get("image")
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(image, str) for image in images):
        raise RecordError("structure", "image must be a list of two: the image, and the image with ###[x1, y1, x2, y2]")
    found = _REGION.fullmatch(images[1])
    if found is None or found[1] != images[0]:
        raise RecordError("box", f"{images[1][:200]!r} must be {images[0][:200]!r} with ###[x1, y1, x2, y2] behind it")
    try:
        region = crop_reference(images[0], [float(edge) for edge in found.groups()[1:]])
    except ValueError as error:
        raise RecordError("box", str(error)) from None
    values = turn_values(record, ("human", "gpt", "human", "gpt"))
    question = _REQUEST.sub("", values[0]).replace(IMAGE_PLACEHOLDER, "").strip()
    question, answer = text_field(question, "the question"), text_field(values[3], "the answer").strip()
    if IMAGE_PLACEHOLDER in answer:
        raise RecordError("structure", f"the answer holds {IMAGE_PLACEHOLDER}, which would be read as an image")
    announced = choose(ANNOUNCEMENTS, number)
    messages = (Message("user", (0, f"\n{question}")), Message("assistant", (f"{announced}\n", 1, f"\n{answer}")))
    return Sample(messages, (images[0], region), {key: record[key] for key in ("id", "question_id") if key in record})


def turn_values(record: dict[str, Any], speakers: tuple[str, ...]) -> list[str]:
    """The words of the turns of `conversations`, whose speakers must be these. Raises RecordError."""
    turns = record.get("conversations")
    if not isinstance(turns, list):
        raise RecordError("structure", f"conversations must be a list, not {kind_of(turns)}")
    found = tuple(turn.get("from") if isinstance(turn, dict) else None for turn in turns)
    if found != speakers:
        raise RecordError("role", f"turns are from {str(list(found))[:200]}; they must be from {list(speakers)}")
    return [text_field(turn.get("value"), f"turn {place}") for place, turn in enumerate(turns, start=1)]
