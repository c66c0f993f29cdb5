"""What every record format is told of its source, and what of a record they have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from diptych.data.references import StoredImage
from diptych.data.samples import RecordError, checked_text, kind_of


@dataclass(frozen=True)
class RecordSettings:
    """`frames`: the images of a clip that a record names, as the source's settings say (RecordError if they do not)."""

    task: Literal["draw", "read"] | None = None
    prompt_templates: tuple[str, ...] = ()
    frames: Callable[[str], list[str]] | None = None


def image_list(value: Any, field: str) -> list[str]:
    """The images of a field: a path, a list of them, or nothing. Raises RecordError for anything else."""
    if value is None or value == "" or value == []:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(entry, str) and entry for entry in value):
        return value
    raise RecordError("structure", f"{field} must be a path or a list of paths, not {kind_of(value)}")


def text_field(value: Any, field: str) -> str:
    """The words of a field. Raises RecordError if there are none."""
    if not isinstance(value, str) or isinstance(value, StoredImage):
        raise RecordError("structure", f"{field} must be text, not {kind_of(value)}")
    if not value.strip():
        raise RecordError("empty", f"{field} is empty")
    return checked_text(value, field)


def choose(options: tuple[str, ...] | list[str], number: int) -> str:
    """One of several, by the record's number: neighbours differ, and a record has the same one in every run."""
    return options[number * 2654435761 % 2**32 * len(options) >> 32]


def has_images(value: Any) -> bool:
    """Whether a field names an image or several."""
    return (isinstance(value, str) and bool(value)) or (
        isinstance(value, list) and bool(value) and all(isinstance(entry, str) for entry in value)
    )
