"""Laws of who sees whom, of the rule itself and of the routing plan built from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from diptych.nn.attention import Groups
from diptych.nn.visibility import build_plan, visible
from diptych.sequence import IGNORE_INDEX, TEXT, Sequence, TextSpan, pack
from tiny_xfusion import build_streams, build_xfusion, sequences

MODEL = build_xfusion()
Shapes = list[list[tuple[str, int]]]


@given(shapes=sequences())
def test_samples_in_one_pack_never_see_each_other(shapes: Shapes) -> None:
    batch = pack(build_streams(shapes, MODEL))
    other = batch.sample_ids[:, None] != batch.sample_ids[None]
    assert not (visible(batch) & other).any()


@given(shapes=sequences())
def test_the_future_is_seen_inside_ones_own_image_alone(shapes: Shapes) -> None:
    batch = pack(build_streams(shapes, MODEL))
    order = torch.arange(batch.token_ids.numel())
    later = order[None] > order[:, None]
    own_image = (batch.image_ids[:, None] == batch.image_ids[None]) & batch.is_image[None]
    assert not (visible(batch) & later & ~own_image).any()


@given(shapes=sequences())
def test_an_image_token_sees_its_whole_image_and_a_text_token_itself(shapes: Shapes) -> None:
    batch = pack(build_streams(shapes, MODEL))
    seen = visible(batch)
    own_image = (batch.image_ids[:, None] == batch.image_ids[None]) & batch.is_image[None]
    assert seen[own_image].all()
    assert seen.diagonal().all()


@given(shapes=sequences())
def test_noise_is_seen_by_its_own_image_alone(shapes: Shapes) -> None:
    batch = pack(build_streams(shapes, MODEL))
    if batch.num_images:
        noised = batch.is_image & batch.image_is_target[batch.image_ids.clamp(min=0)]
        own_image = batch.image_ids[:, None] == batch.image_ids[None]
        assert not (visible(batch) & noised[None] & ~own_image).any()


def _met(groups: Groups | None, queries: torch.Tensor, keys: torch.Tensor, num: int) -> torch.Tensor:
    """The plan's groups as a dense [N, N] mask over stream positions."""
    dense = torch.zeros(num, num, dtype=torch.bool)
    if groups is None:
        return dense
    for row, where in enumerate(groups.rows.tolist()):
        group, place = divmod(where, groups.queries.shape[1])
        assert int(groups.queries[group, place]) == row
        mask = torch.ones(groups.keys.shape[1], dtype=torch.bool)
        if groups.mask is not None:
            mask = groups.mask[group, 0 if groups.mask.shape[1] == 1 else place]
        seen = keys[groups.keys[group][mask]]
        assert seen.unique().numel() == seen.numel(), "a key met twice would count twice"
        dense[queries[row], seen] = True
    return dense


@given(shapes=sequences())
def test_the_plan_meets_exactly_what_the_rule_lets_be_seen(shapes: Shapes) -> None:
    batch = pack(build_streams(shapes, MODEL))
    plan = build_plan(batch)
    seen, num = visible(batch), batch.token_ids.numel()
    shared = torch.cat((plan.prefix, plan.live[plan.live_read], plan.context))
    text_keys = torch.cat((plan.live_prefix, plan.live))
    for groups, queries, keys, expected in (
        (plan.context_groups, plan.context, shared, seen),
        (plan.target_groups, plan.target, torch.cat((shared, plan.target)), seen),
        (plan.live_groups, plan.live, torch.cat((text_keys, plan.context[plan.context_read])), seen),
        (plan.live_text_groups, plan.live, text_keys, seen & ~batch.is_image[None]),
    ):
        assert torch.equal(_met(groups, queries, keys, num)[queries], expected[queries])


@given(shapes=sequences())
def test_the_plan_computes_what_is_needed_once_and_nothing_else(shapes: Shapes) -> None:
    batch = pack(build_streams(shapes, MODEL))
    plan = build_plan(batch)
    is_target = batch.is_image & (batch.image_is_target[batch.image_ids.clamp(min=0)] if batch.num_images else False)
    assert torch.equal(plan.target, is_target.nonzero()[:, 0])
    assert torch.equal(plan.context, (batch.is_image & ~is_target).nonzero()[:, 0])
    computed = torch.cat((plan.live, plan.prefix, plan.live_prefix)).unique()
    assert (batch.image_ids[computed] == TEXT).all()
    assert not set(plan.live.tolist()) & set(torch.cat((plan.prefix, plan.live_prefix)).tolist())
    for position in computed.tolist():
        sample = batch.sample_ids == batch.sample_ids[position]
        later = sample & (torch.arange(len(sample)) >= position)
        assert (later & (batch.is_image | (batch.labels != IGNORE_INDEX))).any(), "text that nothing depends on"
    assert plan.labels.tolist() == batch.labels[plan.live[plan.supervised]].tolist()


def test_a_sample_longer_than_the_sliding_window_is_refused() -> None:
    batch = pack([Sequence((TextSpan((5,) * 9, (False,) * 9),))])
    build_plan(batch, window=9)
    with pytest.raises(ValueError, match=r"9 tokens .* window of 8; shorten data.max_length"):
        build_plan(batch, window=8)
