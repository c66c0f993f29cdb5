"""Which method a recipe names."""

from __future__ import annotations

from diptych.config import Recipe
from diptych.models.method import Method


def build_method(recipe: Recipe) -> Method:
    """Builds what a recipe trains, with its data. Raises ValueError for whatever of it is missing or does not fit.

    Its `recipe` is the one that is trained: widths that were to be matched are written out in it.
    """
    if recipe.method == "autoencoder":
        from diptych.models.autoencoder_training import AutoencoderTraining

        return AutoencoderTraining(recipe)
    if recipe.method == "pixel_decoder":
        from diptych.models.pixel_decoder_training import build_pixel_decoder_training

        return build_pixel_decoder_training(recipe)
    if recipe.method == "vpit":
        from diptych.models.vpit_checkpoint import build_vpit_morph
        from diptych.models.vpit_training import VPiTTraining

        return VPiTTraining(recipe, build_vpit_morph(recipe))
    from diptych.models.checkpoint import build_morph
    from diptych.models.xfusion_training import XFusionTraining

    morph = build_morph(recipe)
    return XFusionTraining(morph.recipe, morph)
