"""Conversations as users write them, read into messages and images; and the options of generation, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from diptych.data.formats import Message
from diptych.data.images import image_to_tensor, open_image

Part = str | Image.Image
Conversation = Sequence[Mapping[str, Any]]
"""Messages {"role", "content"}; content is text, or a list of text and images (PIL, a path, OpenAI content parts)."""
GENERATION_MODES = ("auto", "text", "image")


def parse_conversation(conversation: Conversation, *, image_size: int) -> tuple[tuple[Message, ...], list[Tensor]]:
    """Messages whose parts are texts and indices of images, and the images [3, S, S] in -1..1.

    Raises ValueError for a conversation without a user turn, and for content that is neither text nor an image.
    """
    pixels: list[Tensor] = []
    messages = []
    for message in conversation:
        content = message["content"]
        parts: list[str | int] = []
        for part in [content] if isinstance(content, (str, Image.Image)) else content:
            if isinstance(part, Mapping):
                kind = part.get("type")
                part = part.get("text") if kind == "text" else part.get(kind or "", part.get("image"))
            if isinstance(part, str) and (isinstance(content, str) or not _is_image_path(part)):
                parts.append(part)
            elif isinstance(part, (str, Path, Image.Image)):
                image = part if isinstance(part, Image.Image) else open_image(part)
                parts.append(len(pixels))
                pixels.append(image_to_tensor(image.convert("RGB"), image_size))
            else:
                raise ValueError(
                    f"a message's content holds {type(part).__name__}; give text, a PIL image or the path of one"
                )
        messages.append(Message(str(message["role"]), tuple(parts)))
    if not any(message.role == "user" for message in messages):
        raise ValueError("a conversation needs at least one user message")
    return tuple(messages), pixels


def check_options(
    *,
    generation_mode: str,
    num_images: int,
    num_inference_steps: int | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
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
