"""Laws of the composition suite: real scenes score what the detector reaches on them, others drop to chance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from built_sets import read_all
from diptych.backbones.scene_detector import SceneDetector, load_scene_detector
from diptych.data.builders.emoji import build_emoji
from diptych.data.builders.scene_prompts import ASKED, KINDS, build_emoji_scenes, request_of
from diptych.data.images import open_image
from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.scene_judging import Found, true_things, verdicts
from diptych.evaluate.suite import SuiteResult
from diptych.evaluate.suites import scene_composition
from diptych.evaluate.suites.scene_composition import SceneComposition
from emoji_packages import NAMES, entry, write_packages
from toy_suite import STAMP, FakeMorph

SOME = NAMES[:9]
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("emoji")
    folders = write_packages(root / "packages", [entry(name, i) for i, name in enumerate(NAMES)])
    emoji = build_emoji(root / "set", **folders, held_out_fraction=0, image_size=32).folder
    built = build_emoji_scenes(
        root / "scenes", emoji_folder=emoji, num_samples=0, image_size=48, things=SOME, coloured=SOME
    )
    return built.folder


def pixels(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


@pytest.fixture
def suite(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SceneComposition]:
    """The suite, judged by one who knows what stands in every real scene, but misses the first thing of each scene
    whose pixels' hash begins with one of `misses`."""
    known = {
        pixels(open_image(scenes / sample.images[0])): true_things(sample)
        for split in ASKED
        for sample in read_all(scenes)[split]
    }

    def build(misses: str = "") -> SceneComposition:
        def find(detector: SceneDetector, images: Sequence[Image.Image]) -> list[list[Found]]:
            return [known.get(key, [])[key[0] in misses :] for key in map(pixels, images)]

        monkeypatch.setattr(scene_composition, "find_things", find)
        return SceneComposition(scenes, detector=SceneDetector(SOME, COLOURS, width=4))

    return build


def run(suite: SceneComposition, draws: Callable[[str], Image.Image], out: Path) -> SuiteResult:
    (result,) = evaluate_suites(FakeMorph(lambda prompt, images: draws(prompt)), [suite], out, stamp=STAMP)
    return result


def real_scenes(suite: SceneComposition) -> dict[str, tuple[str, Path]]:
    """Prompt to its kind and real scene."""
    examples = suite.load_examples(lambda what, done, total: None)
    return {e.question(): (e.kind, e.reference_image) for e in examples if e.reference_image is not None}


def test_who_draws_the_real_scenes_scores_what_the_detector_reaches_on_them(
    suite: Callable[..., SceneComposition], tmp_path: Path
) -> None:
    real = real_scenes(suite())
    right = run(suite(), lambda prompt: open_image(real[prompt][1]), tmp_path / "right")
    assert set(right.by_kind) == set(KINDS)
    assert {name: score.mean for name, score in right.scores.items()} == {
        "as_asked": 1,
        "things_there": 1,
        "detector_on_real": 1,
    }
    missing = run(suite(misses="0123"), lambda prompt: open_image(real[prompt][1]), tmp_path / "missing")
    for scores in (missing.scores, *missing.by_kind.values()):
        assert scores["as_asked"].mean == scores["detector_on_real"].mean
        assert scores["as_asked"].mean < 1


def test_who_draws_the_scene_of_another_prompt_drops_to_chance(
    suite: Callable[..., SceneComposition], tmp_path: Path
) -> None:
    real = real_scenes(suite())
    shares: dict[int, float] = {}
    chance: float | None = None
    for step in (1, 2, 3):
        other = {}
        for kind in KINDS:
            prompts = sorted((p for p in real if real[p][0] == kind), key=lambda p: hashlib.sha256(p.encode()).digest())
            other |= dict(zip(prompts, prompts[step:] + prompts[:step], strict=True))
        result = run(suite(), lambda prompt, other=other: open_image(real[other[prompt]][1]), tmp_path / str(step))
        shares[step] = result.scores["as_asked"].mean
        assert result.scores["detector_on_real"].mean == 1
        chance = result.scores["as_asked"].baselines.chance
    assert chance is not None
    assert 0.02 < chance < 0.3
    assert sum(shares.values()) / len(shares) == pytest.approx(chance, abs=0.04)


def test_who_draws_one_scene_for_all_prompts_of_a_kind_scores_the_majority_baseline(
    scenes: Path, suite: Callable[..., SceneComposition], tmp_path: Path
) -> None:
    samples = [sample for split in ASKED for sample in read_all(scenes)[split]]
    requests = [request_of(sample) for sample in samples]
    best: dict[str, Path] = {}
    for kind in KINDS:
        own = [place for place, request in enumerate(requests) if request.kind == kind]
        passed = verdicts([requests[place] for place in own], [true_things(samples[place]) for place in own])
        best[kind] = scenes / samples[own[int(passed.sum(axis=0).argmax())]].images[0]
    real = real_scenes(suite())
    result = run(suite(), lambda prompt: open_image(best[real[prompt][0]]), tmp_path)
    for scores in (result.scores, *result.by_kind.values()):
        assert scores["as_asked"].mean == pytest.approx(scores["as_asked"].baselines.majority)
    assert result.scores["as_asked"].mean < 0.5


def test_nothing_drawn_is_nothing_right_and_the_detectors_words_are_kept(
    suite: Callable[..., SceneComposition], tmp_path: Path
) -> None:
    blank = run(suite(), lambda prompt: Image.new("RGB", (48, 48), "white"), tmp_path / "blank")
    assert blank.scores["as_asked"].mean == blank.scores["things_there"].mean == 0
    assert {row.answer for row in blank.rows} == {""}
    real = real_scenes(suite())
    drawn = run(suite(), lambda prompt: open_image(real[prompt][1]), tmp_path / "drawn")
    assert all(f"{e.reference} at 0 0 100 100" in r.answer for e, r in _pairs(drawn) if e.kind == "one object")
    assert all(e.reference in r.answer for e, r in _pairs(drawn) if e.kind == "colour")


def _pairs(result: SuiteResult) -> list[tuple[Any, Any]]:
    return list(zip(result.examples, result.rows, strict=True))


def test_the_suites_version_names_its_detector() -> None:
    """Another detector scores the same drawings otherwise: raise the version with it, and write its hash here."""
    assert {SceneComposition.version: load_scene_detector().hash[:16]} == {1: "1a3674fe4b8d9826"}


def test_a_detector_that_does_not_know_what_is_asked_for_is_refused(scenes: Path, tmp_path: Path) -> None:
    for names, colours, says in ((SOME[1:], COLOURS, SOME[0]), (SOME, COLOURS[1:], "red")):
        other = SceneComposition(scenes, detector=SceneDetector(names, colours, width=4))
        with pytest.raises(ValueError, match=f"does not know {says}"):
            run(other, lambda prompt: Image.new("RGB", (8, 8)), tmp_path / says)


def test_a_folder_without_scenes_is_told(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text((scenes / "card.json").read_text())
    with pytest.raises(ValueError, match=r"holds no held_out_scene\.jsonl"):
        SceneComposition(tmp_path).load_examples(lambda what, done, total: None)
