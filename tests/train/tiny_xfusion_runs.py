"""The real method at its smallest: a random language model, averaged pixels for latents, eight images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.tiny_language import build_tiny_language_model
from diptych.config import Recipe, build_recipe
from diptych.models.checkpoint import build_morph
from diptych.models.xfusion_training import XFusionTraining


class AveragedPixels:
    """Stands in for an autoencoder."""

    latent_channels, downsampling, hash, name = 3, 8, "0" * 64, "averaged pixels"

    def to(self, device: object) -> AveragedPixels:
        return self

    def encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 8)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents, scale_factor=8).clamp(-1, 1)


def write_samples(folder: Path) -> None:
    """draw.jsonl and read.jsonl over the same images."""
    folder.mkdir(parents=True)
    draw, read = [], []
    for number in range(8):
        pixels = np.random.RandomState(number).randint(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images = [f"{number}.png"]
        for samples, asked, answered in (
            (draw, f"Draw {number}.", "<image>"),
            (read, "<image>\nWhat?", f"number {number}"),
        ):
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            samples.append({"messages": turns, "images": images})
    for name, samples in (("draw", draw), ("read", read)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))


DESIGNS: dict[str, dict[str, Any]] = {
    "dual": {"layers": [0, 2]},
    "x-fuse": {"layers": [0, 2], "x_fuse": "both"},
    "gated": {"layer_design": "gated"},
    "projection": {"layer_design": "projection"},
    "single": {"layer_design": "single"},
}


def xfusion_recipe(
    output_dir: Path, data: Path, *, batch_size: int, design: str = "dual", ce_weight: float = 0.2, **train: Any
) -> Recipe:
    """Six steps of two micro-batches, drawing to reading 2 : 1."""
    return build_recipe(
        {
            "output_dir": str(output_dir),
            "image_size": 32,
            "dtype": "float32",
            "vision_tower": {"time_conditioning": "adaln", "patch_size": 1, **DESIGNS[design]},
            "objective": {"ce_weight": ce_weight},
            "sample": {"prompts": ["Draw 1."], "num_inference_steps": 2},
            "data": {"sources": [{"path": str(data / "draw.jsonl"), "weight": 2}, {"path": str(data / "read.jsonl")}]},
            "train": {
                "per_device_train_batch_size": batch_size,
                "gradient_accumulation_steps": 2,
                "max_steps": 6,
                "learning_rate": 0.003,
                "adam_epsilon": 1e-4,  # gradients near zero are not blown up, nor is their rounding
                "ema": 0.9,
                "logging_steps": 1,
                "sample_every": 3,
                **train,
            },
        }
    )


def build_xfusion_training(recipe: Recipe) -> XFusionTraining:
    morph = build_morph(recipe, language=build_tiny_language_model(), autoencoder=AveragedPixels(), cached=False)
    return XFusionTraining(recipe, morph)
