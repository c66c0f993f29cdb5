"""Keys and values with room to grow: a new token is written in place, where transformers' cache copies all before."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

SPARE = 64
"""Tokens of room that a layer takes beyond what it must hold."""


class GrowingLayer(DynamicLayer):
    """As `DynamicLayer`; `keys` and `values` are views of what is filled of a longer buffer."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """New keys and values [B, H, T, D] -> all of them so far."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers: tuple[Tensor, ...] = ()
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if not self._buffers or length > self._buffers[0].shape[-2]:
            room = length + max(SPARE, length // 2)
            self._buffers = tuple(x.new_empty(*x.shape[:2], room, x.shape[-1]) for x in (key_states, value_states))
            for buffer, held in zip(self._buffers, (self.keys, self.values), strict=True):
                if before and held is not None:
                    buffer[:, :, :before] = held
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, before:length] = new
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows go on."""
        if self.get_seq_length():
            length = self.get_seq_length()
            self._buffers = tuple(buffer[indices] for buffer in self._buffers)
            self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


def growing_cache() -> DynamicCache:
    """An empty cache for any causal LM whose layers attend to everything before."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = GrowingLayer
    return cache
