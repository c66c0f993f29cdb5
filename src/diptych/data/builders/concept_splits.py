"""What training never shows, the same in every set of the six data types: concepts, styles, combinations.

A concept's name and the seed alone decide, by the words that say what it is (`things_in`): so a concept that is held
out of one set is held out of all of them, whatever else they hold, and so are its twins: "tiger face" with "tiger".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from diptych.data.builders.concept_words import things_in

TRAIN = "train"
HELD_OUT = ("held_out_concept", "held_out_style", "held_out_combination")
SPLITS = (TRAIN, *HELD_OUT)
CONCEPT_SHARE = 0.1
COMBINATION_SHARE = 0.2


def is_held_out(name: str, *, seed: int) -> bool:
    """Whether training never shows the concept: one word in ten is held out, and every name that has it."""
    return any(_share(f"concept:{seed}:{word}") < CONCEPT_SHARE for word in things_in(name))


def held_out_choice(name: str, choices: Sequence[str], *, seed: int) -> str | None:
    """Which of the choices (styles, tasks) training never shows together with the concept; None for four in five.

    The last word decides; draws among different choices are independent of each other.
    """
    share = _share(f"combination:{seed}:{','.join(choices)}:{things_in(name)[-1]}")
    return choices[int(share / COMBINATION_SHARE * len(choices))] if share < COMBINATION_SHARE else None


@lru_cache(maxsize=2**16)
def _share(text: str) -> float:
    """Evenly spread over 0..1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56
