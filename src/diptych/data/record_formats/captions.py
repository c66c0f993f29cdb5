"""Images with words: an image to draw from its caption, or a caption to say, as the source's `task:` says."""

from __future__ import annotations

from typing import Any

from diptych.data.record_formats.record_shape import RecordSettings, choose, has_images, image_list, text_field
from diptych.data.samples import IMAGE_PLACEHOLDER, Message, RecordError, Sample

DRAW_TEMPLATES = ("Generate an image of {caption}.",)
READ_TEMPLATES = ("Describe the image.",)


def is_captioned(record: dict[str, Any]) -> bool:
    caption = record.get("caption")
    said = isinstance(caption, str) or (isinstance(caption, list) and bool(caption))
    return said and has_images(record.get("image"))


def parse_caption(record: dict[str, Any], number: int, settings: RecordSettings) -> Sample:
    """Of several captions one, by the record's number. Raises RecordError if image or caption is missing."""
    images = image_list(record.get("image"), "image")
    if len(images) != 1:
        raise RecordError("image count", f"image names {len(images)} images; a caption is of one")
    captions = record.get("caption")
    caption = choose(captions, number) if isinstance(captions, list) and captions else captions
    caption = text_field(caption, "caption").strip()
    if IMAGE_PLACEHOLDER in caption:
        raise RecordError("structure", f"the caption holds {IMAGE_PLACEHOLDER}, which would be read as an image")
    if settings.task == "read":
        asked = choose(settings.prompt_templates or READ_TEMPLATES, number)
        messages = (Message("user", (0, f"\n{asked}")), Message("assistant", (caption,)))
    else:
        words = caption.removesuffix(".") if not settings.prompt_templates else caption
        asked = choose(settings.prompt_templates or DRAW_TEMPLATES, number).replace("{caption}", words)
        messages = (Message("user", (asked,)), Message("assistant", (0,)))
    return Sample(messages, tuple(images), {"id": record["id"]} if "id" in record else {})
