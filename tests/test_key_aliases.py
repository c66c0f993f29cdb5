"""MetaMorph's names for settings mean ours, are said to, or are refused with the remedy; none is misread."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from diptych.config import Recipe, load_recipe
from diptych.key_aliases import ALIASES, FIXED, GROUPS, IDLE, LORA, translate_keys
from diptych.settings import LoraConfig
from diptych.stages import expand_stages

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
                "train_parts": ["connector", "boundary_embeddings"],
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
    for alias in ALIASES.values():
        value_of(recipe, alias.key.removesuffix(".connector") if "learning_rates" in alias.key else alias.key)
    assert {ours for ours, _ in LORA.values()} <= set(LoraConfig.model_fields)
    grouped = [name for group in GROUPS for name in group.readers]
    names = [*ALIASES, *FIXED, *IDLE, *grouped]
    assert len(names) == len(set(names))
    assert set(names) & set(Recipe.model_fields) == {"vision_tower"}, "no name of theirs is one of ours"


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
        ({"mm_vision_select_layer": True}, "mm_vision_select_layer must be a whole number, got True"),
        ({"tune_mm_mlp_adapter": "yes"}, "tune_mm_mlp_adapter must be true or false, got 'yes'"),
        ({"lora_enable": "true"}, "lora_enable must be true or false, got 'true'"),
        ({"lora_r": True}, "lora_r must be a whole number"),
        ({"bf16": 1}, "bf16 must be true or false"),
        ({"learning_rate": "much"}, "learning_rate must be a number, got 'much'"),
        ({"vision_coef": None}, "vision_coef must be a number, got None"),
        ({"model_name_or_path": 8}, "model_name_or_path must be text"),
        ({"pretrain_mm_mlp_adapter": "out/mm_projector.bin"}, "give the morph that a first stage wrote here"),
        ({"vision_head_type": "mlp2x_gelu"}, "'mlp2x_gelu' is not known here: .* two linear layers.* set it to mlp"),
        ({"normalize_vision": False}, "normalize_vision False is not known here: visual tokens always have length 1"),
        ({"freeze_vision": False}, "the image encoder is always frozen here; leave it out"),
        ({"freeze_vision": 1}, "freeze_vision 1 is not known here"),
        ({"mm_use_im_patch_token": True}, "mm_use_im_patch_token True is not known here"),
        ({"mm_vision_select_feature": "cls_patch"}, "features of patches alone"),
        ({"apply_softmax": True}, "features, not probabilities"),
        ({"version": "v0"}, "version 'v0' is not known here; leave it out and set template"),
        ({"fp16": True}, "set bf16: true"),
        ({"tf32": True}, "not rounded to TF32"),
        ({"report_to": "wandb"}, "log.jsonl"),
        ({"freeze_backbone": True}, "leave language_model out of vpit.train_parts instead"),
        ({"num_train_epochs": 1}, "set that to epochs x samples"),
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
    assert changes == {"vpit": {"visual_weight": 0.0, "train_parts": ("connector", "boundary_embeddings")}}
    assert len(notes) == 2
    assert stages[0]["changes"] == {"vision_coef": 0.0, "tune_mm_mlp_adapter": True}, "what was given is not changed"
    decoder, _ = translate_keys({**OURS, "method": "pixel_decoder", "num_image_tokens": 9})
    assert decoder["vpit"] == {"num_image_tokens": 9}


LORA_DEFAULTS = {"r": 64, "lora_alpha": 16.0, "lora_dropout": 0.05}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"lora_enable": True}, LORA_DEFAULTS),
        ({"lora_enable": True, "lora_r": 8}, LORA_DEFAULTS | {"r": 8}),
        ({"lora_r": 8, "lora_enable": True, "lora_alpha": 4.0}, LORA_DEFAULTS | {"r": 8, "lora_alpha": 4.0}),
        ({"lora_enable": True, "vpit": {"lora": {"target_modules": ["q_proj"]}}}, {"target_modules": ["q_proj"]}),
        ({"lora_enable": False, "lora_r": 8}, None),
        ({"lora_enable": False}, None),
        ({"lora_r": 8}, None),
        ({"lora_bias": "none", "lora_weight_path": ""}, None),
    ],
    ids=str,
)
def test_their_adapters_are_one_group(tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any] | None) -> None:
    """Off until lora_enable, whatever else is given; then with their own defaults, not ours."""
    lora = load_recipe(write(tmp_path, **theirs)).vpit.lora
    if ours is None:
        assert lora is None
    else:
        assert lora == LoraConfig(**(LORA_DEFAULTS | ours))


def test_adapters_said_in_both_tongues_are_refused() -> None:
    for theirs in ({"lora_r": 8}, {"lora_enable": False}, {"lora_enable": True}):
        with pytest.raises(ValueError, match=r"lora_\w+ .*vpit\.lora.*; leave one out"):
            translate_keys({**OURS, **theirs, "vpit": {"lora": {"r": 4}}})


def test_a_stage_changes_what_the_recipe_says_of_adapters(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"lora_r": 8}, {"lora_enable": False}]
    stages = [{"name": f"s{number}", "changes": change} for number, change in enumerate(changes)]
    recipe = load_recipe(write(tmp_path, lora_enable=True, lora_alpha=32, stages=stages))
    first, second, third = (stage.vpit.lora for stage in expand_stages(recipe))
    assert first == LoraConfig(r=64, lora_alpha=32, lora_dropout=0.05)
    assert second == LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05)
    assert third is None
    late = load_recipe(write(tmp_path, lora_r=8, stages=[{"name": "one", "changes": {"lora_enable": True}}]))
    assert expand_stages(late)[0].vpit.lora == LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05)


@pytest.mark.parametrize(
    ("theirs", "weight"),
    [
        ({"use_vision_ar": False}, 0),
        ({"use_vision_ar": False, "vision_coef": 1.0}, 0),
        ({"use_vision_ar": True, "vision_coef": 0.5}, 0.5),
        ({"use_vision_ar": True}, 1),
        ({"use_vision_ar": True, "vpit": {"visual_weight": 0.25}}, 0.25),
        ({"vision_coef": "5e-1"}, 0.5),
    ],
    ids=str,
)
def test_no_visual_prediction_is_a_weight_of_nothing(tmp_path: Path, theirs: dict[str, Any], weight: float) -> None:
    assert load_recipe(write(tmp_path, **theirs)).vpit.visual_weight == weight


def test_a_stage_switches_visual_prediction_on_with_the_recipe_s_weight(tmp_path: Path) -> None:
    stages = [{"name": "one", "changes": {}}, {"name": "two", "changes": {"use_vision_ar": True}}]
    for given, weight in (({}, 1.0), ({"vision_coef": 0.5}, 0.5)):
        recipe = load_recipe(write(tmp_path, use_vision_ar=False, stages=stages, **given))
        assert [stage.vpit.visual_weight for stage in expand_stages(recipe)] == [0, weight]


def test_their_data_is_one_source(tmp_path: Path) -> None:
    given = {key: value for key, value in OURS.items() if key != "data"}
    theirs = {"data_path": "a.jsonl", "image_folder": "images"}
    (source,) = translate_keys({**given, **theirs})[0]["data"]["sources"]
    assert source == {"path": "a.jsonl", "image_root": "images"}
    stages = [{"name": "two", "changes": {"data_path": "b.jsonl"}}, {"name": "one", "changes": {"image_folder": None}}]
    translated, _ = translate_keys({**given, **theirs, "stages": stages})
    two, one = (stage["changes"]["data"]["sources"] for stage in translated["stages"])
    assert (two, one) == ([{"path": "b.jsonl", "image_root": "images"}], [{"path": "a.jsonl"}])
    with pytest.raises(ValueError, match="give each entry an image_root instead"):
        load_recipe(write(tmp_path, image_folder="images"))


def test_what_says_nothing_there_says_nothing_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unsaid = ("mm_projector_lr", "vision_tower", "pretrain_mm_mlp_adapter", "image_folder")
    recipe = load_recipe(write(tmp_path, **dict.fromkeys(unsaid)))
    told = capsys.readouterr().err
    assert recipe == load_recipe(write(tmp_path))
    assert told.count("null says nothing") == len(unsaid)


def test_epochs_are_told_apart_from_steps(tmp_path: Path) -> None:
    for steps in ({"max_steps": 7}, {"train": {"max_steps": 7}}):
        assert load_recipe(write(tmp_path, num_train_epochs=1, **steps)).train.max_steps == 7
    stages = [{"name": "one", "changes": {"num_train_epochs": 1, "train": {"learning_rate": 1.0}}}]
    assert load_recipe(write(tmp_path, max_steps=7, stages=stages)).train.max_steps == 7


SCRIPTS: dict[str, Any] = {
    "deepspeed": "./scripts/zero2.json",
    "model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct",
    "version": "llama3",
    "image_folder": "images",
    "data_path": "a.jsonl",
    "run_name": "stage1",
    "vision_tower": "siglip/CLIP-ViT-SO400M-14-384",
    "mm_vision_select_layer": -1,
    "mm_use_im_start_end": True,
    "mm_use_im_patch_token": False,
    "tune_mm_mlp_adapter": True,
    "mm_projector_type": "mlp2x_gelu",
    "bf16": True,
    "fp16": False,
    "vision_head_type": "mlp",
    "image_token_reduction": "interpolation",
    "num_image_tokens": 64,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 14,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "evaluation_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 240000,
    "save_total_limit": 1,
    "learning_rate": "4.9e-5",
    "weight_decay": 0.0,
    "warmup_ratio": 0.03,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "tf32": False,
    "model_max_length": 4096,
    "gradient_checkpointing": True,
    "dataloader_num_workers": 2,
    "lazy_preprocess": True,
    "use_vision_ar": False,
    "freeze_vision": True,
    "vision_coef": 1.0,
    "normalize_vision": True,
}
"""Stage 1 as scripts/slurm_pretrain.sh launches it (image_folder: pretrain_1node.sh), less what goes to report_to."""
OTHERS = """
freeze_backbone pretrain_mm_mlp_adapter mm_patch_merge_type mm_vision_select_feature apply_softmax is_multimodal
image_aspect_ratio optim remove_unused_columns freeze_mm_mlp_adapter mpt_attn_impl double_quant quant_type bits
lora_enable lora_r lora_alpha lora_dropout lora_weight_path lora_bias mm_projector_lr vision_lr
group_by_modality_length report_to
"""
"""What their train.py, its scripts or LLaVA's know besides."""


def test_a_stage_of_their_launch_scripts_is_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All their keys at once, with the length that here is counted in steps: the paper's first stage."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"method": "vpit", "output_dir": "x", "max_steps": 3255, **SCRIPTS}))
    recipe = load_recipe(path)
    told = capsys.readouterr().err
    assert all(name in told for name in SCRIPTS)
    paper = load_recipe(Path(__file__).parent.parent / "recipes" / "paper" / "metamorph-stage1.yaml")
    assert recipe.vpit == paper.vpit
    assert (recipe.language_model, recipe.template, recipe.dtype) == (paper.language_model, "auto", "bfloat16")
    ours, theirs = recipe.train, paper.train
    for key in ("learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_steps"):
        assert getattr(ours, key) == getattr(theirs, key)


@pytest.mark.parametrize("name", [*SCRIPTS, *OTHERS.split()])
def test_no_key_of_theirs_is_unknown(tmp_path: Path, name: str) -> None:
    """Even of a senseless value: what is said of it is said of this key."""
    with pytest.raises(ValueError, match=name) if name not in IDLE else nullcontext():
        load_recipe(write(tmp_path, **{name: {"no": "sense"}}))
    assert name in {*ALIASES, *FIXED, *IDLE, *(key for group in GROUPS for key in group.readers)}


def test_images_without_boundary_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="always stand between boundary tokens"):
        translate_keys({**OURS, "mm_use_im_start_end": False})
