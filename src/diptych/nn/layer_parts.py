"""The parts of a Hugging Face decoder layer, called one by one, so that each tower computes only its own tokens.

Tokens are packed: hidden states are [N, width], queries and keys [N, heads, head_dim].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PRE_NORM_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
POST_NORM_FAMILIES = ("olmo2",)
ROUTABLE_FAMILIES = PRE_NORM_FAMILIES + POST_NORM_FAMILIES
"""`config.model_type` of the families whose layers can be routed. SmolLM2 and most others are llama-shaped."""

Rope = tuple[Tensor, Tensor]
"""cos and sin, each [N, 1, head_dim]."""


def check_routable(config: Any) -> None:
    """Raises ValueError, naming the family and those that can be routed, if a layer of this config cannot be."""
    if config.model_type not in ROUTABLE_FAMILIES:
        raise ValueError(
            f"language model family {config.model_type!r} cannot be routed layer by layer; "
            f"choose one of: {', '.join(ROUTABLE_FAMILIES)}"
        )
    if config.model_type in PRE_NORM_FAMILIES + POST_NORM_FAMILIES and getattr(config, "attention_dropout", 0.0):
        raise ValueError("a language model with attention_dropout > 0 cannot be routed; set attention_dropout to 0")


def sliding_window(config: Any, layer: int) -> int | None:
    """How far back this layer's attention reaches, in tokens; None: to the start."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds is not None and kinds[layer] != "sliding_attention"):
        return None
    if kinds is None and getattr(config, "use_sliding_window", True) is False:
        return None
    return int(window)


def rotary(rotary_embedding: nn.Module, positions: Tensor, dtype: torch.dtype) -> Rope:
    """cos and sin at `positions` [N], as [N, 1, head_dim]."""
    like = torch.empty(0, dtype=dtype, device=positions.device)
    cos, sin = rotary_embedding(like, positions[None])
    return cos[0, :, None], sin[0, :, None]


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    cos, sin = rope
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def split_heads(
    attention: Any, x: Tensor, norm: Any, *, apply: Callable[[Any, Tensor], Tensor] = lambda norm, x: norm(x)
) -> Tensor:
    """[N, heads * head_dim] -> [N, heads, head_dim], normed (by `apply`) where the family norms queries or keys."""
    if norm is None:
        return x.view(x.shape[0], -1, attention.head_dim)
    if norm.weight.shape[0] == attention.head_dim:
        return apply(norm, x.view(x.shape[0], -1, attention.head_dim))
    return apply(norm, x).view(x.shape[0], -1, attention.head_dim)


def project_query(layer: Any, x: Tensor, rope: Rope) -> Tensor:
    """Queries of normed states x [N, width] -> [N, heads, head_dim], rotated."""
    attention = layer.self_attn
    query = split_heads(attention, attention.q_proj(x), getattr(attention, "q_norm", None))
    return _rotate(query, rope) if getattr(attention, "use_rope", True) else query


def project_key_value(layer: Any, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    """Keys (rotated) and values of normed states x [N, width] -> two [N, kv_heads, head_dim]."""
    attention = layer.self_attn
    key = split_heads(attention, attention.k_proj(x), getattr(attention, "k_norm", None))
    value = split_heads(attention, attention.v_proj(x), None)
    return (_rotate(key, rope) if getattr(attention, "use_rope", True) else key), value


def is_pre_norm(layer: Any) -> bool:
    return hasattr(layer, "input_layernorm")


def attention_input(layer: Any, hidden: Tensor) -> Tensor:
    return layer.input_layernorm(hidden) if is_pre_norm(layer) else hidden


def attention_output(layer: Any, attended: Tensor) -> Tensor:
    """What attention adds to the stream: attended [N, heads, head_dim] -> [N, width]."""
    out = layer.self_attn.o_proj(attended.flatten(-2))
    return out if is_pre_norm(layer) else layer.post_attention_layernorm(out)


def mlp_input(layer: Any, hidden: Tensor) -> Tensor:
    return layer.post_attention_layernorm(hidden) if is_pre_norm(layer) else hidden


def mlp_output(layer: Any, x: Tensor) -> Tensor:
    """What the MLP adds to the stream: [N, width] -> [N, width]."""
    out = layer.mlp(x)
    return out if is_pre_norm(layer) else layer.post_feedforward_layernorm(out)
