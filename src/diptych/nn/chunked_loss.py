"""Cross-entropy over a large vocabulary, a few tokens at a time: no tensor of all tokens by all words ever exists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

CHUNK_SIZE = 256
"""Tokens at a time: large enough that the matrix products run at full speed."""


def chunked_cross_entropy(
    states: Tensor,
    labels: Tensor,
    head: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """The sum over tokens of cross-entropy of `head(states)` to `labels`, in float32.

    states [N, D], labels [N]; `head` maps states [n, D] to logits [n, V], token by token, and uses no tensors with
    gradients but `parameters`. Gradients are computed with the loss, chunk by chunk, so that logits live no longer than
    their chunk. N may be 0: the loss is then 0, and has no gradient to give.
    """
    distinct = list({id(p): p for p in parameters if p.requires_grad}.values())
    if not torch.is_grad_enabled() or not (states.requires_grad or distinct):
        chunks = zip(states.split(chunk_size), labels.split(chunk_size), strict=True)
        return sum((_loss(head, s, t) for s, t in chunks if len(s)), start=torch.zeros((), device=states.device))
    return _ChunkedCrossEntropy.apply(states, labels, head, chunk_size, *distinct)


def _loss(head: Callable[[Tensor], Tensor], states: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(head(states).float(), labels, reduction="sum")


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Its forward pass computes the gradients, its backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], chunk_size: int, *parameters: Tensor
    ) -> Tensor:
        needs_states = ctx.needs_input_grad[0]
        total = torch.zeros((), device=states.device)
        of_states = torch.zeros_like(states) if needs_states else None
        of_parameters = [torch.zeros_like(parameter) for parameter in parameters]
        for start in range(0, len(states), chunk_size):
            own = slice(start, start + chunk_size)
            with torch.enable_grad():
                chunk = states[own].detach().requires_grad_(needs_states)
                loss = _loss(head, chunk, labels[own])
            wanted = [chunk, *parameters] if needs_states else list(parameters)
            gradients = list(torch.autograd.grad(loss, wanted, allow_unused=True))
            if of_states is not None:
                of_states[own] = gradients.pop(0)
            for accumulated, gradient in zip(of_parameters, gradients, strict=True):
                if gradient is not None:
                    accumulated += gradient
            total += loss.detach()
        ctx.save_for_backward(*([of_states] if of_states is not None else []), *of_parameters)
        ctx.has_states = of_states is not None
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = [tensor * gradients[0].to(tensor.dtype) for tensor in ctx.saved_tensors]
        of_states = saved.pop(0) if ctx.has_states else None
        return (of_states, None, None, None, *saved)
