"""Laws of attention by rows: the packed stream's states are those of each sample alone, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diptych.nn.row_attention import NAME, RowGroups, group_rows, longest_by_rows, run_by_rows
from tiny_xfusion import FAMILIES, build_language

LENGTHS = (3, 7, 1, 5)
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def build_other(name: str, **settings: Any) -> Any:
    """A tiny random model of a family whose layers nobody here knows part by part."""
    own = {
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
        "OPT": {"word_embed_proj_dim": 32, "ffn_dim": 64},
        "Mamba": {"num_hidden_layers": 2},
    }.get(name, {"intermediate_size": 64, "num_key_value_heads": 2})
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(SIZES | TOKENS | own | settings))
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def rows() -> tuple[Tensor, RowGroups]:
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    longest, starts = max(LENGTHS), torch.tensor((0, *LENGTHS[:-1])).cumsum(0)
    index = torch.stack(
        [
            torch.where(torch.arange(longest) < length, start + torch.arange(longest), 0)
            for start, length in zip(starts, LENGTHS, strict=True)
        ]
    )
    row = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    return positions, group_rows(index, row, positions)


def both_ways(decoder: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    alone = [decoder(inputs_embeds=own[None], use_cache=False).last_hidden_state[0] for own in x.split(LENGTHS)]
    return run_by_rows(decoder, x, *rows()), torch.cat(alone)


def check(model: Any) -> None:
    decoder = model.get_decoder()
    assert longest_by_rows(decoder) > 0
    assert decoder.config._attn_implementation == NAME
    width = decoder.get_input_embeddings().weight.shape[1]
    x = torch.randn(sum(LENGTHS), width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(sum(LENGTHS), width, generator=torch.Generator().manual_seed(1))
    packed, alone = both_ways(decoder, x)
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)
    gradients = [torch.autograd.grad((states * weight).sum(), x)[0] for states in (packed, alone)]
    torch.testing.assert_close(*gradients, atol=5e-5, rtol=1e-3)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_rows_of_a_group_are_of_like_length_and_every_token_has_its_place(lengths: list[int]) -> None:
    longest, counts = max(lengths), torch.tensor(lengths)
    row = torch.arange(len(lengths)).repeat_interleave(counts)
    column = torch.cat([torch.arange(length) for length in lengths])
    index = torch.zeros(len(lengths), longest, dtype=torch.long)
    index[row, column] = torch.arange(len(row))
    groups = group_rows(index, row, column)
    laid_out = torch.cat([own.flatten() for own in groups.indices])
    assert torch.equal(laid_out[groups.places], torch.arange(len(row)))
    assert len(groups.indices) <= 4
    for own in groups.indices:
        of = [lengths[int(row[token])] for token in own[:, 0]]
        assert max(of) == own.shape[1]
        assert max(of) <= 2 * min(of) or 8 * max(of) <= longest, "the fourth holds all that are shorter still"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_s_states_are_each_sample_s_own(family: str) -> None:
    check(build_language(family).model)


@pytest.mark.parametrize("name", ["GPT2", "OPT", "Cohere", "Granite", "GPTNeoX"])
def test_so_they_are_in_families_that_are_not_known_part_by_part(name: str) -> None:
    check(build_other(name))


def test_activations_that_are_computed_again_in_backward_are_the_same() -> None:
    model = build_language().model
    decoder = model.get_decoder()
    assert longest_by_rows(decoder)
    gradients = []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train().requires_grad_()
        x = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(0))
        run_by_rows(decoder, x, *rows()).square().sum().backward()
        gradients.append([p.grad.clone() for p in decoder.layers.parameters() if p.grad is not None])
        model.zero_grad()
    assert gradients[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_what_cannot_attend_by_rows_stays_as_it_is() -> None:
    mamba = build_other("Mamba").get_decoder()
    assert longest_by_rows(mamba) == 0
    eager = build_language().model
    eager.set_attn_implementation("eager")
    assert longest_by_rows(eager.get_decoder()) == 0
    assert eager.config._attn_implementation == "eager"


def test_rows_are_no_longer_than_the_narrowest_window() -> None:
    assert longest_by_rows(build_other("Mistral", sliding_window=5).get_decoder()) == 5


def test_text_alone_and_generation_are_as_before() -> None:
    model = build_language().model
    ids = torch.tensor([[5, 9, 11, 3]])
    before, said = model(ids).logits, model.generate(ids, max_new_tokens=6, do_sample=False)
    assert longest_by_rows(model.get_decoder())
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), said)
    assert NAME not in model.config.to_json_string()
