"""Morphs on disk: trained tensors in safetensors, config with the recipe, and the hashes of the frozen parts."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.backbones.autoencoder import load_image_space
from diptych.backbones.diffusion_transformer import (
    build_transformer_skeleton,
    load_diffusion_transformer,
    read_transformer_config,
)
from diptych.backbones.language import LanguageModel, load_language_model
from diptych.backbones.skeletons import build_language_skeleton, read_language_config
from diptych.backbones.vision import load_image_encoder
from diptych.config import Recipe, build_recipe
from diptych.distributed import compute_device
from diptych.models.accounts.width_matching import match_widths
from diptych.models.encoded_images import encoded_folder
from diptych.models.generate import Morph
from diptych.models.morph_files import (
    CONFIG,
    WEIGHTS,
    check_hashes,
    find_language,
    find_local_morph,
    find_morph,
    load_tensors,
    read_config,
    read_recipe,
    tensor_names,
    write_morph_files,
)
from diptych.models.xfusion_building import XFusionModel, build_xfusion, build_xfusion_skeleton, tower_widths
from diptych.nn.layer_parts import check_routable
from diptych.nn.towers.diffusion_layers import PretrainedTower

TRANSFORMER = "diffusion_transformer"
"""In a morph's config: the config of the transformer that its vision tower was made of."""
ATTENTION = ".self_attn."
"""In the names of a block's attention weights, of every layer design."""
KEPT: dict[str, tuple[str, ...]] = {
    "vision_tower": (
        "layer_design",
        "x_fuse",
        "layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "patch_size",
        "time_conditioning",
        "text_pooling",
        "text_matching",
        "boundary_tokens",
    ),
    "objective": ("schedule", "prediction"),
    "image_input": ("encoder_layer", "encoder_image_size", "with_latents"),
}
"""Settings that decide which tensors a tower has and what they mean; beside `image_size`, and the hashes of the frozen
parts."""
ALIGNED = "aligned_width"
"""In a morph's config: of the features that its vision tower was aligned to; the encoder itself is needed no more."""


def build_morph(
    recipe: Recipe,
    *,
    language: LanguageModel | None = None,
    autoencoder: Any = None,
    encoder: Any = None,
    transformer_config: dict[str, Any] | None = None,
    aligned_width: int | None = None,
    cached: bool = True,
) -> Morph:
    """An untrained morph of this recipe; widths that were to be matched are written out in the morph's own. `language`,
    `autoencoder`, `encoder` (of `image_input`): in place of those that the recipe names. `transformer_config`: that of
    its diffusion transformer, whose weights are then not loaded. `aligned_width`: of the features that the tower is
    aligned to, if the encoder need not be asked.

    Raises ValueError for whatever is missing or does not fit, and for what the configs tell before any weights are
    fetched.
    """
    recipe = match_widths(recipe)
    if language is None:
        _check_before_loading(recipe, whole=autoencoder is None)
    elif recipe.vision_tower.layer_design == "single":
        language = replace(language, model=copy.deepcopy(language.model))  # whoever gave it keeps it as it is
    language = language or load_language_model(recipe.language_model, trust_remote_code=recipe.trust_remote_code)
    autoencoder = autoencoder or load_image_space(recipe.autoencoder)
    if recipe.image_input is not None and encoder is None:
        wanted = recipe.image_input
        encoder = load_image_encoder(
            wanted.image_encoder, layer=wanted.encoder_layer, image_size=wanted.encoder_image_size
        )
    cache_dir = encoded_folder(recipe) if cached else None
    torch.manual_seed(recipe.seed)
    pretrained = None
    tower = recipe.vision_tower
    if (name := tower.diffusion_transformer) is not None:
        size = recipe.image_size // autoencoder.downsampling
        replaced = transformer_config is not None or (tower.init_from is not None and not tower.fresh_attention)
        transformer_config = transformer_config or read_transformer_config(name)
        if replaced:
            pretrained = build_transformer_skeleton(transformer_config, latent_size=size, on_meta=False)
        else:
            pretrained = load_diffusion_transformer(name, latent_size=size)
        if not replaced and tower.init_from is None:
            _note_another_objective(pretrained, recipe)
    model = build_xfusion(
        recipe,
        language.model,
        latent_channels=autoencoder.latent_channels,
        downsampling=autoencoder.downsampling,
        language_hash=language.hash,
        cache_dir=cache_dir,
        pretrained=pretrained,
        aligned_width=aligned_width,
    )
    if tower.init_from is not None:
        hashes = {"language_model": language.hash, "autoencoder": autoencoder.hash}
        if encoder is not None:
            hashes["image_encoder"] = encoder.hash
        _start_from(model, recipe, find_morph(tower.init_from), hashes)
    device = compute_device()
    language.model.to(device)
    autoencoder.to(device)
    model.to(device)
    if encoder is not None:
        encoder.to(device)
    return Morph(
        model=model,
        language=language,
        autoencoder=autoencoder,
        encoder=encoder,
        transformer_config=transformer_config,
        recipe=recipe,
        cache_dir=cache_dir,
    )


def _note_another_objective(pretrained: PretrainedTower, recipe: Recipe) -> None:
    learnt, wanted = ((one.prediction, one.schedule) for one in (pretrained, recipe.objective))
    if learnt != wanted:
        said = "objective.prediction {} and objective.schedule {}"
        print(
            f"note: {recipe.vision_tower.diffusion_transformer} was trained with {said.format(*learnt)}; with "
            f"{said.format(*wanted)} it has to learn them anew",
            file=sys.stderr,
        )


def _read_start(recipe: Recipe, folder: Path, language_config: Any) -> tuple[dict[str, Any], Recipe]:
    """Config and recipe of an earlier morph. Raises ValueError that names the setting where its tower's tensors would
    not fit this recipe's tower, or mean something else in it, beside a language model of that config."""
    config = read_config(folder / CONFIG)
    earlier = build_recipe(config["recipe"], origin=str(folder / CONFIG))
    if earlier.method != "xfusion":
        raise ValueError(f"vision_tower.init_from {folder} is of method {earlier.method}; give a morph of xfusion")
    name = recipe.vision_tower.diffusion_transformer
    if config.get(TRANSFORMER) != (None if name is None else read_transformer_config(name)):
        before = earlier.vision_tower.diffusion_transformer
        raise ValueError(
            f"vision_tower.init_from {folder} was made of vision_tower.diffusion_transformer {before or 'null'}, whose "
            f"config is not that of {name or 'null'} as here; keep it"
        )
    theirs, own = (_kept_settings(one, language_config) for one in (earlier, recipe))
    for key in own:
        if key.startswith("image_input.") and _adds_features(earlier, recipe):
            continue
        if key == "vision_tower.text_matching" and _adds_matching(earlier, recipe):
            continue
        if theirs[key] != own[key] and not (recipe.vision_tower.fresh_attention is True and key.endswith("_heads")):
            raise ValueError(
                f"vision_tower.init_from {folder} has {key} {theirs[key]}, not {own[key]} as here; keep it"
            )
    fresh, layers = recipe.vision_tower.fresh_attention, own["vision_tower.layers"]
    if not isinstance(fresh, bool) and (unknown := [layer for layer in fresh if layer not in layers]):
        raise ValueError(
            f"vision_tower.fresh_attention names layer {unknown[0]}, beside which no block of the tower stands; "
            f"choose from {', '.join(map(str, layers))}"
        )
    return config, earlier


def _kept_settings(recipe: Recipe, language_config: Any) -> dict[str, Any]:
    """What `KEPT` names, by dotted name; layers and widths that were left out as they are chosen."""
    settings: dict[str, Any] = {"image_size": recipe.image_size}
    for group, keys in KEPT.items():
        settings |= {f"{group}.{key}": getattr(getattr(recipe, group), key, "(no image_input)") for key in keys}
    if settings["vision_tower.layers"] is None:
        settings["vision_tower.layers"] = tuple(range(language_config.num_hidden_layers))
    if recipe.vision_tower.diffusion_transformer is None:
        widths = tower_widths(recipe.vision_tower, language_config)
        settings |= {f"vision_tower.{key}": width for key, width in widths.items()}
    return {key: "null" if value is None else value for key, value in settings.items()}


def _start_from(model: XFusionModel, recipe: Recipe, folder: Path, hashes: dict[str, str]) -> None:
    """Puts an earlier morph's tower into this one. Raises ValueError as `_read_start`, and for other frozen parts. The
    head of another alignment, the map of features that are added to its latents, what compares them with words, and
    attention where the recipe wants it fresh, stay as a new tower has them."""
    config, earlier = _read_start(recipe, folder, model.text_tower.config)
    if added := _adds_features(earlier, recipe):
        hashes = {part: own for part, own in hashes.items() if part != "image_encoder"}
    wanted = {part: str(config["hashes"].get(part)) for part in hashes | config["hashes"]}
    check_hashes(folder, wanted, hashes, _frozen_names(earlier))
    tensors = dict(model.vision_tower.named_parameters())
    names = tensors.keys() | tensor_names(folder / WEIGHTS)
    left = {name for name in names if ATTENTION in name and name.startswith(_fresh_blocks(model, recipe))}
    if _aligned_to(earlier) != _aligned_to(recipe):
        left |= {name for name in names if name.startswith("alignment.")}
    if added:
        left |= {name for name in names if name.startswith("feature_embedder.")}
    if _adds_matching(earlier, recipe):
        left |= {name for name in names if name.startswith("text_matcher.")}
    own = {name: tensor for name, tensor in tensors.items() if name not in left}
    load_tensors(own, folder / WEIGHTS, sha256=config["weights_sha256"], optional=left)


def _fresh_blocks(model: XFusionModel, recipe: Recipe) -> tuple[str, ...]:
    """What the names of the weights of blocks with fresh attention begin with."""
    fresh, layers = recipe.vision_tower.fresh_attention, model.vision_tower.layers
    return tuple(f"blocks.{layers.index(layer)}." for layer in (layers if fresh is True else fresh or ()))


def _adds_features(earlier: Recipe, recipe: Recipe) -> bool:
    """Whether features are added here to the latents that an earlier morph reads alone."""
    return earlier.image_input is None and recipe.image_input is not None and recipe.image_input.with_latents


def _adds_matching(earlier: Recipe, recipe: Recipe) -> bool:
    """Whether what an earlier morph reads is compared with the words only here, or by the features added here."""
    has = earlier.vision_tower.text_matching and not _adds_features(earlier, recipe)
    return recipe.vision_tower.text_matching and not has


def _aligned_to(recipe: Recipe) -> dict[str, Any] | None:
    return None if recipe.alignment is None else recipe.alignment.model_dump(exclude={"weight"})


def _frozen_names(recipe: Recipe) -> dict[str, str]:
    """What a recipe calls its frozen parts."""
    names = {"language_model": recipe.language_model, "autoencoder": recipe.autoencoder}
    return names if recipe.image_input is None else names | {"image_encoder": recipe.image_input.image_encoder}


def _check_before_loading(recipe: Recipe, *, whole: bool) -> None:
    """Builds the model on the meta device, from configs alone (not `whole`: looks at the family of layers), and
    compares the recipe with that of the morph to start from."""
    name, trusted = recipe.language_model, recipe.trust_remote_code
    try:
        config = read_language_config(name, trust_remote_code=trusted)
    except ValueError:
        return  # not to be had: what loads the weights says it better
    check_routable(config)
    if whole:
        build_xfusion_skeleton(recipe, build_language_skeleton(name, trust_remote_code=trusted))
    if recipe.vision_tower.init_from is not None:
        _read_start(recipe, find_morph(recipe.vision_tower.init_from), config)


def check_start(recipe: Recipe) -> None:
    """Compares the settings of a recipe, whose tower can be built, with those of the morph that it starts from; says so
    if that is not on this machine. Raises ValueError as `build_morph`, which compares the frozen parts' hashes, too."""
    name = recipe.vision_tower.init_from
    if recipe.method != "xfusion" or name is None:
        return
    if find_local_morph(name) is None and not Path(name).exists():
        print(f"note: there is no morph at {name} here, so its settings are not compared", file=sys.stderr)
        return
    config = read_language_config(recipe.language_model, trust_remote_code=recipe.trust_remote_code)
    _read_start(recipe, find_morph(name), config)


def save_morph(folder: str | Path, morph: Morph, *, weights: dict[str, Tensor] | None = None) -> None:
    """Writes a morph. `weights`: these tensors (averaged ones, say) in place of the present ones."""
    tensors = weights if weights is not None else dict(morph.model.vision_tower.named_parameters())
    more: dict[str, Any] = {} if morph.transformer_config is None else {TRANSFORMER: morph.transformer_config}
    if morph.model.vision_tower.alignment is not None:
        more[ALIGNED] = morph.model.vision_tower.alignment.feature_dim
    write_morph_files(folder, tensors, recipe=morph.recipe, hashes=morph.frozen_hashes(), **more)


def load_morph(
    path: str | Path,
    *,
    language_model: str | LanguageModel | None = None,
    pixel_decoder: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Loads a morph of either method: a folder written by `diptych train`, the name of a committed one, or a Hub id.

    `language_model`: where the base LLM lies, if not where the recipe says; its weights must be the same.
    `pixel_decoder`: of a VPiT morph, in place of its own: one that reads the same visual tokens.
    `trust_remote_code`: run code from the language model's repository, where the morph was trained with it.
    Raises ValueError, naming the thing and the remedy: nothing there, a broken file, missing, extra or misshaped
    tensors (all of them), or a base language model, autoencoder or image encoder whose hash is not the morph's.
    """
    folder = find_morph(path)
    config = read_config(folder / CONFIG)
    recipe = read_recipe(folder, config, trust_remote_code=trust_remote_code)
    if recipe.method == "vpit":
        from diptych.models.vpit_checkpoint import load_vpit

        return load_vpit(folder, config, recipe, language_model=language_model, pixel_decoder=pixel_decoder)
    if recipe.method != "xfusion":
        raise ValueError(f"{folder} is a {recipe.method.replace('_', ' ')}, which draws no prompts; give a morph")
    if pixel_decoder is not None:
        raise ValueError(f"{folder} is of method xfusion, which draws pixels itself; leave out the pixel decoder")
    language = find_language(folder, config, recipe, language_model)
    tower = recipe.vision_tower.model_copy(update={"init_from": None, "fresh_attention": False})
    recipe = recipe.model_copy(update={"vision_tower": tower})
    morph = build_morph(
        recipe,
        language=language,
        transformer_config=config.get(TRANSFORMER),
        aligned_width=config.get(ALIGNED),
        cached=False,
    )
    check_hashes(folder, config["hashes"], morph.frozen_hashes(), _frozen_names(recipe))
    own = dict(morph.model.vision_tower.named_parameters())
    load_tensors(own, folder / WEIGHTS, sha256=config["weights_sha256"])
    morph.model.eval().requires_grad_(False)
    return morph
