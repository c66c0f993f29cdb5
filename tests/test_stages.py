"""Stages: the same settings but for what a stage changes, each from the morph of the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diptych.config import Recipe, build_recipe
from diptych.stages import expand_stages

STAGES: list[dict[str, Any]] = [
    {"name": "connect", "changes": {"vpit": {"train_parts": ["connector"]}, "train": {"max_steps": 3}}},
    {"name": "instruct", "changes": {"train": {"learning_rate": 0.5}}},
]


def staged(**settings: Any) -> Recipe:
    base = {
        "method": "vpit",
        "output_dir": "runs/x",
        "seed": 5,
        "data": {"sources": [{"path": "a.jsonl"}]},
        "stages": STAGES,
    }
    return build_recipe(base | settings)


def test_a_method_without_stages_says_so() -> None:
    with pytest.raises(ValueError, match="method xfusion has no stages"):
        expand_stages(staged(method="xfusion"))


def test_a_recipe_without_stages_is_its_only_one() -> None:
    recipe = staged(stages=[])
    assert expand_stages(recipe) == [recipe]


def test_a_stage_changes_what_it_names_and_nothing_else() -> None:
    first, second = expand_stages(staged())
    assert (first.vpit.train_parts, first.train.max_steps) == (("connector",), 3)
    assert (second.train.learning_rate, second.train.max_steps) == (0.5, 1000)
    assert second.vpit.train_parts == ("connector", "visual_head", "boundary_tokens", "language_model")
    assert first.seed == second.seed == 5
    assert not first.stages
    assert not second.stages


def test_each_stage_starts_from_the_morph_of_the_one_before() -> None:
    first, second = expand_stages(staged())
    assert first.vpit.init_from is None
    assert Path(second.vpit.init_from or "") == Path(first.output_dir) / "morph" == Path("runs/x/connect/morph")
    assert second.output_dir == "runs/x"


def test_a_stage_s_setting_of_another_method_is_refused() -> None:
    stages = [{"name": "one", "changes": {"objective": {"ce_weight": 0.5}}}]
    with pytest.raises(ValueError, match=r"stage 'one': objective\.ce_weight is of method xfusion;"):
        expand_stages(staged(stages=stages))


def test_what_does_not_fit_is_refused_with_the_stage() -> None:
    with pytest.raises(
        ValueError, match=r"stage 'connect': unknown key 'vpit.train_part'; did you mean 'vpit.train_parts'"
    ):
        expand_stages(staged(stages=[{"name": "connect", "changes": {"vpit": {"train_part": []}}}]))
    with pytest.raises(ValueError, match="names of their own, got a, a"):
        expand_stages(staged(stages=[{"name": "a"}, {"name": "a"}]))
