"""Laws of a decoder cut in two: one part behind the other is the whole, and what cannot be cut is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from diptych.nn.cut_decoder import cut_decoder, run
from tiny_xfusion import build_language


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2"])
@pytest.mark.parametrize("first", [1, 2])
def test_one_part_behind_the_other_is_the_whole(family: str, first: int) -> None:
    decoder: Any = build_language(family).model.get_decoder()
    layers = list(decoder.layers)
    lower, upper = cut_decoder(decoder, first)
    x = torch.randn(2, 7, decoder.config.hidden_size)
    torch.testing.assert_close(run(upper, run(lower, x)), run(decoder, x))
    assert list(decoder.layers) == layers
    assert [*lower.layers, *upper.layers] == layers
    assert upper.layers[0] is layers[first]


class Scaling(nn.Module):
    """Does more than run its layers: it scales what it is given, as Gemma does."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 8)
        for name, part in parts.items():
            setattr(self, name, part)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, inputs_embeds: torch.Tensor, use_cache: bool) -> Any:
        x = inputs_embeds * 3
        for layer in getattr(self, "layers", ()):
            x = layer(x)
        return SimpleNamespace(last_hidden_state=x)


def test_a_decoder_that_does_more_than_run_its_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="its parts give other states"):
        cut_decoder(Scaling(layers=nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]), norm=nn.Identity()), 1)
    with pytest.raises(ValueError, match="no `layers`"):
        cut_decoder(Scaling(), 1)
