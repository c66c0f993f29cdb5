"""VPiT at work: text tokens and visual tokens from one stream, cached, many conversations at once.

The text head decides when an image starts; exactly n visual tokens follow, each fed back through the connector; then
text goes on. Every conversation of a batch is in its own phase: one step of the language model serves all.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.models.token_choice import choose_tokens
from diptych.models.vpit import VPiT, shown_tokens
from diptych.nn.decode_layer import LayerCache, decode_layer
from diptych.nn.layer_parts import ROUTABLE_FAMILIES, rotary
from diptych.sequence import Sequence as Stream
from diptych.sequence import pack

Piece = list[int] | Tensor
"""A run of text tokens, or the visual tokens [n, F] of an image."""


@dataclass
class _Row:
    """One conversation: what it has answered, what it must say next, the image that it is drawing."""

    limit: int
    forced: deque[int] = field(default_factory=deque)
    pieces: list[Piece] = field(default_factory=list)
    image: list[Tensor] | None = None
    length: int = 0
    done: bool = False

    def say(self, token: int) -> None:
        if not self.pieces or isinstance(self.pieces[-1], Tensor):
            self.pieces.append([])
        piece = self.pieces[-1]
        assert isinstance(piece, list)
        piece.append(token)


@torch.no_grad()
def decode_interleaved(
    model: VPiT,
    prompts: Sequence[Stream],
    *,
    stops: set[int],
    max_new_tokens: int,
    generation_mode: Literal["auto", "text", "image"] = "auto",
    unconditional: Sequence[Stream] = (),
    visual_guidance_scale: float = 1.0,
    visual_input_dropout: float = 0.0,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[Piece]]:
    """Answers prompts (text and context images in their boundary tokens): pieces of text and images for each.

    generation_mode: text never starts an image; image answers with one image and nothing else. max_new_tokens counts
    text; an image that was begun is always finished. `unconditional`: prompts without their text, for a guidance in
    feature space other than 1. `visual_input_dropout`: share of an image's visual tokens that is not fed back, as in
    training, so that the model meets what it was trained on. Raises ValueError for a prompt that leaves no room in the
    language model's context.
    """
    start, end = model.boundary_tokens.token_ids
    guided = visual_guidance_scale != 1.0 and generation_mode != "text"
    if guided and len(unconditional) != len(prompts):
        raise ValueError("guidance in feature space needs an unconditional prompt for every prompt")
    rows = [_Row(limit=_room(model, prompt, generation_mode)) for prompt in prompts]
    if generation_mode == "image":
        for row in rows:
            row.forced.append(start)
    engine = _Engine(model, [*prompts, *(unconditional if guided else ())])
    running = list(range(len(rows)))
    shown = shown_tokens(model.num_image_tokens, visual_input_dropout).to(engine.hidden.device)
    hidden = engine.hidden
    while True:
        inputs = hidden.new_zeros(len(running), hidden.shape[-1])
        own = hidden[: len(running)]
        texts = [i for i, index in enumerate(running) if rows[index].image is None]
        images = [i for i, index in enumerate(running) if rows[index].image is not None]
        if texts:
            choosing = [i for i in texts if not rows[running[i]].forced]
            tokens = {i: rows[running[i]].forced.popleft() for i in texts if rows[running[i]].forced}
            if choosing:
                logits = model.text_logits(own[choosing]).float()
                logits[:, end] = -torch.inf
                for k, i in enumerate(choosing):
                    row = rows[running[i]]
                    if generation_mode == "text" or row.length + model.num_image_tokens + 2 > row.limit:
                        logits[k, start] = -torch.inf
                chosen = choose_tokens(logits, do_sample, temperature, top_p)
                tokens |= dict(zip(choosing, chosen.tolist(), strict=True))
            for i, token in tokens.items():
                _take_token(rows[running[i]], token, start=start, end=end, stops=stops, max_new_tokens=max_new_tokens)
            order = sorted(tokens)
            ids = torch.tensor([tokens[i] for i in order], device=hidden.device)
            embeddings = model.boundary_tokens.embed(ids, model.language_model.get_input_embeddings())
            inputs[order] = embeddings.to(inputs.dtype)
        if images:
            predicted = model.visual_head(own[images])
            if guided:
                without = model.visual_head(hidden[len(running) :][images])
                predicted = normalize(without + visual_guidance_scale * (predicted - without), dim=-1)
            places = torch.tensor([len(rows[running[i]].image or ()) for i in images], device=hidden.device)
            fed = predicted * shown[places, None]
            for i, feature in zip(images, predicted, strict=True):
                _take_feature(rows[running[i]], feature, model.num_image_tokens, end, only=generation_mode == "image")
            inputs[images] = model.connector(fed, places).to(inputs.dtype)
        kept = [i for i, index in enumerate(running) if not rows[index].done]
        if not kept:
            break
        if len(kept) < len(running):
            engine.keep([*kept, *(len(running) + i for i in kept)] if guided else kept)
            inputs = inputs[kept]
            running = [running[i] for i in kept]
        hidden = engine.step(torch.cat((inputs, inputs)) if guided else inputs)
    return [row.pieces for row in rows]


def _take_token(row: _Row, token: int, *, start: int, end: int, stops: set[int], max_new_tokens: int) -> None:
    row.length += 1
    if token == start:
        row.image = []
    elif token in stops:
        row.done = True
    elif token != end:
        row.say(token)
    num_said = sum(len(piece) if isinstance(piece, list) else 1 for piece in row.pieces)
    if row.image is None and (num_said >= max_new_tokens or row.length >= row.limit):
        row.done = True


def _take_feature(row: _Row, feature: Tensor, num_image_tokens: int, end: int, *, only: bool) -> None:
    assert row.image is not None
    row.length += 1
    row.image.append(feature)
    if len(row.image) == num_image_tokens:
        row.pieces.append(torch.stack(row.image))
        row.image = None
        row.forced.append(end)
        row.done = only


def _room(model: VPiT, prompt: Stream, generation_mode: str) -> int:
    """How many tokens may follow a prompt in the language model's context."""
    context = getattr(model.language_model.config, "max_position_embeddings", None)
    room = 2**31 if context is None else context - len(prompt)
    needed = model.num_image_tokens + 1 if generation_mode == "image" else 1
    if room < needed:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens leaves room for {max(room, 0)} of the {needed} that follow at least, in "
            f"the language model's context of {context}; shorten the prompt or give fewer images"
        )
    return room


class _Engine:
    """The language model with its keys and values, over left-padded rows.

    The prompts go through the language model's own forward. So do the tokens that follow, unless its family's layers
    are known part by part: then `decode_layer` runs them, the same numbers in fewer operations.
    """

    def __init__(self, model: VPiT, prompts: Sequence[Stream]) -> None:
        from transformers import DynamicCache

        self.decoder: Any = model.decoder
        device = next(model.connector.parameters()).device
        batch = pack(prompts).to(device)
        embeddings = model.embed(batch.token_ids, batch.is_image, batch.images if batch.num_images else None)
        lengths = torch.bincount(batch.sample_ids, minlength=len(prompts))
        longest = int(lengths.max())
        column = batch.positions + (longest - lengths)[batch.sample_ids]
        inputs = embeddings.new_zeros(len(prompts), longest, embeddings.shape[-1])
        inputs[batch.sample_ids, column] = embeddings
        self.mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        self.mask[batch.sample_ids, column] = 1
        self.positions = lengths
        self.cache: Any = DynamicCache()
        self.takes_positions = "position_ids" in inspect.signature(self.decoder.forward).parameters
        self.hidden = self._run(inputs, (self.mask.cumsum(1) - 1).clamp_min(0))
        self.layers = self._take_over()

    def step(self, inputs: Tensor) -> Tensor:
        """One more token for every row: embeddings [B, D] -> final states [B, D]."""
        if self.layers is not None:
            rope = rotary(self.decoder.rotary_emb, self.positions, inputs.dtype)
            for layer, cache in zip(self.decoder.layers, self.layers, strict=True):
                inputs = decode_layer(layer, inputs, rope, cache)
            hidden = self.decoder.norm(inputs)
        else:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(inputs), 1)), dim=1)
            hidden = self._run(inputs[:, None], self.positions[:, None])
        self.positions = self.positions + 1
        return hidden

    def keep(self, rows: list[int]) -> None:
        """Only these rows go on."""
        index = torch.tensor(rows, device=self.mask.device)
        self.mask, self.positions = self.mask[index], self.positions[index]
        if self.layers is None:
            self.cache.batch_select_indices(index)
        for cache in self.layers or ():
            cache.keep(index)

    def _run(self, inputs: Tensor, positions: Tensor) -> Tensor:
        options = {"position_ids": positions} if self.takes_positions else {}
        mask = None if bool(self.mask.all()) else self.mask
        output = self.decoder(
            inputs_embeds=inputs, attention_mask=mask, past_key_values=self.cache, use_cache=True, **options
        )
        return output.last_hidden_state[:, -1]

    def _take_over(self) -> list[LayerCache] | None:
        """The prompts' keys and values by layer; None if the layers are not known, or one of them forgets."""
        from transformers.cache_utils import DynamicLayer

        known = self.decoder.config.model_type in ROUTABLE_FAMILIES
        if not known or any(type(layer) is not DynamicLayer for layer in self.cache.layers):
            return None
        mask = None if bool(self.mask.all()) else self.mask.bool()
        layers = [LayerCache(layer.keys, layer.values, mask) for layer in self.cache.layers]
        self.cache = None
        return layers
