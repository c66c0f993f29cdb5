"""What a recipe costs before it starts: parameters and who trains, FLOPs by part, memory, expected time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from diptych.config import Recipe
from diptych.distributed import compute_device

SHARE_OF_MATMUL_RATE = 0.4
"""What a training step on a CPU reaches of the rate of one large matrix product: norms, attention's copies, the
optimiser and the loader take the rest. Measured for the demo's recipe; see docs/benchmarks.md."""


NUMS_OF_RANKS = (1, 8)
"""What memory is told for: one process, and those of a machine with eight cards."""
KINDS_COUNTED_AS = {"supervised token": "text token"}
"""Kinds of tokens that are of another kind, too."""


@dataclass(frozen=True)
class Flops:
    """Of a forward and a backward pass; a multiply and an add are two."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.forward * factor, self.backward * factor)

    @property
    def total(self) -> float:
        return self.forward + self.backward


@dataclass(frozen=True)
class PartCost:
    """FLOPs of one optimisation step in one part of the model, and what they are spent on: `tokens` of a `kind`."""

    name: str
    flops: Flops
    tokens: float
    kind: str

    @property
    def each(self) -> str:
        if not self.tokens or not self.flops.total:
            return "-"
        forward, backward = (si(flops / self.tokens) for flops in (self.flops.forward, self.flops.backward))
        return f"{forward} + {backward}, {self.kind}"


@dataclass(frozen=True)
class RunAccount:
    """The account of a recipe. Bytes and FLOPs are plain numbers; `assumed`: what was not there to be looked at.

    trained, frozen: parameters by part. once: FLOPs of what is computed for one step's samples when they are first met,
    and then cached. cached: bytes of that, by name, and for what ("per text token"). keeps_language: whether
    text alone stays bit for bit what the base language model makes of it; None: there is none. tower_start: where the
    vision tower's layers come from; None: there is no tower. tokens: of one step, by
    kind, where all that a token costs can be told by it.
    """

    recipe: Recipe
    dtype: torch.dtype
    trained: dict[str, int]
    frozen: dict[str, int]
    parts: tuple[PartCost, ...]
    samples_per_step: int
    once: dict[str, Flops] = field(default_factory=dict)
    cached: dict[str, tuple[int, str]] = field(default_factory=dict)
    keeps_language: bool | None = None
    tower_start: str | None = None
    assumed: str | None = None
    tokens: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> Flops:
        return sum((part.flops for part in self.parts), Flops())

    @property
    def num_parameters(self) -> int:
        return sum(self.trained.values()) + sum(self.frozen.values())

    @property
    def flops_per_token(self) -> dict[str, Flops]:
        """Of all parts together, by kind of token: what designs are compared by. The LM head is the text's."""
        kinds = {part.name: KINDS_COUNTED_AS.get(part.kind, part.kind) for part in self.parts}
        return {
            kind: sum((part.flops for part in self.parts if kinds[part.name] == kind), Flops()) * (1 / number)
            for kind, number in self.tokens.items()
            if number
        }

    def rank_bytes(self, num_ranks: int) -> dict[str, int]:
        """What each of so many ranks holds in fp32, by name, without activations. Several divide what is trained, but
        gather whole weights and collect whole gradients for the length of a step (train/sharding.py)."""
        trained = 4 * sum(self.trained.values())
        shard = math.ceil(trained / num_ranks)
        whole = trained if num_ranks > 1 else 0
        held = {
            "frozen weights": 4 * sum(self.frozen.values()),
            "trained weights": whole + shard,
            "gradients": whole + shard,
            "optimiser state": 2 * shard,
        }
        return held | ({"averaged weights": shard} if self.recipe.train.ema else {})

    def as_dict(self) -> dict[str, Any]:
        """The account as plain numbers, for results that are compared with others'."""

        def flops(cost: Flops) -> dict[str, float]:
            return {"forward": cost.forward, "backward": cost.backward}

        return {
            "parameters": {"trained": self.trained, "frozen": self.frozen, "total": self.num_parameters},
            "flops_per_step": {"samples": self.samples_per_step, **flops(self.step)},
            "flops_by_part": [
                {"part": part.name, **flops(part.flops), "tokens": part.tokens, "kind": part.kind}
                for part in self.parts
            ],
            "flops_per_token": {kind: flops(cost) for kind, cost in self.flops_per_token.items()},
            "flops_once": {name: cost.forward for name, cost in self.once.items()},
            "bytes_of_a_rank": {str(num): self.rank_bytes(num) for num in NUMS_OF_RANKS},
            "bytes_cached": {name: {"bytes": size, "of": per} for name, (size, per) in self.cached.items()},
            "keeps_language": self.keeps_language,
            "tower_start": self.tower_start,
            "assumed": self.assumed,
        }

    def describe(self, rate: float, *, measured: bool) -> str:
        """The account as text for a terminal."""
        train, step = self.recipe.train, self.step
        lines = ["parameters"]
        lines += [_row(name, si(count), "trained") for name, count in self.trained.items()]
        lines += [_row(name, si(count), "frozen") for name, count in self.frozen.items() if count]
        lines.append(_row("all", si(self.num_parameters), f"{si(sum(self.trained.values()))} trained"))
        if self.keeps_language is not None:
            lines.append(
                "  language: kept bit for bit; the language model is frozen"
                if self.keeps_language
                else "  language: NOT kept; layers of the language model itself are trained"
            )
        if self.tower_start is not None:
            tower = self.recipe.vision_tower
            design = tower.layer_design + ("" if tower.x_fuse == "none" else f", x_fuse {tower.x_fuse}")
            lines.append(f"  vision tower ({design}): its layers are {self.tower_start}")
        assumed = f" (assumed: {self.assumed})" if self.assumed else ""
        lines.append(f"FLOPs of one step of {self.samples_per_step} samples{assumed}")
        lines.append(_row("", "forward", "backward", "forward + backward, of each token"))
        for part in self.parts:
            lines.append(_row(part.name, si(part.flops.forward), si(part.flops.backward), part.each))
        lines.append(_row("all", si(step.forward), si(step.backward)))
        for kind, cost in self.flops_per_token.items():
            lines.append(_row(f"all, of each {kind}", si(cost.forward), si(cost.backward)))
        lines += [
            _row(f"{name}, once and then cached", si(cost.forward), "0")
            for name, cost in self.once.items()
            if cost.total
        ]
        lines.append("memory, without activations")
        held = [self.rank_bytes(num) for num in NUMS_OF_RANKS]
        lines.append(_row("", "alone", f"each of {NUMS_OF_RANKS[1]} processes"))
        lines += [_row(name, *(si(one[name]) + "B" for one in held)) for name in held[0]]
        lines.append(_row("all", *(si(sum(one.values())) + "B" for one in held)))
        lines += [_row(f"cached {name}", si(size) + "B", per) for name, (size, per) in self.cached.items()]
        seconds = step.total / (rate * SHARE_OF_MATMUL_RATE)
        whole, limit = train.max_steps * seconds, 60 * (train.max_train_minutes or math.inf)
        kind = f"{str(self.dtype).removeprefix('torch.')} matrix products, {'measured here' if measured else 'given'}"
        lines.append("time")
        lines.append(_row(kind, si(rate) + "F/s", f"of which a step reaches about {SHARE_OF_MATMUL_RATE:.0%}"))
        lines.append(_row("one step", f"{seconds:.3g} s", f"{self.samples_per_step / seconds:.3g} samples per second"))
        if whole > limit:
            lines.append(
                _row(f"about {limit / seconds:.0f} steps", _duration(limit), "train.max_train_minutes ends it")
            )
        else:
            lines.append(_row(f"{train.max_steps} steps", _duration(whole)))
        return "\n".join(lines)


def measure_matmul_rate(dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """FLOP/s of a large matrix product on this process's device with torch's present threads: the best of many."""
    device = compute_device()
    size = 4096 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.matmul(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def si(number: float) -> str:
    """Three digits and a unit's prefix: 1.34 G."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit and ' ' + unit}"
        number /= 1000
    return f"{number:.3g} Z"


def _row(name: str, first: str, second: str = "", third: str = "") -> str:
    return f"  {name:<46}{first:>9}  {second:>9}  {third}".rstrip()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 5 * 86400 else f"{seconds / 86400:.0f} days"
