"""Law: wherever an image encoder reads a wide image, it reads the pixels that its own preprocessing asks for; what is
drawn, and what must lie where latents do, stays the centre square."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.backbones.vision import ImageEncoder
from diptych.data.images import Fit, image_to_tensor, open_image
from diptych.models.checkpoint import build_morph
from diptych.models.encoded_images import image_features
from diptych.models.pixel_decoder import build_pixel_decoder
from diptych.models.pixel_decoder_training import PixelDecoderTraining
from diptych.models.vpit_checkpoint import build_vpit_morph
from diptych.models.vpit_training import VPiTTraining
from diptych.models.xfusion_training import XFusionTraining
from tiny_pixel_decoder import decoder_recipe, write_parts
from tiny_vpit import NUM_TOKENS, build_encoder, vpit_recipe
from tiny_xfusion import FakeAutoencoder, build_language, tiny_recipe

QUESTION = "What?"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """draw.jsonl and read.jsonl of one image, three times as wide as high: its outer thirds are not its middle."""
    folder = tmp_path_factory.mktemp("wide")
    pixels = (torch.rand(4, 12, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    Image.fromarray(pixels).resize((96, 32), Image.Resampling.NEAREST).save(folder / "wide.png")
    for name, asked, answered in (("draw", "Draw it.", "<image>"), ("read", f"<image>{QUESTION}", "It.")):
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        (folder / f"{name}.jsonl").write_text(json.dumps({"messages": turns, "images": ["wide.png"]}) + "\n")
    network: Any = build_encoder().network
    network.network.save_pretrained(folder / "encoder")
    return folder


@pytest.fixture(params=["crop", "squash"])
def encoder(request: pytest.FixtureRequest) -> ImageEncoder:
    return build_encoder(fit=request.param)


def seen_by(encoder: ImageEncoder) -> list[Tensor]:
    """The batches of images that the encoder is given from now on."""
    seen: list[Tensor] = []
    features = encoder.features

    def recording(images: Tensor) -> Tensor:
        seen.append(images)
        return features(images)

    encoder.features = recording
    return seen


def pixels_of(data: Path, size: int, fit: Fit) -> Tensor:
    return image_to_tensor(open_image(data / "wide.png"), size, fit=fit)


def test_vpit_trains_and_answers_on_the_same_pixels(data: Path, encoder: ImageEncoder) -> None:
    recipe = vpit_recipe("nowhere", data)
    morph = build_vpit_morph(recipe, language=build_language("llama"), encoder=encoder, cached=False)
    seen = seen_by(encoder)
    batch = VPiTTraining(recipe, morph).build_batch([(0, 0, 0), (1, 1, 0)], seed=0)
    assert torch.equal(batch.batch.images[0], batch.batch.images[1]), "a target is what is read"
    content: list[Any] = [data / "wide.png", QUESTION]
    morph.answer([[{"role": "user", "content": content}]], generation_mode="text", max_new_tokens=1)
    expected = pixels_of(data, 32, encoder.preprocessing.fit)
    assert len(seen) == 2
    assert all(torch.equal(images, expected[None]) for images in seen)


def test_features_of_another_fit_are_other_features(data: Path, tmp_path: Path) -> None:
    """One cache holds both, and what of an encoder that crops is the same by either way."""
    path = str(data / "wide.png")
    squashing, cropping = build_encoder(fit="squash"), build_encoder()
    found = {}
    ways: dict[str, tuple[ImageEncoder, Fit | None]]
    ways = {"own": (squashing, None), "crop": (squashing, "crop"), "cropping": (cropping, None)}
    for name, (encoder, fit) in ways.items():
        features = image_features(encoder, NUM_TOKENS, cache_dir=tmp_path, fit=fit)
        found[name] = features.load(path)
        features.flush()
    assert torch.equal(found["crop"], found["cropping"])
    assert not torch.allclose(found["own"], found["crop"], atol=1e-2)
    for name, (encoder, fit) in ways.items():
        again = image_features(encoder, NUM_TOKENS, cache_dir=tmp_path, fit=fit)
        again.encode = lambda images: images  # whatever is not in the cache would be seen
        assert torch.equal(again.load(path), found[name])


def test_a_tower_reads_what_its_encoder_asks_for_and_draws_latents_of_the_crop(
    data: Path, encoder: ImageEncoder
) -> None:
    recipe = tiny_recipe(
        image_input={"image_encoder": str(data / "encoder")},
        data={"sources": [{"path": str(data / f"{name}.jsonl")} for name in ("draw", "read")]},
    )
    autoencoder = FakeAutoencoder()
    morph = build_morph(recipe, language=build_language(), autoencoder=autoencoder, encoder=encoder, cached=False)
    seen = seen_by(encoder)
    batch = XFusionTraining(recipe, morph).build_batch([(0, 0, 0), (1, 1, 0)], seed=0)
    morph._parse([{"role": "user", "content": [data / "wide.png", QUESTION]}])
    expected = pixels_of(data, 32, encoder.preprocessing.fit)
    assert len(seen) == 2
    assert all(torch.equal(images, expected[None]) for images in seen)
    latents = autoencoder.encode(pixels_of(data, recipe.image_size, "crop")[None])
    assert torch.equal(batch.batch.images[batch.batch.image_is_target], latents)


def test_an_aligned_tower_is_compared_with_features_of_what_its_latents_are_of(
    data: Path, encoder: ImageEncoder
) -> None:
    recipe = tiny_recipe(
        alignment={"image_encoder": str(data / "encoder"), "layer": 1},
        data={"sources": [{"path": str(data / "read.jsonl")}]},
    )
    morph = build_morph(recipe, language=build_language(), autoencoder=FakeAutoencoder(), cached=False)
    seen = seen_by(encoder)
    XFusionTraining(recipe, morph, encoder=encoder).build_batch([(0, 0, 0)], seed=0)
    assert len(seen) == 1
    assert torch.equal(seen[0], pixels_of(data, 32, "crop")[None])


def test_a_pixel_decoder_draws_the_crop_of_what_its_encoder_reads(
    data: Path, encoder: ImageEncoder, tmp_path: Path
) -> None:
    recipe = decoder_recipe(write_parts(tmp_path), data={"sources": [{"path": str(data / "draw.jsonl")}]})
    seen = seen_by(encoder)
    decoder = build_pixel_decoder(recipe, encoder)
    training = PixelDecoderTraining(recipe, decoder, encoder, cache_dir=None)
    assert torch.equal(seen[0], pixels_of(data, 32, encoder.preprocessing.fit)[None])
    latents = decoder.autoencoder.encode(pixels_of(data, recipe.image_size, "crop")[None])
    torch.testing.assert_close(training.build_batch([(0, 0, 0)], seed=0).latents, latents)
