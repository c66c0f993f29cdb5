"""Text after images, token by token: keys and values are computed once, prompts of unequal length share a batch."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from diptych.models.token_choice import choose_tokens, conversation_seeds, row_generators, stop_ids
from diptych.models.xfusion import Prefilled
from diptych.models.xfusion_building import XFusionModel
from diptych.nn.attention import Groups
from diptych.nn.decode_layer import LayerCache, decode_layer
from diptych.nn.towers.fused_blocks import DecodeCaches, FusedBlock, KeyValues
from diptych.nn.visibility import plan_text_only
from diptych.sequence import Sequence, TextSpan, pack


@torch.no_grad()
def decode_text(
    model: XFusionModel,
    prompts: list[Sequence],
    *,
    tokenizer: Any,
    max_new_tokens: int,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | list[int] = 0,
    context_features: Tensor | None = None,
) -> list[str]:
    """Continues prompts until an end token or `max_new_tokens`; special tokens are left out of the text.

    seed: of what is sampled, of all prompts or one for each.
    context_features [Ic, n, F]: of all prompts' images, in order, where the tower reads features.
    """
    stops = stop_ids(model.text_tower.language_model, tokenizer)
    with_images = [i for i, prompt in enumerate(prompts) if prompt.images]
    without = [i for i, prompt in enumerate(prompts) if not prompt.images]
    seeds = conversation_seeds(seed, len(prompts))
    how = (stops, max_new_tokens, do_sample, temperature, top_p)
    continued: dict[int, list[int]] = {}
    if with_images:
        own = [prompts[i] for i in with_images], *how, [seeds[i] for i in with_images]
        ids = _decode_routed(model, *own, context_features)
        continued |= dict(zip(with_images, ids, strict=True))
    if without:
        ids = _decode_plain(model, [prompts[i] for i in without], *how, [seeds[i] for i in without])
        continued |= dict(zip(without, ids, strict=True))
    return [tokenizer.decode(continued[i], skip_special_tokens=True).strip() for i in range(len(prompts))]


class _DrawnTokens:
    """Of each row's logits what one token leaves: that which `choose_tokens` draws with the row's own generator.

    `generate` draws for all rows together, so that what one prompt is answered would depend on the others.
    """

    def __init__(self, temperature: float, top_p: float, generators: list[torch.Generator]) -> None:
        self.temperature, self.top_p, self.generators = temperature, top_p, generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        drawn = choose_tokens(scores, True, self.temperature, self.top_p, self.generators)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)


def _decode_plain(
    model: XFusionModel,
    prompts: list[Sequence],
    stops: set[int],
    max_new_tokens: int,
    do_sample: bool,
    temperature: float,
    top_p: float,
    seeds: list[int],
) -> list[list[int]]:
    """Text alone is the language model's own affair: one call of its `generate`, shorter prompts filled up in front."""
    language_model, fill = model.text_tower.language_model, min(stops)
    runs = [[t for span in prompt.spans if isinstance(span, TextSpan) for t in span.token_ids] for prompt in prompts]
    longest = max(map(len, runs))
    inputs = torch.tensor([[fill] * (longest - len(run)) + run for run in runs], device=language_model.device)
    lengths = torch.tensor([[len(run)] for run in runs], device=language_model.device)
    drawn: Any = [_DrawnTokens(temperature, top_p, row_generators(seeds))] if do_sample else []
    out = language_model.generate(
        input_ids=inputs,
        attention_mask=(torch.arange(longest, device=inputs.device) >= longest - lengths).long(),
        max_new_tokens=max_new_tokens,
        do_sample=False,  # the likeliest token, which is the drawn one where others are left out
        temperature=None,
        top_p=None,
        logits_processor=drawn,
        eos_token_id=sorted(stops),
        pad_token_id=fill,
    )
    return [list(takewhile(lambda token: token not in stops, answer)) for answer in out[:, longest:].tolist()]


def _decode_routed(
    model: XFusionModel,
    prompts: list[Sequence],
    stops: set[int],
    max_new_tokens: int,
    do_sample: bool,
    temperature: float,
    top_p: float,
    seeds: list[int],
    context_features: Tensor | None,
) -> list[list[int]]:
    window, longest = model.text_tower.window, max(len(prompt) for prompt in prompts) + max_new_tokens - 1
    if window is not None and longest > window:
        raise ValueError(
            f"a prompt of {longest - max_new_tokens + 1} tokens and {max_new_tokens} new ones exceed the language "
            f"model's sliding window of {window}; lower max_new_tokens or shorten the prompt"
        )
    hidden, caches = _prefill(model, prompts, context_features)
    positions = torch.tensor([len(prompt) for prompt in prompts], device=hidden.device)
    answers: list[list[int]] = [[] for _ in prompts]
    running = [True] * len(prompts)
    generators = row_generators(seeds)
    for step in range(max_new_tokens):
        tokens = choose_tokens(model.text_tower.logits(hidden), do_sample, temperature, top_p, generators)
        for index, token in enumerate(tokens.tolist()):
            running[index] = running[index] and token not in stops
            if running[index]:
                answers[index].append(token)
        if not any(running) or step + 1 == max_new_tokens:
            break
        hidden = _step(model, tokens, positions + step, caches)
    return answers


def _prefill(
    model: XFusionModel, prompts: list[Sequence], context_features: Tensor | None
) -> tuple[Tensor, list[DecodeCaches]]:
    """Runs the prompts: the state of each one's last token [B, D] after the last layer, and every layer's caches.

    A throwaway supervised token behind each prompt makes the plan compute all of the prompt's text.
    """
    probes = [Sequence((*prompt.spans, TextSpan((0,), (True,)))) for prompt in prompts]
    for prompt in prompts:
        if not isinstance(prompt.spans[-1], TextSpan):
            raise ValueError("a prompt must end with text, so that an answer can follow")
    device = model.text_tower.language_model.device
    packed = pack(probes)
    plan = model.plan(packed).to(device)
    batch = packed.to(device)
    features = None if context_features is None else context_features.to(device)
    prefilled = model.prefill(batch, plan, context_features=features, keep_text=True)
    assert prefilled.live is not None
    assert plan.live_groups is not None
    assert plan.live_text_groups is not None
    last = plan.supervised
    assert last.numel() == len(prompts), "each prompt has exactly one last token"
    caches = _before_the_first_block(model, prompts, device)
    for layer in range(len(caches), model.text_tower.num_layers):
        index = model.block_at.get(layer)
        groups = plan.live_text_groups if index is None else plan.live_groups
        if isinstance(prefilled, Prefilled):
            read = KeyValues(prefilled.text_key_values[layer - model.vision_tower.layers[0]])
            groups = groups if plan.context_read.numel() else plan.live_text_groups
        else:
            read = KeyValues(prefilled.plain[layer]) if index is None else prefilled.key_values[index]
        assert read.text is not None
        vision = None
        if model.vision_tower.blocks_run_text and read.vision is not None:
            vision = _gather(*read.vision, groups, last)
        caches.append(DecodeCaches(_gather(*read.text, groups, last), vision))
    return prefilled.live[last], caches


def _before_the_first_block(model: XFusionModel, prompts: list[Sequence], device: torch.device) -> list[DecodeCaches]:
    """Of the layers that no block stands beside yet: the language model's own, over each prompt's text."""
    text, first = model.text_tower, model.vision_tower.layers[0]
    if not first:
        return []
    runs = [[t for span in prompt.spans if isinstance(span, TextSpan) for t in span.token_ids] for prompt in prompts]
    text_only = pack([Sequence((TextSpan(tuple(run), (False,) * len(run)),)) for run in runs])
    where = torch.cat([_text_positions(prompt) for prompt in prompts]).to(device)
    groups = plan_text_only(text_only).to(device)
    states = text.frozen_states(text_only.token_ids.to(device), where, groups, list(range(first)))
    rope = text.rope(where, states.dtype)
    ends = torch.tensor([len(run) for run in runs], device=device).cumsum(0) - 1
    read = [text.key_value(layer, states[layer], rope) for layer in range(first)]
    return [DecodeCaches(_gather(*key_value, groups, ends)) for key_value in read]


def _text_positions(prompt: Sequence) -> Tensor:
    positions: list[int] = []
    start = 0
    for span in prompt.spans:
        if isinstance(span, TextSpan):
            positions += range(start, start + len(span))
        start += len(span)
    return torch.tensor(positions, dtype=torch.long)


def _gather(key: Tensor, value: Tensor, groups: Groups, last: Tensor) -> LayerCache:
    """Packed keys and values -> one row per sample, with what the last token (row `last`) of each sees."""
    assert groups.mask is not None, "causal groups always have a mask"
    within = groups.rows[last] % groups.queries.shape[1]
    mask = groups.mask[torch.arange(len(last), device=last.device), within]
    return LayerCache(key[groups.keys].transpose(1, 2), value[groups.keys].transpose(1, 2), mask)


def _step(model: XFusionModel, tokens: Tensor, positions: Tensor, caches: list[DecodeCaches]) -> Tensor:
    """One token for every sample through all layers: [B] -> states [B, D]."""
    text, vision = model.text_tower, model.vision_tower
    hidden = text.embed(tokens)
    rope = text.rope(positions, hidden.dtype)
    vision_rope = vision.rope(positions, hidden.dtype)
    for layer, (module, cache) in enumerate(zip(text.layers, caches, strict=True)):
        block = vision.blocks[model.block_at[layer]] if layer in model.block_at else None
        if isinstance(block, FusedBlock):
            hidden = block.decode(module, hidden, rope, vision_rope, cache)
        else:
            hidden = decode_layer(module, hidden, rope, cache.text)
    return hidden
