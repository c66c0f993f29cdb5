"""What a morph costs by its design, beside its scores: designs are compared at equal parameters or equal compute."""

from __future__ import annotations

from typing import Any

from diptych.config import Recipe
from diptych.models.accounts.first_streams import NOMINAL
from diptych.models.accounts.recipe_account import account_recipe


def design_cost(recipe: Recipe) -> dict[str, Any]:
    """Parameters by part, trained and frozen; FLOPs of each kind of token, forward and backward; bytes of what is kept
    of a token (keys and values). As `diptych inspect` says it, of one and the same drawing whatever was trained on.

    {"unknown": why} for a morph whose recipe names a model that is not to be had any more, and was given another way.
    """
    try:
        account = account_recipe(recipe, assume_lengths=True).as_dict()
    except ValueError as error:
        return {"unknown": str(error)}
    kept = ("parameters", "flops_per_token", "bytes_cached", "keeps_language")
    return {key: account[key] for key in kept} | {"of": NOMINAL}
