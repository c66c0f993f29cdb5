"""What stands in `Sample.images`: a string that names an image, whatever holds it.

| reference | what it names |
|---|---|
| `PATH` | a file |
| `PATH.tar@OFFSET+SIZE` | a member of an uncompressed tar, by its place in the file |
| `PATH.parquet#ROW/COLUMN` or `.../INDEX` | a cell of a table, or an entry of a list in it |
| `FOLDER#row=ROW/COLUMN` or `.../INDEX` | the same of a Hugging Face dataset that was saved to disk |
| `PATH#frame=K/N` | the K-th (from 0) of N frames, spread evenly over a clip |
| `data:image/...;base64,...` | the image itself |
| any of these, then `#crop=...` or `#boxes=...` | a part of it, or it with boxes drawn in: `image_regions.py` |
| a `WebImage` | an https URL that the recipe allows |

A file, member or cell is read when its reference is, never before. A plain string never makes anything be fetched.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.image_regions import region_hash, show_region, split_region
from diptych.data.images import MAX_IMAGE_BYTES, decode_image, open_image, open_regular_file
from diptych.data.recently_used import RecentlyUsed

MAX_FRAMES = 4096

_MEMBER = re.compile(r"(.+\.tar)@(\d{1,19})\+(\d{1,19})", re.DOTALL)
_CELL = re.compile(r"(.+\.parquet)#(\d{1,15})/([^/]+)(?:/(\d{1,9}))?", re.DOTALL)
_ROW = re.compile(r"(.+)#row=(\d{1,15})/([^/]+)(?:/(\d{1,9}))?", re.DOTALL)
_FRAME = re.compile(r"(.+)#frame=(\d{1,6})/(\d{1,6})", re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

_FRAMES_KEPT_BYTES = 64_000_000
_frames: RecentlyUsed[tuple[str, int, int], list[Image.Image]] = RecentlyUsed(
    4,
    max_total=_FRAMES_KEPT_BYTES,
    size_of=lambda frames: sum(3 * frame.width * frame.height for frame in frames),
)
# What is hashed is then decoded: both of the same answer.
_fetched: RecentlyUsed[str, bytes] = RecentlyUsed(64, max_total=64_000_000, size_of=len)
_digests: RecentlyUsed[tuple[str, int, int, int], str] = RecentlyUsed(4096)


class StoredImage(str):
    """A reference that a store made itself: it is whole, while a string that a record holds is still to be judged."""

    __slots__ = ()


class WebImage(StoredImage):
    """An https URL of a host that the recipe allows (`data.allow_urls`); only `sources.py` makes one."""

    allowed_hosts: tuple[str, ...]

    def __new__(cls, url: str, *, allowed_hosts: tuple[str, ...]) -> WebImage:
        made = super().__new__(cls, url)
        made.allowed_hosts = allowed_hosts
        return made


def names_part_of_a_file(path: str) -> bool:
    """Whether a string is a reference into a file (a member, cell, row or frame) rather than a plain path."""
    return any(pattern.fullmatch(path) for pattern in (_MEMBER, _CELL, _ROW, _FRAME))


def frame_reference(clip: str, place: int, num_frames: int) -> str:
    """Of frame `place` (from 0) of `num_frames` that are spread evenly over a clip."""
    return f"{clip}#frame={place}/{num_frames}"


def split_frame(reference: str) -> tuple[str, int, int] | None:
    """(clip, place, number of frames) of a reference to a frame. Raises ValueError for a place that is none."""
    found = _FRAME.fullmatch(reference)
    if found is None:
        return None
    clip, place, num_frames = found[1], int(found[2]), int(found[3])
    if not 0 <= place < num_frames <= MAX_FRAMES:
        raise ValueError(f"{_shown(reference)}: a frame is K/N with K from 0 to N - 1, and N at most {MAX_FRAMES}")
    return clip, place, num_frames


def open_reference(reference: str) -> Image.Image:
    """The image that a reference names: upright, 8-bit RGB (`images.open_image`). Raises ValueError that names it."""
    read = read_reference(reference, as_file=True)
    if isinstance(read, Path):
        return open_image(read)
    if isinstance(read, bytes):
        return decode_image(read, what=f"image {_shown(reference)}")
    return read


def read_reference(reference: str, *, as_file: bool = False) -> bytes | Image.Image | Any:
    """The encoded bytes that a reference names, or of a clip the decoded frame (RGB).

    `as_file`: of a plain file the Path instead, for what can read one in pieces. Raises ValueError that names the
    reference: nothing is there, it is too large, or nothing may be fetched.
    """
    if isinstance(reference, WebImage):
        from diptych.data.web_images import fetch_image

        hosts = reference.allowed_hosts
        return _fetched.get_or_make(f"{hosts} {reference}", lambda: fetch_image(reference, allowed_hosts=hosts))
    if reference[:5].lower() == "data:":
        return _read_data_uri(reference)
    if (part := split_region(reference)) is not None:
        return show_region(open_reference(part[0]), part[1], what=f"image {_shown(part[0])}")
    if (frame := split_frame(reference)) is not None:
        return _read_frame(*frame)
    if (member := _MEMBER.fullmatch(reference)) is not None:
        return _read_range(member[1], int(member[2]), int(member[3]), reference)
    if (cell := _CELL.fullmatch(reference)) is not None:
        from diptych.data.stores.parquet import read_parquet_cell

        return _checked_size(read_parquet_cell(cell[1], int(cell[2]), cell[3], _index(cell[4])), reference)
    if (row := _ROW.fullmatch(reference)) is not None:
        from diptych.data.stores.hub_dataset import read_dataset_cell

        return _checked_size(read_dataset_cell(row[1], int(row[2]), row[3], _index(row[4])), reference)
    if _SCHEME.match(reference):
        raise ValueError(f"image {_shown(reference)} names a scheme; images are files")
    return Path(reference) if as_file else _read_range(reference, 0, None, reference)


def content_hash(reference: str) -> str:
    """SHA-256 of what a reference names: of the image's bytes; of a frame, of its clip's bytes and "K/N"; of a
    region, of its image's hash and the boxes.

    Raises ValueError as `read_reference` does.
    """
    is_whole = isinstance(reference, WebImage) or reference[:5].lower() == "data:"
    if not is_whole and (part := split_region(reference)) is not None:
        return region_hash(content_hash(part[0]), part[1])
    if (frame := split_frame(reference)) is not None:
        clip, place, num_frames = frame
        return hashlib.sha256(f"{_file_hash(clip)} {place}/{num_frames}".encode()).hexdigest()
    read: Any = read_reference(reference, as_file=True)
    return _file_hash(os.fspath(read)) if isinstance(read, Path) else hashlib.sha256(read).hexdigest()


def memory_key(reference: str) -> str:
    """What a store in memory knows a reference by: itself, or the SHA-256 of a long one, such as a data URI."""
    return reference if len(reference) <= 512 else hashlib.sha256(reference.encode(errors="surrogatepass")).hexdigest()


def _read_frame(clip: str, place: int, num_frames: int) -> Image.Image:
    """Small clips are decoded once for all of their frames, which are asked for in turn."""
    from diptych.data.video import read_clip_info, read_frames_at, spread_times

    info = read_clip_info(clip)
    times = spread_times(info.seconds, num_frames)
    if num_frames * info.width * info.height * 3 > _FRAMES_KEPT_BYTES // 2:
        return read_frames_at(clip, times[place : place + 1])[0]
    key = (clip, num_frames, Path(clip).stat().st_mtime_ns)
    return _frames.get_or_make(key, lambda: read_frames_at(clip, times))[place]


def _file_hash(path: str) -> str:
    """Remembered while a file's size and times stay as they are: a clip is asked for once per frame."""
    with open_regular_file(path, what=f"image {_shown(path)}") as opened:
        file: Any = opened
        status = os.fstat(file.fileno())
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        return _digests.get_or_make(key, lambda: hashlib.file_digest(file, "sha256").hexdigest())


def _read_range(path: str, offset: int, size: int | None, reference: str) -> bytes:
    with open_regular_file(path, what=f"image {_shown(path)}") as file:
        length = os.fstat(file.fileno()).st_size
        size = length if size is None else size
        if size > MAX_IMAGE_BYTES:
            raise _too_large(reference, size)
        if offset + size > length:
            raise ValueError(f"{path} ends before image {_shown(reference)} does; it was cut, or changed since")
        file.seek(offset)
        return file.read(size)


def _read_data_uri(reference: str) -> bytes:
    head, comma, body = reference.partition(",")
    if not comma or not re.fullmatch(r"data:image/[\w.+-]+;base64", head, re.IGNORECASE):
        raise ValueError(f"image {_shown(reference)} is no data URI of an image in base64 (data:image/png;base64,...)")
    if len(body) * 3 // 4 > MAX_IMAGE_BYTES:
        raise _too_large(reference, len(body) * 3 // 4)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"image {_shown(reference)} is not valid base64: {error}") from None


def _checked_size(data: bytes, reference: str) -> bytes:
    if len(data) > MAX_IMAGE_BYTES:
        raise _too_large(reference, len(data))
    return data


def _too_large(reference: str, size: int) -> ValueError:
    return ValueError(f"image {_shown(reference)} has {size:,} bytes, more than the {MAX_IMAGE_BYTES:,} that are read")


def _index(text: str | None) -> int | None:
    return None if text is None else int(text)


def _shown(reference: str) -> str:
    """For messages: a data URI or a long name is cut."""
    return reference if len(reference) <= 300 else reference[:60] + "..."
