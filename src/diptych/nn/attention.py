"""Grouped attention over packed tokens: linear layers see the packed stream, attention sees small padded groups."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Groups:
    """Which queries meet which keys. A group is one image, or the text of one sample that follows an image.

    queries [G, Q] and keys [G, K]: rows of the packed query and key lists (0 where padded); rows [Nq]: where
    query row i lies in the flattened [G * Q]; mask: None (all visible), [G, 1, K] or [G, Q, K] bool, True if visible.
    """

    queries: Tensor
    keys: Tensor
    rows: Tensor
    mask: Tensor | None

    def to(self, device: torch.device | str) -> Groups:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})


def attend(query: Tensor, key: Tensor, value: Tensor, groups: Groups, *, scaling: float) -> Tensor:
    """query [Nq, heads, head_dim], key and value [Nk, kv_heads, head_dim] -> [Nq, heads, head_dim]."""
    num_groups, num_queries = groups.queries.shape
    heads, kv_heads = query.shape[1], key.shape[1]
    q = _take(query, groups.queries).transpose(1, 2)
    k = _take(key, groups.keys).transpose(1, 2)
    v = _take(value, groups.keys).transpose(1, 2)
    mask = None if groups.mask is None else groups.mask[:, None].expand(num_groups, 1, num_queries, -1)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=heads != kv_heads)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, groups.rows)


def _take(packed: Tensor, rows: Tensor) -> Tensor:
    """packed [N, ...] at rows [G, K] -> [G, K, ...]. The gradient of `index_select` is quicker than of indexing."""
    return packed.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def build_groups(
    queries: list[list[int]], keys: list[list[int]], visible: list[Tensor | None], *, num_queries: int
) -> Groups:
    """Pads groups of rows. `visible[g]` is [Q, K] bool, or None if every query of the group sees every key.

    Every query row 0..num_queries-1 stands in exactly one group.
    """
    longest_q = max(len(rows) for rows in queries)
    longest_k = max(len(rows) for rows in keys)
    q = torch.zeros(len(queries), longest_q, dtype=torch.long)
    k = torch.zeros(len(keys), longest_k, dtype=torch.long)
    rows = torch.zeros(num_queries, dtype=torch.long)
    padded = any(len(r) != longest_k for r in keys)
    full = all(v is None for v in visible)
    mask = (
        None if full and not padded else torch.zeros(len(keys), 1 if full else longest_q, longest_k, dtype=torch.bool)
    )
    for g, (q_rows, k_rows, v) in enumerate(zip(queries, keys, visible, strict=True)):
        q[g, : len(q_rows)] = torch.tensor(q_rows, dtype=torch.long)
        k[g, : len(k_rows)] = torch.tensor(k_rows, dtype=torch.long)
        rows[q[g, : len(q_rows)]] = g * longest_q + torch.arange(len(q_rows))
        if mask is None:
            continue
        if v is None:
            mask[g, :, : len(k_rows)] = True
        else:
            mask[g, : len(q_rows), : len(k_rows)] = v
            mask[g, len(q_rows) :, 0] = True
    return Groups(queries=q, keys=k, rows=rows, mask=mask)
