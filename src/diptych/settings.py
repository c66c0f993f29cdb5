"""The groups of a recipe's settings: strict, frozen, typed. What each means and which of them go together."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Settings(BaseModel):
    """Base of every settings object: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectiveConfig(Settings):
    """L = ce_weight * CE + flow_weight * |prediction - target|^2 (X-Fusion section 3, loss)."""

    ce_weight: float = Field(default=0.2, ge=0)
    flow_weight: float = Field(default=1.0, ge=0)
    timestep_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    timestep_shift: float = Field(default=1.0, gt=0)
    schedule: Literal["flow", "ddpm_cosine", "ddpm_linear"] = "flow"
    prediction: Literal["velocity", "epsilon", "data"] = Field(
        default="velocity", description="what the vision tower predicts of a noised image"
    )
    context_noise: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="latest time that an image that is read is noised to in training; 0 (clean) is the paper's best",
    )
    text_cond_dropout_prob: float = Field(default=0.1, ge=0, le=1)
    image_cond_dropout_prob: float = Field(
        default=0.0, ge=0, le=1, description="share of drawings learnt without text and without the request's images"
    )

    @model_validator(mode="after")
    def _leaves_something(self) -> ObjectiveConfig:
        if self.text_cond_dropout_prob + self.image_cond_dropout_prob > 1:
            raise ValueError(
                "objective.text_cond_dropout_prob and image_cond_dropout_prob are shares of the same drawings: "
                f"{self.text_cond_dropout_prob} and {self.image_cond_dropout_prob} are more than all of them"
            )
        return self


class AlignmentConfig(Settings):
    """What the vision tower makes of an image at a middle layer is drawn to an image encoder's features (X-Fusion,
    alignment; REPA, arXiv 2410.06940): weight * (1 - cos), for images that are read and, noised, for those drawn."""

    image_encoder: str
    encoder_layer: int | None = Field(default=None, description="as vpit.encoder_layer")
    encoder_image_size: int | None = Field(default=None, gt=0)
    layer: int = Field(
        default=8,
        ge=0,
        description="the output of the vision block beside this language-model layer, counted from 0, is aligned",
    )
    weight: float = Field(default=0.5, ge=0, description="0: a control of the same cost, drawn to nothing")
    projector: Literal["linear", "mlp3"] = "linear"


class ImageInputConfig(Settings):
    """Images that are read enter the vision tower as an image encoder's features, in place of latents or with them;
    drawn ones stay latents (X-Fusion section 3, tokens)."""

    image_encoder: str = "vit-s14-focus"
    encoder_layer: int | None = Field(default=None, description="as vpit.encoder_layer")
    encoder_image_size: int | None = Field(default=None, gt=0)
    with_latents: bool = Field(
        default=False,
        description="features are added to the patches of the latents: what things are beside how they look; from a "
        "weight of zero on, so that a morph that reads latents alone can be the start (vision_tower.init_from)",
    )


class SampleConfig(Settings):
    """The fixed grid drawn every `sample_every` steps, and the defaults of `diptych generate`."""

    prompts: tuple[str, ...] = Field(default=(), description="of the grid; drawn only where train.sample_every is set")
    guidance_scale: float = Field(
        default=3.0, description="of images to their text; 1, no guidance, where none is drawn without text in training"
    )
    num_inference_steps: int = Field(default=30, gt=0)
    sampler: Literal["euler", "heun"] = "euler"
    seed: int = 0


class TrainConfig(Settings):
    """Names follow Hugging Face's TrainingArguments."""

    learning_rate: float = Field(default=1e-4, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    per_device_train_batch_size: int = Field(default=32, gt=0)
    packing_length: int | None = Field(
        default=None,
        gt=0,
        description="tokens of a micro-batch: samples of unequal length fill it, best fit, in place of "
        "per_device_train_batch_size of them",
    )
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
    """The project's own autoencoder: pixels folded into channels, then convolutions."""

    fold: int = Field(default=8, gt=1)
    channels: int = Field(default=96, gt=0)
    decoder_channels: int | None = Field(default=None, gt=0, description="null: those of the encoder")
    latent_channels: int = Field(default=16, gt=0)
    num_decoder_blocks: tuple[int, ...] = Field(
        default=(3,), min_length=1, description="by stage; each stage after the first has twice the resolution"
    )
    encoder_from: str | None = Field(
        default=None, description="autoencoder whose encoder stays as it is: its latents mean the same, decoded better"
    )
    latent_noise: float = Field(
        default=0.3, ge=0, description="largest standard deviation of the noise that the decoder forgives"
    )

    @field_validator("num_decoder_blocks", mode="before")
    @classmethod
    def _of_one_stage(cls, value: object) -> object:
        """A plain number is of one stage."""
        return (value,) if isinstance(value, int) else value


class LoraConfig(Settings):
    """Low-rank adapters on the language model (peft) instead of training all of it."""

    r: int = Field(default=16, gt=0)
    lora_alpha: float = Field(default=32.0, gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"


VPiTPart = Literal["connector", "visual_head", "boundary_tokens", "boundary_embeddings", "language_model"]
"""boundary_tokens: both tokens' rows of the embedding and of the LM head; boundary_embeddings: the embedding's alone
(one row is both where the language model ties the two matrices)."""


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
        description="exactly these are trained; the paper's stage 1: connector and boundary_embeddings",
    )
    first_trained_layer: int = Field(
        default=0,
        ge=0,
        description="above 0: the language model's layers before it, and its embedding, stay as they are",
    )
    cached_forms: int = Field(
        default=0,
        ge=0,
        description="above 0: states before first_trained_layer are computed once and kept (4 GB of them at most), for "
        "this many forms of each sample (what visual_input_dropout and the like made of it); the connector is then not "
        "trained",
    )
    lora: LoraConfig | None = Field(default=None, description="train adapters in place of the language model's weights")
    init_from: str | None = Field(default=None, description="morph to start from, such as that of stage 1")
    ce_weight: float = Field(default=1.0, ge=0)
    visual_weight: float = Field(default=1.0, ge=0)
    text_cond_dropout_prob: float = Field(
        default=0.0, ge=0, le=1, description="share of drawings learnt without their text, for visual_guidance_scale"
    )
    visual_loss: Literal["cosine", "l1", "smooth_l1", "infonce"] = Field(
        default="cosine",
        description="infonce takes its negatives from the micro-batch alone: gradient_accumulation_steps changes it, "
        "and equal images in it are negatives of each other",
    )
    visual_temperature: float = Field(default=0.07, gt=0, description="of infonce")
    visual_input_dropout: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of a target's visual tokens not shown as inputs, against copying; as many are then not fed "
        "back in generation (of 16 at 0.9: two are), nor shown of what an answer drew before",
    )
    visual_input_noise: float = Field(
        default=0.0, ge=0, description="standard deviation, over the feature's norm, of noise on a target's inputs"
    )
    pixel_decoder: str | None = Field(default=None, description="folder or id of a trained pixel decoder")

    @model_validator(mode="after")
    def _fits(self) -> VPiTConfig:
        if math.isqrt(self.num_image_tokens) ** 2 != self.num_image_tokens:
            raise ValueError(f"vpit.num_image_tokens must be a square such as 16 or 64, got {self.num_image_tokens}")
        if {"boundary_tokens", "boundary_embeddings"} <= set(self.train_parts):
            raise ValueError(
                "vpit.train_parts names boundary_tokens (the two tokens' rows of the embedding and of the LM head) and "
                "boundary_embeddings (those of the embedding alone); leave one out"
            )
        if self.lora is not None and "language_model" not in self.train_parts and self.init_from is None:
            raise ValueError(
                "vpit.lora trains adapters on the language model; add language_model to vpit.train_parts (or name with "
                "vpit.init_from the morph whose adapters stay as they are)"
            )
        if self.first_trained_layer and (self.lora is not None or "language_model" not in self.train_parts):
            raise ValueError(
                "vpit.first_trained_layer chooses among the language model's own layers: it needs language_model in "
                "vpit.train_parts, and no vpit.lora"
            )
        if self.cached_forms and (not self.first_trained_layer or "connector" in self.train_parts):
            raise ValueError(
                "vpit.cached_forms keeps what no trained weight can change: it needs vpit.first_trained_layer above 0, "
                "and no connector in vpit.train_parts"
            )
        if self.cached_forms and "boundary_embeddings" in self.train_parts:
            raise ValueError(
                "vpit.cached_forms keeps the embeddings of the boundary tokens as they are; in vpit.train_parts name "
                "boundary_tokens (then their rows of the LM head are trained) in place of boundary_embeddings"
            )
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
    condition_noise: float = Field(
        default=0.0,
        ge=0,
        description="visual tokens are learnt with noise of up to this standard deviation, over their norm: those that "
        "a language model predicts are not exact either",
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


def check_guidance(name: str, scale: float, *, is_trained: bool, needs: str) -> None:
    """Raises ValueError for a guidance scale that is no number, or other than 1 where nothing was learnt without its
    condition. `needs`: the setting that would have been above 0 in training."""
    if not math.isfinite(scale):
        raise ValueError(f"{name} must be a number, got {scale}")
    if scale != 1.0 and not is_trained:
        raise ValueError(
            f"{name} {scale:g} needs a model trained with {needs} above 0; this one knows no image without its "
            "condition: set it to 1"
        )
