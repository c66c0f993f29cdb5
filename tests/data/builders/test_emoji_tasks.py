"""Laws of the tasks made from emoji: right answers are right, held-out concepts never in training."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diptych.data.builders.data_card import read_card
from diptych.data.builders.emoji import build_emoji
from diptych.data.builders.emoji_scenes import (
    GREY,
    HUES,
    Placed,
    draw_scene,
    fits_word,
    mask_inside,
    mask_outside,
    recolour,
    scatter,
)
from diptych.data.builders.emoji_tasks import (
    LEAST_CHANGE,
    NAMES_APART,
    TASKS,
    Pool,
    another_colour,
    box_overlap,
    build_emoji_tasks,
    name_things,
    parse_box,
)
from diptych.data.samples import Sample, read_samples
from emoji_packages import NAMES, entry, write_packages

MANY = [f"{name}{suffix}" for name in NAMES for suffix in ("", "ta", "ro")]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emoji")
    entries = [entry(name, i, group=3 + i % 5, subgroup=i % 7) for i, name in enumerate(MANY)]
    build_emoji(folder / "set", **write_packages(folder / "packages", entries))
    return folder / "set"


@pytest.fixture(scope="module")
def tasks(emoji: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "set"
    build_emoji_tasks(folder, emoji_folder=emoji, num_samples=30, held_out_fraction=0.2, image_size=60)
    return folder


def read(folder: Path, name: str) -> list[Sample]:
    return read_samples(folder / f"{name}.jsonl")


def picture(folder: Path, sample: Sample, number: int) -> np.ndarray:
    return np.asarray(Image.open(folder / sample.images[number]).convert("RGB"), dtype=int)


def words(sample: Sample) -> tuple[str, Any]:
    user, assistant = sample.messages
    assert user.parts[1] == 0
    return str(user.parts[0]).strip(), assistant.parts[0]


def test_the_card_equals_a_recount(tasks: Path) -> None:
    card = read_card(tasks)
    assert card.num_samples == {
        f"{p}_{t}.jsonl": (30 if p == "train" else 3) for p in ("train", "test", "held_out") for t in TASKS
    }
    for name in card.num_samples:
        assert len(read_samples(tasks / name)) == card.num_samples[name]
    assert set(card.splits) == set(card.num_samples)
    assert {licence.licence for licence in card.licences} == {"CC BY-SA 4.0", "MIT"}
    assert ["changed here" in licence.used_for for licence in card.licences] == [True, True, False], "not the names"


def test_the_same_arguments_give_the_same_files(emoji: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert build_emoji_tasks(tmp_path / name, emoji_folder=emoji, num_samples=3, image_size=32).is_new
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in files)
    assert not build_emoji_tasks(tmp_path / "one", emoji_folder=emoji, num_samples=3, image_size=32).is_new


def test_held_out_concepts_are_never_named_in_training(emoji: Path, tasks: Path) -> None:
    concepts = json.loads((emoji / "concepts.json").read_text())
    names = {c["name"] for c in concepts if not c["held_out_style"]}
    said: dict[str, set[str]] = {}
    for prefix in ("train", "test", "held_out"):
        said[prefix] = set()
        for task in TASKS:
            for sample in read(tasks, f"{prefix}_{task}"):
                request, answer = words(sample)
                text = {*request.replace("?", " ").replace(".", " ").split(), sample.meta.get("concept")}
                text |= set(answer.split(NAMES_APART)) if isinstance(answer, str) else set()
                said[prefix] |= {word for word in text if word in names}
    assert said["held_out"]
    assert not (said["train"] | said["test"]) & said["held_out"]
    assert said["test"] & said["train"], "tests are on concepts that are trained"
    for task in ("paint", "locate", "ask", "name"):
        shown = {
            prefix: {picture(tasks, one, 0).tobytes() for one in read(tasks, f"{prefix}_{task}")} for prefix in said
        }
        assert not shown["train"] & shown["test"], f"{task}: scenes and masks are new"
    assert {c["name"] for c in concepts if c["held_out_style"]} & (said["train"] | said["held_out"]) == set()


def test_edits_are_what_was_asked_for(emoji: Path, tasks: Path) -> None:
    concepts = {c["name"]: c for c in json.loads((emoji / "concepts.json").read_text())}
    kinds = set()
    for sample in read(tasks, "train_edit"):
        request, answer = words(sample)
        shown, changed, kind = picture(tasks, sample, 0), picture(tasks, sample, 1), sample.meta["kind"]
        kinds.add(kind)
        assert answer == 1
        if kind in ("style", "style, named"):
            other = "fluent" if sample.meta["style"] == "openmoji" else "openmoji"
            path = emoji / concepts[sample.meta["concept"]]["images"][other]
            wanted = Image.open(path).convert("RGB").resize((60, 60), Image.Resampling.LANCZOS)
            assert np.array_equal(changed, np.asarray(wanted))
            thing = "it" if kind == "style" else sample.meta["concept"]
            assert request == f"Redraw {thing} in {'3D' if other == 'fluent' else 'flat'} style."
        elif kind == "colour":
            assert np.array_equal(
                changed, np.asarray(recolour(Image.fromarray(shown.astype("uint8")), sample.meta["colour"]))
            )
            assert sample.meta["colour"] in request
            assert np.square((shown.astype(float) - changed) / 255).mean() >= LEAST_CHANGE, "no edit that nobody sees"
        else:
            columns = {"to the left": (0, 20), "to the right": (40, 60)}.get(sample.meta["side"], (20, 40))
            rows = {"above": (0, 20), "below": (40, 60)}.get(sample.meta["side"], (20, 40))
            differs = (shown != changed).any(axis=-1)
            assert differs[rows[0] : rows[1], columns[0] : columns[1]].any()
            differs[rows[0] : rows[1], columns[0] : columns[1]] = False
            assert not differs.any()
    assert kinds == {"style", "style, named", "colour", "add"}


def test_so_many_concepts_as_asked_for(emoji: Path, tmp_path: Path) -> None:
    build_emoji_tasks(
        tmp_path / "set",
        emoji_folder=emoji,
        num_samples=20,
        num_concepts=12,
        held_out_fraction=0.5,
        image_size=32,
    )
    assert read_card(tmp_path / "set").counts == {"concepts in training": 6, "concepts held out": 6}
    shown = {sample.meta["concept"] for task in ("edit", "paint") for sample in read(tmp_path / "set", f"train_{task}")}
    assert len(shown) == 6


def test_painting_hides_a_part_and_nothing_else(tasks: Path) -> None:
    kinds = set()
    for sample in read(tasks, "train_paint"):
        shown, whole = picture(tasks, sample, 0), picture(tasks, sample, 1)
        hidden = (shown == GREY).all(axis=-1)
        kinds.add(sample.meta["kind"])
        assert 0.1 < hidden.mean() < 0.75
        assert np.array_equal(shown[~hidden], whole[~hidden])
    assert kinds == {"inside", "outside"}


def test_boxes_hold_what_is_looked_for(tasks: Path) -> None:
    for sample in read(tasks, "train_locate"):
        scene = picture(tasks, sample, 0)
        box = parse_box(words(sample)[1])
        assert box is not None
        left, top, right, bottom = (round(edge * 60) for edge in box)
        assert 0 <= left < right <= 60
        assert 0 <= top < bottom <= 60
        assert (scene[top:bottom, left:right] != 255).any()


def test_questions_have_one_right_answer(tasks: Path) -> None:
    kinds = {sample.meta["kind"]: words(sample) for sample in read(tasks, "train_ask")}
    assert set(kinds) == {"count", "exists", "corner"}
    assert kinds["count"][1] in ("one", "two", "three", "four")
    assert kinds["exists"][1] in ("yes", "no")


def test_what_is_there_is_told_row_by_row(emoji: Path) -> None:
    concepts = [c for c in json.loads((emoji / "concepts.json").read_text()) if not c["held_out_style"]]
    pool = Pool(
        tuple(c["name"] for c in concepts),
        {c["name"]: {style: emoji / path for style, path in c["images"].items()} for c in concepts},
    )
    kinds: dict[str, set[int]] = {"alone": set(), "scene": set()}
    for seed in range(40):
        task = name_things(pool, random.Random(seed), 60)
        assert isinstance(task.answer, str)
        names = task.answer.split(NAMES_APART)
        kinds[task.meta["kind"]].add(len(names))
        scene = np.asarray(task.shown)
        quarters = [scene[y : y + 30, x : x + 30] for y in (0, 30) for x in (0, 30)]
        if len(names) > 1:
            shown = [quarter for quarter in quarters if (quarter != 255).any()]
            assert len(shown) == len(names)
            for quarter, name in zip(shown, names, strict=True):
                looks = [pool.picture(name, style) for style in pool.files[name]]
                assert min(_mean_colour_gap(quarter, look) for look in looks) < 12, name
    assert kinds == {"alone": {1}, "scene": {2, 3, 4}}


def _mean_colour_gap(part: np.ndarray, whole: Image.Image) -> float:
    """Between the mean colours of what is not white."""
    one, other = (x[(x != 255).any(axis=-1)].astype(float).mean(axis=0) for x in (part, np.asarray(whole)))
    return float(np.abs(one - other).max())


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_scattered_things_never_touch(seed: int, count: int) -> None:
    blank = Image.new("RGB", (8, 8), "black")
    placed = scatter([str(i) for i in range(count)], [blank] * count, random.Random(seed))
    for index, one in enumerate(placed):
        assert min(one.box) >= 0
        assert max(one.box) <= 1
        assert all(box_overlap(one.box, other.box) == 0 for other in placed[:index])
    drawn = np.asarray(draw_scene(placed, 80))
    share = sum((p.box[2] - p.box[0]) * (p.box[3] - p.box[1]) for p in placed)
    assert (drawn < 128).all(axis=-1).mean() == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("colour", sorted(HUES))
def test_recolouring_turns_colours_and_leaves_grey(colour: str) -> None:
    pixels = Image.new("RGB", (3, 1))
    for x, value in enumerate([(200, 30, 30), (40, 90, 220), (120, 120, 120)]):
        pixels.putpixel((x, 0), value)
    changed = recolour(pixels, colour)
    hues = [changed.convert("HSV").getpixel((x, 0))[0] for x in (0, 1)]  # type: ignore[index]
    assert all(abs(hue - HUES[colour]) <= 2 for hue in hues)
    assert changed.getpixel((2, 0)) == (120, 120, 120)


def test_masks_differ_from_one_to_the_next() -> None:
    picture = Image.new("RGB", (40, 40), "white")
    for mask in (mask_inside, mask_outside):
        masks = {mask(picture, random.Random(seed)).tobytes() for seed in range(8)}
        assert len(masks) > 4


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("10 20 30 40", (0.1, 0.2, 0.3, 0.4)),
        ("10, 20, 30, 40", (0.1, 0.2, 0.3, 0.4)),
        ("30 20 10 40", None),
        ("10 20 30", None),
        ("left", None),
    ],
)
def test_boxes_are_read_or_refused(text: str, box: tuple[float, ...] | None) -> None:
    assert parse_box(text) == (None if box is None else pytest.approx(box))


def test_overlap_on_a_closed_form() -> None:
    assert box_overlap((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert box_overlap((0, 0, 1, 1), (0.5, 0, 1.5, 1)) == pytest.approx(1 / 3)
    assert box_overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0


def test_says_what_is_missing(emoji: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no built data set"):
        build_emoji_tasks(tmp_path / "out", emoji_folder=tmp_path)
    with pytest.raises(ValueError, match="num_samples is 0"):
        build_emoji_tasks(tmp_path / "out", emoji_folder=emoji, num_samples=0)
    for wrong in (999, 0, -3):
        with pytest.raises(ValueError, match=f"num_concepts is {wrong}, but"):
            build_emoji_tasks(tmp_path / "out", emoji_folder=emoji, num_concepts=wrong)
    with pytest.raises(ValueError, match="of 8 concepts 1 would be held out"):
        build_emoji_tasks(tmp_path / "out", emoji_folder=emoji, num_concepts=8)
    assert not (tmp_path / "out").exists()


def test_a_thing_stands_at_its_box() -> None:
    thing = Placed("x", Image.new("RGB", (4, 4), "black"), (0.25, 0.5, 0.75, 1.0))
    drawn = np.asarray(draw_scene([thing], 40))
    assert (drawn[20:, 10:30] == 0).all()
    assert (drawn[:20] == 255).all()
    assert thing.centre == (0.5, 0.75)


def test_a_set_of_an_earlier_version_says_nothing_of_unseen_concepts(emoji: Path, tmp_path: Path) -> None:
    shutil.copytree(emoji, tmp_path / "emoji")
    path = tmp_path / "emoji" / "concepts.json"
    entries = json.loads(path.read_text())
    for concept in entries:
        del concept["unseen"]
    path.write_text(json.dumps(entries))
    assert build_emoji_tasks(tmp_path / "set", emoji_folder=tmp_path / "emoji", num_samples=2, image_size=32).is_new


@pytest.mark.parametrize(
    ("pixel", "colour", "fits"),
    [
        ((255, 140, 0), "orange", True),
        ((110, 60, 10), "orange", False),  # brown
        ((255, 235, 40), "yellow", True),
        ((90, 85, 10), "yellow", False),  # olive
        ((225, 40, 40), "red", True),
        ((250, 190, 190), "red", False),  # pink
        ((30, 90, 30), "green", True),
        ((30, 90, 30), "blue", False),
        ((128, 128, 128), "red", False),
    ],
)
def test_a_colour_fits_its_word(pixel: tuple[int, int, int], colour: str, fits: bool) -> None:
    assert fits_word(Image.new("RGB", (8, 8), pixel), colour) == fits


def test_a_dark_leaf_becomes_no_brown_orange() -> None:
    leaf = Image.new("RGB", (8, 8), (20, 90, 30))
    found = [another_colour(leaf, random.Random(seed)) for seed in range(40)]
    assert {one[0] for one in found if one is not None} == {"blue", "purple"}
    assert all(one is not None and fits_word(one[1], one[0]) for one in found)
