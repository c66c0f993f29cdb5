"""Image encoders: the features are the network's own, of the right layer and patches, whatever they come packed in."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from diptych.backbones.assets import asset_path
from diptych.backbones.vision import ImageEncoder, ImagePreprocessing, build_image_encoder, load_image_encoder
from diptych.data.images import image_to_tensor

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION = SMALL | {"image_size": 28, "patch_size": 14}
TEXT = SMALL | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TOWERS = {"text_config": TEXT, "vision_config": VISION}
DINO = {name: value for name, value in VISION.items() if name != "intermediate_size"}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip": ("Siglip", TOWERS),
    "clip": ("CLIP", TOWERS),
    "siglip-vision": ("SiglipVision", VISION),
    "clip-vision": ("CLIPVision", VISION),
    "dinov2": ("Dinov2", DINO),
    "dinov2-registers": ("Dinov2WithRegisters", DINO),
    "vit": ("ViT", VISION),
}
VIT_HASH = "c363ab092991870d9f03ac727d757bed55f5b8a0f4803f464405b9b4ddda2a9a"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers.utils.logging.disable_progress_bar()


def save_network(kind: str, folder: Path, **processor: Any) -> Any:
    """A tiny random model saved as a folder, with an image processor's settings if any; returns its vision part."""
    name, settings = NETWORKS[kind]
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return getattr(model, "vision_model", model)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("layer", [None, 0, 2, 3, -2])
def test_features_are_the_networks_own_patches(tmp_path: Path, kind: str, layer: int | None) -> None:
    size = {"height": 28, "width": 28}
    network = save_network(kind, tmp_path, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], size=size)
    encoder = load_image_encoder(str(tmp_path), layer=layer)
    images = torch.rand(3, 3, 28, 28) * 2 - 1

    mean, std = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    with torch.no_grad():
        output = network(pixel_values=((images + 1) / 2 - mean) / std, output_hidden_states=True)
    states = output.last_hidden_state if layer is None else output.hidden_states[layer]
    num_extra = {"siglip": 0, "siglip-vision": 0, "dinov2-registers": 5}.get(kind, 1)
    assert states.shape[1] == num_extra + 4
    torch.testing.assert_close(encoder.features(images), states[:, num_extra:], rtol=1e-5, atol=1e-6)
    if layer is None:
        pooled = output.pooler_output
    else:
        pooled = states[:, 0] if num_extra else states.mean(1)
    torch.testing.assert_close(encoder.pooled(images), pooled, rtol=1e-5, atol=1e-6)
    assert (encoder.num_features, encoder.feature_dim) == (4, 32)


@pytest.mark.parametrize("kind", NETWORKS)
def test_another_image_size_gives_another_grid(tmp_path: Path, kind: str) -> None:
    save_network(kind, tmp_path)
    encoder = load_image_encoder(str(tmp_path), image_size=56)
    assert encoder.features(torch.zeros(1, 3, 30, 40)).shape == (1, 16, 32)
    assert encoder.num_features == 16
    with pytest.raises(ValueError, match="image_size 30 is no multiple of its patch size 14"):
        load_image_encoder(str(tmp_path), image_size=30)


def test_it_is_frozen_deterministic_and_independent_of_the_batch(tmp_path: Path) -> None:
    save_network("dinov2", tmp_path)
    encoder = load_image_encoder(str(tmp_path), batch_size=2)
    images = torch.rand(5, 3, 28, 28) * 2 - 1
    images.requires_grad_(True)
    encoder.train()
    features, pooled = encoder.encode(images)
    assert not features.requires_grad
    assert not encoder.training
    assert not encoder.network.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert torch.equal(features, encoder.features(images))
    one_by_one = torch.cat([encoder.features(image[None]) for image in images])
    torch.testing.assert_close(features, one_by_one, rtol=1e-5, atol=1e-6)
    assert encoder.features(images[:0]).shape == (0, 4, 32)
    assert encoder.pooled(images[:0]).shape == (0, 32)
    assert pooled.dtype == torch.float32


def test_the_hash_is_of_the_weights_and_the_key_of_all_that_matters(tmp_path: Path) -> None:
    save_network("vit", tmp_path)
    name = str(tmp_path)
    encoders = [
        load_image_encoder(name),
        load_image_encoder(name, layer=1),
        load_image_encoder(name, image_size=56),
        load_image_encoder(name, dtype=torch.bfloat16),
    ]
    assert len({encoder.hash for encoder in encoders}) == 1
    assert len({encoder.cache_key for encoder in encoders}) == 4
    assert load_image_encoder(name).cache_key == encoders[0].cache_key
    assert load_image_encoder(name, layer=-3).cache_key == encoders[1].cache_key
    assert encoders[3].features(torch.zeros(1, 3, 28, 28)).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "size", "mean", "interpolation", "fit"),
    [
        ({}, 28, 0.5, "bicubic", "squash"),
        ({"size": {"shortest_edge": 42}, "resample": 2}, 42, 0.5, "bilinear", "crop"),
        ({"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}, 56, 0.5, "bicubic", "crop"),
        ({"size": {"height": 42, "width": 42}, "crop_size": 56, "do_center_crop": False}, 42, 0.5, "bicubic", "squash"),
        ({"size": 56, "image_mean": [0.2] * 3, "image_std": [1] * 3, "resample": 3}, 56, 0.2, "bicubic", "squash"),
        ({"size": 56, "crop_size": 42, "do_center_crop": True}, 42, 0.5, "bicubic", "crop"),
    ],
)
def test_preprocessing_is_read_from_the_folder(
    tmp_path: Path, settings: dict, size: int, mean: float, interpolation: str, fit: str
) -> None:
    save_network("vit", tmp_path, **settings)
    preprocessing = load_image_encoder(str(tmp_path)).preprocessing
    assert (preprocessing.image_size, preprocessing.mean[0]) == (size, mean)
    assert (preprocessing.interpolation, preprocessing.fit) == (interpolation, fit)


@pytest.mark.parametrize(("kind", "fit"), [("siglip", "squash"), ("clip", "crop"), ("dinov2", "crop")])
def test_a_folder_without_its_processor_fits_images_as_its_family_does(tmp_path: Path, kind: str, fit: str) -> None:
    save_network(kind, tmp_path)
    assert load_image_encoder(str(tmp_path)).preprocessing.fit == fit


def picture(width: int, height: int) -> Image.Image:
    """Smooth colours and a little noise: every part of it is told from the others."""
    random = np.random.RandomState(0)
    blobs = Image.fromarray(random.randint(0, 255, (6, 6, 3), dtype=np.uint8)).resize((width, height))
    noise = random.randint(-20, 20, (height, width, 3))
    return Image.fromarray((np.asarray(blobs).astype(int) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(120, 40), (40, 120), (28, 28)], ids=str)
@pytest.mark.parametrize("kind", ["siglip", "clip", "vit"])
def test_an_image_is_prepared_as_transformers_own_processor_does(
    tmp_path: Path, kind: str, size: tuple[int, int]
) -> None:
    """SigLIP's and ViT's whole image is squashed, CLIP's resized by its shorter side and cropped. At the edge of a crop
    theirs mixes in what lies outside, ours does not."""
    made: dict[str, Any] = {
        "siglip": transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28}),
        "clip": transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        "vit": transformers.ViTImageProcessorPil(size={"height": 28, "width": 28}),
    }
    save_network(kind, tmp_path)
    made[kind].save_pretrained(tmp_path)
    own = load_image_encoder(str(tmp_path)).preprocessing
    image = picture(*size)
    theirs = made[kind](images=image, return_tensors="pt")["pixel_values"]
    ours = own(image_to_tensor(image, 28, fit=own.fit, interpolation=own.interpolation)[None])
    cropped = kind == "clip" and size != (28, 28)
    inner = slice(3, 25) if cropped else slice(0, 28)
    level = 1 / 255 / min(own.std)  # a resized crop may round another way than a cropped resize
    atol = 1.01 * level if cropped else 1e-5
    torch.testing.assert_close(ours[..., inner, inner], theirs[..., inner, inner], atol=atol, rtol=0)
    if size != (28, 28):
        other = own(image_to_tensor(image, 28, fit="crop" if own.fit == "squash" else "squash")[None])
        assert (other - theirs).abs().mean() > 0.1


def test_a_squashing_encoder_squashes_tensors_too() -> None:
    half = (0.5,) * 3
    image = torch.full((1, 3, 16, 48), -1.0)
    image[..., 24:] = 1.0
    squashed = ImagePreprocessing(8, half, half, fit="squash")(image)
    assert squashed.shape == (1, 3, 8, 8)
    assert torch.equal(squashed.sign(), torch.tensor([-1.0] * 4 + [1.0] * 4).expand(1, 3, 8, 8))


def test_how_images_are_fitted_is_part_of_the_key_and_crops_keep_theirs() -> None:
    """A cache of features of cropped images, as there was before, is still one of these."""
    half = (0.5,) * 3
    variants = [
        ImagePreprocessing(28, half, half, interpolation, fit)
        for interpolation in ("bicubic", "bilinear")
        for fit in ("crop", "squash")
    ]
    config = transformers.ViTConfig(
        image_size=28, patch_size=14, hidden_size=32, num_hidden_layers=1, num_attention_heads=4
    )
    network = transformers.ViTModel(config)
    keys = [build_image_encoder(network, own, name="vit", weight_hash="0" * 64).cache_key for own in variants]
    assert len(set(keys)) == 4
    before = json.dumps(["0" * 64, None, [28, half, half, "bicubic"], "torch.float32"])
    assert keys[0] == hashlib.sha256(before.encode()).hexdigest()


def test_a_wide_image_is_cropped_to_its_centre_and_kept_in_range() -> None:
    preprocessing = ImagePreprocessing(8, (0.0,) * 3, (1.0,) * 3)
    image = torch.full((1, 3, 16, 48), -1.0)
    image[..., 16:32] = 1.0
    assert torch.equal(preprocessing(image), torch.ones(1, 3, 8, 8))
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    pixels = ImagePreprocessing(21, (0.0,) * 3, (1.0,) * 3)(checks.expand(1, 3, 16, 16))
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 28, 28), r"float images \[B, 3, H, W\] in -1\.\.1, got torch\.float32 \(3, 28, 28\)"),
        (torch.zeros(1, 4, 28, 28), "float images"),
        (torch.zeros(1, 3, 28, 28, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((1, 3, 28, 28), 255.0), "values up to 255"),
        (torch.full((1, 3, 28, 28), float("nan")), "values up to nan"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, images: torch.Tensor, words: str) -> None:
    save_network("vit", tmp_path)
    with pytest.raises(ValueError, match=words):
        load_image_encoder(str(tmp_path)).features(images)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    save_network("vit", tmp_path)
    with pytest.raises(ValueError, match=r"has layers 0\.\.3, got layer 4"):
        load_image_encoder(str(tmp_path), layer=4)
    with pytest.raises(ValueError, match="did you mean 'efficientnet-lite0'"):
        load_image_encoder("efficientnet-lite")
    with pytest.raises(ValueError, match="there is no such folder; embedded: efficientnet-lite0, vit-s14-focus"):
        load_image_encoder("/nowhere/model")
    config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    transformers.ConvNextModel(config).save_pretrained(tmp_path / "convnext")
    with pytest.raises(ValueError, match="type 'convnext' has no square patch grid; take a vision transformer"):
        load_image_encoder(str(tmp_path / "convnext"))
    with pytest.raises(ValueError, match="one feature map; leave out layer"):
        load_image_encoder("efficientnet-lite0", layer=3)


def test_an_encoder_that_merges_its_patches_is_refused() -> None:
    """Swin names an image size, a patch size and a width, but has fewer states than patches."""
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4
    )
    config.num_hidden_layers = 2
    half = (0.5, 0.5, 0.5)
    network, preprocessing = transformers.SwinModel(config), ImagePreprocessing(32, half, half)
    encoder = build_image_encoder(network, preprocessing, name="swin", weight_hash="0" * 64)
    with pytest.raises(ValueError, match="SwinModel gives 16 states for 64 patches; take a vision transformer"):
        encoder.features(torch.zeros(1, 3, 32, 32))


def emoji_images(codes: list[str], size: int = 96) -> torch.Tensor:
    images = []
    for code in codes:
        with Image.open(asset_path("fluent-emoji-3d") / "assets" / f"{code}.webp") as drawn:
            picture = Image.new("RGBA", drawn.size, "white")
            picture.alpha_composite(drawn.convert("RGBA"))
        pixels = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)).copy()
        images.append(torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(images)


FRUIT_AND_OTHERS = ["1f34b", "1f34c", "2602-fe0f", "2615", "1f40c", "1f981", "1f3b8"]


def assert_tells_apart(encoder: ImageEncoder) -> None:
    images = emoji_images(FRUIT_AND_OTHERS)
    worse = torch.nn.functional.interpolate(images, (40, 40), mode="bilinear", antialias=True)
    worse = (worse + 0.05 * torch.randn_like(worse)).clamp(-1, 1)
    clean, noisy = (torch.nn.functional.normalize(encoder.pooled(x), dim=-1) for x in (images, worse))
    assert (noisy @ clean.T).argmax(1).tolist() == list(range(len(images)))
    assert torch.equal(encoder.pooled(images[:1]), encoder.pooled(images[:1]))


@pytest.mark.assets("efficientnet-lite0", "fluent-emoji-3d")
def test_the_embedded_efficientnet_tells_emoji_apart_and_knows_some_by_name() -> None:
    encoder = load_image_encoder("efficientnet-lite0")
    assert encoder.features(torch.zeros(1, 3, 64, 64)).shape == (1, 49, 1280)
    assert (encoder.num_features, encoder.feature_dim) == (49, 1280)
    assert_tells_apart(encoder)
    # ImageNet's umbrella and coffee (mug, espresso or cup): drawings, but of what it was trained on.
    pixels = encoder.preprocessing(emoji_images(["2602-fe0f", "2615"], 224))
    umbrella, coffee = encoder.network.network.classify(pixels).argmax(1).tolist()  # pyright: ignore
    assert umbrella == 879
    assert coffee in (504, 967, 968)


@pytest.mark.assets("efficientnet-lite0")
def test_folding_the_norms_changes_rounding_only() -> None:
    from diptych.backbones.efficientnet_lite import load_efficientnet_lite0

    plain, _ = load_efficientnet_lite0()
    folded, _ = load_efficientnet_lite0()
    folded.fold_norms()
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(folded.feature_map(pixels), plain.feature_map(pixels), rtol=0, atol=1e-4)  # 2e-5 found
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.assets("vit-s14-focus", "fluent-emoji-3d")
def test_the_embedded_vit_tells_emoji_apart() -> None:
    encoder = load_image_encoder("vit-s14-focus")
    assert encoder.hash == VIT_HASH
    assert encoder.preprocessing.fit == "crop"
    assert (encoder.layer, encoder.num_features, encoder.feature_dim) == (11, 256, 384)
    assert_tells_apart(encoder)
    # These weights equal the ONNX file under onnxruntime, decoder included, to 2.8e-6.
