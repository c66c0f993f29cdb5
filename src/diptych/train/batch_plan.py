"""Which samples each micro-batch of each step takes: equally many, or packs of equally many tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from diptych.config import Recipe
from diptych.data.mixture import Mixture
from diptych.data.packing import Packer, PackingState, Pick


@dataclass(frozen=True)
class StepPicks:
    """This rank's picks of one step, by micro-batch; the picks that were passed over, with the reason; the state with
    which the next step follows. `draws`: the first and the last of the step, over all ranks."""

    draws: tuple[int, int]
    micro_batches: tuple[tuple[Pick, ...], ...]
    unusable: tuple[tuple[Pick, ValueError], ...]
    state: dict[str, Any]


class BatchPlan(Protocol):
    def next_step(self) -> StepPicks: ...


@dataclass(frozen=True)
class Share:
    """Whose micro-batches: number m of rank r is number m * world_size + r of a step."""

    accumulation: int
    world_size: int
    rank: int

    @property
    def per_step(self) -> int:
        return self.accumulation * self.world_size

    def is_own(self, number: int) -> bool:
        return number % self.world_size == self.rank


class EqualBatches:
    """Step s takes draws [s G, (s + 1) G), G = size * accumulation * world_size, cut into micro-batches in order. So G
    alone decides which samples a step sees."""

    def __init__(self, mixture: Mixture, share: Share, *, size: int, first_step: int) -> None:
        self._mixture, self._share, self._size, self._step = mixture, share, size, first_step

    def next_step(self) -> StepPicks:
        start = self._step * self._share.per_step * self._size
        self._step += 1
        batches = [
            tuple(self._mixture.pick(draw) for draw in range(start + m * self._size, start + (m + 1) * self._size))
            for m in range(self._share.per_step)
            if self._share.is_own(m)
        ]
        return StepPicks((start, start + self._share.per_step * self._size - 1), tuple(batches), (), {})


class PackedBatches:
    """A micro-batch is a pack of at most so many tokens. Every rank follows all packs, and takes its own."""

    def __init__(self, packer: Packer, share: Share) -> None:
        self._packer, self._share = packer, share

    def next_step(self) -> StepPicks:
        packs = [self._packer.next_pack() for _ in range(self._share.per_step)]
        own = [pack for number, pack in enumerate(packs) if self._share.is_own(number)]
        unusable = tuple(one for pack in own for one in pack.unusable)
        draws = [draw for pack in packs for draw, _, _ in pack.picks]
        state = asdict(self._packer.state)
        return StepPicks((min(draws), max(draws)), tuple(pack.picks for pack in own), unusable, state)


def build_batch_plan(
    recipe: Recipe,
    mixture: Mixture,
    share: Share,
    *,
    num_tokens: Callable[[Pick], int],
    first_step: int,
    state: dict[str, Any],
) -> BatchPlan:
    """The plan that the recipe asks for, from `first_step` on; `state`: of the step before it (empty at the start)."""
    length = recipe.train.packing_length
    if length is None:
        return EqualBatches(mixture, share, size=recipe.train.per_device_train_batch_size, first_step=first_step)
    packing = PackingState(state["next_draw"], tuple(state["waiting"])) if state else PackingState()
    return PackedBatches(Packer(mixture.pick, num_tokens, length=length, state=packing), share)


def describe_batches(recipe: Recipe, share: Share) -> dict[str, Any]:
    """What of the plan must be the same for a resumed run to be the same run."""
    if recipe.train.packing_length is None:
        return {"samples per step": share.per_step * recipe.train.per_device_train_batch_size}
    return {"packs per step": share.per_step, "train.packing_length": recipe.train.packing_length}
