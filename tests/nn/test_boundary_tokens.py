"""Laws of <image_start> and <image_end>: ids by name for any tokenizer, rows at the mean, the matrix untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from diptych.backbones.tiny_language import build_byte_tokenizer
from diptych.nn.boundary_tokens import BoundaryTokens, add_boundary_tokens

WIDTH = 8
NAMES = ("<image_start>", "<image_end>")


class Ends(nn.Module):
    """The two matrices of a language model, tied or not."""

    def __init__(self, vocabulary: int, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def build_word_tokenizer() -> Any:
    vocabulary = {word: index for index, word in enumerate(("<unk>", "a", "cat", "sat"))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("build", [build_byte_tokenizer, build_word_tokenizer], ids=["bytes", "words"])
def test_ids_are_resolved_by_name(build: Any) -> None:
    tokenizer = build()
    before = len(tokenizer)
    ids = add_boundary_tokens(tokenizer, *NAMES)
    assert ids == (before, before + 1)
    assert tuple(tokenizer.convert_tokens_to_ids(list(NAMES))) == ids
    encoded = tokenizer("a<image_start><image_end>cat", add_special_tokens=False)["input_ids"]
    assert [i for i in encoded if i in ids] == list(ids)
    assert "<image" not in tokenizer.decode(encoded, skip_special_tokens=True)


@pytest.mark.parametrize("taken", [(NAMES[0],), (NAMES[1],), NAMES])
def test_a_tokenizer_that_has_them_already_is_refused(taken: tuple[str, ...]) -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.add_tokens(list(taken))
    before = len(tokenizer)
    with pytest.raises(ValueError, match=f"already has {' and '.join(taken)}; name other tokens"):
        add_boundary_tokens(tokenizer, *NAMES)
    assert len(tokenizer) == before


def test_two_tokens_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="they must differ"):
        add_boundary_tokens(build_byte_tokenizer(), "<image>", "<image>")


@pytest.mark.parametrize("tied", [True, False])
def test_rows_start_at_the_mean_and_the_matrix_is_the_same_object(tied: bool) -> None:
    model = Ends(10, tied=tied)
    before = [parameter.clone() for parameter in model.parameters()]
    tokens = BoundaryTokens(model, (10, 11))
    torch.testing.assert_close(tokens.input.data, model.embedding.weight.mean(0).repeat(2, 1))
    assert (tokens.output is None) == tied
    if tokens.output is not None:
        torch.testing.assert_close(tokens.output.data, model.head.weight.mean(0).repeat(2, 1))
    for parameter, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, was)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("token_ids", [(10, 11), (11, 10), (12, 14), (7, 8), (9, 10)], ids=str)
def test_they_count_as_rows_of_the_matrices_wherever_they_lie(token_ids: tuple[int, int], tied: bool) -> None:
    """Right behind the matrix, swapped, further behind, among rows kept in reserve, and half in it."""
    model = Ends(10, tied=tied)
    tokens = BoundaryTokens(model, token_ids)
    with torch.no_grad():
        for parameter in tokens.parameters():
            parameter.normal_()
    size = max(10, max(token_ids) + 1)
    whole_in, whole_out = torch.zeros(size, WIDTH), torch.zeros(size, WIDTH)
    whole_in[:10], whole_out[:10] = model.embedding.weight.data, model.head.weight.data
    rows_out = tokens.input if tokens.output is None else tokens.output
    whole_in[list(token_ids)], whole_out[list(token_ids)] = tokens.input.data, rows_out.data

    ids = torch.tensor([[0, 3, *token_ids], [token_ids[1], 5, 6, token_ids[0]]])
    torch.testing.assert_close(tokens.embed(ids, model.embedding), whole_in[ids])
    states = torch.randn(4, WIDTH)
    logits, expected = tokens.logits(states, model.head), states @ whole_out.T
    known = sorted({*range(10), *token_ids})
    torch.testing.assert_close(logits[:, known], expected[:, known])
    between = sorted(set(range(size)) - set(known))
    assert bool((logits[:, between] == -torch.inf).all())


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_reach_the_rows_that_were_used(tied: bool) -> None:
    model = Ends(10, tied=tied).requires_grad_(False)
    tokens = BoundaryTokens(model, (10, 11))
    embedded = tokens.embed(torch.tensor([1, 10, 2]), model.embedding)
    embedded.sum().backward(retain_graph=True)
    assert tokens.input.grad is not None
    assert tokens.input.grad[0].abs().sum() > 0
    assert tokens.input.grad[1].abs().sum() == 0
    tokens.logits(embedded, model.head).sum().backward()
    rows = tokens.input if tokens.output is None else tokens.output
    assert rows.grad is not None
    assert bool((rows.grad.abs().sum(1) > 0).all())


def test_rows_take_the_embedding_s_dtype() -> None:
    model = Ends(10, tied=True).bfloat16()
    tokens = BoundaryTokens(model, (10, 11))
    assert tokens.input.dtype == torch.float32
    embedded = tokens.embed(torch.tensor([1, 10, 11]), model.embedding)
    assert embedded.dtype == torch.bfloat16
    assert tokens.logits(embedded, model.head).dtype == torch.bfloat16
