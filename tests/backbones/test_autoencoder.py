"""Laws of autoencoders: normalised latents, exact folding, frozen weights, errors that name the model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from diptych.backbones.autoencoder import EMBEDDED, Autoencoder, fold_pixels, load_autoencoder, unfold_pixels
from diptych.backbones.weight_hash import hash_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"


def _tiny(fold: int = 1, **settings: Any) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "in_channels": 3 * fold**2,
        "out_channels": 3 * fold**2,
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
        "latent_channels": 4,
    }
    return AutoencoderTiny(**(options | settings))


def _variational() -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "latent_channels": 4,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
    }
    return AutoencoderKL(**settings)


def _images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _tiny().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@given(factor=st.integers(1, 4), height=st.integers(1, 3), width=st.integers(1, 3))
def test_unfolding_undoes_folding(factor: int, height: int, width: int) -> None:
    images = _images(2, 3, height * factor, width * factor)
    folded = fold_pixels(images, factor)
    assert folded.shape == (2, 3 * factor**2, height, width)
    assert torch.equal(unfold_pixels(folded, factor), images)


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_shapes_follow_the_downsampling_also_of_oblong_images(fold: int) -> None:
    autoencoder = Autoencoder(_tiny(fold), name="tiny", hash="")
    assert (autoencoder.downsampling, autoencoder.latent_channels) == (2 * fold, 4)
    latents = autoencoder.encode(_images(2, 3, 16, 24))
    assert latents.shape == (2, 4, 16 // (2 * fold), 24 // (2 * fold))
    assert autoencoder.decode(latents).shape == (2, 3, 16, 24)


@pytest.mark.parametrize(("height", "width"), [(15, 16), (16, 15)])
def test_sides_that_do_not_divide_are_refused(height: int, width: int) -> None:
    autoencoder = Autoencoder(_tiny(), name="tiny", hash="")
    with pytest.raises(ValueError, match=rf"{height} x {width} pixels.*'tiny'.*multiples of 2"):
        autoencoder.encode(_images(1, 3, height, width))


def test_scale_and_shift_of_the_config_are_applied_and_undone() -> None:
    network = _tiny(scaling_factor=4.0, shift_factor=0.5)
    autoencoder = Autoencoder(network, name="tiny", hash="")
    images = _images(2, 3, 8, 8)
    with torch.no_grad():
        raw = network.encode(images).latents
        expected = network.decode(raw).sample.clamp(-1, 1)
    latents = autoencoder.encode(images)
    assert torch.equal(latents, (raw - 0.5) * 4.0)
    torch.testing.assert_close(autoencoder.decode(latents), expected)


def test_a_variational_one_gives_the_mean_of_its_posterior(tmp_path: Path) -> None:
    network = _variational().eval()
    network.save_pretrained(tmp_path)
    autoencoder = load_autoencoder(str(tmp_path))
    images = _images(1, 3, 8, 8)
    with torch.no_grad():
        mean = network.encode(images).latent_dist.mean
    latents = autoencoder.encode(images)
    torch.testing.assert_close(latents, (mean - 0.25) * 0.5)
    assert torch.equal(latents, autoencoder.encode(images))
    assert autoencoder.downsampling == 2


def test_decoded_pixels_lie_in_the_range() -> None:
    decoded = Autoencoder(_tiny(), name="tiny", hash="").decode(torch.randn(2, 4, 4, 4) * 100)
    assert decoded.min() >= -1
    assert decoded.max() <= 1


def test_nothing_in_it_learns() -> None:
    autoencoder = Autoencoder(_tiny(), name="tiny", hash="")
    assert not autoencoder.network.training
    assert not any(parameter.requires_grad for parameter in autoencoder.network.parameters())
    assert not autoencoder.encode(_images(1, 3, 8, 8).requires_grad_()).requires_grad


def test_channels_that_are_no_folded_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'odd' reads 6 channels"):
        Autoencoder(_tiny(in_channels=6), name="odd", hash="")


def test_the_hash_is_that_of_the_weights(folder: Path) -> None:
    before = load_autoencoder(str(folder)).hash
    assert before == hash_folder(folder) == load_autoencoder(str(folder)).hash
    weights = load_file(folder / WEIGHTS)
    weights["encoder.layers.0.bias"][0] += 1
    save_file(weights, folder / WEIGHTS)
    assert load_autoencoder(str(folder)).hash != before


def _claim_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))


def _cut_the_weights(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:1000])


def _drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["encoder.layers.0.bias"]
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_claim_another_kind, "is a UNet2DModel; give an AutoencoderKL or an AutoencoderTiny"),
        (_cut_the_weights, "could not be loaded from"),
        (_drop_a_weight, "do not fit its config: encoder.layers.0.bias"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(folder)
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        load_autoencoder(str(folder))
    assert str(folder) in str(refusal.value)


def test_of_a_whole_pipeline_it_is_the_vae(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    (tmp_path / "pipeline" / "v1-5-pruned.safetensors").write_bytes(b"what must not be read")
    alone, within = load_autoencoder(str(folder)), load_autoencoder(str(tmp_path / "pipeline"))
    assert within.hash == alone.hash


def test_one_set_of_weights_is_taken_where_there_are_several(folder: Path) -> None:
    before = load_autoencoder(str(folder)).hash
    shutil.copy(folder / WEIGHTS, folder / "diffusion_pytorch_model.fp16.safetensors")
    assert load_autoencoder(str(folder)).hash == before


def test_a_damaged_config_is_refused_by_file(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_autoencoder(str(folder))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither .* has config\.json and \*\.safetensors"):
        load_autoencoder(str(tmp_path))


def test_a_misspelt_name_gets_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        load_autoencoder(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="did you mean 'emoji-tiny'"):
        load_autoencoder("emoji-tinny")


def test_the_embedded_one_is_small_and_folds_64_pixels_to_8() -> None:
    autoencoder = load_autoencoder("emoji-tiny")
    assert (autoencoder.fold, autoencoder.downsampling, autoencoder.latent_channels) == (8, 8, 16)
    assert sum(file.stat().st_size for file in EMBEDDED["emoji-tiny"].iterdir()) < 3_000_000
    assert {tensor.dtype for tensor in load_file(EMBEDDED["emoji-tiny"] / WEIGHTS).values()} == {torch.bfloat16}
    assert autoencoder.encode(_images(2, 3, 64, 64)).shape == (2, 16, 8, 8)


def test_the_embedded_one_keeps_white_white_without_seams() -> None:
    autoencoder = load_autoencoder("emoji-tiny")
    white = torch.ones(1, 3, 64, 64)
    assert (autoencoder.decode(autoencoder.encode(white)) - white).abs().max() < 0.05
