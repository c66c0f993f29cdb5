"""Questions about clips of animated emoji, answered in words: what it is, what kind of thing, what comes next.

A clip stands as its frames at one a second, as MetaMorph shows videos.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from diptych.data.builders.clip_library import MOVES, Clip, ClipFrames, ClipSource
from diptych.data.builders.concept_gallery import CATEGORIES, category_of, with_article
from diptych.data.builders.concept_splits import SPLITS
from diptych.data.builders.emoji import BuiltSet
from diptych.data.builders.fair_answers import AnswerBalance, even_shares, listed
from diptych.data.builders.pure_video import is_determined
from diptych.data.builders.set_writing import Draft, SetPlan, build_set

TASKS = {
    "name": "what the clip shows, by name",
    "kind": "whether it is an animal, a drink ...: the kinds that clips have, each as often",
    "next": "which of three pictures, A, B or C, comes a second after the frames shown",
}
MAX_FRAMES = 45
NAME_QUESTIONS = ("What does this clip show?", "What is moving here?", "Name the thing in this clip.")
LETTERS = ("A", "B", "C")
_TRIES = 12


def build_video_qa(out: str | Path, source: ClipSource, *, samples_per_clip: int = 4) -> BuiltSet:
    """Builds the set in the folder `out`; the same arguments give the same files."""
    plan = SetPlan(
        name="video-qa",
        description="Clips of animated emoji at one frame a second, and questions about them answered in words.",
        settings={"builder": "video-qa", "builder_version": 2, "samples_per_clip": samples_per_clip} | source.settings,
        splits={
            "train": "every clip but those of held-out things, each but for its held-out kind of question",
            "held_out_concept": "clips of things that training never shows, nor any other set of the six types",
            "held_out_style": "the clips of training in shades of grey, which training never shows",
            "held_out_combination": "clips of training, each with the kind of question that training never asks of it; "
            "and clips of things that no set's training shows in Fluent",
        },
        licences=source.licences,
    )

    def drafts() -> Iterator[tuple[str, Draft]]:
        kinds = _KindQuestions(source, samples_per_clip)
        balances = {split: AnswerBalance() for split in SPLITS}
        for clip in source.clips:
            for split, colours, tasks, frames in source.read_for_splits(clip, tuple(TASKS)):
                label = f"{source.seed}:{split}:{clip.name}"
                asked = [task for turn in range(samples_per_clip) if (task := tasks[turn % len(tasks)]) != "kind"]
                asked += ["kind"] * kinds.shares.get((split, clip.name), 0)
                for draft in _drafts_of_clip(clip, frames, asked, kinds.choices, balances[split], label):
                    draft.meta.update({"concept": clip.name, "colours": colours})
                    yield split, draft

    return build_set(out, plan, drafts, counts=lambda: source.counts, progress=source.progress)


class _KindQuestions:
    """How many questions on its kind each clip of a split gets: all kinds as many, whatever clips there are of each.

    `choices`: the kinds that clips have. A split with clips of one kind alone asks none.
    """

    def __init__(self, source: ClipSource, samples_per_clip: int) -> None:
        clips: dict[str, dict[str, list[str]]] = {}
        for clip in source.clips:
            kind = category_of(clip.name, clip.subgroup)
            for split, _, tasks in source.splits_of(clip, tuple(TASKS)):
                if kind is not None and "kind" in tasks:
                    clips.setdefault(split, {}).setdefault(kind, []).append(clip.name)
        self.choices = [kind for kind in CATEGORIES if any(kind in found for found in clips.values())]
        self.shares: dict[tuple[str, str], int] = {}
        for split, found in clips.items():
            if len(found) < 2:
                continue
            wanted = sum(map(len, found.values())) * max(1, samples_per_clip // len(TASKS))
            for names in found.values():
                shares = even_shares(math.ceil(wanted / len(found)), len(names))
                self.shares |= {(split, name): share for name, share in zip(names, shares, strict=True)}


def _drafts_of_clip(
    clip: Clip, frames: ClipFrames, tasks: Sequence[str], kinds: Sequence[str], balance: AnswerBalance, label: str
) -> Iterator[Draft]:
    for turn, task in enumerate(tasks):
        chance = random.Random(f"{label}:{turn}")
        for _ in range(_TRIES):
            draft = make_draft(clip, frames, task, chance, kinds=kinds, balance=balance)
            if draft is not None:
                draft.count_in(balance)
                yield draft
                break


def make_draft(
    clip: Clip,
    frames: ClipFrames,
    task: str,
    chance: random.Random,
    *,
    kinds: Sequence[str] = tuple(CATEGORIES),
    balance: AnswerBalance | None = None,
) -> Draft | None:
    """One question on a clip; None where it has not one right answer. `kinds`: those that a question on it names."""
    if task == "next":
        return _next(frames, chance, balance or AnswerBalance())
    start = chance.uniform(0, 1) if task == "kind" else 0.0  # a rare kind has few clips: let their questions differ
    times = [start + second for second in range(MAX_FRAMES)]
    seconds = [frames.index_at(time) for time in times if time <= frames.seconds]
    if frames.any_blank(seconds):
        return None
    meta = {"task": task, "frames": seconds}
    pictures = [frames.frames[index] for index in seconds]
    if task == "name":
        return Draft((f"{chance.choice(NAME_QUESTIONS)}\n", *pictures), (clip.name,), meta)
    kind = category_of(clip.name, clip.subgroup)
    question = f"Is this {listed([with_article(word) for word in kinds], chance)}?\n"
    return None if kind is None else Draft((question, *pictures), (with_article(kind),), meta)


def _next(frames: ClipFrames, chance: random.Random, balance: AnswerBalance) -> Draft | None:
    start = chance.uniform(0, max(0.0, frames.seconds - 2))
    window = [frames.index_at(start + second) for second in range(3)]
    right = window[-1]
    others = [k for k in range(len(frames.frames)) if all(frames.distances[k, i] >= 2 * MOVES for i in window)]
    if len(others) < 2 or not is_determined(frames, window, [0, 1]) or frames.distances[window[1], right] < MOVES:
        return None
    offered = chance.sample(others, 2)
    if frames.any_blank([*window, *offered]) or frames.distances[offered[0], offered[1]] < MOVES:
        return None
    answer = balance.draw("next", LETTERS, chance)
    offered.insert(LETTERS.index(answer), right)
    parts = [
        part for letter, index in zip(LETTERS, offered, strict=True) for part in (f"\n{letter}: ", frames.frames[index])
    ]
    request = "These frames are one second apart. Which picture comes one second after them, A, B or C?\n"
    shown = (frames.frames[window[0]], frames.frames[window[1]])
    meta = {"task": "next", "frames": window, "offered": offered}
    return Draft((request, *shown, *parts), (answer,), meta, drawn=("next", answer))
