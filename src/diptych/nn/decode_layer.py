"""One more token of every sample through a decoder layer: time goes into reading weights, not into small steps.

The same numbers as the layer's own forward to rounding, in fewer operations: a norm is three, both rotations are
five, residuals are added by the products before them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from diptych.nn.layer_parts import Rope, is_pre_norm, split_heads

SPARE = 64
"""Tokens of room that a cache takes beyond what it must hold."""

FEW = range(3, 17)
"""So many rows, on a CPU, are quicker as columns behind the matrix than before its transpose."""


class LayerCache:
    """Keys and values [B, kv_heads, L, head_dim] of one layer, and which are visible [B, L] (None: all).

    They lie in longer buffers, so that a token more is written in place. The tensors given are not changed.
    """

    def __init__(self, key: Tensor, value: Tensor, mask: Tensor | None = None) -> None:
        self.length = key.shape[2]
        self._key, self._value, self._mask = key, value, mask

    @property
    def key(self) -> Tensor:
        return self._key[:, :, : self.length]

    @property
    def value(self) -> Tensor:
        return self._value[:, :, : self.length]

    @property
    def mask(self) -> Tensor | None:
        return None if self._mask is None else self._mask[:, : self.length]

    def append(self, key: Tensor, value: Tensor) -> None:
        """Keys and values [B, kv_heads, head_dim] of one more token, which all that follow see."""
        if self.length == self._key.shape[2]:
            room = max(SPARE, self.length // 2)
            self._key, self._value = (
                torch.cat((x, x.new_empty(*x.shape[:2], room, x.shape[3])), dim=2) for x in (self._key, self._value)
            )
            if self._mask is not None:
                self._mask = torch.cat((self._mask, self._mask.new_ones(len(self._mask), room)), dim=1)
        self._key[:, :, self.length] = key
        self._value[:, :, self.length] = value
        self.length += 1

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self._key, self._value = self._key[rows], self._value[rows]
        self._mask = None if self._mask is None else self._mask[rows]


def decode_layer(layer: Any, states: Tensor, rope: Rope, cache: LayerCache) -> Tensor:
    """One more token of every sample through a layer: states [B, w] -> [B, w]; its key and value go into the cache."""
    if is_pre_norm(layer):
        attended = _attention(layer.self_attn, _norm(layer.input_layernorm, states), rope, cache)
        states = _add_product(states, layer.self_attn.o_proj, attended)
        return _add_mlp(states, layer.mlp, _norm(layer.post_attention_layernorm, states))
    attended = _product(layer.self_attn.o_proj, _attention(layer.self_attn, states, rope, cache))
    states = states + _norm(layer.post_attention_layernorm, attended)
    return states + _norm(layer.post_feedforward_layernorm, layer.mlp(states))


def _attention(attention: Any, x: Tensor, rope: Rope, cache: LayerCache) -> Tensor:
    """Normed states [B, w] -> what their heads attend to, [B, heads * head_dim]."""
    rows, size = x.shape[0], attention.head_dim
    query = split_heads(attention, _product(attention.q_proj, x), getattr(attention, "q_norm", None), apply=_norm)
    key = split_heads(attention, _product(attention.k_proj, x), getattr(attention, "k_norm", None), apply=_norm)
    value = _product(attention.v_proj, x).view(rows, -1, size)
    heads, kv_heads = query.shape[1], key.shape[1]
    if getattr(attention, "use_rope", True):
        query, key = _rotate(torch.cat((query, key), dim=1), rope).split((heads, kv_heads), dim=1)
    cache.append(key, value)
    if not x.is_cpu:
        mask = None if cache.mask is None else cache.mask[:, None, None]
        return scaled_dot_product_attention(
            query[:, :, None],
            cache.key,
            cache.value,
            attn_mask=mask,
            scale=attention.scaling,
            enable_gqa=heads != kv_heads,
        ).flatten(1)
    # One query a head: two products of matrices, each group of heads with the keys that it shares.
    queries = query.reshape(rows * kv_heads, heads // kv_heads, size)
    keys = cache.key.flatten(0, 1).transpose(1, 2)
    scores = torch.baddbmm(queries.new_zeros(()), queries, keys, beta=0, alpha=attention.scaling)
    if cache.mask is not None:
        scores.view(rows, heads, -1).masked_fill_(~cache.mask[:, None], -torch.inf)
    return torch.bmm(scores.softmax(dim=-1), cache.value.flatten(0, 1)).view(rows, -1)


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    cos, sin = rope
    half = x.shape[-1] // 2
    turned = x.roll(half, dims=-1)
    turned[..., :half].neg_()
    return torch.addcmul(x * cos, turned, sin)


def _norm(norm: Any, x: Tensor) -> Tensor:
    epsilon = getattr(norm, "variance_epsilon", None)
    if epsilon is None or x.dtype != torch.float32:
        return norm(x)
    if x.is_cpu and x.numel() == x.shape[-1]:
        row = x.view(-1)
        scale = (float(row.dot(row)) / len(row) + epsilon) ** -0.5
        return torch.addcmul(row.new_zeros(()), x, norm.weight, value=scale)
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    return mean_square.add_(epsilon).rsqrt_() * x * norm.weight


def _is_plain(layer: nn.Module, x: Tensor) -> bool:
    return type(layer) is nn.Linear and x.is_cpu and not torch.is_autocast_enabled("cpu")


def _product(layer: Any, x: Tensor) -> Tensor:
    if not (_is_plain(layer, x) and len(x) in FEW):
        return layer(x)
    made = torch.mm(layer.weight, x.t()).t()
    return made if layer.bias is None else made + layer.bias


def _add_product(states: Tensor, layer: Any, x: Tensor) -> Tensor:
    if not _is_plain(layer, x) or layer.bias is not None:
        return states + _product(layer, x)
    if len(x) in FEW:
        return torch.addmm(states.t(), layer.weight, x.t()).t()
    return torch.addmm(states, x, layer.weight.t())


def _add_mlp(states: Tensor, mlp: Any, x: Tensor) -> Tensor:
    if not all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return states + mlp(x)
    return _add_product(states, mlp.down_proj, mlp.act_fn(_product(mlp.gate_proj, x)) * _product(mlp.up_proj, x))
