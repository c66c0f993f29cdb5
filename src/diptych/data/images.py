"""Images from files nobody vouches for: checked before decoding, confined to their folder, always plain RGB."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""The decoders that may run; every other decoder of Pillow stays out of reach of a file."""
MAX_PIXELS = 50_000_000
MAX_IMAGE_BYTES = 200_000_000
"""Of one encoded image. The largest that its pixels could ask for, 50 million of them in BMP, is smaller."""

Fit = Literal["crop", "squash"]
"""How an image becomes a square: crop takes its centre, as everything that is drawn does; squash all of it, of whatever
shape, as some image encoders read it (`ImagePreprocessing`)."""
Interpolation = Literal["bicubic", "bilinear"]

DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AttributeError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow may raise on bytes that are no sound picture."""


def resolve_inside(root: str | Path, path: str) -> Path:
    """The file that the relative `path` names under `root`, links followed.

    Raises ValueError that names the path: empty, absolute, with `..`, a drive, a scheme (`file:`, `pipe:`, `http:`), a
    NUL or a backslash, or a link that leads out of `root`.
    """
    shown = repr(path[:200])
    if not path or path.startswith("/") or "\x00" in path or "\\" in path:
        raise ValueError(f"image path {shown} must be a relative path inside {root}, with forward slashes")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path):
        raise ValueError(f"image path {shown} names a scheme or a drive; only files inside {root} are read")
    if ".." in path.split("/"):
        raise ValueError(f"image path {shown} climbs with '..'; it must stay inside {root}")
    try:
        base = Path(root).resolve()
        resolved = (base / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, names that the system cannot hold
        raise ValueError(f"image path {shown} cannot be followed under {root}: {error}") from error
    if not resolved.is_relative_to(base):
        raise ValueError(f"image path {shown} leads out of {root} through a link; copy the file into the folder")
    return resolved


def open_image(path: str | Path, *, root: str | Path | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads one image as 8-bit RGB: upright (EXIF), first frame, on white; grey, palette, CMYK converted.

    With `root`, `path` is relative to it and may not leave it (`resolve_inside`). The size is checked in the header,
    before anything is decoded.

    Raises ValueError that names the file: missing, not a regular file, not one of IMAGE_FORMATS, more than `max_pixels`
    pixels or MAX_IMAGE_BYTES bytes, corrupt or truncated.
    """
    if root is not None:
        location = resolve_inside(root, os.fspath(path))
    elif "\x00" in os.fspath(path):
        raise ValueError(f"image path {os.fspath(path)!r} holds a NUL character")
    else:
        location = Path(path)
    with open_regular_file(location, what=f"image {location}") as file:
        return _decode(file, f"image {location}", max_pixels)


def open_regular_file(path: str | Path, *, what: str) -> IO[bytes]:
    """A file opened for reading, never a pipe or a device. Raises ValueError that names `what`: missing, unreadable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block us
    except FileNotFoundError:
        raise ValueError(f"{what} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ValueError(f"{what} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{what} is not a regular file")
    return os.fdopen(descriptor, "rb")


def decode_image(data: bytes, *, what: str = "the image", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads one image that is in memory; like `open_image`, whose errors name `what` here."""
    return _decode(io.BytesIO(data), what, max_pixels)


def _decode(file: IO[bytes], what: str, max_pixels: int) -> Image.Image:
    try:
        with Image.open(_bounded(file), formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _TooLarge(f"{width} x {height} pixels, more than the {max_pixels} allowed")
            return to_rgb(image)
    except _TooLarge as error:
        raise ValueError(f"{what} is too large: {error}; scale it down") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{what} is too large: more than the {max_pixels} pixels allowed; scale it down") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{what} is none of {', '.join(IMAGE_FORMATS)}, or it is corrupt") from None
    except DECODING_ERRORS as error:
        raise ValueError(f"{what} is corrupt or truncated: {error}; replace it, or leave it out") from error


def _bounded(file: IO[bytes]) -> IO[bytes]:
    """The file, if it is no larger than an image may be. Pillow reads a WebP as a whole: it is given what belongs to
    the picture, as its header says, and not what lies behind."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > MAX_IMAGE_BYTES:
        raise _TooLarge(f"{size:,} bytes, more than the {MAX_IMAGE_BYTES:,} allowed")
    head = file.read(12)
    file.seek(0)
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        own = int.from_bytes(head[4:8], "little") + 8
        if own < size:
            return io.BytesIO(file.read(own))
    return file


class _TooLarge(Exception):
    pass


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as `open_image` gives it: upright, on white, 8-bit RGB."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # convert() would clip 16-bit values at 255
        image = _from_16_bit(image)
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    grey = Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def image_to_tensor(
    image: Image.Image,
    size: int,
    *,
    fit: Fit = "crop",
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """An image as a square, resized with antialiasing: [3, size, size] float32 in -1..1."""
    image = image.convert("RGB")
    if fit == "crop":
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))  # resize(box=) would mix in what is outside
    image = image.resize((size, size), Image.Resampling[interpolation.upper()])
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.permute(2, 0, 1).contiguous() / 127.5 - 1.0


def tensor_to_image(pixels: Tensor) -> Image.Image:
    """[3, H, W] in -1..1 (values beyond are cut) as an RGB image. Raises ValueError on another shape or NaN."""
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"an image tensor has shape [3, height, width], got {list(pixels.shape)}")
    values = pixels.detach().float().cpu()
    if bool(values.isnan().any()):
        raise ValueError("an image tensor holds NaN; the model or the sampler that made it has diverged")
    values = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
