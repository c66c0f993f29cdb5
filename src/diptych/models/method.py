"""The contract between a method (what is learnt) and the train loop (how): the loop never looks inside a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True)
class LossSum:
    """A loss as a sum over `count` items. Means are taken over the whole optimisation step and all ranks."""

    total: Tensor
    count: float


@runtime_checkable
class Method(Protocol):
    """What the train loop asks of a method. Every method is also an `nn.Module`.

    `loss_weights`: weight of each loss name in the sum that is minimised.
    """

    loss_weights: dict[str, float]

    def num_samples(self) -> tuple[int, ...]:
        """How many samples each source of the recipe holds, in the order of `recipe.data.sources`."""
        ...

    def build_batch(self, picks: Sequence[tuple[int, int, int]], *, seed: int) -> Any:
        """Builds one micro-batch on the CPU. Each pick is (draw, source, index): `draw` is the sample's index in
        the run's stream, from which (with `seed`) all of its randomness derives, so that a sample's noise does not
        depend on micro-batching, packing, rank or worker."""
        ...

    def encode(self, picks: Sequence[tuple[int, int, int]]) -> None:
        """Computes what of these samples no training changes (latents, features, frozen text's states), and keeps it
        for later runs; `flush` brings the last of it to the disk. Raises ValueError for one that cannot be used."""
        ...

    def flush(self) -> None: ...

    def num_tokens(self, pick: tuple[int, int, int], *, seed: int) -> int:
        """How many tokens `build_batch` would make of one pick: what packing asks for. Raises ValueError for a sample
        that cannot be used."""
        ...

    def loss_counts(self, batch: Any) -> dict[str, float]:
        """The `count` that each loss of `forward(batch)` will have, known without running the model."""
        ...

    def forward(self, batch: Any) -> dict[str, LossSum]:
        """Losses by name; the same names for every batch (a loss without items has total 0 and count 0)."""
        ...

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Exactly the parameters that are trained, by name: what the optimiser sees and a checkpoint stores."""
        ...

    def shard_modules(self) -> Iterable[nn.Module]:
        """Modules that FSDP2 shards one by one, innermost first; all trained parameters lie in them or in `self`."""
        ...

    def frozen_hashes(self) -> dict[str, str]:
        """Name and SHA-256 of each frozen part that trained weights belong to (the base language model ...)."""
        ...

    def sample_grid(self, *, seed: int) -> Image.Image | None:
        """Draws the recipe's fixed prompts with the present weights; None where the method has nothing to draw."""
        ...

    def measure(self, *, seed: int) -> dict[str, float]:
        """What is worth watching beside the losses, by name, with the present weights; goes into the log."""
        ...

    def save_pretrained(self, folder: str, *, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Writes a morph: trained tensors (or the averaged `weights` instead), config, hashes of the frozen parts."""
        ...
