"""Laws of captioning: right captions reach the most, another picture's little, and a subset scores as in the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data.builders.emoji import STYLE_WORDS, build_emoji
from diptych.evaluate.emoji_gallery import read_combinations
from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.suites.captioning import QUESTION, Captioning, estimate_bleu, score_bleu, score_cider
from emoji_packages import NAMES, entry, write_packages
from toy_captions import KnownCaptions
from toy_suite import STAMP, FakeMorph

pytest.importorskip("pycocoevalcap.cider.cider_scorer")


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"{first} {second}" for first, second in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)]
    entries = [entry(name, i, group=3 + i % 5, subgroup=i % 7) for i, name in enumerate(names)]
    folders = write_packages(tmp_path_factory.mktemp("packages"), entries)
    return build_emoji(tmp_path_factory.mktemp("sets") / "emoji", **folders, image_size=32).folder


def looking(emoji: Path, caption: Callable[[str, str], str]) -> Any:
    """Knows every picture."""
    known = {c.real.tobytes(): caption(c.concept, STYLE_WORDS[c.style]) for c in read_combinations(emoji)}

    def rule(question: str, images: list[Image.Image]) -> str:
        assert question == QUESTION.strip()
        return known[images[0].tobytes()]

    return rule


def run(rule: Any, emoji: Path, out: Path, **options: Any) -> Any:
    suite = Captioning(emoji, captions=KnownCaptions(emoji))
    (result,) = evaluate_suites(FakeMorph(rule), [suite], out, stamp=STAMP, **options)
    return result


def test_right_captions_reach_the_most_and_with_shuffled_pictures_fall_to_chance(emoji: Path, tmp_path: Path) -> None:
    right = looking(emoji, lambda name, style: f"A {name} in {style} style.")
    result = run(right, emoji, tmp_path / "right")
    means = {name: score.mean for name, score in result.scores.items()}
    assert means == pytest.approx(
        {"cider_d": 10, "bleu4": 1, "names_thing": 1, "exact": 1, "alignment": 1, "alignment_of_right": 1}
    )
    assert {kind: scores["exact"].num for kind, scores in result.by_kind.items()} == {"trained": 43, "held out": 5}
    shuffled = run(right, emoji, tmp_path / "shuffled", shuffle_images=True)
    for name in ("cider_d", "names_thing", "exact"):
        score = shuffled.scores[name]
        assert score.mean <= score.baselines.chance + 0.1 * means[name]
    aligned = shuffled.scores["alignment"]
    assert aligned.mean == pytest.approx(aligned.baselines.chance, abs=0.2)
    assert aligned.mean < 0.4
    assert shuffled.scores["alignment_of_right"].mean == pytest.approx(1)


def test_who_always_says_the_commonest_caption_scores_the_majority(emoji: Path, tmp_path: Path) -> None:
    first = min(f"{c.concept} in {STYLE_WORDS[c.style]} style" for c in read_combinations(emoji))
    result = run(lambda question, images: first, emoji, tmp_path)
    for name in ("cider_d", "bleu4", "names_thing", "exact", "alignment"):
        assert result.scores[name].mean == pytest.approx(result.scores[name].baselines.majority)
    assert 0 < result.scores["cider_d"].mean < 3


def test_bleu_of_a_resample_is_that_of_its_captions() -> None:
    right = 6 * [f"{name} in 3D style" for name in ("tiger", "red apple", "rocket", "man in tuxedo", "sun")]
    captions = 6 * [right[0], "apple in flat style", right[2], "man", right[4]]
    found = estimate_bleu(captions, right)
    assert found.mean == score_bleu(captions, right)
    chance = np.random.default_rng(3)
    literal = []
    for _ in range(400):
        picked = chance.integers(0, 30, 30)
        literal.append(score_bleu([captions[i] for i in picked], [right[i] for i in picked]))
    assert found.interval == pytest.approx(tuple(np.percentile(literal, [2.5, 97.5])), abs=0.04)


def test_a_name_alone_holds_the_thing_and_is_no_whole_caption(emoji: Path, tmp_path: Path) -> None:
    result = run(looking(emoji, lambda name, style: name), emoji, tmp_path, limit=20)
    assert result.scores["names_thing"].mean == 1
    assert result.scores["exact"].mean == 0
    assert 1 < result.scores["cider_d"].mean < 8


def test_a_right_caption_is_aligned_above_that_of_another_picture(emoji: Path, tmp_path: Path) -> None:
    combinations = read_combinations(emoji)
    for step, bound in ((0, 1.0), (1, 0.5)):
        names = {c.concept: combinations[place - 2 * step].concept for place, c in enumerate(combinations)}
        rule = looking(emoji, lambda name, style, names=names: f"{names[name]} in {style} style")
        score = run(rule, emoji, tmp_path / str(step)).scores["alignment"]
        assert score.baselines.chance < 0.5
        assert score.mean == pytest.approx(1) if step == 0 else score.mean < bound


def test_how_rare_words_are_is_told_by_the_whole_set() -> None:
    captions = ("tiger in 3D style", "pizza in flat style", "pizza in 3D style", "rose in flat style")
    references = {str(number): caption for number, caption in enumerate(captions, start=1)}
    alone = score_cider({"1": "tiger in flat style"}, references)
    together = score_cider({"1": "tiger in flat style", "2": "rose"}, references)
    assert alone == {"1": together["1"]}
    assert 0 < alone["1"] < 10
    assert score_cider({"3": "pizza"}, references)["3"] < score_cider({"1": "tiger"}, references)["1"]
    assert score_bleu(["tiger in 3D style"], ["tiger in 3D style"]) == pytest.approx(1)
    assert score_bleu(["a"], ["tiger in 3D style"]) < 1e-6
