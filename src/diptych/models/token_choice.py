"""The next text token, and the tokens that end an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def choose_tokens(
    logits: Tensor, do_sample: bool, temperature: float, top_p: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """Next tokens [B] of logits [B, vocabulary]: the likeliest, or drawn from the top_p nucleus.

    generators: one for each row, on the CPU, so that what is drawn for one does not depend on who else is there.
    """
    if not do_sample:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    ordered, order = probabilities.sort(dim=-1, descending=True)
    ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0
    rows = zip(ordered.cpu(), generators, strict=True)
    drawn = torch.stack([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
    return order.gather(1, drawn.to(order.device))[:, 0]


def conversation_seeds(seed: int | Sequence[int], num: int) -> list[int]:
    """One for each of `num` conversations. Raises ValueError for another number of them."""
    if isinstance(seed, int):
        return [seed] * num
    if len(seed) != num:
        raise ValueError(f"{len(seed)} seeds for {num} conversations; give one for each, or one for all")
    return list(seed)


def row_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One for each conversation, so that it answers the same alone and in a batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def stop_ids(language_model: Any, tokenizer: Any) -> set[int]:
    """Ids of the tokens that end an answer: the language model's, the tokenizer's, and the chat templates' own."""
    configured = language_model.generation_config.eos_token_id
    stops = set(configured if isinstance(configured, list) else [configured])
    stops.add(tokenizer.eos_token_id)
    stops |= {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|eot_id|>") if t in tokenizer.get_vocab()}
    return {stop for stop in stops if stop is not None}
