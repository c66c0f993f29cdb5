"""V*'s training data (craigwu/seal_vqa_data, arXiv 2312.14135): a question, the image with boxes drawn in, the answer.

Layout: JSON arrays, one a file. `GQA_data.json`, `llava_focus_data.json`, `spatial_relation_data.json` and
`vaw_attribute_data.json` have boxes: an entry holds `image` (such as `gqa/images/NAME.jpg`,
`coco2014/train2014/NAME.jpg`, `coco2017/train2017/NAME.jpg`), `search`, `target_instances`, a list of `name` and `bbox`
(left, top, width, height in pixels), and `conversations` in LLaVA's form, whose human turns hold `<image>`, the words
"Additional visual information to focus on:" followed by an `<object>` per target, and the question.
`llava_instruct_data.json` and `negative_data.json` have no targets to look at: read those with `format: llava`.

Known from: the file list on the Hub (its card states no licence and no format); V*'s repository,
`LLaVA/llava/train/train_search.py` (files, keys, the order of a box); two converters and a test in public repositories
(image paths, which files have boxes). Not confirmed: how `<object>` is set into the words in every file, so any order
of them behind that phrase is taken, and an `<object>` elsewhere is an error. Never read from the real files.

As MetaMorph uses it: the image and the question -> a sentence that announces the look, the whole image with its boxes,
the answer. What follows the first answer, in entries with more turns, follows as it is.
"""

from __future__ import annotations

import re
from typing import Any

from diptych.data.image_regions import boxed_reference
from diptych.data.record_formats.record_shape import RecordSettings, choose, image_list, text_field
from diptych.data.samples import IMAGE_PLACEHOLDER, Message, RecordError, Sample, kind_of

ANNOUNCEMENTS = (
    "Let me first mark what this is about.",
    "I will draw boxes around what the answer rests on.",
    "To answer, I mark the things in question.",
    "Here are the things that I need to look at.",
)
_OBJECT = "<object>"
_FOCUS = re.compile(r"Additional visual information to focus on:\s*(?:<object>\s*[;.,]?\s*)*", re.IGNORECASE)
_ROLES = {"human": "user", "gpt": "assistant"}


def is_vstar(record: dict[str, Any]) -> bool:
    return isinstance(record.get("target_instances"), list)


def parse_vstar(record: dict[str, Any], number: int, settings: RecordSettings) -> Sample:
    """Raises RecordError for an entry without targets, with a box that is none, or with turns of another form."""
    del settings
    images = image_list(record.get("image"), "image")
    if len(images) != 1:
        raise RecordError("image count", f"image names {len(images)} images; V* asks about one")
    try:
        boxed = boxed_reference(images[0], _boxes(record.get("target_instances")))
    except ValueError as error:
        raise RecordError("box", str(error)) from None
    messages: list[Message] = []
    for place, (role, words) in enumerate(_turns(record), start=1):
        if place == 1:
            messages.append(Message(role, (0, f"\n{words}")))
        elif place == 2:
            messages.append(Message(role, (f"{choose(ANNOUNCEMENTS, number)}\n", 1, f"\n{words}")))
        else:
            messages.append(Message(role, (words,)))
    return Sample(tuple(messages), (images[0], boxed), {"id": record["id"]} if "id" in record else {})


def _boxes(targets: Any) -> list[list[float]]:
    """Left, top, right, bottom of each target."""
    if not isinstance(targets, list) or not targets:
        raise RecordError("box", "no target_instances; files without them are read with format: llava")
    boxes = []
    for target in targets:
        box = target.get("bbox") if isinstance(target, dict) else None
        # A number that is no edge (10 ** 400) must not be added to another.
        if not isinstance(box, list) or len(box) != 4 or not all(type(n) in (int, float) and abs(n) < 1e6 for n in box):
            raise RecordError("box", f"bbox must be [left, top, width, height], not {str(box)[:100]}")
        left, top, width, height = box
        boxes.append([left, top, left + width, top + height])
    return boxes


def _turns(record: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, words) of each turn, `<image>` and the phrase about targets taken out of the user's."""
    turns = record.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        raise RecordError(
            "structure", f"conversations must be a list of a question and an answer, not {kind_of(turns)}"
        )
    found = []
    for place, turn in enumerate(turns, start=1):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        expected = "human" if place % 2 else "gpt"
        if speaker != expected:
            raise RecordError("role", f"turn {place} is from {str(speaker)[:80]!r}; it must be from {expected}")
        words = text_field(turn.get("value"), f"turn {place}")
        if speaker == "human":
            words = _FOCUS.sub("", words.replace(IMAGE_PLACEHOLDER, ""))
        for mark in (_OBJECT, IMAGE_PLACEHOLDER):
            if mark in words:
                raise RecordError("structure", f"turn {place} holds {mark} where no image is known for it")
        found.append((_ROLES[expected], text_field(words, f"turn {place}").strip()))
    return found
