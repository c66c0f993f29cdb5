"""Laws of the sets made of pictures: every answer follows from the scene's own description; splits stay apart."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from built_sets import check_card, pictures_of, read_all, same_files
from diptych.data.builders.concept_gallery import STYLE_NAMES, GallerySource, category_of
from diptych.data.builders.concept_splits import SPLITS, held_out_choice, is_held_out
from diptych.data.builders.drawing_prompts import build_generation
from diptych.data.builders.easy_vqa import build_easy_vqa
from diptych.data.builders.image_qa import build_image_qa
from diptych.data.builders.image_to_image import build_image_to_image
from diptych.data.builders.six_types import SHARES, TEXT_SHARE, mixture_fragment
from diptych.data.builders.text_instructions import build_text_instructions
from diptych.data.builders.visual_thinking import RED, build_visual_thinking
from diptych.data.samples import Sample
from emoji_packages import NAMES, entry, write_packages

MANY = [f"{name}{suffix}" for name in NAMES for suffix in ("", "ta", "ro")]
BUILDERS: dict[str, Callable[..., Any]] = {
    "image-qa": build_image_qa,
    "generation": build_generation,
    "visual-thinking": build_visual_thinking,
    "image-to-image": build_image_to_image,
    "text-only": build_text_instructions,
}
SIZE = 32


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> GallerySource:
    """Animals (subgroup 10) and fruit (11), all with names that end differently."""
    entries = [
        entry(name, i, group=3 + i % 5, subgroup=10 + i % 2, tags=[f"tag{name}", "*", "joy", "sky", "art"])
        for i, name in enumerate(MANY)
    ]
    folders = write_packages(tmp_path_factory.mktemp("packages"), entries)
    return GallerySource(**folders, num_concepts=60, image_size=SIZE)


@pytest.fixture(scope="module")
def sets(gallery: GallerySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for name, build in BUILDERS.items():
        build(folder / name, gallery, num_samples=80)
    return folder


def kind_of(name: str) -> str:
    return ("animal", "fruit")[MANY.index(name) % 2]


def picture(folder: Path, sample: Sample, number: int) -> np.ndarray:
    return np.asarray(Image.open(folder / sample.images[number]).convert("RGB"), dtype=int)


def said(sample: Sample) -> tuple[str, str]:
    """The question, and the last words of the answer."""
    user, assistant = sample.messages
    return str(user.parts[0]).strip(), str(assistant.parts[-1]).strip()


@pytest.mark.parametrize("name", BUILDERS)
def test_the_card_equals_a_recount_and_splits_share_no_sample(sets: Path, name: str) -> None:
    licences = {"MIT"} if name == "text-only" else {"MIT", "CC BY-SA 4.0"}
    card = check_card(sets / name, SPLITS, licences=licences)
    assert card.num_samples["train.jsonl"] == 80
    changed = ["pictures" in entry.used_for and name == "image-to-image" for entry in card.licences]
    assert ["changed here" in entry.used_for for entry in card.licences] == changed


@pytest.mark.parametrize("name", BUILDERS)
def test_the_same_arguments_give_the_same_files(gallery: GallerySource, tmp_path: Path, name: str) -> None:
    for folder in ("one", "two"):
        assert BUILDERS[name](tmp_path / folder, gallery, num_samples=10).is_new
    same_files(tmp_path / "one", tmp_path / "two")
    assert not BUILDERS[name](tmp_path / "one", gallery, num_samples=10).is_new


@pytest.mark.parametrize("name", ["image-qa", "generation", "visual-thinking", "image-to-image"])
def test_what_is_held_out_is_never_in_training(sets: Path, name: str) -> None:
    samples = read_all(sets / name)
    shown: dict[str, set[tuple[str, str]]] = {}
    for split, found in samples.items():
        shown[split] = set()
        for sample in found:
            names = {thing[0] for thing in sample.meta.get("things", [])} | {sample.meta.get("concept")}
            names |= set(sample.meta.get("before", {}).values()) | set(sample.meta.get("after", {}).values())
            shown[split] |= {(thing, sample.meta["style"]) for thing in names if thing}
    train = shown["train"]
    assert {style for _, style in train} == {"fluent", "openmoji"}
    assert not {thing for thing, _ in train} & {thing for thing, _ in shown["held_out_concept"]}
    assert {style for _, style in shown["held_out_style"]} == {"line"}
    assert not train & shown["held_out_combination"]
    answers = {split: {s.images[-1] for s in found} for split, found in samples.items()}
    for split in SPLITS[1:]:
        assert not answers["train"] & answers[split]
    assert not pictures_of(sets / name, samples["train"]) & pictures_of(sets / name, samples["held_out_concept"])


def test_answers_about_pictures_follow_from_their_description(sets: Path) -> None:
    tasks = set()
    for found in read_all(sets / "image-qa").values():
        for sample in found:
            question, answer = said(sample)
            task, things = sample.meta["task"], {tuple(cell): name for name, cell in sample.meta.get("things", [])}
            tasks.add(task)
            at = {name: cell for cell, name in things.items()}
            if task == "name":
                assert answer == sample.meta["concept"]
            elif task == "kind":
                assert answer == {"animal": "an animal", "fruit": "a fruit"}[kind_of(sample.meta["concept"])]
            elif task == "keyword":
                assert answer == f"tag{sample.meta['concept']}", "the other tags are everyone's"
                assert len(set(sample.meta["words"])) == 4
                assert all(word in question for word in sample.meta["words"])
            elif task == "count":
                word = question.removeprefix("How many ").removesuffix("s are there?")
                number = sum(kind_of(name) == word for name in things.values())
                assert answer == ["zero", "one", "two", "three", "four", "five", "six"][number]
            elif task == "exists":
                assert answer == ("yes" if question.rpartition(": ")[2].rstrip("?") in at else "no")
            else:
                one, other = question.split()[2], question.rstrip("?").rpartition(" the ")[2]
                dx, dy = (at[one][axis] - at[other][axis] for axis in (0, 1))
                is_so = {"left": dx < 0, "right": dx > 0, "higher": dy < 0, "lower": dy > 0}
                assert answer == ("yes" if next(so for word, so in is_so.items() if f" {word} " in question) else "no")
    assert tasks == {"name", "kind", "keyword", "count", "exists", "position"}


def test_a_look_closer_shows_what_the_answer_rests_on(sets: Path) -> None:
    looks = set()
    for sample in read_all(sets / "visual-thinking")["train"]:
        question, answer = said(sample)
        at = {tuple(cell): name for name, cell in sample.meta["things"]}
        wanted = [tuple(cell) for cell in sample.meta["wanted"]]
        scene, look = picture(sets / "visual-thinking", sample, 0), picture(sets / "visual-thinking", sample, 1)
        looks.add(sample.meta["look"])
        if sample.meta["kind"] == "place":
            ordinals = ["first", "second", "third", "fourth"]
            row, column = (ordinals.index(word) for word in question.split() if word in ordinals)
            assert wanted == [(column, row)]
            assert answer == at[column, row]
        elif sample.meta["kind"] == "neighbour":
            words, _, name = question.removeprefix("What is directly ").rstrip("?").rpartition(" the ")
            x, y = next(cell for cell, thing in at.items() if thing == name)
            dx, dy = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}[words]
            assert wanted == [(x + dx, y + dy)]
            assert answer == at[x + dx, y + dy]
        else:
            word = question.removeprefix("How many ").removesuffix("s are there?")
            assert wanted == [cell for cell, name in at.items() if kind_of(name) == word]
            assert answer == ["zero", "one", "two", "three", "four", "five", "six"][len(wanted)]
        side = scene.shape[0] // 4
        if sample.meta["look"] == "zoom":
            x, y = wanted[0]
            cut = Image.fromarray(scene[y * side : (y + 1) * side, x * side : (x + 1) * side].astype("uint8"))
            enlarged = np.asarray(cut.resize((SIZE, SIZE), Image.Resampling.LANCZOS), dtype=int)
            assert np.array_equal(look, enlarged)
        else:
            boxed = {(x, y) for x in range(4) for y in range(4) if (look[y * side, x * side] == RED).all()}
            assert boxed == set(wanted)
            inner = np.ones(scene.shape[:2], bool)
            for x, y in wanted:
                inner[y * side : (y + 1) * side, x * side : (x + 1) * side] = False
            assert np.array_equal(scene[inner], look[inner])
    assert looks == {"zoom", "boxes"}


def test_changes_are_the_ones_asked_for(sets: Path, gallery: GallerySource) -> None:
    tasks, corners = set(), {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
    for found in read_all(sets / "image-to-image").values():
        for sample in found:
            request, task = said(sample)[0], sample.meta["task"]
            tasks.add(task)
            before: Any = sample.meta.get("before")
            after: Any = sample.meta.get("after")
            if task == "style":
                assert request == f"Redraw it in {STYLE_NAMES[sample.meta['style']]} style."
                drawn = gallery.gallery.picture(sample.meta["concept"], sample.meta["style"])
                assert np.array_equal(picture(sets / "image-to-image", sample, 1), np.asarray(drawn))
            elif task == "colour":
                assert request == f"Make it {sample.meta['colour']}."
            else:
                words = request.rstrip(".").split()
                corner = next((corner for corner in corners if corner in request), "")
                expected = dict(before)
                if task == "add":
                    expected[corner] = words[-1]
                elif task == "move":
                    expected = {place: name for place, name in before.items() if name != words[2]}
                    expected[corner] = words[2]
                else:
                    expected = {place: name for place, name in before.items() if name != words[-1]}
                assert after == expected
                assert corner not in before
                pair = [picture(sets / "image-to-image", sample, k) for k in (0, 1)]
                half = SIZE // 2
                for place, (y, x) in corners.items():
                    parts = [p[y * half : (y + 1) * half, x * half : (x + 1) * half] for p in pair]
                    assert (parts[0] != 255).any() == (place in before)
                    assert (parts[1] != 255).any() == (place in after)
                    assert np.array_equal(parts[0], parts[1]) == (before.get(place) == after.get(place))
    assert tasks == {"style", "colour", "add", "move", "remove"}


def test_prompts_name_what_is_drawn(sets: Path, gallery: GallerySource) -> None:
    for found in read_all(sets / "generation").values():
        for sample in found:
            prompt, name = said(sample)[0], sample.meta["concept"]
            assert sample.messages[1].parts[-1] == 0
            assert f" in {STYLE_NAMES[sample.meta['style']]} style" in prompt
            assert (f"tag{name}" if sample.meta["prompt_kind"] == "tags" else name) in prompt
            assert "*" not in prompt, "no word"
            drawn = np.asarray(gallery.gallery.picture(name, sample.meta["style"]))
            assert np.array_equal(picture(sets / "generation", sample, 0), drawn)


def test_text_answers_are_right(sets: Path) -> None:
    tasks: set[str] = set()
    wordings: dict[str, set[tuple[str, ...]]] = {}
    for split, found in read_all(sets / "text-only").items():
        for sample in found:
            question, answer = said(sample)
            task = sample.meta["task"]
            tasks.add(task)
            wordings.setdefault(split, set()).add((task, question.split()[0], question.split()[-1][-1]))
            numbers = [int(word) for word in re.findall(r"\d+", question)]
            names = [word for word in re.findall(r"\w+", question) if word in MANY]
            if task == "add":
                assert int(answer) == sum(numbers)
            elif task == "subtract":
                assert int(answer) == max(numbers) - min(numbers)
            elif task == "larger":
                assert int(answer) == max(numbers)
            elif task == "sort":
                assert answer.split(", ") == sorted(names)
            elif task == "reverse":
                assert answer.split(", ") == names[::-1]
            elif task == "odd":
                (alone,) = [name for name in names if sum(kind_of(name) == kind_of(other) for other in names) == 1]
                assert answer == alone
                assert f" no {'animal' if kind_of(alone) == 'fruit' else 'fruit'}" in question
            else:
                assert answer.split()[1] == kind_of(names[0])
    assert tasks == {"add", "subtract", "larger", "sort", "reverse", "odd", "kind"}
    assert not wordings["train"] & wordings["held_out_style"]


@given(st.text(max_size=20), st.integers(0, 9), st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True))
def test_what_is_held_out_follows_from_name_and_seed_alone(name: str, seed: int, choices: list[str]) -> None:
    assert is_held_out(name, seed=seed) == is_held_out(name, seed=seed)
    assert held_out_choice(name, choices, seed=seed) in {None, *choices}


def test_the_held_out_shares_are_a_tenth_and_a_fifth() -> None:
    names = [f"name{i}" for i in range(2000)]
    assert sum(is_held_out(name, seed=0) for name in names) == pytest.approx(200, abs=50)
    chosen = [held_out_choice(name, ("a", "b"), seed=0) for name in names]
    assert [chosen.count(choice) for choice in ("a", "b")] == pytest.approx([200, 200], abs=50)


def test_only_plain_kinds_are_asked_about() -> None:
    assert category_of("fox", "animal-mammal") == "animal"
    assert category_of("paw prints", "animal-mammal") is None
    assert category_of("tomato", "food-fruit") is None
    assert category_of("bus stop", "transport-ground") is None
    assert category_of("no entry", "transport-sign") is None
    assert category_of("hammer", "tool") is None


def test_easy_vqa_keeps_its_split_and_drops_what_the_test_shows_too(tmp_path: Path) -> None:
    for split, colours in (("train", ["red", "blue", "green"]), ("test", ["teal", "green"])):
        folder = tmp_path / "easy_vqa" / "data" / split
        (folder / "images").mkdir(parents=True)
        questions = []
        for number, colour in enumerate(colours):
            Image.new("RGB", (8, 8), colour).save(folder / "images" / f"{number}.png", compress_level=number)
            questions += [["what color is the shape?", colour, number], ["is there a red shape?", "no", number]]
        (folder / "questions.json").write_text(json.dumps(questions))
    built = build_easy_vqa(tmp_path / "set", easy_vqa_folder=tmp_path)
    check_card(tmp_path / "set", ("train", "held_out_test"), licences={"MIT"})
    assert built.card.num_samples == {"train.jsonl": 4, "held_out_test.jsonl": 4}
    assert next(iter(built.card.counts.values())) == 2, "the green one"
    samples = read_all(tmp_path / "set")
    assert {said(s)[1] for s in samples["train"]} == {"red", "blue", "no"}
    assert not pictures_of(tmp_path / "set", samples["train"]) & pictures_of(tmp_path / "set", samples["held_out_test"])
    with pytest.raises(ValueError, match="unpacked package easy-vqa"):
        build_easy_vqa(tmp_path / "other", easy_vqa_folder=tmp_path / "nothing")


def test_the_fragment_is_a_recipes_data_and_adds_up() -> None:
    import yaml

    from diptych.data_settings import DataConfig

    data = DataConfig.model_validate(yaml.safe_load(mixture_fragment(Path("data/six")))["data"])
    weights = {Path(source.path).parent.name: source.weight for source in data.sources}
    assert weights == SHARES | {"text-only": TEXT_SHARE}
    assert sum(SHARES.values()) == 100
    assert {Path(source.path).name for source in data.sources} == {"train.jsonl"}


def test_says_what_is_wrong(gallery: GallerySource, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size is 4"):
        GallerySource("a", "b", "c", image_size=4)
    with pytest.raises(ValueError, match="unpacked npm package"):
        build_generation(tmp_path / "set", GallerySource("a", "b", "c"))
    assert not (tmp_path / "set").exists()
