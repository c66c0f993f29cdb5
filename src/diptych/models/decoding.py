"""Text after images, token by token: keys and values are computed once, prompts of unequal length share a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from diptych.models.token_choice import choose_tokens, stop_ids
from diptych.models.xfusion import XFusion
from diptych.nn.attention import Groups
from diptych.nn.layer_parts import (
    attention_input,
    attention_output,
    mlp_input,
    mlp_output,
    project_key_value,
    project_query,
)
from diptych.nn.visibility import build_plan, plan_text_only
from diptych.sequence import Sequence, TextSpan, pack


@dataclass
class LayerCache:
    """Keys and values [B, kv_heads, L, head_dim] of one layer, and which are visible [B, L]."""

    key: Tensor
    value: Tensor
    mask: Tensor

    def append(self, key: Tensor, value: Tensor) -> None:
        self.key = torch.cat((self.key, key[:, :, None]), dim=2)
        self.value = torch.cat((self.value, value[:, :, None]), dim=2)
        self.mask = torch.cat((self.mask, self.mask.new_ones(len(key), 1)), dim=1)


@torch.no_grad()
def decode_text(
    model: XFusion,
    prompts: list[Sequence],
    *,
    tokenizer: Any,
    max_new_tokens: int,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[str]:
    """Continues prompts until an end token or `max_new_tokens`; special tokens are left out of the text."""
    stops = stop_ids(model.text_tower.language_model, tokenizer)
    continued: dict[int, list[int]] = {}
    with_images = [i for i, prompt in enumerate(prompts) if prompt.images]
    if with_images:
        ids = _decode_routed(
            model, [prompts[i] for i in with_images], stops, max_new_tokens, do_sample, temperature, top_p
        )
        continued |= dict(zip(with_images, ids, strict=True))
    for i, prompt in enumerate(prompts):
        if not prompt.images:
            continued[i] = _decode_plain(model, prompt, stops, max_new_tokens, do_sample, temperature, top_p)
    return [tokenizer.decode(continued[i], skip_special_tokens=True).strip() for i in range(len(prompts))]


def _decode_plain(
    model: XFusion,
    prompt: Sequence,
    stops: set[int],
    max_new_tokens: int,
    do_sample: bool,
    temperature: float,
    top_p: float,
) -> list[int]:
    """Text alone is the language model's own affair."""
    ids = [token for span in prompt.spans if isinstance(span, TextSpan) for token in span.token_ids]
    inputs = torch.tensor([ids], device=model.text_tower.language_model.device)
    sampling = {"temperature": temperature, "top_p": top_p} if do_sample else {"temperature": None, "top_p": None}
    out = model.text_tower.language_model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        eos_token_id=sorted(stops),
        pad_token_id=min(stops),
        **sampling,
    )
    return out[0, len(ids) :].tolist()


def _decode_routed(
    model: XFusion,
    prompts: list[Sequence],
    stops: set[int],
    max_new_tokens: int,
    do_sample: bool,
    temperature: float,
    top_p: float,
) -> list[list[int]]:
    window, longest = model.text_tower.window, max(len(prompt) for prompt in prompts) + max_new_tokens - 1
    if window is not None and longest > window:
        raise ValueError(
            f"a prompt of {longest - max_new_tokens + 1} tokens and {max_new_tokens} new ones exceed the language "
            f"model's sliding window of {window}; lower max_new_tokens or shorten the prompt"
        )
    hidden, caches = _prefill(model, prompts)
    positions = torch.tensor([len(prompt) for prompt in prompts], device=hidden.device)
    answers: list[list[int]] = [[] for _ in prompts]
    running = [True] * len(prompts)
    for step in range(max_new_tokens):
        tokens = choose_tokens(model.text_tower.logits(hidden), do_sample, temperature, top_p)
        for index, token in enumerate(tokens.tolist()):
            running[index] = running[index] and token not in stops
            if running[index]:
                answers[index].append(token)
        if not any(running) or step + 1 == max_new_tokens:
            break
        hidden = _step(model, tokens, positions + step, caches)
    return answers


def _prefill(model: XFusion, prompts: list[Sequence]) -> tuple[Tensor, list[LayerCache]]:
    """Runs the prompts: the state of each one's last token [B, D] after the last layer, and every layer's cache.

    A throwaway supervised token behind each prompt makes the plan compute all of the prompt's text.
    """
    probes = [Sequence((*prompt.spans, TextSpan((0,), (True,)))) for prompt in prompts]
    for prompt in prompts:
        if not isinstance(prompt.spans[-1], TextSpan):
            raise ValueError("a prompt must end with text, so that an answer can follow")
    device = model.text_tower.language_model.device
    packed = pack(probes)
    plan = build_plan(packed, window=model.text_tower.window).to(device)
    batch = packed.to(device)
    prefilled = model.prefill(batch, plan, keep_text=True)
    assert prefilled.live is not None
    assert plan.live_groups is not None
    assert plan.live_text_groups is not None
    last = plan.supervised
    assert last.numel() == len(prompts), "each prompt has exactly one last token"

    text = model.text_tower
    first = model.vision_tower.layers[0]
    runs = [[t for span in prompt.spans if isinstance(span, TextSpan) for t in span.token_ids] for prompt in prompts]
    text_only = pack([Sequence((TextSpan(tuple(run), (False,) * len(run)),)) for run in runs])
    where = torch.cat([_text_positions(prompt) for prompt in prompts]).to(device)
    groups = plan_text_only(text_only).to(device)
    caches: list[LayerCache] = []
    if first:
        states = text.frozen_states(text_only.token_ids.to(device), where, groups, list(range(first)))
        rope = text.rope(where, states.dtype)
        ends = torch.tensor([len(run) for run in runs], device=device).cumsum(0) - 1
        caches = [_gather(*text.key_value(layer, states[layer], rope), groups, ends) for layer in range(first)]
    for layer, (key, value) in enumerate(prefilled.text_key_values, start=first):
        merged = layer in model.block_at and plan.context_read.numel() > 0
        caches.append(_gather(key, value, plan.live_groups if merged else plan.live_text_groups, last))
    return prefilled.live[last], caches


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


def _step(model: XFusion, tokens: Tensor, positions: Tensor, caches: list[LayerCache]) -> Tensor:
    """One token for every sample through all layers: [B] -> states [B, D]."""
    text = model.text_tower
    hidden = text.embed(tokens)
    rope = text.rope(positions, hidden.dtype)
    for module, cache in zip(text.layers, caches, strict=True):
        layer: Any = module
        x = attention_input(layer, hidden)
        cache.append(*project_key_value(layer, x, rope))
        query = project_query(layer, x, rope)
        out = scaled_dot_product_attention(
            query[:, :, None],
            cache.key,
            cache.value,
            attn_mask=cache.mask[:, None, None],
            scale=layer.self_attn.scaling,
            enable_gqa=query.shape[1] != cache.key.shape[1],
        )
        hidden = hidden + attention_output(layer, out[:, :, 0])
        hidden = hidden + mlp_output(layer, mlp_input(layer, hidden))
    return hidden
