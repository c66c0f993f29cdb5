"""What a morph costs by its design, beside its scores: designs are compared at equal parameters or equal compute."""

from __future__ import annotations

from typing import Any

from diptych.config import Recipe
from diptych.models.accounts.first_streams import NOMINAL
from diptych.models.accounts.recipe_account import account_recipe


def design_cost(recipe: Recipe) -> dict[str, Any]:
    """Parameters by part, trained and frozen; bytes of what is kept of a token (keys and values); and of a drawing and
    of a reading, the same ones whatever was trained on (`of`): FLOPs of each kind of token, forward and backward, and
    those of the sample that no training changes, spent once (`flops_once`). As `diptych inspect` says it.

    {"unknown": why} for a morph whose recipe names a model that is not to be had any more, and was given another way.
    """
    try:
        accounts = {kind: account_recipe(recipe, nominal=kind).as_dict() for kind in NOMINAL}
    except ValueError as error:
        return {"unknown": str(error)}
    kept = ("parameters", "bytes_cached", "keeps_language")
    return {key: accounts["drawing"][key] for key in kept} | {
        kind: {
            "of": of,
            "flops_per_token": accounts[kind]["flops_per_token"],
            "flops_once": {
                name: flops / accounts[kind]["flops_per_step"]["samples"]
                for name, flops in accounts[kind]["flops_once"].items()
            },
        }
        for kind, of in NOMINAL.items()
    }
