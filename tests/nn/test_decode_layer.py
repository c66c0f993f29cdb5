"""Laws of decoding a token through a layer: the numbers of the layer's own forward, for all families and rows."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diptych.nn.decode_layer import FEW, SPARE, LayerCache, decode_layer
from diptych.nn.layer_parts import rotary
from tiny_xfusion import FAMILIES, build_language

BEFORE = 5


@pytest.mark.parametrize("rows", [1, 2, FEW.start + 1, FEW.stop])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_is_the_layer(family: str, rows: int) -> None:
    """Behind tokens of which each sample sees only some: the last token of the layer's own forward over all of them."""
    decoder = build_language(family).model.model
    torch.manual_seed(0)
    hidden = torch.randn(rows, BEFORE + 1, decoder.config.hidden_size)
    mask = torch.rand(rows, BEFORE) < 0.7
    seen = torch.cat((mask, torch.ones(rows, 1, dtype=torch.bool)), dim=1)
    bias = torch.zeros(rows, 1, BEFORE + 1, BEFORE + 1).masked_fill(~seen[:, None, None], -torch.inf)
    positions = torch.arange(BEFORE + 1)[None].expand(rows, -1)
    embeddings = decoder.rotary_emb(hidden, positions)
    for layer in decoder.layers:
        theirs = layer(hidden, attention_mask=bias, position_embeddings=embeddings)
        theirs = (theirs[0] if isinstance(theirs, tuple) else theirs)[:, -1]
        x = layer.input_layernorm(hidden[:, :-1]) if hasattr(layer, "input_layernorm") else hidden[:, :-1]
        cache = LayerCache(*_keys_and_values(layer, x, tuple(e[:, :-1] for e in embeddings)), mask)
        rope = rotary(decoder.rotary_emb, torch.full((rows,), BEFORE), hidden.dtype)
        found = decode_layer(layer, hidden[:, -1], rope, cache)
        torch.testing.assert_close(found, theirs, atol=1e-5, rtol=1e-5)
        assert cache.length == BEFORE + 1


def _keys_and_values(layer: nn.Module, x: Tensor, embeddings: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """[B, kv_heads, L, head_dim] of normed states, token by token through the parts of the layer."""
    from diptych.nn.layer_parts import project_key_value

    rows, length, width = x.shape
    rope = (embeddings[0].reshape(rows * length, 1, -1), embeddings[1].reshape(rows * length, 1, -1))
    pairs = project_key_value(layer, x.reshape(rows * length, width), rope)
    key, value = (part.view(rows, length, *part.shape[1:]).transpose(1, 2) for part in pairs)
    return key, value


@torch.no_grad()
def test_adapted_projections_are_asked_themselves() -> None:
    """A layer that is more than `nn.Linear`, as LoRA's, is called as it is."""
    layer = build_language("llama").model.model.layers[0]

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    width = layer.self_attn.q_proj.in_features
    rope = torch.ones(1, 1, layer.self_attn.head_dim), torch.zeros(1, 1, layer.self_attn.head_dim)
    empty = torch.zeros(1, layer.self_attn.k_proj.out_features // layer.self_attn.head_dim, 0, layer.self_attn.head_dim)
    states = torch.randn(1, width)
    doubled, scaled = copy.deepcopy(layer), copy.deepcopy(layer)
    doubled.self_attn.o_proj.__class__ = Doubled
    scaled.self_attn.o_proj.weight.mul_(2)
    found, expected = (decode_layer(one, states, rope, LayerCache(empty, empty)) for one in (doubled, scaled))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, decode_layer(layer, states, rope, LayerCache(empty, empty)))


@given(
    first=st.integers(0, SPARE + 3),
    more=st.integers(1, 2 * SPARE),
    kept=st.lists(st.integers(0, 2), min_size=1, max_size=3),
    masked=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_the_cache_holds_all_that_was_appended(first: int, more: int, kept: list[int], masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(kept)
    key, value = (torch.randn(3, 2, first + more, size, generator=generator) for size in (4, 6))
    mask = torch.rand(3, first, generator=generator) < 0.5 if masked else None
    given_key = key[:, :, :first].clone()
    cache = LayerCache(given_key, value[:, :, :first].clone(), mask)
    for step in range(first, first + more):
        if step == first + more // 2:
            cache.keep(rows)
            key, value = key[rows], value[rows]
        cache.append(key[:, :, step], value[:, :, step])
    assert torch.equal(cache.key, key)
    assert torch.equal(cache.value, value)
    if mask is None:
        assert cache.mask is None
    else:
        assert cache.mask is not None
        assert torch.equal(cache.mask, torch.cat((mask[rows], torch.ones(len(rows), more, dtype=torch.bool)), dim=1))


def test_a_token_more_is_written_in_place() -> None:
    cache = LayerCache(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4))
    cache.append(torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    before = cache.key.data_ptr()
    cache.append(torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    assert cache.key.data_ptr() == before
