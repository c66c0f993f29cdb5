"""Training of the detector of emoji scenes, on scenes made as they are needed, changed as drawing changes them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate, l1_loss

from diptych.backbones.scene_detector import SceneDetector
from diptych.data.builders.emoji import STYLE_WORDS
from diptych.data.builders.emoji_scenes import Placed, draw_scene, fits_word, recolour
from diptych.data.builders.emoji_tasks import box_overlap
from diptych.data.builders.scene_prompts import KINDS, Facts, Pictures, draw_request, lay_out
from diptych.data.images import image_to_tensor

RoundTrip = Callable[[Tensor, float], Tensor]
"""Images [B, 3, S, S] in -1..1 through an autoencoder, noise of that strength on their latents."""
NO_COLOUR = -100
"""Of a thing whose colour has no single word; cross-entropy leaves it out."""
_CENTRAL = 0.25
"""Cells whose middle is nearer to a box's than this share of its size predict it; the rest of the box is not judged."""
_CODED_SHARE = 8
"""One image in so many goes through the autoencoder."""


@dataclass(frozen=True)
class Label:
    """Indices of name and colour as the detector's, and the box in shares of the side."""

    name: int
    colour: int
    box: tuple[float, float, float, float]


@dataclass
class ScenePainter:
    """Scenes for training. `pictures`: of the detector's things, by name and style; `others`: of other things, found
    without a name; `facts`: what scenes that are asked for show; `coloured`: things shown in any colour."""

    detector: SceneDetector
    pictures: Pictures
    others: Sequence[Image.Image]
    facts: Facts
    coloured: Sequence[str]
    _in_colour: dict[tuple[str, str, str], Image.Image] = field(default_factory=dict, repr=False)
    _own_colours: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)

    def paint(self, chance: random.Random) -> tuple[Image.Image, list[Label]]:
        """One scene: half of them as they are asked for, half of anything anywhere, some empty."""
        placed, labels = self._asked(chance) if chance.random() < 0.5 else self._anything(chance)
        placed = [Placed(p.name, _turned(p.picture, chance), p.box) for p in placed]
        return draw_scene(placed, self.detector.image_size), labels

    def _asked(self, chance: random.Random) -> tuple[list[Placed], list[Label]]:
        request = draw_request(chance.choice(KINDS[1:]), self.facts, chance)
        placed = lay_out(request, self.pictures, chance)
        colours = self.detector.colours
        labels = []
        for thing in placed:
            colour = colours.index(request.colour) if request.colour else self._colour_of(thing.name, request.style)
            labels.append(Label(self.detector.names.index(thing.name), colour, thing.box))
        return placed, labels

    def _anything(self, chance: random.Random) -> tuple[list[Placed], list[Label]]:
        placed: list[Placed] = []
        labels: list[Label] = []
        style, count = chance.choice(tuple(STYLE_WORDS)), chance.choice((0, 1, 1, 1, 2, 3, 4, 5))
        for _ in range(count):
            side = chance.uniform(0.35, 1.0) if count == 1 else chance.uniform(0.25, 0.55)
            width, height = side, side * chance.uniform(0.8, 1.0)
            if chance.random() < 0.5:
                width, height = height, width
            left, top = chance.uniform(0, 1 - width), chance.uniform(0, 1 - height)
            box = (left, top, left + width, top + height)
            if any(box_overlap(box, other.box) > 0.05 for other in placed):
                continue
            name, colour, picture = self._thing(style, chance)
            placed.append(Placed("", picture, box))
            labels.append(Label(name, colour, box))
        return placed, labels

    def _thing(self, style: str, chance: random.Random) -> tuple[int, int, Image.Image]:
        names = self.detector.names
        if self.others and chance.random() < 0.3:
            return len(names), NO_COLOUR, chance.choice(self.others)
        name = chance.choice(names)
        if name in self.coloured and chance.random() < 0.5:
            colour = chance.choice(self.detector.colours)
            key = name, style, colour
            if key not in self._in_colour:
                self._in_colour[key] = recolour(self.pictures[name, style], colour)
            return names.index(name), self.detector.colours.index(colour), self._in_colour[key]
        return names.index(name), self._colour_of(name, style), self.pictures[name, style]

    def _colour_of(self, name: str, style: str) -> int:
        """Of the picture as it is, where one word fits it."""
        if (name, style) not in self._own_colours:
            picture = self.pictures[name, style]
            fitting = [k for k, colour in enumerate(self.detector.colours) if fits_word(picture, colour)]
            self._own_colours[name, style] = fitting[0] if len(fitting) == 1 else NO_COLOUR
        return self._own_colours[name, style]


def train_detector(
    painter: ScenePainter,
    *,
    num_steps: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    round_trip: RoundTrip | None = None,
    progress: Callable[[int, Mapping[str, float]], None] = lambda step, losses: None,
) -> None:
    """Trains the painter's detector in place (AdamW, one cycle of the learning rate); the same arguments, the same
    scenes. `progress`: told of each step its losses and the seconds since the start."""
    detector = painter.detector
    optimiser = torch.optim.AdamW(detector.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=num_steps, pct_start=0.1, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(seed)
    detector.train().requires_grad_(True)
    started = time.monotonic()
    for step in range(num_steps):
        scenes = [painter.paint(random.Random(f"{seed}:{step}:{number}")) for number in range(batch_size)]
        images = torch.stack([image_to_tensor(image, detector.image_size) for image, _ in scenes])
        images = change_images(images, generator, round_trip).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = detector(images)
        losses = detection_losses(detector, predicted, [labels for _, labels in scenes])
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        told = {name: float(loss.detach()) for name, loss in losses.items()}
        progress(step + 1, told | {"seconds": time.monotonic() - started})
    detector.eval().requires_grad_(False)


def detection_losses(
    detector: SceneDetector, predicted: Sequence[Tensor], labels: Sequence[Sequence[Label]]
) -> dict[str, Tensor]:
    """Of `SceneDetector.forward`'s outputs: presence for all cells that are judged, the rest where a thing is; each by
    the number of cells that hold one."""
    there, box, name, colour = (part.float() for part in predicted)
    owners = torch.stack([assign_cells(detector, scene) for scene in labels])
    held = owners >= 0
    number = held.sum().clamp_min(1)
    judged = owners > _UNJUDGED
    losses = {
        "presence": binary_cross_entropy_with_logits(there[judged], held[judged].float(), reduction="sum") / number
    }
    if not bool(held.any()):
        return losses
    owned = [scene[k] for scene, cells in zip(labels, owners.tolist(), strict=True) for k in cells if k >= 0]
    boxes = detector.targets_of(_spread(held, torch.tensor([label.box for label in owned])))[held]
    names, colours = (torch.tensor([getattr(label, what) for label in owned]) for what in ("name", "colour"))
    losses["box"] = l1_loss(box[held], boxes)
    losses["name"] = cross_entropy(name[held], names)
    if bool((colours != NO_COLOUR).any()):
        losses["colour"] = cross_entropy(colour[held], colours, ignore_index=NO_COLOUR)
    return losses


_EMPTY, _UNJUDGED = -1, -2


def assign_cells(detector: SceneDetector, labels: Sequence[Label]) -> Tensor:
    """[N] the label that each cell is to predict, _EMPTY, or _UNJUDGED: within a box, but not near its middle. The cell
    nearest to a middle is always its label's."""
    centres = detector.cell_centres()
    owners = torch.full((len(centres),), _EMPTY)
    boxes = torch.tensor([label.box for label in labels]).reshape(-1, 4)
    middles, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for middle, size in zip(middles, sizes, strict=True):
        owners[((centres - middle).abs() <= size / 2).all(dim=-1)] = _UNJUDGED
    for number, (middle, size) in enumerate(zip(middles, sizes, strict=True)):
        distance = (centres - middle).abs()
        owners[(distance <= _CENTRAL * size).all(dim=-1)] = number
    for number, middle in enumerate(middles):
        owners[(centres - middle).square().sum(dim=-1).argmin()] = number
    return owners


def change_images(images: Tensor, generator: torch.Generator, round_trip: RoundTrip | None = None) -> Tensor:
    """Images [B, 3, S, S] in -1..1, some blurred, paler, noised, or through the autoencoder, as drawings are."""
    num, size = len(images), images.shape[-1]

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num, 1, 1, 1, generator=generator)

    changed = images.clone()
    if round_trip is not None:
        strength = 0.5 * float(torch.rand((), generator=generator))
        coded = num // _CODED_SHARE
        changed[:coded] = round_trip(changed[:coded], strength)
    small = int(torch.randint(size * 3 // 8, size, (), generator=generator))
    blurred = interpolate(changed, size=small, mode="area")
    blurred = interpolate(blurred, size=size, mode="bilinear", align_corners=False)
    changed = torch.where(draw(0, 1) < 0.4, blurred, changed)
    changed = (changed - 1) * draw(0.75, 1.15) + 1 - draw(0, 0.1)  # white stays nearly white
    noise = torch.randn(changed.shape, generator=generator)
    return (changed + noise * draw(-0.12, 0.12).clamp_min(0)).clamp(-1, 1)


def _spread(held: Tensor, rows: Tensor) -> Tensor:
    """Rows [K, 4] at the K held cells of [B, N]; elsewhere a box that has a logarithm."""
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(*held.shape, 1)
    boxes[held] = rows
    return boxes


def _turned(picture: Image.Image, chance: random.Random) -> Image.Image:
    """Half of them mirrored, half turned by up to 12 degrees."""
    if chance.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if chance.random() < 0.5:
        return picture.rotate(chance.uniform(-12, 12), Image.Resampling.BILINEAR, fillcolor="white")
    return picture
