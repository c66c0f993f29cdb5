"""Laws of text scoring: batching changes nothing, padding scores nothing, known distributions give known numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diptych.backbones.tiny_language import build_byte_tokenizer
from diptych.evaluate.text_scoring import compare_texts, score_choices
from tiny_xfusion import build_language

LANGUAGE = build_language()
WORDS = st.text("abc de", min_size=1, max_size=12)


def logits_of(ids: Tensor) -> Tensor:
    with torch.no_grad():
        return LANGUAGE.model(input_ids=ids).logits


def uniform(ids: Tensor) -> Tensor:
    return torch.zeros(*ids.shape, 259)


def certain(ids: Tensor) -> Tensor:
    """Knows every next token but the first."""
    logits = torch.full((*ids.shape, 259), -50.0)
    logits[:, :-1].scatter_(2, ids[:, 1:, None], 50.0)
    return logits


@settings(max_examples=15)
@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_choices_score_in_a_batch_as_alone_and_as_by_hand(asked: list[tuple[str, list[str]]]) -> None:
    contexts, choices = [context for context, _ in asked], [own for _, own in asked]
    found = score_choices(contexts, choices, LANGUAGE.tokenizer, logits_of=logits_of)
    for context, own, scores in zip(contexts, choices, found, strict=True):
        for choice, score in zip(own, scores, strict=True):
            ids = LANGUAGE.tokenizer(context + choice)["input_ids"]  # bytes: the same together and apart
            likely = logits_of(torch.tensor([ids])).log_softmax(-1)[0]
            start = len(context)
            by_hand = sum(float(likely[place - 1, ids[place]]) for place in range(start, len(ids)))
            assert score == pytest.approx(by_hand, abs=1e-3)


def test_known_distributions_give_known_numbers() -> None:
    texts = ["abc", "a longer text than the others", "x"]
    tokenizer = build_byte_tokenizer()
    for (one, other), kl in {
        (uniform, uniform): 0.0,
        (certain, certain): 0.0,
        (uniform, certain): math.log(259),
    }.items():
        for text, found in zip(
            texts, compare_texts(texts, tokenizer, logits_of=one, base_logits_of=other), strict=True
        ):
            num = len(text) - 1
            assert (found.num_tokens, found.vocabulary) == (num, 259)
            surprise = {uniform: num * math.log(259), certain: 0.0}
            assert found.nll == pytest.approx(surprise[one], abs=1e-4)
            assert found.base_nll == pytest.approx(surprise[other], abs=1e-4)
            assert found.kl == pytest.approx(num * kl, abs=1e-3)
            assert found.num_same == num or one is not other


def test_texts_are_asked_alike_in_length_and_in_batches_of_a_bound() -> None:
    shapes: list[Any] = []

    def noting(ids: Tensor) -> Tensor:
        shapes.append(ids.shape)
        return uniform(ids)

    texts = ["a" * 700, "b" * 3, "c" * 701, *["d" * 100] * 15]
    compare_texts(texts, build_byte_tokenizer(), logits_of=noting, base_logits_of=uniform)
    assert shapes == [(10, 100), (6, 100), (1, 700), (1, 701)]


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="has no token"):
        score_choices(["question"], [[""]], LANGUAGE.tokenizer, logits_of=logits_of)
    with pytest.raises(ValueError, match="without a token"):
        compare_texts([""], LANGUAGE.tokenizer, logits_of=logits_of, base_logits_of=logits_of)
    with pytest.raises(ValueError, match="not finite"):
        compare_texts(["ab"], LANGUAGE.tokenizer, logits_of=lambda ids: uniform(ids) / 0, base_logits_of=logits_of)
