"""Strict, frozen, typed settings. One recipe is one complete run: YAML plus overrides; unknown keys are errors."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from diptych.data_settings import DataConfig
from diptych.key_aliases import translate_keys
from diptych.settings import (
    AlignmentConfig,
    AutoencoderTrainingConfig,
    ImageInputConfig,
    ObjectiveConfig,
    PixelDecoderConfig,
    SampleConfig,
    Settings,
    TrainConfig,
    VPiTConfig,
    check_guidance,
)
from diptych.tower_settings import VisionTowerConfig

HEEDED_BY: dict[str, tuple[str, ...]] = {
    "language_model": ("xfusion", "vpit"),
    "trust_remote_code": ("xfusion", "vpit"),
    "template": ("xfusion", "vpit"),
    "autoencoder": ("xfusion", "pixel_decoder"),
    "image_size": ("xfusion", "pixel_decoder", "autoencoder"),
    "morph_dtype": ("xfusion", "vpit", "pixel_decoder"),
    "vision_tower": ("xfusion",),
    "alignment": ("xfusion",),
    "image_input": ("xfusion",),
    "text_cache_gb": ("xfusion",),
    "objective": ("xfusion", "pixel_decoder"),
    **dict.fromkeys(
        (f"objective.{name}" for name in ObjectiveConfig.model_fields if not name.startswith("timestep_")), ("xfusion",)
    ),
    "vpit": ("vpit", "pixel_decoder"),
    "pixel_decoder_training": ("pixel_decoder",),
    "autoencoder_training": ("autoencoder",),
    "sample.prompts": ("xfusion", "vpit"),
    **dict.fromkeys(
        ("sample.guidance_scale", "sample.num_inference_steps", "sample.sampler"), ("xfusion", "pixel_decoder")
    ),
}
"""Methods that a setting, or a group of them, means something to; all others do to every method. A pixel decoder may
have the whole `vpit:` of the morph that it is for."""


class StageConfig(Settings):
    """A stage of a recipe: settings (`vpit`, `train`, `data` ...) that differ from the recipe's own."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    changes: dict[str, Any] = Field(default_factory=dict)


class Recipe(Settings):
    """Everything that one run needs, and nothing from anywhere else."""

    method: Literal["xfusion", "vpit", "pixel_decoder", "autoencoder"] = "xfusion"
    output_dir: str
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    language_model: str = "smollm2-135m-instruct"
    trust_remote_code: bool = False
    template: Literal["auto", "chatml", "plain"] = "auto"
    autoencoder: str = "emoji-tiny"
    autoencoder_training: AutoencoderTrainingConfig = AutoencoderTrainingConfig()
    image_size: int = Field(default=64, gt=0)
    morph_dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="how a morph is stored")
    cache_dir: str | None = None
    text_cache_gb: float = Field(
        default=20,
        ge=0,
        allow_inf_nan=False,
        description="gigabytes that frozen text states of a language model may take in cache_dir; what is more is "
        "computed anew for every batch. 0: all of it, and nothing is kept",
    )
    vision_tower: VisionTowerConfig = VisionTowerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    alignment: AlignmentConfig | None = Field(default=None, description="of xfusion; null: none")
    image_input: ImageInputConfig | None = Field(default=None, description="of xfusion; null: latents alone, as drawn")
    vpit: VPiTConfig = VPiTConfig()
    pixel_decoder_training: PixelDecoderConfig = PixelDecoderConfig()
    stages: tuple[StageConfig, ...] = Field(
        default=(), description="of vpit: run one after the other, each from the last one's morph"
    )
    data: DataConfig
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()

    @model_validator(mode="after")
    def _checkpoints_where_it_can(self) -> Recipe:
        if self.train.gradient_checkpointing and self.method in ("xfusion", "autoencoder"):
            raise ValueError(
                f"train.gradient_checkpointing is not there for method {self.method}; leave it out, or take a smaller "
                "per_device_train_batch_size with more gradient_accumulation_steps"
            )
        return self

    @model_validator(mode="after")
    def _packs_what_it_can(self) -> Recipe:
        if self.train.packing_length is None:
            return self
        if self.method not in ("xfusion", "vpit"):
            raise ValueError(
                f"train.packing_length packs conversations of unequal length; the images of method {self.method} are "
                "all alike: leave it out"
            )
        if self.data.mixing == "batch":
            raise ValueError(
                "train.packing_length fills a pack from all sources, and data.mixing batch keeps them apart; leave one "
                "out"
            )
        if self.data.max_length > self.train.packing_length and "max_length" in self.data.model_fields_set:
            raise ValueError(
                f"data.max_length {self.data.max_length} lets samples pass that no pack of train.packing_length "
                f"{self.train.packing_length} can hold; lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _features_are_clean(self) -> Recipe:
        if self.image_input is not None and self.objective.context_noise:
            raise ValueError(
                "objective.context_noise noises latents, but image_input's features stay clean; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _learns_something(self) -> Recipe:
        aligned = self.alignment is not None and self.alignment.weight > 0
        if self.method == "xfusion" and not (self.objective.ce_weight or self.objective.flow_weight or aligned):
            raise ValueError("no loss has weight: give objective.ce_weight or objective.flow_weight more than 0")
        return self


def load_recipe(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """Reads a YAML recipe and applies `key.sub=value` overrides (values are YAML). MetaMorph's names for settings of
    method vpit are translated, with a note on stderr (key_aliases.py).

    Raises ValueError that names the file and the key: a missing file, broken YAML, an unknown key (with the
    nearest known one), a value of the wrong type, a setting that the method does not heed, guidance that it does not
    learn, a grid of no prompts.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"recipe {path} does not exist; give the path of a YAML file, such as recipes/demo.yaml")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"recipe {path} must be a mapping of keys to values")
    for override in overrides:
        _apply_override(settings, override)
    try:
        settings, notes = translate_keys(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for text in notes:
        print(f"note: {text}", file=sys.stderr)
    recipe = build_recipe(settings, origin=str(path))
    check_heeded(recipe, origin=str(path))
    if recipe.method == "xfusion" and recipe.train.sample_every and not recipe.sample.prompts:
        raise ValueError(
            f"{path}: train.sample_every {recipe.train.sample_every} draws sample.prompts, and there are none; add "
            "some, or set train.sample_every to null"
        )
    return _settle_guidance(recipe, origin=str(path))


def _settle_guidance(recipe: Recipe, *, origin: str) -> Recipe:
    """Without guidance, written out, where a tower learns no drawing without its text. Raises ValueError where some was
    asked for all the same."""
    if recipe.method != "xfusion" or recipe.objective.text_cond_dropout_prob:
        return recipe
    if "guidance_scale" in recipe.sample.model_fields_set:
        name, needs = f"{origin}: sample.guidance_scale", "objective.text_cond_dropout_prob"
        check_guidance(name, recipe.sample.guidance_scale, is_trained=False, needs=needs)
    return recipe.model_copy(update={"sample": recipe.sample.model_copy(update={"guidance_scale": 1.0})})


def check_heeded(recipe: Recipe, *, origin: str = "recipe") -> None:
    """Raises ValueError for settings, all of them, that were changed and that the recipe's method does not heed.

    Of a recipe that is about to run: that of a morph holds every setting, as it was when the morph was trained.
    """
    others: dict[str, tuple[str, ...]] = {}
    for key, methods in HEEDED_BY.items():  # what is said of a setting comes after what is said of its group
        if recipe.method not in methods:
            others |= dict.fromkeys(_changed(recipe, key), methods)
    if others:
        said = "; ".join(f"{name} is of method {' and '.join(methods)}" for name, methods in others.items())
        them = "it" if len(others) == 1 else "them"
        raise ValueError(f"{origin}: {said}; method {recipe.method} does not heed {them}: leave {them} out")


def _changed(recipe: Recipe, key: str) -> list[str]:
    """Dotted names of a setting, or of those in a group, that are not as they are if nothing is said."""
    group, _, name = key.partition(".")
    default = Recipe.model_fields[group].get_default()
    own = getattr(recipe, group)
    if not isinstance(default, Settings):
        return [group] if own != default else []
    names = [name] if name else type(default).model_fields
    return [f"{group}.{name}" for name in names if getattr(own, name) != getattr(default, name)]


def build_recipe(settings: dict[str, Any], *, origin: str = "recipe") -> Recipe:
    """Validates settings; see `load_recipe` for the errors."""
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        raise ValueError(_explain(error, origin)) from None


def _apply_override(settings: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r} is not key=value, such as train.max_steps=100")
    target: Any = settings
    *parents, last = key.split(".")
    for parent in parents:
        child = target[_place(target, parent, override)] if isinstance(target, list) else target.setdefault(parent, {})
        if not isinstance(child, (dict, list)):
            raise ValueError(f"override {override!r}: {parent!r} is a value, not a group of keys")
        target = child
    try:
        target[_place(target, last, override) if isinstance(target, list) else last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML: {error}") from error


def _place(items: list[Any], part: str, override: str) -> int:
    """The number of an entry of a list, as in data.sources.0.weight."""
    if not part.isdecimal() or int(part) >= len(items):
        raise ValueError(f"override {override!r}: {part!r} is none of the list's {len(items)} entries, counted from 0")
    return int(part)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        candidates = [annotation, *arguments]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)


def _keys_named(name: str) -> list[str]:
    """Dotted names of the settings that are called `name`: of the recipe itself, else of any group, or nearly so."""
    if name in Recipe.model_fields:
        return [name]
    groups = {
        key: list(field.annotation.model_fields)
        for key, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    nearest = difflib.get_close_matches(name, {key for keys in groups.values() for key in keys}, n=1)
    return [f"{group}.{nearest[0]}" for group, keys in groups.items() if nearest and nearest[0] in keys]


def _explain(error: ValidationError, origin: str) -> str:
    lines = []
    for problem in error.errors():
        location = problem["loc"]
        name = ".".join(str(part) for part in location) or "recipe"
        if problem["type"] == "extra_forbidden":
            known = _known_keys(location[:-1])
            group = "".join(f"{part}." for part in location[:-1])
            near = [group + key for key in difflib.get_close_matches(str(location[-1]), known, n=1)]
            meant = near or _keys_named(str(location[-1]))
            hint = f"did you mean {meant[0]!r}?" if meant else f"known keys: {', '.join(known)}"
            lines.append(f"unknown key {name!r}; {hint}")
        else:
            value = problem["input"]
            got = f", got {value!r}" if isinstance(value, str | int | float | bool | None) and location else ""
            lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}{got}")
    return f"{origin}: " + "; ".join(lines)
