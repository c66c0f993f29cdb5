"""Law: every recipe builds, on the meta device where its weights are not there, and `diptych inspect` says its cost.

Those of the papers: tests/test_paper_recipes.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from diptych.config import load_recipe
from diptych.models.accounts.recipe_account import account_recipe
from diptych.stages import expand_stages

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_accounted_for(path: Path) -> None:
    for stage in expand_stages(load_recipe(path)):
        account = account_recipe(stage)
        assert account.step.total > 0
        assert sum(account.trained.values()) > 0
        assert "one step" in account.describe(1e12, measured=False)
