"""Models without their weights, on the meta device: for reckoning what a run costs before anything is fetched."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from diptych.backbones.autoencoder import EMBEDDED as EMBEDDED_AUTOENCODERS
from diptych.backbones.autoencoder import PIXELS, Autoencoder, PixelSpace
from diptych.backbones.efficientnet_lite import EfficientNetLite0
from diptych.backbones.focus_vit import PREPROCESSING
from diptych.backbones.hub_loading import fetch_file, is_of_the_hub, quiet_diffusers
from diptych.backbones.known_shapes import DIFFUSION_SHAPES, ENCODER_SHAPES, LANGUAGE_SHAPES
from diptych.backbones.vision import (
    FOCUS_VIT_LAYER,
    ImageEncoder,
    build_efficientnet_encoder,
    build_image_encoder,
    read_preprocessing,
)

NO_WEIGHTS = "0" * 64
"""The hash of a model that has none."""


def build_language_skeleton(name: str, *, trust_remote_code: bool = False) -> Any:
    """A Hugging Face causal LM whose weights take no memory; `name` as for `load_language_model`. Reads no weights.

    Raises ValueError that names the model if its config is known, in a folder, or on the Hub nowhere.
    """
    config = read_language_config(name, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model.eval().requires_grad_(False)


def read_language_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The Hugging Face config alone. Errors: see `build_language_skeleton`."""
    return _config(name, "language model", LANGUAGE_SHAPES, trust_remote_code=trust_remote_code)


def read_encoder_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The Hugging Face config of an image encoder alone. Errors: see `build_language_skeleton`."""
    return _config(name, "image encoder", ENCODER_SHAPES, trust_remote_code=trust_remote_code)


def build_encoder_skeleton(
    name: str, *, layer: int | None = None, image_size: int | None = None, trust_remote_code: bool = False
) -> ImageEncoder:
    """An image encoder whose weights take no memory; the arguments are those of `load_image_encoder`."""
    if name == "efficientnet-lite0":
        with torch.device("meta"):
            network = EfficientNetLite0()
        return build_efficientnet_encoder(network, weight_hash=NO_WEIGHTS, layer=layer, image_size=image_size)
    config = read_encoder_config(name, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        loaded = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    network = getattr(loaded, "vision_model", loaded)
    if name == "vit-s14-focus":
        layer = FOCUS_VIT_LAYER if layer is None else layer
        image_size = image_size or PREPROCESSING["size"]["height"]
    preprocessing = read_preprocessing(Path(name).expanduser(), network.config, image_size)
    return build_image_encoder(network, preprocessing, name=name, weight_hash=NO_WEIGHTS, layer=layer)


def build_autoencoder_skeleton(name: str) -> Autoencoder | PixelSpace:
    """An autoencoder whose weights take no memory; `name` as for `load_image_space`."""
    if name == PIXELS:
        return PixelSpace()
    if name in DIFFUSION_SHAPES:
        return autoencoder_from_config(DIFFUSION_SHAPES[name]["vae"], name=name)
    base = str(EMBEDDED_AUTOENCODERS.get(name, name))
    try:
        path = _file(base, "vae/config.json", what=f"autoencoder {name!r}")  # of a whole pipeline
    except ValueError:
        path = _file(base, "config.json", what=f"autoencoder {name!r}")
    return autoencoder_from_config(json.loads(path.read_text(encoding="utf-8")), name=name)


def autoencoder_from_config(config: Mapping[str, Any], *, name: str) -> Autoencoder:
    """The same, of a config that is at hand. Raises ValueError for another kind of model."""
    import diffusers

    kind = config.get("_class_name")
    if kind not in ("AutoencoderKL", "AutoencoderTiny"):
        raise ValueError(f"autoencoder {name!r} is a {kind}; give an AutoencoderKL or an AutoencoderTiny")
    with torch.device("meta"), quiet_diffusers():
        network = getattr(diffusers, kind).from_config(dict(config))
    return Autoencoder(network, name=name, hash=NO_WEIGHTS)


def diffusion_configs(name: str, parts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Configs of the parts of a diffusers pipeline ("unet", "vae", "scheduler"): known, from its folder or the Hub."""
    if name in DIFFUSION_SHAPES:
        return {part: DIFFUSION_SHAPES[name][part] for part in parts}
    configs = {}
    for part in parts:
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        path = _file(name, f"{part}/{file}", what=f"diffusion model {name!r}")
        configs[part] = json.loads(path.read_text(encoding="utf-8"))
    return configs


def _config(name: str, what: str, known: Mapping[str, dict[str, Any]], *, trust_remote_code: bool) -> Any:
    if name in known:
        return AutoConfig.for_model(**known[name])
    source = _file(name, "config.json", what=f"{what} {name!r}", known=known).parent
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"the config of {what} {name!r} cannot be read: {_first_line(error)}") from error


def _file(name: str, path: str, *, what: str, known: Mapping[str, Any] | None = None) -> Path:
    """A small file of a model: from its folder, or fetched from the Hub. Raises ValueError that names the model."""
    folder = Path(name).expanduser()
    if (folder / path).is_file():
        return folder / path
    try:
        if folder.is_dir():
            raise ValueError(f"{folder} has no {path}")
        return fetch_file(name, path)
    except Exception as error:
        if not isinstance(error, ValueError) and not is_of_the_hub(error):
            raise
        near = difflib.get_close_matches(name, known or (), n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        choices = f", or one of: {', '.join(known)}" if known and not near else ""
        raise ValueError(
            f"the config of {what}{meant} is in no folder here and could not be fetched: {_first_line(error)}; "
            f"give a folder or a Hugging Face id{choices}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
