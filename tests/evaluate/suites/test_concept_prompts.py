"""Laws of the qualitative prompts: what is right scores 100%, baselines are known, everything named is there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.backbones.assets import asset_path
from diptych.data.builders.emoji import PACKAGES, build_emoji, npm_package
from diptych.data.builders.emoji_concepts import read_concepts
from diptych.evaluate.emoji_gallery import read_combinations
from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.suites.concept_prompts import ConceptPrompt, ConceptPrompts, read_prompts, score_nearness
from emoji_packages import NAMES, entry, write_packages
from toy_suite import STAMP, FakeMorph

FILES = ("world_knowledge.json", "semantic_nuance.json", "implicit_reasoning.json")
PROMPTS = [
    ConceptPrompt("Draw the first.", (NAMES[0],), (NAMES[1], NAMES[2])),
    ConceptPrompt("Draw the second.", (NAMES[1], NAMES[5])),
    ConceptPrompt("Draw the second again.", (NAMES[1],), (NAMES[0],)),
    ConceptPrompt("Draw the last.", (NAMES[-1],)),
]


class Corners:
    """An encoder that sees 4 x 4 mean colours."""

    def pooled(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


class Drawer(FakeMorph):
    recipe = SimpleNamespace(image_size=32)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entries = [entry(name, i, group=3 + i % 5, subgroup=i % 7) for i, name in enumerate(NAMES)]
    folders = write_packages(tmp_path_factory.mktemp("packages"), entries)
    return build_emoji(tmp_path_factory.mktemp("sets") / "emoji", **folders, image_size=64).folder


def run(rule: dict[str, str], style: str, emoji: Path, out: Path) -> Any:
    """Draws for each prompt the real image of a concept."""
    real = {c.concept: c.real for c in read_combinations(emoji) if c.style == style}
    suite: Any = ConceptPrompts("things", PROMPTS, words="Things.", data=emoji, encoder=Corners())
    morph = Drawer(lambda prompt, images: real[rule[prompt]])
    (result,) = evaluate_suites(morph, [suite], out, stamp=STAMP)
    return result


@pytest.mark.parametrize("style", ["fluent", "openmoji"])
def test_any_right_thing_in_any_style_scores_100_per_cent(emoji: Path, tmp_path: Path, style: str) -> None:
    result = run({p.prompt: p.right[-1] for p in PROMPTS}, style, emoji, tmp_path)
    assert {name: score.mean for name, score in result.scores.items()} == {
        "retrieval_top1": 1,
        "retrieval_top5": 1,
        "told_apart": 1,
    }
    assert result.scores["told_apart"].num == 2
    assert result.scores["told_apart"].baselines.chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    num = len(NAMES)
    assert result.scores["retrieval_top1"].baselines.chance == pytest.approx((3 / num + 2 / num) / 4)


def test_the_commonest_thing_scores_the_majority_and_the_other_is_not_told_apart(emoji: Path, tmp_path: Path) -> None:
    result = run({p.prompt: NAMES[1] for p in PROMPTS}, "fluent", emoji, tmp_path)
    assert result.scores["retrieval_top1"].mean == result.scores["retrieval_top1"].baselines.majority == 1 / 2
    told_apart = {row.id: row.scores.get("told_apart") for row in result.rows}
    assert told_apart == {"000": 0, "001": None, "002": 1, "003": None}


def test_ties_count_against_the_drawing() -> None:
    prompt = ConceptPrompt("Draw.", ("a", "b"), ("c",))
    near = {"a": 0.1, "b": 0.5, "c": 0.5, "d": 0.2, "e": 0.6}
    assert score_nearness(near, prompt) == {"retrieval_top1": 0, "retrieval_top5": 1, "told_apart": 0}
    assert score_nearness(near | {"b": 0.7}, prompt) == {"retrieval_top1": 1, "retrieval_top5": 1, "told_apart": 1}


def test_a_set_that_lacks_what_is_asked_for_is_refused(emoji: Path) -> None:
    suite = ConceptPrompts("things", [ConceptPrompt("Draw.", ("yeti",))], words="Things.", data=emoji)
    with pytest.raises(ValueError, match=r"lacks yeti, which suite things asks for; build it with all concepts"):
        suite.load_examples(lambda what, done, total: None)


@pytest.mark.parametrize("name", FILES)
def test_the_files_hold_forty_prompts_or_more_that_do_not_name_what_they_ask_for(name: str) -> None:
    prompts = read_prompts(name)
    assert len(prompts) >= 40
    assert len({p.prompt for p in prompts}) == len(prompts)
    for p in prompts:
        assert re.fullmatch(r"Draw [^\n]+\.", p.prompt)
        assert p.right
        assert set(p.right).isdisjoint(p.others)
        assert bool(p.others) == (name == "semantic_nuance.json")
        if not p.others:
            assert not any(re.search(rf"\b{re.escape(right)}\b", p.prompt, re.IGNORECASE) for right in p.right)


@pytest.mark.assets("openmoji", "fluent-emoji-3d", "emojibase-data")
def test_all_that_is_asked_for_is_among_the_emoji_in_both_styles() -> None:
    folders: Any = {argument: npm_package(asset_path(asset)) for argument, asset in PACKAGES.items()}
    names = {concept.name for concept in read_concepts(**folders)}
    for name in FILES:
        for prompt in read_prompts(name):
            assert {*prompt.right, *prompt.others} <= names, prompt
