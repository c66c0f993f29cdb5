"""Laws of reading clips: the frame on show at a time, whatever the container; bounds before decoding; named errors."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from diptych.data import video
from diptych.data.animation_headers import read_gif_header, read_webp_header
from diptych.data.video import read_clip_info, read_frames, read_frames_at, spread_times

av = pytest.importorskip("av")

NUM, RATE = 40, 20
CODECS = {"mp4": "libx264", "webm": "libvpx-vp9"}


def grey(number: int) -> int:
    return 10 + 6 * number


def write_video(path: Path, *, codec: str = "", gop: int = 8, num: int = NUM, size: int = 32, rate: int = RATE) -> Path:
    """Frame k is grey 10 + 6 k."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or CODECS[path.suffix[1:]], rate=rate, options={"crf": "10"})
        stream.width = stream.height = size
        stream.pix_fmt, stream.gop_size = "yuv420p", gop
        for number in range(num):
            pixels = np.full((size, size, 3), grey(number % 40), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_animation(path: Path, durations: list[int], *, size: int = 32) -> Path:
    frames = [Image.new("RGB", (size, size), (grey(number % 40),) * 3) for number in range(len(durations))]
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same clip in every container: 40 frames, 2 seconds."""
    folder = tmp_path_factory.mktemp("clips")
    found = {kind: write_video(folder / f"clip.{kind}") for kind in CODECS}
    return found | {kind: write_animation(folder / f"clip.{kind}", [50] * NUM) for kind in ("gif", "webp")}


def numbers(frames: list[Image.Image]) -> list[int]:
    """Which frames they are, by their grey."""
    assert all(frame.mode == "RGB" and frame.size == (32, 32) for frame in frames)
    return [round((float(np.asarray(frame).mean()) - 10) / 6) for frame in frames]


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "webp"])
def test_frames_are_spread_evenly_in_every_container(clips: dict[str, Path], kind: str) -> None:
    info = read_clip_info(clips[kind])
    assert (info.kind, info.width, info.height) == (kind, 32, 32)
    assert info.seconds == pytest.approx(2, abs=0.06)
    assert info.num_frames == (None if kind == "webm" else NUM)
    assert numbers(read_frames(clips[kind], num_frames=1)) == [20]
    assert numbers(read_frames(clips[kind], num_frames=5)) == [4, 12, 20, 28, 36]
    assert numbers(read_frames(clips[kind], num_frames=NUM)) == list(range(NUM))


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "webp"])
def test_frames_per_second_start_at_the_start_and_are_capped(clips: dict[str, Path], kind: str) -> None:
    assert numbers(read_frames(clips[kind], fps=1)) == [0, 20]
    assert numbers(read_frames(clips[kind], fps=4)) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert numbers(read_frames(clips[kind], fps=20, max_frames=5)) == [4, 12, 20, 28, 36], "the end is seen too"
    assert numbers(read_frames(clips[kind], fps=0.1)) == [0]


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "webp"])
@given(data=st.data())
@hypothesis_settings(max_examples=15)
def test_a_time_gives_the_frame_on_show(clips: dict[str, Path], kind: str, data: st.DataObject) -> None:
    """Any times in any order, whatever is sought or decoded on the way. Half a frame from the edges: webm rounds."""
    wanted = data.draw(st.lists(st.integers(0, NUM - 1), min_size=1, max_size=6))
    assert numbers(read_frames_at(clips[kind], [(number + 0.5) / RATE for number in wanted])) == wanted


def test_only_what_is_needed_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One frame of a long clip costs its group of pictures at most, also behind another frame."""
    path = write_video(tmp_path / "long.mp4", num=400, gop=10)
    decoded = 0
    seek = video._VideoReader._seek

    def counting(self: Any, target: int) -> Any:
        nonlocal decoded
        for frame in seek(self, target):
            decoded += 1
            yield frame

    monkeypatch.setattr(video._VideoReader, "_seek", counting)
    read_frames_at(path, [1.01, 15.01])
    assert decoded <= 2 * 11
    decoded = 0
    read_frames_at(path, [15.01, 15.06, 15.11])
    assert decoded <= 11


def test_durations_of_animations_decide(tmp_path: Path) -> None:
    for kind in ("gif", "webp"):
        path = write_animation(tmp_path / f"slow.{kind}", [100, 1000, 100])
        assert read_clip_info(path).seconds == pytest.approx(1.2)
        assert numbers(read_frames_at(path, [0, 0.11, 1.09, 1.11, 1.2])) == [0, 1, 1, 2, 2]
    path = write_animation(tmp_path / "untimed.gif", [0, 0])
    assert read_clip_info(path).seconds == pytest.approx(0.2), "as browsers show it"


def test_alpha_lies_on_white_and_frames_add_up(tmp_path: Path) -> None:
    """A GIF or WebP frame may hold only what changed."""
    frames = [Image.new("RGBA", (32, 32), (0, 0, 0, 0)) for _ in range(2)]
    for number, frame in enumerate(frames):
        frame.paste((255, 0, 0, 255), (0, 0, 16, 16))
        frame.paste((0, 0, 255 * number, 255), (16, 16, 32, 32))
    for kind in ("gif", "webp"):
        path = tmp_path / f"part.{kind}"
        options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
        second = read_frames_at(path, [0.15])[0]
        assert [second.getpixel(at) for at in ((4, 4), (20, 4), (20, 20))] == [
            (255, 0, 0),
            (255, 255, 255),
            (0, 0, 255),
        ]


def test_a_turned_video_is_read_upright(tmp_path: Path) -> None:
    """Telephones write a display matrix; here one is set by hand in the track header."""
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        pixels = np.zeros((32, 64, 3), np.uint8)
        pixels[:, :32] = 255  # the left half is white
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    plain = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 0x40000000)
    quarter = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 0x40000000)  # a quarter clockwise
    at = data.index(plain, data.index(b"tkhd"))
    data[at : at + 36] = quarter
    path.write_bytes(data)
    frame = np.asarray(read_frames(path, num_frames=1)[0])
    assert frame.shape == (64, 32, 3)
    assert frame[:28].min() > 200
    assert frame[36:].max() < 60


def test_an_open_file_is_read_like_a_path(clips: dict[str, Path]) -> None:
    for path in clips.values():
        file = io.BytesIO(path.read_bytes())
        assert numbers(read_frames(file, num_frames=2)) == [10, 30]
        assert numbers(read_frames(file, num_frames=2)) == [10, 30], "again, from wherever the last reading ended"


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:9/a.mp4",
        "pipe:0",
        "concat:a.mp4|b.mp4",
        "file:clip.mp4",
        "subfile,,start,0,end,9,,:clip.mp4",
        "../x.mp4",
        "/etc/passwd",
        "a\x00.mp4",
    ],
)
def test_no_protocol_and_no_way_out(clips: dict[str, Path], path: str) -> None:
    with pytest.raises(ValueError, match=r"clip|image path"):
        read_frames(path, num_frames=1, root=clips["mp4"].parent)
    if not path.startswith(("..", "/")):
        with pytest.raises(ValueError, match=r"does not exist|cannot be read"):
            read_frames(path, num_frames=1)


def test_other_containers_and_codecs_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mkv", codec="libx264")
    write_video(tmp_path / "clip.avi", codec="mpeg4")
    write_video(tmp_path / "clip.mov", codec="mpeg2video", rate=25)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile clip.mkv\n")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nclip.mkv\n")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("clip.mkv", "clip.avi", "list.mp4", "list.m3u8", "empty.mp4"):
        with pytest.raises(ValueError, match=rf"{name} is none of mp4, webm, GIF, WebP"):
            read_frames(tmp_path / name, num_frames=1)
    with pytest.raises(ValueError, match=r"clip\.mov is coded as mpeg2video"):
        read_frames(tmp_path / "clip.mov", num_frames=1)
    os.mkfifo(tmp_path / "fifo.mp4")
    with pytest.raises(ValueError, match="not a regular file"):
        read_frames(tmp_path / "fifo.mp4", num_frames=1)


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "webp"])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
def test_a_truncated_clip_is_an_error_that_names_it(
    clips: dict[str, Path], tmp_path: Path, kind: str, share: float
) -> None:
    data = clips[kind].read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data[: int(len(data) * share)])
    if kind == "gif" and share > 0.2:  # a cut between two blocks is a shorter GIF, as browsers have it
        path.write_bytes(path.read_bytes() + b"\x2c\x00")
    if kind == "webm" and share == 0.9:
        assert len(read_frames(path, num_frames=10)) == 10, "only a webm may lack its last second"
        return
    with pytest.raises(ValueError, match=rf"cut\.{kind}"):
        read_frames(path, num_frames=10)


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "webp"])
@given(data=st.data())
@hypothesis_settings(max_examples=40)
def test_a_damaged_clip_gives_frames_or_a_named_error(clips: dict[str, Path], kind: str, data: st.DataObject) -> None:
    content = bytearray(clips[kind].read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert len(read_frames(io.BytesIO(content), num_frames=3, what="clip X")) == 3
    except ValueError as error:
        message = str(error)
    else:
        message = "clip X"
    assert "clip X" in message


def test_a_clip_of_an_unknown_coding_is_refused(clips: dict[str, Path]) -> None:
    content = clips["webm"].read_bytes()
    place = content.index(b"V_VP")
    unknown = content[:place] + b"V_XX" + content[place + 4 :]
    with pytest.raises(ValueError, match="clip X is coded as something unknown"):
        read_frames(io.BytesIO(unknown), num_frames=3, what="clip X")


def test_a_gif_of_a_million_frames_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = b"!\xf9\x04\x00\x01\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00"
    path = tmp_path / "many.gif"
    path.write_bytes(b"GIF89a\x01\x00\x01\x00\x80\x00\x00" + b"\x00\x00\x00\xff\xff\xff" + frame * 1_000_000 + b";")
    monkeypatch.setattr(Image, "open", None)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"many\.gif is too long: more than 5000 frames"):
        read_frames(path, num_frames=1)
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


def test_huge_canvases_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gif = bytearray(write_animation(tmp_path / "a.gif", [50, 50]).read_bytes())
    gif[6:10] = b"\xff\xff\xff\xff"
    (tmp_path / "big.gif").write_bytes(gif)
    webp = bytearray(write_animation(tmp_path / "a.webp", [50, 50]).read_bytes())
    at = webp.index(b"VP8X") + 12
    webp[at : at + 6] = b"\xfe\x3f\x00\xfe\x3f\x00"
    (tmp_path / "big.webp").write_bytes(webp)
    monkeypatch.setattr(Image, "open", None)
    for name in ("big.gif", "big.webp"):
        with pytest.raises(ValueError, match=rf"{name} is too large"):
            read_frames(tmp_path / name, num_frames=1)
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    write_video(tmp_path / "big.mp4", num=2)
    with pytest.raises(ValueError, match=r"big\.mp4 is too large: 32 x 32"):
        read_frames(tmp_path / "big.mp4", num_frames=1)


def test_clips_beyond_the_length_bounds_are_refused(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(video, "MAX_CLIP_SECONDS", 1.0)
        for path in clips.values():
            with pytest.raises(ValueError, match=r"2 s long; above 0 and up to 1 s are read"):
                read_frames(path, num_frames=1)
    monkeypatch.setattr(video, "MAX_CLIP_FRAMES", 10)
    with pytest.raises(ValueError, match="too long: 40 frames"):
        read_frames(clips["mp4"], num_frames=1)


def test_a_recorders_webm_without_a_length_is_measured(clips: dict[str, Path], tmp_path: Path) -> None:
    """The duration element (0x4489) becomes a void one of the same size."""
    data = bytearray(clips["webm"].read_bytes())
    at = data.index(b"\x44\x89\x88")
    data[at : at + 11] = b"\xec\x89" + b"\x00" * 9
    (tmp_path / "live.webm").write_bytes(data)
    assert read_clip_info(tmp_path / "live.webm").seconds == pytest.approx(2, abs=0.06)
    assert numbers(read_frames(tmp_path / "live.webm", num_frames=5)) == [4, 12, 20, 28, 36]


def test_a_still_picture_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    for name, lossless in (("a.gif", False), ("lossy.webp", False), ("lossless.webp", True)):
        Image.new("RGB", (48, 32), (10, 10, 10)).save(tmp_path / name, lossless=lossless)
        info = read_clip_info(tmp_path / name)
        assert (info.width, info.height, info.num_frames) == (48, 32, 1)
        assert len(read_frames(tmp_path / name, fps=1)) == 1


def test_headers_agree_with_pillow(tmp_path: Path) -> None:
    durations = [40, 80, 120, 30]
    for name, read in (("a.gif", read_gif_header), ("a.webp", read_webp_header)):
        path = write_animation(tmp_path / name, durations, size=20)
        with path.open("rb") as file, Image.open(path) as image:
            header = read(file, max_frames=4)
            assert header.durations == pytest.approx([duration / 1000 for duration in durations])
            assert (header.width, header.height) == image.size
            assert header.num_bytes == path.stat().st_size
            assert len(header.durations) == image.n_frames  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give one of the two"),
        ({"num_frames": 1, "fps": 1}, "give one of the two"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": 1, "max_frames": 0}, "max_frames 0"),
    ],
)
def test_wrong_arguments_are_refused(clips: dict[str, Path], arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_frames(clips["gif"], **arguments)


def test_times_outside_the_clip_are_refused(clips: dict[str, Path]) -> None:
    for wrong in (-0.1, 2.5):
        with pytest.raises(ValueError, match="has no frame at"):
            read_frames_at(clips["webp"], [0, wrong])
    assert spread_times(2, 4) == [0.25, 0.75, 1.25, 1.75]
