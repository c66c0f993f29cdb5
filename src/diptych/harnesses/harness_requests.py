"""What benchmark harnesses ask, in a morph's terms: who is asked, conversations, options of generation, batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from diptych.data.video import read_frames
from diptych.evaluate.answering import Sampling
from diptych.evaluate.evaluated_morph import load_evaluated
from diptych.evaluate.stamp import Stamp
from diptych.evaluate.suite import REMEDIES
from diptych.models.conversation import Ability, Conversation

NEUTRAL: Mapping[str, float] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "top_k": 0,
}
"""Settings of generation that a morph does not have, and the value at which they change nothing."""
_FRAME = re.compile(r".*?(\d+)\.(?:jpe?g|png|webp)", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """One question. `conversation` is called when it is asked: the images of a whole benchmark are never in memory
    together. `settings`: of generation, in the harness's words. `length`: of the text, to batch by. `seed`: of sampled
    text."""

    conversation: Callable[[], Conversation]
    settings: Mapping[str, Any]
    length: int
    seed: int = 0


def load_asked(
    morph: Any,
    ability: Ability,
    *,
    language_model: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
) -> tuple[Any, Stamp]:
    """A morph that has `ability`, and its stamp: by folder, carried name or Hub id, or one that is loaded already,
    whose stamp is empty. Raises ValueError as `load_morph`, for one that lacks the ability, and for another device."""
    stamp: Stamp = {}
    if isinstance(morph, str | Path):
        morph, stamp = load_evaluated(
            str(morph), sampling=Sampling(), language_model=language_model, trust_remote_code=trust_remote_code
        )
    if ability not in morph.abilities:
        raise ValueError(f"the harness needs a morph that {ability}, which this one does not; {REMEDIES[ability]}")
    wanted = None if device is None else torch.device(device)
    if wanted is not None and (wanted.type, wanted.index or 0) != (morph.device.type, morph.device.index or 0):
        raise ValueError(
            f"the morph is on {morph.device}, not on {device}: leave the device out; a GPU is taken where one is seen, "
            "and CUDA_VISIBLE_DEVICES says which are"
        )
    return morph, stamp


def read_part(kind: str, value: Any, *, num_frames: int) -> list[dict[str, Any]]:
    """Content parts of a conversation: a text, an image (PIL or path), or a clip (file, or folder of its frames) as
    `num_frames` images. Raises ValueError for other kinds, and for a clip that cannot be read."""
    if kind == "text":
        return [{"type": "text", "text": value}]
    if kind == "image":
        return [{"type": "image", "image": value}]
    if kind == "video" and isinstance(value, str | Path):
        frames = _folder_frames(Path(value), num_frames) if Path(value).is_dir() else None
        return [{"type": "image", "image": f} for f in frames or read_frames(value, num_frames=num_frames)]
    given = f"{kind} as {type(value).__name__}"
    raise ValueError(f"a morph reads texts, images and whole clips by path; the benchmark gives {given}")


def _folder_frames(folder: Path, num_frames: int) -> list[Path]:
    """The middles of `num_frames` equal parts of a clip that is kept as numbered images."""
    numbered = sorted((int(match[1]), path) for path in folder.iterdir() if (match := _FRAME.fullmatch(path.name)))
    if not numbered:
        raise ValueError(f"clip {folder} is a folder without numbered images (jpg, png, webp)")
    return [numbered[int((place + 0.5) * len(numbered) / num_frames)][1] for place in range(num_frames)]


def generation_options(settings: Mapping[str, Any], *, max_new_tokens: int) -> dict[str, Any]:
    """Options of a morph's generation. `max_new_tokens`: where the harness says none. A temperature above 0 samples,
    unless `do_sample` is false. Settings of other models (`image_aspect_ratio`) say nothing to a morph.

    Raises ValueError for one that would change which tokens are chosen, and that a morph does not have.
    """
    for name, neutral in NEUTRAL.items():
        if settings.get(name) not in (None, neutral):
            raise ValueError(
                f"the benchmark asks for {name}={settings[name]}, which a morph does not have; say {name}={neutral:g} "
                "in the harness's settings of generation (--gen_kwargs)"
            )
    options: dict[str, Any] = {"max_new_tokens": int(settings.get("max_new_tokens") or max_new_tokens)}
    temperature = float(settings.get("temperature") or 0.0)
    if settings.get("do_sample", True) and temperature > 0:
        options |= {"do_sample": True, "temperature": temperature, "top_p": float(settings.get("top_p") or 1.0)}
    return options


def answer_requests(
    morph: Any,
    requests: Sequence[Request],
    *,
    batch_size: int,
    max_new_tokens: int,
    on_answers: Callable[[int], object] = lambda number: None,
) -> list[str]:
    """The answer to each request, cut where the harness says (`until`), in the order of the requests. Requests of equal
    settings share batches, the longest first, so that what does not fit in memory is known at once."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    answers = [""] * len(requests)
    options = [generation_options(r.settings, max_new_tokens=max_new_tokens) | {"seed": r.seed} for r in requests]
    keys = [repr(sorted(own.items())) for own in options]
    order = sorted(range(len(requests)), key=lambda i: (keys[i], -requests[i].length, i))
    for _, group in groupby(order, key=keys.__getitem__):
        alike = list(group)
        for start in range(0, len(alike), batch_size):
            batch = alike[start : start + batch_size]
            conversations = [requests[i].conversation() for i in batch]
            made = morph.generate_batch(
                conversations, generation_mode="text", max_batch_size=batch_size, **options[batch[0]]
            )
            for i, parts in zip(batch, made, strict=True):
                said = "".join(part for part in parts if isinstance(part, str))
                answers[i] = _cut(said, requests[i].settings.get("until"))
            on_answers(len(batch))
    return answers


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or ():
        text = text.partition(stop)[0] if stop else text
    return text
