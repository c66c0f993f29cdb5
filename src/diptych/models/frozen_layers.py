"""Frozen means cached, in VPiT: the states before the first trained layer are computed once for each form of a sample.

A form is one way of hiding and noising a target's visual tokens; with `vpit.cached_forms` of them a sample's states at
the first trained layer are one of as many tensors, whatever the trained layers have become.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.data.recently_used import RecentlyUsed
from diptych.models.vpit import Rows, VPiT, run_packed
from diptych.nn.cut_decoder import cut_decoder, run
from diptych.sequence import Batch

FormKey = tuple[int, int, int]
"""Source, index of the sample in it, form."""
STATES_KEPT = 1_000_000
STATE_BYTES_KEPT = 4_000_000_000
"""In memory, of the forms used last; a larger set's are computed again when they are drawn. `diptych inspect` says how
many bytes a sample takes."""


class FrozenLayers:
    """Computes the states at layer `first`, and keeps those used last, STATE_BYTES_KEPT at most.
    `num_computed` counts the samples that the layers ran on.

    What makes the embeddings must be frozen too. Raises ValueError: see `cut_decoder`.
    """

    def __init__(self, model: VPiT, first: int) -> None:
        self.model = model
        self.lower, self.upper = cut_decoder(model.decoder, first)
        self.num_computed = 0
        self._kept: RecentlyUsed[FormKey, Tensor] = RecentlyUsed(
            STATES_KEPT, max_total=STATE_BYTES_KEPT, size_of=lambda states: states.nbytes
        )

    @property
    def num_bytes_kept(self) -> int:
        return self._kept.total

    def final_states(self, batch: Batch, rows: Rows, features: Tensor | None, keys: Sequence[FormKey]) -> Tensor:
        """As `VPiT.states`; keys: of each sample of the packed batch, in order."""
        found = {key: states for key in keys if (states := self._kept.get(key)) is not None}
        if missing := {key: i for i, key in enumerate(keys) if key not in found}:
            found |= self._compute(batch, rows, features, missing)
        device = batch.token_ids.device
        states = torch.cat([found[key] for key in keys]).to(device)
        return run_packed(self.upper, states, rows)

    @torch.no_grad()
    def _compute(
        self, batch: Batch, rows: Rows, features: Tensor | None, missing: dict[FormKey, int]
    ) -> dict[FormKey, Tensor]:
        """The states of the samples at these places of the batch, kept from now on."""
        lengths = torch.bincount(batch.sample_ids).tolist()
        places = list(missing.values())
        self.lower.eval()
        # The same numbers whatever the run's number format: what is kept is of neither training nor generation.
        with torch.autocast(batch.token_ids.device.type, enabled=False):
            embeddings = self.model.embed(batch.token_ids, batch.is_image, features)
            states = run(self.lower, embeddings[rows.index[places]])
        self.num_computed += len(missing)
        return {
            key: self._kept.put(key, own[: lengths[i]].cpu().clone())
            for own, (key, i) in zip(states, missing.items(), strict=True)
        }
