"""Text-only instructions made by rule from the emoji's names and groups, and from numbers: no pictures.

They keep text in the mixture; they teach no more than they say. Held out: concepts, a wording of each task (the
style of a text), and combinations of a task with a number or a name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.data.builders.concept_gallery import CATEGORIES, GallerySource, category, with_article
from diptych.data.builders.concept_splits import SPLITS, held_out_choice, is_held_out
from diptych.data.builders.emoji import BuiltSet
from diptych.data.builders.fair_answers import AnswerBalance, listed
from diptych.data.builders.set_writing import Draft, SetPlan, build_set, make_drafts

WORDINGS = {
    "kind": ("Is {name} {choices}?", "What kind of thing is {name}: {choices}?", "Choose for {name}: {choices}."),
    "odd": (
        "Which of these is no {kind}: {names}?",
        "One of these is no {kind}: {names}. Which one?",
        "Find what is no {kind} among these: {names}.",
    ),
    "sort": (
        "Sort these in the order of the alphabet: {names}.",
        "Put these into alphabetical order: {names}.",
        "List alphabetically: {names}.",
    ),
    "reverse": (
        "List these in reverse order: {names}.",
        "Say these backwards, last one first: {names}.",
        "Turn this list around: {names}.",
    ),
    "add": ("What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b} ="),
    "subtract": ("What is {a} minus {b}?", "Take {b} from {a}.", "{a} - {b} ="),
    "larger": ("Which is larger, {a} or {b}?", "Name the larger number: {a}, {b}.", "The greater of {a} and {b} is?"),
}
"""The last wording of each task is held out."""
SPLIT_TEXTS = {
    "train": "every task in all wordings but its last",
    "held_out_concept": "names that training never says",
    "held_out_style": "each task in its last wording, which training never uses",
    "held_out_combination": "names and numbers of training, each with the task that training never sets on it",
}
_OF_NUMBERS = ("add", "subtract", "larger")
_OF_NAMES = tuple(task for task in WORDINGS if task not in _OF_NUMBERS)


@dataclass(frozen=True)
class Words:
    """Names by split, and each one's category."""

    kinds: dict[str, str | None]
    seed: int

    def names(self, split: str, task: str) -> list[str]:
        """The names that the split may put first in this task."""
        if split == "held_out_concept":
            return [name for name in self.kinds if is_held_out(name, seed=self.seed)]
        apart = split == "held_out_combination"
        seen = [name for name in self.kinds if not is_held_out(name, seed=self.seed)]
        return [name for name in seen if (held_out_choice(name, _OF_NAMES, seed=self.seed) == task) == apart]

    def number(self, split: str, task: str, chance: random.Random) -> int | None:
        """A first number below 100: one in five is kept from one of the tasks."""
        number = chance.randrange(100)
        held_out = held_out_choice(f"number {number}", _OF_NUMBERS, seed=self.seed) == task
        return number if held_out == (split == "held_out_combination") else None


def build_text_instructions(out: str | Path, source: GallerySource, *, num_samples: int = 2000) -> BuiltSet:
    """Builds the set in the folder `out`: `num_samples` for training, a tenth as many for each held-out file."""
    plan = SetPlan(
        name="text-only",
        description="Instructions without pictures, made by rule: kinds of things, order of words, small sums.",
        settings={"builder": "text-only", "builder_version": 2, "num_samples": num_samples} | source.settings,
        splits=SPLIT_TEXTS,
        licences=tuple(entry for entry in source.licences if entry.source == "emojibase-data"),
    )

    def drafts() -> Iterator[tuple[str, Draft]]:
        words = Words({name: category(concept) for name, concept in source.gallery.concepts.items()}, source.seed)
        for split in SPLITS:
            wanted = num_samples if split == "train" else max(1, num_samples // 10)

            def make_one(chance: random.Random, balance: AnswerBalance, split: str = split) -> Draft | None:
                return make_draft(words, split, chance, balance)

            for draft in make_drafts(make_one, wanted, label=f"{source.seed}:text-only:{split}"):
                yield split, draft

    return build_set(
        out, plan, drafts, counts=lambda: {"names": len(source.gallery.concepts)}, progress=source.progress
    )


def make_draft(words: Words, split: str, chance: random.Random, balance: AnswerBalance) -> Draft | None:
    """One instruction; None where the drawn names or number do not fit the split."""
    tasks = _OF_NAMES if split == "held_out_concept" else tuple(WORDINGS)
    task = chance.choice(tasks)
    made = _kind(words, split, chance, balance) if task == "kind" else _MAKERS[task](words, split, chance)
    if made is None:
        return None
    values, answer = made
    wording = WORDINGS[task][-1] if split == "held_out_style" else chance.choice(WORDINGS[task][:-1])
    return Draft(
        (wording.format(**values),), (answer,), {"task": task}, drawn=("kind", answer) if task == "kind" else None
    )


def _kind(words: Words, split: str, chance: random.Random, balance: AnswerBalance) -> tuple[dict[str, Any], str] | None:
    """The kind is drawn first, each as often, then a name of it."""
    by_kind: dict[str, list[str]] = {}
    for name in words.names(split, "kind"):
        kind = words.kinds[name]
        if kind is not None:
            by_kind.setdefault(with_article(kind), []).append(name)
    if len(by_kind) < 2:
        return None
    answer = balance.draw("kind", sorted(by_kind), chance)
    choices = listed([with_article(word) for word in CATEGORIES], chance)
    return {"name": chance.choice(by_kind[answer]), "choices": choices}, answer


def _odd(words: Words, split: str, chance: random.Random) -> tuple[dict[str, Any], str] | None:
    """The odd one decides which split the sample is of; the others are of the same split or, held out alone, seen."""
    names = [name for name in words.names(split, "odd") if words.kinds[name]]
    kind = chance.choice(sorted(CATEGORIES))
    odd = [name for name in names if words.kinds[name] != kind]
    others = [name for name in _company(words, split, "odd") if words.kinds[name] == kind]
    if not odd or len(others) < 3:
        return None
    answer = chance.choice(odd)
    listed = [answer, *chance.sample(others, 3)]
    chance.shuffle(listed)
    return {"kind": kind, "names": ", ".join(listed)}, answer


def _sort(words: Words, split: str, chance: random.Random) -> tuple[dict[str, Any], str] | None:
    names = _list(words, split, "sort", chance)
    return None if names is None or names == sorted(names) else ({"names": ", ".join(names)}, ", ".join(sorted(names)))


def _reverse(words: Words, split: str, chance: random.Random) -> tuple[dict[str, Any], str] | None:
    names = _list(words, split, "reverse", chance)
    return None if names is None else ({"names": ", ".join(names)}, ", ".join(names[::-1]))


def _add(words: Words, split: str, chance: random.Random) -> tuple[dict[str, Any], str] | None:
    a, b = words.number(split, "add", chance), chance.randrange(100)
    return None if a is None else ({"a": a, "b": b}, str(a + b))


def _subtract(words: Words, split: str, chance: random.Random) -> tuple[dict[str, Any], str] | None:
    a, b = words.number(split, "subtract", chance), chance.randrange(100)
    return None if a is None or b > a else ({"a": a, "b": b}, str(a - b))


def _larger(words: Words, split: str, chance: random.Random) -> tuple[dict[str, Any], str] | None:
    a, b = words.number(split, "larger", chance), chance.randrange(100)
    return None if a is None or a == b else ({"a": a, "b": b}, str(max(a, b)))


def _list(words: Words, split: str, task: str, chance: random.Random) -> list[str] | None:
    names = words.names(split, task)
    company = [name for name in _company(words, split, task) if name not in names] + names
    if not names or len(company) < 5:
        return None
    first = chance.choice(names)
    others = chance.sample([name for name in company if name != first], chance.randint(2, 4))
    listed = [first, *others]
    chance.shuffle(listed)
    return listed


def _company(words: Words, split: str, task: str) -> list[str]:
    """Names that may stand beside the one that decides the split."""
    return words.names(split if split == "held_out_concept" else "train", task)


_MAKERS: dict[str, Callable[[Words, str, random.Random], tuple[dict[str, Any], str] | None]] = {
    "odd": _odd,
    "sort": _sort,
    "reverse": _reverse,
    "add": _add,
    "subtract": _subtract,
    "larger": _larger,
}
