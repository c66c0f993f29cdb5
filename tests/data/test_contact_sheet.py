"""Laws of contact sheets: every picture is there, at its place, unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diptych.data.contact_sheet import caption, draw_contact_sheet, draw_folder_sheet, draw_image_grid
from diptych.data.samples import Message, Sample, write_samples

COLOURS = ["red", "lime", "blue", "yellow", "cyan", "magenta", "black"]


def squares(num: int, side: int = 32) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), COLOURS[i]) for i in range(num)]


@pytest.mark.parametrize(("num", "columns"), [(1, None), (7, 3), (4, 2), (5, None), (3, 9)])
def test_images_stand_row_by_row(num: int, columns: int | None) -> None:
    images = squares(num)
    grid = draw_image_grid(images, columns=columns, cell=32)
    per_row = min(num, columns or {1: 1, 4: 2, 5: 3}.get(num, 3))
    for index, image in enumerate(images):
        place = (8 + index % per_row * 40 + 16, 8 + index // per_row * 40 + 16)
        assert grid.getpixel(place) == image.getpixel((0, 0))


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    image = Image.new("RGB", (2, 2), "red")
    image.putpixel((1, 1), (0, 0, 255))
    grid = draw_image_grid([image], cell=32)
    assert {grid.getpixel((8 + x, 8 + x)) for x in range(1, 31)} == {(255, 0, 0), (0, 0, 255)}


def test_captions_are_wrapped_and_make_room() -> None:
    short = draw_image_grid(squares(2), ["a", "b"], cell=64)
    long = draw_image_grid(squares(2), ["a", "a caption of many words, and of oneverylongwordwithoutanyspace"], cell=64)
    assert long.width == short.width
    assert long.height > short.height + 40
    right_edge = long.crop((long.width - 7, 0, long.width, long.height))
    assert set(right_edge.get_flattened_data()) == {(255, 255, 255)}


@pytest.mark.parametrize("name", ["pi\u00f1ata", "pin\u0303ata"])
def test_a_letter_whose_mark_the_font_lacks_is_drawn_without(name: str) -> None:
    assert draw_image_grid(squares(1), [name]).tobytes() == draw_image_grid(squares(1), ["pinata"]).tobytes()


def test_wrong_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        draw_image_grid([])
    with pytest.raises(ValueError, match="2 images but 1 captions"):
        draw_image_grid(squares(2), ["a"])
    with pytest.raises(ValueError, match="0 columns"):
        draw_image_grid(squares(2), columns=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, image in zip(COLOURS, squares(len(COLOURS)), strict=True):
        image.save(tmp_path / f"{name}.png")
    draw = [Sample((Message("user", (f"Draw {c}.",)), Message("assistant", (0,))), (f"{c}.png",)) for c in COLOURS]
    read = [
        Sample((Message("user", (0, 1, "\nWhich?")), Message("assistant", (c,))), (f"{c}.png",) * 2) for c in COLOURS
    ]
    write_samples(tmp_path / "draw.jsonl", draw)
    write_samples(tmp_path / "read.jsonl", [*read, Sample((Message("assistant", ("no image",)),))])
    return tmp_path


@pytest.mark.parametrize("num", [1, 2, 5, 8, 100])
def test_a_folder_is_shown_with_all_its_files(folder: Path, num: int) -> None:
    sheet = draw_folder_sheet(folder, num)
    assert sheet.mode == "RGB"
    assert sheet.width <= 4 * 168 + 8


def test_a_caption_says_what_is_said() -> None:
    sample = Sample((Message("user", (0, "\nWhat is this?")), Message("assistant", ("a dog",))), ("a.png",))
    assert caption(sample) == "[image] What is this?\n-> a dog"


def test_folders_without_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        draw_folder_sheet(tmp_path / "none")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match=r"x\.txt is a file; give the folder of the data set"):
        draw_folder_sheet(tmp_path / "x.txt")
    with pytest.raises(ValueError, match=r"no \.jsonl"):
        draw_folder_sheet(tmp_path)
    with pytest.raises(ValueError, match="out of 0 samples"):
        draw_contact_sheet([], root=tmp_path)
