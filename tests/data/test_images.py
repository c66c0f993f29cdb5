"""Laws of reading images: right colours from every kind of file, and no file that harms."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych.data.images import Interpolation, image_to_tensor, open_image, resolve_inside, tensor_to_image


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *, depth: int = 8, colour: int = 2, extra: bytes = b"", body: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def picture(size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Red left half, blue right half."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    return image


def colour_at(image: Image.Image, place: tuple[int, int]) -> tuple[int, ...]:
    colour = image.getpixel(place)
    assert isinstance(colour, tuple)
    return colour


def left_and_right(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    assert image.mode == "RGB"
    return colour_at(image, (2, image.height // 2)), colour_at(image, (image.width - 3, image.height // 2))


def near(colour: tuple[int, ...], other: tuple[int, int, int], tolerance: int = 40) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(colour, other, strict=True))


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp"])
def test_every_format_gives_its_colours(tmp_path: Path, extension: str) -> None:
    left, right = left_and_right(open_image(saved(picture(), tmp_path / f"a.{extension}")))
    assert near(left, RED)
    assert near(right, BLUE)


@pytest.mark.parametrize("mode", ["P", "1", "L", "LA", "RGBA", "PA"])
def test_palette_grey_and_alpha_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = picture().convert(mode)
    path = saved(image, tmp_path / ("a.webp" if mode == "PA" else "a.png"))
    assert open_image(path).mode == "RGB"


def test_transparency_is_white_whatever_colour_lies_under_it(tmp_path: Path) -> None:
    image = Image.new("RGBA", (24, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 12, 16))
    paths = [
        saved(image, tmp_path / f"a.{extension}", **({"lossless": True} if extension == "webp" else {}))
        for extension in ("png", "webp", "gif")
    ]
    palette = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    paths.append(saved(palette, tmp_path / "p.png", transparency=palette.getpixel((20, 5))))
    paths.append(saved(picture(), tmp_path / "t.png", transparency=(0, 0, 255)))
    for path in paths:
        left, right = left_and_right(open_image(path))
        assert near(left, RED, 4), path
        assert right == WHITE, path
    grey = Image.fromarray(np.repeat([[[1000] * 12 + [60000] * 12]], 16, axis=1)[0].astype(np.uint16))
    left, right = left_and_right(open_image(saved(grey, tmp_path / "g.png", transparency=1000)))
    assert left == WHITE
    assert near(right, (234, 234, 234), 1)


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (24, 16), (0, 0, 0, 128))
    assert near(colour_at(open_image(saved(image, tmp_path / "a.png")), (3, 3)), (127, 127, 127), 1)


def test_sixteen_bit_values_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 24 * 16).reshape(16, 24).astype(np.uint16)
    seen = np.asarray(open_image(saved(Image.fromarray(ramp), tmp_path / "a.png")))[..., 0].astype(int)
    assert np.abs(seen - ramp / 257).max() <= 1


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    row = b"\x00" + struct.pack(">6H", 65535, 0, 0, 0, 0, 65535)
    (tmp_path / "a.png").write_bytes(png_of(2, 2, depth=16, body=zlib.compress(row * 2)))
    image = open_image(tmp_path / "a.png")
    assert image.getpixel((0, 0)) == RED
    assert image.getpixel((1, 1)) == BLUE


def test_cmyk_becomes_its_colours(tmp_path: Path) -> None:
    left, right = left_and_right(open_image(saved(picture().convert("CMYK"), tmp_path / "a.jpg", quality=95)))
    assert near(left, RED)
    assert near(right, BLUE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    """Each orientation is undone: the picture always comes out upright."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    image = picture((48, 32))
    image.paste("lime", (0, 0, 12, 8))
    stored = image if orientation == 1 else image.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = open_image(saved(stored, tmp_path / "a.jpg", exif=exif, quality=95))
    assert upright.size == (48, 32)
    assert near(colour_at(upright, (4, 3)), (0, 255, 0), 60)
    assert near(colour_at(upright, (44, 28)), BLUE, 60)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [picture(), Image.new("RGB", (24, 16), "lime")]
    for extension in ("gif", "webp", "png"):
        path = saved(frames[0], tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:])
        left, right = left_and_right(open_image(path))
        assert near(left, RED)
        assert near(right, BLUE)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, extension: str, kept: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = saved(noise, tmp_path / f"cut.{extension}")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=rf"cut\.{extension}.*corrupt"):
        open_image(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["png", "jpg", "webp", "gif", "bmp"]), st.lists(st.integers(0, 2**31), min_size=1, max_size=6))
def test_flipped_bits_give_an_image_or_a_named_error(tmp_path: Path, extension: str, flips: list[int]) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, {"jpg": "JPEG"}.get(extension, extension.upper()))
    data = bytearray(buffer.getvalue())
    for flip in flips:
        data[flip // 8 % len(data)] ^= 1 << flip % 8
    path = tmp_path / f"flipped.{extension}"
    path.write_bytes(data)
    try:
        outcome = open_image(path).mode
    except ValueError as error:
        outcome = str(error)
    assert outcome == "RGB" or f"flipped.{extension}" in outcome


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"#!/bin/sh\necho no image\n")
    with pytest.raises(ValueError, match=r"a\.png is none of PNG, JPEG"):
        open_image(tmp_path / "a.png")
    for other in ("a.tiff", "a.ppm", "a.tga"):
        saved(picture(), tmp_path / other)
        with pytest.raises(ValueError, match="none of PNG, JPEG"):
            open_image(tmp_path / other)


def resident_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc to measure memory")
def test_bombs_are_refused_from_their_header(tmp_path: Path) -> None:
    """Within a second and 64 MB each (a 623-megapixel PNG, long rows, a long text chunk, big canvases, a WebP in
    a file of 800 MB)."""
    gif = (
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0)
        + b"\0" * 6
        + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\x08\x01\x00\x00;"
    )
    jpeg = io.BytesIO()
    picture().save(jpeg, "JPEG")
    frame = jpeg.getvalue().index(b"\xff\xc0")
    large_jpeg = bytearray(jpeg.getvalue())
    large_jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 200_000_000, 9))
    bmp = io.BytesIO()
    picture().save(bmp, "BMP")
    large_bmp = bytearray(bmp.getvalue())
    large_bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    webp = io.BytesIO()
    picture((8, 8)).save(webp, "WEBP")
    bombs = {
        "megapixels.png": png_of(26_000, 24_000, body=zlib.compress(b"\0" * 1_000_000)),
        "row.png": png_of(2**31 - 1, 1, body=zlib.compress(b"\0")),
        "column.png": png_of(1, 2**31 - 1, body=zlib.compress(b"\0")),
        "text.png": png_of(26_000, 24_000, extra=text, body=zlib.compress(b"\0")),
        "canvas.gif": gif,
        "frame.jpg": bytes(large_jpeg),
        "size.bmp": bytes(large_bmp),
        "padded.webp": webp.getvalue(),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
        if name == "padded.webp":
            os.truncate(tmp_path / name, 800_000_000)
        del data
        Path("/proc/self/clear_refs").write_text("5")
        before, started = resident_peak(), time.perf_counter()
        with pytest.raises(ValueError, match=name.split(".")[0]):
            open_image(tmp_path / name)
        assert time.perf_counter() - started < 1, name
        assert resident_peak() - before < 64_000_000, name


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc to measure memory")
def test_what_lies_behind_a_webp_is_not_read(tmp_path: Path) -> None:
    path = saved(picture((8, 8)), tmp_path / "a.webp")
    os.truncate(path, 199_000_000)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_peak()
    assert open_image(path).size == (8, 8)
    assert resident_peak() - before < 64_000_000


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp"])
def test_a_file_of_too_many_bytes_is_refused(tmp_path: Path, extension: str) -> None:
    path = saved(picture(), tmp_path / f"a.{extension}")
    os.truncate(path, 200_000_001)
    with pytest.raises(ValueError, match=rf"a\.{extension} is too large: 200,000,001 bytes"):
        open_image(path)


def test_max_pixels_is_the_largest_size_allowed(tmp_path: Path) -> None:
    path = saved(picture((24, 16)), tmp_path / "a.png")
    assert open_image(path, max_pixels=24 * 16).size == (24, 16)
    with pytest.raises(ValueError, match=r"a\.png is too large: 24 x 16"):
        open_image(path, max_pixels=24 * 16 - 1)


ESCAPES = [
    *("../secret.png", "a/../../secret.png", "..", "a/..", "./../secret.png", "....//../secret.png"),
    *("/etc/passwd", "//etc/passwd", "/", "///secret.png", "/proc/self/environ", "/dev/zero"),
    *("..\\secret.png", "a\\..\\..\\secret.png", "\\\\server\\share\\a.png", "C:\\a.png", "C:/a.png", "c:a.png"),
    *(
        "file:///etc/passwd",
        "file:a.png",
        "FILE:/etc/passwd",
        "pipe:cat /etc/passwd",
        "pipe:a",
        "http://127.0.0.1/a.png",
    ),
    *("https://example.com/a.png", "ftp://a/b.png", "s3://bucket/a.png", "data:image/png;base64,AAAA", "gopher:a"),
    *("a.png\0.jpg", "\0", "a\0", "../secret.png\0", "", "linked-out.png", "linked-folder/secret.png"),
    *("linked-absolute.png", "loop.png", "loop-folder/loop-folder/a.png", "a/" + "b" * 300 + ".png"),
    *("ok/../../secret.png", "ok/../ok/../../secret.png", "ok/./../../secret.png", "ok//..//..//secret.png"),
    *(f"{'../' * depth}etc/passwd" for depth in range(1, 13)),
    *(f"ok/{'../' * depth}secret.png" for depth in range(2, 12)),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "ok").mkdir(parents=True)
    saved(picture(), tmp_path / "secret.png")
    saved(picture(), root / "ok" / "a.png")
    (root / "linked-out.png").symlink_to("../secret.png")
    (root / "linked-absolute.png").symlink_to(tmp_path / "secret.png")
    (root / "linked-folder").symlink_to(tmp_path)
    (root / "linked-inside.png").symlink_to("ok/a.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "loop-folder").symlink_to(".")
    return root


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leaves_its_root(root: Path, path: str) -> None:
    with pytest.raises(ValueError, match="image"):
        open_image(path, root=root)


def test_there_are_enough_escapes() -> None:
    assert len(set(ESCAPES)) >= 60


@pytest.mark.parametrize("path", ["ok/a.png", "./ok/a.png", "ok//a.png", "linked-inside.png"])
def test_paths_inside_the_root_are_read(root: Path, path: str) -> None:
    assert open_image(path, root=root).size == (24, 16)
    assert resolve_inside(root, path) == (root / "ok" / "a.png").resolve()


def test_a_root_that_is_a_link_itself_is_fine(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    assert open_image("ok/a.png", root=tmp_path / "alias").size == (24, 16)


def test_folders_pipes_devices_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in [
        (tmp_path, "regular|cannot be read"),
        (tmp_path / "pipe.png", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "none.png", "does not exist"),
    ]:
        with pytest.raises(ValueError, match=reason):
            open_image(path)
    with pytest.raises(ValueError, match="NUL"):
        open_image("a\0.png")


def test_a_tensor_is_the_centre_square() -> None:
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    pixels = image_to_tensor(wide, 5)
    assert pixels.shape == (3, 5, 5)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    assert torch.equal(pixels, torch.tensor([-1.0, -1.0, 1.0])[:, None, None].expand(3, 5, 5))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_tensor_can_be_the_whole_image_squashed(interpolation: Interpolation) -> None:
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    pixels = image_to_tensor(wide, 3, fit="squash", interpolation=interpolation)
    assert pixels.shape == (3, 3, 3)
    assert (pixels[0] - pixels[2]).sign().tolist() == [[1.0, -1.0, 1.0]] * 3
    other = image_to_tensor(
        wide, 3, fit="squash", interpolation="bilinear" if interpolation == "bicubic" else "bicubic"
    )
    assert not torch.equal(pixels, other)


def test_resizing_antialiases() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32)))
    assert image_to_tensor(stripes, 8).abs().max() < 0.1


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_tensor_and_image_are_inverse(seed: int) -> None:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    assert tensor_to_image(image_to_tensor(image, 9)).tobytes() == image.tobytes()


def test_a_tensor_beyond_the_range_is_cut_and_nan_is_refused() -> None:
    assert tensor_to_image(torch.full((3, 2, 2), 7.0)).getpixel((0, 0)) == WHITE
    assert tensor_to_image(torch.zeros(3, 2, 4, dtype=torch.bfloat16)).size == (4, 2)
    with pytest.raises(ValueError, match="NaN"):
        tensor_to_image(torch.full((3, 2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"\[1, 2, 2\]"):
        tensor_to_image(torch.zeros(1, 2, 2))
