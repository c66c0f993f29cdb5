"""The frozen text tower: a Hugging Face causal LM's own layers, called part by part, never copied or changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diptych.nn.attention import Groups, attend
from diptych.nn.layer_parts import (
    Rope,
    attention_input,
    attention_output,
    check_routable,
    mlp_input,
    mlp_output,
    project_key_value,
    project_query,
    rotary,
    sliding_window,
)


class TextTower:
    """Routes through a causal LM. Not an `nn.Module`, so that the LM's weights belong to the LM alone.

    Raises ValueError for a family that cannot be routed.
    """

    def __init__(self, language_model: Any) -> None:
        check_routable(language_model.config)
        self.language_model = language_model
        self.config = language_model.config
        self.layers: nn.ModuleList = language_model.model.layers
        windows = [sliding_window(self.config, layer) for layer in range(len(self.layers))]
        self.window: int | None = min((w for w in windows if w is not None), default=None)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [N] -> embeddings [N, D]."""
        return self.language_model.model.embed_tokens(token_ids)

    def rope(self, positions: Tensor, dtype: torch.dtype) -> Rope:
        return rotary(self.language_model.model.rotary_emb, positions, dtype)

    def key_value(self, layer: int, states: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Keys and values that this layer makes of the merged sequence's states [N, D] (text or mapped image)."""
        module = self.layers[layer]
        return project_key_value(module, attention_input(module, states), rope)

    def run_layer(
        self,
        layer: int,
        hidden: Tensor,
        rope: Rope,
        groups: Groups,
        *,
        before: tuple[Tensor, Tensor] | None = None,
        image: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One layer over text states [N, D] -> [N, D], and the keys and values it read: `before` (prefix), the
        text itself, `image`, in that order."""
        module: Any = self.layers[layer]
        x = attention_input(module, hidden)
        key, value = project_key_value(module, x, rope)
        parts = [part for part in (before, (key, value), image) if part is not None]
        key = torch.cat([part[0] for part in parts])
        value = torch.cat([part[1] for part in parts])
        attended = attend(project_query(module, x, rope), key, value, groups, scaling=module.self_attn.scaling)
        hidden = hidden + attention_output(module, attended)
        return hidden + mlp_output(module, mlp_input(module, hidden)), (key, value)

    @torch.no_grad()
    def frozen_states(self, token_ids: Tensor, positions: Tensor, groups: Groups, layers: list[int]) -> Tensor:
        """Text-only states at the *input* of each of `layers` (ascending): [len(layers), N, D]."""
        hidden = self.embed(token_ids)
        rope = self.rope(positions, hidden.dtype)
        kept = []
        for layer in range(layers[-1] + 1):
            if layer in layers:
                kept.append(hidden)
            if layer < layers[-1]:
                hidden, _ = self.run_layer(layer, hidden, rope, groups)
        return torch.stack(kept)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and LM head: states after the last layer [N, D] -> [N, vocabulary]."""
        return self.language_model.lm_head(self.language_model.model.norm(hidden))
