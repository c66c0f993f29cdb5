"""Conversations as users write them, read into messages and images; and the options of generation, checked."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image
from torch import Tensor

from diptych.data.images import Fit, Interpolation, decode_image, image_to_tensor, open_image, to_rgb
from diptych.data.samples import Message

Prepared = TypeVar("Prepared")
Part = str | Image.Image
Conversation = Sequence[Mapping[str, Any]]
"""Messages {"role", "content"}; content is text, or a list of text and images: PIL, paths, content parts as OpenAI has
them ({"type": "text"}, {"type": "image_url"} with a path or a data: URL)."""
Ability = Literal["reads", "writes", "draws", "reconstructs"]
"""Of a morph: answers about images in words; has a language model; draws pixels from a prompt; brings an image through
its latents or visual tokens and back."""
GENERATION_MODES = ("auto", "text", "image")


def read_conversation(
    conversation: Conversation, prepare: Callable[[Image.Image], Prepared]
) -> tuple[tuple[Message, ...], list[Prepared]]:
    """Messages whose parts are texts and indices of images, and what `prepare` makes of each image, in RGB.

    Each image is opened once, and prepared before the next one is. Raises ValueError for a conversation without a user
    turn, and for content that is neither text nor an image.
    """
    prepared: list[Prepared] = []
    messages = []
    for message in conversation:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError("a message must have a role and a content, such as {'role': 'user', 'content': 'Draw.'}")
        content = message["content"]
        parts: list[str | int] = []
        for part in [content] if isinstance(content, (str, Image.Image)) else content:
            read = part if isinstance(content, str) else _read_part(part)
            if isinstance(read, Image.Image):
                parts.append(len(prepared))
                prepared.append(prepare(read))
            else:
                parts.append(read)
        messages.append(Message(str(message["role"]), tuple(parts)))
    if not any(message.role == "user" for message in messages):
        raise ValueError("a conversation needs at least one user message")
    return tuple(messages), prepared


def parse_conversation(
    conversation: Conversation,
    *,
    image_size: int,
    fit: Fit = "crop",
    interpolation: Interpolation = "bicubic",
) -> tuple[tuple[Message, ...], list[Tensor]]:
    """`read_conversation`, its images as tensors [3, S, S] in -1..1 (`image_to_tensor`)."""
    prepare = partial(image_to_tensor, size=image_size, fit=fit, interpolation=interpolation)
    return read_conversation(conversation, prepare)


def _read_part(part: Any) -> str | Image.Image:
    """Text, or an image in RGB. A bare string is text, unless it is the path of an image file that is there."""
    if isinstance(part, Mapping):
        kind = part.get("type")
        value = part.get(kind) if kind in ("text", "image", "image_url") else None
        if kind == "text" and isinstance(value, str):
            return value
        if kind == "image_url":
            value = value.get("url") if isinstance(value, Mapping) else value
        if value is None:
            raise ValueError(
                f"a content part of type {kind!r} is not known; give text, image or image_url, with a value"
            )
        return _read_image(value)
    if isinstance(part, str) and not _is_image_path(part):
        return part
    return _read_image(part)


def _read_image(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return to_rgb(value)
    if isinstance(value, str) and value.startswith("data:"):
        header, _, data = value.partition(",")
        if not header.endswith(";base64"):
            raise ValueError("a data: URL of an image must be base64, such as data:image/png;base64,iVBOR...")
        try:
            return decode_image(base64.b64decode(data, validate=True), what="the image in a data: URL")
        except binascii.Error as error:
            raise ValueError(f"the image in a data: URL is no base64: {error}") from error
    if isinstance(value, str) and re.match(r"[a-z]+://", value, re.IGNORECASE):
        raise ValueError(f"image {value[:80]!r} is not fetched: no address is; give a file, a PIL image or a data: URL")
    if isinstance(value, (str, Path)):
        return open_image(value)
    raise ValueError(f"a message's content holds {type(value).__name__}; give text, a PIL image or the path of one")


def check_options(
    *,
    generation_mode: str = "auto",
    num_images: int = 1,
    num_inference_steps: int | None = None,
    max_new_tokens: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> None:
    """Raises ValueError for an option of generation that is out of range."""
    if generation_mode not in GENERATION_MODES:
        raise ValueError(f"generation_mode {generation_mode!r} is none of {', '.join(GENERATION_MODES)}")
    for name, value in (("num_images", num_images), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if num_inference_steps is not None and num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    if temperature <= 0 or not 0 < top_p <= 1:
        raise ValueError("temperature must be above 0 and top_p in (0, 1]")


def _is_image_path(text: str) -> bool:
    return text.lower().endswith((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")) and Path(text).is_file()
