"""Frozen means cached, in VPiT: the states before the first trained layer are computed once for each form of a sample.

A form is one way of hiding and noising a target's visual tokens; with `vpit.cached_forms` of them a sample's states at
the first trained layer are one of as many tensors, whatever the trained layers have become.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.models.vpit import Rows, VPiT, run_packed
from diptych.nn.cut_decoder import cut_decoder, run
from diptych.sequence import Batch

FormKey = tuple[int, int, int]
"""Source, index of the sample in it, form."""


class FrozenLayers:
    """Computes and keeps the states at layer `first`; `num_computed` counts the samples that the layers ran on.

    What makes the embeddings must be frozen too. Raises ValueError: see `cut_decoder`.
    """

    def __init__(self, model: VPiT, first: int) -> None:
        self.model = model
        self.lower, self.upper = cut_decoder(model.decoder, first)
        self.num_computed = 0
        self._kept: dict[FormKey, Tensor] = {}

    def final_states(self, batch: Batch, rows: Rows, features: Tensor | None, keys: Sequence[FormKey]) -> Tensor:
        """As `VPiT.states`; keys: of each sample of the packed batch, in order."""
        if missing := [i for i, key in enumerate(keys) if key not in self._kept]:
            self._compute(batch, rows, features, keys, missing)
        device = batch.token_ids.device
        states = torch.cat([self._kept[key] for key in keys]).to(device)
        return run_packed(self.upper, states, rows)

    @torch.no_grad()
    def _compute(
        self, batch: Batch, rows: Rows, features: Tensor | None, keys: Sequence[FormKey], missing: list[int]
    ) -> None:
        lengths = torch.bincount(batch.sample_ids, minlength=len(keys)).tolist()
        self.lower.eval()
        # The same numbers whatever the run's number format: what is kept is of neither training nor generation.
        with torch.autocast(batch.token_ids.device.type, enabled=False):
            embeddings = self.model.embed(batch.token_ids, batch.is_image, features)
            states = run(self.lower, embeddings[rows.index[missing]])
        for own, i in zip(states, missing, strict=True):
            self._kept[keys[i]] = own[: lengths[i]].cpu().clone()
        self.num_computed += len(missing)
