"""Is a drawn image nearest to the real picture of its concept? Ranks by an image encoder's pooled features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.evaluate.scores import Score, share


class PooledEncoder(Protocol):
    """What is asked of an image encoder: images [B, 3, H, W] in -1..1 -> features [B, D]."""

    def pooled(self, images: Tensor, /) -> Tensor: ...


def embed_images(encoder: PooledEncoder, images: Tensor, *, batch_size: int = 32) -> Tensor:
    """`pooled_features`, each brought to length 1."""
    return normalize(pooled_features(encoder, images, batch_size=batch_size), dim=-1)


def pooled_features(encoder: PooledEncoder, images: Tensor, *, batch_size: int) -> Tensor:
    """Features [N, D] of images [N, 3, H, W] in -1..1, on the CPU. Raises ValueError if one is not finite: NaN is
    nearer to nothing, and would be ranked first."""
    features = torch.cat([encoder.pooled(chunk).float().cpu() for chunk in images.split(batch_size)])
    if not bool(features.isfinite().all()):
        raise ValueError("the image encoder's features are not finite; an image or the encoder's weights are damaged")
    return features


def retrieval_ranks(drawn: Tensor, gallery: Tensor, targets: Sequence[int]) -> list[int]:
    """Place (0 is first) of gallery row `targets[i]` by cosine to drawn row i: [N, D] against [G, D].

    Ties count against the drawn image. Raises ValueError if there is not one target for each drawn image.
    """
    if len(drawn) != len(targets):
        raise ValueError(f"{len(drawn)} drawn images but {len(targets)} targets")
    similarity = drawn @ gallery.T
    own = similarity.gather(1, torch.tensor(list(targets))[:, None])
    return ((similarity >= own).sum(dim=1) - 1).tolist()


def retrieval_score(ranks: Sequence[int], *, top: int, gallery_size: int) -> Score:
    """The share of ranks below `top`."""
    return share([rank < top for rank in ranks], chance=min(1.0, top / gallery_size))
