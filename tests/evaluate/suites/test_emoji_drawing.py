"""Laws of the drawing suite: real images find themselves and are no distance from themselves, one picture for all is
the majority and has no diversity, and kinds are told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.data.builders.emoji import build_emoji
from diptych.evaluate.emoji_gallery import read_combinations
from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.suites.emoji_drawing import EmojiDrawing
from emoji_packages import NAMES, entry, write_packages
from toy_captions import KnownCaptions
from toy_suite import STAMP, FakeMorph

SIZE = 32


pytest.importorskip("torchmetrics")


class Corners:
    """An encoder that sees 4 x 4 mean colours."""

    def pooled(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def drawing(emoji: Path) -> EmojiDrawing:
    return EmojiDrawing(emoji, encoder=Corners(), captions=KnownCaptions(emoji))


class Drawer(FakeMorph):
    recipe = SimpleNamespace(image_size=SIZE)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entries = [entry(name, i, group=3 + i % 5, subgroup=i % 7) for i, name in enumerate(NAMES)]
    folders = write_packages(tmp_path_factory.mktemp("packages"), entries)
    return build_emoji(tmp_path_factory.mktemp("sets") / "emoji", **folders, image_size=64).folder


def test_one_who_draws_the_real_image_scores_100_per_cent(emoji: Path, tmp_path: Path) -> None:
    real = {c.prompt: c.real for c in read_combinations(emoji)}
    morph = Drawer(lambda prompt, images: real[prompt])
    (result,) = evaluate_suites(morph, [drawing(emoji)], tmp_path, stamp=STAMP)
    means = {name: score.mean for name, score in result.scores.items()}
    assert means == pytest.approx(
        {
            "retrieval_top1": 1,
            "retrieval_top5": 1,
            "style_right": 1,
            "cosine_to_real": 1,
            "alignment": 1,
            "alignment_of_real": 1,
            "kid_efflite0": 0,
            "diversity": means["diversity_of_real"],
            "diversity_of_real": means["diversity"],
        },
        abs=1e-6,
    )
    assert means["diversity"] > 0.1
    assert all(score.interval is not None for score in result.scores.values())
    assert set(result.by_kind) == {"trained", "held out"}
    assert result.scores["retrieval_top1"].num == 2 * len(NAMES)
    assert result.scores["retrieval_top5"].baselines.chance == 5 / len(NAMES)


def test_one_who_draws_the_same_concept_always_scores_the_majority(emoji: Path, tmp_path: Path) -> None:
    combinations = read_combinations(emoji)
    same = {c.style: c.real for c in combinations if c.concept == combinations[0].concept}
    style_of = {c.prompt: c.style for c in combinations}
    morph = Drawer(lambda prompt, images: same[style_of[prompt]])
    (result,) = evaluate_suites(morph, [drawing(emoji)], tmp_path, stamp=STAMP)
    for name in ("retrieval_top1", "retrieval_top5"):
        assert result.scores[name].mean == result.scores[name].baselines.majority
    assert result.scores["style_right"].mean == 1
    assert result.scores["style_right"].baselines.majority == 1 / 2
    chance = result.scores["cosine_to_real"].baselines.chance
    assert chance is not None
    own = 1 / len(NAMES)
    expected = own + (1 - own) * chance  # one of them is the right one, the others as good as any
    assert result.scores["cosine_to_real"].mean == pytest.approx(expected, abs=0.1)
    interval = result.scores["kid_efflite0"].interval
    assert interval is not None
    assert interval[0] > 0
    assert result.scores["diversity"].mean < 0.7 * result.scores["diversity_of_real"].mean


def test_a_run_that_goes_on_is_scored_as_one_that_was_never_stopped(emoji: Path, tmp_path: Path) -> None:
    real = {c.prompt: c.real.rotate(20) for c in read_combinations(emoji)}

    def evaluate(out: Path, *, fails_at: int | None = None) -> bytes:
        morph = Drawer(lambda prompt, images: real[prompt].resize((SIZE, SIZE)), fails_at=fails_at)
        evaluate_suites(morph, [drawing(emoji)], out, stamp=STAMP, batch_size=7)
        return (out / "scores.json").read_bytes()

    whole = evaluate(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "out", fails_at=23)
    assert evaluate(tmp_path / "out") == whole
    assert evaluate(tmp_path / "out") == whole, "with all rows there"


def test_sets_too_small_for_an_interval_have_no_score_of_a_set(emoji: Path, tmp_path: Path) -> None:
    morph = Drawer(lambda prompt, images: Image.new("RGB", (SIZE, SIZE)))
    (result,) = evaluate_suites(morph, [drawing(emoji)], tmp_path, stamp=STAMP, limit=9)
    metrics = {metric.name for metric in EmojiDrawing.metrics}
    assert set(result.scores) == metrics - {"kid_efflite0", "diversity", "diversity_of_real"}


def test_one_who_draws_another_prompts_picture_is_aligned_by_chance(emoji: Path, tmp_path: Path) -> None:
    combinations = read_combinations(emoji)
    by_style = {style: [c for c in combinations if c.style == style] for style in {c.style for c in combinations}}
    scores = []
    for step in (1, 3, 5, 7):
        other = {c.prompt: own[place - step].real for own in by_style.values() for place, c in enumerate(own)}
        morph = Drawer(lambda prompt, images, other=other: other[prompt])
        (result,) = evaluate_suites(morph, [drawing(emoji)], tmp_path / str(step), stamp=STAMP)
        scores.append(result.scores["alignment"])
        assert result.scores["alignment_of_real"].mean == pytest.approx(1, abs=1e-6)
    chance = scores[0].baselines.chance
    assert chance is not None
    assert {score.baselines.chance for score in scores} == {chance}
    assert sum(score.mean for score in scores) / len(scores) == pytest.approx(chance, abs=0.1)
    assert chance < 0.3


def test_chance_is_the_mean_over_all_other_pictures_of_the_style(emoji: Path) -> None:
    captions = KnownCaptions(emoji)
    suite = EmojiDrawing(emoji, encoder=Corners(), captions=captions)
    examples = suite.load_examples(lambda what, done, total: None)
    assert suite.judge_hashes == captions.find()
    suite.prepare(Drawer(lambda prompt, images: None), lambda what, done, total: None)
    combinations = read_combinations(emoji)
    expected = []
    for c in combinations:
        others = [o.real for o in combinations if o.style == c.style and o.concept != c.concept]
        expected.append(float((captions.place_pictures(others) @ captions.place_captions([c.prompt])[0]).mean()))
    chance = suite.baselines(examples)["alignment"].chance
    assert chance == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_prompts_are_asked_as_the_set_asks_them(emoji: Path, tmp_path: Path) -> None:
    morph = Drawer(lambda prompt, images: Image.new("RGB", (SIZE, SIZE)))
    suite: Any = drawing(emoji)
    evaluate_suites(morph, [suite], tmp_path, stamp=STAMP, limit=6)
    asked = {prompt for batch in morph.batches for prompt in batch}
    assert len(asked) == 6
    assert asked <= {c.prompt for c in read_combinations(emoji)}
    assert {options["generation_mode"] for options in morph.options} == {"image"}
