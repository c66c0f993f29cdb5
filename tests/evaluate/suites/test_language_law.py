"""Laws of the language suite: an untouched model keeps the law on every prompt, and no touch is missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.evaluate.harness import evaluate_suites
from diptych.evaluate.language_check import PROMPTS
from diptych.evaluate.suites.language_law import LanguageLaw
from tiny_xfusion import build_language, build_tiny_morph
from toy_suite import STAMP


def run(morph: Any, out: Path, **options: Any) -> Any:
    (result,) = evaluate_suites(morph, [LanguageLaw(base=build_language())], out, stamp=STAMP, **options)
    return result


def test_an_untouched_model_keeps_the_law_on_all_256_prompts(tmp_path: Path) -> None:
    result = run(build_tiny_morph(), tmp_path)
    assert result.scores["identical"].mean == 1
    assert result.scores["max_abs_diff"].mean == 0
    assert {kind: scores["identical"].num for kind, scores in result.by_kind.items()} == {
        "prompts": len(PROMPTS),
        "weights": 1,
    }


def test_the_smallest_change_of_one_weight_is_seen(tmp_path: Path) -> None:
    morph = build_tiny_morph()
    weight = morph.language_model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert run(morph, tmp_path).by_kind["weights"]["identical"].mean == 0


def test_a_real_change_moves_every_prompt(tmp_path: Path) -> None:
    morph = build_tiny_morph()
    with torch.no_grad():
        morph.language_model.model.norm.weight.mul_(1.01)
    result = run(morph, tmp_path, limit=20)
    assert result.by_kind["prompts"]["identical"].mean == 0
    assert result.scores["max_abs_diff"].mean > 0


def test_it_takes_no_data_and_no_instance_that_is_the_morphs_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes no --data"):
        LanguageLaw(tmp_path)
    morph = build_tiny_morph()
    with pytest.raises(ValueError, match="afresh"):
        evaluate_suites(morph, [LanguageLaw(base=morph.language)], tmp_path / "out", stamp=STAMP)
