"""Laws of the detector's training: every thing has a cell, losses are of what they say, and a few steps learn."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from diptych.backbones.scene_detector import SceneDetector
from diptych.data.builders.emoji import STYLE_WORDS
from diptych.data.builders.emoji_scenes import Placed, draw_scene
from diptych.data.builders.scene_prompts import Pictures, all_facts
from diptych.evaluate.scene_judging import find_things
from diptych.studies.detector_training import (
    NO_COLOUR,
    Label,
    ScenePainter,
    assign_cells,
    change_images,
    detection_losses,
    train_detector,
)

THINGS, COLOURS = ("disc", "cross"), ("red", "green", "blue")
SHADES = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230)}


def picture(name: str, colour: str = "red") -> Image.Image:
    image = Image.new("RGB", (32, 32), "white")
    draw = ImageDraw.Draw(image)
    if name == "disc":
        draw.ellipse((2, 2, 29, 29), fill=SHADES[colour])
    else:
        draw.rectangle((12, 1, 19, 30), fill=SHADES[colour])
        draw.rectangle((1, 12, 30, 19), fill=SHADES[colour])
    return image


def build_painter(**options: object) -> ScenePainter:
    torch.manual_seed(0)
    pictures: Pictures = {(thing, style): picture(thing) for thing in THINGS for style in STYLE_WORDS}
    detector = SceneDetector(THINGS, COLOURS, image_size=32, width=12)
    facts = all_facts(THINGS, THINGS)
    facts = replace(facts, colours=tuple(fact for fact in facts.colours if fact[1] in COLOURS))
    settings = {"others": [Image.new("RGB", (32, 32), "gray")], "facts": facts} | options
    return ScenePainter(detector, pictures, coloured=THINGS, **settings)  # pyright: ignore[reportArgumentType]


@given(st.integers(0, 10_000))
def test_every_label_has_a_cell_and_lies_in_the_scene(seed: int) -> None:
    painter = build_painter()
    image, labels = painter.paint(random.Random(seed))
    assert image.size == (32, 32)
    owners = assign_cells(painter.detector, labels).tolist()
    assert {owner for owner in owners if owner >= 0} == set(range(len(labels)))
    for label in labels:
        assert min(label.box) >= 0
        assert max(label.box) <= 1 + 1e-9
        assert 0 <= label.name <= len(THINGS)
        assert label.colour == NO_COLOUR or 0 <= label.colour < len(COLOURS)
        assert label.name < len(THINGS) or label.colour == NO_COLOUR


def test_what_is_in_colour_is_told_so_and_is_so() -> None:
    painter = build_painter(others=[])
    found: dict[int, set[tuple[int, ...]]] = {}
    for seed in range(60):
        image, labels = painter.paint(random.Random(seed))
        for label in labels:
            middle = [round(16 * (label.box[k] + label.box[k + 2])) for k in (0, 1)]
            pixel = image.getpixel((min(middle[0], 31), min(middle[1], 31)))
            assert isinstance(pixel, tuple)
            found.setdefault(label.colour, set()).add(tuple(int(value > 120) for value in pixel))
    assert found == {0: {(1, 0, 0)}, 1: {(0, 1, 0)}, 2: {(0, 0, 1)}}


def test_cells_at_a_boxs_rim_are_not_judged_and_those_outside_hold_nothing() -> None:
    detector = SceneDetector(THINGS, COLOURS, image_size=64, width=4)
    owners = assign_cells(detector, [Label(0, 0, (0.0, 0.0, 0.5, 0.5))]).reshape(8, 8)
    assert owners[1:3, 1:3].unique().tolist() == [0]
    assert owners[0, :4].unique().tolist() == [-2]
    assert owners[4:].unique().tolist() == owners[:, 4:].unique().tolist() == [-1]


def test_a_right_prediction_costs_next_to_nothing_and_each_error_its_own_part() -> None:
    detector = SceneDetector(THINGS, COLOURS, image_size=32, width=4)
    labels = [Label(1, 2, (0.5, 0.0, 1.0, 0.5))]
    owners = assign_cells(detector, labels)
    there = torch.where(owners >= 0, 20.0, -20.0)[None]
    boxes = detector.targets_of(torch.tensor(labels[0].box).expand(len(owners), 4))[None]
    name = torch.tensor([0.0, 20.0, 0.0]).expand(1, len(owners), 3)
    colour = torch.tensor([0.0, 0.0, 20.0]).expand(1, len(owners), 3)
    right = {"presence": there, "box": boxes, "name": name, "colour": colour}
    losses = detection_losses(detector, list(right.values()), [labels])
    assert all(float(loss) < 1e-6 for loss in losses.values())
    wrong = {"presence": -there, "box": boxes + 0.5, "name": name.flip(-1) - name, "colour": colour.flip(-1)}
    for part, prediction in wrong.items():
        losses = detection_losses(detector, list((right | {part: prediction}).values()), [labels])
        assert {name for name, loss in losses.items() if float(loss) > 0.1} == {part}


def test_an_empty_scene_asks_for_no_presence_alone() -> None:
    detector = SceneDetector(THINGS, COLOURS, image_size=32, width=4)
    losses = detection_losses(detector, detector(torch.zeros(2, 3, 32, 32)), [[], []])
    assert set(losses) == {"presence"}


def test_images_are_changed_but_not_beyond_knowing() -> None:
    images = torch.rand(16, 3, 32, 32) * 2 - 1
    coded: list[int] = []

    def code(some: torch.Tensor, strength: float) -> torch.Tensor:
        coded.append(len(some))
        return some

    changed = change_images(images, torch.Generator().manual_seed(0), code)
    assert coded == [2]
    assert changed.abs().max() <= 1
    assert 0.01 < float((changed - images).abs().mean()) < 0.5
    again = change_images(images, torch.Generator().manual_seed(0), code)
    assert torch.equal(changed, again)


@pytest.fixture(scope="module")
def trained() -> tuple[SceneDetector, list[float]]:
    painter, totals = build_painter(), []
    train_detector(
        painter,
        num_steps=220,
        batch_size=24,
        learning_rate=1e-2,
        progress=lambda step, told: totals.append(told["presence"] + told["name"] + told.get("colour", 0.0)),
    )
    return painter.detector, totals


def test_a_few_steps_learn_to_tell_things_colours_and_places(trained: tuple[SceneDetector, list[float]]) -> None:
    detector, totals = trained
    assert sum(totals[-20:]) < 0.3 * sum(totals[:20])
    asked = [("disc", "red"), ("cross", "blue"), ("disc", "green"), ("cross", "red"), ("disc", "blue")]
    boxes = [(0.0, 0.0, 0.45, 0.45), (0.5, 0.5, 0.95, 0.95)]
    pairs = [(one, other) for one in asked for other in asked]
    scenes = [
        draw_scene([Placed("", picture(*thing), box) for thing, box in zip(pair, boxes, strict=True)], 32)
        for pair in pairs
    ]
    right = 0
    for pair, found in zip(pairs, find_things(detector, scenes), strict=True):
        said = {(thing.name, thing.colour, thing.box[0] > 0.25) for thing in found}
        right += len({(*pair[0], False), (*pair[1], True)} & said)
    assert right >= 0.85 * 2 * len(pairs)


def test_training_is_repeatable() -> None:
    def weights(trained: Callable[[], ScenePainter]) -> torch.Tensor:
        painter = trained()
        train_detector(painter, num_steps=2, batch_size=4, seed=5)
        return torch.cat([tensor.flatten().float() for tensor in painter.detector.state_dict().values()])

    assert torch.equal(weights(build_painter), weights(build_painter))
