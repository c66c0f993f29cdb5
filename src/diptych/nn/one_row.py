"""Linear layers given one row, on a CPU: a matrix times a vector, which reads the matrix at nearly twice the rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def plain_linears(model: nn.Module) -> list[nn.Linear]:
    """The layers of `model` that are exactly `nn.Linear`, on the CPU."""
    return [m for m in model.modules() if type(m) is nn.Linear and m.weight.device.type == "cpu"]


@contextmanager
def one_row_products(layers: Iterable[nn.Linear]) -> Iterator[None]:
    """Within it, these layers multiply one row as a vector; more rows as ever. Two threads may be within it at once."""
    for layer in layers:
        layer.__dict__["forward"] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    if x.numel() != layer.in_features or torch.is_autocast_enabled("cpu"):
        return linear(x, layer.weight, layer.bias)
    row = x.reshape(-1)
    made = layer.weight.mv(row) if layer.bias is None else torch.addmv(layer.bias, layer.weight, row)
    return made.view(*x.shape[:-1], -1)
