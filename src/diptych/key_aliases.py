"""Names of MetaMorph's own settings (and LLaVA's, from which they come), accepted in a VPiT recipe for ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KeyAlias:
    """`key`: ours, with dots. `translate`: their value to ours; raises ValueError for one that has no counterpart."""

    key: str
    translate: Callable[[Any], Any] = lambda value: value


def _reduction(value: Any) -> None:
    if value not in ("interpolation", "interpolate", "bilinear"):
        raise ValueError(f"image_token_reduction {value!r} is not known; tokens are reduced by interpolation")


def _boundary_tokens(value: Any) -> None:
    if value is not True:
        raise ValueError("mm_use_im_start_end: images always stand between boundary tokens here; leave it out")


def _layer(value: Any) -> Any:
    if not isinstance(value, int):
        raise ValueError(f"mm_vision_select_layer must be a whole number, got {value!r}")
    return value


def _connector_alone(value: Any) -> tuple[str, ...]:
    if value is True:
        return ("connector", "boundary_tokens")
    return ("connector", "visual_head", "boundary_tokens", "language_model")


ALIASES: dict[str, KeyAlias] = {
    "vision_coef": KeyAlias("vpit.visual_weight"),
    "num_image_tokens": KeyAlias("vpit.num_image_tokens"),
    "image_token_reduction": KeyAlias("", _reduction),
    "mm_projector_type": KeyAlias("vpit.connector"),
    "mm_projector_lr": KeyAlias("train.learning_rates.connector"),
    "mm_vision_select_layer": KeyAlias("vpit.encoder_layer", _layer),
    "mm_vision_tower": KeyAlias("vpit.image_encoder"),
    "vision_tower": KeyAlias("vpit.image_encoder"),
    "tune_mm_mlp_adapter": KeyAlias("vpit.train_parts", _connector_alone),
    "pretrain_mm_mlp_adapter": KeyAlias("vpit.init_from"),
    "model_name_or_path": KeyAlias("language_model"),
    "model_max_length": KeyAlias("data.max_length"),
    "lora_enable": KeyAlias("vpit.lora", lambda value: {} if value else None),
    "lora_r": KeyAlias("vpit.lora.r"),
    "lora_alpha": KeyAlias("vpit.lora.lora_alpha"),
    "lora_dropout": KeyAlias("vpit.lora.lora_dropout"),
    "mm_use_im_start_end": KeyAlias("", _boundary_tokens),
    "data_path": KeyAlias("data.sources", lambda path: [{"path": path}]),
    "bf16": KeyAlias("dtype", lambda value: "bfloat16" if value else "float32"),
    "save_steps": KeyAlias("train.save_every"),
    **{
        name: KeyAlias(f"train.{name}")
        for name in (
            "learning_rate",
            "lr_scheduler_type",
            "warmup_ratio",
            "weight_decay",
            "max_grad_norm",
            "max_steps",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "gradient_checkpointing",
            "logging_steps",
            "save_total_limit",
        )
    },
}


def translate_keys(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings in our names, and a note for each one that was translated; also in what stages change. Of methods other
    than vpit and pixel_decoder: as they are.

    Raises ValueError for a setting given under both names, and for a value that has no counterpart.
    """
    if settings.get("method") not in ("vpit", "pixel_decoder"):
        return settings, []
    translated, notes = _translate(settings)
    stages = translated.get("stages")
    for stage in stages if isinstance(stages, list) else ():
        if isinstance(stage, dict) and isinstance(stage.get("changes"), dict):
            stage["changes"], more = _translate(stage["changes"])
            notes += more
    return translated, notes


def _translate(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    notes: list[str] = []
    # `vision_tower` is a group of X-Fusion's settings here; theirs is the name of an encoder.
    theirs = {name: alias for name, alias in ALIASES.items() if not isinstance(settings.get(name, {}), dict)}
    translated = {key: _copy(value) for key, value in settings.items() if key not in theirs}
    for name, alias in theirs.items():
        value = alias.translate(settings[name])
        if not alias.key:
            notes.append(f"{name}: {settings[name]} is how it is always done")
            continue
        _put(translated, alias.key, value, theirs=name)
        notes.append(f"{name} is {alias.key} here, set to {value if not isinstance(value, tuple) else list(value)}")
    return translated, notes


def _put(settings: dict[str, Any], key: str, value: Any, *, theirs: str) -> None:
    *parents, last = key.split(".")
    group = settings
    for parent in parents:
        group = group.setdefault(parent, {})
        if not isinstance(group, dict):
            raise ValueError(f"{theirs} is {key} here, but {parent} is a value, not a group of keys")
    if isinstance(value, dict) and isinstance(group.get(last), dict):
        value |= group.pop(last)
    if last in group:
        raise ValueError(f"{theirs} is {key} here, and both are given; leave one out")
    group[last] = value


def _copy(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_copy(own) for own in value]
    return {key: _copy(own) for key, own in value.items()} if isinstance(value, dict) else value
