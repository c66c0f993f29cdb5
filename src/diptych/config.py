"""Strict, frozen, typed settings. One recipe is one complete run: YAML plus overrides; unknown keys are errors."""

from __future__ import annotations

import difflib
import math
import sys
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from diptych.key_aliases import translate_keys


class Settings(BaseModel):
    """Base of every settings object: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class VisionTowerConfig(Settings):
    """The trained tower (X-Fusion section 3). Widths left out are the language model's own: a symmetric tower."""

    layer_design: Literal["dual"] = "dual"
    layers: tuple[int, ...] | None = Field(
        default=None,
        description="language-model layers that the vision blocks stand beside, ascending; null: every layer",
    )
    hidden_size: int | None = Field(default=None, gt=0)
    intermediate_size: int | None = Field(default=None, gt=0)
    num_attention_heads: int | None = Field(default=None, gt=0)
    num_key_value_heads: int | None = Field(default=None, gt=0)
    patch_size: int = Field(default=2, gt=0)
    time_conditioning: Literal["add", "adaln"] = "add"
    text_pooling: bool = Field(
        default=False, description="add the pooled text before a target image to its time embedding"
    )
    boundary_tokens: bool = Field(default=True, description="learned [BOI] and [EOI] positions around each image")


class ObjectiveConfig(Settings):
    """L = ce_weight * CE + flow_weight * |velocity - target|^2 (X-Fusion section 3, loss)."""

    ce_weight: float = Field(default=0.2, ge=0)
    flow_weight: float = Field(default=1.0, ge=0)
    timestep_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    timestep_shift: float = Field(default=1.0, gt=0)
    text_cond_dropout_prob: float = Field(default=0.1, ge=0, le=1)


class SourceConfig(Settings):
    """One source of samples: a JSONL file of canonical samples, and how many of it per round of the mixture."""

    path: str
    weight: int = Field(default=1, gt=0)


class DataConfig(Settings):
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    mixing: Literal["sample", "batch"] = Field(
        default="sample",
        description="what is of one source: a sample, or a whole micro-batch. Batches that only draw, or only read, "
        "cost less: every batch that reads runs the text tower under gradients",
    )
    max_length: int = Field(default=2048, gt=0)
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)


class SampleConfig(Settings):
    """The fixed grid drawn every `sample_every` steps, and the defaults of `diptych generate`."""

    prompts: tuple[str, ...] = ()
    guidance_scale: float = 3.0
    num_inference_steps: int = Field(default=30, gt=0)
    sampler: Literal["euler", "heun"] = "euler"
    seed: int = 0


class TrainConfig(Settings):
    """Names follow Hugging Face's TrainingArguments."""

    learning_rate: float = Field(default=1e-4, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    per_device_train_batch_size: int = Field(default=32, gt=0)
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    gradient_checkpointing: bool = Field(default=False, description="recompute activations in backward: less memory")
    learning_rates: dict[str, float] = Field(
        default_factory=dict,
        description="rates that differ, by the beginning of parameter names, such as connector: 1e-3",
    )
    max_steps: int = Field(default=1000, gt=0)
    max_train_minutes: float | None = Field(
        default=None, gt=0, description="end (and decay the learning rate) by the clock as well; resumed time counts on"
    )
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1, description="decay of the averaged weights; 0: none")
    logging_steps: int = Field(default=10, gt=0)
    save_every: int = Field(default=500, gt=0)
    save_total_limit: int = Field(default=2, gt=0)
    sample_every: int | None = Field(default=None, gt=0)
    resume_from_checkpoint: str | None = Field(default=None, description="latest, or a checkpoint folder")
    async_save: bool = True
    max_skipped_steps: int = Field(
        default=0,
        ge=0,
        description="steps with a loss or gradient that is not finite that may be skipped before the run stops",
    )


class AutoencoderTrainingConfig(Settings):
    """The project's own autoencoder: pixels folded into channels, convolutions at latent resolution."""

    fold: int = Field(default=8, gt=1)
    channels: int = Field(default=96, gt=0)
    latent_channels: int = Field(default=16, gt=0)
    num_decoder_blocks: int = Field(default=3, ge=0)
    latent_noise: float = Field(
        default=0.3, ge=0, description="largest standard deviation of the noise that the decoder forgives"
    )


class LoraConfig(Settings):
    """Low-rank adapters on the language model (peft) instead of training all of it."""

    r: int = Field(default=16, gt=0)
    lora_alpha: float = Field(default=32.0, gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"


VPiTPart = Literal["connector", "visual_head", "boundary_tokens", "language_model"]


class VPiTConfig(Settings):
    """Visual-Predictive Instruction Tuning (MetaMorph). Loss: ce_weight * CE + visual_weight * visual_loss."""

    image_encoder: str = "vit-s14-focus"
    encoder_layer: int | None = Field(default=None, description="state after this many layers; null: the encoder's own")
    encoder_image_size: int | None = Field(
        default=None, gt=0, description="pixels that the encoder sees; null: its own"
    )
    num_image_tokens: int = Field(default=64, gt=0, description="a square; features are interpolated to this grid")
    connector: Literal["mlp2x_gelu", "linear"] = "mlp2x_gelu"
    image_start: str = "<image_start>"
    image_end: str = "<image_end>"
    train_parts: tuple[VPiTPart, ...] = Field(
        default=("connector", "visual_head", "boundary_tokens", "language_model"),
        min_length=1,
        description="exactly these are trained; the paper's stage 1: connector and boundary_tokens",
    )
    lora: LoraConfig | None = Field(default=None, description="train adapters in place of the language model's weights")
    init_from: str | None = Field(default=None, description="morph to start from, such as that of stage 1")
    ce_weight: float = Field(default=1.0, ge=0)
    visual_weight: float = Field(default=1.0, ge=0)
    text_cond_dropout_prob: float = Field(
        default=0.0, ge=0, le=1, description="share of drawings learnt without their text, for visual_guidance_scale"
    )
    visual_loss: Literal["cosine", "l1", "smooth_l1", "infonce"] = "cosine"
    visual_temperature: float = Field(default=0.07, gt=0, description="of infonce")
    visual_input_dropout: float = Field(
        default=0.0, ge=0, le=1, description="share of a target's visual tokens not shown as inputs, against copying"
    )
    visual_input_noise: float = Field(
        default=0.0, ge=0, description="standard deviation, over the feature's norm, of noise on a target's inputs"
    )
    pixel_decoder: str | None = Field(default=None, description="folder or id of a trained pixel decoder")

    @model_validator(mode="after")
    def _fits(self) -> VPiTConfig:
        if math.isqrt(self.num_image_tokens) ** 2 != self.num_image_tokens:
            raise ValueError(f"vpit.num_image_tokens must be a square such as 16 or 64, got {self.num_image_tokens}")
        if self.lora is not None and "language_model" not in self.train_parts:
            raise ValueError("vpit.lora trains adapters on the language model; add language_model to vpit.train_parts")
        return self


class PixelDecoderConfig(Settings):
    """Visual tokens to pixels, trained on images alone. `vpit:` says which visual tokens (encoder, layer, grid).

    flow: a small transformer in the latents of `autoencoder:`, from nothing; `objective:` says how it samples times.
    stable_diffusion: MetaMorph's, a pretrained UNet in the latents of its own VAE, behind a new projector.
    """

    kind: Literal["flow", "stable_diffusion"] = "flow"
    condition_dropout_prob: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of images learnt without their visual tokens, for sample.guidance_scale; "
        "null: the kind's own, flow 0.1, stable_diffusion the paper's 0.7",
    )
    hidden_size: int = Field(default=256, gt=0, description="of flow, as the next three")
    num_layers: int = Field(default=8, gt=0)
    num_attention_heads: int = Field(default=4, gt=0)
    patch_size: int = Field(default=2, gt=0)
    base: str = Field(
        default="stable-diffusion-v1-5/stable-diffusion-v1-5",
        description="of stable_diffusion: folder or id with unet, vae and scheduler",
    )
    projector_hidden: int = Field(default=2048, gt=0, description="of stable_diffusion: width inside the projector")

    @property
    def dropout_prob(self) -> float:
        """condition_dropout_prob, or the kind's own."""
        if self.condition_dropout_prob is not None:
            return self.condition_dropout_prob
        return 0.7 if self.kind == "stable_diffusion" else 0.1


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
    vision_tower: VisionTowerConfig = VisionTowerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
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
    def _layers_ascend(self) -> Recipe:
        layers = self.vision_tower.layers
        if layers is not None and (not layers or list(layers) != sorted(set(layers)) or layers[0] < 0):
            raise ValueError(f"vision_tower.layers must ascend without repeats, got {list(layers)}")
        return self


def load_recipe(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """Reads a YAML recipe and applies `key.sub=value` overrides (values are YAML). MetaMorph's names for settings of
    method vpit are translated, with a note on stderr (key_aliases.py).

    Raises ValueError that names the file and the key: a missing file, broken YAML, an unknown key (with the
    nearest known one), a value of the wrong type.
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
    return build_recipe(settings, origin=str(path))


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
    target = settings
    *parents, last = key.split(".")
    for parent in parents:
        child = target.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ValueError(f"override {override!r}: {parent!r} is a value, not a group of keys")
        target = child
    try:
        target[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML: {error}") from error


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
    """Dotted names of the settings of any group that are called `name`, or nearly so."""
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
