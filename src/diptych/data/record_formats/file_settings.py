"""What formats are told that look at the files which a record names: at a clip's length, at a folder of frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diptych.data.record_formats.record_shape import RecordSettings


@dataclass(frozen=True)
class FileSettings(RecordSettings):
    """`locate`: the whole path of a file that a record names, `list_folder`: the names of the files of a folder, in
    order. Both stay inside the source's folder and raise RecordError: a path that leads out of it, nothing there."""

    locate: Callable[[str], str] | None = None
    list_folder: Callable[[str], list[str]] | None = None
    fps: float | None = None
    max_frames: int = 45


def file_settings(settings: RecordSettings) -> FileSettings:
    """The settings with what they say of files. Raises ValueError where a caller reads records without any files."""
    if not isinstance(settings, FileSettings) or settings.locate is None or settings.list_folder is None:
        raise ValueError("this format looks at the files of its records; open it as a source, with a folder of files")
    return settings
