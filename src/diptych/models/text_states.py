"""Frozen means cached: text states that no trained weight can change are computed once (X-Fusion, "Exact" 2)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.data.tensor_cache import TensorCache
from diptych.nn.towers.text import TextTower
from diptych.nn.visibility import RoutingPlan, plan_text_only
from diptych.sequence import Batch, Sequence, TextSpan, pack

TEXT_BYTES_KEPT = 1_000_000_000
"""Of them in memory; the cache on disk gives the rest."""


@dataclass(frozen=True)
class FrozenText:
    """States of a batch's text that are given, not trained.

    prefix [K, Np, D]: at the input of each layer that has a vision block; live_prefix [Lr, Nlp, D]: at the input of
    every layer from the first such layer on; live [Nl, D]: at the input of that first layer.
    """

    prefix: Tensor
    live_prefix: Tensor
    live: Tensor


Key = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids and positions of a run of text."""


@dataclass(frozen=True)
class _Runs:
    """Runs of text that a plan reads. prefix_alone: of `prefix`, those that only images read (what live text reads of
    a run holds what images read of it). up_to_live: where layers come before the first block, each live run behind its
    sample's prefix."""

    prefix: list[Key]
    live_prefix: list[Key]
    live: list[Key]
    prefix_alone: list[Key]
    up_to_live: list[Key]


class TextStates:
    """Computes, keeps and gathers frozen text states. `num_computed` counts the tokens that the text tower ran on."""

    def __init__(self, tower: TextTower, layers: Many[int], cache: TensorCache | None = None) -> None:
        self.tower = tower
        self.layers = list(layers)
        self.first = self.layers[0]
        self.every = list(range(self.first, tower.num_layers))
        self.cache = cache
        self.num_computed = 0

    def gather(self, batch: Batch, plan: RoutingPlan) -> FrozenText:
        """The frozen states that this batch's plan asks for, computed where they are not kept."""
        device = batch.token_ids.device
        weight = self.tower.language_model.model.embed_tokens.weight
        empty = torch.zeros(1, 0, self.tower.width, dtype=weight.dtype, device=device)
        runs = self._read_runs(batch, plan)
        live_prefix = self._states(runs.live_prefix, self.every, device)
        known = dict(zip(runs.live_prefix, live_prefix, strict=True))
        found = dict(zip(runs.prefix_alone, self._states(runs.prefix_alone, self.layers, device), strict=True))
        at_blocks = [layer - self.first for layer in self.layers]
        prefix = [known[run][at_blocks] if run in known else found[run] for run in runs.prefix]
        live = []
        if runs.live and self.first == 0:  # nothing has happened to the embeddings yet
            live = [self.tower.embed(batch.token_ids[plan.live])[None]]
        elif runs.live:
            states = self._states(runs.up_to_live, [self.first], device)
            live = [whole[:, -len(run[0]) :] for whole, run in zip(states, runs.live, strict=True)]
        return FrozenText(
            prefix=torch.cat(prefix, dim=1) if prefix else empty.expand(len(self.layers), -1, -1),
            live_prefix=torch.cat(live_prefix, dim=1) if live_prefix else empty.expand(len(self.every), -1, -1),
            live=torch.cat(live, dim=1)[0] if live else empty[0],
        )

    def kept_bytes(self, batch: Batch, plan: RoutingPlan) -> list[tuple[str, int]]:
        """What `gather` keeps of each sample of this batch: the name that it is kept under, once for samples of the
        same text, and its bytes. Nothing is computed."""
        runs = self._read_runs(batch, plan)
        asked = ((runs.live_prefix, self.every), (runs.prefix_alone, self.layers), (runs.up_to_live, [self.first]))
        each = self.tower.width * self.tower.language_model.model.embed_tokens.weight.element_size()
        return [(_digest(run, layers), len(layers) * len(run[0]) * each) for found, layers in asked for run in found]

    def _read_runs(self, batch: Batch, plan: RoutingPlan) -> _Runs:
        prefix, _ = self._runs(batch, plan.prefix)
        live_prefix, front_samples = self._runs(batch, plan.live_prefix)
        live, live_samples = self._runs(batch, plan.live)
        up_to_live = []
        if self.first:
            fronts = dict(zip(front_samples, live_prefix, strict=True))
            up_to_live = [_join(fronts.get(s, ((), ())), run) for s, run in zip(live_samples, live, strict=True)]
        known = set(live_prefix)
        return _Runs(prefix, live_prefix, live, [run for run in prefix if run not in known], up_to_live)

    def _runs(self, batch: Batch, rows: Tensor) -> tuple[list[Key], list[int]]:
        """Splits stream positions by sample: token ids and positions of each run, and its sample."""
        if not rows.numel():
            return [], []
        samples, counts = torch.unique_consecutive(batch.sample_ids[rows], return_counts=True)
        sizes = counts.tolist()
        ids = batch.token_ids[rows].split(sizes)
        positions = batch.positions[rows].split(sizes)
        runs = [(tuple(i.tolist()), tuple(p.tolist())) for i, p in zip(ids, positions, strict=True)]
        return runs, samples.tolist()

    def _states(self, runs: list[Key], layers: list[int], device: torch.device) -> list[Tensor]:
        """States of each run at `layers`: [len(layers), T, D] each."""
        if not runs:
            return []
        names = {run: _digest(run, layers) for run in runs}
        found: dict[Key, Tensor] = {}
        for run, name in names.items():
            kept = self.cache.get(name) if self.cache is not None else None
            if kept is not None:
                found[run] = kept["states"]
        missing = [run for run in names if run not in found]
        for run, states in zip(missing, self._compute(missing, layers, device), strict=True):
            found[run] = states
            if self.cache is not None:
                self.cache.put(names[run], {"states": states})
        return [found[run].to(device) for run in runs]

    def _compute(self, runs: list[Key], layers: list[int], device: torch.device) -> list[Tensor]:
        if not runs:
            return []
        spans = [Sequence((TextSpan(ids, (False,) * len(ids)),), draw=i) for i, (ids, _) in enumerate(runs)]
        batch = pack(spans).to(device)
        positions = torch.tensor([p for _, run_positions in runs for p in run_positions], device=device)
        self.num_computed += positions.numel()
        groups = plan_text_only(batch).to(device)
        # The same numbers in training under autocast and in generation without it: what is cached is of neither.
        with torch.autocast(device.type, enabled=False):
            states = self.tower.frozen_states(batch.token_ids, positions, groups, layers)
        return [part.clone() for part in states.split([len(ids) for ids, _ in runs], dim=1)]


def _join(front: Key, back: Key) -> Key:
    return front[0] + back[0], front[1] + back[1]


def _digest(run: Key, layers: list[int]) -> str:
    kind = "-".join(str(layer) for layer in layers)
    return hashlib.sha256(f"{kind}|{run[0]}|{run[1]}".encode()).hexdigest()
