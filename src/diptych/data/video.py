"""Frames of short videos from files nobody vouches for: mp4, webm, GIF, animated WebP, as plain RGB images.

mp4 and webm are read through PyAV, which seeks to the keyframe before each wanted frame and decodes from there. GIF and
WebP are read through Pillow: FFmpeg decodes no animated WebP, and Pillow gets a GIF's disposal and transparency right.
Their headers are walked first (`animation_headers.py`), so that their size is known before anything is decoded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

from diptych.data.animation_headers import HeaderError, read_gif_header, read_webp_header
from diptych.data.images import DECODING_ERRORS, MAX_PIXELS, open_regular_file, resolve_inside, to_rgb

MAX_CLIP_SECONDS = 4 * 3600.0
MAX_CLIP_FRAMES = 1_000_000
MAX_ANIMATION_FRAMES = 5_000
"""Of a GIF or WebP, which has no keyframes to start from: everything before a frame is decoded too."""
MAX_ANIMATION_BYTES = 200_000_000
"""Of a WebP, which Pillow holds as a whole."""
VIDEO_CODECS = ("h264", "hevc", "mpeg4", "vp8", "vp9", "av1")
_FRAMES_AT_ONE_FPS = 45
_NEAR_SECONDS = 5.0
"""Where a file has no index, decoding on is taken for cheaper than seeking over a shorter way than this."""


@dataclass(frozen=True)
class ClipInfo:
    """What a clip's headers say. `num_frames` is None where they do not count them (webm)."""

    kind: str
    width: int
    height: int
    seconds: float
    num_frames: int | None


def read_clip_info(source: str | Path | IO[bytes], *, root: str | Path | None = None, what: str = "") -> ClipInfo:
    """The size and length of a clip; nothing is decoded. Arguments and errors: as of `read_frames`."""
    with _clip_file(source, root, what) as (file, name), _reader(file, name) as reader:
        return reader.info


def read_frames(
    source: str | Path | IO[bytes],
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    max_frames: int = _FRAMES_AT_ONE_FPS,
    root: str | Path | None = None,
    what: str = "",
) -> list[Image.Image]:
    """Frames of a clip: `num_frames` spread evenly (`spread_times`), or `fps` a second from its start.

    Where `fps` gives more than `max_frames`, that many are spread evenly instead, so that the end is seen too.
    `source`: a path (with `root`, relative to it: `resolve_inside`) or an open binary file that can seek, which errors
    call `what`. A URL is never opened. Frames are RGB, upright, on white.

    Raises ValueError that names the file: missing, not mp4, webm, GIF or WebP, of another codec, beyond MAX_PIXELS,
    MAX_CLIP_SECONDS, MAX_CLIP_FRAMES or MAX_ANIMATION_FRAMES (all before decoding), corrupt or truncated.
    """
    if (num_frames is None) == (fps is None):
        raise ValueError("frames of a clip are read by num_frames or by fps; give one of the two")
    if max_frames < 1 or (num_frames is not None and not 1 <= num_frames <= MAX_CLIP_FRAMES):
        raise ValueError(f"num_frames is {num_frames} and max_frames {max_frames}; they must be at least 1")
    if fps is not None and not 0 < fps <= 1000:
        raise ValueError(f"fps is {fps}; it must lie above 0, up to 1000")
    with _clip_file(source, root, what) as (file, name), _reader(file, name) as reader:
        seconds = reader.info.seconds
        wanted = num_frames
        if fps is not None:
            wanted = max(1, math.ceil(seconds * fps - 1e-6))
            if wanted <= max_frames:
                return reader.frames_at([place / fps for place in range(wanted)])
            wanted = max_frames
        return reader.frames_at(spread_times(seconds, wanted or 1))


def read_frames_at(
    source: str | Path | IO[bytes], times: Sequence[float], *, root: str | Path | None = None, what: str = ""
) -> list[Image.Image]:
    """The frames on show at `times`, seconds from the clip's start, in the order given. Errors: as of `read_frames`,
    and a time that lies outside the clip."""
    with _clip_file(source, root, what) as (file, name), _reader(file, name) as reader:
        for time in times:
            if not 0 <= time <= reader.info.seconds:
                raise ValueError(f"{name} is {reader.info.seconds:.3f} s long; it has no frame at {time} s")
        frames = dict(zip(sorted(set(times)), reader.frames_at(sorted(set(times))), strict=True))
        return [frames[time] for time in times]


def spread_times(seconds: float, num_frames: int) -> list[float]:
    """The middles of `num_frames` equal parts of a clip: neither its first nor its last frame, often blank."""
    return [seconds * (place + 0.5) / num_frames for place in range(num_frames)]


@contextmanager
def _clip_file(source: str | Path | IO[bytes], root: str | Path | None, what: str) -> Iterator[tuple[IO[bytes], str]]:
    if not isinstance(source, str | Path):
        yield source, what or "the clip"
        return
    location = Path(source) if root is None else resolve_inside(root, str(source))
    name = what or f"clip {location}"
    with open_regular_file(location, what=name) as file:
        yield file, name


class _AnimationReader:
    """GIF and animated WebP, through Pillow."""

    def __init__(self, file: IO[bytes], kind: str, name: str) -> None:
        try:
            header = (read_gif_header if kind == "GIF" else read_webp_header)(file, max_frames=MAX_ANIMATION_FRAMES)
        except HeaderError as error:
            raise ValueError(f"{name} {error}; replace it, or leave it out") from None
        if kind == "WEBP" and header.num_bytes > MAX_ANIMATION_BYTES:
            raise ValueError(f"{name} is too large: {header.num_bytes} bytes, more than {MAX_ANIMATION_BYTES} for WebP")
        self.name, self._file, self._kind = name, file, kind
        self._durations = header.durations
        seconds = sum(header.durations)
        self.info = ClipInfo(kind.lower(), header.width, header.height, seconds, len(header.durations))
        _check_bounds(self.info, name)

    def frames_at(self, times: Sequence[float]) -> list[Image.Image]:
        """`times` ascending."""
        numbers, number, end = [], 0, self._durations[0]
        for time in times:
            while time >= end - 1e-9 and number + 1 < len(self._durations):
                number += 1
                end += self._durations[number]
            numbers.append(number)
        self._file.seek(0)
        frames: dict[int, Image.Image] = {}
        try:
            with Image.open(self._file, formats=(self._kind,)) as image:
                for number in dict.fromkeys(numbers):
                    image.seek(number)
                    frames[number] = to_rgb(image)
        except DECODING_ERRORS as error:
            raise ValueError(f"{self.name} is corrupt or truncated: {error}; replace it, or leave it out") from error
        return [frames[number] for number in numbers]


class _VideoReader:
    """mp4 and webm, through PyAV."""

    def __init__(self, container: Any, kind: str, name: str) -> None:
        self.name, self._container = name, container
        if not container.streams.video:
            raise ValueError(f"{name} holds no video")
        self._stream = stream = container.streams.video[0]
        context: Any = stream.codec_context  # None where nobody knows the coding
        codec = "something unknown" if context is None else context.codec.canonical_name
        if codec not in VIDEO_CODECS:
            raise ValueError(f"{name} is coded as {codec}; {', '.join(VIDEO_CODECS)} are read")
        stream.codec_context.thread_count = 1  # a loader's workers share the cores already
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # for a size that changes on the way
        width, height = stream.codec_context.width, stream.codec_context.height
        if width < 1 or height < 1:
            raise ValueError(f"{name} is corrupt or truncated: it has no size; replace it, or leave it out")
        self._start = stream.start_time or 0
        self._slack = 1.0
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
            self._slack = 2.0 / float(stream.average_rate or 10)
        elif container.duration:
            seconds = container.duration / 1e6
        else:
            seconds = self._seconds_of_packets()
        self.info = ClipInfo(kind, width, height, seconds, stream.frames or None)
        _check_bounds(self.info, name)

    def frames_at(self, times: Sequence[float]) -> list[Image.Image]:
        """`times` ascending."""
        images: list[Image.Image] = []
        previous, image = None, None
        for frame in self._frames_at(times):
            if frame is not previous or image is None:
                previous, image = frame, _frame_image(frame, self.name)
            images.append(image)
        return images

    def _frames_at(self, times: Sequence[float]) -> Iterator[Any]:
        shown = coming = None
        frames: Iterator[Any] = iter(())
        for time in times:
            target = self._start + math.floor(time / self._stream.time_base + 0.5)
            if shown is None or (coming is not None and coming.pts <= target and self._is_far(shown.pts, target)):
                frames, shown = self._seek(target), None
                coming = next(frames, None)
                if coming is not None and coming.pts > target and target > self._start:
                    frames = self._seek(self._start)  # the index led behind the target
                    coming = next(frames, None)
            while coming is not None and (shown is None or coming.pts <= target):
                shown, coming = coming, next(frames, None)
            if shown is None or (coming is None and (target - shown.pts) * self._stream.time_base > self._slack):
                raise ValueError(f"{self.name} is corrupt or truncated: it ends before {time:.3f} s; replace it")
            yield shown

    def _seek(self, target: int) -> Iterator[Any]:
        self._container.seek(target, stream=self._stream)
        for frame in self._container.decode(self._stream):
            if frame.pts is None or frame.width * frame.height > MAX_PIXELS:
                raise ValueError(f"{self.name} is corrupt: a frame has no time, or more than {MAX_PIXELS} pixels")
            yield frame

    def _is_far(self, here: int, target: int) -> bool:
        """Whether seeking saves decoding: a keyframe lies between."""
        entries = self._stream.index_entries
        number = entries.search_timestamp(target, backward=True) if len(entries) else -1
        if number >= 0 and entries[number].timestamp > here:
            return True
        return (target - here) * self._stream.time_base > _NEAR_SECONDS

    def _seconds_of_packets(self) -> float:
        """The length of a file that does not tell it (a recorder's webm), from its packets; none is decoded."""
        last = 0
        for number, packet in enumerate(self._container.demux(self._stream)):
            if number > MAX_CLIP_FRAMES:
                raise ValueError(f"{self.name} is too long: more than {MAX_CLIP_FRAMES} frames; cut it")
            if packet.pts is not None:
                last = max(last, packet.pts - self._start + (packet.duration or 0))
        return float(last * self._stream.time_base)


@contextmanager
def _reader(file: IO[bytes], name: str) -> Iterator[_AnimationReader | _VideoReader]:
    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    if head[:6] in (b"GIF87a", b"GIF89a"):
        yield _AnimationReader(file, "GIF", name)
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        yield _AnimationReader(file, "WEBP", name)
    elif head[4:8] == b"ftyp":
        with _container(file, "mp4", name) as container:
            yield _VideoReader(container, "mp4", name)
    elif head[:4] == b"\x1a\x45\xdf\xa3" and re.search(rb"\x42\x82(\x84|\x40\x04|\x10\x00\x00\x04)webm", head):
        with _container(file, "webm", name) as container:
            yield _VideoReader(container, "webm", name)
    else:
        raise ValueError(f"{name} is none of mp4, webm, GIF, WebP, or it is corrupt")


@contextmanager
def _container(file: IO[bytes], kind: str, name: str) -> Iterator[Any]:
    try:
        import av
        import av.error
    except ImportError as error:
        raise ValueError("mp4 and webm are read with PyAV; install it with: pip install 'diptych[video]'") from error
    try:
        # A named format is the only one tried, and a file object leaves no protocol to choose: FFmpeg opens nothing.
        with av.open(file, "r", format=kind, io_open=_refuse_to_open, metadata_errors="replace") as container:
            yield container
    except av.error.FFmpegError as error:
        raise ValueError(f"{name} is corrupt or truncated: {error.strerror}; replace it, or leave it out") from error


def _refuse_to_open(url: str, *_: Any) -> Any:
    raise ValueError(f"a clip refers to {url[:200]!r}, outside itself")


def _frame_image(frame: Any, name: str) -> Image.Image:
    """RGB, upright as the file says, alpha on white."""
    if any(component.is_alpha for component in frame.format.components):
        image = to_rgb(Image.fromarray(frame.reformat(format="rgba").to_ndarray(), mode="RGBA"))
    else:
        image = frame.to_image()
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation) % 360)
    return image.convert("RGB") if turn is None else image.convert("RGB").transpose(turn)


def _check_bounds(info: ClipInfo, name: str) -> None:
    if info.width * info.height > MAX_PIXELS:
        raise ValueError(
            f"{name} is too large: {info.width} x {info.height} pixels, more than the {MAX_PIXELS} allowed"
        )
    if not 0 < info.seconds <= MAX_CLIP_SECONDS:
        raise ValueError(f"{name} is {info.seconds:.0f} s long; above 0 and up to {MAX_CLIP_SECONDS:.0f} s are read")
    if info.num_frames is not None and info.num_frames > MAX_CLIP_FRAMES:
        raise ValueError(f"{name} is too long: {info.num_frames} frames, more than {MAX_CLIP_FRAMES}; cut it")
