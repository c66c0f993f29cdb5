"""What is evaluated, loaded: a morph of either method, or a pixel decoder alone; with its stamp."""

from __future__ import annotations

from typing import Any

from diptych.backbones.weight_hash import hash_folder
from diptych.evaluate.answering import Sampling
from diptych.evaluate.stamp import Stamp, build_stamp
from diptych.models.checkpoint import load_morph
from diptych.models.morph_files import CONFIG, find_morph, read_config, read_recipe
from diptych.models.pixel_decoder import find_pixel_decoder, load_pixel_decoder


def load_evaluated(
    name: str,
    *,
    sampling: Sampling,
    language_model: str | None = None,
    pixel_decoder: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Stamp]:
    """A morph or a pixel decoder by folder, carried name or Hub id. Options and errors: as of `load_morph`."""
    folder = find_morph(name)
    recipe = read_recipe(folder, read_config(folder / CONFIG), trust_remote_code=trust_remote_code)
    decoder_hash = None
    if recipe.method == "pixel_decoder":
        morph: Any = load_pixel_decoder(folder)
    else:
        morph = load_morph(
            folder,
            language_model=language_model,
            pixel_decoder=pixel_decoder,
            trust_remote_code=trust_remote_code,
        )
        if getattr(morph, "pixel_decoder", None) is not None:
            decoder_hash = hash_folder(find_pixel_decoder(pixel_decoder or folder)[0])
    return morph, build_stamp(
        morph, name=name, morph_hash=hash_folder(folder), pixel_decoder_hash=decoder_hash, sampling=sampling
    )
