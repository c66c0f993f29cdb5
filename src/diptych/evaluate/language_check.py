"""The language guarantee, checked: text-only logits of a morph against its base LLM, loaded afresh."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diptych.backbones.language import load_language_model

PROMPTS: tuple[str, ...] = tuple(json.loads(Path(__file__).with_name("language_prompts.json").read_text("utf-8")))
"""256 texts: prose, code, numbers, many languages, emoji, edges. The first 32 are those of the demo."""
NUM_QUICK = 32


@dataclass(frozen=True)
class LanguageCheck:
    """`max_abs_diff` of all `num_logits` logits over `num_prompts` prompts; `same_weights`: every weight of the LLM is
    bit for bit the base's."""

    max_abs_diff: float
    num_prompts: int
    num_logits: int
    same_weights: bool


def find_base(morph: Any, given: Any = None) -> Any:
    """The base language model of a morph (`.model`, `.tokenizer`), on its device: `given`, or loaded afresh.

    Raises ValueError if what is given is the morph's own instance.
    """
    if given is None:
        name, dtype = morph.language.name, morph.language_model.dtype
        given = load_language_model(name, dtype=dtype, trust_remote_code=morph.recipe.trust_remote_code)
    if given.model is morph.language_model:
        raise ValueError("the base language model is the morph's own instance; load it afresh")
    given.model.to(morph.device)
    return given


def check_language(morph: Any, base: Any) -> LanguageCheck:
    """Compares a morph with `base`, a fresh load of its LLM (with `.model` and `.tokenizer`), on the quick prompts.

    To learn what training did, hand it the morph with the very instance of the LLM that stood beside it in training.
    Raises ValueError if `base` is that instance, or logits are not finite: NaN differs from nothing.
    """
    base = find_base(morph, base)
    compared = [compare_logits(morph, base, prompt) for prompt in PROMPTS[:NUM_QUICK]]
    largest, num_logits = max(one.max_abs_diff for one in compared), sum(one.num_logits for one in compared)
    own, fresh = morph.language_model.state_dict(), base.model.state_dict()
    same = own.keys() == fresh.keys() and all(torch.equal(own[name], fresh[name]) for name in fresh)
    return LanguageCheck(largest, len(compared), num_logits, same)


@dataclass(frozen=True)
class LogitsCheck:
    """Of one prompt: the largest absolute difference, whether every bit is the same, how many logits there are."""

    max_abs_diff: float
    is_identical: bool
    num_logits: int


@torch.no_grad()
def compare_logits(morph: Any, base: Any, prompt: str) -> LogitsCheck:
    """Text-only logits of a morph against those of `base`, on the morph's device. Raises ValueError if they are not
    finite."""
    ids = base.tokenizer(prompt, return_tensors="pt")["input_ids"]
    mine, theirs = morph.text_logits(ids), base.model(input_ids=ids.to(morph.device)).logits
    difference = float((mine.double() - theirs.double()).abs().max())
    if not math.isfinite(difference):
        raise ValueError(f"logits of {prompt!r} are not finite; the language model's weights are damaged")
    bits = [logits.contiguous().view(torch.uint8) for logits in (mine, theirs)]
    return LogitsCheck(difference, torch.equal(*bits), mine.numel())
