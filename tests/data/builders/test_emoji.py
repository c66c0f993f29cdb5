"""Laws of the emoji set: whole or not at all, the same every time, held-out combinations never in training."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data.builders import emoji
from diptych.data.builders.data_card import read_card
from diptych.data.builders.emoji import QUESTIONS, build_emoji, choose_held_out
from diptych.data.builders.emoji_concepts import choose_everyday, read_concepts, thumbnail
from diptych.data.builders.emoji_paraphrases import PARAPHRASES
from diptych.data.samples import Sample, read_samples
from emoji_packages import FOLDERS, NAMES, entry, write_packages


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    entries = [entry(name, i, group=3 + i % 5, subgroup=i % 7) for i, name in enumerate(NAMES)]
    return write_packages(tmp_path_factory.mktemp("packages"), entries)


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_all(folder: Path) -> dict[str, list[Sample]]:
    return {path.name: read_samples(path) for path in sorted(folder.glob("*.jsonl"))}


def test_the_card_equals_a_recount(packages: dict[str, Any], tmp_path: Path) -> None:
    built = build_emoji(tmp_path / "set", **packages, prompt_kinds=("name", "tags"))
    samples = read_all(tmp_path / "set")
    card = read_card(tmp_path / "set")
    assert built.is_new
    assert card == built.card
    assert card.num_samples == {name: len(entries) for name, entries in samples.items()}
    assert set(card.splits) == set(samples)
    concepts = json.loads((tmp_path / "set" / "concepts.json").read_text())
    held_out = Counter(concept["held_out_style"] for concept in concepts)
    pictures = list((tmp_path / "set" / "images").rglob("*.png"))
    assert list(card.counts.values()) == [len(concepts), len(pictures), held_out["fluent"], held_out["openmoji"]]
    assert {licence.licence for licence in card.licences} == {"CC BY-SA 4.0", "MIT"}
    text = (tmp_path / "set" / "card.md").read_text()
    assert all(licence.source in text and licence.version in text for licence in card.licences)
    assert len(samples["train_draw.jsonl"]) + len(samples["held_out_draw.jsonl"]) == 2 * 2 * len(NAMES)
    assert len(samples["train_read.jsonl"]) + len(samples["held_out_read.jsonl"]) == 2 * 3 * len(NAMES)


def test_prompts_and_answers_are_the_names(packages: dict[str, Any], tmp_path: Path) -> None:
    build_emoji(tmp_path / "set", **packages)
    samples = read_all(tmp_path / "set")
    for name, entries in samples.items():
        for sample in entries:
            concept, style = sample.meta["concept"], sample.meta["style"]
            user, assistant = sample.messages
            assert sample.meta["held_out"] == name.startswith("held_out")
            assert sample.images[0].startswith(f"images/{style}/")
            if name.endswith("_draw.jsonl"):
                words = {"fluent": "3D", "openmoji": "flat"}[style]
                assert user.parts == (f"Draw {concept} in {words} style.",)
                assert assistant.parts == (0,)
            else:
                assert str(user.parts[0]).removesuffix("\n") in QUESTIONS
                assert user.parts[1] == 0
                assert assistant.parts == (concept,)


def test_tag_prompts_name_three_of_the_tags(packages: dict[str, Any], tmp_path: Path) -> None:
    build_emoji(tmp_path / "set", **packages, prompt_kinds=("tags",))
    for sample in read_samples(tmp_path / "set" / "train_draw.jsonl"):
        prompt = str(sample.messages[0].parts[0])
        tags = prompt.removeprefix("Draw a picture of ").rpartition(" in ")[0].split(", ")
        number = NAMES.index(sample.meta["concept"])
        assert len(set(tags)) == 3
        assert set(tags) <= {f"tag{number}", "a", "b", "c"}
        assert sample.meta["prompt_kind"] == "tags"


def test_held_out_combinations_never_enter_training(packages: dict[str, Any], tmp_path: Path) -> None:
    """Not by name, and not by the bytes of a picture; the other style of each of them does."""
    folder = tmp_path / "set"
    build_emoji(folder, **packages, held_out_fraction=0.5)
    samples = read_all(folder)

    def combinations(split: str) -> set[tuple[str, str]]:
        sides = [
            {(s.meta["concept"], s.meta["style"]) for s in samples[f"{split}_{side}.jsonl"]}
            for side in ("draw", "read")
        ]
        assert sides[0] == sides[1]
        return sides[0]

    def pictures(split: str) -> set[bytes]:
        return {(folder / s.images[0]).read_bytes() for s in samples[f"{split}_draw.jsonl"]}

    train, held_out = combinations("train"), combinations("held_out")
    assert not train & held_out
    assert not pictures("train") & pictures("held_out")
    assert train | held_out == {(name, style) for name in NAMES for style in ("fluent", "openmoji")}
    assert len({name for name, _ in held_out}) == len(held_out) == len(NAMES) // 2
    assert Counter(style for _, style in held_out) == {"fluent": len(NAMES) // 4, "openmoji": len(NAMES) // 4}


def test_unseen_concepts_enter_training_in_no_style(packages: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    samples = read_all(_built(folder / "unseen", packages, num_unseen=3))
    unseen = {(s.meta["concept"], s.meta["style"]) for s in samples["unseen_draw.jsonl"]}
    assert len(unseen) == 2 * len({concept for concept, _ in unseen}) == 6
    assert unseen == {(s.meta["concept"], s.meta["style"]) for s in samples["unseen_read.jsonl"]}
    for name, entries in samples.items():
        if not name.startswith("unseen"):
            assert not {concept for concept, _ in unseen} & {s.meta["concept"] for s in entries}
    with pytest.raises(ValueError, match="num_unseen is -1"):
        _built(folder / "wrong", packages, num_unseen=-1)


def _built(folder: Path, packages: dict[str, Any], **options: Any) -> Path:
    build_emoji(folder, **packages, **options)
    return folder


def test_no_paraphrase_holds_its_name() -> None:
    for name, paraphrase in PARAPHRASES.items():
        assert not set(name.split()) & set(re.findall(r"\w+", paraphrase.lower())), name


def test_a_fifth_is_held_out_and_the_seed_decides_which() -> None:
    names = [f"name {i}" for i in range(200)]
    chosen = choose_held_out(names, fraction=0.2, seed=0)
    assert Counter(chosen.values()) == {"fluent": 20, "openmoji": 20}
    assert chosen == choose_held_out(names[::-1], fraction=0.2, seed=0)
    assert chosen != choose_held_out(names, fraction=0.2, seed=1)


def test_pictures_are_rgb_on_white_in_their_true_colours(packages: dict[str, Any], tmp_path: Path) -> None:
    build_emoji(tmp_path / "set", **packages, image_size=128)
    for number in range(len(NAMES)):
        cells = np.random.default_rng(int(f"1F{number:03X}", 16)).integers(0, 256, (4, 4, 4), dtype=np.uint8)
        for style in ("fluent", "openmoji"):
            with Image.open(tmp_path / "set" / "images" / style / f"1f{number:03x}.png") as image:
                assert (image.mode, image.size) == ("RGB", (128, 128))
                pixels = np.asarray(image)[16::32, 16::32].astype(int)
            assert (pixels[0, 0] >= 254).all()
            assert np.abs(pixels - cells[..., :3]).reshape(16, 3)[1:].max() <= 3


def test_a_build_is_the_same_every_time(packages: dict[str, Any], tmp_path: Path) -> None:
    build_emoji(tmp_path / "a", **packages, num_concepts=10, seed=3)
    build_emoji(tmp_path / "b", **packages, num_concepts=10, seed=3)
    assert all_files(tmp_path / "a") == all_files(tmp_path / "b")


def test_building_again_does_nothing_and_says_so(packages: dict[str, Any], tmp_path: Path) -> None:
    first = build_emoji(tmp_path / "set", **packages)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    again = build_emoji(tmp_path / "set", **packages)
    assert not again.is_new
    assert again.card == first.card
    assert "already there" in again.summary()
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}


def test_what_lies_in_the_folder_is_never_overwritten(packages: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "set"
    build_emoji(out, **packages, num_concepts=5)
    before = all_files(out)
    with pytest.raises(ValueError, match=r"other settings \(num_concepts, seed\)"):
        build_emoji(out, **packages, num_concepts=6, seed=1)
    assert all_files(out) == before
    (out / "train_draw.jsonl").unlink()
    with pytest.raises(ValueError, match=r"lost train_draw\.jsonl"):
        build_emoji(out, **packages, num_concepts=5)
    (out / "card.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        build_emoji(out, **packages, num_concepts=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("draft")
    with pytest.raises(ValueError, match="not empty"):
        build_emoji(tmp_path / "mine", **packages)
    assert all_files(tmp_path / "mine") == {"thesis.txt": b"draft"}
    with pytest.raises(ValueError, match="is a file"):
        build_emoji(tmp_path / "mine" / "thesis.txt", **packages)


def test_an_empty_folder_is_filled(packages: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "new" / "set").mkdir(parents=True)
    assert build_emoji(tmp_path / "new" / "set", **packages).is_new
    assert build_emoji(tmp_path / "deep" / "er" / "set", **packages).is_new
    (tmp_path / "linked").mkdir()
    (tmp_path / "link").symlink_to("linked")
    assert build_emoji(tmp_path / "link", **packages).is_new
    assert (tmp_path / "linked" / "card.json").is_file()


@pytest.mark.parametrize(
    ("failure", "seen"),
    [(OSError(28, "No space left on device"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_build_that_fails_leaves_nothing(
    packages: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    seen: type[BaseException],
) -> None:
    def fail(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(emoji, "write_card", fail)
        with pytest.raises(seen):
            build_emoji(tmp_path / "set", **packages)
    assert not list(tmp_path.iterdir())
    assert build_emoji(tmp_path / "set", **packages).is_new


def test_progress_is_told_to_the_end(packages: dict[str, Any], tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build_emoji(tmp_path / "set", **packages, progress=lambda *news: told.append(news))
    count = len(NAMES)
    assert told == [(what, i, count) for what in ("drawing emoji", "writing images") for i in range(1, count + 1)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt_kinds": ()}, "prompt_kinds"),
        ({"prompt_kinds": ("names",)}, "prompt_kinds"),
        ({"held_out_fraction": 1.5}, "held_out_fraction"),
        ({"image_size": 4}, "image_size"),
        ({"num_concepts": 0}, "at least 1"),
        ({"num_concepts": 1000}, "fewer than 1000"),
        ({"openmoji_folder": Path("/nonexistent")}, "unpacked npm package"),
    ],
)
def test_wrong_arguments_are_refused(
    packages: dict[str, Any], tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build_emoji(tmp_path / "set", **{**packages, **arguments})
    assert not (tmp_path / "set").exists()


def test_flags_components_twins_and_lone_styles_are_no_concepts(tmp_path: Path) -> None:
    entries = [
        entry("dog", 1),
        entry("man dog", 2),
        entry("flag", 3, group=9, subgroup=9),
        entry("red hair", 4, group=2),
        entry("lone", 5),
        {"label": "regional indicator", "hexcode": "1F1EB", "emoji": "?", "version": 0},
        entry("heart", 7, hexcode="2764-FE0F"),
        entry("cat", 0),
    ]
    folders = write_packages(tmp_path / "packages", entries, same={"man dog": "1F001"})
    (folders["fluent_folder"] / "package" / "assets" / "1f005.webp").unlink()
    selector = folders["fluent_folder"] / "package" / "assets" / "2764-fe0f.webp"
    selector.rename(selector.with_name("2764.webp"))
    build_emoji(tmp_path / "set", **folders)
    names = [concept["name"] for concept in json.loads((tmp_path / "set" / "concepts.json").read_text())]
    assert names == ["cat", "dog", "heart"]


def test_a_broken_drawing_is_named(packages: dict[str, Any], tmp_path: Path) -> None:
    folders = write_packages(tmp_path / "packages", [entry("dog", 1), entry("cat", 2)])
    (folders["openmoji_folder"] / "package" / "color" / "svg" / "1F002.svg").write_text("<svg")
    with pytest.raises(ValueError, match=r"1F002\.svg is not valid SVG"):
        build_emoji(tmp_path / "set", **folders)
    assert not (tmp_path / "set").exists()


def test_everyday_concepts_are_plain_distinct_and_shared_out(tmp_path: Path) -> None:
    entries = [entry(name, i, group=3 + i % 5, subgroup=i % 7) for i, name in enumerate(NAMES)]
    odd = [
        entry("one o'clock", 100, group=5, subgroup=58),
        entry("clock", 101, group=5, subgroup=58),
        entry("dom face", 102),
        entry("ferry", 103, group=5),
        entry("smile", 104, group=0),
        entry("copy", 105),
    ]
    folders = write_packages(tmp_path / "packages", entries + odd, same={"copy": "1F000"})
    concepts = read_concepts(**{name: folder / "package" for name, folder in folders.items()})
    thumbnails = {
        style: np.stack([thumbnail(emoji.draw_concept(concept, style, 64)) for concept in concepts])
        for style in ("fluent", "openmoji")
    }
    chosen = [concept.name for concept in choose_everyday(concepts, thumbnails, len(NAMES))]
    assert chosen == NAMES
    few = choose_everyday(concepts, thumbnails, 10)
    assert Counter(concept.group for concept in few) == {3: 3, 4: 2, 5: 2, 6: 1, 7: 2}
    with pytest.raises(ValueError, match=f"only {len(NAMES)} everyday concepts"):
        choose_everyday(concepts, thumbnails, len(NAMES) + 1)


@pytest.mark.assets("openmoji", "fluent-emoji-3d", "emojibase-data")
def test_the_two_hundred_real_concepts(tmp_path: Path) -> None:
    from diptych.backbones.assets import asset_path

    names = ("openmoji", "fluent-emoji-3d", "emojibase-data")
    packages: dict[str, Any] = {folder: asset_path(name) for folder, name in zip(FOLDERS, names, strict=True)}
    built = build_emoji(
        tmp_path / "set",
        **packages,
        num_concepts=200,
    )
    assert built.card.counts["concepts"] == 200
    concepts = json.loads((tmp_path / "set" / "concepts.json").read_text())
    assert {"dog", "elephant", "banana", "pizza", "rocket", "guitar", "umbrella"} <= {c["name"] for c in concepts}
    assert not {c["name"] for c in concepts} & {"one o\u2019clock", "full moon", "tiger face", "bullet train"}
    assert Counter(c["held_out_style"] for c in concepts) == {None: 160, "fluent": 20, "openmoji": 20}
    for style in ("fluent", "openmoji"):
        with_style = [Image.open(tmp_path / "set" / c["images"][style]) for c in concepts]
        rows = np.stack([thumbnail(image.convert("RGB")) for image in with_style])
        distances = np.sqrt(((rows[:, None] - rows[None]) ** 2).mean(-1)) + np.eye(200)
        assert distances.min() >= 0.119, "no two pictures of a style look alike"
        corners = np.stack([np.asarray(image)[[0, 0, -1, -1], [0, -1, 0, -1]] for image in with_style])
        assert (corners == 255).all(-1).mean() > 0.95, "pictures stand on white"
