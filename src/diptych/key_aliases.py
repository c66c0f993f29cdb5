"""Names of MetaMorph's own settings (and LLaVA's, from which they come), accepted in a VPiT recipe for ours.

Every key of its launch scripts (scripts/*.sh) and of its train.py is translated, with a note of what it became, or
refused with what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Given = dict[str, Any]
Reader = Callable[[str, Any], Any]
"""(their name, their value) to our value; raises ValueError for a value of the wrong type or without counterpart."""


@dataclass(frozen=True)
class KeyAlias:
    """`key`: ours, with dots. `is_optional`: null is their default, and says nothing."""

    key: str
    read: Reader
    is_optional: bool = False


@dataclass(frozen=True)
class FixedKey:
    """A setting that is no choice here: `values` are how it is always done; `else_` says what to do about others."""

    values: tuple[Any, ...]
    else_: str


@dataclass(frozen=True)
class KeyGroup:
    """Keys that mean something together. `join` takes those given here, those that the recipe gives where these are of
    a stage's changes, and all settings of the two; it gives our key and its value, or a note in place of them."""

    readers: dict[str, Reader]
    join: Callable[[Given, Given, tuple[Given, Given]], tuple[str, Any] | str]


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    """YAML reads 2e-5, without a point, as text."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}")
    return value


def _path(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)


def _dtype(name: str, value: Any) -> str:
    return "bfloat16" if _boolean(name, value) else "float32"


SIGLIP = "google/siglip-so400m-patch14-384"
ENCODERS = {"siglip/CLIP-ViT-SO400M-14-384": SIGLIP, "timm/ViT-SO400M-14-SigLIP-384": SIGLIP}
"""What their code loads under names of its own."""


def _encoder(name: str, value: Any) -> str:
    own = _text(name, value)
    return ENCODERS.get(own, own)


def _earlier_morph(name: str, value: Any) -> str:
    if _text(name, value).endswith(".bin"):
        raise ValueError(f"{name}: weights of their own cannot be read; give the morph that a first stage wrote here")
    return value


def _template(name: str, value: Any) -> str:
    if _text(name, value) != "llama3":
        raise ValueError(f"{name} {value!r} is not known here; leave it out and set template: auto, chatml or plain")
    return "auto"


def _connector_alone(name: str, value: Any) -> tuple[str, ...]:
    """Their code trains the embeddings with the connector, and holds the LM head."""
    if _boolean(name, value):
        return ("connector", "boundary_embeddings")
    return ("connector", "visual_head", "boundary_tokens", "language_model")


def _visual_weight(own: Given, before: Given, places: tuple[Given, Given]) -> tuple[str, Any] | str:
    del places
    whole = before | own
    if not whole.get("use_vision_ar", True):
        return "vpit.visual_weight", 0.0
    if "vision_coef" not in whole and "use_vision_ar" not in before:
        return "use_vision_ar: True is how it is always done"
    return "vpit.visual_weight", whole.get("vision_coef", 1.0)


LORA = {"lora_r": ("r", 64), "lora_alpha": ("lora_alpha", 16.0), "lora_dropout": ("lora_dropout", 0.05)}
"""Their names of an adapter's settings: ours, and their defaults."""


def _lora(own: Given, before: Given, places: tuple[Given, Given]) -> tuple[str, Any] | str:
    """Without lora_enable there are no adapters, whatever else is said of them; with it, their defaults hold."""
    whole = before | own
    if not whole.get("lora_enable", False):
        if "lora_enable" in own:
            return "vpit.lora", None
        if _find(places, "vpit.lora") is not None:
            raise ValueError(f"{_listed(own)} and vpit.lora both speak of adapters; leave one out")
        return f"{_listed(own)}: without lora_enable: true there are no adapters, as there"
    named = LORA if "lora_enable" in own else own
    return "vpit.lora", {LORA[name][0]: whole.get(name, LORA[name][1]) for name in named}


def _sources(own: Given, before: Given, places: tuple[Given, Given]) -> tuple[str, Any] | str:
    del places
    whole = {name: value for name, value in (before | own).items() if value is not None}
    if not whole:
        return f"{_listed(own)}: null says nothing, as there"
    if "data_path" not in whole:
        raise ValueError("image_folder goes with data_path; in data.sources give each entry an image_root instead")
    folder = {"image_root": whole["image_folder"]} if "image_folder" in whole else {}
    return "data.sources", [{"path": whole["data_path"], **folder}]


def _epochs(own: Given, before: Given, places: tuple[Given, Given]) -> tuple[str, Any] | str:
    del own, before
    if _find(places, "max_steps") is None and _find(places, "train.max_steps") is None:
        raise ValueError(
            "num_train_epochs: a run is as long as train.max_steps says; set that to epochs x samples / "
            "(per_device_train_batch_size x gradient_accumulation_steps x processes), and leave num_train_epochs out"
        )
    return "num_train_epochs: train.max_steps says how long a run is, as there where both are given"


ALIASES: dict[str, KeyAlias] = {
    "num_image_tokens": KeyAlias("vpit.num_image_tokens", _whole),
    "mm_projector_type": KeyAlias("vpit.connector", _text),
    "mm_projector_lr": KeyAlias("train.learning_rates.connector", _number, is_optional=True),
    "mm_vision_select_layer": KeyAlias("vpit.encoder_layer", _whole),
    "mm_vision_tower": KeyAlias("vpit.image_encoder", _encoder, is_optional=True),
    "vision_tower": KeyAlias("vpit.image_encoder", _encoder, is_optional=True),
    "tune_mm_mlp_adapter": KeyAlias("vpit.train_parts", _connector_alone),
    "pretrain_mm_mlp_adapter": KeyAlias("vpit.init_from", _earlier_morph, is_optional=True),
    "model_name_or_path": KeyAlias("language_model", _text),
    "model_max_length": KeyAlias("data.max_length", _whole),
    "version": KeyAlias("template", _template),
    "bf16": KeyAlias("dtype", _dtype),
    "save_steps": KeyAlias("train.save_every", _whole),
    "gradient_checkpointing": KeyAlias("train.gradient_checkpointing", _boolean),
    "lr_scheduler_type": KeyAlias("train.lr_scheduler_type", _text),
    **{
        name: KeyAlias(f"train.{name}", _number)
        for name in (
            "learning_rate",
            "warmup_ratio",
            "weight_decay",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "max_grad_norm",
        )
    },
    **{
        name: KeyAlias(f"train.{name}", _whole)
        for name in (
            "max_steps",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "save_total_limit",
        )
    },
}

GROUPS = (
    KeyGroup({"vision_coef": _number, "use_vision_ar": _boolean}, _visual_weight),
    KeyGroup({"lora_enable": _boolean, "lora_r": _whole, "lora_alpha": _number, "lora_dropout": _number}, _lora),
    KeyGroup({"data_path": _path, "image_folder": _path}, _sources),
    KeyGroup({"num_train_epochs": _number}, _epochs),
)

FIXED: dict[str, FixedKey] = {
    "image_token_reduction": FixedKey(
        ("interpolation", "interpolate", "bilinear"), "tokens are reduced by interpolation; leave it out"
    ),
    "mm_use_im_start_end": FixedKey((True,), "images always stand between boundary tokens here; leave it out"),
    "mm_use_im_patch_token": FixedKey((False,), "no word of the vocabulary stands for a visual token; leave it out"),
    "mm_vision_select_feature": FixedKey(("patch",), "visual tokens are features of patches alone; leave it out"),
    "mm_patch_merge_type": FixedKey(("flat",), "an image is one grid of visual tokens; leave it out"),
    "image_aspect_ratio": FixedKey(
        ("square",), "an image becomes a square as its encoder's own processor has it; leave it out"
    ),
    "vision_head_type": FixedKey(
        ("mlp",), "the visual head is two linear layers, GELU between, as in the paper; set it to mlp or leave it out"
    ),
    "normalize_vision": FixedKey((True,), "visual tokens always have length 1 here; leave it out"),
    "apply_softmax": FixedKey((False,), "visual tokens are features, not probabilities; leave it out"),
    "freeze_vision": FixedKey((True,), "the image encoder is always frozen here; leave it out"),
    "freeze_backbone": FixedKey((False,), "leave language_model out of vpit.train_parts instead"),
    "freeze_mm_mlp_adapter": FixedKey((False,), "leave connector out of vpit.train_parts instead"),
    "lora_bias": FixedKey(("none",), "adapters train no biases; leave it out"),
    "lora_weight_path": FixedKey(("", None), "name with vpit.init_from the morph that has the adapters instead"),
    "bits": FixedKey((16,), "weights are not quantised here; leave it out"),
    "fp16": FixedKey((False,), "there is no float16 training here; set bf16: true (dtype: bfloat16) instead"),
    "tf32": FixedKey((False, None), "matrix products are not rounded to TF32; leave it out"),
    "optim": FixedKey(("adamw_torch", "adamw_torch_fused"), "the optimiser is AdamW; leave it out"),
    "group_by_modality_length": FixedKey((False,), "set data.mixing: batch, or train.packing_length, instead"),
    "evaluation_strategy": FixedKey(("no", False), "train.sample_every says when a run is measured; leave it out"),
    "eval_strategy": FixedKey(("no", False), "train.sample_every says when a run is measured; leave it out"),
    "save_strategy": FixedKey(("steps",), "checkpoints are written every train.save_every steps; leave it out"),
    "report_to": FixedKey(
        ("none", None), "a run writes log.jsonl into its output_dir, and reports to nobody; leave it out"
    ),
}

IDLE: dict[str, str] = {
    "deepspeed": "under torchrun a model is sharded by FSDP2",
    "run_name": "a run is named by its output_dir",
    "per_device_eval_batch_size": "a run is measured in batches of its own",
    "dataloader_num_workers": "samples are prepared while the step before runs",
    "lazy_preprocess": "samples are always read as they are drawn",
    "remove_unused_columns": "of a record only what is known is read",
    "is_multimodal": "it always is",
    "vision_lr": "the image encoder is always frozen",
    "double_quant": "weights are not quantised",
    "quant_type": "weights are not quantised",
    "mpt_attn_impl": "the language model has its own attention",
}
"""Keys that change nothing of what is learnt: why there is nothing to set."""


def translate_keys(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings in our names, and a note for each one that was translated; also in what stages change. Of methods other
    than vpit and pixel_decoder: as they are.

    Raises ValueError for a setting given under both names, and for a value that has no counterpart.
    """
    if settings.get("method") not in ("vpit", "pixel_decoder"):
        return settings, []
    translated, notes = _translate(settings, {})
    stages = translated.get("stages")
    for stage in stages if isinstance(stages, list) else ():
        if isinstance(stage, dict) and isinstance(stage.get("changes"), dict):
            stage["changes"], more = _translate(stage["changes"], settings)
            notes += more
    return translated, notes


def _translate(settings: dict[str, Any], recipe: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`recipe`: where `settings` are a stage's changes, what they change."""
    grouped = {name for group in GROUPS for name in group.readers}
    known = {*ALIASES, *FIXED, *IDLE, *grouped}
    # `vision_tower` is a group of X-Fusion's settings here; theirs is the name of an encoder.
    theirs = [n for n in settings if n in known and not (n == "vision_tower" and isinstance(settings[n], dict))]
    translated = {key: _copy(value) for key, value in settings.items() if key not in theirs}
    notes: list[str] = []
    for name in theirs:
        value = settings[name]
        if name in FIXED:
            _check_fixed(name, value)
            notes.append(f"{name}: {value} is how it is always done")
        elif name in IDLE:
            notes.append(f"{name} has no counterpart: {IDLE[name]}")
        elif name in ALIASES:
            alias = ALIASES[name]
            if value is None and alias.is_optional:
                notes.append(f"{name}: null says nothing, as there")
            else:
                notes.append(_put(translated, alias.key, alias.read(name, value), theirs=[name]))
    for group in GROUPS:
        if own := _read(group, settings):
            told = group.join(own, _read(group, recipe), (settings, recipe))
            notes.append(told if isinstance(told, str) else _put(translated, *told, theirs=list(own)))
    return translated, notes


def _read(group: KeyGroup, settings: dict[str, Any]) -> dict[str, Any]:
    """Those keys of a group that are given, read."""
    return {name: read(name, settings[name]) for name, read in group.readers.items() if name in settings}


def _check_fixed(name: str, value: Any) -> None:
    fixed = FIXED[name]
    if not any(value == one and type(value) is type(one) for one in fixed.values):
        raise ValueError(f"{name} {value!r} is not known here: {fixed.else_}")


def _put(settings: dict[str, Any], key: str, value: Any, *, theirs: list[str]) -> str:
    """Sets `key`, a group key by key beside what is given of it in our names; what to say of it.

    Raises ValueError if it is given in both.
    """
    said = f"{_listed(theirs)} {'is' if len(theirs) == 1 else 'are'} {key} here"
    if isinstance(value, dict):
        for name, own in value.items():
            _put(settings, f"{key}.{name}", own, theirs=theirs)
        return f"{said}, set to {value}"
    *parents, last = key.split(".")
    group = settings
    for parent in parents:
        group = group.setdefault(parent, {})
        if not isinstance(group, dict):
            raise ValueError(f"{said}, but {parent} is a value, not a group of keys")
    if last in group:
        raise ValueError(f"{said}, and both are given; leave one out")
    group[last] = value
    return f"{said}, set to {list(value) if isinstance(value, tuple) else value}"


def _find(places: tuple[Given, Given], key: str) -> Any:
    """The value of a key with dots, where one of the places has it; otherwise None."""
    for found in places:
        value: Any = found
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _listed(names: Any) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else str(last)


def _copy(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_copy(own) for own in value]
    return {key: _copy(own) for key, own in value.items()} if isinstance(value, dict) else value
