"""Laws of regions: a crop holds its box whole, in a square inside the image; boxes are drawn where they are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych.data.image_regions import (
    MAX_BOXES,
    RED,
    Region,
    boxed_reference,
    checked_box,
    crop_reference,
    locate_region,
    region_hash,
    show_region,
    split_region,
)

edges = st.floats(0, 900, allow_nan=False).map(lambda edge: round(edge, 2))
boxes = st.tuples(edges, edges, st.integers(1, 99), st.integers(1, 99)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
names = st.text('ab/#=,.;é "', min_size=1, max_size=12)


@settings(max_examples=40)
@given(names, boxes, st.lists(boxes, min_size=1, max_size=4))
def test_a_reference_gives_back_what_it_was_made_of(name: str, box: tuple[float, ...], drawn: list) -> None:
    found = split_region(crop_reference(name, box))
    assert found is not None
    assert found[0] == name
    assert found[1].kind == "crop"
    assert found[1].boxes[0] == pytest.approx(box, abs=0.005)
    found = split_region(boxed_reference(name, drawn))
    assert found is not None
    assert found[0] == name
    assert found[1].kind == "boxes"
    assert [list(one) for one in found[1].boxes] == [pytest.approx(one, abs=0.005) for one in drawn]


@pytest.mark.parametrize(
    "reference", ["a.png", "a.mp4#frame=1/2", "a#crop=1,2,3", "a#crop=", "#crop=0,0,9,9", "a#crop=-1,0,9,9"]
)
def test_other_references_are_none(reference: str) -> None:
    assert split_region(reference) is None
    assert locate_region(reference, str.upper) is None


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_a_crop_is_a_square_that_holds_the_box(width: int, height: int, data: st.DataObject) -> None:
    left = data.draw(st.integers(0, width - 1))
    top = data.draw(st.integers(0, height - 1))
    right = data.draw(st.integers(left + 1, width + 40))
    bottom = data.draw(st.integers(top + 1, height + 40))
    # Each pixel's colour is its place, so the crop tells where it comes from.
    image = Image.new("RGB", (width, height))
    image.putdata([(x, y, 9) for y in range(height) for x in range(width)])
    cut = show_region(image, Region("crop", ((left, top, right, bottom),)))
    inside = (min(right, width) - left, min(bottom, height) - top)
    side = max(inside)
    assert cut.size == (side, side)
    seen = {(x, y): cut.getpixel((x, y)) for x in range(side) for y in range(side)}
    shown = {place: colour for place, colour in seen.items() if colour != (255, 255, 255)}
    assert len(shown) == min(side, width) * min(side, height)
    held = {(colour[0], colour[1]) for colour in shown.values()}  # type: ignore[index]
    assert held >= {(x, y) for x in range(left, min(right, width)) for y in range(top, min(bottom, height))}
    # In one piece, in the middle.
    (x0, y0), (x1, y1) = min(shown), max(shown)
    assert len(shown) == (x1 - x0 + 1) * (y1 - y0 + 1)
    assert abs(x0 - (side - 1 - x1)) <= 1
    assert abs(y0 - (side - 1 - y1)) <= 1


def test_both_ends_of_a_long_box_are_in_the_centre_square() -> None:
    image = Image.new("RGB", (160, 90), "blue")
    image.paste("red", (0, 40, 10, 44))
    image.paste("lime", (140, 40, 150, 44))
    cut = show_region(image, Region("crop", ((0, 40, 150, 44),)))
    assert cut.size == (150, 150)
    assert cut.getpixel((5, 30 + 42)) == (255, 0, 0)
    assert cut.getpixel((145, 30 + 42)) == (0, 255, 0)
    assert cut.getpixel((75, 5)) == cut.getpixel((75, 145)) == (255, 255, 255)


def test_boxes_are_drawn_and_the_image_stays() -> None:
    image = Image.new("RGB", (40, 30), "white")
    shown = show_region(image, Region("boxes", ((5, 6, 20, 16), (30, 20, 99, 99))))
    red = {(x, y) for x in range(40) for y in range(30) if shown.getpixel((x, y)) == RED}
    first = {(x, y) for x in range(5, 20) for y in range(6, 16) if x in (5, 19) or y in (6, 15)}
    second = {(x, y) for x in range(30, 40) for y in range(20, 30) if x in (30, 39) or y in (20, 29)}
    assert red == first | second
    assert image.getcolors() == [(1200, (255, 255, 255))]


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([1, 2, 3], "is no box"),
        ([1, 2, 3, "4"], "is no box"),
        ([1, 2, 3, True], "is no box"),
        ([1, 2, float("nan"), 4], "is no box"),
        ([1, 2, float("inf"), 4], "is no box"),
        ([1, 2, 10**400, 4], "is no box"),
        ([5, 2, 3, 4], "encloses no pixel"),
        ([1, 2, 1.5, 40], "encloses no pixel"),
        ([-9, -9, -1, -1], "encloses no pixel"),
    ],
)
def test_what_is_no_box_is_refused(box: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        checked_box(box)


def test_edges_outside_are_moved_in() -> None:
    assert checked_box([-3, -0.5, 4, 5]) == (0, 0, 4, 5)


def test_a_box_outside_the_image_names_both() -> None:
    with pytest.raises(ValueError, match=r"at 40, 2 lies outside x\.png of 40 x 30"):
        show_region(Image.new("RGB", (40, 30)), Region("crop", ((40, 2, 50, 9),)), what="x.png")


def test_too_many_boxes_and_none_are_refused() -> None:
    for count in (0, MAX_BOXES + 1):
        with pytest.raises(ValueError, match=f"{count} boxes"):
            boxed_reference("a.png", [[0, 0, 9, 9]] * count)
    with pytest.raises(ValueError, match="2 boxes to cut out"):
        split_region("a.png#crop=0,0,9,9;1,1,9,9")


def test_a_region_is_located_with_its_image() -> None:
    assert locate_region("a.png#crop=1,2,30.5,40", lambda name: f"/data/{name}") == "/data/a.png#crop=1,2,30.5,40"


def test_equal_regions_hash_alike_and_others_do_not() -> None:
    one, two = Region("crop", ((1, 2, 3, 4),)), Region("boxes", ((1, 2, 3, 4),))
    hashes = {region_hash(image, region) for image in ("x", "y") for region in (one, two)}
    assert len(hashes) == 4
    assert region_hash("x", one) == region_hash("x", Region("crop", ((1.0, 2.0, 3.0, 4.0),)))
