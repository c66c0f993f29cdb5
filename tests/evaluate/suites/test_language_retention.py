"""Laws of language retention: what is untouched stays at 0, any training shows, and perplexities are known ones."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.language_check import PROMPTS
from diptych.evaluate.suites.language_retention import PASSAGE_LETTERS, LanguageRetention, read_passage
from tiny_xfusion import build_language, build_tiny_morph
from toy_suite import STAMP


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    folder = tmp_path / "passages"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text("word " * (20 + 90 * number), encoding="utf-8")
    return folder


def run(morph: Any, data: Path, out: Path, base: Any = None, **options: Any) -> Any:
    suite = LanguageRetention(data, base=base or build_language())
    (result,) = evaluate_suites(morph, [suite], out, stamp=STAMP, **options)
    return result


def test_an_untouched_model_has_kl_0_and_the_bases_perplexity(passages: Path, tmp_path: Path) -> None:
    result = run(build_tiny_morph(), passages, tmp_path / "out", limit=40)
    means = {name: score.mean for name, score in result.scores.items()}
    assert means["kl"] == 0
    assert means["same_choice"] == 1
    assert means["perplexity"] == means["base_perplexity"] > 1
    assert result.scores["perplexity"].baselines.chance == 259


def test_a_trained_model_is_seen_in_every_text(passages: Path, tmp_path: Path) -> None:
    morph = build_tiny_morph()
    with torch.no_grad():
        for parameter in morph.language_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    result = run(morph, passages, tmp_path / "out", limit=60)
    assert all(row.scores["kl"] > 0 for row in result.rows if row.scores)
    assert result.scores["same_choice"].mean < 1
    low, high = result.scores["perplexity"].interval
    assert low < result.scores["perplexity"].mean < high


def test_a_model_that_only_guesses_has_the_vocabulary_as_its_perplexity(passages: Path, tmp_path: Path) -> None:
    language = build_language()

    def guessing(ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, 259)

    morph: Any = SimpleNamespace(
        abilities={"writes"}, text_logits=guessing, language_model=object(), device=torch.device("cpu")
    )
    result = run(morph, passages, tmp_path / "out", base=language, limit=20)
    assert result.scores["perplexity"].mean == pytest.approx(259, rel=1e-4)
    assert result.scores["nll"].mean == pytest.approx(math.log(259), rel=1e-4)


def test_all_texts_are_asked_and_one_token_says_nothing(passages: Path, tmp_path: Path) -> None:
    (passages / "one.txt").write_text("a")
    result = run(build_tiny_morph(), passages, tmp_path / "out")
    assert len(result.rows) == len(PROMPTS) + 5
    assert [row.scores for row in result.rows if row.id == "passages/one"] == [{}]
    assert result.by_kind["passages"]["kl"].num == 4


def test_a_passage_ends_behind_a_word(passages: Path, tmp_path: Path) -> None:
    cut = read_passage(passages / "3.txt")
    assert cut == " ".join(["word"] * 199)
    assert len(cut) <= PASSAGE_LETTERS
    (passages / "4.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"4\.txt is empty"):
        LanguageRetention(passages).load_examples(lambda what, done, total: None)
    with pytest.raises(ValueError, match=r"holds no \.txt files"):
        LanguageRetention(tmp_path).load_examples(lambda what, done, total: None)
