"""Law: a tower of the language model's own widths, left out or written down, starts as a copy of its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.models.checkpoint import build_morph
from diptych.models.xfusion_building import WIDTHS, tower_widths
from diptych.tower_settings import VisionTowerConfig
from tiny_xfusion import FakeAutoencoder, build_language, tiny_recipe

LANGUAGE = build_language("llama")
OWN = {name: getattr(LANGUAGE.model.config, name) for name in WIDTHS}


def is_copy(**tower: Any) -> bool:
    recipe = tiny_recipe(vision_tower={"patch_size": 2, **tower})
    morph = build_morph(recipe, language=LANGUAGE, autoencoder=FakeAutoencoder(), cached=False)
    theirs: Any = LANGUAGE.model.model.layers
    blocks: Any = morph.model.vision_tower.blocks
    both = zip((block.layer for block in blocks), theirs, strict=True)
    pairs = [(own.mlp.up_proj.weight, other.mlp.up_proj.weight) for own, other in both]
    return all(own.shape == other.shape and torch.equal(own, other) for own, other in pairs)


@pytest.mark.parametrize("design", ["dual", "gated", "projection"])
@pytest.mark.parametrize("names", [(), WIDTHS[:1], WIDTHS[:2], WIDTHS], ids=len)
def test_the_language_models_own_widths_are_copied(design: str, names: tuple[str, ...]) -> None:
    if design == "projection":
        names = names[:2]  # its heads are the language model's anyway
    assert is_copy(layer_design=design, **{name: OWN[name] for name in names})


@pytest.mark.parametrize("other", [{"intermediate_size": 48}, {"num_attention_heads": 2, "num_key_value_heads": 2}])
def test_other_widths_are_not(other: dict[str, Any]) -> None:
    assert not is_copy(**other)
    assert tower_widths(VisionTowerConfig(**other), LANGUAGE.model.config).items() >= other.items()


def test_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match="hidden_size 30 must be an even multiple of num_attention_heads 4"):
        is_copy(hidden_size=30, num_attention_heads=4)
