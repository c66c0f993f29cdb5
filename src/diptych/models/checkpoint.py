"""Morphs on disk: trained tensors in safetensors, config with the recipe, and the hashes of the frozen parts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import diptych
from diptych.backbones.assets import cache_root
from diptych.backbones.autoencoder import load_autoencoder
from diptych.backbones.language import LanguageModel, load_language_model
from diptych.config import Recipe, build_recipe
from diptych.distributed import compute_device
from diptych.models.generate import Morph
from diptych.models.xfusion_building import build_xfusion

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1


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
    _replace(folder / WEIGHTS, lambda path: save_file(stored, path, metadata={"format": "pt"}))
    _replace(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2), encoding="utf-8"))


def load_morph(path: str | Path, *, language_model: str | LanguageModel | None = None) -> Morph:
    """Loads a morph: a folder written by `diptych train`, the name of a committed one, or a Hub id.

    `language_model`: where the base LLM lies, if not where the recipe says; its weights must be the same.
    Raises ValueError, naming the thing and the remedy: nothing there, a broken file, missing, extra or misshaped
    tensors (all of them), or a base language model or autoencoder whose hash is not the morph's.
    """
    folder = find_morph(path)
    config = _read_config(folder / CONFIG)
    recipe = build_recipe(config["recipe"], origin=str(folder / CONFIG))
    if language_model is None or isinstance(language_model, str):
        name = language_model or recipe.language_model
        language = load_language_model(name, trust_remote_code=recipe.trust_remote_code)
    else:
        language = language_model
    morph = build_morph(recipe, language=language, cached=False)
    for part, expected in config["hashes"].items():
        actual = morph.frozen_hashes().get(part)
        if actual != expected:
            raise ValueError(
                f"{folder} was trained beside a {part.replace('_', ' ')} with hash {expected[:16]}, but the one loaded "
                f"has {str(actual)[:16]}; give the one it was trained with (it names {_frozen_name(recipe, part)!r})"
            )
    load_weights(morph.model.vision_tower, folder / WEIGHTS)
    morph.model.eval().requires_grad_(False)
    return morph


def find_morph(path: str | Path) -> Path:
    """The folder of a morph: a path, the name of one that Diptych carries, or a Hub id (fetched)."""
    folder = Path(path)
    if (folder / CONFIG).is_file():
        return folder
    if folder.exists():
        raise ValueError(
            f"{folder} is not a morph: it has no {CONFIG}; give a folder written by diptych train, "
            "such as runs/demo/morph"
        )
    for root in carried_roots():
        if (root / str(path) / CONFIG).is_file():
            return root / str(path)
    parts = str(path).split("/")
    if len(parts) == 2 and all(parts) and not str(path).startswith("."):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(str(path), allow_patterns=[CONFIG, WEIGHTS]))
        except Exception as error:
            raise ValueError(
                f"morph {str(path)!r} is no folder here, and could not be fetched from the Hub: {error}"
            ) from error
    carried = sorted(p.parent.name for root in carried_roots() for p in root.glob(f"*/{CONFIG}"))
    raise ValueError(
        f"there is no morph at {path}; give a folder written by diptych train, a Hub id, or one of: "
        f"{', '.join(carried) or 'none carried'}"
    )


def carried_roots() -> list[Path]:
    """Where the morphs that come with Diptych lie: inside the package, or beside it in a checkout."""
    package = Path(diptych.__file__).parent
    return [root for root in (package / "morphs", package.parent.parent / "morphs") if root.is_dir()]


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads every parameter of `module`, strictly; raises ValueError that lists all that does not match."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it is missing or damaged: copy the morph again") from error
    own = dict(module.named_parameters())
    problems = [f"missing {name}" for name in own.keys() - stored.keys()]
    problems += [f"unexpected {name}" for name in stored.keys() - own.keys()]
    problems += [
        f"{name} has shape {tuple(stored[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & stored.keys()
        if stored[name].shape != own[name].shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit the model of its config: " + "; ".join(sorted(problems)))
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(stored[name])


def _frozen_name(recipe: Recipe, part: str) -> str:
    return recipe.language_model if part == "language_model" else recipe.autoencoder


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); the morph is damaged: copy it again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT or not {"hashes", "recipe"} <= config.keys():
        raise ValueError(
            f"{path} is not the config of a morph of format {FORMAT}; train it again with this version of Diptych"
        )
    return config


def _replace(path: Path, write: Any) -> None:
    """Writes to a temporary name and renames, so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
