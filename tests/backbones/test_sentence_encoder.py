"""Laws of the sentence encoder: what pads a batch is not read, and what means the same stands near."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from diptych.backbones.sentence_encoder import LONGEST, SENTENCE_DIM, SentenceEncoder, load_sentence_encoder


def spell(texts: Sequence[str], *, max_length: int, **options: Any) -> dict[str, torch.Tensor]:
    """A tokenizer of letters."""
    ids = [[ord(letter) % 50 + 1 for letter in text[:max_length]] for text in texts]
    longest = max(len(own) for own in ids)
    padded = torch.tensor([own + [0] * (longest - len(own)) for own in ids])
    mask = torch.tensor([[1] * len(own) + [0] * (longest - len(own)) for own in ids])
    return {"input_ids": padded, "attention_mask": mask}


def small_encoder(batch_size: int) -> SentenceEncoder:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=51, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return SentenceEncoder(BertModel(config), spell, hash="0" * 64, batch_size=batch_size)


def test_a_text_is_embedded_alike_in_every_batch_and_in_its_own_order() -> None:
    texts = ["a cat", "z" * 40, "rocket in 3D style", "a cat", "q"]
    alone = small_encoder(1).embed(texts)
    assert alone.shape == (5, 16)
    assert torch.allclose(alone.norm(dim=-1), torch.ones(5), atol=1e-5)
    for batch_size in (2, 3, 64):
        assert torch.allclose(small_encoder(batch_size).embed(texts), alone, atol=1e-5)
    assert torch.equal(alone[0], alone[3])
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)
    assert small_encoder(4).embed([]).shape == (0, 16)


def test_a_text_is_read_up_to_its_longest_and_no_gradient_is_kept() -> None:
    encoder = small_encoder(4)
    one, other = encoder.embed(["x" * LONGEST, "x" * LONGEST + "tail"])
    assert torch.allclose(one, other, atol=1e-6)
    assert not one.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())


@pytest.mark.assets("all-minilm-l6-v2")
def test_the_embedded_one_knows_what_words_mean() -> None:
    encoder = load_sentence_encoder()
    dog, puppy, rocket = encoder.embed(["a dog", "a puppy", "a rocket"])
    assert dog.shape == (SENTENCE_DIM,)
    assert float(dog @ puppy) > 0.7
    assert float(dog @ rocket) < 0.4
    assert len(encoder.hash) == 64
