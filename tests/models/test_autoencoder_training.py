"""Laws of the autoencoder's training: the best linear code to start, a draw with its noise, concepts held out whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor

from diptych.backbones.assets import asset_path
from diptych.backbones.autoencoder import Autoencoder, fold_pixels, load_autoencoder
from diptych.config import Recipe, build_recipe
from diptych.data.images import image_to_tensor, open_image, tensor_to_image
from diptych.data.svg import render_svg
from diptych.models.autoencoder_training import (
    LATENT_SCALE,
    AutoencoderTraining,
    build_autoencoder,
    initialise_as_components,
    is_held_out,
    reconstruction_psnr,
)
from diptych.models.method import Method
from diptych.settings import AutoencoderTrainingConfig

NUM_CONCEPTS, STYLES = 24, ("flat", "round")


def _pictures(number: int, *, rank: int = 4) -> Tensor:
    """Images [number, 3, 16, 16] whose 4 x 4 blocks are mixtures of `rank` patterns."""
    generator = torch.Generator().manual_seed(3)
    patterns = torch.randn(rank, 48, generator=generator)
    mixtures = torch.randn(number, rank, 4, 4, generator=generator) * torch.linspace(1, 0.3, rank)[:, None, None]
    blocks = torch.einsum("nrhw,rp->nphw", mixtures, patterns)
    return torch.pixel_shuffle(blocks, 4).mul(0.2).clamp(-1, 1)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    pictures = iter(_pictures(NUM_CONCEPTS * len(STYLES)))
    lines = []
    for style in STYLES:
        (tmp_path / "images" / style).mkdir(parents=True)
        for concept in range(NUM_CONCEPTS):
            image = f"images/{style}/{concept}.png"
            tensor_to_image(next(pictures)).save(tmp_path / image)
            messages = [{"role": "user", "content": "Draw."}, {"role": "assistant", "content": "<image>"}]
            lines += [json.dumps({"messages": messages, "images": [image]})] * 2  # two prompts share one picture
    (tmp_path / "draw.jsonl").write_text("\n".join(lines) + "\n")
    return _recipe(tmp_path)


def _recipe(folder: Path, **settings: Any) -> Recipe:
    small: dict[str, Any] = {
        "method": "autoencoder",
        "output_dir": "nowhere",
        "image_size": 16,
        "autoencoder_training": {"fold": 4, "channels": 16, "latent_channels": 4, "num_decoder_blocks": 1},
        "data": {"sources": [{"path": str(folder / "draw.jsonl")}]},
    }
    return build_recipe(small | settings)


@pytest.fixture
def training(recipe: Recipe) -> AutoencoderTraining:
    return AutoencoderTraining(recipe)


PICKS = [(7, 0, 3), (8, 0, 0), (9, 0, 3), (10, 0, 5)]


def test_it_is_a_method(training: AutoencoderTraining) -> None:
    assert isinstance(training, Method)
    assert training.num_samples() == (len(training.images),)
    assert training.frozen_hashes() == {}
    assert set(training.trainable_parameters()) == {name for name, _ in training.network.named_parameters()}


def test_a_tenth_of_the_concepts_is_held_out_in_every_style(training: AutoencoderTraining) -> None:
    held_out = [concept for concept in range(NUM_CONCEPTS) if is_held_out(f"{concept}.png")]
    assert is_held_out("images/flat/1f600.png") == is_held_out("images/round/1f600.png")
    assert len(training.held_out) == len(held_out) * len(STYLES) > 0
    assert len(training.images) + len(training.held_out) == NUM_CONCEPTS * len(STYLES)
    share = sum(is_held_out(f"{number:x}.png") for number in range(0x1F300, 0x1F700)) / 0x400
    assert 0.07 < share < 0.13


def shape(fold: int, channels: int, latent_channels: int, *blocks: int) -> AutoencoderTrainingConfig:
    return AutoencoderTrainingConfig(
        fold=fold, channels=channels, latent_channels=latent_channels, num_decoder_blocks=blocks
    )


def test_it_starts_as_the_principal_components() -> None:
    """Images of as many patterns as there are latent channels come back (measured: 37.9 dB; without latents 17.8)."""
    images = _pictures(64)
    network = build_autoencoder(shape(4, 16, 4, 1))
    initialise_as_components(network, fold_pixels(images, 4))
    autoencoder = Autoencoder(network, name="tiny", hash="")
    latents = autoencoder.encode(images) / LATENT_SCALE
    mean_image = images.mean(dim=0, keepdim=True)
    without_latents = float((10 * torch.log10(4 / (images - mean_image).square().mean(dim=(1, 2, 3)))).mean())
    started = reconstruction_psnr(autoencoder, images)
    deviations = latents.std(dim=(0, 2, 3)).tolist()
    assert started > without_latents + 15
    assert deviations == sorted(deviations, reverse=True)


def test_blocks_start_as_the_identity() -> None:
    network = build_autoencoder(shape(2, 8, 2, 2))
    initialise_as_components(network, torch.rand(4, 12, 4, 4) * 2 - 1)
    positive = torch.rand(1, 8, 4, 4)
    blocks = [module for module in network.modules() if isinstance(module, AutoencoderTinyBlock)]
    assert len(blocks) == 3
    assert all(torch.equal(block(positive), positive) for block in blocks)


def test_too_few_channels_for_the_latents_are_refused() -> None:
    network = build_autoencoder(shape(2, 6, 4, 1))
    with pytest.raises(ValueError, match=r"6 channels cannot carry 4 latent channels in pairs; use 8 or more"):
        initialise_as_components(network, torch.rand(4, 12, 4, 4))


def test_a_draw_carries_its_noise_whatever_the_batch(training: AutoencoderTraining) -> None:
    together = training.build_batch(PICKS, seed=5)
    for place, pick in enumerate(PICKS):
        alone = training.build_batch([pick], seed=5)
        assert torch.equal(alone.images[0], together.images[place])
        assert torch.equal(alone.noise[0], together.noise[place])
    assert not torch.equal(together.noise[0], together.noise[2])  # one picture, two draws
    assert not torch.equal(together.noise, training.build_batch(PICKS, seed=6).noise)


def test_losses_are_sums_with_counts_known_before(training: AutoencoderTraining) -> None:
    batch = training.build_batch(PICKS, seed=0)
    whole = training(batch)
    assert {name: loss.count for name, loss in whole.items()} == training.loss_counts(batch)
    assert whole.keys() == training.loss_weights.keys()
    parts = [training(training.build_batch(picks, seed=0)) for picks in (PICKS[:1], PICKS[1:])]
    for name, loss in whole.items():
        torch.testing.assert_close(loss.total, parts[0][name].total + parts[1][name].total)


def test_every_parameter_learns_and_learning_helps(training: AutoencoderTraining) -> None:
    optimizer = torch.optim.AdamW(training.trainable_parameters().values(), lr=3e-3)
    totals = []
    for step in range(30):
        picks = [(step * 8 + k, 0, (step * 8 + k) % len(training.images)) for k in range(8)]
        losses = training(training.build_batch(picks, seed=0))
        total = sum(weight * losses[name].total / losses[name].count for name, weight in training.loss_weights.items())
        assert isinstance(total, Tensor)
        optimizer.zero_grad()
        total.backward()
        assert all(parameter.grad is not None for parameter in training.trainable_parameters().values())
        optimizer.step()
        totals.append(float(total.detach()))
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])


def test_what_is_saved_loads_with_latents_of_unit_spread(training: AutoencoderTraining, tmp_path: Path) -> None:
    training.save_pretrained(str(tmp_path))
    loaded = load_autoencoder(str(tmp_path))
    assert loaded.downsampling == 4
    images = training.images.float() / 127.5 - 1
    assert float(loaded.encode(images).std()) == pytest.approx(1.0, abs=0.02)
    scores = json.loads((tmp_path / "scores.json").read_text())
    held_out = training.held_out.float() / 127.5 - 1
    assert scores["held_out_psnr_db"] == pytest.approx(reconstruction_psnr(loaded, held_out), abs=1e-3)
    assert scores["held_out_psnr_db_noise_0.2"] < scores["held_out_psnr_db"]
    assert (scores["num_trained"], scores["num_held_out"]) == (len(images), len(held_out))


def test_given_weights_are_saved_in_place_of_the_present_ones(training: AutoencoderTraining, tmp_path: Path) -> None:
    before = {name: parameter.detach().clone() for name, parameter in training.trainable_parameters().items()}
    averaged = {name: tensor * 0.5 for name, tensor in before.items()}
    training.save_pretrained(str(tmp_path), weights=averaged)
    saved = dict(load_autoencoder(str(tmp_path)).network.named_parameters())
    assert all(torch.equal(saved[name], tensor.bfloat16().float()) for name, tensor in averaged.items())
    assert all(torch.equal(parameter, before[name]) for name, parameter in training.trainable_parameters().items())


def test_the_grid_is_drawn_from_held_out_images_with_the_present_weights(training: AutoencoderTraining) -> None:
    before, again = training.sample_grid(seed=0), training.sample_grid(seed=0)
    assert before is not None
    assert again is not None
    assert before.tobytes() == again.tobytes()
    with torch.no_grad():
        training.network.decoder.layers[-1].bias.add_(0.5)
    after = training.sample_grid(seed=0)
    assert after is not None
    assert after.size == before.size
    assert after.tobytes() != before.tobytes()


def test_an_image_size_that_the_fold_does_not_divide_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"image_size 18 is not a multiple of autoencoder_training.fold 4"):
        AutoencoderTraining(recipe.model_copy(update={"image_size": 18}))


def test_too_few_images_are_refused(tmp_path: Path, recipe: Recipe) -> None:
    first = (tmp_path / "draw.jsonl").read_text().splitlines()[0]
    (tmp_path / "draw.jsonl").write_text(first + "\n")
    with pytest.raises(ValueError, match=r"1 images are too few .* add images"):
        AutoencoderTraining(recipe)


@pytest.mark.assets("openmoji", "fluent-emoji-3d")
def test_the_embedded_one_draws_emoji_that_it_never_saw() -> None:
    """Measured on these 56: 25.09 dB, 24.15 dB with noise; on the README's 280: 25.5 and 24.5 dB."""
    fluent, openmoji = asset_path("fluent-emoji-3d") / "assets", asset_path("openmoji") / "color" / "svg"
    held_out = [file.stem for file in sorted(fluent.glob("1f???.webp")) if is_held_out(file.name)]
    drawn = [name for name in held_out if (openmoji / f"{name.upper()}.svg").is_file()][::4]
    pictures = [open_image(fluent / f"{name}.webp") for name in drawn]
    pictures += [render_svg(openmoji / f"{name.upper()}.svg", 64) for name in drawn]
    images = torch.stack([image_to_tensor(picture, 64) for picture in pictures])
    autoencoder = load_autoencoder("emoji-tiny")
    clean, noisy = (reconstruction_psnr(autoencoder, images, noise=noise) for noise in (0.0, 0.2))
    latents = autoencoder.encode(images)
    assert clean > 24.9
    assert clean - 1.5 < noisy < clean
    assert abs(float(latents.mean())) < 0.1
    assert 0.8 < float(latents.std()) < 1.2


def test_a_new_decoder_learns_the_kept_encoders_latents(recipe: Recipe, tmp_path: Path) -> None:
    """The encoder keeps every bit, so that latents mean the same; the decoder has other channels and two stages."""
    AutoencoderTraining(recipe).save_pretrained(str(tmp_path / "first"))
    first = load_autoencoder(str(tmp_path / "first"))
    kept = {"encoder_from": str(tmp_path / "first"), "fold": 4, "latent_channels": 4}
    settings = {**kept, "channels": 16, "decoder_channels": 8, "num_decoder_blocks": [1, 1]}
    training = AutoencoderTraining(_recipe(tmp_path, autoencoder_training=settings))
    assert set(training.frozen_hashes()) == {"encoder"}
    assert all(name.startswith("decoder.") for name in training.trainable_parameters())
    assert set(training.loss_weights) == {"squared", "absolute", "edges"}
    before = training(training.build_batch(PICKS, seed=0))["squared"].total.item()
    optimizer = torch.optim.Adam(training.trainable_parameters().values(), lr=0.01)
    for _ in range(30):
        losses = training(training.build_batch(PICKS, seed=0))
        torch.stack([loss.total for loss in losses.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses["squared"].total < 0.5 * before
    training.save_pretrained(str(tmp_path / "second"))
    second = load_autoencoder(str(tmp_path / "second"))
    images = _pictures(5)
    assert torch.equal(first.encode(images), second.encode(images))
    assert second.decode(second.encode(images)).shape == images.shape
    assert (second.fold, second.downsampling) == (first.fold, first.downsampling)
    with pytest.raises(ValueError, match="another encoder than fold, channels and latent_channels"):
        AutoencoderTraining(_recipe(tmp_path, autoencoder_training={"channels": 8, **kept}))
    with pytest.raises(ValueError, match=r"4 stages, of 8 times .* fold 4 cannot be divided by"):
        build_autoencoder(shape(4, 16, 4, 1, 1, 1, 1))
