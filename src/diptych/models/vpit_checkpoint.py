"""VPiT morphs on disk: what was trained in safetensors, the recipe, hashes of the base model and the image encoder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.backbones.language import LanguageModel, load_language_model
from diptych.backbones.vision import load_image_encoder
from diptych.config import Recipe, build_recipe
from diptych.distributed import compute_device
from diptych.models.encoded_images import encoded_folder
from diptych.models.morph_files import (
    CONFIG,
    WEIGHTS,
    check_hashes,
    find_language,
    find_morph,
    load_tensors,
    read_config,
    tensor_names,
    write_morph_files,
)
from diptych.models.vpit import VPiT
from diptych.models.vpit_building import add_lora, build_vpit
from diptych.models.vpit_morph import LanguageState, VPiTMorph

PIXEL_DECODER = "pixel_decoder"
OWN_HEAD_ROWS, HIDDEN = "boundary_tokens.output", "connector.hidden"
"""Tensors that a stage may have and the one before it not: what `vpit.cached_forms` and `visual_input_dropout` add."""


def build_vpit_morph(
    recipe: Recipe,
    *,
    language: LanguageModel | None = None,
    encoder: Any = None,
    pixel_decoder: Any = None,
    cached: bool = True,
    tied_boundary_tokens: bool = True,
) -> VPiTMorph:
    """A morph of this recipe: untrained, or as `vpit.init_from` left off. language, encoder and pixel_decoder: in place
    of what the recipe names; tied_boundary_tokens: see `build_vpit`.

    Raises ValueError for whatever of it is missing or does not fit.
    """
    config = recipe.vpit
    earlier = None if config.init_from is None else read_earlier(config.init_from)
    language = language or load_language_model(recipe.language_model, trust_remote_code=recipe.trust_remote_code)
    encoder = encoder or load_image_encoder(
        config.image_encoder, layer=config.encoder_layer, image_size=config.encoder_image_size
    )
    if pixel_decoder is None and config.pixel_decoder is not None:
        pixel_decoder = _load_pixel_decoder(config.pixel_decoder)
    if pixel_decoder is not None:
        pixel_decoder.check_encoder(encoder, num_image_tokens=config.num_image_tokens)
    torch.manual_seed(recipe.seed)
    model = build_vpit(
        recipe,
        language.model,
        language.tokenizer,
        feature_dim=encoder.feature_dim,
        with_lora=earlier is None or earlier.has_adapters,
        tied_boundary_tokens=tied_boundary_tokens and (earlier is None or OWN_HEAD_ROWS not in earlier.names),
    )
    cache_dir = encoded_folder(recipe) if cached else None
    morph = VPiTMorph(
        model=model,
        language=language,
        encoder=encoder,
        recipe=recipe,
        language_state=_language_state(recipe, "base"),
        pixel_decoder=pixel_decoder,
        cache_dir=cache_dir,
    )
    if earlier is not None:
        _start_from(morph, earlier)
    device = compute_device()
    model.to(device)
    encoder.to(device)
    return morph


def save_vpit(folder: str | Path, morph: VPiTMorph, *, weights: dict[str, Tensor] | None = None) -> None:
    """Writes a morph. `weights`: these tensors (averaged ones, say) in place of the present ones.

    A pixel decoder of the project's own is written beside, into `pixel_decoder/`.
    """
    folder = Path(folder)
    tensors = stored_tensors(morph.model, morph.language_state) | (weights or {})
    folder.mkdir(parents=True, exist_ok=True)
    if morph.pixel_decoder is not None:
        morph.pixel_decoder.save_pretrained(folder / PIXEL_DECODER)
    elif (folder / PIXEL_DECODER).exists():
        shutil.rmtree(folder / PIXEL_DECODER)
    hashes = morph.frozen_hashes()
    write_morph_files(folder, tensors, recipe=morph.recipe, hashes=hashes, language_state=morph.language_state)


def load_vpit(
    folder: Path,
    config: dict[str, Any],
    recipe: Recipe,
    *,
    language_model: str | LanguageModel | None = None,
    pixel_decoder: str | None = None,
) -> VPiTMorph:
    """Loads the VPiT morph in a folder, whose config was read; see `load_morph` for the arguments and the errors."""
    own_decoder = folder / PIXEL_DECODER
    if pixel_decoder is None and (own_decoder / CONFIG).is_file():
        pixel_decoder = str(own_decoder)
    changes = {"init_from": None, "pixel_decoder": pixel_decoder or recipe.vpit.pixel_decoder}
    recipe = recipe.model_copy(update={"vpit": recipe.vpit.model_copy(update=changes)})
    language = find_language(folder, config, recipe, language_model)
    tied = OWN_HEAD_ROWS not in tensor_names(folder / WEIGHTS)
    morph = build_vpit_morph(recipe, language=language, cached=False, tied_boundary_tokens=tied)
    names = {"language_model": recipe.language_model, "image_encoder": recipe.vpit.image_encoder}
    check_hashes(folder, config["hashes"], morph.frozen_hashes(), names)
    morph.language_state = config["language_state"]
    own = stored_tensors(morph.model, morph.language_state)
    load_tensors(own, folder / WEIGHTS, sha256=config["weights_sha256"])
    morph.model.eval().requires_grad_(False)
    return morph


def stored_tensors(model: VPiT, state: LanguageState) -> dict[str, Tensor]:
    """What a morph's file holds: the new parts, and of the language model what differs from the base."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("language_model.") or state == "whole" or (state == "lora" and ".lora_" in name)
    }


def _language_state(recipe: Recipe, before: LanguageState) -> LanguageState:
    if "language_model" not in recipe.vpit.train_parts or before == "whole":
        return before
    return "lora" if recipe.vpit.lora is not None else "whole"


@dataclass(frozen=True)
class EarlierStage:
    """A morph to start from: its folder, config, recipe and the names of its tensors."""

    folder: Path
    config: dict[str, Any]
    recipe: Recipe
    names: set[str]

    @property
    def has_adapters(self) -> bool:
        return any(".lora_" in name for name in self.names)


def read_earlier(path: str) -> EarlierStage:
    """Raises ValueError for what is no morph of method vpit."""
    folder = find_morph(path)
    config = read_config(folder / CONFIG)
    recipe = build_recipe(config["recipe"], origin=str(folder / CONFIG))
    if recipe.method != "vpit":
        raise ValueError(f"vpit.init_from {folder} is a morph of method {recipe.method}; give one of method vpit")
    return EarlierStage(folder, config, recipe, tensor_names(folder / WEIGHTS))


def _start_from(morph: VPiTMorph, earlier: EarlierStage) -> None:
    """Puts the weights of an earlier stage's morph into this one. What it knew nothing of starts anew: rows of hidden
    tokens, adapters, rows of the LM head (these where it had the embedding's)."""
    folder, config, lora = earlier.folder, earlier.config, earlier.recipe.vpit.lora
    names = {"language_model": earlier.recipe.language_model, "image_encoder": earlier.recipe.vpit.image_encoder}
    check_hashes(folder, config["hashes"], morph.frozen_hashes(), names)
    if earlier.has_adapters and morph.recipe.vpit.lora != lora:
        raise ValueError(f"vpit.init_from {folder} has adapters {lora}; keep the same vpit.lora here")
    before: LanguageState = config["language_state"]
    own = stored_tensors(morph.model, before)
    optional = {OWN_HEAD_ROWS, HIDDEN}
    filled = load_tensors(own, folder / WEIGHTS, sha256=config["weights_sha256"], optional=optional)
    boundary = morph.model.boundary_tokens
    if boundary.output is not None and OWN_HEAD_ROWS not in filled:
        with torch.no_grad():
            boundary.output.copy_(boundary.input)
    if morph.recipe.vpit.lora is not None and not earlier.has_adapters:
        add_lora(morph.model.language_model, morph.recipe.vpit.lora)
    morph.language_state = _language_state(morph.recipe, before)


def _load_pixel_decoder(path: str) -> Any:
    from diptych.models.pixel_decoder import load_pixel_decoder

    return load_pixel_decoder(path)
