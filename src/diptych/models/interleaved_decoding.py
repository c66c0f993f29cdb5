"""VPiT at work: text tokens and visual tokens from one stream, cached, many conversations at once.

The text head decides when an image starts; exactly n visual tokens follow, each fed back through the connector; then
text goes on. Every conversation of a batch is in its own phase: one step of the language model serves all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.models.stream_engine import start_engine
from diptych.models.token_choice import choose_tokens, conversation_seeds, row_generators
from diptych.models.vpit import VPiT, build_rows, context_length, find_supervision, shown_tokens
from diptych.sequence import ImageSpan, TextSpan, pack
from diptych.sequence import Sequence as Stream

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
    seed: int | Sequence[int] = 0,
) -> list[list[Piece]]:
    """Answers prompts (text and context images in their boundary tokens): pieces of text and images for each.

    generation_mode: text never starts an image; image answers with one image and nothing else. max_new_tokens counts
    text; an image that was begun is always finished. `unconditional`: prompts without their text, for a guidance in
    feature space other than 1. `visual_input_dropout`: share of an image's visual tokens that is not fed back, as in
    training, so that the model meets what it was trained on; of 1, a forced image is predicted in one pass. `seed`: of
    what is sampled, of all conversations or one for each. Raises ValueError for a prompt that leaves no room in the
    language model's context, and for predicted visual tokens or logits that are not finite.
    """
    start, end = model.boundary_tokens.token_ids
    guided = visual_guidance_scale != 1.0 and generation_mode != "text"
    if guided and len(unconditional) != len(prompts):
        raise ValueError("guidance in feature space needs an unconditional prompt for every prompt")
    rows = [_Row(limit=_room(model, prompt, generation_mode)) for prompt in prompts]
    if generation_mode == "image" and visual_input_dropout == 1.0:
        return _draw_at_once(model, prompts, unconditional if guided else (), visual_guidance_scale)
    if generation_mode == "image":
        for row in rows:
            row.forced.append(start)
    engine = start_engine(model, [*prompts, *(unconditional if guided else ())])
    running = list(range(len(rows)))
    generators = row_generators(conversation_seeds(seed, len(rows)))
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
                _check_logits(logits, [running[i] for i in choosing])
                logits[:, end] = -torch.inf
                for k, i in enumerate(choosing):
                    row = rows[running[i]]
                    if generation_mode == "text" or row.length + model.num_image_tokens + 2 > row.limit:
                        logits[k, start] = -torch.inf
                own_generators = [generators[running[i]] for i in choosing]
                chosen = choose_tokens(logits, do_sample, temperature, top_p, own_generators)
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
            _check_finite([(index, rows[index]) for index in (running[i] for i in images)])
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


def _draw_at_once(
    model: VPiT, prompts: Sequence[Stream], unconditional: Sequence[Stream], scale: float
) -> list[list[Piece]]:
    """One image for each prompt where no visual token waits for another: all are hidden, so one pass predicts them."""
    start, _ = model.boundary_tokens.token_ids
    hidden = ImageSpan(torch.zeros(model.num_image_tokens, model.feature_dim), model.num_image_tokens, is_target=True)
    asked = (TextSpan((start,), (True,)), hidden)
    batch = pack([Stream((*prompt.spans, *asked)) for prompt in (*prompts, *unconditional)])
    rows, supervision = build_rows(batch), find_supervision(batch, start)
    device = next(model.connector.parameters()).device
    batch, rows, supervision = batch.to(device), rows.to(device), supervision.to(device)
    states = model.states(batch, rows, batch.images)
    predicted = model.visual_head(states[supervision.visual]).unflatten(0, (-1, model.num_image_tokens))
    if len(unconditional):
        with_text, without = predicted.split(len(prompts))
        predicted = normalize(without + scale * (with_text - without), dim=-1)
    if broken := [index for index, image in enumerate(predicted) if not bool(image.isfinite().all())]:
        raise ValueError(_not_finite("visual tokens", broken))
    return [[image] for image in predicted]


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


def _check_logits(logits: Tensor, conversations: Sequence[int]) -> None:
    broken = logits.isnan().any(dim=-1)
    if bool(broken.any()):
        raise ValueError(_not_finite("logits of text", [conversations[i] for i in broken.nonzero()[:, 0].tolist()]))


def _not_finite(what: str, conversations: Sequence[int]) -> str:
    names = ", ".join(map(str, conversations[:8]))
    return (
        f"the {what} predicted for conversation {names} are not finite; look at the morph's weights, its number format "
        "and visual_guidance_scale"
    )


def _check_finite(drawing: list[tuple[int, _Row]]) -> None:
    """Of images that have just been finished: looked at once, since looking waits for the device."""
    finished = [(index, row.pieces[-1]) for index, row in drawing if row.image is None]
    broken = [index for index, made in finished if isinstance(made, Tensor) and not bool(made.isfinite().all())]
    if broken:
        raise ValueError(_not_finite("visual tokens", broken))


def _room(model: VPiT, prompt: Stream, generation_mode: str) -> int:
    """How many tokens may follow a prompt in the language model's context."""
    context = context_length(model.language_model)
    room = 2**31 if context is None else context - len(prompt)
    needed = model.num_image_tokens + 1 if generation_mode == "image" else 1
    if room < needed:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens leaves room for {max(room, 0)} of the {needed} that follow at least, in "
            f"the language model's context of {context}; shorten the prompt or give fewer images"
        )
    return room
