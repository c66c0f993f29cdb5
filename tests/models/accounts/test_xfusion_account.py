"""Laws of the account: bytes of keys and values are those that are kept, and the guarantee is said as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from diptych.config import build_recipe
from diptych.models.accounts.xfusion_account import _decoding_bytes, _read_bytes, account_xfusion
from diptych.models.decoding import _prefill
from diptych.sequence import pack
from tiny_xfusion import build_streams, build_xfusion

DESIGNS: list[dict[str, Any]] = [
    {},
    {"layer_design": "gated"},
    {"layer_design": "projection"},
    {"layer_design": "single"},
    {"x_fuse": "text"},
    {"x_fuse": "image"},
    {"x_fuse": "both"},
]


def num_bytes(pairs: Any) -> int:
    return sum(tensor.nbytes for pair in pairs if pair is not None for tensor in pair)


@torch.no_grad()
@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_bytes_while_writing_are_those_of_the_caches(design: dict[str, Any]) -> None:
    model = build_xfusion(**design)
    (prompt,) = build_streams([[("text", 3), ("context", 1), ("text", 4)]], model)
    _, caches = _prefill(model, [prompt], None)
    kept = [cache for both in caches for cache in (both.text, both.vision) if cache is not None]
    assert num_bytes((cache.key, cache.value) for cache in kept) == _decoding_bytes(model) * len(prompt)


@torch.no_grad()
@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_bytes_while_drawing_are_those_of_what_is_read(design: dict[str, Any]) -> None:
    model = build_xfusion(**design)
    batch = pack(build_streams([[("text", 7), ("target", 1)]], model))
    prefilled = model.prefill(batch, model.plan(batch))
    read = prefilled.key_values
    if model.vision_tower.is_fused:
        read = [pair for values in read for pair in (values.text, values.vision)]
    assert num_bytes(read) == _read_bytes(model) * 7


@pytest.mark.parametrize("design", ["dual", "single"])
def test_the_guarantee_is_said_as_it_is(design: str, tmp_path: Any) -> None:
    config = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    config.save_pretrained(tmp_path)
    recipe = build_recipe(
        {
            "output_dir": "unused",
            "language_model": str(tmp_path),
            "vision_tower": {"layer_design": design},
            "data": {"sources": [{"path": "not-there.jsonl"}]},
        }
    )
    account = account_xfusion(recipe)
    told = account.describe(1e9, measured=False)
    assert account.keeps_language == (design == "dual")
    assert ("NOT kept" in told) == (design == "single")
    layers = sum(count for name, count in account.trained.items() if name.startswith("vision tower"))
    whole = account.frozen[f"language model {tmp_path}"] + (layers if design == "single" else 0)
    embeddings, norm = 300 * 32, 32
    assert whole == 2 * embeddings + norm + layers
