"""Laws of what stands beside a morph's scores: the numbers of `diptych inspect`, whatever the morph was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diptych.backbones.skeletons import build_language_skeleton
from diptych.backbones.tiny_language import build_tiny_language_model
from diptych.config import Recipe, build_recipe
from diptych.evaluate.design_cost import design_cost
from diptych.models.accounts.recipe_account import account_recipe


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("language")
    build_tiny_language_model("llama").save_pretrained(folder)
    return str(folder)


def recipe_of(language: str, data: str = "none.jsonl", **tower: Any) -> Recipe:
    return build_recipe(
        {
            "output_dir": "none",
            "language_model": language,
            "vision_tower": tower,
            "data": {"sources": [{"path": data}]},
        }
    )


@pytest.mark.parametrize("design", ["dual", "gated", "projection", "single"])
def test_designs_are_told_by_their_parameters_their_flops_and_their_bytes(language: str, design: str) -> None:
    recipe = recipe_of(language, layer_design=design)
    cost, account = design_cost(recipe), account_recipe(recipe).as_dict()
    for key in ("parameters", "bytes_cached", "keeps_language"):
        assert cost[key] == account[key], key
    assert cost["drawing"]["flops_per_token"] == account["flops_per_token"]
    for kind in ("drawing", "reading"):
        assert set(cost[kind]["flops_per_token"]) == {"text token", "image token"}
        assert cost[kind]["flops_per_token"]["image token"]["backward"] > 0
    assert cost["keeps_language"] == (design != "single")


def test_what_the_frozen_language_model_costs_is_told_of_one_sample(language: str) -> None:
    """A prompt goes through its layers once, before the drawing; text behind an image goes with it every time."""
    recipe = recipe_of(language)
    account, cost = account_recipe(recipe).as_dict(), design_cost(recipe)
    samples = account["flops_per_step"]["samples"]
    assert samples > 1
    for name in ("frozen text", "latents"):
        assert cost["drawing"]["flops_once"][name] * samples == pytest.approx(account["flops_once"][name])
    assert "frozen text" not in cost["reading"]["flops_once"]
    written, prompt = (cost[kind]["flops_per_token"]["text token"]["forward"] for kind in ("reading", "drawing"))
    assert written > prompt + 2 * sum(
        parameter.numel() for parameter in build_language_skeleton(language).model.layers[0].parameters()
    )


def test_a_morph_of_vpit_has_a_cost_too(language: str) -> None:
    recipe = build_recipe(
        {
            "method": "vpit",
            "output_dir": "none",
            "language_model": language,
            "data": {"sources": [{"path": "none.jsonl"}]},
        }
    )
    cost = design_cost(recipe)
    assert cost["keeps_language"] == account_recipe(recipe).keeps_language
    assert cost["reading"]["flops_once"] == cost["drawing"]["flops_once"] != {}


def test_the_data_decides_nothing(language: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "assistant", "content": "Words alone."}]}\n')
    assert design_cost(recipe_of(language, str(tmp_path / "a.jsonl"))) == design_cost(recipe_of(language))


def test_a_model_that_is_not_to_be_had_is_told() -> None:
    assert "language model './none'" in design_cost(recipe_of("./none"))["unknown"]
