"""Laws of taking a decoder layer apart: the parts put together are the layer; strange families are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import GemmaConfig, GPT2Config

from diptych.nn.attention import attend
from diptych.nn.layer_parts import (
    ROUTABLE_FAMILIES,
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
from diptych.nn.visibility import plan_text_only
from diptych.sequence import Sequence, TextSpan, pack
from tiny_xfusion import FAMILIES, build_language


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_put_together_are_the_layer(family: str) -> None:
    model = build_language(family).model
    hidden = torch.randn(7, model.config.hidden_size)
    positions = torch.arange(7)
    rope = rotary(model.model.rotary_emb, positions, hidden.dtype)
    groups = plan_text_only(pack([Sequence((TextSpan((3,) * 7, (False,) * 7),))]))
    bias = torch.full((7, 7), float("-inf")).triu(1)[None, None]
    for layer in model.model.layers:
        embeddings = model.model.rotary_emb(hidden, positions[None])
        theirs = layer(hidden[None], attention_mask=bias, position_embeddings=embeddings)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        x = attention_input(layer, hidden)
        attended = attend(
            project_query(layer, x, rope), *project_key_value(layer, x, rope), groups, scaling=layer.self_attn.scaling
        )
        ours = hidden + attention_output(layer, attended)
        ours = ours + mlp_output(layer, mlp_input(layer, ours))
        torch.testing.assert_close(ours, theirs.reshape(ours.shape), atol=1e-5, rtol=1e-5)


def test_every_routable_family_is_tested() -> None:
    assert set(ROUTABLE_FAMILIES) == set(FAMILIES)


@pytest.mark.parametrize("config", [GPT2Config(), GemmaConfig()], ids=["gpt2", "gemma"])
def test_a_family_that_cannot_be_routed_is_refused_by_name_with_those_that_can(config) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=f"'{config.model_type}' cannot be routed") as caught:
        check_routable(config)
    assert all(family in str(caught.value) for family in ROUTABLE_FAMILIES)


def test_attention_dropout_is_refused() -> None:
    config = build_language("llama").model.config
    config.attention_dropout = 0.1
    with pytest.raises(ValueError, match="attention_dropout"):
        check_routable(config)


def test_a_sliding_window_is_found_where_there_is_one() -> None:
    assert sliding_window(build_language("mistral", sliding_window=6).model.config, 0) == 6
    assert sliding_window(build_language("mistral", sliding_window=None).model.config, 0) is None
    assert sliding_window(build_language("llama").model.config, 0) is None
    qwen = build_language("qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1).model.config
    assert [sliding_window(qwen, layer) for layer in range(3)] == [None, 6, 6]
