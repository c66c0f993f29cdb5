"""Small VPiT models, streams and an image encoder for tests: built in milliseconds, nothing downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from diptych.backbones.language import LanguageModel
from diptych.backbones.vision import ImageEncoder, ImagePreprocessing, build_image_encoder
from diptych.config import Recipe, build_recipe
from diptych.models.vpit_checkpoint import build_vpit_morph
from diptych.models.vpit_morph import VPiTMorph
from diptych.models.vpit_training import VPiTTraining
from tiny_xfusion import build_language

NUM_TOKENS, FEATURE_DIM = 4, 16


def build_encoder(*, seed: int = 0, fit: Literal["crop", "squash"] = "crop") -> ImageEncoder:
    """A random ViT: 32 pixels, 16 patches, 16 dimensions."""
    config = ViTConfig(
        hidden_size=FEATURE_DIM,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ViTModel(config, add_pooling_layer=False)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    preprocessing = ImagePreprocessing(32, (0.5,) * 3, (0.5,) * 3, fit=fit)
    return build_image_encoder(network, preprocessing, name="tiny-vit", weight_hash=f"{seed}" * 64)


def write_encoder(folder: Path) -> Path:
    """A random encoder of `build_encoder`'s shape as a folder, which recipes can name."""
    network = ViTModel(build_encoder().network.get_submodule("network").config)  # pyright: ignore
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    return folder


def vpit_recipe(output_dir: Path | str = "nowhere", data: Path | None = None, **settings: Any) -> Recipe:
    base: dict[str, Any] = {
        "method": "vpit",
        "output_dir": str(output_dir),
        "dtype": "float32",
        "template": "chatml",
        "language_model": "tiny",
        "vpit": {"image_encoder": "tiny-vit", "num_image_tokens": NUM_TOKENS},
        "data": {"sources": [{"path": str((data or Path("none")) / f"{n}.jsonl")} for n in ("draw", "read")]},
        "train": {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 1},
    }
    for key, value in settings.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    return build_recipe(base)


def build_vpit(family: str = "llama", *, language: LanguageModel | None = None, **recipe: Any) -> VPiTMorph:
    """A whole morph with its new weights moved off their start."""
    morph = build_vpit_morph(
        vpit_recipe(**recipe), language=language or build_language(family), encoder=build_encoder(), cached=False
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in morph.model.named_parameters():
            if not name.startswith("language_model."):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    morph.model.eval()
    return morph


def build_training(recipe: Recipe, family: str = "llama") -> VPiTTraining:
    return VPiTTraining(
        recipe, build_vpit_morph(recipe, language=build_language(family), encoder=build_encoder(), cached=False)
    )


def random_features(num_images: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_images, NUM_TOKENS, FEATURE_DIM, generator=generator)
    return torch.nn.functional.normalize(features, dim=-1)


def write_emblems(folder: Path, *, count: int = 4) -> Path:
    """draw.jsonl and read.jsonl over images of plain colours and halves, which differ plainly."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, read = [], []
    for number in range(count):
        pixels = np.random.RandomState(number).randint(0, 255, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{number}.png")
        for samples, asked, answered in (
            (draw, f"Draw {number}.", "<image>"),
            (read, "<image>\nWhat?", f"number {number}"),
        ):
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            samples.append({"messages": turns, "images": [f"{number}.png"]})
    for name, samples in (("draw", draw), ("read", read)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder
