"""MetaMorph's pure-video tasks on the animated emoji: pictures of a clip in, pictures of it out (one: words out).

Two frames: the scene some time later. More frames: seven tasks. Frames are `interval` seconds apart, drawn evenly from
max(2 / fps, 0.1) to min(10, length / 2) and rounded to tenths, since the words name it. Only samples with one right
answer are kept: neighbouring frames plainly differ, and the clip nowhere shows what is given with another continuation.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from diptych.data.builders.clip_library import MOVES, SAME, ClipFrames, ClipSource
from diptych.data.builders.emoji import BuiltSet
from diptych.data.builders.set_writing import Draft, SetPlan, build_set

TASKS = {
    "later": "two frames: from the first, the scene some seconds later",
    "rest": "from the first frame, all the others",
    "split": "from the frames before a random point, those after it",
    "reverse": "from the last frame, those before it, backwards",
    "fill": "every other frame is missing: the missing ones",
    "reorder": "shuffled frames, put in order",
    "interval": "how many seconds lie between the frames, in words",
    "next": "the next one to three frames",
}
MAX_FRAMES = 6
_TRIES = 12


def build_pure_video(out: str | Path, source: ClipSource, *, samples_per_clip: int = 6) -> BuiltSet:
    """Builds the set in the folder `out`; the same arguments give the same files.

    `samples_per_clip` tries at each clip and split; a clip that hardly moves gives none.
    """
    plan = SetPlan(
        name="pure-video",
        description="Clips of animated emoji: what comes later, before, between, and in which order.",
        settings={"builder": "pure-video", "builder_version": 2, "samples_per_clip": samples_per_clip}
        | source.settings,
        splits={
            "train": "every clip but those of held-out things, each but for its held-out task",
            "held_out_concept": "clips of things that training never shows, nor any other set of the six types",
            "held_out_style": "the clips of training in shades of grey, which training never shows",
            "held_out_combination": "clips of training, each with the task that training never sets on it; and clips "
            "of things that no set's training shows in Fluent",
        },
        licences=source.licences,
    )

    def drafts() -> Iterator[tuple[str, Draft]]:
        for number, clip in enumerate(source.clips):
            for split, colours, tasks, frames in source.read_for_splits(clip, tuple(TASKS)):
                for draft in _drafts_of_clip(
                    frames, tasks, number, samples_per_clip, f"{source.seed}:{split}:{clip.name}"
                ):
                    draft.meta.update({"concept": clip.name, "colours": colours})
                    yield split, draft

    return build_set(out, plan, drafts, counts=lambda: source.counts, progress=source.progress)


def _drafts_of_clip(frames: ClipFrames, tasks: Sequence[str], number: int, wanted: int, label: str) -> Iterator[Draft]:
    for turn in range(wanted):
        chance = random.Random(f"{label}:{turn}")
        for _ in range(_TRIES):
            draft = make_draft(frames, tasks[(number * wanted + turn) % len(tasks)], chance)
            if draft is not None:
                yield draft
                break


def make_draft(clip: ClipFrames, task: str, chance: random.Random) -> Draft | None:
    """One sample of a task at a random interval and start; None where it has not one right answer."""
    interval = draw_interval(clip, chance)
    fits = int(clip.seconds / interval + 1e-6)  # steps that fit, so one frame more
    least, most = (2, 2) if task == "later" else (3, min(MAX_FRAMES, fits + 1))
    if task in ("reorder", "interval"):
        most = min(most, 4)
    if most < least:
        return None
    count = chance.randint(least, most)
    start = chance.uniform(0, clip.seconds - (count - 1) * interval)
    window = [clip.index_at(start + place * interval) for place in range(count)]
    if clip.any_blank(window) or any(clip.distances[a, b] < MOVES for a, b in itertools.pairwise(window)):
        return None
    draft = _MAKERS[task](clip, window, f"{interval:.1f}", chance)
    if draft is not None:
        draft.meta.update({"task": task, "interval": interval, "frames": window})
    return draft


def draw_interval(clip: ClipFrames, chance: random.Random) -> float:
    """Seconds between frames: even in [max(2 / fps, 0.1), min(10, length / 2)], in tenths."""
    low, high = max(2 / clip.fps, 0.1), min(10.0, clip.seconds / 2)
    return max(0.1, int(10 * chance.uniform(low, max(low, high))) / 10)


def is_determined(clip: ClipFrames, window: list[int], shown: list[int]) -> bool:
    """Whether the places `shown` of a window decide the others: wherever else in the clip frames so spaced look like
    the shown ones, the hidden ones look like these too."""
    hidden = [place for place in range(len(window)) if place not in shown]
    for shift in range(-min(window), len(clip.frames) - max(window)):
        moved = [index + shift for index in window]
        alike = all(clip.distances[window[place], moved[place]] < SAME for place in shown)
        if alike and any(clip.distances[window[place], moved[place]] >= MOVES for place in hidden):
            return False
    return True


def has_one_order(clip: ClipFrames, window: list[int]) -> bool:
    """Whether the clip, played in a loop, shows these frames so spaced in this order only; all of them differ."""
    if any(clip.distances[a, b] < MOVES for a, b in itertools.combinations(window, 2)):
        return False
    places = range(len(window))
    for order in list(itertools.permutations(places))[1:]:
        for shift in range(len(clip.frames)):
            moved = [(index + shift) % len(clip.frames) for index in window]
            if clip.look_alike([window[place] for place in order], moved, limit=SAME):
                return False
    return True


def has_one_interval(clip: ClipFrames, window: list[int], interval: float) -> bool:
    """Whether no other interval in tenths gives frames that all look like these."""
    for tenths in range(1, int(10 * clip.seconds) + 1):
        if abs(tenths / 10 - interval) < 0.05:
            continue
        steps = [round(place * tenths / 10 * clip.fps) for place in range(len(window))]
        for start in range(len(clip.frames) - steps[-1]):
            if clip.look_alike(window, [start + step for step in steps], limit=MOVES / 2):
                return False
    return True


def _pictures(clip: ClipFrames, window: Iterable[int]) -> tuple[Image.Image, ...]:
    return tuple(clip.frames[index] for index in window)


def _predict(
    clip: ClipFrames, window: list[int], shown: list[int], asked: list[int], request: str, lead: str
) -> Draft | None:
    if not is_determined(clip, window, shown):
        return None
    given = _pictures(clip, (window[place] for place in shown))
    answer = _pictures(clip, (window[place] for place in asked))
    return Draft((f"{request}\n", *given), (f"{lead}\n", *answer), {"shown": shown, "asked": asked})


def _later(clip: ClipFrames, window: list[int], interval: str, _: random.Random) -> Draft | None:
    request = f"Predict this scene {interval} seconds later."
    return _predict(clip, window, [0], [1], request, f"This is the scene {interval} seconds later:")


def _rest(clip: ClipFrames, window: list[int], interval: str, _: random.Random) -> Draft | None:
    count = len(window)
    request = f"This is the first of {count} frames of a clip, {interval} seconds apart. Show the others."
    return _predict(clip, window, [0], list(range(1, count)), request, "These are the other frames:")


def _split(clip: ClipFrames, window: list[int], interval: str, chance: random.Random) -> Draft | None:
    count, point = len(window), chance.randint(1, len(window) - 1)
    request = f"A clip of {count} frames, {interval} seconds apart, is cut after frame {point}. Show what follows."
    return _predict(clip, window, list(range(point)), list(range(point, count)), request, "This follows:")


def _reverse(clip: ClipFrames, window: list[int], interval: str, _: random.Random) -> Draft | None:
    count = len(window)
    request = f"This is the last of {count} frames of a clip, {interval} seconds apart. Show the others backwards."
    asked = list(range(count - 2, -1, -1))
    return _predict(clip, window, [count - 1], asked, request, "These are the frames before it, backwards:")


def _fill(clip: ClipFrames, window: list[int], interval: str, _: random.Random) -> Draft | None:
    shown, asked = list(range(0, len(window), 2)), list(range(1, len(window), 2))
    request = f"Of {len(window)} frames of a clip, {interval} seconds apart, every other one is missing. Show those."
    return _predict(clip, window, shown, asked, request, "These were missing:")


def _reorder(clip: ClipFrames, window: list[int], interval: str, chance: random.Random) -> Draft | None:
    if not has_one_order(clip, window):
        return None
    shuffled = list(range(len(window)))
    while shuffled == sorted(shuffled):
        chance.shuffle(shuffled)
    request = f"These {len(window)} frames of a clip, {interval} seconds apart, are shuffled. Put them in order."
    given = _pictures(clip, (window[place] for place in shuffled))
    lead = "This is their order:\n"
    return Draft((f"{request}\n", *given), (lead, *_pictures(clip, window)), {"shown": shuffled})


def _interval(clip: ClipFrames, window: list[int], interval: str, _: random.Random) -> Draft | None:
    if not has_one_interval(clip, window, float(interval)):
        return None
    request = "How many seconds lie between one of these frames and the next?\n"
    return Draft((request, *_pictures(clip, window)), (f"{interval} seconds",), {"shown": list(range(len(window)))})


def _next(clip: ClipFrames, window: list[int], interval: str, chance: random.Random) -> Draft | None:
    ahead = chance.randint(1, min(3, len(window) - 1))
    given = len(window) - ahead
    what = "frame" if ahead == 1 else f"{ahead} frames"
    request = f"These frames of a clip are {interval} seconds apart. Predict the next {what}."
    lead = "This comes next:" if ahead == 1 else "These come next:"
    return _predict(clip, window, list(range(given)), list(range(given, len(window))), request, lead)


_MAKERS: dict[str, Callable[[ClipFrames, list[int], str, random.Random], Draft | None]] = {
    "later": _later,
    "rest": _rest,
    "split": _split,
    "reverse": _reverse,
    "fill": _fill,
    "reorder": _reorder,
    "interval": _interval,
    "next": _next,
}
