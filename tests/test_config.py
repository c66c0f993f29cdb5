"""Laws of settings: nothing unknown passes, nothing changes after loading, an error names the key and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diptych.config import HEEDED_BY, Recipe, build_recipe, load_recipe
from diptych.settings import Settings

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
MINIMAL: dict[str, Any] = {"output_dir": "runs/x", "data": {"sources": [{"path": "x.jsonl"}]}}


def write(folder: Path, settings: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings), encoding="utf-8")
    return path


def every_key(model: type[Settings], *, before: str = "") -> list[str]:
    """Dotted names of all keys that are no lists."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(before + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            keys += every_key(field.annotation, before=f"{before}{name}.")
    return keys


KEYS = every_key(Recipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_all_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert build_recipe(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("max_steps", "train.max_steps"),
        ("train.seed", "seed"),
        ("resume_from_checkpont", "train.resume_from_checkpoint"),
    ],
)
def test_a_key_of_a_group_without_its_group_is_told_where_it_belongs(tmp_path: Path, key: str, meant: str) -> None:
    recipe = Path(__file__).parent.parent / "recipes" / "demo.yaml"
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        load_recipe(recipe, [f"{key}=5"])


def test_a_setting_that_a_method_does_not_heed_is_refused() -> None:
    recipe = Path(__file__).parent.parent / "recipes" / "demo.yaml"
    with pytest.raises(ValueError, match="gradient_checkpointing is not there for method xfusion"):
        load_recipe(recipe, ["train.gradient_checkpointing=true"])


def test_there_are_recipes() -> None:
    assert {"autoencoder.yaml", "demo.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize(
    ("misspelt", "right"),
    [
        ({"languagemodel": "x"}, "language_model"),
        ({"train": {"learning_rat": 1.0}}, "train.learning_rate"),
        ({"train": {"leraning_rate": 1.0}}, "train.learning_rate"),
        ({"vision_tower": {"hidden_sise": 3}}, "vision_tower.hidden_size"),
        ({"objective": {"flow_wieght": 1.0}}, "objective.flow_weight"),
        ({"data": {"sources": [{"path": "x", "wieght": 1}]}}, "data.sources.0.weight"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_right_one(tmp_path: Path, misspelt: Any, right: str) -> None:
    path = write(tmp_path, MINIMAL | misspelt)
    with pytest.raises(ValueError, match=f"unknown key .*did you mean '{right}'") as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_a_value_of_the_wrong_type_is_shown(tmp_path: Path) -> None:
    recipe = Path(__file__).parent.parent / "recipes" / "demo.yaml"
    with pytest.raises(ValueError, match=r"train\.max_steps: .*integer.*, got 'many'"):
        load_recipe(recipe, ["train.max_steps=many"])


def test_an_unknown_key_like_no_other_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'train\.zzz'; known keys: learning_rate, "):
        build_recipe(MINIMAL | {"train": {"zzz": 1}})


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"train\.max_step.*seeed") as caught:
        build_recipe(MINIMAL | {"seeed": 1, "train": {"max_step": 2}})
    assert "\n" not in str(caught.value)


@given(st.sampled_from(KEYS), st.integers(0, 30), st.sampled_from("abcxyz_"))
def test_no_altered_key_passes(key: str, place: int, letter: str) -> None:
    *parents, last = key.split(".")
    altered = last[: place % (len(last) + 1)] + letter + last[place % (len(last) + 1) :]
    settings: dict[str, Any] = {altered: 1}
    for parent in reversed(parents):
        settings = {parent: settings}
    with pytest.raises(ValueError, match="unknown key"):
        build_recipe(MINIMAL | settings)


@given(st.floats(1e-9, 1.0), st.integers(1, 10**6), st.booleans(), st.sampled_from(["cosine", "linear", "constant"]))
def test_overrides_are_what_they_say(rate: float, steps: int, is_async: bool, scheduler: str) -> None:
    overrides = [
        f"train.learning_rate={rate!r}",
        f"train.max_steps={steps}",
        f"train.async_save={str(is_async).lower()}",
        f"train.lr_scheduler_type={scheduler}",
    ]
    train = load_recipe(RECIPES[0], overrides).train
    assert (train.learning_rate, train.max_steps, train.async_save, train.lr_scheduler_type) == (
        pytest.approx(rate),
        steps,
        is_async,
        scheduler,
    )


def test_overrides_reach_groups_that_the_file_leaves_out(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL), ["vision_tower.layers=[1, 3]", "train.max_train_minutes=0.5"])
    assert recipe.vision_tower.layers == (1, 3)
    assert recipe.train.max_train_minutes == 0.5


@pytest.mark.parametrize("override", ["train.max_steps", "=3", "output_dir.x=3", "train.max_steps=[", "seed"])
def test_a_broken_override_is_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(ValueError, match="override") as caught:
        load_recipe(write(tmp_path, MINIMAL), [override])
    assert repr(override) in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "train.max_steps=0",
        "train.max_steps=many",
        "train.learning_rate=-1",
        "objective.text_cond_dropout_prob=1.5",
        "vision_tower.layers=[3, 1]",
        "vision_tower.layers=[]",
        "data.sources=[]",
        "method=guess",
    ],
)
def test_a_wrong_value_names_its_key(tmp_path: Path, override: str) -> None:
    with pytest.raises(ValueError, match=override.split("=")[0].split(".")[-1]):
        load_recipe(write(tmp_path, MINIMAL), [override])


@pytest.mark.parametrize(
    ("text", "why"),
    [("a: [", "not valid YAML"), ("- 1", "mapping"), ("", "mapping"), ("output_dir: runs/x", "data")],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=why) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.yaml does not exist"):
        load_recipe(tmp_path / "nothing.yaml")


def test_settings_do_not_change_after_loading() -> None:
    recipe = build_recipe(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.max_steps = 3  # type: ignore[misc]


def test_overrides_reach_into_lists(tmp_path: Path) -> None:
    """One key sets the ratio of two sources."""
    settings = {**MINIMAL, "data": {"sources": [{"path": "a.jsonl"}, {"path": "b.jsonl"}]}}
    recipe = load_recipe(write(tmp_path, settings), ["data.sources.1.weight=2"])
    assert [source.weight for source in recipe.data.sources] == [1.0, 2.0]
    with pytest.raises(ValueError, match="'2' is none of the list's 2 entries"):
        load_recipe(write(tmp_path, settings), ["data.sources.2.weight=2"])


@pytest.mark.parametrize(
    ("method", "override", "said"),
    [
        ("vpit", "alignment={image_encoder: x, layer: 1}", "alignment is of method xfusion"),
        ("vpit", "image_input={image_encoder: x}", "image_input is of method xfusion"),
        ("vpit", "vision_tower.layers=[1]", r"vision_tower\.layers is of method xfusion; method vpit does not heed it"),
        ("vpit", "objective.ce_weight=0.5", r"objective\.ce_weight is of method xfusion;"),
        ("vpit", "image_size=128", "image_size is of method xfusion and pixel_decoder and autoencoder"),
        ("vpit", "sample.guidance_scale=2", r"sample\.guidance_scale is of method xfusion and pixel_decoder"),
        ("xfusion", "vpit.num_image_tokens=16", r"vpit\.num_image_tokens is of method vpit and pixel_decoder"),
        ("xfusion", "pixel_decoder_training.num_layers=2", r"pixel_decoder_training\.num_layers is of method pixel_d"),
        ("xfusion", "autoencoder_training.fold=4", r"autoencoder_training\.fold is of method autoencoder"),
        ("pixel_decoder", "language_model=x", "language_model is of method xfusion and vpit"),
        ("pixel_decoder", "objective.prediction=data", r"objective\.prediction is of method xfusion"),
        ("pixel_decoder", "sample.prompts=[Draw.]", r"sample\.prompts is of method xfusion and vpit"),
        ("autoencoder", "autoencoder=x", "autoencoder is of method xfusion and pixel_decoder"),
        ("autoencoder", "morph_dtype=bfloat16", "morph_dtype is of method xfusion"),
    ],
)
def test_a_setting_of_another_method_is_refused(tmp_path: Path, method: str, override: str, said: str) -> None:
    path = write(tmp_path, {**MINIMAL, "method": method})
    load_recipe(path)
    with pytest.raises(ValueError, match=said) as caught:
        load_recipe(path, [override])
    assert str(path) in str(caught.value)


def test_all_settings_of_other_methods_are_told_at_once(tmp_path: Path) -> None:
    settings = {**MINIMAL, "vpit": {"num_image_tokens": 16, "visual_weight": 2.0}, "autoencoder_training": {"fold": 4}}
    with pytest.raises(ValueError, match=r"vpit\.num_image_tokens .*vpit\.visual_weight .*autoencoder_training\.fold"):
        load_recipe(write(tmp_path, settings))
    settings = {**MINIMAL, "method": "vpit", "objective": {"ce_weight": 0.5}}
    with pytest.raises(ValueError, match="ce_weight") as caught:
        load_recipe(write(tmp_path, settings))
    assert str(caught.value).count("objective.ce_weight") == 1


def test_a_recipe_as_a_run_writes_it_is_read_again(tmp_path: Path) -> None:
    """It holds every setting of every method, as they are if nothing is said."""
    for path in RECIPES:
        recipe = load_recipe(path)
        assert load_recipe(write(tmp_path, recipe.model_dump(mode="json"))) == recipe


def test_every_setting_of_whom_it_is_said_is_there() -> None:
    assert set(HEEDED_BY) <= set(KEYS)


def test_a_recipe_that_would_learn_nothing_is_refused(tmp_path: Path) -> None:
    nothing = ["objective.ce_weight=0", "objective.flow_weight=0"]
    with pytest.raises(ValueError, match="no loss has weight"):
        load_recipe(write(tmp_path, MINIMAL), nothing)
    load_recipe(write(tmp_path, MINIMAL), [*nothing, "alignment.image_encoder=efficientnet-lite0"])
    with pytest.raises(ValueError, match="no loss has weight"):
        load_recipe(
            write(tmp_path, MINIMAL), [*nothing, "alignment.image_encoder=efficientnet-lite0", "alignment.weight=0"]
        )


def test_more_drawings_than_all_cannot_be_learnt_without_their_condition(tmp_path: Path) -> None:
    shares = ["objective.text_cond_dropout_prob=0.7", "objective.image_cond_dropout_prob=0.7"]
    with pytest.raises(ValueError, match="more than all of them"):
        load_recipe(write(tmp_path, MINIMAL), shares)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "autoencoder"}, "images of method autoencoder are all alike"),
        ({"data": {"sources": [{"path": "a.jsonl"}], "mixing": "batch"}}, "data.mixing batch keeps them apart"),
        ({"data": {"sources": [{"path": "a.jsonl"}], "max_length": 900}}, "data.max_length 900"),
    ],
)
def test_packing_that_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    base = {"output_dir": "runs/x", "data": {"sources": [{"path": "a.jsonl"}]}, "train": {"packing_length": 512}}
    build_recipe(base)
    with pytest.raises(ValueError, match=said):
        build_recipe(base | settings)


def test_guidance_that_a_tower_does_not_learn_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    """The words are those of `diptych generate --guidance-scale`."""
    path = write(tmp_path, MINIMAL | {"objective": {"text_cond_dropout_prob": 0}})
    for scale in (2, 3):
        with pytest.raises(ValueError, match=rf"sample.guidance_scale {scale} needs a model trained with .*set it"):
            load_recipe(path, [f"sample.guidance_scale={scale}"])
    unguided = load_recipe(path)
    assert unguided.sample.guidance_scale == load_recipe(path, ["sample.guidance_scale=1"]).sample.guidance_scale == 1
    assert load_recipe(write(tmp_path, unguided.model_dump(mode="json"))) == unguided
    assert load_recipe(write(tmp_path, MINIMAL)).sample.guidance_scale == 3


def test_a_grid_of_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL | {"train": {"sample_every": 5}})
    with pytest.raises(ValueError, match=r"recipe.yaml: train.sample_every 5 draws sample.prompts, and there are none"):
        load_recipe(path)
    load_recipe(path, ["sample.prompts=[Draw.]"])
    load_recipe(path, ["train.sample_every=null"])
    load_recipe(path, ["method=vpit"])  # which is measured then, too
