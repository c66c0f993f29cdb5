"""The carried detector of emoji in scenes: a small convolutional network that says what stands where, in which colour.

Trained by bench/scene_detector.py; what it finds is read by evaluate/scene_judging.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych.backbones.weight_hash import hash_folder

CARRIED = Path(__file__).parent / "weights" / "emoji-detector"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
STRIDE = 8
"""Pixels of a cell's side."""


class Residual(nn.Module):
    """Two 3x3 convolutions, their input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_convolve(width, width), *_convolve(width, width)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x + self.layers(x))


class SceneDetector(nn.Module):
    """Predicts, for each cell of 8 x 8 pixels, the thing whose middle is there. `names`: things that it tells apart;
    whatever else stands in a scene is found as another thing. `colours`: by name. `hash`: of the folder it was loaded
    from."""

    def __init__(
        self, names: Sequence[str], colours: Sequence[str], *, image_size: int = 64, width: int = 48, hash: str = ""
    ) -> None:
        super().__init__()
        if image_size % STRIDE:
            raise ValueError(f"image_size is {image_size}; the detector's cells have {STRIDE} pixels a side")
        self.names, self.colours, self.hash = tuple(names), tuple(colours), hash
        self.image_size, self.width = image_size, width
        self.sizes = (1, 4, len(self.names) + 1, len(self.colours))
        self.body = nn.Sequential(
            *_convolve(3, width, stride=2),
            *_convolve(width, width, stride=2),
            Residual(width),
            *_convolve(width, 3 * width, stride=2),
            Residual(3 * width),
            Residual(3 * width),
            nn.Conv2d(3 * width, sum(self.sizes), 1),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images [B, 3, S, S] in -1..1 -> of each of N cells (row by row), logits that a thing is there [B, N], its box
        [B, N, 4] as `boxes_at` reads it, logits of its name [B, N, names + 1], the last: another thing, and of its
        colour [B, N, colours]."""
        there, box, name, colour = self.body(images).flatten(2).mT.split(self.sizes, dim=-1)
        return there[..., 0], box, name, colour

    def cell_centres(self) -> Tensor:
        """[N, 2], x and y as shares of the scene's side."""
        cells = self.image_size // STRIDE
        edge = (torch.arange(cells) + 0.5) / cells
        return torch.stack([edge.repeat(cells), edge.repeat_interleave(cells)], dim=-1)

    def boxes_at(self, predicted: Tensor) -> Tensor:
        """[..., N, 4] middle against the cell's, in cells, and logarithm of width and height, in sides -> left, top,
        right, bottom in sides."""
        middle = self.cell_centres() + predicted[..., :2] * STRIDE / self.image_size
        half = predicted[..., 2:].exp() / 2
        return torch.cat([middle - half, middle + half], dim=-1)

    def targets_of(self, boxes: Tensor) -> Tensor:
        """The inverse: one box for each cell [..., N, 4] as the network is to predict it."""
        middle, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        return torch.cat([(middle - self.cell_centres()) * self.image_size / STRIDE, size.log()], dim=-1)

    def save(self, folder: Path, **more: Any) -> None:
        """Writes config.json, with `more` in it, and convolutions in bfloat16."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {key: getattr(self, key) for key in ("names", "colours", "image_size", "width")} | more
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        narrow = {
            name: (tensor.bfloat16() if tensor.ndim == 4 else tensor).contiguous()
            for name, tensor in self.state_dict().items()
        }
        save_file(narrow, folder / WEIGHTS)


def load_scene_detector(folder: Path = CARRIED) -> SceneDetector:
    """The carried detector, or another that was trained. Raises ValueError, naming the folder, if there is none or it
    is damaged."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        keys = ("names", "colours", "image_size", "width")
        detector = SceneDetector(**{key: config[key] for key in keys}, hash=hash_folder(folder))
        detector.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"detector {folder} cannot be read ({error}); train one: python bench/scene_detector.py train"
        ) from error
    return detector.eval().requires_grad_(False)


def _convolve(inputs: int, outputs: int, *, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
