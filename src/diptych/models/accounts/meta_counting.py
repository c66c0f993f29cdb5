"""FLOPs of a model that has no weights: the model itself runs on the meta device, under torch's counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diptych.backbones.vision import ImageEncoder
from diptych.models.accounts.run_account import Flops


def count_flops(run: Callable[[], Tensor]) -> Flops:
    """Of `run`, and of the backward pass from what it gives; whatever wants a gradient gets one, nothing else does.

    Matrix products, convolutions and attention (whole masks included) count; recomputation counts as backward.
    """
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):
        output = run()
    if not output.requires_grad:
        return Flops(forward.get_total_flops(), 0)
    with FlopCounterMode(display=False) as backward, sdpa_kernel(SDPBackend.MATH):
        output.backward(torch.empty_like(output))
    return Flops(forward.get_total_flops(), backward.get_total_flops())


@torch.no_grad()
def count_encoder_flops(encoder: ImageEncoder) -> float:
    """Of one image through an encoder on the meta device."""
    size = encoder.preprocessing.image_size
    pixels = torch.zeros(1, 3, size, size, dtype=encoder.dtype, device="meta")
    return count_flops(lambda: encoder.network(pixels)[0]).forward


@torch.no_grad()
def count_encoding_flops(autoencoder: Any, image_size: int) -> float:
    """Of one image into latents, by an autoencoder on the meta device."""
    pixels = torch.zeros(1, 3, image_size, image_size, device="meta")
    return count_flops(lambda: autoencoder.encode(pixels)).forward


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
