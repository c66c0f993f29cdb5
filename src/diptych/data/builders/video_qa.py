"""Questions about clips of animated emoji, answered in words: what it is, what kind of thing, what comes next.

A clip stands as its frames at one a second, as MetaMorph shows videos.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from diptych.data.builders.clip_library import MOVES, Clip, ClipFrames, ClipSource
from diptych.data.builders.concept_gallery import CATEGORIES, category_of, with_article
from diptych.data.builders.emoji import BuiltSet
from diptych.data.builders.pure_video import is_determined
from diptych.data.builders.set_writing import Draft, SetPlan, build_set

TASKS = {
    "name": "what the clip shows, by name",
    "kind": "whether it is an animal, a fruit, a drink, a vehicle or a musical instrument",
    "next": "which of three pictures, A, B or C, comes a second after the frames shown",
}
MAX_FRAMES = 45
NAME_QUESTIONS = ("What does this clip show?", "What is moving here?", "Name the thing in this clip.")
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
        for clip in source.clips:
            for split, colours, tasks, frames in source.read_for_splits(clip, tuple(TASKS)):
                for draft in _drafts_of_clip(
                    clip, frames, tasks, samples_per_clip, f"{source.seed}:{split}:{clip.name}"
                ):
                    draft.meta.update({"concept": clip.name, "colours": colours})
                    yield split, draft

    return build_set(out, plan, drafts, counts=lambda: source.counts, progress=source.progress)


def _drafts_of_clip(clip: Clip, frames: ClipFrames, tasks: Sequence[str], wanted: int, label: str) -> Iterator[Draft]:
    for turn in range(wanted):
        chance = random.Random(f"{label}:{turn}")
        for _ in range(_TRIES):
            draft = make_draft(clip, frames, tasks[turn % len(tasks)], chance)
            if draft is not None:
                yield draft
                break


def make_draft(clip: Clip, frames: ClipFrames, task: str, chance: random.Random) -> Draft | None:
    """One question on a clip; None where it has not one right answer."""
    seconds = [frames.index_at(second) for second in range(min(MAX_FRAMES, int(frames.seconds) + 1))]
    meta = {"task": task, "frames": seconds}
    pictures = [frames.frames[index] for index in seconds]
    if task == "name":
        return Draft((f"{chance.choice(NAME_QUESTIONS)}\n", *pictures), (clip.name,), meta)
    if task == "kind":
        kind = category_of(clip.name, clip.subgroup)
        choices = ", ".join(with_article(word) for word in list(CATEGORIES)[:-1])
        question = f"Is this {choices} or {with_article(list(CATEGORIES)[-1])}?\n"
        return None if kind is None else Draft((question, *pictures), (with_article(kind),), meta)
    start = chance.uniform(0, max(0.0, frames.seconds - 2))
    window = [frames.index_at(start + second) for second in range(3)]
    right = window[-1]
    others = [k for k in range(len(frames.frames)) if all(frames.distances[k, i] >= 2 * MOVES for i in window)]
    if len(others) < 2 or not is_determined(frames, window, [0, 1]) or frames.distances[window[1], right] < MOVES:
        return None
    wrong = chance.sample(others, 2)
    if frames.distances[wrong[0], wrong[1]] < MOVES:
        return None
    offered = [right, *wrong]
    chance.shuffle(offered)
    parts = [
        part for letter, index in zip("ABC", offered, strict=True) for part in (f"\n{letter}: ", frames.frames[index])
    ]
    request = "These frames are one second apart. Which picture comes one second after them, A, B or C?\n"
    answer = "ABC"[offered.index(right)]
    shown = (frames.frames[window[0]], frames.frames[window[1]])
    return Draft((request, *shown, *parts), (answer,), meta | {"frames": window, "offered": offered})
