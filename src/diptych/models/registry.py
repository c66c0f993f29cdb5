"""Which method a recipe names."""

from __future__ import annotations

from diptych.config import Recipe
from diptych.models.method import Method


def build_method(recipe: Recipe) -> Method:
    """Builds what a recipe trains, with its data. Raises ValueError for whatever of it is missing or does not fit."""
    if recipe.method == "autoencoder":
        from diptych.models.autoencoder_training import AutoencoderTraining

        return AutoencoderTraining(recipe)
    from diptych.models.checkpoint import build_morph
    from diptych.models.xfusion_training import XFusionTraining

    return XFusionTraining(recipe, build_morph(recipe))
