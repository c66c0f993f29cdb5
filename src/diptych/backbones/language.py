"""Language models: Hugging Face causal LMs, untouched and frozen, with their tokenizers and the hash of their weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal LM. `hash`: SHA-256 over names, shapes, dtypes and bytes of its stored weights."""

    model: Any
    tokenizer: Any
    name: str
    hash: str

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model (safetensors) and tokenizer as a Hugging Face folder."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def hash_module(module: nn.Module) -> str:
    digest = hashlib.sha256()
    tensors = dict(module.named_parameters())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.view(torch.uint8).numpy()).cast("B"))
    return digest.hexdigest()


def build_language_model(model: Any, tokenizer: Any, *, name: str) -> LanguageModel:
    """Freezes `model` (eval, no gradients) and pairs it with its tokenizer."""
    model.eval().requires_grad_(False)
    return LanguageModel(model=model, tokenizer=tokenizer, name=name, hash=hash_module(model))


def __getattr__(name: str) -> Any:
    if name == "build_tiny_language_model":
        from diptych.backbones.tiny_language import build_tiny_language_model

        return build_tiny_language_model
    raise AttributeError(name)
