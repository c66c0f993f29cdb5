"""How far predicted visual tokens are from the image encoder's: the losses of MetaMorph and of its ablation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, smooth_l1_loss

VISUAL_LOSSES = ("cosine", "l1", "smooth_l1", "infonce")


def visual_loss(predicted: Tensor, target: Tensor, *, kind: str, temperature: float = 0.07) -> Tensor:
    """The sum over tokens of the loss between predicted and target tokens, both [N, F] and of length 1.

    cosine: 1 - cos (MetaMorph; its -cos has the same gradient). l1, smooth_l1: the mean over the F dimensions.
    infonce: the right target against those of all other tokens given here (temperature 0.07 in the paper's ablation):
    those of one micro-batch on one process. So accumulation is not neutral to it as to the others, four micro-batches
    being four easier choices; and a token that stands twice among the targets, as those of an image drawn twice do, is
    a negative of itself.
    """
    target = target.detach().to(predicted.dtype)
    if not len(predicted):
        return predicted.sum()
    if kind == "cosine":
        return (1 - (predicted * target).sum(dim=-1)).sum()
    if kind == "l1":
        return (predicted - target).abs().mean(dim=-1).sum()
    if kind == "smooth_l1":
        return smooth_l1_loss(predicted, target, reduction="none", beta=0.1).mean(dim=-1).sum()
    if kind == "infonce":
        similarity = predicted @ target.T / temperature
        return cross_entropy(similarity, torch.arange(len(target), device=target.device), reduction="sum")
    raise ValueError(f"unknown visual loss {kind!r}; choose one of: {', '.join(VISUAL_LOSSES)}")
