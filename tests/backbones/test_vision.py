"""Image encoders: the features are the network's own, of the right layer and patches, whatever they come packed in."""

from __future__ import annotations

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
    ("settings", "size", "mean", "interpolation"),
    [
        ({}, 28, 0.5, "bicubic"),
        ({"size": {"shortest_edge": 42}, "resample": 2}, 42, 0.5, "bilinear"),
        ({"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}, 56, 0.5, "bicubic"),
        ({"size": {"height": 42, "width": 42}, "crop_size": 56, "do_center_crop": False}, 42, 0.5, "bicubic"),
        ({"size": 56, "image_mean": [0.2, 0.2, 0.2], "image_std": [1, 1, 1], "resample": 3}, 56, 0.2, "bicubic"),
    ],
)
def test_preprocessing_is_read_from_the_folder(
    tmp_path: Path, settings: dict, size: int, mean: float, interpolation: str
) -> None:
    save_network("vit", tmp_path, **settings)
    preprocessing = load_image_encoder(str(tmp_path)).preprocessing
    assert (preprocessing.image_size, preprocessing.mean[0]) == (size, mean)
    assert preprocessing.interpolation == interpolation


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
    assert (encoder.layer, encoder.num_features, encoder.feature_dim) == (11, 256, 384)
    assert_tells_apart(encoder)
    # These weights equal the ONNX file under onnxruntime, decoder included, to 2.8e-6.
