"""Laws of the judging of scenes: each kind asks for no more and no less than it says, as GenEval does."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from diptych.backbones.scene_detector import SceneDetector
from diptych.data.builders.emoji_scenes import SIDES
from diptych.data.builders.scene_prompts import COLOUR, COUNT, ONE, POSITION, TWO, SceneRequest
from diptych.data.samples import Message, Sample
from diptych.evaluate.scene_judging import (
    Found,
    describe_things,
    find_things,
    is_fulfilled,
    is_shown,
    measure_detector,
    stands,
)

FROG, CAT = ("frog",), ("frog", "cat")
Box = tuple[float, float, float, float]


def seen(name: str, colour: str = "red", *, at: Box = (0, 0, 0.4, 0.4)) -> Found:
    return Found(name, colour, 1.0, at)


@pytest.mark.parametrize(
    ("request_", "found", "fulfilled"),
    [
        (SceneRequest(ONE, "fluent", FROG), [seen("frog"), seen("")], True),
        (SceneRequest(ONE, "fluent", FROG), [seen("cat")], False),
        (SceneRequest(TWO, "fluent", CAT), [seen("cat"), seen("frog"), seen("frog")], True),
        (SceneRequest(TWO, "fluent", CAT), [seen("frog"), seen("frog")], False),
        (SceneRequest(COUNT, "fluent", FROG, number=2), [seen("frog"), seen("frog"), seen("cat")], True),
        (SceneRequest(COUNT, "fluent", FROG, number=2), [seen("frog")], False),
        (SceneRequest(COUNT, "fluent", FROG, number=2), [seen("frog")] * 3, False),
        (SceneRequest(COLOUR, "fluent", FROG, colour="red"), [seen("cat", "blue"), seen("frog")], True),
        (SceneRequest(COLOUR, "fluent", FROG, colour="red"), [seen("frog", "blue"), seen("frog")], False),
    ],
)
def test_each_kind_asks_for_what_it_says(request_: SceneRequest, found: list[Found], fulfilled: bool) -> None:
    assert is_fulfilled(request_, found) == fulfilled
    assert is_shown(request_, found) >= fulfilled
    assert not is_fulfilled(request_, [])


def test_a_position_is_seen_from_the_second() -> None:
    left, right = seen("frog", at=(0, 0.3, 0.4, 0.7)), seen("cat", at=(0.5, 0.3, 0.9, 0.7))
    request = SceneRequest(POSITION, "fluent", CAT, side="to the left")
    assert is_fulfilled(request, [left, right])
    assert not is_fulfilled(SceneRequest(POSITION, "fluent", CAT[::-1], side="to the left"), [left, right])
    assert not is_fulfilled(request, [left])
    assert is_shown(request, [left, right])


@given(st.floats(0, 2 * math.pi))
def test_one_or_two_sides_name_every_direction_and_opposites_never_both(angle: float) -> None:
    there = 1 + 5 * math.cos(angle), 1 + 5 * math.sin(angle)
    one, other = (there[0], there[1], there[0] + 1, there[1] + 1), (1, 1, 2, 2)
    sides = {side for side in SIDES if stands(one, other, side)}
    assert 1 <= len(sides) <= 2
    assert sides not in ({"above", "below"}, {"to the left", "to the right"})
    opposite = {"above": "below", "below": "above", "to the left": "to the right", "to the right": "to the left"}
    assert {side for side in SIDES if stands(other, one, side)} == {opposite[side] for side in sides}


def test_one_upon_the_other_is_on_no_side() -> None:
    for shift in (0, 0.05, 0.19):
        assert not any(stands((0, 0, 1, 1), (shift, 0, 1 + shift, 1), side) for side in SIDES)
    assert stands((0, 0, 1, 1), (0.5, 0, 1.5, 1), "to the left")


class Told(SceneDetector):
    """Finds what it is told: boxes, each with the number of its name and colour, at the cells of their middles and,
    less certain, at the cells to their right."""

    def __init__(self, boxes: list[Box], names: list[int], colours: list[int], *, certainty: float = 8.0) -> None:
        super().__init__(("frog", "cat"), ("red", "blue"), image_size=64, width=4)
        self.told, self.certainty = list(zip(boxes, names, colours, strict=True)), certainty

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cells = len(self.cell_centres())
        there, box = torch.full((len(images), cells), -9.0), torch.zeros(len(images), cells, 4)
        name, colour = torch.zeros(len(images), cells, 3), torch.zeros(len(images), cells, 2)
        for at, one, shade in self.told:
            middle = torch.tensor([(at[0] + at[2]) / 2, (at[1] + at[3]) / 2])
            nearest = int((self.cell_centres() - middle).square().sum(dim=-1).argmin())
            for cell, sure in ((nearest, self.certainty), (nearest + 1, self.certainty - 1)):
                there[:, cell] = sure
                box[:, cell] = self.targets_of(torch.tensor(at).expand(cells, 4))[cell]
                name[:, cell, one], colour[:, cell, shade] = 9.0, 1.0
        return there, box, name, colour


BOXES: list[Box] = [(0.0, 0.1, 0.4, 0.5), (0.5, 0.5, 0.95, 0.9), (0.0, 0.6, 0.3, 0.9)]


def test_things_are_found_once_with_their_box_name_and_colour_at_any_size() -> None:
    (found,) = find_things(Told(BOXES, [0, 1, 2], [1, 0, 0]), [Image.new("RGB", (100, 100))])
    by_name = {thing.name: thing for thing in found}
    assert len(found) == 3
    assert set(by_name) == {"frog", "cat", ""}
    assert by_name["frog"].colour == "blue"
    for name, box in zip(("frog", "cat", ""), BOXES, strict=True):
        assert by_name[name].box == pytest.approx(box, abs=1e-5)
    assert "blue frog at 0 10 40 50" in describe_things(found)
    assert "red something else at 0 60 30 90" in describe_things(found)


def test_a_part_of_a_larger_thing_is_no_thing_of_its_own() -> None:
    whole, part, beside = (0.0, 0.0, 0.7, 0.7), (0.1, 0.3, 0.4, 0.6), (0.6, 0.6, 1.0, 1.0)
    (found,) = find_things(Told([whole, part, beside], [0, 0, 0], [0, 0, 0]), [Image.new("RGB", (64, 64))])
    assert len(found) == 2
    assert sorted(round(thing.box[0], 3) for thing in found) in ([0.0, 0.6], [0.1, 0.6])


def test_what_is_less_than_half_certain_is_not_found() -> None:
    assert find_things(Told(BOXES, [0, 1, 2], [0, 0, 0], certainty=-0.5), [Image.new("RGB", (64, 64))]) == [[]]


def test_a_detector_is_measured_against_what_stands_there() -> None:
    """One that sees two frogs in every scene: right where that is asked for, a false alarm where it is not there."""

    def scene(number: int) -> Sample:
        boxes = [["frog", list(BOXES[k])] for k in range(number)]
        meta = {"kind": COUNT, "style": "fluent", "things": ["frog"], "number": number, "colour": "", "side": ""}
        return Sample((Message("user", ("Draw.",)),), (), meta | {"boxes": boxes})

    samples = [scene(2), scene(3), scene(3)]
    blank = [Image.new("RGB", (64, 64))] * 3
    measured = measure_detector(Told(BOXES[:2], [0, 0], [0, 0]), samples, blank)
    assert measured == {COUNT: {"own": 1 / 3, "seen": 1 / 5, "false_alarms": 2 / 4, "num_scenes": 3}}
