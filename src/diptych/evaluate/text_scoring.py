"""Texts under language models: how likely answers are, and how far next tokens lie from those of another model.

Texts alike in length share a batch, padded on the right, which no earlier token sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

MAX_TOKENS = 1024
"""Of a batch, padding included: its logits are the largest thing in memory."""
GiveLogits = Callable[[Tensor], Tensor]
"""Token ids [B, T] to logits [B, T, vocabulary], as of `text_logits` of a morph."""


@dataclass(frozen=True)
class TextComparison:
    """Of one text, summed over its `num_tokens` predicted tokens (all but the first): surprise in nats under the model
    and under the base, KL(base || model) in nats, how often both find the same next token likeliest."""

    num_tokens: int
    nll: float
    base_nll: float
    kl: float
    num_same: int
    vocabulary: int


@torch.no_grad()
def compare_texts(
    texts: Sequence[str], tokenizer: Any, *, logits_of: GiveLogits, base_logits_of: GiveLogits
) -> list[TextComparison]:
    """Each text under a model and its base. Raises ValueError for a text without a token and logits not finite."""
    sequences = [_encode(tokenizer, text) for text in texts]
    if not all(sequences):
        raise ValueError("a text without a token has nothing to be predicted")
    found: dict[int, TextComparison] = {}
    for places, ids in _batches(sequences):
        both = logits_of(ids), base_logits_of(ids)
        for row, place in enumerate(places):
            num = len(sequences[place]) - 1
            own, base = (_log_probabilities(logits[row, :num]) for logits in both)
            targets = ids[row, 1 : num + 1, None].to(own.device)
            found[place] = TextComparison(
                num_tokens=num,
                nll=-float(own.gather(1, targets).double().sum()),
                base_nll=-float(base.gather(1, targets).double().sum()),
                kl=float((base.exp() * (base - own)).double().sum()),
                num_same=int((own.argmax(dim=-1) == base.argmax(dim=-1)).sum()),
                vocabulary=own.shape[-1],
            )
    return [found[place] for place in range(len(texts))]


@torch.no_grad()
def score_choices(
    contexts: Sequence[str], choices: Sequence[Sequence[str]], tokenizer: Any, *, logits_of: GiveLogits
) -> list[list[float]]:
    """Log-likelihood in nats of each choice behind its context, summed over the choice's tokens. Context and choice are
    tokenised apart, as BIG-bench's Hugging Face model does it.

    Raises ValueError for a context or a choice without a token, and if logits are not finite.
    """
    starts = [_encode(tokenizer, context) for context in contexts]
    jobs: list[tuple[int, list[int]]] = []
    for context, own, start in zip(contexts, choices, starts, strict=True):
        for choice in own:
            ending = tokenizer(choice, add_special_tokens=False)["input_ids"]
            if not start or not ending:
                raise ValueError(f"choice {choice!r} of {context[-80:]!r} cannot be scored: one of them has no token")
            jobs.append((len(start), [*start, *ending]))
    totals = [0.0] * len(jobs)
    for places, ids in _batches([sequence for _, sequence in jobs]):
        logits = logits_of(ids)
        for row, place in enumerate(places):
            start, sequence = jobs[place]
            likely = _log_probabilities(logits[row, start - 1 : len(sequence) - 1])
            targets = ids[row, start : len(sequence), None].to(likely.device)
            totals[place] = float(likely.gather(1, targets).double().sum())
    left = iter(totals)
    return [[next(left) for _ in own] for own in choices]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def _batches(sequences: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
    """Places and ids [B, T], shortest first."""
    batch: list[int] = []

    def padded() -> tuple[list[int], Tensor]:
        length = len(sequences[batch[-1]])
        rows = [[*sequences[place], *[0] * (length - len(sequences[place]))] for place in batch]
        return batch, torch.tensor(rows)

    for place in sorted(range(len(sequences)), key=lambda place: len(sequences[place])):
        if batch and (len(batch) + 1) * len(sequences[place]) > MAX_TOKENS:
            yield padded()
            batch = []
        batch.append(place)
    if batch:
        yield padded()


def _log_probabilities(logits: Tensor) -> Tensor:
    if not bool(logits.isfinite().all()):
        raise ValueError("logits are not finite; the language model's weights are damaged")
    return log_softmax(logits.float(), dim=-1)
