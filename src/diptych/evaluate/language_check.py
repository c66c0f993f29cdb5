"""The language guarantee, checked: text-only logits of a morph against its base LLM, loaded afresh."""

from __future__ import annotations

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
    """`max_abs_diff` of all logits over `num_prompts` prompts; `same_weights`: every weight of the LLM is bit for bit the base's."""

    max_abs_diff: float
    num_prompts: int
    same_weights: bool


@torch.no_grad()
def check_language(morph: Any, base: Any) -> LanguageCheck:
    """Compares a morph with `base`, a fresh load of its LLM (with `.model` and `.tokenizer`)."""
    largest = 0.0
    for prompt in PROMPTS:
        ids = base.tokenizer(prompt, return_tensors="pt")["input_ids"]
        difference = morph.text_logits(ids).float().cpu() - base.model(input_ids=ids).logits.float().cpu()
        largest = max(largest, float(difference.abs().max()))
    mine = morph.language_model.state_dict()
    fresh = base.model.state_dict()
    same = mine.keys() == fresh.keys() and all(torch.equal(mine[name].cpu(), fresh[name].cpu()) for name in fresh)
    return LanguageCheck(largest, len(PROMPTS), same)
