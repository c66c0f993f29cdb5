"""Does a drawn scene show what was asked for? What a detector finds in it, held against the request, as GenEval does.

GenEval (Ghosh et al. 2023) asks a detector of photographs; here it is the carried one of emoji.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from diptych.backbones.scene_detector import SceneDetector
from diptych.data.builders.emoji_scenes import SIDES
from diptych.data.builders.scene_prompts import COLOUR, COUNT, POSITION, SceneRequest, request_of
from diptych.data.images import image_to_tensor
from diptych.data.samples import Sample

LEAST_CERTAIN = 0.5
"""Below which nothing is found."""
_SAME_THING = 0.5
"""Share of the smaller of two boxes from which they are of one thing."""
_CLOSE = 0.1
"""Of both sizes: so much of a distance counts as none."""
_PLAINLY = 0.5
"""Of the whole way."""
_AT_ONCE = 64


@dataclass(frozen=True)
class Found:
    """A thing in a scene. `name`: empty for one that the detector has no name for; `colour`: the nearest word; `box`:
    left, top, right, bottom as shares of the side."""

    name: str
    colour: str
    certainty: float
    box: tuple[float, float, float, float]


def find_things(detector: SceneDetector, scenes: Sequence[Image.Image]) -> list[list[Found]]:
    """What stands in each scene, the most certain first; of boxes that overlap, the most certain. Any size."""
    found: list[list[Found]] = []
    for start in range(0, len(scenes), _AT_ONCE):
        images = [image_to_tensor(scene, detector.image_size) for scene in scenes[start : start + _AT_ONCE]]
        with torch.no_grad():
            there, box, name, colour = detector(torch.stack(images))
        likely, names = name.softmax(dim=-1).max(dim=-1)
        certainty, boxes, colours = there.sigmoid() * likely, detector.boxes_at(box), colour.argmax(dim=-1)
        for scene in range(len(images)):
            cells = [
                Found((*detector.names, "")[names[scene, cell]], detector.colours[colours[scene, cell]], sure, at)
                for cell, sure in enumerate(certainty[scene].tolist())
                if sure >= LEAST_CERTAIN
                for at in [tuple(boxes[scene, cell].tolist())]
            ]
            found.append(_apart(cells))
    return found


def is_shown(request: SceneRequest, found: Sequence[Found]) -> bool:
    """Whether all things that are asked for are there, whatever their number, colour and place."""
    return set(request.things) <= {thing.name for thing in found}


def is_fulfilled(request: SceneRequest, found: Sequence[Found]) -> bool:
    """As GenEval: of a number exactly so many; a colour and a place are those of the first (most certain) of its name;
    other things may be there."""
    if not is_shown(request, found):
        return False
    first, *more = ([thing for thing in found if thing.name == name] for name in request.things)
    if request.kind == COUNT:
        return len(first) == request.number
    if request.kind == COLOUR:
        return first[0].colour == request.colour
    if request.kind == POSITION:
        return stands(first[0].box, more[0][0].box, request.side)
    return True


def stands(one: Sequence[float], other: Sequence[float], side: str) -> bool:
    """Whether box `one` stands on that side of `other` (SIDES), by GenEval's rule: the way between the middles, less a
    tenth of both widths (heights), is more than half as long as the whole way, to that side. Two sides may hold."""
    way = [(one[axis] + one[axis + 2] - other[axis] - other[axis + 2]) / 2 for axis in (0, 1)]
    sizes = [one[axis + 2] - one[axis] + other[axis + 2] - other[axis] for axis in (0, 1)]
    toward = sum(
        (cell - 1) * math.copysign(max(0.0, abs(distance) - _CLOSE * size), distance)
        for cell, distance, size in zip(SIDES[side], way, sizes, strict=True)
    )
    return toward > _PLAINLY * math.hypot(*way)


def describe_things(found: Sequence[Found]) -> str:
    """In words: `blue frog at 10 12 48 50, ...`, boxes in per cent of the side as questions of place are answered."""
    return ", ".join(
        f"{thing.colour} {thing.name or 'something else'} at {' '.join(str(round(100 * edge)) for edge in thing.box)}"
        for thing in found
    )


def verdicts(
    requests: Sequence[SceneRequest],
    found: Sequence[Sequence[Found]],
    check: Callable[[SceneRequest, Sequence[Found]], bool] = is_fulfilled,
) -> np.ndarray:
    """[requests, scenes] whether each scene passes the check of each request."""
    return np.array([[check(request, scene) for scene in found] for request in requests], dtype=bool)


def true_things(sample: Sample) -> list[Found]:
    """What stands in a scene of a built set."""
    request = request_of(sample)
    return [Found(name, request.colour, 1.0, tuple(box)) for name, box in sample.meta["boxes"]]


def measure_detector(
    detector: SceneDetector, samples: Sequence[Sample], scenes: Sequence[Image.Image]
) -> dict[str, dict[str, float]]:
    """By kind, over all requests and scenes of the kind: the share of pairs where a scene fulfils a request and the
    detector says so (`seen`), and of those where it does not and the detector says that it does (`false_alarms`); of
    scenes shown as they were asked for, `own`. `samples` and `scenes` in the same order."""
    found = find_things(detector, scenes)
    requests = [request_of(sample) for sample in samples]
    measured: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(request.kind for request in requests):
        places = [place for place, request in enumerate(requests) if request.kind == kind]
        own = [requests[place] for place in places]
        said = verdicts(own, [found[place] for place in places])
        true = verdicts(own, [true_things(samples[place]) for place in places])
        measured[kind] = {
            "own": float(said.diagonal().mean()),
            "seen": float(said[true].mean()),
            "false_alarms": float(said[~true].mean()),
            "num_scenes": len(places),
        }
    return measured


def _apart(found: Sequence[Found]) -> list[Found]:
    kept: list[Found] = []
    for thing in sorted(found, key=lambda thing: -thing.certainty):
        if all(_covered(thing.box, other.box) < _SAME_THING for other in kept):
            kept.append(thing)
    return kept


def _covered(one: Sequence[float], other: Sequence[float]) -> float:
    """The share of the smaller box that lies in the other: a part of a large thing is no thing of its own."""
    sides = [[box[axis + 2] - box[axis] for axis in (0, 1)] for box in (one, other)]
    common = [min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1)]
    return math.prod(max(0.0, side) for side in common) / min(math.prod(pair) for pair in sides)
