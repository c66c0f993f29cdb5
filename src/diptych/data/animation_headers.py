"""How large and how long a GIF or WebP is, from its headers alone: blocks are stepped over, nothing is decoded."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import IO

_UNTIMED_SECONDS = 0.1
"""How long browsers show a frame that says 0."""


class HeaderError(ValueError):
    """What is wrong with a file, as words that follow its name."""


@dataclass(frozen=True)
class AnimationHeader:
    """`durations`: seconds of each frame. `width`, `height`: of the canvas, all frames included."""

    width: int
    height: int
    durations: tuple[float, ...]
    num_bytes: int


def read_gif_header(file: IO[bytes], *, max_frames: int) -> AnimationHeader:
    """Raises HeaderError: no frame, cut off, or more than `max_frames`, at the first one too many."""
    file.seek(6)
    width, height, flags = struct.unpack("<HHBxx", _read(file, 7))
    _skip_colours(file, flags)
    durations: list[float] = []
    seconds = 0.0
    while (mark := file.read(1)) not in (b"", b";"):  # many files lack the closing ";"
        if mark == b"!":
            label = _read(file, 1)
            size = _read(file, 1)[0]
            block = _read(file, size)
            if label == b"\xf9" and size >= 4:
                seconds = struct.unpack("<H", block[1:3])[0] / 100
            if size:
                _skip_blocks(file)
        elif mark == b",":
            if len(durations) == max_frames:
                raise HeaderError(f"is too long: more than {max_frames} frames")
            left, top, wide, high, flags = struct.unpack("<HHHHB", _read(file, 9))
            width, height = max(width, left + wide), max(height, top + high)
            _skip_colours(file, flags)
            _read(file, 1)
            _skip_blocks(file)
            durations.append(seconds or _UNTIMED_SECONDS)
            seconds = 0.0
        else:
            raise HeaderError("is corrupt: a block of unknown kind")
    return _checked(width, height, durations, file)


def read_webp_header(file: IO[bytes], *, max_frames: int) -> AnimationHeader:
    """A still WebP is one frame. Raises HeaderError: no frame, cut off, or more than `max_frames`."""
    file.seek(12)
    end = _size(file)
    width = height = 0
    durations: list[float] = []
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        after = file.tell() + size + size % 2
        if after - size % 2 > end:
            raise HeaderError("is corrupt or truncated: a chunk reaches beyond its end")
        if name == b"VP8X":
            body = _read(file, 10)
            width, height = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        elif name == b"ANMF":
            if len(durations) == max_frames:
                raise HeaderError(f"is too long: more than {max_frames} frames")
            milliseconds = int.from_bytes(_read(file, 16)[12:15], "little")
            durations.append(milliseconds / 1000 or _UNTIMED_SECONDS)
        elif name == b"VP8L" and not durations:
            bits = int.from_bytes(_read(file, 5)[1:5], "little")
            width, height = width or 1 + (bits & 0x3FFF), height or 1 + (bits >> 14 & 0x3FFF)
            durations.append(_UNTIMED_SECONDS)
        elif name == b"VP8 " and not durations:
            wide, high = struct.unpack("<HH", _read(file, 10)[6:10])
            width, height = width or wide & 0x3FFF, height or high & 0x3FFF
            durations.append(_UNTIMED_SECONDS)
        file.seek(after)
    return _checked(width, height, durations, file)


def _checked(width: int, height: int, durations: list[float], file: IO[bytes]) -> AnimationHeader:
    if not durations or width < 1 or height < 1:
        raise HeaderError("is corrupt or truncated: it holds no frame")
    return AnimationHeader(width, height, tuple(durations), _size(file))


def _skip_colours(file: IO[bytes], flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, os.SEEK_CUR)


def _skip_blocks(file: IO[bytes]) -> None:
    while size := _read(file, 1)[0]:
        file.seek(size, os.SEEK_CUR)


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise HeaderError("is corrupt or truncated: it ends within a block")
    return data


def _size(file: IO[bytes]) -> int:
    here = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(here)
    return size
