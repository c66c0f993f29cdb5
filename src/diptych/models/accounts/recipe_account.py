"""Which account a recipe has."""

from __future__ import annotations

from diptych.config import Recipe
from diptych.models.accounts.first_streams import Nominal
from diptych.models.accounts.run_account import RunAccount


def account_recipe(recipe: Recipe, *, nominal: Nominal | None = None) -> RunAccount:
    """Reckons what `diptych train` of this recipe costs. No weights are loaded, and nothing is trained.

    Where the recipe's data is there its first samples are looked at; otherwise lengths are assumed, and said to be.
    `nominal`: they are assumed in any case. The account's recipe has the widths that were to be matched written out.
    Raises ValueError as building the model would: a family that cannot be routed, layers that do not exist ...
    """
    if recipe.method == "xfusion":
        from diptych.models.accounts.width_matching import match_widths
        from diptych.models.accounts.xfusion_account import account_xfusion

        return account_xfusion(match_widths(recipe), nominal=nominal)
    if recipe.method == "vpit":
        from diptych.models.accounts.vpit_account import account_vpit

        return account_vpit(recipe, nominal=nominal)
    from diptych.models.accounts.image_account import account_autoencoder, account_pixel_decoder

    return account_autoencoder(recipe) if recipe.method == "autoencoder" else account_pixel_decoder(recipe)
