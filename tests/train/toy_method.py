"""A method small enough to train in milliseconds, with what makes real ones hard: a frozen part, two branches of which
a batch may use only one, uneven shapes, a parameter that nothing uses, losses of varying counts, global randomness."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from diptych.config import Recipe, build_recipe
from diptych.models.method import LossSum
from diptych.train.checkpoint import Snapshot

WIDTH = 6
NUM_SAMPLES = (11, 7)


@dataclass(frozen=True)
class ToyBatch:
    """x [S, WIDTH], is_text [S], items [S]: how many items each sample adds to its loss."""

    x: Tensor
    is_text: Tensor
    items: Tensor
    draws: tuple[int, ...]


class Broken(ValueError):
    kind = "broken"


class ToyMethod(nn.Module):
    """`kinds`: mixed (draw by draw), text, image, or pairs (draws 2k and 2k + 1 alike, by chance); `noise`: global
    randomness in forward; `poison`: {draw: site} puts a NaN at a site (text, image, gradient) in the batch that holds
    the draw; `broken`: samples (source, index) that cannot be used."""

    def __init__(
        self,
        *,
        kinds: str = "mixed",
        noise: float = 0.0,
        poison: dict[int, str] | None = None,
        width: int = WIDTH,
        broken: Iterable[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        self.loss_weights = {"text": 0.2, "image": 1.0}
        torch.manual_seed(1)
        self.base = nn.Linear(WIDTH, width).requires_grad_(False)
        self.text_block = nn.Sequential(nn.Linear(width, width + 1), nn.Tanh())
        self.image_block = nn.Sequential(nn.Linear(width, width + 1), nn.Tanh())
        self.scale = nn.Parameter(torch.ones(3))
        self.unused = nn.Parameter(torch.ones(5, 2))
        self.kinds, self.noise, self.poison, self.broken = kinds, noise, poison or {}, set(broken)
        self.built: list[tuple[int, int, int]] = []
        self.grids = 0

    def num_samples(self) -> tuple[int, ...]:
        return NUM_SAMPLES

    def build_batch(self, picks: Sequence[tuple[int, int, int]], *, seed: int) -> ToyBatch:
        for _, source, index in picks:
            if (source, index) in self.broken:
                raise Broken(f"sample {index} of source {source} is broken")
        self.built += picks
        rows, is_text, items = [], [], []
        for draw, source, index in picks:
            generator = torch.Generator().manual_seed(seed * 1000 + draw)
            rows.append(torch.randn(WIDTH, generator=generator) + source + index / 10)
            mix = int(hashlib.sha256(f"{draw // 2}-{seed}".encode()).hexdigest(), 16) % 3
            is_text.append({"mixed": draw % 3 == 0, "text": True, "image": False, "pairs": mix == 0}[self.kinds])
            items.append(1 + draw % 4)
        return ToyBatch(torch.stack(rows), torch.tensor(is_text), torch.tensor(items), tuple(p[0] for p in picks))

    def encode(self, picks: Sequence[tuple[int, int, int]]) -> None:
        self.build_batch(picks, seed=0)

    def flush(self) -> None:
        pass

    def num_tokens(self, pick: tuple[int, int, int], *, seed: int) -> int:
        """3 to 9, by the sample."""
        del seed
        if pick[1:] in self.broken:
            raise Broken(f"sample {pick[2]} of source {pick[1]} is broken")
        return 3 + (5 * pick[1] + 3 * pick[2]) % 7

    def loss_counts(self, batch: ToyBatch) -> dict[str, float]:
        text = float(batch.items[batch.is_text].sum())
        return {"text": text, "image": float(batch.items.sum()) - text}

    def forward(self, batch: ToyBatch) -> dict[str, LossSum]:
        poison = {self.poison[draw] for draw in batch.draws if draw in self.poison}
        losses = {}
        for name, block, chosen in (
            ("text", self.text_block, batch.is_text),
            ("image", self.image_block, ~batch.is_text),
        ):
            total = torch.zeros(())
            if chosen.any():  # a branch without samples is not run at all: no graph, no hooks
                states = self.base(batch.x[chosen])
                if self.noise:
                    states = states + self.noise * torch.randn(states.shape)
                predicted = block(block(states)[:, :-1])[:, :3] * self.scale
                errors = (predicted - batch.x[chosen, :3]).square().sum(1)
                total = (errors * batch.items[chosen]).sum()
                if "gradient" in poison:  # finite value, infinite slope
                    total = total + (self.scale.sum() * 0).clamp(min=0).sqrt()
            if name in poison:
                total = total + math.nan
            losses[name] = LossSum(total, float(batch.items[chosen].sum()))
        return losses

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def shard_modules(self) -> Iterable[nn.Module]:
        return [self.text_block, self.image_block]

    def frozen_hashes(self) -> dict[str, str]:
        data = b"".join(parameter.detach().numpy().tobytes() for parameter in self.base.parameters())
        return {"base": hashlib.sha256(data).hexdigest()}

    def measure(self, *, seed: int) -> dict[str, float]:
        del seed
        return {}

    def sample_grid(self, *, seed: int) -> Image.Image:
        torch.manual_seed(seed)  # careless on purpose: training must not notice
        self.grids += 1
        value = self.image_block(self.base(torch.randn(4, WIDTH))).mean()
        return Image.new("L", (8, 8), int(torch.sigmoid(value) * 255))

    def save_pretrained(self, folder: str, *, weights: dict[str, Tensor] | None = None) -> None:
        own = {name: parameter.detach() for name, parameter in self.trainable_parameters().items()}
        Path(folder).mkdir(parents=True)
        save_file(weights or own, Path(folder) / "trained.safetensors")


class HookedMethod(ToyMethod):
    """Calls `hook(number of forward passes before this one)` first."""

    def __init__(self, hook: Callable[[int], object], **options: Any) -> None:
        super().__init__(**options)
        self.hook, self.passes = hook, 0

    def forward(self, batch: ToyBatch) -> dict[str, LossSum]:
        self.hook(self.passes)
        self.passes += 1
        return super().forward(batch)


def make_snapshot(step: int) -> Snapshot:
    """A checkpoint's content, made of numbers that its step seeds."""
    generator = torch.Generator().manual_seed(step)
    trained = {"a": torch.randn(7, 5, generator=generator), "b.c": torch.randn(3, generator=generator)}
    moments = {"exp_avg.a": torch.randn(7, 5, generator=generator), "exp_avg.b.c": torch.zeros(3)}
    return Snapshot(step, {"step": step, "run": {"seed": 1}}, {"trained": trained, "optimizer": moments})


def toy_recipe(output_dir: Path | str, *, seed: int = 3, **train: Any) -> Recipe:
    """Twelve quick steps; keyword arguments are keys of `train`."""
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 12,
        "learning_rate": 0.02,
        "weight_decay": 0.01,
        "ema": 0.9,
        "logging_steps": 1,
        "save_every": 1000,
        **train,
    }
    sources = [{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 1}]
    return build_recipe(
        {
            "output_dir": str(output_dir),
            "seed": seed,
            "dtype": "float32",
            "data": {"sources": sources},
            "train": settings,
        }
    )
