"""The language guarantee, checked: text-only logits of a morph against its base LLM, loaded afresh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "In 1969, the first humans",
    "The recipe needs two eggs, a cup of flour and",
    "She opened the letter and read:",
    "The mitochondria is the",
    "To be, or not to be,",
    "The stock market fell today because",
    "Translate to Spanish: Good morning.",
    "The three primary colours are",
    "If a train leaves at noon and travels 60 miles an hour,",
    "The old man looked at the mountain and said",
    "List the planets of the solar system:",
    "A haiku about rain:",
    "Draw red apple in 3D style.",
    "What is this?",
    "The opposite of hot is",
    "import numpy as np\n",
    "Dear Sir or Madam,",
    "E = mc^2 means that",
    "The quick brown fox",
    "Our meeting has been moved to",
    "Photosynthesis converts light into",
    "The patient complained of",
    "1, 1, 2, 3, 5, 8,",
    "Breaking news:",
    "The best way to learn a language is",
    "Q: How many legs does a spider have? A:",
    "In the beginning",
    "Thank you for your",
)


@dataclass(frozen=True)
class LanguageCheck:
    """`max_abs_diff` of all `num_logits` logits over `num_prompts` prompts; `same_weights`: every weight of the LLM is
    bit for bit the base's."""

    max_abs_diff: float
    num_prompts: int
    num_logits: int
    same_weights: bool


@torch.no_grad()
def check_language(morph: Any, base: Any) -> LanguageCheck:
    """Compares a morph with `base`, a fresh load of its LLM (with `.model` and `.tokenizer`).

    To learn what training did, hand it the morph with the very instance of the LLM that stood beside it in training.
    Raises ValueError if `base` is that instance, or logits are not finite: NaN differs from nothing.
    """
    if morph.language_model is base.model:
        raise ValueError("the base language model is the morph's own instance; load it afresh")
    base.model.to(morph.device)
    largest, num_logits = 0.0, 0
    for prompt in PROMPTS:
        ids = base.tokenizer(prompt, return_tensors="pt")["input_ids"]
        mine = morph.text_logits(ids)
        difference = float((mine.double() - base.model(input_ids=ids.to(morph.device)).logits.double()).abs().max())
        if not math.isfinite(difference):
            raise ValueError(f"logits of {prompt!r} are not finite; the language model's weights are damaged")
        largest, num_logits = max(largest, difference), num_logits + mine.numel()
    own, fresh = morph.language_model.state_dict(), base.model.state_dict()
    same = own.keys() == fresh.keys() and all(torch.equal(own[name], fresh[name]) for name in fresh)
    return LanguageCheck(largest, len(PROMPTS), num_logits, same)
