"""One packed stream through a Hugging Face decoder: its linear layers see no padding, only its attention sees rows.

The decoder is told to attend by a function of ours (transformers' attention interface). Without rows that function is
the decoder's own scaled dot-product attention; with them it lays queries, keys and values out as padded rows first,
rows of like length together.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAME = "diptych_rows"
OWN = "sdpa"
_MOST_GROUPS = 4
"""Of rows that attend together, each half as long as the one before it."""


@dataclass(frozen=True)
class RowGroups:
    """Rows by length. indices: of each group [S, T], the token in each place of its rows (any where padded, and padding
    stands at the end). places [N]: where each token stands, all groups' places in one line."""

    indices: tuple[Tensor, ...]
    places: Tensor

    def to(self, device: torch.device | str) -> RowGroups:
        return RowGroups(tuple(index.to(device) for index in self.indices), self.places.to(device))


def group_rows(index: Tensor, row: Tensor, column: Tensor) -> RowGroups:
    """Rows [S, T] of a packed stream in groups: attention costs the square of a group's longest row. `row` and `column`
    [N]: where each token lies in `index`."""
    lengths = torch.bincount(row, minlength=len(index))
    halvings = (index.shape[1] / lengths.clamp_min(1)).log2().floor().clamp_max(_MOST_GROUPS - 1)
    indices, starts, filled = [], torch.zeros(len(index), dtype=torch.long), 0
    for own in halvings.unique():
        members = (halvings == own).nonzero()[:, 0]
        longest = int(lengths[members].max())
        indices.append(index[members, :longest])
        starts[members] = filled + longest * torch.arange(len(members))
        filled += indices[-1].numel()
    return RowGroups(tuple(indices), starts[row] + column)


def longest_by_rows(decoder: Any) -> int:
    """Lets a decoder attend by rows, of so many tokens at most (what its narrowest window holds).

    0, with nothing changed, for one that cannot: another attention than scaled dot products, no positions, or other
    states than one by one, told on two rows of two and three tokens.
    """
    config = getattr(decoder, "config", None)
    if config is None or getattr(config, "_attn_implementation", None) not in (OWN, NAME):
        return 0
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return 0
    _register()
    before = config._attn_implementation
    config._attn_implementation = NAME
    if not _same_as_one_by_one(decoder):
        config._attn_implementation = before
        return 0
    slides = getattr(config, "use_sliding_window", True) is not False
    windows = [
        getattr(config, "sliding_window", None) if slides else None,
        getattr(config, "attention_chunk_size", None),
    ]
    return min([int(window) for window in windows if window], default=2**31)


def _same_as_one_by_one(decoder: Any) -> bool:
    weight = decoder.get_input_embeddings().weight
    if weight.device.type == "meta":
        return True
    row, column = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 2])
    groups = group_rows(torch.tensor([[0, 1, 0], [2, 3, 4]]), row, column).to(weight.device)
    x, was_training = weight[:5].detach(), decoder.training
    decoder.eval()
    try:
        with torch.no_grad():
            packed = run_by_rows(decoder, x, column.to(weight.device), groups)
            alone = [decoder(inputs_embeds=own[None], use_cache=False).last_hidden_state[0] for own in x.split((2, 3))]
    except TypeError:  # a forward that takes nothing it does not know
        return False
    finally:
        decoder.train(was_training)
    return torch.allclose(packed.float(), torch.cat(alone).float(), atol=1e-4, rtol=1e-3)


def run_by_rows(decoder: Any, embeddings: Tensor, positions: Tensor, groups: RowGroups) -> Tensor:
    """Packed embeddings [N, D] -> last hidden states [N, D]. positions [N]: of each token in its sample."""
    return decoder(
        inputs_embeds=embeddings[None],
        position_ids=positions[None],
        # Whatever mask is given in four dimensions is taken as it is, so that none is built for the whole stream.
        attention_mask=embeddings.new_zeros(1, 1, 1, 1),
        use_cache=False,
        row_groups=groups,
    ).last_hidden_state[0]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_groups: RowGroups | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [B, heads, L, head_dim], key and value [B, kv_heads, L, head_dim] -> [B, L, heads, head_dim]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if row_groups is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    attended = []
    for index in row_groups.indices:
        own_query, own_key, own_value = (_as_rows(x, index) for x in (query, key, value))
        own, _ = sdpa_attention_forward(module, own_query, own_key, own_value, None, **options)
        attended.append(own.flatten(0, 1))
    return torch.cat(attended).index_select(0, row_groups.places)[None], None


def _as_rows(x: Tensor, index: Tensor) -> Tensor:
    """[1, heads, N, head_dim] -> [S, heads, T, head_dim]."""
    return x[0].transpose(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
