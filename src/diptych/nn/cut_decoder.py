"""A Hugging Face decoder cut in two: the layers before one, and those from it on, each called like a decoder."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def cut_decoder(decoder: Any, first: int) -> tuple[Any, Any]:
    """(lower, upper): the last hidden states of `upper` behind `lower` are those of the decoder.

    The parts share the decoder's layers. `upper` begins with layer `first`; only it has the final norm. Raises
    ValueError for a decoder that does more than run its layers and a norm, told by its parts' difference on three
    tokens (on the meta device there is nothing to compare).
    """
    layers, norm = getattr(decoder, "layers", None), getattr(decoder, "norm", None)
    refused = f"{type(decoder).__name__} cannot be cut in two at layer {first}: vpit.cached_forms must be 0 with it"
    if not isinstance(layers, nn.ModuleList) or norm is None:
        raise ValueError(f"{refused} (it has no `layers` and `norm`)")
    lower, upper = _part(decoder, list(layers)[:first], nn.Identity()), _part(decoder, list(layers)[first:], norm)
    weight = decoder.get_input_embeddings().weight
    if weight.device.type != "meta":
        with torch.no_grad():
            x = weight[:3][None]
            whole, cut = run(decoder, x), run(upper, run(lower, x))
        if not torch.allclose(whole.float(), cut.float(), atol=1e-4, rtol=1e-3):
            raise ValueError(f"{refused} (its parts give other states than the whole)")
    return lower, upper


def run(decoder: Any, embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings [B, T, D] -> last hidden states [B, T, D], without keys and values kept."""
    return decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state


def _part(decoder: Any, layers: list[nn.Module], norm: nn.Module) -> Any:
    part = copy.copy(decoder)
    part._modules = {**decoder._modules, "layers": nn.ModuleList(layers), "norm": norm}
    return part
