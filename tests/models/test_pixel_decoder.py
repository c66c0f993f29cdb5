"""Laws of the pixel decoder: guidance, batching, whose visual tokens it reads, and what a folder gives back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diptych.backbones.vision import load_image_encoder
from diptych.data.images import open_image, tensor_to_image
from diptych.diffusion.sampler import starting_noise
from diptych.models.checkpoint import load_morph
from diptych.models.encoded_images import image_features
from diptych.models.pixel_decoder import PixelDecoder, VisualTokens, load_pixel_decoder
from diptych.models.vpit_checkpoint import build_vpit_morph, save_vpit
from diptych.settings import PixelDecoderConfig
from tiny_pixel_decoder import IMAGE_SIZE, build_decoder, decoder_recipe, load_encoder, write_parts
from tiny_vpit import FEATURE_DIM, NUM_TOKENS, random_features, vpit_recipe
from tiny_xfusion import build_language

KINDS = ("flow", "stable_diffusion")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(params=KINDS)
def decoder(parts: Path, request: pytest.FixtureRequest) -> PixelDecoder:
    return build_decoder(decoder_recipe(parts, pixel_decoder_training={"kind": request.param}))


def test_visual_tokens_become_images(decoder: PixelDecoder) -> None:
    images = decoder.decode(random_features(3))
    assert images.shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert bool((images.abs() <= 1).all())
    assert decoder.decode(random_features(0)).shape == (0, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_the_seed_decides_and_image_k_has_its_own_noise(decoder: PixelDecoder) -> None:
    features = random_features(1).repeat(2, 1, 1)
    first, again, other = (decoder.decode(features, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])


def test_one_batch_equals_one_by_one(decoder: PixelDecoder) -> None:
    features = random_features(5)
    together = decoder.decode(features, seed=7)
    for size in (1, 2):
        torch.testing.assert_close(decoder.decode(features, seed=7, max_batch_size=size), together, atol=1e-4, rtol=0)


def test_noise_comes_from_seed_and_image_alone() -> None:
    noise = starting_noise(range(4), (2, 3), seed=5)
    assert torch.equal(starting_noise([2], (2, 3), seed=5)[0], noise[2])


class Watched:
    """Calls a module, and keeps how many images and which conditions it was given."""

    def __init__(self, decoder: PixelDecoder, *, name: str) -> None:
        self.module = getattr(decoder.denoiser, name)
        self.calls: list[tuple[Any, ...]] = []
        self.module.register_forward_pre_hook(lambda _, arguments: self.calls.append(arguments))


def test_guidance_1_is_the_condition_alone_and_costs_half(decoder: PixelDecoder) -> None:
    """Conditional and unconditional images share one batch; at scale 1 there are no unconditional ones."""
    name = "network" if decoder.denoiser.loss_name == "flow" else "unet"
    features = random_features(2)
    watched = Watched(decoder, name=name)
    alone = decoder.decode(features, guidance_scale=1.0, num_inference_steps=2)
    sizes = {len(arguments[0]) for arguments in watched.calls}
    num_calls = len(watched.calls)
    watched.calls.clear()
    nearly = decoder.decode(features, guidance_scale=1.0 + 1e-6, num_inference_steps=2)
    assert (sizes, {len(arguments[0]) for arguments in watched.calls}) == ({2}, {4})
    assert len(watched.calls) == num_calls
    torch.testing.assert_close(nearly, alone, atol=1e-4, rtol=0)
    assert not torch.allclose(decoder.decode(features, guidance_scale=3.0, num_inference_steps=2), alone, atol=1e-4)


def test_guidance_0_does_not_look_at_the_visual_tokens(decoder: PixelDecoder) -> None:
    one, other = (decoder.decode(random_features(2, seed=seed), guidance_scale=0.0) for seed in (0, 1))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    one, other = (decoder.decode(random_features(2, seed=seed), guidance_scale=1.0) for seed in (0, 1))
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_dropped_condition_leaves_no_trace_in_the_loss(decoder: PixelDecoder) -> None:
    denoiser = decoder.denoiser
    latents, noise = torch.randn(2, 2, *denoiser.latent_shape)
    t = torch.stack([denoiser.sample_time(torch.Generator().manual_seed(k)) for k in range(2)])

    def loss(features: Tensor, *dropped: bool) -> Tensor:
        return denoiser(latents, features, noise, t, torch.tensor(dropped))

    features, changed = random_features(2), random_features(2)
    changed[1] = torch.nan
    assert torch.equal(loss(features, False, True), loss(changed, False, True))
    assert not torch.allclose(loss(features, False, False), loss(random_features(2, seed=1), False, False))


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_flow_has_its_samplers(parts: Path, sampler: str) -> None:
    decoder = build_decoder(decoder_recipe(parts))
    drawn = decoder.decode(random_features(1), sampler=sampler)
    assert not torch.equal(drawn, decoder.decode(random_features(1), sampler="heun" if sampler == "euler" else "euler"))


@pytest.mark.parametrize(
    ("features", "options", "says"),
    [
        (
            random_features(2)[:, :3],
            {},
            rf"reads visual tokens \[images, {NUM_TOKENS}, {FEATURE_DIM}\], got .*\[2, 3, ",
        ),
        (random_features(2)[0], {}, "reads visual tokens"),
        (random_features(2).long(), {}, "int64"),
        (random_features(2), {"num_inference_steps": 0}, "num_inference_steps must be 1 or more, got 0"),
        (random_features(2), {"sampler": "magic"}, "unknown sampler 'magic'; choose one of: "),
        (random_features(2), {"guidance_scale": float("nan")}, "guidance_scale must be a number"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    decoder: PixelDecoder, features: Tensor, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        decoder.decode(features, **options)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_visual_tokens_that_are_no_numbers_are_refused_by_image(decoder: PixelDecoder, value: float) -> None:
    features = random_features(3)
    features[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"visual tokens of image 1 are not finite"):
        decoder.decode(features)


def test_guidance_needs_images_learnt_without_their_condition(parts: Path) -> None:
    undropped: dict[str, Any] = {"pixel_decoder_training": {"condition_dropout_prob": 0.0}}
    with pytest.raises(ValueError, match=r"guidance_scale 2 needs .*condition_dropout_prob above 0"):
        build_decoder(decoder_recipe(parts, **undropped))
    decoder = build_decoder(decoder_recipe(parts, sample={"guidance_scale": 1.0}, **undropped))
    with pytest.raises(ValueError, match="guidance_scale 3 needs"):
        decoder.decode(random_features(1), guidance_scale=3.0)


def test_the_kind_decides_how_often_the_condition_is_dropped_unless_the_recipe_does() -> None:
    assert PixelDecoderConfig(kind="flow").dropout_prob == 0.1
    assert PixelDecoderConfig(kind="stable_diffusion").dropout_prob == 0.7
    assert PixelDecoderConfig(kind="stable_diffusion", condition_dropout_prob=0.0).dropout_prob == 0.0


def test_an_image_size_that_the_autoencoder_does_not_divide_is_refused(parts: Path) -> None:
    with pytest.raises(ValueError, match="image_size 18 must be a multiple of 4"):
        build_decoder(decoder_recipe(parts, image_size=18))


def test_other_visual_tokens_are_refused_by_name(parts: Path) -> None:
    decoder = build_decoder(decoder_recipe(parts))
    encoder = load_encoder(decoder.recipe)
    decoder.check_encoder(encoder, num_image_tokens=NUM_TOKENS)
    with pytest.raises(ValueError, match="its num_image_tokens is 4, not 9"):
        decoder.check_encoder(encoder, num_image_tokens=9)
    other_layer = load_image_encoder(str(parts / "encoder"), layer=0)
    with pytest.raises(ValueError, match="its encoder_layer is None, not 0"):
        decoder.check_encoder(other_layer, num_image_tokens=NUM_TOKENS)
    larger = load_image_encoder(str(parts / "encoder"), image_size=64)
    with pytest.raises(ValueError, match="its encoder_image_size is 32, not 64"):
        decoder.check_encoder(larger, num_image_tokens=NUM_TOKENS)
    decoder.visual_tokens = dataclasses.replace(decoder.visual_tokens, encoder_hash="e" * 64)
    with pytest.raises(ValueError, match=r"image_encoder is '.*encoder' with hash eeeeeeeeeeeeeeee, not"):
        decoder.load_encoder()


def test_an_encoder_counts_by_its_weights_not_by_where_they_lie(parts: Path) -> None:
    mine = VisualTokens.of(load_encoder(decoder_recipe(parts)), 4)
    assert mine.differences(dataclasses.replace(mine, image_encoder="elsewhere")) == []


def test_a_loaded_decoder_is_the_saved_one(decoder: PixelDecoder, tmp_path: Path) -> None:
    decoder.save_pretrained(tmp_path)
    loaded = load_pixel_decoder(tmp_path)
    features = random_features(2)
    assert torch.equal(loaded.decode(features, seed=2), decoder.decode(features, seed=2))
    assert loaded.visual_tokens == decoder.visual_tokens
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    loaded.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_given_weights_are_saved_in_place_of_the_present_ones(parts: Path, tmp_path: Path) -> None:
    decoder = build_decoder(decoder_recipe(parts, morph_dtype="bfloat16"))
    averaged = {name: parameter.detach() * 0.5 for name, parameter in decoder.denoiser.named_parameters()}
    decoder.save_pretrained(tmp_path, weights=averaged)
    loaded = dict(load_pixel_decoder(tmp_path).denoiser.named_parameters())
    assert all(torch.equal(loaded[name], tensor.bfloat16().float()) for name, tensor in averaged.items())


def test_the_decoder_of_a_vpit_morph_is_found(parts: Path, tmp_path: Path) -> None:
    """In its folder's pixel_decoder/, or where its recipe says; a morph without one is refused."""
    recipe = decoder_recipe(parts)
    decoder = build_decoder(recipe)

    def write_morph(folder: Path, named: str | None) -> Path:
        folder.mkdir()
        vpit = recipe.model_copy(
            update={"method": "vpit", "vpit": recipe.vpit.model_copy(update={"pixel_decoder": named})}
        )
        config = {"format": 1, "hashes": {}, "weights_sha256": "", "recipe": vpit.model_dump(mode="json")}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    inside = write_morph(tmp_path / "inside", None)
    with pytest.raises(ValueError, match="inside has no pixel decoder; train one"):
        load_pixel_decoder(inside)
    decoder.save_pretrained(inside / "pixel_decoder")
    named = write_morph(tmp_path / "named", str(inside / "pixel_decoder"))
    for folder in (inside, named):
        assert load_pixel_decoder(folder).visual_tokens == decoder.visual_tokens
    other = write_morph(tmp_path / "other", None) / "config.json"
    other.write_text(other.read_text().replace('"method": "vpit"', '"method": "xfusion"'))
    with pytest.raises(ValueError, match="of method xfusion, not a pixel decoder; train one"):
        load_pixel_decoder(other.parent)


def test_a_folder_that_does_not_fit_is_refused_by_name(parts: Path, tmp_path: Path) -> None:
    build_decoder(decoder_recipe(parts)).save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    whole, tensors = config.read_text(), load_file(weights)
    gone = tensors.pop("network.no_condition")
    save_file(tensors | {"extra": gone}, weights)
    agreeing = json.loads(whole) | {"weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    config.write_text(json.dumps(agreeing))
    with pytest.raises(ValueError, match=r"missing network\.no_condition; unexpected extra"):
        load_pixel_decoder(tmp_path)
    weights.write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is damaged: its SHA-256"):
        load_pixel_decoder(tmp_path)
    config.write_text(json.dumps(json.loads(whole) | {"visual_tokens": {"what": 1}}))
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_pixel_decoder(tmp_path)
    changed = json.loads(whole)
    changed["hashes"]["autoencoder"] = "a" * 64
    config.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="autoencoder with hash aaaaaaaaaaaaaaaa"):
        load_pixel_decoder(tmp_path)
    with pytest.raises(ValueError, match="there is no morph at"):
        load_pixel_decoder(tmp_path / "nothing")


def test_a_vpit_morph_draws_with_it_and_carries_it(parts: Path, tmp_path: Path) -> None:
    """From its predicted visual tokens to pixels; saved and loaded the same; one of another grid is refused."""
    build_decoder(decoder_recipe(parts)).save_pretrained(tmp_path / "decoder")
    vpit: dict[str, Any] = {"image_encoder": str(parts / "encoder"), "pixel_decoder": str(tmp_path / "decoder")}
    morph = build_vpit_morph(vpit_recipe(vpit=vpit), language=build_language("llama"), cached=False)
    request: Any = [{"role": "user", "content": "Draw 1."}]
    options: dict[str, Any] = {"generation_mode": "image", "num_images": 2, "seed": 3}
    pictures: list[Any] = morph.generate(request, **options)
    assert [picture.size for picture in pictures] == [(IMAGE_SIZE, IMAGE_SIZE)] * 2
    assert pictures[0].tobytes() != pictures[1].tobytes()
    save_vpit(tmp_path / "morph", morph)
    shutil.rmtree(tmp_path / "decoder")
    loaded = load_morph(tmp_path / "morph", language_model=build_language("llama"))
    again: list[Any] = loaded.generate(request, **options)
    assert [picture.tobytes() for picture in again] == [picture.tobytes() for picture in pictures]
    own = str(tmp_path / "morph" / "pixel_decoder")
    with pytest.raises(ValueError, match="its num_image_tokens is 4, not 9"):
        build_vpit_morph(
            vpit_recipe(vpit=vpit | {"pixel_decoder": own, "num_image_tokens": 9}), language=build_language("llama")
        )


def test_reconstruction_decodes_the_visual_tokens_of_its_own_encoder(decoder: PixelDecoder, parts: Path) -> None:
    images = [open_image(path) for path in sorted((parts / "data").glob("*.png"))]
    encoder = load_encoder(decoder.recipe)
    encoded = image_features(encoder, NUM_TOKENS, cache_dir=None)
    tokens = torch.stack([encoded.load(str(path)) for path in sorted((parts / "data").glob("*.png"))])
    expected = [tensor_to_image(image) for image in decoder.decode(tokens, num_inference_steps=2, seed=1)]
    made = [
        decoder.reconstruct(images, num_inference_steps=2, seed=1),
        decoder.reconstruct(images, encoder=encoder, num_inference_steps=2, seed=1),
    ]
    for pictures in made:
        assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in expected]
    assert "_loaded_encoder" not in dict(decoder.named_modules())
    assert decoder.abilities == {"reconstructs"}
