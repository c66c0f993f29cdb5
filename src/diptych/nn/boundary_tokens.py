"""<image_start> and <image_end>: two embedding rows beside a language model's own, whose matrix stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class BoundaryTokens(nn.Module):
    """Rows of the two tokens: of the input embedding [2, D], and of the LM head where that is a matrix of its own or
    they are not `tied`.

    Both start at the mean of the language model's rows (MetaMorph, architecture). An embedding that does more than
    look up its rows (Gemma's scales them) gives the mean of what it makes of them, and shares nothing with the head.
    `token_ids` may lie beyond the matrix or among rows that it keeps in reserve: these rows count instead.
    """

    def __init__(self, language_model: Any, token_ids: tuple[int, int], *, tied: bool = True) -> None:
        super().__init__()
        self.token_ids = token_ids
        embedding = language_model.get_input_embeddings()
        head = language_model.get_output_embeddings().weight
        plain = type(embedding) is nn.Embedding
        self.input = nn.Parameter(_mean_rows(embedding.weight if plain else embedded_rows(embedding)))
        shared = tied and plain and head is embedding.weight
        self.output = None if shared else nn.Parameter(_mean_rows(head))

    @property
    def head_rows(self) -> Tensor:
        """Rows [2, D] that stand for both tokens in the LM head."""
        return self.input if self.output is None else self.output

    def embed(self, token_ids: Tensor, embedding: nn.Module) -> Tensor:
        """Token ids [...] -> embeddings [..., D], boundary tokens from the rows here."""
        start, end = self.token_ids
        is_start, is_end = token_ids == start, token_ids == end
        rows = embedding(token_ids.masked_fill(is_start | is_end, 0))
        rows = torch.where(is_start[..., None], self.input[0].to(rows.dtype), rows)
        return torch.where(is_end[..., None], self.input[1].to(rows.dtype), rows)

    def logits(self, states: Tensor, head: nn.Module) -> Tensor:
        """Final states [N, D] -> logits [N, V'] over the vocabulary with both tokens in it."""
        logits = head(states)
        own = states @ self.head_rows.to(states.dtype).T
        size = logits.shape[-1]
        if self.token_ids == (size, size + 1):
            return torch.cat((logits, own), dim=-1)
        if max(self.token_ids) >= size:
            lacking = max(self.token_ids) + 1 - size
            logits = torch.cat((logits, logits.new_full((*logits.shape[:-1], lacking), -torch.inf)), dim=-1)
        return logits.index_copy(-1, torch.tensor(self.token_ids, device=logits.device), own)


def add_boundary_tokens(tokenizer: Any, image_start: str, image_end: str) -> tuple[int, int]:
    """Adds both tokens to the tokenizer and gives their ids.

    Raises ValueError if the tokenizer already has one of them: its meaning there is not known.
    """
    from transformers import AddedToken

    vocabulary = tokenizer.get_vocab()
    if taken := [token for token in (image_start, image_end) if token in vocabulary]:
        raise ValueError(
            f"the tokenizer already has {' and '.join(taken)}; "
            "name other tokens with vpit.image_start and vpit.image_end"
        )
    if image_start == image_end:
        raise ValueError(f"vpit.image_start and vpit.image_end are both {image_start!r}; they must differ")
    tokens = [AddedToken(token, special=True, normalized=False) for token in (image_start, image_end)]
    tokenizer.add_tokens(tokens, special_tokens=True)
    start, end = tokenizer.convert_tokens_to_ids([image_start, image_end])
    return int(start), int(end)


def embedded_rows(embedding: Any, *, step: int = 1) -> Tensor:
    """What an embedding makes of every `step`-th id, [N, D]."""
    with torch.no_grad():
        return embedding(torch.arange(0, embedding.weight.shape[0], step, device=embedding.weight.device))


def _mean_rows(weight: Tensor) -> Tensor:
    return weight.detach().float().mean(dim=0, keepdim=True).repeat(2, 1)
