"""Laws of X-Fuse, gated tower, dual projection and single tower: each equals its literal reading; where each starts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from diptych.backbones.weight_hash import hash_module
from diptych.models.checkpoint import build_morph
from diptych.models.fused import FusedXFusion
from diptych.nn.towers import fused_blocks
from diptych.sequence import Sequence, pack
from literal_fused import literal_forward
from tiny_diffusion_transformers import build_dit, build_sd3
from tiny_xfusion import (
    ALONE,
    FakeAutoencoder,
    build_language,
    build_streams,
    build_xfusion,
    image,
    noise_of,
    sequences,
    text,
    tiny_recipe,
)

TOLERANCE = 2e-5
DESIGNS: dict[str, dict[str, Any]] = {
    "fuse-text": {"x_fuse": "text"},
    "fuse-image": {"x_fuse": "image"},
    "fuse-both": {"x_fuse": "both"},
    "fuse-both-narrow": {"x_fuse": "both", "symmetric": False},
    "fuse-text-few": {"x_fuse": "text", "symmetric": False, "layers": (1,)},
    "gated": {"layer_design": "gated"},
    "gated-narrow": {"layer_design": "gated", "symmetric": False, "layers": (0, 1, 2)},
    "projection": {"layer_design": "projection"},
    "projection-narrow": {"layer_design": "projection", "symmetric": False, "layers": (0, 1, 2)},
    "single": {"layer_design": "single"},
}
FROZEN = [name for name in DESIGNS if name != "single"]
MIXED = [
    [("text", 3), ("target", 1)],
    [("text", 2), ("context", 1), ("text", 2), ("answer", 4)],
    [("context", 1), ("context", 1), ("answer", 1), ("text", 1), ("target", 1), ("context", 1), ("text", 2)],
    [("target", 1), ("text", 2), ("target", 1), ("context", 1), ("answer", 2), ("target", 1)],
    [("answer", 3)],
    [("context", 1)],
]


def build(name: str, *, family: str = "llama", **options: Any) -> FusedXFusion:
    model = build_xfusion(family, **{**DESIGNS[name], **options})
    assert isinstance(model, FusedXFusion)
    return model


def compare(model: FusedXFusion, streams: list[Sequence]) -> None:
    batch = pack(streams)
    plan, (noised, t) = model.plan(batch), noise_of(batch)
    tower, behind = model.vision_tower, list[Tensor]()
    tower.aligned_block = len(tower.blocks) - 2 if len(tower.blocks) > 1 else None  # the last to be run of what is read
    out = model.outputs(batch, plan, noised, t)
    velocity, logits = out.velocity, out.logits
    literal_velocity, all_logits = literal_forward(model, batch, noised, t, behind_blocks=behind)
    mine, theirs = torch.zeros(()), torch.zeros(())
    for states, rows in ((out.context_states, plan.context), (out.target_states, plan.target)):
        assert (states is None) == (rows.numel() == 0 or tower.aligned_block is None)
        if states is not None and tower.aligned_block is not None:
            literal = behind[tower.aligned_block][rows]
            torch.testing.assert_close(states, literal, atol=TOLERANCE, rtol=TOLERANCE)
            mine, theirs = mine + states.square().sum(), theirs + literal.square().sum()
    if model.is_text_frozen and not batch.num_images:
        assert not plan.prefix.numel() + plan.live.numel(), "text alone is the language model's: nothing to compute"
    assert (velocity is None) == (literal_velocity is None)
    if velocity is not None and literal_velocity is not None:
        torch.testing.assert_close(velocity, literal_velocity, atol=TOLERANCE, rtol=TOLERANCE)
        mine, theirs = mine + velocity.square().sum(), theirs + literal_velocity.square().sum()
    assert (logits is None) == (plan.supervised.numel() == 0)
    if logits is not None:
        literal_logits = all_logits[plan.live[plan.supervised]]
        torch.testing.assert_close(logits, literal_logits, atol=TOLERANCE, rtol=TOLERANCE)
        mine, theirs = mine + logits.logsumexp(-1).sum(), theirs + literal_logits.logsumexp(-1).sum()
    if not mine.requires_grad:
        return
    named = dict(model.vision_tower.named_parameters())
    ours = torch.autograd.grad(mine, list(named.values()), allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(theirs, list(named.values()), allow_unused=True, materialize_grads=True)
    largest = max(1.0, *(float(g.abs().max()) for g in expected))
    for parameter, a, b in zip(named, ours, expected, strict=True):
        assert float((a - b).abs().max()) <= TOLERANCE * largest, parameter


@pytest.mark.parametrize("adaln", [True, False], ids=["adaln", "add"])
@pytest.mark.parametrize("name", DESIGNS)
def test_routed_equals_literal_in_values_and_gradients(name: str, adaln: bool) -> None:
    model = build(name, adaln=adaln)
    compare(model, build_streams(MIXED, model))


@pytest.mark.parametrize("boundary_tokens", [False, True], ids=["patches alone", "between boundary tokens"])
@pytest.mark.parametrize("x_fuse", ["text", "image", "both"])
@pytest.mark.parametrize("network", [build_dit, build_sd3])
def test_routed_equals_literal_upon_a_diffusion_transformer(
    network: Any, x_fuse: str, boundary_tokens: bool, tmp_path: Path
) -> None:
    """X-Fuse-proj (X-Fusion section 4): blocks of another network and width, fused at the layers they stand beside."""
    network().save_pretrained(tmp_path)
    tower = {"layers": [0, 2], "time_conditioning": "adaln", "boundary_tokens": boundary_tokens, "patch_size": 2}
    recipe = tiny_recipe(vision_tower=tower | {"diffusion_transformer": str(tmp_path), "x_fuse": x_fuse})
    model: Any = build_morph(recipe, language=build_language(), autoencoder=FakeAutoencoder(), cached=False).model
    with torch.no_grad():
        for parameter in model.vision_tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    compare(model, build_streams(MIXED, model))


@pytest.mark.parametrize("matching", [False, True])
@pytest.mark.parametrize("name", DESIGNS)
def test_routed_equals_literal_with_pooled_text(name: str, matching: bool) -> None:
    model = build(name, text_pooling=True, text_matching=matching)
    compare(model, build_streams(MIXED, model))


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "olmo2", "smollm3"])
@pytest.mark.parametrize("name", ["fuse-both", "gated", "projection", "single"])
def test_routed_equals_literal_for_every_family(name: str, family: str) -> None:
    model = build(name, family=family)
    compare(model, build_streams(MIXED, model))


MODELS = {name: build(name) for name in DESIGNS}


@settings(max_examples=10)
@given(shapes=sequences())
@pytest.mark.parametrize("name", DESIGNS)
def test_routed_equals_literal_for_any_interleaving(name: str, shapes: list[list[tuple[str, int]]]) -> None:
    compare(MODELS[name], build_streams(shapes, MODELS[name]))


@pytest.mark.parametrize("name", FROZEN)
def test_the_language_model_is_neither_owned_nor_changed(name: str) -> None:
    language = build_language()
    before, ids = hash_module(language.model), torch.randint(3, 200, (2, 9))
    logits = copy.deepcopy(language.model)(input_ids=ids).logits
    model = build(name, language=language)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        batch = pack(build_streams(MIXED, model))
        velocity, answered = model(batch, model.plan(batch), *noise_of(batch))
        (velocity.square().sum() + answered.logsumexp(-1).sum()).backward()
        optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in language.model.parameters())
    assert hash_module(language.model) == before
    assert torch.equal(language.model(input_ids=ids).logits, logits)


def test_the_single_tower_trains_the_language_model_s_own_layers() -> None:
    language = build_language()
    before = hash_module(language.model)
    model = build("single", language=language, stirred=False)
    owned = {parameter.data_ptr() for parameter in model.parameters()}
    layers = {parameter.data_ptr() for parameter in language.model.model.layers.parameters()}
    assert layers <= owned
    assert language.model.model.embed_tokens.weight.data_ptr() not in owned
    batch = pack(build_streams(MIXED, model))
    velocity, answered = model(batch, model.plan(batch), *noise_of(batch))
    (velocity.square().sum() + answered.logsumexp(-1).sum()).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert hash_module(language.model) != before


@pytest.mark.parametrize("name", ["gated", "gated-narrow"])
def test_a_gated_tower_starts_as_the_language_model(name: str) -> None:
    """gamma is 0: whatever stands in the sequence goes through the frozen layers alone."""
    model = build(name, stirred=False)
    batch = pack([Sequence((text(5, 6), image(model, is_target=False), text(7, 8, 9, loss=True)))])
    plan = model.plan(batch)
    prefilled = model.prefill(batch, plan)
    for block in model.vision_tower.blocks:
        for parameter in block.get_submodule("layer").parameters():
            parameter.data.normal_()
    again = model.prefill(batch, plan)
    assert prefilled.live is not None
    assert again.live is not None
    assert torch.equal(prefilled.live, again.live)


@torch.no_grad()
def test_a_gated_tower_s_answer_starts_as_the_language_model_s() -> None:
    """Text behind an image: what the language model says when the image's embeddings stand there."""
    model = build("gated", stirred=False)
    language = model.text_tower.language_model
    stream = Sequence((text(5, 6), image(model, is_target=False), text(7, 8, 9, loss=True)))
    batch = pack([stream])
    plan = model.plan(batch)
    live = model.prefill(batch, plan).live
    assert live is not None
    logits = model.text_tower.logits(live)
    image_states, _ = model.vision_tower.embed_context(batch.images, None, None)
    embeddings = language.get_input_embeddings()(batch.token_ids)
    embeddings[batch.is_image] = image_states
    rows = torch.arange(len(batch.token_ids))
    sees = rows[:, None] >= rows[None]
    sees[batch.is_image[:, None] & batch.is_image[None]] = True
    mask = torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)[None, None]
    theirs = language(inputs_embeds=embeddings[None], attention_mask=mask, position_ids=batch.positions[None]).logits
    torch.testing.assert_close(logits, theirs[0, plan.live], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", FROZEN)
def test_gradient_of_an_answer_reaches_the_vision_tower_through_the_frozen_layers(name: str) -> None:
    model = build(name)
    batch = pack([Sequence((text(4), image(model, is_target=False), text(5), text(6, 7, loss=True)))])
    _, logits = model(batch, model.plan(batch), *noise_of(batch))
    logits.logsumexp(-1).sum().backward()
    named = model.vision_tower.named_parameters()
    moved = {parameter for parameter, value in named if value.grad is not None and bool(value.grad.any())}
    assert {"embedder.linear.weight", "embedder.position"} <= moved


@pytest.mark.parametrize("name", FROZEN)
def test_detaching_what_text_reads_of_an_image_kills_that_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    batch = pack([Sequence((text(4), image(model, is_target=False), text(5), text(6, 7, loss=True)))])
    project = fused_blocks.project_key_value
    monkeypatch.setattr(
        fused_blocks, "project_key_value", lambda *args: tuple(part.detach() for part in project(*args))
    )
    _, logits = model(batch, model.plan(batch), *noise_of(batch))
    if logits.requires_grad:
        embedder = list(model.vision_tower.embedder.parameters())
        gradients = torch.autograd.grad(logits.logsumexp(-1).sum(), embedder, allow_unused=True)
        assert not any(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", DESIGNS)
def test_every_trained_weight_has_a_gradient_and_no_other(name: str) -> None:
    model = build(name)
    batch = pack(build_streams(MIXED, model))
    velocity, logits = model(batch, model.plan(batch), *noise_of(batch))
    (velocity.square().sum() + logits.logsumexp(-1).sum()).backward()
    assert [parameter for parameter, value in model.named_parameters() if value.grad is None] == []
    trained = {parameter.data_ptr() for parameter in model.parameters()}
    others = [p for p in model.text_tower.language_model.parameters() if p.data_ptr() not in trained]
    assert all(p.grad is None for p in others)


@pytest.mark.parametrize("shape", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("name", DESIGNS)
def test_routed_equals_literal_where_nothing_else_is_in_the_batch(name: str, shape: list[tuple[str, int]]) -> None:
    compare(MODELS[name], build_streams([shape], MODELS[name]))


@pytest.mark.parametrize("name", DESIGNS)
def test_an_image_token_sees_its_whole_image(name: str) -> None:
    """The last patch changes the velocity at the first, and the first at the last."""
    model = MODELS[name]
    batch = pack([Sequence((text(4, 5), image(model, is_target=True)))])
    noised, t = noise_of(batch)
    noised.requires_grad_()
    velocity, _ = model(batch, model.plan(batch), noised, t)
    for out, into in (((0, 0), (-1, -1)), ((-1, -1), (0, 0))):
        (gradient,) = torch.autograd.grad(velocity[0, 0, *out], noised, retain_graph=True)
        assert float(gradient[0, :, *into].abs().max()) > 0


@pytest.mark.parametrize("name", ["fuse-text", "fuse-image", "fuse-both", "fuse-both-narrow"])
def test_x_fuse_starts_as_no_x_fuse(name: str) -> None:
    fused = build(name, stirred=False, seed=3)
    plain = build_xfusion(symmetric="narrow" not in name, stirred=False, seed=3)
    known = plain.vision_tower.state_dict().keys()
    state = {key: value for key, value in fused.vision_tower.state_dict().items() if key in known}
    plain.vision_tower.load_state_dict(state)
    for tower in (fused.vision_tower, plain.vision_tower):
        torch.nn.init.normal_(tower.head.linear.weight, generator=torch.Generator().manual_seed(0))
    batch = pack(build_streams(MIXED, fused))
    noised, t = noise_of(batch)
    for a, b in zip(
        fused(batch, fused.plan(batch), noised, t), plain(batch, plain.plan(batch), noised, t), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DESIGNS)
def test_packed_equals_one_by_one_and_the_future_changes_nothing(name: str) -> None:
    model = MODELS[name]
    streams = build_streams(MIXED, model)

    def run(chosen: list[Sequence]) -> tuple[Any, Any]:
        batch = pack(chosen)
        return model(batch, model.plan(batch), *noise_of(batch))

    packed, single = run(streams), [run([stream]) for stream in streams]
    for whole, parts in zip(packed, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat([p for p in parts if p is not None]), atol=1e-5, rtol=1e-5)
    past = (text(5, 6), image(model, is_target=False, seed=1), text(7, 8, loss=True))
    more = (*past, image(model, is_target=True, seed=2), image(model, is_target=False, seed=2), text(9, loss=True))
    torch.testing.assert_close(run([Sequence(past)])[1], run([Sequence(more)])[1][:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DESIGNS)
def test_noise_is_read_by_its_own_image_alone(name: str) -> None:
    model = MODELS[name]
    spans = (
        text(4),
        image(model, is_target=True, seed=1),
        image(model, is_target=False, seed=1),
        text(5, 6, loss=True),
    )
    batch = pack([Sequence((*spans, image(model, is_target=True, seed=2))), Sequence(spans)])
    noised, t = noise_of(batch)
    noised.requires_grad_()
    velocity, logits = model(batch, model.plan(batch), noised, t)
    for row in range(len(velocity)):
        (gradient,) = torch.autograd.grad(velocity[row].sum(), noised, retain_graph=True)
        assert (gradient.flatten(1).abs().amax(dim=1) > 0).tolist() == [other == row for other in range(len(noised))]
    (gradient,) = torch.autograd.grad(logits.sum(), noised, allow_unused=True, materialize_grads=True)
    assert not gradient.any()
