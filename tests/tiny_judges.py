"""Judges without anybody's weights: a random CLIP with a tokenizer of letters, a random Inception in TorchScript, an
EfficientNet-Lite0 that sees 32 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from diptych.backbones.efficientnet_lite import EfficientNetLite0
from diptych.backbones.vision import ImageEncoder, build_efficientnet_encoder

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP_LENGTH = 12
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,"


def write_clip(folder: Path) -> Path:
    """Of CLIP's own classes, in the layout of the Hub's."""
    folder.mkdir(parents=True)
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(
        text_config=SMALL
        | ends
        | {"vocab_size": len(tokenizer), "max_position_embeddings": CLIP_LENGTH, "pad_token_id": ends["eos_token_id"]},
        vision_config=SMALL | {"image_size": 28, "patch_size": 14},
        projection_dim=16,
    )
    torch.manual_seed(1)
    transformers.CLIPModel(config).eval().save_pretrained(folder)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


class _RandomInception(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(23), nn.Conv2d(3, num_features, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def write_inception(file: Path, *, num_features: int = 2048) -> Path:
    """In the layout of inception-2015-12-05.pt: `layers` takes (pixel - 128) / 128 at 299 pixels."""
    torch.manual_seed(2)
    traced: Any = torch.jit.trace(_RandomInception(num_features).eval(), torch.zeros(1, 3, 299, 299))
    traced.save(str(file))
    return file


def small_efficientnet() -> ImageEncoder:
    torch.manual_seed(3)
    return build_efficientnet_encoder(EfficientNetLite0(), weight_hash="0" * 64, image_size=32)
