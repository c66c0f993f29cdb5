"""Who sees whom, and from that which tower computes which tokens.

The rule: a token sees every earlier token of its own sample; an image token also sees its whole image; the tokens
of a target (noised) image are seen by that image alone. So samples never see each other, and nothing that is kept
for later ever depends on noise.

From the rule follow three kinds of text. *Prefix* text has no clean image before it: its states are the frozen
language model's own and can be cached. *Live* text follows a clean image and is computed with gradients. Text that
no image and no loss depends on is not computed at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diptych.nn.attention import Groups, build_groups
from diptych.sequence import IGNORE_INDEX, TEXT, Batch


def visible(batch: Batch) -> Tensor:
    """The rule itself, literally: [N, N] bool, True where the row's token sees the column's token."""
    order = torch.arange(batch.token_ids.numel(), device=batch.token_ids.device)
    same_sample = batch.sample_ids[:, None] == batch.sample_ids[None]
    same_image = (batch.image_ids[:, None] == batch.image_ids[None]) & batch.is_image[None]
    noised = (
        batch.is_image & batch.image_is_target[batch.image_ids.clamp(min=0)] if batch.num_images else batch.is_image
    )
    earlier = (order[None] <= order[:, None]) & ~noised[None]
    return same_sample & (earlier | same_image)


@dataclass(frozen=True)
class RoutingPlan:
    """Which stream positions each tower computes, and who meets whom. All indices are into the packed stream.

    prefix [Np]: text whose states are frozen, and which an image reads; sorted by stream position.
    live [Nl]: text behind a clean image, with gradients. live_prefix [Nlp]: prefix text of the samples with live text.
    context [Nc], target [Nt]: tokens of clean and of noised images.
    live_read [..]: rows of `live` that a later image reads. context_read [..]: rows of `context` that live text reads.
    supervised [..]: rows of `live` that carry a label; labels [..] those labels.
    pooled_rows [..], pooled_images [..]: which rows of (prefix, live[live_read]) stand before which target image.
    matched_rows [..], matched_images [..]: the same of context images.

    Key lists. Vision tower: prefix, live[live_read], context (then the target image's own tokens).
    Text tower: live_prefix, live, context[context_read]; at layers without a vision block: live_prefix, live.
    """

    prefix: Tensor
    live: Tensor
    live_prefix: Tensor
    context: Tensor
    target: Tensor
    live_read: Tensor
    context_read: Tensor
    supervised: Tensor
    labels: Tensor
    pooled_rows: Tensor
    pooled_images: Tensor
    matched_rows: Tensor
    matched_images: Tensor
    context_groups: Groups | None
    target_groups: Groups | None
    live_groups: Groups | None
    live_text_groups: Groups | None

    def to(self, device: torch.device | str) -> RoutingPlan:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})


def build_plan(
    batch: Batch, *, window: int | None = None, joint: bool = False, is_text_frozen: bool = True
) -> RoutingPlan:
    """Builds the routing plan of a packed batch.

    `joint`: both towers read the same tokens, all that anything depends on, so that both key lists are prefix, live,
    context. `is_text_frozen` False: no text is the frozen language model's own, all of it is live.
    `window`: the language model's sliding window in tokens; a sample longer than it raises ValueError, since the
    routed attention reaches back to the start.
    """
    image_ids = batch.image_ids.tolist()
    is_target = batch.image_is_target.tolist()
    labels = batch.labels.tolist()
    bounds = _sample_bounds(batch)
    prefix: list[int] = []
    live: list[int] = []
    context: list[int] = []
    target: list[int] = []
    live_prefix: list[int] = []
    live_read: list[int] = []
    context_read: list[int] = []
    for start, end in bounds:
        if window is not None and end - start > window:
            raise ValueError(
                f"a sample of {end - start} tokens exceeds the language model's sliding window of {window}; "
                "shorten data.max_length"
            )
        positions = range(start, end)
        first_clean = next((p for p in positions if image_ids[p] != TEXT and not is_target[image_ids[p]]), end)
        last_image = next((p for p in reversed(positions) if image_ids[p] != TEXT), start - 1)
        last_label = next((p for p in reversed(positions) if labels[p] != IGNORE_INDEX), start - 1)
        first_live = first_clean if is_text_frozen else start
        before = [p for p in range(start, first_live) if image_ids[p] == TEXT]
        after = [p for p in range(first_live, max(last_image, last_label) + 1) if image_ids[p] == TEXT]
        read_before = [p for p in before if p < last_image or (joint and after)]
        live_read += [len(live) + i for i, p in enumerate(after) if p < last_image or joint]
        live += after
        live_prefix += read_before if joint else before if after else []
        prefix += read_before
        last_live = end if joint else after[-1] if after else start - 1
        for p in positions:
            if image_ids[p] == TEXT:
                continue
            if is_target[image_ids[p]]:
                target.append(p)
            else:
                if p < last_live:
                    context_read.append(len(context))
                context.append(p)
    supervised = [row for row, p in enumerate(live) if labels[p] != IGNORE_INDEX]

    read_text = prefix + [live[row] for row in live_read]
    pooled = _text_before(target, read_text, image_ids, batch)
    matched = _text_before(context, read_text, image_ids, batch)
    shared = prefix + [live[row] for row in live_read] + context
    shared_rows = _rows_by_sample(shared, batch)
    text_keys = live_prefix + live + [context[row] for row in context_read]

    def long(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long)

    return RoutingPlan(
        prefix=long(prefix),
        live=long(live),
        live_prefix=long(live_prefix),
        context=long(context),
        target=long(target),
        live_read=long(live_read),
        context_read=long(context_read),
        supervised=long(supervised),
        labels=long([labels[live[row]] for row in supervised]),
        pooled_rows=long([row for row, _ in pooled]),
        pooled_images=long([image for _, image in pooled]),
        matched_rows=long([row for row, _ in matched]),
        matched_images=long([image for _, image in matched]),
        context_groups=_image_groups(context, shared, shared_rows, image_ids, batch, own_offset=None),
        target_groups=_image_groups(target, shared, shared_rows, image_ids, batch, own_offset=len(shared)),
        live_groups=_causal_groups(live, text_keys, batch),
        live_text_groups=_causal_groups(live, live_prefix + live, batch),
    )


def plan_text_only(batch: Batch) -> Groups:
    """Causal groups of a batch of text alone: every token is a query and a key."""
    everything = list(range(batch.token_ids.numel()))
    groups = _causal_groups(everything, everything, batch)
    assert groups is not None, "a batch is never empty"
    return groups


def _sample_bounds(batch: Batch) -> list[tuple[int, int]]:
    counts = torch.bincount(batch.sample_ids, minlength=batch.num_samples).tolist()
    bounds, start = [], 0
    for count in counts:
        bounds.append((start, start + count))
        start += count
    return bounds


def _rows_by_sample(stream: list[int], batch: Batch) -> dict[int, list[tuple[int, int]]]:
    """(stream position, row) of each entry, by sample, in stream order."""
    rows: dict[int, list[tuple[int, int]]] = {}
    sample_ids = batch.sample_ids.tolist()
    for row, position in enumerate(stream):
        rows.setdefault(sample_ids[position], []).append((position, row))
    for entries in rows.values():
        entries.sort()
    return rows


def _text_before(tokens: list[int], text: list[int], image_ids: list[int], batch: Batch) -> list[tuple[int, int]]:
    """(row of `text`, number of the image among those of `tokens`) for all text of a sample that stands before it."""
    starts: dict[int, int] = {}
    for position in tokens:
        starts.setdefault(image_ids[position], position)
    image_samples = batch.image_samples.tolist()
    rows = _rows_by_sample(text, batch)
    return [
        (row, number)
        for number, (image, start) in enumerate(starts.items())
        for position, row in rows.get(image_samples[image], [])
        if position < start
    ]


def _image_groups(
    tokens: list[int],
    shared: list[int],
    shared_rows: dict[int, list[tuple[int, int]]],
    image_ids: list[int],
    batch: Batch,
    own_offset: int | None,
) -> Groups | None:
    """One group per image. Its keys: what stands before it among `shared`, and itself (in `shared`, or behind it)."""
    if not tokens:
        return None
    members: dict[int, list[int]] = {}
    for row, position in enumerate(tokens):
        members.setdefault(image_ids[position], []).append(row)
    image_samples = batch.image_samples.tolist()
    queries, keys = [], []
    for image, rows in members.items():
        first = tokens[rows[0]]
        own_end = tokens[rows[-1]] if own_offset is None else first - 1
        seen = [row for position, row in shared_rows.get(image_samples[image], []) if position <= own_end]
        queries.append(rows)
        keys.append(seen if own_offset is None else seen + [own_offset + row for row in rows])
    return build_groups(queries, keys, [None] * len(queries), num_queries=len(tokens))


def _causal_groups(tokens: list[int], stream: list[int], batch: Batch) -> Groups | None:
    """One group per sample: its text tokens see all that stands before them in `stream`, and themselves."""
    if not tokens:
        return None
    sample_ids = batch.sample_ids.tolist()
    key_rows = _rows_by_sample(stream, batch)
    members: dict[int, list[int]] = {}
    for row, position in enumerate(tokens):
        members.setdefault(sample_ids[position], []).append(row)
    queries, keys, masks = [], [], []
    for sample, rows in members.items():
        entries = key_rows[sample]
        queries.append(rows)
        keys.append([row for _, row in entries])
        at = torch.tensor([tokens[row] for row in rows])
        masks.append(torch.tensor([position for position, _ in entries])[None] <= at[:, None])
    return build_groups(queries, keys, list(masks), num_queries=len(tokens))
