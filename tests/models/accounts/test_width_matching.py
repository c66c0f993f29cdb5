"""Law: a matched tower costs what it was matched to, by the account that `diptych inspect` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from diptych.backbones.skeletons import build_language_skeleton
from diptych.config import Recipe, build_recipe
from diptych.models.accounts.width_matching import match_widths
from diptych.models.accounts.xfusion_account import account_xfusion
from diptych.models.xfusion_building import is_copied


@pytest.fixture
def language_folder(tmp_path: Path) -> str:
    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 640,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    LlamaConfig(vocab_size=300, num_hidden_layers=2, **sizes).save_pretrained(tmp_path)
    return str(tmp_path)


def build(folder: str, **tower: Any) -> Recipe:
    settings = {
        "method": "xfusion",
        "output_dir": "unused",
        "language_model": folder,
        "vision_tower": tower,
        "data": {"sources": [{"path": "not-there.jsonl"}]},
        "train": {"per_device_train_batch_size": 2},
    }
    return build_recipe(settings)


def cost(recipe: Recipe, measure: str) -> float:
    account = account_xfusion(recipe)
    return account.step.total if measure == "compute" else float(sum(account.trained.values()))


@pytest.mark.parametrize("measure", ["parameters", "compute"])
@pytest.mark.parametrize(
    "design",
    [
        {"layer_design": "gated"},
        {"layer_design": "projection"},
        {"x_fuse": "both"},
        {"x_fuse": "image"},
        {"hidden_size": 192},
    ],
    ids=["gated", "projection", "x_fuse", "x_fuse image", "given"],
)
def test_costs_what_it_is_matched_to(language_folder: str, design: dict[str, Any], measure: str) -> None:
    matched = match_widths(build(language_folder, match=measure, **design))
    assert matched.vision_tower.match is None
    assert cost(matched, measure) == pytest.approx(cost(build(language_folder), measure), rel=0.01)
    for name, value in design.items():
        assert getattr(matched.vision_tower, name) == value


COPIES = [
    ({"layer_design": "gated"}, "parameters"),
    ({"layer_design": "projection"}, "parameters"),
    ({}, "parameters"),
    ({}, "compute"),
    ({"hidden_size": 256, "num_attention_heads": 4}, "compute"),
]


@pytest.mark.parametrize(("design", "measure"), COPIES, ids=str)
def test_a_tower_of_the_language_models_own_widths_is_its_copy(
    language_folder: str, design: dict[str, Any], measure: str
) -> None:
    """Copied and new layers are not compared with each other where they need not be."""
    recipe = match_widths(build(language_folder, match=measure, **design))
    language = build_language_skeleton(language_folder)
    assert is_copied(recipe.vision_tower, language.config)
    sizes = (recipe.vision_tower.hidden_size, recipe.vision_tower.intermediate_size)
    assert sizes == (256, 640)
    assert "copied from the language model" in account_xfusion(recipe).describe(1e9, measured=False)


def test_a_matched_tower_has_the_language_models_queries_to_a_key(language_folder: str) -> None:
    matched = match_widths(build(language_folder, x_fuse="both", match="compute")).vision_tower
    assert matched.hidden_size != 256
    assert matched.num_attention_heads is not None
    assert matched.num_key_value_heads == max(1, matched.num_attention_heads // 2)
    assert "new" in account_xfusion(build(language_folder, hidden_size=128)).describe(1e9, measured=False)


def test_matches_another_tower(language_folder: str) -> None:
    narrow = {"hidden_size": 128, "intermediate_size": 512}
    matched = match_widths(build(language_folder, layer_design="gated", match="parameters", match_to=narrow))
    assert cost(matched, "parameters") == pytest.approx(cost(build(language_folder, **narrow), "parameters"), rel=0.01)


def test_without_match_nothing_changes(language_folder: str) -> None:
    recipe = build(language_folder, layer_design="gated")
    assert match_widths(recipe) is recipe


def test_says_what_cannot_be_matched(language_folder: str) -> None:
    with pytest.raises(
        ValueError, match=r"hidden_size 2048.*times the parameters.*of a dual tower beside all.*smaller"
    ):
        match_widths(build(language_folder, hidden_size=2048, match="parameters"))
    few = {"hidden_size": 16, "num_attention_heads": 1, "match_to": {"layers": [0, 1]}}
    with pytest.raises(ValueError, match=r"0\.\d+ times the parameters.* beside 2 layers; give a larger"):
        match_widths(build(language_folder, match="parameters", **few))


@pytest.mark.parametrize("named", [None, {"layer_design": "gated"}])
def test_what_it_is_matched_to_is_as_itself_but_for_its_design(
    language_folder: str, named: dict[str, Any] | None
) -> None:
    same = {"time_conditioning": "adaln", "text_pooling": True, "patch_size": 1, "boundary_tokens": False}
    matched = match_widths(build(language_folder, match="parameters", match_to=named, **same))
    other = build(language_folder, **same, **(named or {}))
    assert cost(matched, "parameters") == pytest.approx(cost(other, "parameters"), rel=0.01)
    own = build(
        language_folder, match="parameters", match_to={"time_conditioning": "add"}, **same
    ).vision_tower.match_to
    assert own is not None
    assert (own.time_conditioning, own.text_pooling) == ("add", True)


def test_says_where_what_is_matched_to_cannot_be_built(language_folder: str) -> None:
    with pytest.raises(ValueError, match=r"match_to, .*names layer 9, but .* has layers 0 to 1"):
        match_widths(build(language_folder, match="compute", match_to={"layers": [0, 9]}))


@pytest.mark.parametrize(
    ("tower", "said"),
    [
        ({"layer_design": "single", "match": "compute"}, "single tower is the language model itself"),
        ({"intermediate_size": 64, "match": "compute"}, "match chooses intermediate_size"),
        ({"match_to": {"layer_design": "gated"}}, "match_to needs vision_tower.match"),
        ({"match": "compute", "match_to": {"match": "compute"}}, "must not match anything else"),
        ({"match": "compute", "match_to": {"init_from": "here"}}, "match_to.init_from: .*leave it out"),
        ({"match": "compute", "match_to": {"init_from": "here", "fresh_attention": True}}, "match_to.init_from"),
        ({"match": "compute", "match_to": {"layers": []}}, r"vision_tower.match_to: layers .*at least one; it is \[\]"),
        ({"match": "compute", "match_to": {"layers": [2, 0]}}, r"vision_tower.match_to: layers .*it is \[2, 0\]"),
        ({"layers": [-1, 0]}, r"vision_tower: layers .*it is \[-1, 0\]"),
    ],
)
def test_refuses_what_cannot_go_together(tower: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build("anywhere", **tower)
