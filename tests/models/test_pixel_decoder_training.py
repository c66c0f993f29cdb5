"""Laws of the pixel decoder's training: who trains, what a draw holds, and that images become themselves again."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.config import Recipe
from diptych.data.images import image_to_tensor, open_image
from diptych.models.method import Method
from diptych.models.pixel_decoder import load_pixel_decoder
from diptych.models.pixel_decoder_training import PixelDecoderTraining
from diptych.models.registry import build_method
from diptych.nn.connector import reduce_tokens
from diptych.train.loop import run_training
from tiny_pixel_decoder import IMAGE_SIZE, build_training, decoder_recipe, write_parts
from tiny_vpit import NUM_TOKENS

KINDS = ("flow", "stable_diffusion")
PICKS = [(7, 0, 3), (8, 0, 0), (9, 0, 3), (10, 0, 1)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(params=KINDS)
def training(parts: Path, request: pytest.FixtureRequest) -> PixelDecoderTraining:
    return build_training(decoder_recipe(parts, pixel_decoder_training={"kind": request.param}))


def settled(training: PixelDecoderTraining, *, steps: int, size: int) -> list[float]:
    """Trains on two images, `size` draws a step; gives the mean losses of the steps."""
    optimizer = torch.optim.AdamW(training.trainable_parameters().values(), lr=4e-3)
    means = []
    for step in range(steps):
        batch = training.build_batch([(size * step + k, 0, k % 2) for k in range(size)], seed=0)
        (loss,) = training(batch).values()
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        means.append(float(loss.total.detach()) / loss.count)
    return means


def test_it_is_a_method(training: PixelDecoderTraining) -> None:
    assert isinstance(training, Method)
    assert training.loss_weights == {training.decoder.denoiser.loss_name: 1.0}
    assert set(training.frozen_hashes()) == {"image_encoder", "autoencoder"}


def test_the_registry_knows_it(parts: Path) -> None:
    assert isinstance(build_method(decoder_recipe(parts)), PixelDecoderTraining)


def test_exactly_the_denoiser_gets_gradients(training: PixelDecoderTraining) -> None:
    """Flow: the whole transformer. Stable Diffusion: projector and UNet. Never the encoder, never the autoencoder."""
    with torch.no_grad():
        for parameter in training.trainable_parameters().values():  # off zero gates and heads
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = training.build_batch([(draw, 0, draw % 4) for draw in range(32)], seed=0)
    assert 0 < int(batch.dropped.sum()) < 32
    (loss,) = training(batch).values()
    loss.total.backward()
    frozen = [*training.encoder.parameters(), *training.decoder.autoencoder.network.parameters()]
    assert frozen
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen)
    trained = training.trainable_parameters()
    assert {name.split(".")[0] for name in trained} in ({"network"}, {"unet", "projector"})
    assert {id(p) for p in training.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in trained.values())


def test_a_sample_is_an_image_and_counts_once(parts: Path, tmp_path: Path) -> None:
    lines = (parts / "data" / "draw.jsonl").read_text().splitlines()
    (parts / "data" / "twice.jsonl").write_text("\n".join(lines[:3] * 2) + "\n")
    sources = [{"path": str(parts / "data" / f"{name}.jsonl")} for name in ("draw", "twice")]
    training = build_training(decoder_recipe(parts, data={"sources": sources}))
    assert training.num_samples() == (4, 3)
    textual = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}
    (tmp_path / "text.jsonl").write_text(json.dumps(textual) + "\n")
    with pytest.raises(ValueError, match=r"text.jsonl names no images"):
        build_training(decoder_recipe(parts, data={"sources": [{"path": str(tmp_path / "text.jsonl")}]}))


def test_a_draw_carries_its_noise_whatever_the_batch(training: PixelDecoderTraining) -> None:
    together = training.build_batch(PICKS, seed=5)
    for place, pick in enumerate(PICKS):
        alone = training.build_batch([pick], seed=5)
        for name, value in vars(alone).items():
            assert torch.equal(value[0], getattr(together, name)[place])
    assert torch.equal(together.latents[0], together.latents[2])  # one image, two draws
    assert not torch.equal(together.noise[0], together.noise[2])
    assert not torch.equal(together.noise, training.build_batch(PICKS, seed=6).noise)
    assert torch.allclose(together.features.norm(dim=-1), torch.ones(()))


def test_visual_tokens_are_as_far_from_the_real_ones_as_asked(parts: Path) -> None:
    """1 / sqrt(1 + strength^2) in cosine, the strength between none and the recipe's; and nothing else changes."""
    plain = build_training(decoder_recipe(parts))
    noisy = build_training(decoder_recipe(parts, pixel_decoder_training={"condition_noise": 0.5}))
    picks = [(draw, 0, draw % 4) for draw in range(64)]
    real, made = plain.build_batch(picks, seed=0), noisy.build_batch(picks, seed=0)
    for name in ("latents", "noise", "t", "dropped"):
        assert torch.equal(getattr(real, name), getattr(made, name)), name
    torch.testing.assert_close(made.features.norm(dim=-1), torch.ones(64, NUM_TOKENS))
    cosine = (made.features * real.features).sum(-1).mean(1)
    assert float(cosine.max()) > 0.99
    assert 0.8 < float(cosine.min()) < 0.95, "1 / sqrt(1.25) = 0.894, within the chance of four tokens of 16 dimensions"
    again = noisy.build_batch(picks, seed=0)
    assert torch.equal(again.features, made.features)


def test_losses_are_sums_with_counts_known_before(training: PixelDecoderTraining) -> None:
    batch = training.build_batch(PICKS, seed=0)
    whole = training(batch)
    assert {name: loss.count for name, loss in whole.items()} == training.loss_counts(batch)
    pieces = [training(training.build_batch(picks, seed=0)) for picks in (PICKS[:1], PICKS[1:])]
    for name, loss in whole.items():
        torch.testing.assert_close(loss.total, pieces[0][name].total + pieces[1][name].total)


@pytest.mark.parametrize(("kind", "share"), [("flow", 0.1), ("stable_diffusion", 0.7)])
def test_conditions_are_dropped_at_the_kind_s_rate(parts: Path, kind: str, share: float) -> None:
    training = build_training(decoder_recipe(parts, pixel_decoder_training={"kind": kind}))
    batch = training.build_batch([(draw, 0, 0) for draw in range(1000)], seed=0)
    assert abs(float(batch.dropped.float().mean()) - share) < 0.04


def test_two_images_are_learnt_and_each_comes_back_as_itself(parts: Path) -> None:
    """Flow, from nothing, in seconds: the loss falls, and a reconstruction is nearer to its own image by far."""
    training = build_training(
        decoder_recipe(parts, sample={"guidance_scale": 1.0, "num_inference_steps": 12, "sampler": "heun"})
    )
    means = settled(training, steps=150, size=16)
    assert sum(means[-10:]) < 0.5 * sum(means[:10])
    training.eval()
    decoder = training.decoder
    assert training.images is not None
    images = training.images[0][:2]
    features = torch.stack([training.features.load(image) for image in images])
    real = decoder.autoencoder.decode(torch.stack([training.latents.load(image) for image in images]))
    drawn = decoder.decode(features)
    distances = (drawn[:, None] - real[None]).square().mean(dim=(2, 3, 4))
    assert float(distances.diagonal().max()) < 0.5 * float(distances.fliplr().diagonal().min())
    swapped = decoder.decode(features.flip(0))
    distances = (swapped[:, None] - real[None]).square().mean(dim=(2, 3, 4))
    assert float(distances.fliplr().diagonal().max()) < float(distances.diagonal().min())


def test_stable_diffusion_learns_too(parts: Path) -> None:
    training = build_training(
        decoder_recipe(parts, pixel_decoder_training={"kind": "stable_diffusion", "condition_dropout_prob": 0.2})
    )
    means = settled(training, steps=24, size=8)
    assert sum(means[-6:]) < 0.8 * sum(means[:6])


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True, "ema": 0.9}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_writes_a_decoder_that_loads(parts: Path, tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    recipe = decoder_recipe(
        parts,
        tmp_path / "run",
        dtype="bfloat16",
        pixel_decoder_training={"kind": kind},
        train={"max_steps": 2, "sample_every": 2, **settings},
    )
    method = build_method(recipe)
    assert isinstance(method, PixelDecoderTraining)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run_training(recipe, method)
    assert (tmp_path / "run" / "samples" / "step-000002.png").is_file()
    assert "reconstruction_cosine" in (tmp_path / "run" / "log.jsonl").read_text()
    loaded = load_pixel_decoder(result.morph)
    own = dict(method.decoder.denoiser.named_parameters())
    changed = [n for n, p in loaded.denoiser.named_parameters() if not torch.equal(p, own[n])]
    assert bool(changed) == ("ema" in settings)


def test_a_latent_and_its_visual_tokens_are_of_one_image(training: PixelDecoderTraining) -> None:
    batch = training.build_batch([(0, 0, 2)], seed=0)
    assert training.images is not None
    image = training.images[0][2]
    pixels = image_to_tensor(open_image(image), IMAGE_SIZE)[None]
    torch.testing.assert_close(batch.latents, training.decoder.autoencoder.encode(pixels))
    seen = image_to_tensor(open_image(image), training.encoder.preprocessing.image_size)[None]
    torch.testing.assert_close(batch.features, reduce_tokens(training.encoder.features(seen), NUM_TOKENS))


def test_the_grid_and_the_measure_follow_the_weights(parts: Path) -> None:
    training = build_training(decoder_recipe(parts)).eval()
    before, again = training.sample_grid(seed=0), training.sample_grid(seed=0)
    assert before is not None
    assert again is not None
    assert before.tobytes() == again.tobytes()
    cosine = training.measure(seed=0)["reconstruction_cosine"]
    assert -1 <= cosine <= 1
    with torch.no_grad():
        training.decoder.denoiser.network.head.linear.bias.add_(0.5)
    after = training.sample_grid(seed=0)
    assert after is not None
    assert after.tobytes() != before.tobytes()
    assert training.measure(seed=0)["reconstruction_cosine"] != cosine


def test_resumed_a_run_ends_where_the_uninterrupted_one_does(parts: Path, tmp_path: Path) -> None:
    def run(folder: Path, **train: Any) -> dict[str, torch.Tensor]:
        recipe: Recipe = decoder_recipe(
            parts, folder, train={"save_every": 2, "lr_scheduler_type": "constant", **train}
        )
        return dict(load_pixel_decoder(run_training(recipe, build_training(recipe)).morph).denoiser.named_parameters())

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", max_steps=2)
    resumed = run(tmp_path / "parts", resume_from_checkpoint="latest")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
