"""Cross-entropy of an LM head that is one matrix, a few tokens at a time, its gradients written in place.

`chunked_loss.py` does the same for any head, through autograd; here nothing of a chunk is allocated anew, and the
head's gradient, as large as the head, is added to by the matrix product itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diptych.nn.chunked_loss import CHUNK_SIZE


def linear_head_cross_entropy(
    states: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    rows: Tensor | None = None,
    row_ids: Sequence[int] = (),
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """The sum over tokens of cross-entropy of `states @ weight.T + bias` to `labels`, in float32.

    states [N, D], labels [N] (every one counts), weight [V, D], bias [V]. rows [R, D]: words `row_ids` have these in
    place of the matrix's; ids may lie beyond it, and ids between that nobody has are impossible words. N may be 0.
    Its gradient can be taken once.
    """
    return _LinearHeadLoss.apply(states, labels, weight, bias, rows, tuple(row_ids), chunk_size)


class _LinearHeadLoss(torch.autograd.Function):
    """Its forward pass computes the gradients, its backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        labels: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor | None,
        row_ids: tuple[int, ...],
        chunk_size: int,
    ) -> Tensor:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        matrix, own = weight.to(dtype), None if rows is None else rows.to(dtype)
        size = len(weight)
        num_words = max(size, *(i + 1 for i in row_ids)) if row_ids else size
        ids = torch.tensor(row_ids, device=states.device)
        made: list[Tensor | None] = [
            torch.zeros(tensor.shape, device=tensor.device) if tensor is not None and needed else None
            for tensor, needed in zip((states, weight, bias, rows), _needs(ctx), strict=True)
        ]
        of_states, of_weight, of_bias, of_rows = made
        logits_of_all = states.new_empty(min(chunk_size, len(states)), num_words, dtype=torch.float32)
        total = torch.zeros((), device=states.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(states), chunk_size):
                part = slice(start, start + chunk_size)
                x, targets = states[part].to(dtype), labels[part, None]
                logits = logits_of_all[: len(x)]
                _multiply(x, matrix.T, out=logits[:, :size])
                if bias is not None:
                    logits[:, :size] += bias
                logits[:, size:] = -torch.inf
                if own is not None:
                    logits[:, ids] = (x @ own.T).float()
                top = logits.amax(dim=1, keepdim=True)
                logits.sub_(top)
                picked = logits.gather(1, targets)
                sums = logits.exp_().sum(dim=1, keepdim=True)
                total += (sums.log() - picked).sum()
                if not any(ctx.needs_input_grad):
                    continue
                # From here on they are the gradients of the logits: probabilities, less 1 for the right word.
                logits.div_(sums).scatter_add_(1, targets, logits.new_full((), -1.0).expand_as(targets))
                if own is not None:
                    of_own = logits[:, ids].to(dtype)
                    logits[:, ids] = 0
                    if of_rows is not None:
                        of_rows += (of_own.T @ x).float()
                    if of_states is not None:
                        of_states[part] = (of_own @ own).float()
                gradient = logits[:, :size].to(dtype)
                if of_states is not None:
                    of_states[part] += (gradient @ matrix).float()
                if of_weight is not None:
                    _add_product(of_weight, gradient.T, x)
                if of_bias is not None:
                    of_bias += logits[:, :size].sum(dim=0)
        ctx.made = made
        ctx.dtypes = (states.dtype, weight.dtype, getattr(bias, "dtype", None), getattr(rows, "dtype", None))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.made = ctx.made, None
        if made is None:
            raise RuntimeError("the gradient of this loss was taken already; compute the loss again")
        scaled = [
            None if tensor is None else tensor.mul_(gradients[0]).to(dtype)
            for tensor, dtype in zip(made, ctx.dtypes, strict=True)
        ]
        return scaled[0], None, *scaled[1:], None, None


def _needs(ctx: Any) -> tuple[bool, ...]:
    of_states, _, *others = ctx.needs_input_grad[:5]
    return (of_states, *others)


def _multiply(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
