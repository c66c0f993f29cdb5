"""Laws of `vision_tower.fresh_attention`: attention as a new tower has it, all else as the morph before has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import diptych.models.checkpoint as checkpoint
from diptych.config import build_recipe
from diptych.models.checkpoint import build_morph, load_morph, save_morph
from diptych.models.generate import Morph
from tiny_xfusion import FakeAutoencoder, build_language, tiny_recipe

DESIGNS: list[dict[str, Any]] = [
    {"time_conditioning": "adaln"},
    {"time_conditioning": "adaln", "layers": [0, 2], "hidden_size": 32, "num_attention_heads": 4},
    {"x_fuse": "both"},
    {"layer_design": "gated"},
    {"layer_design": "projection"},
    {"layer_design": "single"},
]


def tower_of(morph: Morph) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in morph.model.vision_tower.named_parameters()}


def new(**settings: Any) -> Morph:
    return build_morph(tiny_recipe(**settings), language=build_language(), autoencoder=FakeAutoencoder(), cached=False)


@torch.no_grad()
def trained(**settings: Any) -> Morph:
    """A morph none of whose weights are those of a new one."""
    morph = new(**settings)
    for tensor in morph.model.vision_tower.parameters():
        tensor.add_(torch.randn_like(tensor))
    return morph


@pytest.mark.parametrize("tower", DESIGNS, ids=str)
def test_attention_is_new_and_all_else_is_the_former_morphs(tmp_path: Path, tower: dict[str, Any]) -> None:
    before = trained(vision_tower=tower)
    save_morph(tmp_path, before)
    start = {**tower, "init_from": str(tmp_path), "fresh_attention": True}
    former, fresh = tower_of(before), tower_of(new(vision_tower=tower))
    found = tower_of(new(vision_tower=start))
    assert found.keys() == former.keys()
    attention = {name for name in found if ".self_attn." in name}
    assert len(attention) >= 4
    for name, tensor in found.items():
        expected = fresh if name in attention else former
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0, msg=name)
        assert not torch.equal(former[name], fresh[name]), name


@pytest.mark.parametrize("tower", [{"layers": [0, 2]}, {}, {"layer_design": "gated"}, {"x_fuse": "both"}], ids=str)
def test_attention_may_be_new_beside_some_layers_alone(tmp_path: Path, tower: dict[str, Any]) -> None:
    before = trained(vision_tower=tower)
    save_morph(tmp_path, before)
    former, fresh = tower_of(before), tower_of(new(vision_tower=tower))
    found = tower_of(new(vision_tower={**tower, "init_from": str(tmp_path), "fresh_attention": [2]}))
    block = "blocks.1." if "layers" in tower else "blocks.2."
    attention = {name for name in found if ".self_attn." in name and name.startswith(block)}
    assert len(attention) >= 4
    for name, tensor in found.items():
        expected = fresh if name in attention else former
        torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0, msg=name)


def test_a_layer_without_a_block_is_refused(tmp_path: Path) -> None:
    tower = {"layers": [0, 2]}
    save_morph(tmp_path, trained(vision_tower=tower))
    with pytest.raises(ValueError, match=r"fresh_attention names layer 1, beside which .* choose from 0, 2"):
        new(vision_tower={**tower, "init_from": str(tmp_path), "fresh_attention": [1]})


def test_heads_may_then_be_others(tmp_path: Path) -> None:
    tower = {"layers": [0, 2], "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 1}
    save_morph(tmp_path, trained(vision_tower=tower))
    later = {**tower, "num_key_value_heads": 4, "init_from": str(tmp_path)}
    with pytest.raises(ValueError, match=r"has vision_tower.num_key_value_heads 1, not 4 as here"):
        new(vision_tower=later)
    with pytest.raises(ValueError, match=r"has vision_tower.num_key_value_heads 1, not 4 as here"):
        new(vision_tower={**later, "fresh_attention": [0, 2]})
    new(vision_tower={**later, "fresh_attention": True})


def test_a_morph_that_began_so_is_loaded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "load_image_space", lambda name: FakeAutoencoder())
    tower = {"layers": [0, 2], "time_conditioning": "adaln"}
    save_morph(tmp_path / "first", trained(vision_tower=tower))
    second = new(vision_tower={**tower, "init_from": str(tmp_path / "first"), "fresh_attention": True})
    save_morph(tmp_path / "second", second)
    loaded = load_morph(tmp_path / "second", language_model=second.language)
    for name, tensor in tower_of(loaded).items():
        torch.testing.assert_close(tensor, tower_of(second)[name], atol=0, rtol=0, msg=name)


@pytest.mark.parametrize("wrong", [21, "all", [], [1.5], [2, 1], [1, 1], [-1], [True]], ids=str)
def test_says_what_it_may_be(wrong: Any) -> None:
    settings = {"output_dir": "x", "data": {"sources": [{"path": "x.jsonl"}]}}
    with pytest.raises(ValueError, match=r"fresh_attention: .*(list of layers such as \[21\]|once each, ascending)"):
        build_recipe({**settings, "vision_tower": {"init_from": "x", "fresh_attention": wrong}})


def test_without_a_morph_to_start_from_it_is_refused() -> None:
    settings = {"output_dir": "x", "data": {"sources": [{"path": "x.jsonl"}]}}
    with pytest.raises(ValueError, match=r"fresh_attention is of a tower that vision_tower.init_from starts"):
        build_recipe({**settings, "vision_tower": {"fresh_attention": True}})
