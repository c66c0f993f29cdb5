"""VPiT morphs on disk: what was trained in safetensors, the recipe, hashes of the base model and the image encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import diptych
from diptych.backbones.assets import cache_root
from diptych.backbones.language import LanguageModel, load_language_model
from diptych.backbones.vision import load_image_encoder
from diptych.config import Recipe, build_recipe
from diptych.distributed import compute_device
from diptych.models.morph_files import (
    CONFIG,
    FORMAT,
    WEIGHTS,
    check_hashes,
    find_morph,
    load_tensors,
    read_config,
    replace_whole,
)
from diptych.models.vpit import VPiT
from diptych.models.vpit_building import build_vpit
from diptych.models.vpit_morph import LanguageState, VPiTMorph

PIXEL_DECODER = "pixel_decoder"


def build_vpit_morph(
    recipe: Recipe,
    *,
    language: LanguageModel | None = None,
    encoder: Any = None,
    pixel_decoder: Any = None,
    cached: bool = True,
) -> VPiTMorph:
    """A morph of this recipe: untrained, or as `vpit.init_from` left off. The rest: in place of what the recipe names.

    Raises ValueError for whatever of it is missing or does not fit.
    """
    config = recipe.vpit
    language = language or load_language_model(recipe.language_model, trust_remote_code=recipe.trust_remote_code)
    encoder = encoder or load_image_encoder(
        config.image_encoder, layer=config.encoder_layer, image_size=config.encoder_image_size
    )
    if pixel_decoder is None and config.pixel_decoder is not None:
        pixel_decoder = _load_pixel_decoder(config.pixel_decoder)
    if pixel_decoder is not None:
        pixel_decoder.check_encoder(encoder, num_image_tokens=config.num_image_tokens)
    torch.manual_seed(recipe.seed)
    model = build_vpit(recipe, language.model, language.tokenizer, feature_dim=encoder.feature_dim)
    cache_dir = (Path(recipe.cache_dir) if recipe.cache_dir else cache_root() / "tensors") if cached else None
    morph = VPiTMorph(
        model=model,
        language=language,
        encoder=encoder,
        recipe=recipe,
        language_state=_language_state(recipe, "base"),
        pixel_decoder=pixel_decoder,
        cache_dir=cache_dir,
    )
    if config.init_from is not None:
        _start_from(morph, find_morph(config.init_from))
    device = compute_device()
    model.to(device)
    encoder.to(device)
    return morph


def save_vpit(folder: str | Path, morph: VPiTMorph, *, weights: dict[str, Tensor] | None = None) -> None:
    """Writes a morph. `weights`: these tensors (averaged ones, say) in place of the present ones.

    A pixel decoder of the project's own is written beside, into `pixel_decoder/`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if morph.recipe.morph_dtype == "bfloat16" else torch.float32
    stored = stored_tensors(morph.model, morph.language_state) | (weights or {})
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in stored.items()}
    config = {
        "format": FORMAT,
        "diptych_version": diptych.__version__,
        "hashes": morph.frozen_hashes(),
        "language_state": morph.language_state,
        "recipe": morph.recipe.model_dump(mode="json"),
    }
    replace_whole(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    if morph.pixel_decoder is not None:
        morph.pixel_decoder.save_pretrained(folder / PIXEL_DECODER)
    elif (folder / PIXEL_DECODER).exists():
        shutil.rmtree(folder / PIXEL_DECODER)
    replace_whole(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2), encoding="utf-8"))


def load_vpit(
    folder: Path, *, language_model: str | LanguageModel | None = None, pixel_decoder: str | None = None
) -> VPiTMorph:
    """Loads a VPiT morph; see `load_morph` for the arguments and the errors."""
    config = read_config(folder / CONFIG)
    recipe = build_recipe(config["recipe"], origin=str(folder / CONFIG))
    recipe = recipe.model_copy(update={"vpit": recipe.vpit.model_copy(update={"init_from": None})})
    own_decoder = folder / PIXEL_DECODER
    if pixel_decoder is None and (own_decoder / CONFIG).is_file():
        pixel_decoder = str(own_decoder)
    if pixel_decoder is not None:
        recipe = recipe.model_copy(update={"vpit": recipe.vpit.model_copy(update={"pixel_decoder": pixel_decoder})})
    if language_model is None or isinstance(language_model, str):
        name = language_model or recipe.language_model
        language_model = load_language_model(name, trust_remote_code=recipe.trust_remote_code)
    morph = build_vpit_morph(recipe, language=language_model, cached=False)
    names = {"language_model": recipe.language_model, "image_encoder": recipe.vpit.image_encoder}
    check_hashes(folder, config["hashes"], morph.frozen_hashes(), names)
    morph.language_state = config["language_state"]
    load_tensors(stored_tensors(morph.model, morph.language_state), folder / WEIGHTS)
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


def _start_from(morph: VPiTMorph, folder: Path) -> None:
    """Puts the weights of an earlier stage's morph into this one."""
    config = read_config(folder / CONFIG)
    earlier = build_recipe(config["recipe"], origin=str(folder / CONFIG))
    if earlier.method != "vpit":
        raise ValueError(f"vpit.init_from {folder} is a morph of method {earlier.method}; give one of method vpit")
    names = {"language_model": earlier.language_model, "image_encoder": earlier.vpit.image_encoder}
    check_hashes(folder, config["hashes"], morph.frozen_hashes(), names)
    before: LanguageState = config["language_state"]
    if before == "lora" and morph.recipe.vpit.lora != earlier.vpit.lora:
        raise ValueError(f"vpit.init_from {folder} has adapters {earlier.vpit.lora}; keep the same vpit.lora here")
    load_tensors(stored_tensors(morph.model, before), folder / WEIGHTS)
    morph.language_state = _language_state(morph.recipe, before)


def _load_pixel_decoder(path: str) -> Any:
    from diptych.models.pixel_decoder import load_pixel_decoder

    return load_pixel_decoder(path)
