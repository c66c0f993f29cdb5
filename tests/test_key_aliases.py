"""MetaMorph's names for settings mean ours, are said to, and never hide a setting given twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from diptych.config import Recipe, load_recipe
from diptych.key_aliases import ALIASES, translate_keys
from diptych.settings import LoraConfig

OURS: dict[str, Any] = {"method": "vpit", "output_dir": "runs/x", "data": {"sources": [{"path": "a.jsonl"}]}}
THEIRS: dict[str, Any] = {
    "vision_coef": 0.5,
    "num_image_tokens": 16,
    "image_token_reduction": "interpolation",
    "mm_projector_type": "linear",
    "mm_projector_lr": 1e-3,
    "mm_vision_select_layer": -1,
    "vision_tower": "google/siglip-so400m-patch14-384",
    "tune_mm_mlp_adapter": True,
    "pretrain_mm_mlp_adapter": "runs/stage1/morph",
    "model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct",
    "model_max_length": 4096,
    "bf16": True,
    "save_steps": 100,
    "learning_rate": 6.93e-5,
    "per_device_train_batch_size": 6,
}


def write(folder: Path, **settings: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**OURS, **settings}), encoding="utf-8")
    return path


def value_of(recipe: Recipe, key: str) -> Any:
    found: Any = recipe
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


def test_a_recipe_in_their_names_is_the_recipe_in_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = load_recipe(write(tmp_path, **THEIRS))
    assert capsys.readouterr().err.count("note: ") == len(THEIRS)
    ours = load_recipe(
        write(
            tmp_path,
            dtype="bfloat16",
            language_model="meta-llama/Llama-3.1-8B-Instruct",
            vpit={
                "visual_weight": 0.5,
                "num_image_tokens": 16,
                "connector": "linear",
                "encoder_layer": -1,
                "image_encoder": "google/siglip-so400m-patch14-384",
                "train_parts": ["connector", "boundary_tokens"],
                "init_from": "runs/stage1/morph",
            },
            data={"sources": [{"path": "a.jsonl"}], "max_length": 4096},
            train={
                "learning_rate": 6.93e-5,
                "learning_rates": {"connector": 1e-3},
                "per_device_train_batch_size": 6,
                "save_every": 100,
            },
        )
    )
    assert capsys.readouterr().err == ""
    assert theirs == ours


def test_every_alias_is_a_setting_that_exists() -> None:
    recipe = Recipe.model_validate(OURS)
    for name, alias in ALIASES.items():
        key = alias.key.removesuffix(".connector") if "learning_rates" in alias.key else alias.key
        if key.startswith("vpit.lora."):
            assert key.removeprefix("vpit.lora.") in LoraConfig.model_fields, name
        elif key:
            value_of(recipe, key)
        else:
            assert name in ("image_token_reduction", "mm_use_im_start_end")


def test_an_override_may_use_their_name_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(write(tmp_path, vpit={"connector": "linear"}), ["vision_coef=0.25"])
    assert (recipe.vpit.visual_weight, recipe.vpit.connector) == (0.25, "linear")
    assert capsys.readouterr().err == "note: vision_coef is vpit.visual_weight here, set to 0.25\n"


def test_both_names_of_one_setting_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vision_coef is vpit.visual_weight here, and both are given; leave one out"):
        load_recipe(write(tmp_path, vision_coef=0.5, vpit={"visual_weight": 1.0}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image_token_reduction": "pixel_shuffle"}, "'pixel_shuffle' is not known"),
        ({"mm_vision_select_layer": "last"}, "must be a whole number"),
        ({"mm_projector_type": "mlp9x"}, "vpit.connector"),
    ],
    ids=str,
)
def test_a_value_without_a_counterpart_is_refused_by_name(tmp_path: Path, settings: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_recipe(write(tmp_path, **settings))


def test_other_methods_keep_their_own_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown key 'vision_coef'"):
        load_recipe(write(tmp_path, method="xfusion", vision_coef=0.5))
    group = {**OURS, "vision_tower": {"hidden_size": 64}}
    assert translate_keys(group) == (group, [])


def test_their_names_are_known_in_stages_and_in_a_pixel_decoder_s_recipe() -> None:
    stages = [{"name": "one", "changes": {"vision_coef": 0.0, "tune_mm_mlp_adapter": True}}]
    translated, notes = translate_keys({**OURS, "stages": stages})
    changes = translated["stages"][0]["changes"]
    assert changes == {"vpit": {"visual_weight": 0.0, "train_parts": ("connector", "boundary_tokens")}}
    assert len(notes) == 2
    assert stages[0]["changes"] == {"vision_coef": 0.0, "tune_mm_mlp_adapter": True}, "what was given is not changed"
    decoder, _ = translate_keys({**OURS, "method": "pixel_decoder", "num_image_tokens": 9})
    assert decoder["vpit"] == {"num_image_tokens": 9}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"lora_enable": True}, {}),
        ({"lora_enable": True, "lora_r": 8}, {"r": 8}),
        ({"lora_r": 8, "lora_enable": True, "lora_alpha": 4.0}, {"r": 8, "lora_alpha": 4.0}),
    ],
)
def test_their_adapters_are_ours(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    translated, _ = translate_keys({**OURS, **theirs})
    assert translated["vpit"]["lora"] == ours


def test_images_without_boundary_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="always stand between boundary tokens"):
        translate_keys({**OURS, "mm_use_im_start_end": False})
