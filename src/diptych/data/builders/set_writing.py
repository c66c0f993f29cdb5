"""Writes the data sets of the six types: drafts of samples to JSON Lines, their pictures once each, and the card."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data.builders.data_card import DataCard, Licence, building, is_built, read_card, write_card
from diptych.data.builders.emoji import BuiltSet, Progress
from diptych.data.builders.fair_answers import AnswerBalance
from diptych.data.samples import Message, Sample, write_samples

Part = str | Image.Image
MAX_REFUSALS = 400
"""In a row: a builder that finds nothing new so often has made all that there is."""


@dataclass(frozen=True)
class Draft:
    """One question and its answer, pictures still in memory, and what the answer can be checked by.

    `drawn`: the form of question and its answer, as an AnswerBalance drew it; None where none did.
    """

    user: tuple[Part, ...]
    assistant: tuple[Part, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    drawn: tuple[str, str] | None = None

    def count_in(self, balance: AnswerBalance) -> None:
        if self.drawn is not None:
            balance.count(*self.drawn)


@dataclass(frozen=True)
class SetPlan:
    """What a set is but for its samples. `splits`: file (without .jsonl) to what is in it."""

    name: str
    description: str
    settings: dict[str, Any]
    splits: dict[str, str]
    licences: tuple[Licence, ...]


def build_set(
    out: str | Path,
    plan: SetPlan,
    drafts: Callable[[], Iterable[tuple[str, Draft]]],
    *,
    counts: Callable[[], dict[str, int]] = dict,
    progress: Progress | None = None,
) -> BuiltSet:
    """Writes drafts, each with its split, to `out`, no sample twice; where it holds this set already, nothing is done.

    `drafts` is called only where there is something to do, and `counts` after it. A picture is images/XX/HASH.png, HASH
    the start of its bytes' SHA-256: those that samples share are written once. Raises ValueError if `out` holds
    anything else, or a split gets no sample.
    """
    out = Path(out)
    if is_built(out, plan.settings):
        return BuiltSet(out, read_card(out), is_new=False)
    samples: dict[str, list[Sample]] = {split: [] for split in plan.splits}
    seen: set[str] = set()
    with building(out.resolve()) as folder:
        for number, (split, draft) in enumerate(drafts(), start=1):
            sample, key = _write_pictures(folder, draft)
            if key not in seen:
                seen.add(key)
                samples[split].append(sample)
            if progress is not None:  # how many there will be is not known: hundreds are told of as they come
                progress(f"making {plan.name}", number, 500 * (number // 500 + 1))
        for split, found in samples.items():
            if not found:
                raise ValueError(f"{plan.name}: no sample for {split}; the packages hold too few fitting concepts")
        num_samples = {f"{name}.jsonl": write_samples(folder / f"{name}.jsonl", made) for name, made in samples.items()}
        card = DataCard(
            name=plan.name,
            description=plan.description,
            settings=plan.settings,
            counts=counts() | {"pictures": sum(1 for _ in folder.glob("images/*/*.png"))},
            num_samples=num_samples,
            splits={f"{split}.jsonl": text for split, text in plan.splits.items()},
            licences=plan.licences,
        )
        write_card(folder, card)
    return BuiltSet(out, card, is_new=True)


def make_drafts(
    make: Callable[[random.Random, AnswerBalance], Draft | None], num_samples: int, *, label: str
) -> Iterator[Draft]:
    """`num_samples` different drafts of `make`, which may refuse (None); fewer where it finds no new ones.

    `label` (seed, set and split) decides the draws. `make` is given the answers of the drafts so far.
    """
    balance = AnswerBalance()
    seen: set[str] = set()
    refusals = number = 0
    while len(seen) < num_samples and refusals < MAX_REFUSALS:
        draft = make(random.Random(f"{label}:{number}"), balance)
        number += 1
        key = "" if draft is None else _key(_words(draft.user), _words(draft.assistant), _pixel_hashes(draft))
        if draft is None or key in seen:
            refusals += 1
            continue
        refusals = 0
        seen.add(key)
        draft.count_in(balance)
        yield draft


def _write_pictures(folder: Path, draft: Draft) -> tuple[Sample, str]:
    """The sample, its pictures written, and what tells it from others: its words and pictures."""
    images: list[str] = []
    turns: list[list[str | int]] = []
    for parts in (draft.user, draft.assistant):
        turns.append([])
        for part in parts:
            if isinstance(part, str):
                turns[-1].append(part)
            else:
                turns[-1].append(len(images))
                images.append(_write_picture(folder, part))
    messages = tuple(Message(role, tuple(turn)) for role, turn in zip(("user", "assistant"), turns, strict=True))
    return Sample(messages, tuple(images), draft.meta), _key(turns, images)


def _write_picture(folder: Path, picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="PNG")
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    path = f"images/{digest[:2]}/{digest[:20]}.png"
    if not (folder / path).exists():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(buffer.getvalue())
    return path


def _words(parts: Sequence[Part]) -> list[str]:
    return [part if isinstance(part, str) else "" for part in parts]


def _pixel_hashes(draft: Draft) -> list[str]:
    pictures = [part for part in (*draft.user, *draft.assistant) if not isinstance(part, str)]
    return [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]


def _key(*things: Any) -> str:
    return hashlib.sha256(json.dumps(things).encode()).hexdigest()
