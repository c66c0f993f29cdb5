"""Laws of the scenes: what is asked for is what is shown, what is held out no training shows, prompts never change."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from built_sets import check_card, read_all, same_files
from diptych.data.builders.emoji import STYLE_WORDS, build_emoji
from diptych.data.builders.emoji_scenes import HUES, SIDES
from diptych.data.builders.scene_prompts import (
    ASKED,
    COLOUR,
    COLOURED,
    COUNT,
    KINDS,
    NUMBERS,
    ONE,
    POSITION,
    SPLITS,
    THINGS,
    TWO,
    SceneRequest,
    all_facts,
    build_emoji_scenes,
    draw_request,
    held_out_requests,
    lay_out,
    one_object_requests,
    plural,
    request_of,
    split_facts,
)
from diptych.data.samples import read_samples
from diptych.evaluate.scene_judging import is_fulfilled, true_things
from emoji_packages import NAMES, entry, write_packages

SOME = NAMES[:9]


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("emoji")
    folders = write_packages(root / "packages", [entry(name, i) for i, name in enumerate(NAMES)])
    return build_emoji(root / "set", **folders, held_out_fraction=0, image_size=32).folder


@pytest.fixture(scope="module")
def scenes(emoji: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "scenes"
    return build_emoji_scenes(out, emoji_folder=emoji, num_samples=80, image_size=40, things=SOME, coloured=SOME).folder


def test_requests_are_worded_as_single_emoji_are() -> None:
    said = {
        SceneRequest(ONE, "fluent", ("frog",)): "Draw frog in 3D style.",
        SceneRequest(TWO, "openmoji", ("frog", "key")): "Draw frog and key in flat style.",
        SceneRequest(COUNT, "fluent", ("butterfly",), number=3): "Draw three butterflies in 3D style.",
        SceneRequest(COLOUR, "fluent", ("bus",), colour="red"): "Draw red bus in 3D style.",
        SceneRequest(
            POSITION, "fluent", ("cat", "dog"), side="to the left"
        ): "Draw cat to the left of dog in 3D style.",
        SceneRequest(POSITION, "fluent", ("cat", "dog"), side="above"): "Draw cat above dog in 3D style.",
    }
    assert {request: request.prompt for request in said} == said
    assert [plural(word) for word in ("bus", "key", "butterfly", "dog", "octopus")] == [
        "buses",
        "keys",
        "butterflies",
        "dogs",
        "octopuses",
    ]


def test_what_is_asked_for_is_some_500_prompts_each_once_and_evenly_spread() -> None:
    assert set(COLOURED) <= set(THINGS)
    requests = [*held_out_requests(split_facts(THINGS, COLOURED)[1]), *one_object_requests(THINGS)]
    assert len({request.prompt for request in requests}) == len(requests) == 500
    assert min(Counter(request.kind for request in requests).values()) >= 70
    assert set(Counter(request.kind for request in requests)) == set(KINDS)
    for what, values in (("colour", HUES), ("side", SIDES), ("number", NUMBERS)):
        counts = Counter(getattr(request, what) for request in requests)
        numbers = [counts[value] for value in values]
        assert max(numbers) - min(numbers) <= 1, what
    styles = Counter((request.kind, request.style) for request in requests)
    assert all(abs(styles[kind, "fluent"] - styles[kind, "openmoji"]) <= 1 for kind in KINDS)


def test_a_third_of_all_facts_is_held_out_and_no_fact_is_lost() -> None:
    train, held_out = split_facts(THINGS, COLOURED)
    for sort in ("pairs", "numbers", "colours"):
        seen, unseen = set(getattr(train, sort)), set(getattr(held_out, sort))
        assert not seen & unseen
        assert seen | unseen == set(getattr(all_facts(), sort))
        assert len(unseen) / len(seen | unseen) == pytest.approx(1 / 3, abs=0.01)


def test_the_set_is_what_its_card_says(scenes: Path) -> None:
    card = check_card(scenes, tuple(SPLITS), licences={"CC BY-SA 4.0", "MIT"})
    assert card.num_samples["one_object.jsonl"] == len(STYLE_WORDS) * len(SOME)
    assert all("changed here" in licence.used_for for licence in card.licences if "pictures" in licence.used_for)


def test_training_shows_no_held_out_fact(scenes: Path) -> None:
    def facts(split: str) -> set[tuple[object, ...]]:
        found: set[tuple[object, ...]] = set()
        for request in map(request_of, read_all(scenes)[split]):
            if request.kind in (TWO, POSITION):
                found.add(tuple(sorted(request.things)))
            else:
                found.add((*request.things, request.number, request.colour))
        return found

    assert not facts("train_scene") & facts("held_out_scene")
    assert not facts("train_scene") & facts("one_object")


def test_every_scene_shows_what_it_was_asked_for(scenes: Path) -> None:
    for samples in read_all(scenes).values():
        for sample in samples:
            request = request_of(sample)
            assert sample.messages[0].parts == (request.prompt,)
            assert is_fulfilled(request, true_things(sample)), request.prompt
            with Image.open(scenes / sample.images[0]) as image:
                assert image.size == (40, 40)


def test_one_object_is_asked_for_as_the_emoji_set_asks(emoji: Path, scenes: Path) -> None:
    theirs = {sample.messages[0].parts for sample in read_samples(emoji / "train_draw.jsonl")}
    assert {sample.messages[0].parts for sample in read_all(scenes)["one_object"]} <= theirs


@given(st.sampled_from(KINDS[1:]), st.integers(0, 10_000))
def test_a_layout_keeps_inside_the_scene_and_apart(kind: str, seed: int) -> None:
    chance = random.Random(seed)
    request = draw_request(kind, all_facts(), chance)
    pictures = {(thing, style): Image.new("RGB", (4, 4), "red") for thing in request.things for style in STYLE_WORDS}
    placed = lay_out(request, pictures, chance)
    assert len(placed) == len(request.things) * request.number
    for thing in placed:
        left, top, right, bottom = thing.box
        assert 0 <= left < right <= 1 + 1e-9
        assert 0 <= top < bottom <= 1 + 1e-9
    for number, one in enumerate(placed):
        for other in placed[:number]:
            assert (
                one.box[2] <= other.box[0]
                or other.box[2] <= one.box[0]
                or one.box[3] <= other.box[1]
                or other.box[3] <= one.box[1]
            )


def test_the_same_arguments_give_the_same_files_and_prompts_hang_on_no_seed(emoji: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        build_emoji_scenes(
            tmp_path / name, emoji_folder=emoji, num_samples=8, image_size=16, seed=seed, things=SOME, coloured=SOME
        )
    same_files(tmp_path / "one", tmp_path / "two")
    one, three = read_all(tmp_path / "one"), read_all(tmp_path / "three")
    for split in ASKED:
        assert [sample.messages for sample in one[split]] == [sample.messages for sample in three[split]]
    assert [s.meta["boxes"] for s in one["held_out_scene"]] != [s.meta["boxes"] for s in three["held_out_scene"]]


def test_without_training_samples_only_what_is_asked_for_is_built(emoji: Path, tmp_path: Path) -> None:
    built = build_emoji_scenes(tmp_path / "set", emoji_folder=emoji, num_samples=0, things=SOME, coloured=SOME)
    assert set(built.card.num_samples) == {f"{split}.jsonl" for split in ASKED}


def test_wrong_sources_are_told(emoji: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not hold dog, cat"):
        build_emoji_scenes(tmp_path / "set", emoji_folder=emoji)
    with pytest.raises(ValueError, match="is no emoji set"):
        build_emoji_scenes(tmp_path / "set", emoji_folder=scenes)
    with pytest.raises(ValueError, match="num_samples is -1"):
        build_emoji_scenes(tmp_path / "set", emoji_folder=emoji, num_samples=-1)
    kept_out = tmp_path / "kept-out"
    shutil.copytree(emoji, kept_out)
    text = (kept_out / "concepts.json").read_text()
    (kept_out / "concepts.json").write_text(text.replace('"held_out_style": null', '"held_out_style": "fluent"', 1))
    with pytest.raises(ValueError, match=f"keeps out of training, in a style or both, {NAMES[0]}"):
        build_emoji_scenes(tmp_path / "set", emoji_folder=kept_out, things=SOME, coloured=SOME)
    assert not (tmp_path / "set").exists()
