"""OmniGen2's records: `instruction`, `input_images`, `output_image`: images, a wish, the image that fulfils it."""

from __future__ import annotations

from typing import Any

from diptych.data.record_formats.record_shape import RecordSettings, choose, has_images, image_list, text_field
from diptych.data.samples import IMAGE_PLACEHOLDER, Message, RecordError, Sample

_INPUTS = ("input_images", "input_image")


def is_triple(record: dict[str, Any]) -> bool:
    return isinstance(record.get("instruction"), str) and has_images(record.get("output_image"))


def parse_triple(record: dict[str, Any], number: int, settings: RecordSettings) -> Sample:
    """Input images first, then the instruction on a line of its own; without input images it is a wish to draw.

    Raises RecordError if one of the fields is not what it should be.
    """
    words = text_field(record.get("instruction"), "instruction")
    if IMAGE_PLACEHOLDER in words:
        raise RecordError("structure", f"the instruction holds {IMAGE_PLACEHOLDER}; input images come before it")
    given = [name for name in _INPUTS if record.get(name) is not None]
    if len(given) > 1:
        raise RecordError("structure", f"{' and '.join(given)} both name the input; leave one out")
    inputs = image_list(record[given[0]], given[0]) if given else []
    outputs = image_list(record.get("output_image"), "output_image")
    if len(outputs) != 1:
        raise RecordError("image count", f"output_image names {len(outputs)} images; it must be one")
    if settings.prompt_templates:
        words = choose(settings.prompt_templates, number).replace("{instruction}", words)
    asked: list[str | int] = [*range(len(inputs)), f"\n{words}" if inputs else words]
    messages = (Message("user", tuple(asked)), Message("assistant", (len(inputs),)))
    return Sample(messages, (*inputs, *outputs), {"id": record["id"]} if "id" in record else {})
