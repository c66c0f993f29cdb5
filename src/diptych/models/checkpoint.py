"""Morphs on disk: trained tensors in safetensors, config with the recipe, and the hashes of the frozen parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import diptych
from diptych.backbones.assets import cache_root
from diptych.backbones.autoencoder import load_autoencoder
from diptych.backbones.language import LanguageModel, load_language_model
from diptych.config import Recipe, build_recipe
from diptych.distributed import compute_device
from diptych.models.generate import Morph
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
from diptych.models.xfusion_building import build_xfusion


def build_morph(
    recipe: Recipe, *, language: LanguageModel | None = None, autoencoder: Any = None, cached: bool = True
) -> Morph:
    """An untrained morph of this recipe. `language`, `autoencoder`: in place of those that the recipe names."""
    torch.manual_seed(recipe.seed)
    language = language or load_language_model(recipe.language_model, trust_remote_code=recipe.trust_remote_code)
    autoencoder = autoencoder or load_autoencoder(recipe.autoencoder)
    cache_dir = (Path(recipe.cache_dir) if recipe.cache_dir else cache_root() / "tensors") if cached else None
    torch.manual_seed(recipe.seed)
    model = build_xfusion(
        recipe,
        language.model,
        latent_channels=autoencoder.latent_channels,
        downsampling=autoencoder.downsampling,
        language_hash=language.hash,
        cache_dir=cache_dir,
    )
    device = compute_device()
    language.model.to(device)
    autoencoder.to(device)
    model.to(device)
    return Morph(model=model, language=language, autoencoder=autoencoder, recipe=recipe, cache_dir=cache_dir)


def save_morph(folder: str | Path, morph: Morph, *, weights: dict[str, Tensor] | None = None) -> None:
    """Writes a morph. `weights`: these tensors (averaged ones, say) in place of the present ones."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if morph.recipe.morph_dtype == "bfloat16" else torch.float32
    tensors = weights if weights is not None else dict(morph.model.vision_tower.named_parameters())
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    config = {
        "format": FORMAT,
        "diptych_version": diptych.__version__,
        "hashes": morph.frozen_hashes(),
        "recipe": morph.recipe.model_dump(mode="json"),
    }
    replace_whole(folder / WEIGHTS, lambda path: save_file(stored, path, metadata={"format": "pt"}))
    replace_whole(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2), encoding="utf-8"))


def load_morph(
    path: str | Path, *, language_model: str | LanguageModel | None = None, pixel_decoder: str | None = None
) -> Any:
    """Loads a morph of either method: a folder written by `diptych train`, the name of a committed one, or a Hub id.

    `language_model`: where the base LLM lies, if not where the recipe says; its weights must be the same.
    `pixel_decoder`: of a VPiT morph, in place of its own: one that reads the same visual tokens.
    Raises ValueError, naming the thing and the remedy: nothing there, a broken file, missing, extra or misshaped
    tensors (all of them), or a base language model, autoencoder or image encoder whose hash is not the morph's.
    """
    folder = find_morph(path)
    config = read_config(folder / CONFIG)
    recipe = build_recipe(config["recipe"], origin=str(folder / CONFIG))
    if recipe.method == "vpit":
        from diptych.models.vpit_checkpoint import load_vpit

        return load_vpit(folder, language_model=language_model, pixel_decoder=pixel_decoder)
    if recipe.method != "xfusion":
        raise ValueError(f"{folder} is a {recipe.method.replace('_', ' ')}, which draws no prompts; give a morph")
    if pixel_decoder is not None:
        raise ValueError(f"{folder} is of method xfusion, which draws pixels itself; leave out the pixel decoder")
    if language_model is None or isinstance(language_model, str):
        name = language_model or recipe.language_model
        language_model = load_language_model(name, trust_remote_code=recipe.trust_remote_code)
    morph = build_morph(recipe, language=language_model, cached=False)
    names = {"language_model": recipe.language_model, "autoencoder": recipe.autoencoder}
    check_hashes(folder, config["hashes"], morph.frozen_hashes(), names)
    load_tensors(dict(morph.model.vision_tower.named_parameters()), folder / WEIGHTS)
    morph.model.eval().requires_grad_(False)
    return morph
