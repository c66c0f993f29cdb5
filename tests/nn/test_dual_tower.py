"""Laws of the dual tower: routing equals the literal reference; what is seen, what is trained, what stays frozen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from diptych.backbones.weight_hash import hash_module
from diptych.models.xfusion import XFusion
from diptych.nn.towers.text import TextTower
from diptych.nn.visibility import build_plan
from diptych.sequence import Batch, Sequence, pack
from literal_dual import literal_forward
from tiny_xfusion import (
    ALONE,
    CHANNELS,
    FAMILIES,
    SIZE,
    build_language,
    build_streams,
    build_xfusion,
    image,
    noise_of,
    prepare,
    sequences,
    text,
)

TOLERANCE = 2e-5
"""Worst seen: 4e-6 in values, 1e-5 in gradients relative to the largest (fp32; sums in another order)."""
Shapes = list[list[tuple[str, int]]]


def _compare(model: XFusion, streams: list[Sequence]) -> None:
    batch, plan, noised, t = prepare(streams)
    tower, behind = model.vision_tower, list[Tensor]()
    tower.aligned_block = len(tower.blocks) - 2 if len(tower.blocks) > 1 else None  # the last to be run of what is read
    out = model.outputs(batch, plan, noised, t)
    velocity, logits = out.velocity, out.logits
    literal_velocity, all_logits = literal_forward(model, batch, noised, t, behind_blocks=behind)
    literal_logits = all_logits[plan.live[plan.supervised]]
    assert (velocity is None) == (literal_velocity is None)
    losses = [torch.zeros(()), torch.zeros(())]
    for states, rows in ((out.context_states, plan.context), (out.target_states, plan.target)):
        assert (states is None) == (rows.numel() == 0 or tower.aligned_block is None)
        if states is not None and tower.aligned_block is not None:
            literal = behind[tower.aligned_block][rows]
            torch.testing.assert_close(states, literal, atol=TOLERANCE, rtol=TOLERANCE)
            losses = [losses[0] + states.square().sum(), losses[1] + literal.square().sum()]
    if not batch.num_images:
        assert not plan.prefix.numel() + plan.live.numel(), "text alone is the language model's: nothing to compute"
    if velocity is not None and literal_velocity is not None:
        torch.testing.assert_close(velocity, literal_velocity, atol=TOLERANCE, rtol=TOLERANCE)
        losses = [losses[0] + velocity.square().sum(), losses[1] + literal_velocity.square().sum()]
    assert (logits is None) == (plan.supervised.numel() == 0)
    if logits is not None:
        torch.testing.assert_close(logits, literal_logits, atol=TOLERANCE, rtol=TOLERANCE)
        losses = [losses[0] + logits.logsumexp(-1).sum(), losses[1] + literal_logits.logsumexp(-1).sum()]
    if not losses[0].requires_grad:
        return
    parameters = list(model.vision_tower.parameters())
    ours = torch.autograd.grad(losses[0], parameters, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(losses[1], parameters, allow_unused=True, materialize_grads=True)
    largest = max(float(g.abs().max()) for g in theirs)
    for (name, _), a, b in zip(model.vision_tower.named_parameters(), ours, theirs, strict=True):
        assert float((a - b).abs().max()) <= TOLERANCE * max(1.0, largest), name


MIXED: Shapes = [
    [("text", 3), ("target", 1)],
    [("text", 2), ("context", 1), ("text", 2), ("answer", 4)],
    [("context", 1), ("context", 1), ("answer", 1), ("text", 1), ("target", 1), ("context", 1), ("text", 2)],
    [("target", 1), ("text", 2), ("target", 1), ("context", 1), ("answer", 2), ("target", 1)],
    [("answer", 3)],
]


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("adaln", "boundary"), [(True, True), (False, False)], ids=["adaln", "add"])
def test_routed_equals_literal_in_values_and_gradients(
    family: str, symmetric: bool, adaln: bool, boundary: bool
) -> None:
    model = build_xfusion(family, symmetric=symmetric, adaln=adaln, boundary_tokens=boundary)
    _compare(model, build_streams(MIXED, model))


@pytest.mark.parametrize("adaln", [True, False], ids=["adaln", "add"])
@pytest.mark.parametrize("layers", [(0,), (1, 2)])
@pytest.mark.parametrize("matching", [False, True])
def test_routed_equals_literal_with_pooled_text(layers: tuple[int, ...], adaln: bool, matching: bool) -> None:
    model = build_xfusion(symmetric=False, adaln=adaln, text_pooling=True, text_matching=matching, layers=layers)
    _compare(model, build_streams(MIXED, model))


@pytest.mark.parametrize("layers", [(0,), (2,), (0, 2), (1,)])
def test_routed_equals_literal_wherever_the_blocks_stand(layers: tuple[int, ...]) -> None:
    model = build_xfusion(symmetric=False, layers=layers)
    _compare(model, build_streams(MIXED, model))


SYMMETRIC, NARROW = build_xfusion("qwen3"), build_xfusion("llama", symmetric=False, adaln=False)


@pytest.mark.parametrize("model", [SYMMETRIC, NARROW], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("shape", ALONE.values(), ids=ALONE)
def test_routed_equals_literal_where_nothing_else_is_in_the_batch(shape: list[tuple[str, int]], model: XFusion) -> None:
    _compare(model, build_streams([shape], model))


@settings(max_examples=25)
@given(shapes=sequences())
def test_routed_equals_literal_for_any_interleaving(shapes: Shapes) -> None:
    for model in (SYMMETRIC, NARROW):
        _compare(model, build_streams(shapes, model))


@pytest.mark.parametrize("family", FAMILIES)
def test_routed_text_states_are_the_language_models_own(family: str) -> None:
    language = build_language(family)
    model = build_xfusion(family, language=language)
    ids = torch.randint(3, 200, (11,))
    batch = pack([Sequence((text(*ids.tolist()), image(model, is_target=True)))])
    plan = build_plan(batch)
    routed = model.text_states.gather(batch, plan).prefix
    theirs = language.model(input_ids=ids[None], output_hidden_states=True).hidden_states
    for layer, states in enumerate(routed):
        torch.testing.assert_close(states, theirs[layer][0], atol=1e-5, rtol=1e-5)


def _velocity(model: XFusion, streams: list[Sequence], *, seed: int = 0) -> Tensor:
    batch, plan, noised, t = prepare(streams, seed=seed)
    velocity, _ = model(batch, plan, noised, t)
    return velocity


def _logits(model: XFusion, streams: list[Sequence], *, seed: int = 0) -> Tensor:
    batch, plan, noised, t = prepare(streams, seed=seed)
    return model(batch, plan, noised, t)[1]


def test_the_future_never_changes_the_past() -> None:
    model = SYMMETRIC
    past = (
        text(5, 6),
        image(model, is_target=False, seed=1),
        text(7, 8, loss=True),
        image(model, is_target=True, seed=2),
    )
    future = (image(model, is_target=False, seed=3), text(9, 10, 11, loss=True), image(model, is_target=True, seed=4))
    alone, more = [Sequence(past)], [Sequence(past + future)]
    torch.testing.assert_close(_velocity(model, alone)[0], _velocity(model, more)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(_logits(model, alone)[0], _logits(model, more)[0], atol=1e-5, rtol=1e-5)


def test_an_image_token_sees_its_whole_image() -> None:
    """The last patch changes the velocity at the first, and the first at the last."""
    batch, plan, noised, t = prepare([Sequence((text(4, 5), image(SYMMETRIC, is_target=True)))])
    noised.requires_grad_()
    velocity, _ = SYMMETRIC(batch, plan, noised, t)
    for out, into in (((0, 0), (-1, -1)), ((-1, -1), (0, 0))):
        (gradient,) = torch.autograd.grad(velocity[0, 0, *out], noised, retain_graph=True)
        assert float(gradient[0, :, *into].abs().max()) > 0


def test_noise_is_read_by_its_own_image_alone() -> None:
    model = SYMMETRIC
    spans = (
        text(4),
        image(model, is_target=True, seed=1),
        image(model, is_target=False, seed=1),
        text(5, 6, loss=True),
    )
    batch, plan, noised, t = prepare([Sequence((*spans, image(model, is_target=True, seed=2))), Sequence(spans)])
    noised.requires_grad_()
    velocity, logits = model(batch, plan, noised, t)
    for row in range(len(velocity)):
        (gradient,) = torch.autograd.grad(velocity[row].sum(), noised, retain_graph=True)
        read = gradient.flatten(1).abs().amax(dim=1) > 0
        assert read.tolist() == [other == row for other in range(len(noised))]
    (gradient,) = torch.autograd.grad(logits.sum(), noised, allow_unused=True, materialize_grads=True)
    assert not gradient.any()


def test_samples_in_one_pack_never_change_each_other() -> None:
    model = NARROW
    first, second = (
        build_streams([MIXED[3], MIXED[2]], model, seed=1),
        build_streams([MIXED[3], MIXED[4], MIXED[0]], model, seed=2),
    )
    kept = first[0]
    for run in (_velocity, _logits):
        one, other = run(model, [kept, first[1]]), run(model, [kept, *second[1:]])
        num = len(run(model, [kept]))
        torch.testing.assert_close(one[:num], other[:num], atol=1e-5, rtol=1e-5)


@settings(max_examples=25)
@given(shapes=sequences())
def test_packed_equals_one_by_one(shapes: Shapes) -> None:
    for model in (SYMMETRIC, NARROW):
        streams = build_streams(shapes, model)
        packed = model(*prepare(streams))
        single = [model(*prepare([stream])) for stream in streams]
        for whole, parts in zip(packed, zip(*single, strict=True), strict=True):
            present = [part for part in parts if part is not None]
            assert (whole is None) == (not present)
            if whole is not None:
                torch.testing.assert_close(whole, torch.cat(present), atol=1e-5, rtol=1e-5)


def test_gradient_reaches_the_vision_tower_through_the_frozen_text_tower_and_detaching_there_kills_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_xfusion()
    reading = [Sequence((text(4), image(model, is_target=False), text(5), text(6, 7, loss=True)))]
    _logits(model, reading).logsumexp(-1).sum().backward()
    moved = [name for name, p in model.vision_tower.named_parameters() if p.grad is not None and p.grad.any()]
    assert any(name.startswith("blocks.0.") for name in moved)
    assert any(name.startswith("embedder.") for name in moved)
    run_layer = TextTower.run_layer

    def detached(self, *args, image=None, **kwargs):  # type: ignore[no-untyped-def]
        image = None if image is None else tuple(part.detach() for part in image)
        return run_layer(self, *args, image=image, **kwargs)

    monkeypatch.setattr(TextTower, "run_layer", detached)
    assert not _logits(model, reading).requires_grad


def _step(model: XFusion, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    velocity, logits = model(batch, build_plan(batch), *noise_of(batch))
    (velocity.square().sum() + logits.logsumexp(-1).sum()).backward()
    optimizer.step()


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_vision_tower_trains_and_the_language_model_keeps_its_bytes(family: str) -> None:
    language = build_language(family)
    before, ids = hash_module(language.model), torch.randint(3, 200, (2, 9))
    logits = copy.deepcopy(language.model)(input_ids=ids).logits
    model = build_xfusion(family, language=language)
    owned = {name for name, _ in model.named_parameters()}
    assert owned == {f"vision_tower.{name}" for name, _ in model.vision_tower.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        _step(model, optimizer, pack(build_streams(MIXED, model)))
    # The last block's image output is read by nobody where the image is clean, but by the head where it is noised.
    assert [name for name, p in model.vision_tower.named_parameters() if p.grad is None] == []
    assert all(p.grad is None and not p.requires_grad for p in language.model.parameters())
    assert hash_module(language.model) == before
    assert torch.equal(language.model(input_ids=ids).logits, logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_symmetric_tower_starts_as_a_copy_and_shares_no_memory(family: str) -> None:
    language = build_language(family)
    model = build_xfusion(family, language=language, stirred=False)
    for index, block in enumerate(model.vision_tower.blocks):
        theirs = dict(language.model.model.layers[index].named_parameters())
        for name, parameter in block.get_submodule("layer").named_parameters():
            assert torch.equal(parameter, theirs[name])
            assert parameter.data_ptr() != theirs[name].data_ptr()
            assert parameter.requires_grad
            assert not theirs[name].requires_grad


def test_an_untrained_tower_predicts_no_velocity() -> None:
    model = build_xfusion(stirred=False)
    assert not _velocity(model, [Sequence((text(4), image(model, is_target=True)))]).any()


@torch.no_grad()
@pytest.mark.parametrize("with_latents", [False, True], ids=["in place of latents", "with latents"])
@pytest.mark.parametrize("boundary_tokens", [False, True], ids=["patches alone", "between boundary tokens"])
def test_words_are_compared_with_the_features_of_each_patch(boundary_tokens: bool, with_latents: bool) -> None:
    model = build_xfusion(
        symmetric=False, adaln=True, text_pooling=True, text_matching=True, boundary_tokens=boundary_tokens
    )
    vision: Any = model.vision_tower
    vision.read_features(5, with_latents=with_latents)
    matcher, patches = vision.text_matcher, vision.embedder.num_patches
    matcher.out.weight.normal_()
    matcher.out.bias.normal_()
    latents, features = torch.randn(2, CHANNELS, SIZE, SIZE), torch.randn(2, patches, 5)
    words = torch.randn(2, vision.width)
    alone, _ = vision.embed_context(latents, None, features)
    compared, _ = vision.embed_context(latents, None, features, words)
    expected = torch.zeros(2, vision.num_image_tokens, vision.width)
    for number, row in enumerate(words):
        for patch, feature in enumerate(features[number]):
            seen = matcher.patches.weight @ (feature / feature.square().mean().sqrt())
            said = matcher.words.weight @ (row / row.square().mean().sqrt())
            expected[number, patch + boundary_tokens] = matcher.out.weight @ (seen * said) + matcher.out.bias
    torch.testing.assert_close((compared - alone).view_as(expected), expected, atol=1e-5, rtol=1e-4)
