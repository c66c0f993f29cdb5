"""Laws of X-Fusion in training: losses are sums with counts, a draw carries its noise, only the vision tower learns."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.weight_hash import hash_module
from diptych.config import build_recipe
from diptych.data.contact_sheet import draw_image_grid
from diptych.models.checkpoint import build_morph
from diptych.models.method import Method
from diptych.models.xfusion_training import XFusionTraining
from diptych.train.optim import build_optimizer
from tiny_xfusion import PATCH, FakeAutoencoder, build_language, tiny_recipe

NAMES = ("red", "green", "blue", "white")


def _build(tmp_path: Path, **settings: Any) -> XFusionTraining:
    (tmp_path / "images").mkdir()
    draw, read = [], []
    for name in NAMES:
        Image.new("RGB", (16, 16), name).save(tmp_path / "images" / f"{name}.png")
        draw.append([{"role": "user", "content": f"Draw {name}."}, {"role": "assistant", "content": "<image>"}])
        read.append([{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": name}])
    for file, conversations in (("draw", draw), ("read", read)):
        lines = [
            json.dumps({"messages": messages, "images": [f"images/{name}.png"]})
            for messages, name in zip(conversations, NAMES, strict=True)
        ]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    recipe = tiny_recipe(
        data={"sources": [{"path": str(tmp_path / "draw.jsonl"), "weight": 2}, {"path": str(tmp_path / "read.jsonl")}]},
        cache_dir=str(tmp_path / "cache"),
        sample={"prompts": ["Draw red."], "num_inference_steps": 2},
        **settings,
    )
    return XFusionTraining(recipe, build_morph(recipe, language=build_language(), autoencoder=FakeAutoencoder()))


@pytest.fixture
def training(tmp_path: Path) -> XFusionTraining:
    return _build(tmp_path)


def _stir(training: XFusionTraining) -> None:
    with torch.no_grad():
        for parameter in training.trainable_parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)


PICKS = [(0, 0, 1), (1, 0, 2), (2, 1, 0), (3, 0, 0), (4, 1, 3)]


def test_it_is_a_method(training: XFusionTraining) -> None:
    assert isinstance(training, Method)
    assert training.num_samples() == (4, 4)
    assert training.loss_weights == {"ce": 0.2, "flow": 1.0}


def test_packed_losses_equal_unpacked_ones_and_counts_are_known_before(training: XFusionTraining) -> None:
    _stir(training)
    batch = training.build_batch(PICKS, seed=3)
    packed = training(batch)
    single = [training(training.build_batch([pick], seed=3)) for pick in PICKS]
    assert packed.keys() == {"ce", "flow"}
    for name, loss in packed.items():
        torch.testing.assert_close(loss.total, sum(s[name].total for s in single), atol=1e-3, rtol=1e-5)
        assert loss.count == sum(s[name].count for s in single) == training.loss_counts(batch)[name] > 0
    for answers, drawn in ((single[2], False), (single[0], True)):
        assert (answers["flow"].count > 0) == drawn
        assert (answers["ce"].count > 0) == (not drawn)


def test_packed_gradients_equal_accumulated_ones(training: XFusionTraining) -> None:
    _stir(training)
    parameters = training.trainable_parameters()

    def gradients(groups: list[list[tuple[int, int, int]]]) -> dict[str, torch.Tensor]:
        training.zero_grad()
        for picks in groups:
            losses = training(training.build_batch(picks, seed=3))
            torch.stack([training.loss_weights[name] * loss.total for name, loss in losses.items()]).sum().backward()
        return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}

    whole, parts = gradients([PICKS]), gradients([[pick] for pick in PICKS])
    assert whole.keys() == parts.keys() == parameters.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-3, rtol=1e-4, msg=name)


def test_a_draw_carries_its_noise_wherever_it_is_packed(training: XFusionTraining) -> None:
    whole = training.build_batch(PICKS, seed=3)
    alone = training.build_batch([PICKS[1]], seed=3)
    assert torch.equal(whole.noise[1], alone.noise[0])
    assert torch.equal(whole.t[1], alone.t[0])
    assert not torch.equal(training.build_batch([PICKS[1]], seed=4).noise, alone.noise)
    assert not torch.equal(training.build_batch([(9, *PICKS[1][1:])], seed=3).noise, alone.noise)


@pytest.mark.parametrize("schedule", ["flow", "ddpm_cosine", "ddpm_linear"])
@pytest.mark.parametrize("cap", [0.0, 0.25, 1.0])
def test_images_that_are_read_are_noised_up_to_the_cap_and_the_tower_is_told_how_far(
    training: XFusionTraining, cap: float, schedule: str
) -> None:
    clean = training.build_batch(PICKS, seed=3)
    objective = training.recipe.objective.model_copy(update={"context_noise": cap, "schedule": schedule})
    training.recipe = training.recipe.model_copy(update={"objective": objective})
    batches = [training.build_batch([(draw, 1, 0)], seed=3) for draw in range(40)]
    own = [batch.batch.images[~batch.batch.image_is_target] for batch in batches]
    kept = clean.batch.images[~clean.batch.image_is_target][0]
    if not cap:
        assert all(torch.equal(images[0], kept) for images in own)
        assert all(batch.context_t.numel() == 0 for batch in batches)
        return
    times = torch.cat([batch.context_t for batch in batches])
    assert 0 <= float(times.min()) < 0.2 * cap
    assert 0.8 * cap < float(times.max()) <= cap
    left, added = PATHS[schedule]
    noise = torch.cat([(images - left(t) * kept) / added(t) for images, t in zip(own, times, strict=True)])
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1
    _stir(training)
    told = training(batches[0])["ce"].total
    untold = training(dataclasses.replace(batches[0], context_t=torch.zeros(0)))["ce"].total
    assert told != untold


def test_captions_are_dropped_at_the_recipes_rate_and_questions_never(training: XFusionTraining) -> None:
    def texts(source: int) -> list[int]:
        batches = [training.build_batch([(draw, source, 0)], seed=0).batch for draw in range(300)]
        return [int((~b.is_image).sum()) for b in batches]

    drawn = texts(0)
    assert 0.05 < sum(n < max(drawn) for n in drawn) / 300 < 0.16
    assert len(set(texts(1))) == 1


def test_images_of_answers_are_targets_and_images_of_questions_clean(training: XFusionTraining) -> None:
    assert training.build_batch([(0, 0, 0)], seed=0).batch.image_is_target.tolist() == [True]
    batch = training.build_batch([(0, 1, 0)], seed=0)
    assert batch.batch.image_is_target.tolist() == [False]
    assert batch.noise.numel() == 0
    labels = training.morph.tokenizer.decode(batch.plan.labels)
    assert labels == "red<|im_end|>"


def test_exactly_the_vision_tower_learns_and_the_language_model_keeps_its_bytes(training: XFusionTraining) -> None:
    before = hash_module(training.morph.language_model)
    trained = training.trainable_parameters()
    assert {id(p) for p in trained.values()} == {id(p) for p in training.parameters()}
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-3)
    batch, history = (
        training.build_batch([(d, s, i) for d, (s, i) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)])], seed=0),
        [],
    )
    for _ in range(20):
        losses = training(batch)
        means = [training.loss_weights[name] * item.total / item.count for name, item in losses.items()]
        history.append({name: float(item.total.detach()) / item.count for name, item in losses.items()})
        optimizer.zero_grad()
        torch.stack(means).sum().backward()
        optimizer.step()
    assert history[-1]["ce"] < 0.7 * history[0]["ce"]
    assert history[-1]["flow"] < 0.9 * history[0]["flow"]
    assert hash_module(training.morph.language_model) == before


FROZEN = {
    "dual": {},
    "narrow": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
    "gated": {"layer_design": "gated"},
    "projection": {"layer_design": "projection", "hidden_size": 16, "intermediate_size": 32},
    "x_fuse": {"x_fuse": "both"},
}


@pytest.mark.parametrize("tower", FROZEN.values(), ids=FROZEN)
def test_frozen_weights_take_no_byte_of_gradients_or_optimiser_state(tmp_path: Path, tower: dict[str, Any]) -> None:
    """16 bytes for every trained number (weight, gradient, two moments), 4 for every frozen one, and a step counter."""
    training = _build(tmp_path, vision_tower={"patch_size": PATCH, "time_conditioning": "adaln"} | tower)
    _stir(training)  # off the zeros behind which some would get no gradient at first
    trained = training.trainable_parameters()
    optimizer = build_optimizer(trained, training.recipe.train)
    total = sum((loss.total for loss in training(training.build_batch(PICKS, seed=0)).values()), torch.zeros(()))
    total.backward()
    optimizer.step()
    frozen = list(training.morph.language_model.parameters())
    numbers = sum(parameter.numel() for parameter in trained.values())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen)
    gradients = sum(parameter.grad.nbytes for parameter in trained.values() if parameter.grad is not None)
    moments = sum(tensor.nbytes for state in optimizer.state.values() for tensor in state.values())
    assert gradients == 4 * numbers
    assert moments == 8 * numbers + 4 * len(trained)
    assert sum(parameter.nbytes for parameter in frozen) == 4 * sum(parameter.numel() for parameter in frozen)
    held = {tensor.data_ptr() for parameter in trained.values() for tensor in (parameter, parameter.grad)}  # type: ignore[union-attr]
    assert not held & {parameter.data_ptr() for parameter in frozen}


def test_text_to_image_never_runs_the_text_tower_after_the_first_epoch(training: XFusionTraining) -> None:
    picks = [(draw, 0, draw % 4) for draw in range(40)]
    training(training.build_batch(picks, seed=0))
    computed = training.model.text_states.num_computed
    training(training.build_batch([(40 + d, s, i) for d, s, i in picks], seed=0))
    assert training.model.text_states.num_computed == computed > 0


@torch.no_grad()
def test_losses_are_the_same_whatever_of_the_text_states_the_disk_may_take(tmp_path: Path) -> None:
    """All, some, none: in a first pass, and in one that finds what was kept."""
    losses: dict[float, list[dict[str, Tensor]]] = {}
    for limit in (20, 5e-5, 0):
        (tmp_path / str(limit)).mkdir()
        training = _build(tmp_path / str(limit), text_cache_gb=limit)
        losses[limit] = []
        for draw in (*range(8), *range(8)):
            batch = training.build_batch([(draw, draw % 2, draw // 2)], seed=0)
            losses[limit].append({name: loss.total for name, loss in training(batch).items()})
            training.flush()
        kept = sum(path.stat().st_size for path in (tmp_path / str(limit)).glob("cache/text-*/*"))
        assert kept <= limit * 1e9
        assert (kept > 0) == (limit > 0)
        cache = training.model.text_states.cache
        assert (cache is None) == (limit == 0)
        assert cache is None or cache.is_full == (limit < 1)
    assert losses[20] == losses[5e-5] == losses[0]


@pytest.mark.parametrize("layer_design", ["single", "gated"])
def test_the_single_tower_says_that_text_will_not_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layer_design: str
) -> None:
    _build(tmp_path, vision_tower={"layer_design": layer_design})
    said = "note: layer_design single trains the language model itself: text alone will not stay as it was"
    assert (said in capsys.readouterr().err) == (layer_design == "single")


PATHS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "flow": (lambda t: 1 - t, lambda t: t),
    "ddpm_cosine": (lambda t: torch.cos(math.pi / 2 * t), lambda t: torch.sin(math.pi / 2 * t)),
    "ddpm_linear": (
        lambda t: torch.exp(-0.05 * t - 4.975 * t**2),
        lambda t: torch.sqrt(1 - torch.exp(-0.1 * t - 9.95 * t**2)),
    ),
}
"""What is left of the data, and how much noise there is, at t."""


@pytest.mark.parametrize("schedule", PATHS)
@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "data"])
def test_an_untrained_tower_errs_by_the_whole_of_what_it_is_to_predict(
    tmp_path: Path, prediction: str, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head starts at zero, so that the loss is the target's own size; the tower is shown the schedule's mixture."""
    training = _build(tmp_path, objective={"prediction": prediction, "schedule": schedule})
    batch = training.build_batch(PICKS, seed=3)
    data = batch.batch.images[batch.batch.image_is_target].double()
    t, noise = batch.t.double()[:, None, None, None].requires_grad_(), batch.noise.double()
    left, added = (part(t) for part in PATHS[schedule])
    slopes = [torch.autograd.grad(part.sum(), t, retain_graph=True)[0] for part in (left, added)]
    target = {"velocity": slopes[0] * data + slopes[1] * noise, "epsilon": noise, "data": data}[prediction]
    shown: list[Tensor] = []
    outputs = training.model.outputs

    def watched(packed: Any, plan: Any, noised: Tensor, *rest: Any, **named: Any) -> Any:
        shown.append(noised)
        return outputs(packed, plan, noised, *rest, **named)

    monkeypatch.setattr(training.model, "outputs", watched)
    total = training(batch)["flow"].total
    torch.testing.assert_close(total.double(), target.square().sum(), rtol=1e-4, atol=0)
    torch.testing.assert_close(shown[0].double(), left * data + added * noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
def test_times_have_the_recipes_density_and_shift(tmp_path: Path, density: str, shift: float) -> None:
    """By Kolmogorov and Smirnov: below 1.95 / sqrt(n) in 999 of 1,000 cases."""
    training = _build(tmp_path, objective={"timestep_sampling": density, "timestep_shift": shift})
    t = torch.cat([training.build_batch([(draw, 0, 0)], seed=0).t for draw in range(400)]).sort().values
    straight = t / (shift - (shift - 1) * t)
    expected = straight if density == "uniform" else torch.special.ndtr(torch.logit(straight))
    seen = torch.arange(1, 401) / 400
    assert float((expected - seen).abs().max()) < 1.95 / 20


def test_requests_are_dropped_whole_at_the_rate_of_image_cond_dropout_prob(tmp_path: Path) -> None:
    """Text alone at one rate, text and the request's images at another, what is asked about never."""
    training = _build(tmp_path, objective={"text_cond_dropout_prob": 0.2, "image_cond_dropout_prob": 0.3})
    path = tmp_path / "edit.jsonl"
    messages = [
        {"role": "user", "content": "<image>\nMake it green."},
        {"role": "assistant", "content": "<image>"},
    ]
    path.write_text(json.dumps({"messages": messages, "images": ["images/red.png", "images/green.png"]}) + "\n")
    training = XFusionTraining(
        build_recipe(training.recipe.model_dump() | {"data": {"sources": [{"path": str(path)}]}}), training.morph
    )
    kinds = []
    for draw in range(400):
        packed = training.build_batch([(draw, 0, 0)], seed=0).batch
        said = "green" in training.morph.tokenizer.decode(packed.token_ids[~packed.is_image])
        kinds.append((said, int(packed.image_is_target.numel())))
    shares = {kind: kinds.count(kind) / 400 for kind in set(kinds)}
    assert shares.keys() == {(True, 2), (False, 2), (False, 1)}
    assert abs(shares[False, 2] - 0.2) < 0.06
    assert abs(shares[False, 1] - 0.3) < 0.07


def test_the_grid_shows_the_fixed_prompts(training: XFusionTraining) -> None:
    prompts = training.recipe.sample.prompts
    assert prompts
    asked: Any = [[{"role": "user", "content": prompt}] for prompt in prompts]
    drawn: Any = [answer[0] for answer in training.morph.generate_batch(asked, generation_mode="image", seed=4)]
    grid = training.sample_grid(seed=4)
    assert grid is not None
    assert grid.tobytes() == draw_image_grid(drawn, list(prompts), columns=min(8, len(prompts))).tobytes()
