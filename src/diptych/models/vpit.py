"""VPiT (MetaMorph, arXiv 2412.14164): a causal LM that predicts text tokens and visual tokens from one stream.

A visual token is an image encoder's feature, of length 1. As an input it passes through the connector; as an output
the visual head predicts it from the state before it, as the LM head predicts text. Only `inputs_embeds` and final
hidden states of the language model are used, so that every Hugging Face causal LM fits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diptych.nn.boundary_tokens import BoundaryTokens
from diptych.nn.connector import Connector, VisualHead
from diptych.nn.row_attention import RowGroups, group_rows, run_by_rows
from diptych.sequence import IGNORE_INDEX, Batch

WORTH_ROWS = 1.15
"""From so many times the tokens on, padding costs more than laying out queries, keys and values in every layer."""


@dataclass(frozen=True)
class Rows:
    """Packed tokens as padded rows: `index` [S, T] holds the packed position of each token (0 where padded), `row`
    and `column` [N] where each packed token lies. Padding stands at the end: under causal attention nobody sees it.

    `groups`: there where so much is padding that only the attention should see it."""

    index: Tensor
    row: Tensor
    column: Tensor
    groups: RowGroups | None = None

    def to(self, device: torch.device | str) -> Rows:
        groups = None if self.groups is None else self.groups.to(device)
        return Rows(self.index.to(device), self.row.to(device), self.column.to(device), groups)


def build_rows(batch: Batch, *, longest_by_rows: int = 0) -> Rows:
    """`longest_by_rows`: the longest sample whose attention alone may see the padding; 0: the language model cannot."""
    index = torch.zeros(batch.num_samples, int(batch.positions.max()) + 1, dtype=torch.long)
    index[batch.sample_ids, batch.positions] = torch.arange(len(batch.positions))
    by_rows = index.shape[1] <= longest_by_rows and index.numel() > WORTH_ROWS * len(batch.positions)
    groups = group_rows(index, batch.sample_ids, batch.positions) if by_rows else None
    return Rows(index, batch.sample_ids, batch.positions, groups)


def run_packed(decoder: Any, embeddings: Tensor, rows: Rows) -> Tensor:
    """Packed embeddings [N, D] -> the decoder's last hidden states [N, D]."""
    if rows.groups is not None:
        return run_by_rows(decoder, embeddings, rows.column, rows.groups)
    hidden = decoder(inputs_embeds=embeddings[rows.index], use_cache=False).last_hidden_state
    return hidden[rows.row, rows.column]


@dataclass(frozen=True)
class Supervision:
    """Packed positions [Nt] whose state predicts a text token, the tokens [Nt], and the positions [Nv] whose state
    predicts a visual token of a target image. `target_images` [It]: their images, in order, n positions each."""

    text: Tensor
    labels: Tensor
    visual: Tensor
    target_images: Tensor

    def to(self, device: torch.device | str) -> Supervision:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


def find_supervision(batch: Batch, image_start: int) -> Supervision:
    """Shift by one (MetaMorph, losses): the state at position p predicts what stands at p + 1.

    Raises ValueError for a target image that does not stand right behind `image_start`: nothing would predict it.
    """
    text = (batch.labels != IGNORE_INDEX).nonzero()[:, 0]
    is_target = torch.zeros_like(batch.is_image)
    is_target[batch.is_image] = batch.image_is_target[batch.image_ids[batch.is_image]]
    targets = is_target.nonzero()[:, 0]
    first = targets[(batch.image_ids[targets] != batch.image_ids[targets - 1]) | (targets == 0)]
    if bool(((first == 0) | (batch.token_ids[first - 1] != image_start) | batch.is_image[first - 1]).any()):
        raise ValueError("a target image does not stand behind its <image_start>; build sequences with boundary_ids")
    return Supervision(text, batch.labels[text], targets - 1, batch.image_is_target.nonzero()[:, 0])


class VPiT(nn.Module):
    """Language model, connector, visual head, boundary tokens.

    Scale and cap that the language model's config puts on its LM head's logits (Cohere, Granite, Gemma 2) apply to
    those here.
    """

    def __init__(
        self,
        language_model: Any,
        *,
        feature_dim: int,
        num_image_tokens: int,
        token_ids: tuple[int, int],
        connector: str,
        tied_boundary_tokens: bool = True,
        hides_tokens: bool = False,
    ) -> None:
        super().__init__()
        width = int(language_model.get_input_embeddings().weight.shape[1])
        num_hidden = num_image_tokens if hides_tokens else 0
        self.connector = Connector(feature_dim, width, kind=connector, num_hidden=num_hidden)
        self.visual_head = VisualHead(width, feature_dim)
        self.boundary_tokens = BoundaryTokens(language_model, token_ids, tied=tied_boundary_tokens)
        self.language_model = language_model
        self.feature_dim = feature_dim
        self.num_image_tokens = num_image_tokens
        self.logit_scale, self.logit_cap = logit_settings(language_model.config)

    @property
    def decoder(self) -> Any:
        """The language model without its LM head."""
        return self.language_model.get_decoder()

    def embed(self, token_ids: Tensor, is_image: Tensor, features: Tensor | None) -> Tensor:
        """Embeddings [..., D] of tokens [...]; features [I, n, F], in order, stand where `is_image`.

        Raises ValueError with both counts if there are more or fewer visual tokens than places for them.
        """
        embeddings = self.boundary_tokens.embed(token_ids, self.language_model.get_input_embeddings())
        num_places, num_given = int(is_image.sum()), 0 if features is None else features[..., 0].numel()
        if num_places != num_given:
            raise ValueError(f"{num_given} visual tokens were given for {num_places} places in the sequence")
        if features is None or not num_given:
            return embeddings
        return embeddings.masked_scatter(is_image[..., None], self.connector(features).to(embeddings.dtype))

    def states(self, batch: Batch, rows: Rows, features: Tensor | None) -> Tensor:
        """Final states [N, D] of a packed batch; features [I, n, F] are the visual inputs of all its images."""
        embeddings = self.embed(batch.token_ids, batch.is_image, features)
        return run_packed(self.decoder, embeddings, rows)

    def text_logits(self, states: Tensor) -> Tensor:
        """Final states [N, D] -> logits over the vocabulary with the boundary tokens in it."""
        logits = self.boundary_tokens.logits(states, self.language_model.get_output_embeddings())
        return change_logits(logits, scale=self.logit_scale, cap=self.logit_cap)


def logit_settings(config: Any) -> tuple[float, float | None]:
    """(scale, cap) that a language model's config puts on its LM head's logits; (1, None): they stay as they are."""
    config = config.get_text_config()
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    return float(scale or 1.0) / float(divisor or 1.0), None if cap is None else float(cap)


def change_logits(logits: Tensor, *, scale: float, cap: float | None) -> Tensor:
    """Logits under `logit_settings`; those of tokens that do not exist stay at minus infinity."""
    logits = logits if scale == 1.0 else logits * scale
    return logits if cap is None else torch.where(logits.isinf(), logits, cap * torch.tanh(logits / cap))


def context_length(language_model: Any) -> int | None:
    """How many tokens the language model can place; None: it does not say."""
    length = getattr(language_model.config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


def shown_tokens(
    num_image_tokens: int, visual_input_dropout: float, generator: torch.Generator | None = None
) -> Tensor:
    """Which visual tokens [n] of a drawn image are shown as inputs: always as many, one at least unless the dropout is
    1; by the generator, or those that generation feeds back."""
    kept = 0 if visual_input_dropout == 1 else max(1, round((1 - visual_input_dropout) * num_image_tokens))
    order = torch.randperm(num_image_tokens, generator=generator or torch.Generator().manual_seed(0))
    return torch.zeros(num_image_tokens, dtype=torch.bool).index_fill(0, order[:kept], True)
