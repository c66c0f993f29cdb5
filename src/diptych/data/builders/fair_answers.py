"""Answers that the question does not give away: drawn first, each as often as any other, then a scene that has it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class AnswerBalance:
    """How often a split has given each answer to a form of question (`kind`, `count animal`); the rarest is next."""

    given: Counter[tuple[str, str]] = field(default_factory=Counter)

    def draw(self, form: str, answers: Sequence[str], chance: random.Random) -> str:
        """One of the answers that were given least, by chance. It counts once its sample is made (`count`)."""
        least = min(self.given[form, answer] for answer in answers)
        return chance.choice([answer for answer in answers if self.given[form, answer] == least])

    def count(self, form: str, answer: str) -> None:
        self.given[form, answer] += 1


def listed(words: Sequence[str], chance: random.Random) -> str:
    """`a, b or c`, in an order drawn by chance: where a word stands tells nothing."""
    shuffled = chance.sample(words, len(words))
    return f"{', '.join(shuffled[:-1])} or {shuffled[-1]}"


def even_shares(total: int, num_parts: int) -> list[int]:
    """`total` in whole parts that differ by one at most."""
    return [(part + 1) * total // num_parts - part * total // num_parts for part in range(num_parts)]
