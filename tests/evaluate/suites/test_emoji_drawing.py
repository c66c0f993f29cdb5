"""Laws of the drawing suite: real images find themselves, one picture for all is the majority, and kinds are told."""

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
from toy_suite import STAMP, FakeMorph

SIZE = 32


class Corners:
    """An encoder that sees 4 x 4 mean colours."""

    def pooled(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


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
    (result,) = evaluate_suites(morph, [EmojiDrawing(emoji, encoder=Corners())], tmp_path, stamp=STAMP)
    assert {name: score.mean for name, score in result.scores.items()} == {
        "retrieval_top1": 1,
        "retrieval_top5": 1,
        "style_right": 1,
    }
    assert set(result.by_kind) == {"trained", "held out"}
    assert result.scores["retrieval_top1"].num == 2 * len(NAMES)
    assert result.scores["retrieval_top5"].baselines.chance == 5 / len(NAMES)


def test_one_who_draws_the_same_concept_always_scores_the_majority(emoji: Path, tmp_path: Path) -> None:
    combinations = read_combinations(emoji)
    same = {c.style: c.real for c in combinations if c.concept == combinations[0].concept}
    style_of = {c.prompt: c.style for c in combinations}
    morph = Drawer(lambda prompt, images: same[style_of[prompt]])
    (result,) = evaluate_suites(morph, [EmojiDrawing(emoji, encoder=Corners())], tmp_path, stamp=STAMP)
    for name in ("retrieval_top1", "retrieval_top5"):
        assert result.scores[name].mean == result.scores[name].baselines.majority
    assert result.scores["style_right"].mean == 1
    assert result.scores["style_right"].baselines.majority == 1 / 2


def test_prompts_are_asked_as_the_set_asks_them(emoji: Path, tmp_path: Path) -> None:
    morph = Drawer(lambda prompt, images: Image.new("RGB", (SIZE, SIZE)))
    suite: Any = EmojiDrawing(emoji, encoder=Corners())
    evaluate_suites(morph, [suite], tmp_path, stamp=STAMP, limit=6)
    asked = {prompt for batch in morph.batches for prompt in batch}
    assert len(asked) == 6
    assert asked <= {c.prompt for c in read_combinations(emoji)}
    assert {options["generation_mode"] for options in morph.options} == {"image"}
