"""What a run of evaluation was made with: every score carries it, and two runs are told apart by it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from diptych.evaluate.answering import Sampling
from diptych.evaluate.machine import describe_machine

PACKAGES = (
    "accelerate",
    "diffusers",
    "numpy",
    "pillow",
    "pycocoevalcap",
    "resvg-py",
    "safetensors",
    "tokenizers",
    "torchmetrics",
    "transformers",
)
"""Whose versions may change an answer or a score; torch and diptych stand with the machine."""
Stamp = dict[str, Any]


def build_stamp(morph: Any, *, name: str, morph_hash: str, pixel_decoder_hash: str | None, sampling: Sampling) -> Stamp:
    """Of a loaded morph (or pixel decoder): its name, and the hashes of the folders that it was loaded from."""
    frozen = morph.frozen_hashes()
    hashes = {part: found for part, found in frozen.items() if part != "language_model"}
    if pixel_decoder_hash is not None:
        hashes["pixel_decoder"] = pixel_decoder_hash
    portable = morph.recipe.model_copy(update={"output_dir": ".", "cache_dir": None})
    return {
        "morph": name,
        "morph_hash": morph_hash,
        "base_hash": frozen.get("language_model"),
        "hashes": hashes,
        "method": morph.recipe.method,
        "seed": sampling.seed,
        **resolve_sampling(morph, sampling),
        "dtype": _dtype(morph),
        "versions": package_versions(),
        "machine": describe_machine(),
        "recipe": portable.model_dump(mode="json"),
    }


def resolve_sampling(morph: Any, sampling: Sampling) -> dict[str, Any]:
    """The options that images are sampled with, those left out as the morph fills them in."""
    decoder = morph if hasattr(morph, "denoiser") else getattr(morph, "pixel_decoder", None)
    own = (morph if decoder is None else decoder).recipe.sample
    guidance, sampler = own.guidance_scale, own.sampler
    if decoder is not None:
        sampler = decoder.denoiser.default_sampler
    elif not morph.recipe.objective.text_cond_dropout_prob:
        guidance = 1.0
    return {
        "guidance_scale": guidance if sampling.guidance_scale is None else sampling.guidance_scale,
        "num_inference_steps": sampling.num_inference_steps or own.num_inference_steps,
        "sampler": sampling.sampler or sampler,
    }


def package_versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def stamp_differences(
    one: Mapping[str, Any], other: Mapping[str, Any], *, ignored: frozenset[str] = frozenset()
) -> list[str]:
    """What differs, in words: `key: this, not that`, keys of nested settings with dots. `ignored`: top-level keys."""
    mine, theirs = (flatten({k: v for k, v in stamp.items() if k not in ignored}) for stamp in (one, other))
    missing = "nothing"
    return [
        f"{key}: {_shown(mine.get(key, missing))}, not {_shown(theirs.get(key, missing))}"
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key, missing) != theirs.get(key, missing)
    ]


def flatten(entries: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, keys joined by dots; of a list of settings, numbers are keys."""
    flat: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            flat |= flatten({str(number): entry for number, entry in enumerate(value)}, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(value: Any) -> str:
    text = str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:16] if is_hash else text[:80]


def _dtype(morph: Any) -> str:
    language = getattr(morph, "language_model", None)
    dtype = next(morph.parameters()).dtype if language is None else language.dtype
    return str(dtype).removeprefix("torch.")
