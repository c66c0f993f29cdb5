"""A recipe of several stages as several recipes, each of which begins with the morph of the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.config import Recipe, build_recipe, check_heeded


def expand_stages(recipe: Recipe) -> list[Recipe]:
    """The recipes to run, in order: the recipe itself if it has no stages.

    Stage NAME writes into `output_dir`/NAME, the last one into `output_dir` itself. A stage starts from the last
    stage's morph, if it does not name another. Raises ValueError, naming the stage, for settings that do not fit, for
    two stages of one name, and for a method that has none.
    """
    if not recipe.stages:
        return [recipe]
    if recipe.method != "vpit":
        raise ValueError(f"method {recipe.method} has no stages; run its recipes one after the other")
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) < len(names):
        raise ValueError(f"stages must have names of their own, got {', '.join(names)}")
    common = recipe.model_dump(mode="json", exclude={"stages"})
    recipes: list[Recipe] = []
    for number, stage in enumerate(recipe.stages, start=1):
        settings = _merge(common, stage.changes)
        if "output_dir" not in stage.changes and number < len(recipe.stages):
            settings["output_dir"] = str(Path(recipe.output_dir) / stage.name)
        if recipes and "init_from" not in stage.changes.get("vpit", {}):
            settings["vpit"] = {**settings["vpit"], "init_from": str(Path(recipes[-1].output_dir) / "morph")}
        recipes.append(build_recipe(settings, origin=f"stage {stage.name!r}"))
        check_heeded(recipes[-1], origin=f"stage {stage.name!r}")
    return recipes


def _merge(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over `settings`, group by group; lists are replaced whole."""
    merged = dict(settings)
    for key, value in changes.items():
        own = settings.get(key)
        merged[key] = _merge(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return merged
